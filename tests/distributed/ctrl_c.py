"""A Ctrl-C at the right moment."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_once(there: Callable[[], object]) -> Iterator[None]:
    """Send this process a Ctrl-C as soon as something is there, and at the latest after five minutes."""
    ended = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + 300
        while not there() and time.monotonic() < deadline:
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
