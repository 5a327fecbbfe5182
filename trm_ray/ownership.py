"""One owner at a time for a folder that is written: a run's, a sweep's, a dataset's. Readers never ask.

On this machine's folders a lock of the kernel holds, which dies with its process; beside it a note tells who it is.
Where the kernel's lock does not reach, on storage that several machines share and on object storage, the note alone
holds: its owner renews it, and one that is not renewed for a while is a dead process's. That is seen by watching it,
never by comparing the clocks of two machines.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import functools
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from trm_ray.storage import absolute, is_remote, retried, write_new

# In the folder that it is about.
NOTE_FILE = ".trm-ray-owner"
# How often a note is renewed, and for how long one may stay as it is until its owner counts as dead, in seconds.
RENEW_S, RENEW_REMOTE_S = 5.0, 15.0
STALE_S, STALE_REMOTE_S = 20.0, 60.0
# Two that take a dead one's note over at the same time look after so long whose it is, where nothing else decides.
_SETTLE_S = 1.0
# Whoever asks who holds a folder holds it himself for a moment.
_ATTEMPTS, _BETWEEN_ATTEMPTS_S = 5, 0.05
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}

_LOG = logging.getLogger("trm_ray")
_OWN: set[str] = set()  # tokens of what this process holds


class FolderInUse(ValueError):  # noqa: N818  # a state of affairs, told to the user
    """Another process writes the folder; the message says which, and how to stop it."""


@dataclass(frozen=True)
class Note:
    """Who holds a folder.

    token: of this holding alone. kernel: whose locks hold here and there. processes: whose numbers mean the same here
    and there. since: local time, for people. renewed: how often.
    """

    token: str
    host: str
    kernel: str
    processes: str
    pid: int
    since: str
    command: str
    renewed: int = 0

    @classmethod
    def own(cls) -> Note:
        """Describe this process."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        words = [os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]]
        command = shlex.join(words)[:300]
        return cls(secrets.token_hex(8), socket.gethostname(), _kernel(), _processes(), os.getpid(), since, command)

    @classmethod
    def from_bytes(cls, content: bytes) -> Note | None:
        """Read a note; None if it is empty, torn or somebody else's."""
        try:
            note = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        return note if isinstance(note.pid, int) and isinstance(note.token, str) else None

    def to_bytes(self) -> bytes:
        """Write it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def is_near(self) -> bool:
        """Tell whether its process can be asked for here."""
        return (self.kernel, self.processes) == (_kernel(), _processes())

    def lives(self) -> bool:
        """Tell whether a near process lives; this one's number may have been a dead one's."""
        return self.token in _OWN if self.pid == os.getpid() else lives(self.pid)

    def told(self) -> str:
        """Say who it is and how to stop it."""
        where = "" if self.is_near() else f" on {self.host}"
        return f"process {self.pid}{where} since {self.since} ({self.command}); stop it with `kill {self.pid}`{where}"


@functools.cache
def _kernel() -> str:
    """Name this kernel since its start: containers of one machine share it, two machines of one name do not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # another system than Linux
        return socket.gethostname()


@functools.cache
def _processes() -> str:
    """Name the space in which numbers of processes are given out: each container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def lives(pid: int) -> bool:
    """Tell whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


