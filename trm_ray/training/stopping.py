"""Stopping in good order: who asks for it, and how all workers agree on the step after which they stop."""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trm_ray.storage import is_remote, retried

if TYPE_CHECKING:  # signals are taken over before torch is imported, which takes seconds
    import torch
    from torch import Tensor

# In a run's folder, or a sweep's, it asks the workers to save and stop, wherever they are.
STOP_FILE = "stop_requested"
# Ctrl-C; kill, docker and Kubernetes; a terminal that was closed; what Slurm's --signal sends; a batch system's limit.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# A second one of these comes from somebody who does not want to wait; the others may come again on their own account.
_INSISTING = (signal.SIGINT, signal.SIGTERM)
# `timeout` and launchers that pass signals on send the same one twice in a moment.
_SAME_S = 1.0
_LOST_AFTER_S = 0.2
_LOOK_EVERY_S, _LOOK_AT_REMOTE_EVERY_S = 0.5, 5.0
# How many steps after it was cast a vote is read on a GPU, where reading it earlier would wait for the step under way.
_VOTE_DELAY = 4


class Interrupted(KeyboardInterrupt):  # as `KeyboardInterrupt`: `except Exception` lets it pass
    """The run stopped because it was asked to, after it had saved where it stood.

    `exit_code` is 128 + the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """

    exit_code = 128 + signal.SIGINT


def stopped_after(step: int) -> Interrupted:
    """Say where a run stopped."""
    return Interrupted(f"stopped after step {step}, which is saved" if step else "stopped before the first checkpoint")


# ---- signals ---------------------------------------------------------------------------------------------


class _TakenOver:
    """Signals that a handler of ours answers; they are given back to whoever had them.

    Only those that nobody has a use for are taken: what was told to be ignored, as `nohup` does with SIGHUP, stays
    ignored, and a handler of the calling program stays. Ray's own one for SIGTERM, which ends the process, is no such.
    Outside the main thread, which alone gets signals, none are.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], None]):
        self._handler, self._before = handler, dict[signal.Signals, Any]()

    def take(self) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handler) for number in STOP_SIGNALS if _is_free(number)}

    def had(self, number: int) -> Any:
        """Give the handler that a signal had before."""
        return self._before.get(signal.Signals(number))

    def give_back(self) -> None:
        """Give them back; a second call does nothing."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _is_free(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    if handler is signal.SIG_DFL:
        return number in _INSISTING or not _is_caught(number)
    home = getattr(handler, "__module__", None) or ""
    return handler is signal.default_int_handler or home == __name__ or home.startswith("ray.")


def _is_caught(number: int) -> bool:
    """Tell whether something has a handler that Python does not know of, as `faulthandler.register` sets one."""
    with suppress(OSError):  # there is no such file but on Linux
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@contextmanager
def stops_at_once() -> Iterator[None]:
    """While this lasts, let the first stop signal end what is done inside, wherever it stands, by an `Interrupted`.

    For all that leaves nothing to be saved. `StopSignals` inside takes the signals over once there is something.
    """
    ender = _Ender()
    taken = _TakenOver(ender.receive)
    with ender.heard():
        taken.take()
        try:
            yield
        except Exception as error:  # C++ code makes errors of its own from what a handler raises
            if ender.raised is None:
                raise
            raise ender.raised from error
        finally:
            taken.give_back()


class _Ender:
    """Raise `Interrupted` in the main thread for a signal, again where it was lost: finalizers and some imports do."""

    def __init__(self) -> None:
        self.raised: Interrupted | None = None
        self._at, self._looking = 0.0, False
        self._received: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # whose `put` may be interrupted by itself

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal; not its echo, which would break off the way out."""
        looking, self._looking = self._looking, False
        is_heard = _is_on_its_way_out() if looking else time.monotonic() - self._at < _SAME_S
        if self.raised is not None and is_heard:
            return
        self.raised, self._at = Interrupted("stopped at once; nothing was left to save"), time.monotonic()
        self.raised.exit_code = 128 + number
        self._received.put(number)
        raise self.raised

    @contextmanager
    def heard(self) -> Iterator[None]:
        """See to it, while this lasts, that what was raised arrives; it is told once, where it does."""
        before = sys.unraisablehook

        def tell(lost: Any) -> None:
            if self.raised is None or lost.exc_value is not self.raised:
                before(lost)

        sys.unraisablehook = tell
        thread = threading.Thread(target=self._look_after, name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._received.put(None)
            thread.join()
            sys.unraisablehook = before

    def _look_after(self) -> None:
        number, main = self._received.get(), threading.main_thread().ident
        assert main is not None  # it has begun
        while number is not None:
            try:
                following = self._received.get(timeout=_LOST_AFTER_S)
            except queue.Empty:
                self._looking = True
                signal.pthread_kill(main, number)
            else:
                number = following


def _is_on_its_way_out() -> bool:
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


class StopSignals:
    """While this lasts, turn the first stop signal into a request to stop; a second Ctrl-C or SIGTERM ends at once.

    Without a file, the first signal ends at once too as long as nobody has asked whether one has come: whoever asks has
    taken a step, and before the first there is nothing to save.

    Args:
        stop_file: made at the first signal, for workers elsewhere; removed before and after.
    """

    def __init__(self, stop_file: Path | None = None):
        self._stop_file, self._received = stop_file, 0
        self._insisted_at: float | None = None
        self._saves, self._taken = stop_file is not None, _TakenOver(self._receive)

    def requested(self) -> bool:
        """Tell whether a signal has come."""
        self._saves = True
        return self._received != 0

    def __enter__(self) -> StopSignals:
        self._remove_file()
        self._taken.take()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._taken.give_back()
        try:
            self._remove_file()
        except OSError as failure:  # no reason to take a finished run for a failed one
            logging.getLogger(__name__).warning("%s could not be removed (%s)", self._stop_file, failure)
        if isinstance(error, Interrupted) and self._received:
            error.exit_code = 128 + self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._saves:
            before = self._taken.had(number)
            (before if callable(before) else _Ender().receive)(number, frame)
        elif self._insists(number):
            self._taken.give_back()
            at_once = KeyboardInterrupt()
            at_once.exit_code = 128 + number  # type: ignore[attr-defined]
            raise at_once
        elif not self._received:
            self._received = number
            self._ask(number)

    def _insists(self, number: int) -> bool:
        """Tell whether somebody asks again who does not want to wait."""
        if number not in _INSISTING:
            return False
        now, before, self._insisted_at = time.monotonic(), self._insisted_at, time.monotonic()
        return before is not None and (number == signal.SIGINT or now - before > _SAME_S)

    def _ask(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        told = f"; {name} again ends without saving it" if number in _INSISTING else f" ({name})"
        logging.getLogger(__name__).warning("stopping after the step under way%s", told)
        if self._stop_file is not None and is_remote(self._stop_file):  # a handler must neither wait nor fail
            threading.Thread(target=retried, args=(self._stop_file.touch, self._stop_file), daemon=True).start()
        elif self._stop_file is not None:
            self._stop_file.touch()

    def _remove_file(self) -> None:
        if self._stop_file is not None:
            self._stop_file.unlink(missing_ok=True)


# ---- workers ---------------------------------------------------------------------------------------------


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
        import torch

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
