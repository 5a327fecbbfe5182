"""A run's held-out numbers over what its training has cost: steps, seconds, counted operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from trm_ray.reporting.numbers.measure import LOGGED, NUMBERS, Number
from trm_ray.reporting.run_log import Run, Series

Axis = Literal["steps", "seconds", "flops"]
AXES: tuple[Axis, ...] = ("steps", "seconds", "flops")


class Crossing(NamedTuple):
    """Where a number first reached a threshold on an axis; if it did not, how far it was followed."""

    at: float
    reached: bool


@dataclass(frozen=True, eq=False)
class Curves:
    """What is needed of a run to compare it, collected once.

    numbers: the series of each number that the run has, by its name.
    costs: by axis, the cost so far at the steps of a series of its own; both begin at 0.
    """

    run: Run
    numbers: Mapping[str, Series]
    costs: Mapping[Axis, tuple[np.ndarray, np.ndarray]]

    def cost(self, at: Axis, steps: np.ndarray) -> np.ndarray:
        """Give the cost so far at some steps; NaN beyond the last that is known."""
        return np.interp(steps, *self.costs[at], right=np.nan)

    def length(self, at: Axis) -> float | None:
        """Give the cost of the whole run; None where it is unknown."""
        return float(self.costs[at][1][-1]) if at in self.costs else None

    def end(self, number: str, at: Axis) -> float | None:
        """Give the cost at the last evaluation of a number; None where number or cost are unknown."""
        return None if (found := self._curve(number, at)) is None else float(found[0][-1])

    def final(self, number: str) -> float | None:
        """Give a number at its last evaluation; None without one."""
        return float(self.numbers[number].values[-1]) if number in self.numbers else None

    def value(self, number: str, at: Axis, cost: float) -> float | None:
        """Read a number where the run had cost so much, on a line from evaluation to evaluation.

        Returns:
            None outside of what was evaluated; NaN next to an evaluation that was not finite.
        """
        found = self._curve(number, at)
        if found is None or not found[0][0] <= cost <= found[0][-1]:
            return None
        return float(np.interp(cost, *found))

    def crossing(self, number: str, at: Axis, threshold: float) -> Crossing | None:
        """Find where a number reached a threshold; None where number or cost are unknown."""
        found = self._curve(number, at)
        if found is None:
            return None
        where = first_crossing(NUMBERS[number], *found, threshold)
        return Crossing(float(found[0][-1]), False) if where is None else Crossing(where, True)

    def _curve(self, number: str, at: Axis) -> tuple[np.ndarray, np.ndarray] | None:
        if number not in self.numbers or at not in self.costs:
            return None
        costs, values = self.cost(at, self.numbers[number].steps), self.numbers[number].values
        known = np.isfinite(costs)
        return (costs[known], values[known]) if known.any() else None


def curves_of(run: Run) -> Curves:
    """Collect a run's numbers and costs; what its log does not hold is left out."""
    found = {number.name: run.series(number.tag) for number in LOGGED}
    numbers = {name: series for name, series in found.items() if len(series.steps)}
    steps = np.array([0.0, run.last_step])
    costs: dict[Axis, tuple[np.ndarray, np.ndarray]] = {"steps": (steps, steps), "seconds": _seconds(run)}
    flops = run.series("train/flops")
    if len(flops.steps):
        costs["flops"] = _from_zero(flops.steps, flops.values)
    return Curves(run, numbers, costs)


def _seconds(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Sum up the seconds in steps: without evaluations and checkpoints where the log tells the rate of steps."""
    steps, _, rates = run.series("throughput/steps_per_s")
    usable = np.isfinite(rates) & (rates > 0)
    if usable.any():
        steps, rates = steps[usable], rates[usable]
        return _from_zero(steps, np.cumsum(np.diff(steps, prepend=0) / rates))
    return _from_zero(*run.series("wall_s")[:2])


def _from_zero(steps: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([[0.0], steps]), np.concatenate([[0.0], costs])


def first_crossing(number: Number, places: np.ndarray, values: np.ndarray, threshold: float) -> float | None:
    """Find where values first are as good as a threshold, on the line between two evaluations; None if they never are.

    Args:
        places, values: (n,); values that are not finite are passed over.
    """
    finite = np.isfinite(values)
    places, values = places[finite], values[finite]
    above = np.flatnonzero(number.unit.better(values) >= number.unit.better(threshold))
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(places[0])
    share = (threshold - values[i - 1]) / (values[i] - values[i - 1])
    return float(places[i - 1] + share * (places[i] - places[i - 1]))


def seconds_per_step(run: Run) -> float | None:
    """Take the median over the logs, which one slow moment of the machine does not move."""
    rates = run.series("throughput/steps_per_s").values
    rates = rates[np.isfinite(rates) & (rates > 0)]
    if len(rates):
        return float(np.median(1 / rates))
    return run.wall_s / run.last_step if run.last_step and math.isfinite(run.wall_s) else None
