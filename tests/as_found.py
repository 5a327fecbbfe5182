"""What a program shares with the functions that it calls, and a check that they leave it as they found it."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import torch


def _logger(name: str | None) -> tuple[Any, ...]:
    logger = logging.getLogger(name)
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters)


def _ray_is_there() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


SHARED: dict[str, Callable[[], Any]] = {
    "signals": lambda: {number: signal.getsignal(number) for number in signal.valid_signals()},
    "blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []),
    "environment": lambda: dict(os.environ),
    "working directory": os.getcwd,
    "module path": lambda: list(sys.path),
    "standard streams": lambda: (sys.stdin, sys.stdout, sys.stderr),
    "hooks": lambda: (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
    "root logger": lambda: _logger(None),
    "our logger": lambda: _logger("trm_ray"),
    "warnings": lambda: list(warnings.filters),
    "torch's threads": lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    "torch's ways": lambda: (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    "torch's random numbers": lambda: torch.get_rng_state().tolist(),
    "numpy's random numbers": lambda: [str(part) for part in np.random.get_state()],
    "Python's random numbers": random.getstate,
    "numpy's errors": np.geterr,
    "matplotlib": lambda: {key: str(matplotlib.rcParams._get(key)) for key in matplotlib.rcParams},
    "Ray session": _ray_is_there,
}


@contextmanager
def left_as_found(*but: str) -> Iterator[None]:
    """Fail unless all that is shared is afterwards as it was before, also when an error is raised inside.

    Args:
        but: what is not looked at.
    """
    looked_at = {name: look for name, look in SHARED.items() if name not in but}
    before, threads = {name: look() for name, look in looked_at.items()}, set(threading.enumerate())
    try:
        yield
    finally:
        now = {name: look() for name, look in looked_at.items()}
        changed = {name: (before[name], now[name]) for name in now if now[name] != before[name]}
        assert not changed, changed
        assert _ended(set(threading.enumerate()) - threads) == set()


def _ended(threads: set[threading.Thread]) -> set[threading.Thread]:
    """The threads that stay: one that was told to end may need a moment."""
    deadline = time.monotonic() + 5
    while threads and time.monotonic() < deadline:
        threads = {thread for thread in threads if thread.is_alive()}
        time.sleep(0.01)
    return threads
