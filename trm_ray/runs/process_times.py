"""CPU seconds of this process and of all that it has started, as the operating system counts them."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from trm_ray.storage import write_whole
from trm_ray.training.clock import used_earlier_s

_LOOK_EVERY_S = 5.0


class ProcessTimes:
    """Looks at the processes every few seconds while this lasts: what one uses in its last moments is missed.

    Args:
        file: holds the same of an earlier time, which is added where there is one.

    total_s: CPU seconds so far; those of this process that no run counts (`leave_out_earlier`) are left out.
    available_s: what all of the machine's cores could have given meanwhile.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._end, self._looks = threading.Event(), threading.Lock()
        before = {"total": 0.0, "available": 0.0}
        if file is not None and file.is_file():
            before |= json.loads(file.read_text(encoding="utf-8"))
        self._before, self._began, self._seconds = before, time.perf_counter(), dict[psutil.Process, float]()
        self._look()
        # What others of a caller's session have used before; of this process `used_earlier_s` tells.
        self._earlier_s = sum(used for process, used in self._seconds.items() if process != psutil.Process())
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._file: Path | None = None

    def __enter__(self) -> ProcessTimes:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        if self._file is not None:
            numbers = {"format_version": 1, "total": self.total_s, "available": self.available_s}
            write_whole(self._file, json.dumps(numbers) + "\n")

    def _watch(self) -> None:
        while not self._end.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        with self._looks:
            me = psutil.Process()
            for process in (me, *me.children(recursive=True)):
                times: Any = _times(process)
                if times is not None:
                    self._seconds[process] = times.user + times.system

    @property
    def total_s(self) -> float:
        """Look once more and add up."""
        self._look()
        return self._before["total"] + sum(self._seconds.values()) - self._earlier_s - used_earlier_s()

    @property
    def available_s(self) -> float:
        """Multiply the time since the start by the cores."""
        return self._before["available"] + (time.perf_counter() - self._began) * (os.cpu_count() or 1)

    def keep_in(self, file: Path) -> None:
        """Write both numbers at the end, however it comes, for a resume."""
        self._file = file


def _times(process: psutil.Process) -> Any:
    try:
        return process.cpu_times()
    except psutil.Error:  # it has ended since it was found, or is another user's
        return None
