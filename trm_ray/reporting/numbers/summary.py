"""Scenarios compared: what each group of runs came to, ranked, and what may be said of it against the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from trm_ray.reporting.numbers.curves import (
    ANYTIME,
    EXACT,
    FIRST_CYCLE,
    LOSS,
    Axis,
    Crossing,
    Curves,
    Number,
    first_crossing,
    seconds_per_step,
)
from trm_ray.reporting.numbers.groups import group_runs
from trm_ray.reporting.numbers.spending import Spending
from trm_ray.reporting.numbers.statistics import (
    ALPHA,
    MIN_SEEDS,
    Difference,
    Spread,
    censored_median,
    holm,
    paired_difference,
    spread,
    unpaired_difference,
)
from trm_ray.reporting.numbers.unfinished import IsWritten, ReadGroup, Unfinished, known, nobody_writes, placed
from trm_ray.reporting.numbers.verdicts import BASELINE, Finished, Verdict, finished_of, judge
from trm_ray.reporting.run_log import Run, Series

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Waited(Spread):
    """What it took to reach a threshold, spread over the seeds that did.

    median: over all seeds (Kaplan–Meier); NaN where fewer than half got there.
    censored: how far each of the others was followed.
    """

    median: float = math.nan
    censored: tuple[float, ...] = ()


@dataclass(frozen=True)
class DepthMatrix:
    """Held-out numbers by training step and depth, each the mean over the seeds.

    `steps` are the (n,) evaluations that all of the runs have; the others are (n, D): after 1 … D H-cycles.
    """

    steps: tuple[int, ...]
    loss: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    exact_accuracy: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ScenarioSummary:
    """What a group reached, over the seeds whose runs are finished; over all where none is.

    rank: 1 + the number of groups that are shown to solve more puzzles; None with fewer than three seeds.
    num_seeds: that the numbers are over; `is_ranked` where those have finished.
    final_*, best_*: held-out numbers at the last evaluation, and the best of all evaluations.
    steps_to_threshold, seconds_to_threshold: between two evaluations on a line; seconds are those in steps.
    planned_steps, done_steps: sums over all runs; `saved_steps` are left by those that were stopped early.
    num_stopped_early, num_running, num_interrupted: runs that are in no number here, unless all are.
    seconds_per_step: over the seeds, of each one's median.
    training_steps, training_seconds, training_flops: of a whole run; evaluations are in none of them.
    best_run: folder of the run that solves most puzzles.
    folders: of all runs.
    depths: None where the runs have not measured them.
    """

    label: str
    scenario: str
    rank: int | None
    num_seeds: int
    is_ranked: bool
    final_exact_accuracy: Spread
    best_exact_accuracy: Spread
    final_anytime_accuracy: Spread
    final_first_cycle_exact_accuracy: Spread
    final_loss: Spread
    best_loss: Spread
    threshold: float
    steps_to_threshold: Waited
    seconds_to_threshold: Waited
    planned_steps: int
    done_steps: int
    saved_steps: int
    num_stopped_early: int
    num_running: int
    num_interrupted: int
    seconds_per_step: Spread
    training_steps: Spread
    training_seconds: Spread
    training_flops: Spread
    best_run: str
    folders: tuple[str, ...]
    depths: DepthMatrix | None


@dataclass(frozen=True)
class Comparison:
    """Some runs compared: groups with the best first, those that have no finished run last.

    Args:
        baseline: scenario or label that the verdicts are against.
        spending: where the CPU seconds of all runs went.
    """

    ranking: list[ScenarioSummary]
    unfinished: list[Unfinished]
    verdicts: list[Verdict]
    threshold: float
    baseline: str
    spending: Spending = field(default_factory=lambda: Spending({}))


def compare_runs(
    runs: Iterable[Run],
    threshold: float = DEFAULT_THRESHOLD,
    baseline: str = BASELINE,
    total_steps: int | None = None,
    is_written: IsWritten = nobody_writes,
) -> Comparison:
    """Compare runs by their held-out numbers: finished ones with each other, each scenario with the baseline.

    Args:
        threshold: exact accuracy that steps and seconds count to.
        baseline: a scenario, or the label of a group.
        total_steps: planned steps of each run, where its folder does not tell.
        is_written: tells a run that goes on from one that was interrupted.
    """
    runs = list(runs)
    groups = [ReadGroup.of(group, total_steps, is_written) for group in group_runs(runs)]
    done = [group.finished for group in groups if group.finished.by_seed]
    ranks = dict(zip((group.label for group in done), _ranks(done), strict=True))
    ranking = [replace(_summarise(group, threshold), rank=ranks.get(group.finished.label)) for group in groups]
    unfinished = [placed(curves, group, groups) for group in groups for curves in group.unfinished]
    verdicts = judge(done, threshold, baseline)
    return Comparison(sorted(ranking, key=_order), unfinished, verdicts, threshold, baseline, Spending.of(runs))


def summarise(
    runs: Iterable[Run], threshold: float = DEFAULT_THRESHOLD, total_steps: int | None = None
) -> list[ScenarioSummary]:
    """Summarise each group of runs, the best first: what `compare_runs` ranks."""
    return compare_runs(runs, threshold, total_steps=total_steps).ranking


# ---- a group's numbers -----------------------------------------------------------------------------------


def _summarise(group: ReadGroup, threshold: float) -> ScenarioSummary:
    done, stopped = group.finished, [one for one in group.unfinished if group.states[one.run.folder] == "stopped early"]
    counted = done if done.by_seed else finished_of(done.group, group.unfinished)
    best = min(counted.curves, key=_goodness)
    return ScenarioSummary(
        label=done.label,
        scenario=done.group.scenario,
        rank=None,
        num_seeds=len(counted.by_seed),
        is_ranked=bool(done.by_seed),
        final_exact_accuracy=_final(counted, EXACT),
        best_exact_accuracy=_best(counted, EXACT),
        final_anytime_accuracy=_final(counted, ANYTIME),
        final_first_cycle_exact_accuracy=_final(counted, FIRST_CYCLE),
        final_loss=_final(counted, LOSS),
        best_loss=_best(counted, LOSS),
        threshold=threshold,
        steps_to_threshold=_waited(counted, "steps", threshold),
        seconds_to_threshold=_waited(counted, "seconds", threshold),
        planned_steps=sum(group.planned.values()),
        done_steps=sum(curves.run.last_step for curves in group.all),
        saved_steps=sum(group.planned[one.run.folder] - one.run.last_step for one in stopped),
        num_stopped_early=len(stopped),
        num_running=group.count("running"),
        num_interrupted=group.count("interrupted"),
        seconds_per_step=spread(counted.of_seeds(lambda curves: seconds_per_step(curves.run)).values()),
        training_steps=_length(counted, "steps"),
        training_seconds=_length(counted, "seconds"),
        training_flops=_length(counted, "flops"),
        best_run=str(best.run.folder),
        folders=tuple(str(run.folder) for run in done.group.runs),
        depths=_depths(counted),
    )


def _final(group: Finished, number: Number) -> Spread:
    return spread(group.of_seeds(lambda curves: curves.final(number.name)).values())


def _length(group: Finished, at: Axis) -> Spread:
    return spread(group.of_seeds(lambda curves: curves.length(at)).values())


def _best(group: Finished, number: Number) -> Spread:
    def best(curves: Curves) -> float | None:
        if number.name not in curves.numbers:
            return None
        values = curves.numbers[number.name].values
        values = values[np.isfinite(values)]
        return float(values.max() if number.higher_is_better else values.min()) if len(values) else math.nan

    return spread(group.of_seeds(best).values())


def _waited(group: Finished, at: Axis, threshold: float) -> Waited:
    """Spread what the seeds needed; of a seed with several runs, one that never got there tells that it did not."""
    of_seeds = [
        [found for curves in runs if (found := curves.crossing(EXACT.name, at, threshold)) is not None]
        for runs in group.by_seed.values()
    ]
    seeds = [_one_crossing(found) for found in of_seeds if found]
    reached = [one.at for one in seeds if one.reached]
    censored = tuple(one.at for one in seeds if not one.reached)
    return Waited(**asdict(spread(reached)), median=censored_median(reached, censored), censored=censored)


def _one_crossing(found: Sequence[Crossing]) -> Crossing:
    lacking = [one for one in found if not one.reached]
    return Crossing(float(np.mean([one.at for one in lacking or found])), not lacking)


def _depths(group: Finished) -> DepthMatrix | None:
    of_runs = [{row.step: row for row in curves.run.depths} for curves in group.curves]
    steps = sorted(set.intersection(*map(set, of_runs))) if of_runs else []
    if not steps:
        return None

    def mean(name: str) -> tuple[tuple[float, ...], ...]:
        found = [np.mean([np.asarray(getattr(rows[step], name)) for rows in of_runs], axis=0) for step in steps]
        return tuple(tuple(map(float, row)) for row in found)

    return DepthMatrix(tuple(map(int, steps)), mean("loss"), mean("accuracy"), mean("exact_accuracy"))


def _goodness(curves: Curves) -> tuple[float, float]:
    """Order runs: those that solve more first, of equals the one of lower loss."""
    exact, loss = known(curves.final(EXACT.name)), known(curves.final(LOSS.name))
    return (-exact if math.isfinite(exact) else math.inf, loss if math.isfinite(loss) else math.inf)


# ---- the ranking -----------------------------------------------------------------------------------------


def _order(summary: ScenarioSummary) -> tuple[bool, float, float, float, float]:
    """Order groups: finished ones first, then by rank, puzzles solved, anytime accuracy, loss; what is unknown last."""
    best_first = (-summary.final_exact_accuracy.mean, -summary.final_anytime_accuracy.mean, summary.final_loss.mean)
    exact, anytime, loss = (value if math.isfinite(value) else math.inf for value in best_first)
    return not summary.is_ranked, summary.rank or math.inf, exact, anytime, loss


def _ranks(groups: Sequence[Finished]) -> list[int | None]:
    """Rank groups: 1 + the number of those that are shown to solve more puzzles (Holm, over all pairs of groups)."""
    solved = [group.of_seeds(lambda curves: curves.final(EXACT.name)) for group in groups]
    pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
    found = [_between(solved[i], solved[j]) for i, j in pairs]
    ranks = [1] * len(groups)
    for (i, j), difference, p in zip(pairs, found, holm([one.p for one in found]), strict=True):
        if p < ALPHA:
            ranks[j if difference.mean > 0 else i] += 1
    return [rank if len(solved[i]) >= MIN_SEEDS else None for i, rank in enumerate(ranks)]


def _between(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """Compare two groups by the seeds that both have; with fewer than three of those, by all they have."""
    common = sorted(ours.keys() & theirs.keys())
    if len(common) >= MIN_SEEDS:
        return paired_difference([ours[seed] for seed in common], [theirs[seed] for seed in common])
    if not ours or not theirs:
        return Difference(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    return unpaired_difference(list(ours.values()), list(theirs.values()))


# ---- for the pictures ------------------------------------------------------------------------------------


def reach(series: Series, threshold: float) -> tuple[float, float] | None:
    """Find step and seconds where a series first reached `threshold`, on the line between two evaluations."""
    step = first_crossing(series.steps, series.values, threshold)
    seconds = first_crossing(series.wall_s, series.values, threshold)
    return None if step is None or seconds is None else (step, seconds)
