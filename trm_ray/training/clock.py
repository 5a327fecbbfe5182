"""The time of a run: by the clock, in a logging window, and in CPU seconds by what they went into."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from trm_ray.training.session import ExchangeTime

# What the CPU seconds of a run's processes go into, in the order in which checkpoints keep them. `start` is all that a
# process had used up before its run's first step: imports, reading the data, building the model.
PARTS = ("start", "data", "steps", "gradient_stats", "evaluation", "checkpoints")

# CPU seconds of this process that an earlier run, or a program that only then began one, has used.
_used_before_s = 0.0


def leave_out_earlier() -> None:
    """Count what this process has used up until now to no run: to be called by a program that then begins one."""
    global _used_before_s
    _used_before_s = time.process_time()


def used_earlier_s() -> float:
    """CPU seconds that were left out, or belong to a run."""
    return _used_before_s


class CoreSeconds:
    """CPU seconds of this process, all of its threads, by `PARTS`.

    Args:
        before: seconds by part that count as spent already, from before a resume.
        saved_aside: gives the CPU seconds that a thread of its own has spent on checkpoints so far.
    """

    def __init__(self, before: Mapping[str, float], saved_aside: Callable[[], float]):
        self.spent = {part: before.get(part, 0.0) for part in PARTS}
        self._saved_aside, self._aside_s = saved_aside, saved_aside()
        self.up_to_now("start")

    def up_to_now(self, part: str) -> None:
        """Count what was used since the last call to a part."""
        used, aside = time.process_time() - _used_before_s, self._saved_aside() - self._aside_s
        leave_out_earlier()
        self._aside_s += aside
        self.spent["checkpoints"] += aside
        self.spent[part] += used - aside


class Clock:
    """Wall-clock seconds of a run, and of the current logging window: busy, waiting for data, exchanging gradients.

    What is not told to be anything else is steps.
    """

    def __init__(self, wall_s: float, exchange: ExchangeTime, core: CoreSeconds):
        self._began, self._exchange, self._core = time.perf_counter() - wall_s, exchange, core
        self._restart_window()

    def _restart_window(self) -> None:
        self._window_began, self._steps, self._waited_s, self._paused_s = time.perf_counter(), 0, 0.0, 0.0
        self._exchange.seconds = 0.0

    def wall_s(self) -> float:
        """Seconds since the run began: evaluations count, the time between an interruption and its resume does not."""
        return time.perf_counter() - self._began

    def core_seconds(self) -> dict[str, float]:
        """CPU seconds of this worker since the run began, by `PARTS`."""
        return dict(self._core.spent)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a step, and what happens inside as waiting for its data."""
        began = time.perf_counter()
        with self.on("data"):
            yield
        self._waited_s += time.perf_counter() - began
        self._steps += 1

    @contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """Leave what happens inside (evaluation, checkpoints) out of the throughput, and out of the steps' seconds."""
        began, exchanged_s = time.perf_counter(), self._exchange.seconds
        with self.on(part):
            yield
        self._paused_s += time.perf_counter() - began
        self._exchange.seconds = exchanged_s

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the CPU seconds of what happens inside to a part."""
        self._core.up_to_now("steps")
        yield
        self._core.up_to_now(part)

    def throughput(self, puzzles_per_step: int) -> dict[str, float]:
        """Give the rates of the window and begin a new one; nothing if a resume began after its last step."""
        if not self._steps:
            return {}
        busy_s = time.perf_counter() - self._window_began - self._paused_s
        row = {
            "throughput/steps_per_s": self._steps / busy_s,
            "throughput/puzzles_per_s": self._steps * puzzles_per_step / busy_s,
            "throughput/data_wait_fraction": self._waited_s / busy_s,
        }
        if self._exchange.seconds:
            row["throughput/exchange_fraction"] = self._exchange.seconds / busy_s
        self._restart_window()
        return row
