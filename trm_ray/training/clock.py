"""The time of a run, and of a logging window."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trm_ray.training.session import ExchangeTime


class Clock:
    """Wall-clock seconds of a run, and of the current logging window: busy, waiting for data, exchanging gradients."""

    def __init__(self, wall_s: float, exchange: ExchangeTime):
        self._began, self._exchange = time.perf_counter() - wall_s, exchange
        self._restart_window()

    def _restart_window(self) -> None:
        self._window_began, self._steps, self._waited_s, self._paused_s = time.perf_counter(), 0, 0.0, 0.0
        self._exchange.seconds = 0.0

    def wall_s(self) -> float:
        """Seconds since the run began: evaluations count, the time between an interruption and its resume does not."""
        return time.perf_counter() - self._began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a step, and what happens inside as waiting for its data."""
        began = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - began
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (evaluation, checkpoints) out of the throughput."""
        began, exchanged_s = time.perf_counter(), self._exchange.seconds
        yield
        self._paused_s += time.perf_counter() - began
        self._exchange.seconds = exchanged_s

    def throughput(self, global_batch_size: int) -> dict[str, float]:
        """Give the rates of the window and begin a new one; nothing if a resume began after its last step."""
        if not self._steps:
            return {}
        busy_s = time.perf_counter() - self._window_began - self._paused_s
        row = {
            "throughput/steps_per_s": self._steps / busy_s,
            "throughput/puzzles_per_s": self._steps * global_batch_size / busy_s,
            "throughput/data_wait_fraction": self._waited_s / busy_s,
        }
        if self._exchange.seconds:
            row["throughput/exchange_fraction"] = self._exchange.seconds / busy_s
        self._restart_window()
        return row
