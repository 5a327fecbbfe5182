"""A run whose number of workers changes: nothing is lost where it was Ray's own wish to change it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trm_ray.distributed.ray_internals import RESIZING, ControllerCallback, state_name

# In a run's folder, it asks the workers to save and stop, so that another number of them can go on.
RESIZE_FILE = "resize_requested"
_PATIENCE_S = 60.0


class SavesBeforeResize(ControllerCallback):
    """Let workers save the step under way before Ray Train ends them to start another number of them.

    Ray would end them in the middle of a step and lose what came after the last checkpoint. After the loss of a node
    nobody is left to be asked: the run goes on from the last checkpoint.
    """

    def __init__(self, run_dir: Path):
        self._file = run_dir / RESIZE_FILE
        self._file.unlink(missing_ok=True)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Ask workers that are about to be replaced, and wait for the answer, which is that the file is gone."""
        if state_name(current_state) != RESIZING:
            return
        self._file.touch()
        deadline = time.monotonic() + _PATIENCE_S
        while self._file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        self._file.unlink(missing_ok=True)
