"""What asks this process to stop does not reach Ray's: they have the step under way to finish and to save."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import services

from trm_ray.training.stopping import STOP_SIGNALS


@contextmanager
def own_session() -> Iterator[None]:
    """Start Ray's processes meanwhile in a session of their own: signals of a terminal or `timeout` do not reach it.

    Where a batch system sends signals to all processes of a job, they are blocked in Ray's, but for SIGTERM, with which
    Ray ends them.
    """
    handler = signal.getsignal(signal.SIGTERM)  # for which Ray has one that ends the process
    start, blocked = services.ConsolePopen, set(STOP_SIGNALS) - {signal.SIGTERM, signal.SIGINT}
    services.ConsolePopen = functools.partial(start, start_new_session=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        services.ConsolePopen = start
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
