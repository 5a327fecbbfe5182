"""Stopping in good order: who asks for it, and how all workers agree on the step after which they stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from trm_ray.storage import is_remote, retried

# In a run's folder, or a sweep's, it asks the workers to save and stop, wherever they are.
STOP_FILE = "stop_requested"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_S, _LOOK_AT_REMOTE_EVERY_S = 0.5, 5.0
# How many steps after it was cast a vote is read on a GPU, where reading it earlier would wait for the step under way.
_VOTE_DELAY = 4


class Interrupted(KeyboardInterrupt):  # as `KeyboardInterrupt`: `except Exception` lets it pass
    """The run stopped because it was asked to, after it had saved where it stood.

    `exit_code` is 130 after Ctrl-C and 143 after SIGTERM.
    """

    exit_code = 128 + signal.SIGINT


def stopped_after(step: int) -> Interrupted:
    """Say where a run stopped."""
    return Interrupted(f"stopped after step {step}, which is saved" if step else "stopped before the first checkpoint")


class StopSignals:
    """While this lasts, turn the first Ctrl-C or SIGTERM into a request to stop; the second ends the process at once.

    Does nothing outside the main thread, which alone gets signals.

    Args:
        stop_file: made at the first signal, for workers elsewhere; removed before and after.
    """

    def __init__(self, stop_file: Path | None = None):
        self._stop_file, self._received = stop_file, 0
        self._handlers: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Tell whether a signal has come."""
        return self._received != 0

    def __enter__(self) -> StopSignals:
        self._remove_file()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore_handlers()
        try:
            self._remove_file()
        except OSError as failure:  # no reason to take a finished run for a failed one
            logging.getLogger(__name__).warning("%s could not be removed (%s)", self._stop_file, failure)
        if isinstance(error, Interrupted) and self._received:
            error.exit_code = 128 + self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore_handlers()
        logging.getLogger(__name__).warning("stopping after the step under way; Ctrl-C again ends without saving it")
        if self._stop_file is not None and is_remote(self._stop_file):  # a handler must neither wait nor fail
            threading.Thread(target=retried, args=(self._stop_file.touch, self._stop_file), daemon=True).start()
        elif self._stop_file is not None:
            self._stop_file.touch()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _remove_file(self) -> None:
        if self._stop_file is not None:
            self._stop_file.unlink(missing_ok=True)


class StopFile:
    """Looks for a file that asks to stop, at most twice a second: on shared storage a look may take milliseconds.

    On object storage, where it takes more and costs money, every five seconds and in a thread that nothing waits for.
    """

    def __init__(self, path: Path):
        self._path, self._found, self._next_look = path, False, 0.0

    def requested(self) -> bool:
        """Tell whether the file is there, or was at an earlier look."""
        if not self._found and time.monotonic() >= self._next_look:
            if is_remote(self._path):
                self._next_look = time.monotonic() + _LOOK_AT_REMOTE_EVERY_S
                threading.Thread(target=self._look, name="stop file", daemon=True).start()
            else:
                self._look()
                self._next_look = time.monotonic() + _LOOK_EVERY_S
        return self._found

    def _look(self) -> None:
        with suppress(OSError):  # where the storage fails, whoever saves will tell
            self._found = self._path.exists()


class StopVotes:
    """Tell after which step all workers stop, from sums of their votes, which travel with the gradients.

    On a GPU a vote counts `_VOTE_DELAY` steps later, on every worker alike, so that no step waits for the device.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._sums: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def add(self, votes: Tensor) -> None:
        """Add the sum () of the workers' votes at a step."""
        if not self._on_gpu:
            self._sums.append((votes, None))
            return
        on_host, copied = torch.empty((), pin_memory=True), torch.cuda.Event()
        on_host.copy_(votes, non_blocking=True)
        copied.record()
        self._sums.append((on_host, copied))

    def carried(self) -> bool:
        """Tell whether to stop after the step that was just taken; ask once a step."""
        if len(self._sums) <= (_VOTE_DELAY if self._on_gpu else 0):
            return False
        votes, copied = self._sums.popleft()
        if copied is not None:
            copied.synchronize()
        return votes.item() > 0