class Ownership:
    """Hold a folder for as long as this lasts; it is made if it is missing, and removed again if it stays empty.

    Args:
        folder: as an absolute path or a URL.
        named: what a user calls it, such as `log_dir=runs/a`.
        other: what he may do instead of stopping the owner.

    Raises:
        FolderInUse: a living process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, named: str, other: str = "choose another folder"):
        self.folder, self._named, self._other = absolute(folder), named, other
        self._note = Note.own()
        self._held: _LocalHold | _RemoteHold | None = None
        self._made: list[Path] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="owner", daemon=True)

    def __enter__(self) -> Ownership:
        places = [] if is_remote(self.folder) else [self.folder, *self.folder.parents]
        self._made = [path for path in places if not path.exists()]  # the innermost first
        try:
            self._held = (_hold_remote if is_remote(self.folder) else _hold_local)(self.folder, self._note)
        except _Taken as taken:
            raise FolderInUse(f"{self._named} is being written by {taken}, or {self._other}") from None
        _OWN.add(self._note.token)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        _OWN.discard(self._note.token)
        assert self._held is not None
        try:
            self._held.release()
        except OSError as failure:  # a dead process's note is no obstacle
            _LOG.warning("%s could not be removed (%s)", self.folder / NOTE_FILE, failure)
        _remove_empty(self._made)

    def _renew(self) -> None:
        assert self._held is not None
        complained = False
        while not self._ended.wait(self._held.every_s):
            try:
                mine = self._held.renew()
            except OSError as error:
                if not complained:
                    _LOG.warning("%s could not be renewed (%s)", self.folder / NOTE_FILE, error)
                complained = True
                continue
            if not mine:  # this process slept for so long that it was taken for dead
                _LOG.error("%s was taken over by another process; this one stops", self._named)
                _thread.interrupt_main(signal.SIGTERM)
                return


def holder(folder: Path) -> Note | None:
    """Tell which living process holds a folder, without taking it; None if no one does."""
    return (_remote_holder if is_remote(folder) else _local_holder)(folder)


def refuse_if_held(folder: Path, named: str, other: str) -> None:
    """Refuse a folder that a living process holds.

    Raises:
        FolderInUse: one does.
    """
    note = holder(folder)
    if note is not None:
        raise FolderInUse(f"{named} is being written by {note.told()}, or {other}")


class _Taken(Exception):  # noqa: N818  # on its way to the name that a user knows the folder by
    """Tell who holds a folder."""


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it holds something, or is gone
            return


# ---- folders of this machine, and those that machines share -----------------------------------------------


class _LocalHold:
    def __init__(self, path: Path, descriptor: int, note: Note):
        self.every_s, self._path, self._descriptor, self._note = RENEW_S, path, descriptor, note

    def renew(self) -> bool:
        """Show that the owner lives; tell whether he still is the owner."""
        os.utime(self._descriptor)
        found = _read(self._descriptor)
        return found is None or found.token == self._note.token

    def release(self) -> None:
        try:
            if self.renew():
                self._path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)


def _hold_local(folder: Path, note: Note) -> _LocalHold:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NOTE_FILE
    descriptor, locked = _open_locked(path)
    try:
        found = _read(descriptor)
        if found is not None and _is_alive(found, path, locked=locked):
            raise _Taken(found.told())
        _write(descriptor, note)
        if not locked:
            time.sleep(_SETTLE_S)
            found = _read(descriptor)
            if found is not None and found.token != note.token:
                raise _Taken(found.told())
    except BaseException:
        os.close(descriptor)
        raise
    return _LocalHold(path, descriptor, note)


def _open_locked(path: Path) -> tuple[int, bool]:
    """Open a note and lock it; tell whether the lock holds, which some shared storage has none of.

    Raises:
        _Taken: another process has it.
    """
    for attempt in range(_ATTEMPTS + 1):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        locked = _lock(descriptor, fcntl.LOCK_EX)
        if locked is False and attempt == _ATTEMPTS:
            found = _read(descriptor)
            os.close(descriptor)
            raise _Taken("another process" if found is None else found.told())
        if locked is not False and _is_at(path, descriptor):
            return descriptor, locked is True
        os.close(descriptor)
        time.sleep(_BETWEEN_ATTEMPTS_S)
    raise _Taken("one process after the other")


def _lock(descriptor: int, how: int) -> bool | None:
    """Lock at once or not at all: False where another has the lock, None where there are no locks."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether a file that is open still has its name: who released it has removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Note | None:
    return Note.from_bytes(os.pread(descriptor, 4096, 0))


def _write(descriptor: int, note: Note) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, note.to_bytes(), 0)
    os.fsync(descriptor)


def _is_alive(found: Note, path: Path, *, locked: bool) -> bool:
    """Tell whether the process of a note lives; where the kernel's lock holds, it decides for all of the kernel's."""
    if locked and found.kernel == _kernel():
        return False
    if found.is_near():
        return found.lives()

    def mark() -> object:
        with path.open("rb") as file:  # opened anew, which makes network storage look
            return os.fstat(file.fileno()).st_mtime_ns, file.read()

    return _is_renewed(mark, found, path, STALE_S)


def _is_renewed(mark: Callable[[], object], found: Note, path: Path, stale_s: float) -> bool:
    """Watch another machine's note for as long as a living owner takes at most to renew it."""
    _LOG.warning("%s names process %s on %s; looking for %.0f s whether it lives", path, found.pid, found.host, stale_s)
    before, until = mark(), time.monotonic() + stale_s
    while time.monotonic() < until:
        time.sleep(min(1.0, stale_s / 20))
        if mark() != before:
            return True
    return False


def _local_holder(folder: Path) -> Note | None:
    try:
        descriptor = os.open(folder / NOTE_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found, locked = _read(descriptor), _lock(descriptor, fcntl.LOCK_SH)
        if found is None or locked is False:
            return found
        return found if _is_alive(found, folder / NOTE_FILE, locked=locked is True) else None
    finally:
        os.close(descriptor)


# ---- object storage --------------------------------------------------------------------------------------


class _RemoteHold:
    def __init__(self, path: Path, note: Note):
        self.every_s, self._path, self._note = RENEW_REMOTE_S, path, note

    def renew(self) -> bool:
        found = _read_remote(self._path)
        if found is not None and found.token != self._note.token:
            return False
        self._note = replace(self._note, renewed=self._note.renewed + 1)
        self._path.write_bytes(self._note.to_bytes())
        return True

    def release(self) -> None:
        found = _read_remote(self._path)
        if found is not None and found.token == self._note.token:
            retried(lambda: self._path.unlink(missing_ok=True), self._path, done="removed")


def _hold_remote(folder: Path, note: Note) -> _RemoteHold:
    path = folder / NOTE_FILE
    if not write_new(path, note.to_bytes()):
        if (found := _remote_holder(folder)) is not None:
            raise _Taken(found.told())
        path.write_bytes(note.to_bytes())
        time.sleep(_SETTLE_S)
        found = _read_remote(path)
        if found is not None and found.token != note.token:
            raise _Taken(found.told())
    return _RemoteHold(path, note)


def _remote_holder(folder: Path) -> Note | None:
    path = folder / NOTE_FILE
    found = _read_remote(path)
    if found is None:
        return None
    if found.is_near():
        return found if found.lives() else None
    return found if _is_renewed(lambda: _read_remote(path), found, path, STALE_REMOTE_S) else None


def _read_remote(path: Path) -> Note | None:
    try:
        return Note.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
