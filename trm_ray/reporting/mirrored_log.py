"""A run's log on object storage, where no file can grow: kept on this machine, and copied there again and again."""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trm_ray.reporting.board import Identity
from trm_ray.reporting.run_log import LOG_FILES, METRICS_FILE, RunLog, forget_earlier_attempt
from trm_ray.storage import StorageError, is_remote, retried

# Between two copies; long enough, too, for copying to take a tenth of the time at most, however long the log grows.
COPY_EVERY_S = 5.0
_MOST_OF_TIME = 0.1

_LOG = logging.getLogger("trm_ray")


def open_log(folder: Path, resume_step: int | None = None, identity: Identity | None = None) -> RunLog:
    """Open a run's log where its folder lies; see `RunLog`."""
    return (MirroredLog if is_remote(folder) else RunLog)(folder, resume_step, identity)


class MirroredLog(RunLog):
    """Write a run's log beside its folder and copy it there: every few seconds, for `sync`, and at the end.

    A copy that fails is told and tried again. The thread that trains never waits for one before the end.

    Args:
        folder, resume_step, identity: as for `RunLog`.
        sleep: pauses between the attempts to make the last copy.

    Raises:
        OSError: the storage cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        identity: Identity | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._there, self._here = folder, Path(tempfile.mkdtemp(prefix="trm-ray-log-"))
        self._sleep, self._copied, self._copying = sleep, dict[str, int](), threading.Lock()
        if resume_step is None:
            forget_earlier_attempt(folder)
        else:
            for path in (folder / name for name in LOG_FILES):
                if path.is_file():
                    (self._here / path.name).write_bytes(path.read_bytes())
        super().__init__(self._here, resume_step, identity)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        try:
            self.sync()
        except OSError:
            self._leave()
            raise
        self._thread.start()

    def sync(self) -> None:
        """Copy what was written up to now.

        Raises:
            OSError: the storage fails.
        """
        with self._copying:
            for file in self._here.iterdir():
                size = file.stat().st_size  # more may be written while the file is read; the next copy has it
                if self._copied.get(file.name) != size:
                    (self._there / file.name).write_bytes(file.read_bytes())
                    self._copied[file.name] = size

    def _follow(self) -> None:
        pause = COPY_EVERY_S
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self.sync()
            except OSError as error:
                _LOG.warning("the log in %s is behind (%s); it is copied again in a moment", self._there, error)
            pause = max(COPY_EVERY_S, (time.monotonic() - began) / _MOST_OF_TIME)

    def close(self, *, patiently: bool = True) -> None:
        """Make the last copy; a second call does nothing.

        Args:
            patiently: try again where the storage fails.

        Raises:
            StorageError: it could not be made.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        super().close()
        try:
            if patiently:
                retried(self.sync, self._there / METRICS_FILE, self._sleep)
            else:
                self.sync()
        except OSError as error:
            line = f"the log's last rows could not be written to {self._there}: {error}"
            way_out = "move its files there before --resume"
            raise StorageError(f"{line}; all of it is in {self._here} on {platform.node()}: {way_out}") from error
        shutil.rmtree(self._here)

    def _leave(self) -> None:
        self._ended.set()
        super().close()
        shutil.rmtree(self._here)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if kind is KeyboardInterrupt:  # a second Ctrl-C waits for nothing
            self._leave()
            return
        try:
            self.close(patiently=error is None)
        except StorageError as own:
            if error is None:
                raise
            _LOG.error("%s", own)  # what ended the run comes first
