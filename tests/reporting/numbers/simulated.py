"""Sweeps made up with known differences, and how often the comparison claims what is there and what is not.

`PYTHONPATH=. python tests/reporting/numbers/simulated.py N` prints the rates over N sweeps each, as in docs/sweep.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trm_ray.reporting.numbers.statistics import ALPHA, holm, paired_difference
from trm_ray.reporting.numbers.summary import compare_runs
from trm_ray.reporting.numbers.verdicts import Verdict
from trm_ray.reporting.run_log import Run

SCENARIOS = ("baseline", "constant", "linear", "exponential", "curriculum")
STEPS = np.arange(100, 601, 100)
NUM_PUZZLES = 512
# Where a run of 600 steps on 6×6 Sudoku stands at these evaluations: the share of puzzles solved, as a logit.
LEVEL = np.array([-5.0, -2.5, -0.5, 0.8, 1.6, 2.0])
SEED_SD, OWN_SD = 0.2, 0.2  # of the logit: at 88 % about 2 points each, 3 in all
FIVE_POINTS = 0.6  # of the logit: from 88 to 93 %


@dataclass(frozen=True)
class Noise:
    """Standard deviations of a run's logit: what its seed brings to all scenarios, and what is its own, by scenario."""

    seed: float = SEED_SD
    own: float = OWN_SD
    times: tuple[float, ...] = (1, 1, 1, 1, 1)


UNEQUAL = Noise(times=(2.0, 1.0, 1.0, 0.5, 4.0))


def sweep(
    rng: np.random.Generator,
    seeds: int,
    better: Mapping[str, float] | None = None,
    noise: Noise = Noise(),
    cost: Mapping[str, float] | None = None,
) -> list[Run]:
    """Draw a sweep of five scenarios.

    Args:
        better: by how much a scenario's logit lies above the others'.
        cost: seconds a step; 0.1 if not given.
    """
    shared = rng.normal(0, noise.seed, seeds)
    return [
        run(rng, name, seed, LEVEL + (better or {}).get(name, 0.0) + shared[seed] + rng.normal(0, noise.own * times),
            (cost or {}).get(name, 0.1))
        for name, times in zip(SCENARIOS, noise.times, strict=True)
        for seed in range(seeds)
    ]  # fmt: skip


def run(rng: np.random.Generator, scenario: str, seed: int, level: np.ndarray, step_s: float = 0.1) -> Run:
    """Draw a run; puzzles of the held-out set are solved or not, and machines are a little faster or slower."""

    def solved(shift: float) -> np.ndarray:
        return rng.binomial(NUM_PUZZLES, 1 / (1 + np.exp(-level - shift))) / NUM_PUZZLES

    step_s *= float(rng.normal(1, 0.03))
    exact, anytime, first = solved(0), solved(-1), solved(-2.5)
    rows = tuple(
        {
            "step": int(step),
            "wall_s": 1.2 * step_s * step,
            "throughput/steps_per_s": 1 / step_s,
            "train/flops": 1e9 * step,
            "eval/loss": float(1.2 * (1 - exact[i]) + rng.normal(0, 0.02)),
            "eval/exact_accuracy": float(exact[i]),
            "eval/anytime_accuracy": float(anytime[i]),
            "eval/first_segment/step_0_exact_accuracy": float(first[i]),
        }
        for i, step in enumerate(STEPS)
    )
    name = f"deep_supervision_{scenario}"
    config = {"config_name": name, "task": "sudoku6", "seed": seed, "max_steps": 600}
    return Run(Path(f"runs/{name}-seed{seed}"), name, config, rows, finished=True)


def claimed(found: Sequence[Verdict], number: str = "exact_accuracy", at: str = "steps") -> set[str]:
    """The scenarios of which something is claimed in a number on an axis."""
    return {one.scenario for one in found if (one.number, one.at) == (number, at) and one.claim != "none"}


def alarms(sweeps: int, seeds: int, noise: Noise = Noise()) -> dict[str, float]:
    """Say how often sweeps in which nothing differs are told otherwise, by all that a comparison does."""
    rng = np.random.default_rng(0)
    counts = {"exact accuracy at equal steps": 0, "ranks": 0, "any number at any axis": 0}
    for _ in range(sweeps):
        comparison = compare_runs(sweep(rng, seeds, noise=noise))
        counts["exact accuracy at equal steps"] += bool(claimed(comparison.verdicts))
        counts["ranks"] += any(one.rank != 1 for one in comparison.ranking)
        counts["any number at any axis"] += any(one.claim != "none" for one in comparison.verdicts)
    return {name: count / sweeps for name, count in counts.items()}


def power(sweeps: int, seeds: int, better: Mapping[str, float]) -> dict[str, float]:
    """Say how often linear, and any scenario, is claimed to solve more at the end."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(sweeps):
        runs = sweep(rng, seeds, better)
        solved = np.array([one.rows[-1]["eval/exact_accuracy"] for one in runs]).reshape(len(SCENARIOS), seeds)
        differences = [paired_difference(values, solved[0]) for values in solved[1:]]
        corrected = holm([difference.p for difference in differences])
        found.append([p < ALPHA and one.mean > 0 for p, one in zip(corrected, differences, strict=True)])
    rates = np.mean(found, axis=0)
    return {"linear": float(rates[SCENARIOS.index("linear") - 1]), "any": float(np.mean(np.any(found, axis=1)))}


def main(sweeps: int) -> None:
    """Print the rates of docs/sweep.md."""
    all_four = dict.fromkeys(SCENARIOS[1:], FIVE_POINTS)
    for seeds in (3, 5, 8):
        print(f"{seeds} seeds, linear 5 points better:", power(10 * sweeps, seeds, {"linear": FIVE_POINTS}))
        print(f"{seeds} seeds, all four 5 points better:", power(10 * sweeps, seeds, all_four), flush=True)
    for seeds in (3, 5):
        print(f"{seeds} seeds, nothing different:", alarms(sweeps, seeds))
        print(f"{seeds} seeds, nothing different but the spread:", alarms(sweeps, seeds, UNEQUAL), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
