"""Processes that make chunks of puzzles, and that end with the process that they work for, however that ends.

They are started as plain Python: they import this package and not the caller's `__main__`, as `multiprocessing` would.
So a script needs no guard, and a notebook or a program read from standard input will do.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np

# Imports nothing before it has the caller's paths: a file in the working folder may have any name.
_PROGRAM = """
import sys
sys.path[:1] = [path for path in sys.path[:1] if path]
import pickle
try:
    sys.path[:] = pickle.load(sys.stdin.buffer)
except EOFError:  # nobody is there any more
    sys.exit()
from trm_ray.kinds.chunk_workers import work
work()
"""
_LOG = logging.getLogger("trm_ray")


@dataclass(frozen=True)
class Puzzles:
    """Hold puzzles (P, cells), their answers (P, cells), and the form of each that its symmetric ones share."""

    questions: np.ndarray
    answers: np.ndarray
    forms: list[bytes]


MakeChunk = Callable[[int], Puzzles]


class ChunkWorkers:
    """Make chunks in processes of their own; where there can be none, in this one.

    Args:
        make: the puzzles of a chunk's number; it is pickled.
    """

    def __init__(self, make: MakeChunk, processes: int):
        self._make, self._number = make, processes
        self._threads = ThreadPoolExecutor(processes, "puzzles")  # each waits for the process that it has taken
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._started: list[_Process] = []
        self._ended, self._told, self._telling = False, False, threading.Lock()

    def __enter__(self) -> ChunkWorkers:
        try:
            for _ in range(self._number):
                self._idle.put(self._start())
        except BaseException:  # a signal
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        self._ended = True
        for process in self._started:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._started:
            process.close()

    def chunks(self) -> Iterator[Puzzles]:
        """Yield the chunks in the order of their numbers, without end."""
        waiting: deque[Future[Puzzles]] = deque()
        for number in count():
            waiting.append(self._threads.submit(self._chunk, number))
            if len(waiting) > self._number + 1:
                yield waiting.popleft().result()

    def _start(self) -> _Process | None:
        try:
            process = _Process(self._make)
        except OSError as error:
            self._tell(error)
            return None
        self._started.append(process)
        return process

    def _chunk(self, number: int) -> Puzzles:
        process = self._idle.get()
        try:
            if process is not None:
                return process.chunk(number)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            process = None
            if self._ended:
                raise
            self._tell(error)
        finally:
            self._idle.put(process)
        return self._make(number)

    def _tell(self, error: Exception) -> None:
        with self._telling:
            if not self._told:
                told = str(error) or type(error).__name__
                _LOG.warning("puzzles are made in this process: others cannot be started or have ended (%s)", told)
            self._told = True


class _Process:
    """One process: it reads what to do from its standard input and answers on its standard output.

    Raises:
        OSError: it cannot be started, or there is no Python that could be.
    """

    def __init__(self, make: MakeChunk):
        # A session of its own: no key and no closed terminal reaches it, and whoever is asked to stop ends it.
        self._process = subprocess.Popen(
            [_python(), "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._unsaid = pickle.dumps([path or os.getcwd() for path in sys.path]) + pickle.dumps(make)

    def chunk(self, number: int) -> Puzzles:
        """Have a chunk made.

        Raises:
            OSError, EOFError: the process has ended.
        """
        asked: IO[bytes] = self._process.stdin  # type: ignore[assignment]
        asked.write(self._unsaid + pickle.dumps(number))
        asked.flush()
        self._unsaid = b""
        answer: Puzzles | Exception = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        """End the process; what it was at is lost, and who waits for it gets an `EOFError`."""
        self._process.kill()

    def close(self) -> None:
        """Wait for the end of a killed process, once nobody uses it any more."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what it was not told any more
                pipe.close()  # type: ignore[union-attr]


def _python() -> str:
    """Find the interpreter.

    Raises:
        OSError: this one is frozen into a program, or part of another one, which would be started again instead.
    """
    name = Path(sys.executable or "").name.lower()
    if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
        raise OSError(f"sys.executable={sys.executable!r} is no Python")
    return sys.executable


def work() -> None:
    """Make chunks for the process that has started this one, until it has no more to say."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # a batch system sends them to all
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed here is no answer
    try:
        make: MakeChunk = pickle.load(sys.stdin.buffer)
        while True:
            answers.write(pickle.dumps(_answer(make, pickle.load(sys.stdin.buffer))))
            answers.flush()
    except (EOFError, BrokenPipeError):  # nobody is there any more
        os._exit(0)


def _answer(make: MakeChunk, number: int) -> Any:
    try:
        return make(number)
    except Exception as error:  # raised again by who has asked
        return error
