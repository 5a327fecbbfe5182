"""What asks this process to stop does not reach Ray's: they have the step under way to finish and to save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trm_ray.distributed import ray_internals
from trm_ray.training.stopping import STOP_SIGNALS


@contextmanager
def own_session() -> Iterator[None]:
    """Start Ray's processes meanwhile in a session of their own: signals of a terminal or `timeout` do not reach it.

    Where a batch system sends signals to all processes of a job, they are blocked in Ray's, but for SIGTERM, with which
    Ray ends them.
    """
    handler = signal.getsignal(signal.SIGTERM)  # for which Ray has one that ends the process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(STOP_SIGNALS) - {signal.SIGTERM, signal.SIGINT})
    try:
        with ray_internals.new_process_session():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
