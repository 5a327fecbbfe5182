"""Scenarios compared: what each group of runs came to, ranked, and what may be said of it against the baseline."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from trm_ray.reporting.numbers.curves import Axis, Crossing, Curves, first_crossing, seconds_per_step
from trm_ray.reporting.numbers.groups import Group, group_runs
from trm_ray.reporting.numbers.measure import (
    LOSS,
    MEASURES,
    Measure,
    Number,
    best_of,
    goal_of,
    measure_of,
    yardsticks_of,
)
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
    value: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ScenarioSummary:
    """What a group reached, over the seeds whose runs are finished; over all where none is.

    rank: 1 + the number of groups that are shown to be better; None with fewer than three seeds.
    num_seeds: that the numbers are over; `is_ranked` where those have finished.
    final, best: of the number that ranks, at the last evaluation, and the best of all evaluations; the others alike.
    steps_to_threshold, seconds_to_threshold: between two evaluations on a line; seconds are those in steps.
    planned_steps, done_steps: sums over all runs; `saved_steps` are left by those that were stopped early.
    num_stopped_early, num_running, num_interrupted: runs that are in no number here, unless all are.
    seconds_per_step: over the seeds, of each one's median.
    training_steps, training_seconds, training_flops: of a whole run; evaluations are in none of them.
    best_run: folder of the run that is best.
    folders: of all runs.
    depths: None where the runs have not measured them.
    """

    label: str
    scenario: str
    rank: int | None
    num_seeds: int
    is_ranked: bool
    final: Spread
    best: Spread
    final_anytime: Spread
    final_first_cycle: Spread
    final_loss: Spread
    best_loss: Spread
    threshold: float | None
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
        threshold: what steps and seconds count to; None = nothing.
        baseline: scenario or label that the verdicts are against.
        measure: what the groups are ranked by.
        yardsticks: what that is without a model, by name.
        elsewhere: labels of groups that have another measure alone, and so no place in the ranking.
        spending: where the CPU seconds of all runs went.
    """

    ranking: list[ScenarioSummary]
    unfinished: list[Unfinished]
    verdicts: list[Verdict]
    threshold: float | None
    baseline: str
    measure: Measure
    yardsticks: Mapping[str, float] = field(default_factory=dict)
    elsewhere: Sequence[str] = ()
    spending: Spending = field(default_factory=lambda: Spending({}))


def compare_runs(
    runs: Iterable[Run],
    threshold: float | None = None,
    baseline: str = BASELINE,
    total_steps: int | None = None,
    is_written: IsWritten = nobody_writes,
) -> Comparison:
    """Compare runs by their held-out numbers: finished ones with each other, each scenario with the baseline.

    Args:
        threshold: exact accuracy, or bits per byte, that steps and seconds count to; if not given half of the
            puzzles, or what `xz` or else unigrams take if some run is as good.
        baseline: a scenario, or the label of a group.
        total_steps: planned steps of each run, where its folder does not tell.
        is_written: tells a run that goes on from one that was interrupted.
    """
    runs = list(runs)
    measure = measure_of(runs)
    goal = goal_of(measure, runs, threshold)
    groups = [ReadGroup.of(group, total_steps, is_written) for group in group_runs(runs)]
    done = [group.finished for group in groups if group.finished.by_seed]
    ranks = dict(zip((group.label for group in done), _ranks(done, measure.final), strict=True))
    ranking = [replace(_summarise(group, measure, goal), rank=ranks.get(group.finished.label)) for group in groups]
    return Comparison(
        sorted(ranking, key=functools.partial(_order, measure=measure)),
        [placed(curves, group, groups, measure.final) for group in groups for curves in group.unfinished],
        judge(done, measure, goal, baseline),
        goal,
        baseline,
        measure,
        yardsticks_of(measure, runs),
        [group.finished.label for group in groups if _is_elsewhere(group.finished.group, measure)],
        Spending.of(runs),
    )


def _is_elsewhere(group: Group, measure: Measure) -> bool:
    """Tell whether runs have logged the number of another measure alone."""
    used = [one for one in MEASURES if any(map(one.is_logged_by, group.runs))]
    return bool(used) and measure not in used


def summarise(
    runs: Iterable[Run], threshold: float | None = None, total_steps: int | None = None
) -> list[ScenarioSummary]:
    """Summarise each group of runs, the best first: what `compare_runs` ranks."""
    return compare_runs(runs, threshold, total_steps=total_steps).ranking


# ---- a group's numbers -----------------------------------------------------------------------------------


def _summarise(group: ReadGroup, measure: Measure, threshold: float | None) -> ScenarioSummary:
    done, stopped = group.finished, [one for one in group.unfinished if group.states[one.run.folder] == "stopped early"]
    counted = done if done.by_seed else finished_of(done.group, group.unfinished)
    best = min(counted.curves, key=functools.partial(_goodness, number=measure.final))
    return ScenarioSummary(
        label=done.label,
        scenario=done.group.scenario,
        rank=None,
        num_seeds=len(counted.by_seed),
        is_ranked=bool(done.by_seed),
        final=_final(counted, measure.final),
        best=_best(counted, measure.final),
        final_anytime=_final(counted, measure.anytime),
        final_first_cycle=_final(counted, measure.first_cycle),
        final_loss=_final(counted, LOSS),
        best_loss=_best(counted, LOSS),
        threshold=threshold,
        steps_to_threshold=_waited(counted, measure.final, "steps", threshold),
        seconds_to_threshold=_waited(counted, measure.final, "seconds", threshold),
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
        depths=_depths(counted, measure.final),
    )


def _final(group: Finished, number: Number) -> Spread:
    return spread(group.of_seeds(lambda curves: curves.final(number.name)).values())


def _length(group: Finished, at: Axis) -> Spread:
    return spread(group.of_seeds(lambda curves: curves.length(at)).values())


def _best(group: Finished, number: Number) -> Spread:
    def best(curves: Curves) -> float | None:
        return best_of(number, curves.numbers[number.name].values) if number.name in curves.numbers else None

    return spread(group.of_seeds(best).values())


def _waited(group: Finished, number: Number, at: Axis, threshold: float | None) -> Waited:
    """Spread what the seeds needed; of a seed with several runs, one that never got there tells that it did not."""
    if threshold is None:
        return Waited(**asdict(spread([])))
    of_seeds = [
        [found for curves in runs if (found := curves.crossing(number.name, at, threshold)) is not None]
        for runs in group.by_seed.values()
    ]
    seeds = [_one_crossing(found) for found in of_seeds if found]
    reached = [one.at for one in seeds if one.reached]
    censored = tuple(one.at for one in seeds if not one.reached)
    return Waited(**asdict(spread(reached)), median=censored_median(reached, censored), censored=censored)


def _one_crossing(found: Sequence[Crossing]) -> Crossing:
    lacking = [one for one in found if not one.reached]
    return Crossing(float(np.mean([one.at for one in lacking or found])), not lacking)


def _depths(group: Finished, number: Number) -> DepthMatrix | None:
    of_runs = [{row.step: row for row in curves.run.depths} for curves in group.curves]
    steps = sorted(set.intersection(*map(set, of_runs))) if of_runs else []
    if not steps:
        return None

    def mean(name: str) -> tuple[tuple[float, ...], ...]:
        found = [np.mean([np.asarray(getattr(rows[step], name)) for rows in of_runs], axis=0) for step in steps]
        return tuple(tuple(map(float, row)) for row in found)

    return DepthMatrix(tuple(map(int, steps)), mean("loss"), mean("accuracy"), mean(number.name))


def _goodness(curves: Curves, number: Number) -> tuple[float, float]:
    """Order runs: those that are better first, of equals the one of lower loss."""
    final, loss = known(curves.final(number.name)), known(curves.final(LOSS.name))
    return (-number.unit.better(final) if math.isfinite(final) else math.inf, loss if math.isfinite(loss) else math.inf)


# ---- the ranking -----------------------------------------------------------------------------------------


def _order(summary: ScenarioSummary, measure: Measure) -> tuple[bool, float, float, float, float]:
    """Order groups: finished ones first, then by rank, what ranks, the same at any time, loss; what is unknown last."""
    better = measure.unit.better
    best_first = (-better(summary.final.mean), -better(summary.final_anytime.mean), summary.final_loss.mean)
    final, anytime, loss = (value if math.isfinite(value) else math.inf for value in best_first)
    return not summary.is_ranked, summary.rank or math.inf, final, anytime, loss


def _ranks(groups: Sequence[Finished], number: Number) -> list[int | None]:
    """Rank groups: 1 + the number of those that are shown to be better (Holm, over all pairs of groups)."""
    finals = [group.of_seeds(lambda curves: curves.final(number.name)) for group in groups]
    pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
    found = [_between(finals[i], finals[j]) for i, j in pairs]
    ranks = [1] * len(groups)
    for (i, j), difference, p in zip(pairs, found, holm([one.p for one in found]), strict=True):
        if p < ALPHA:
            ranks[j if number.unit.better(difference.mean) > 0 else i] += 1
    return [rank if len(finals[i]) >= MIN_SEEDS else None for i, rank in enumerate(ranks)]


def _between(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """Compare two groups by the seeds that both have; with fewer than three of those, by all they have."""
    common = sorted(ours.keys() & theirs.keys())
    if len(common) >= MIN_SEEDS:
        return paired_difference([ours[seed] for seed in common], [theirs[seed] for seed in common])
    if not ours or not theirs:
        return Difference(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    return unpaired_difference(list(ours.values()), list(theirs.values()))


# ---- for the pictures ------------------------------------------------------------------------------------


def reach(series: Series, number: Number, threshold: float) -> tuple[float, float] | None:
    """Find step and seconds where a series of a number first was as good as `threshold`, between two evaluations."""
    step = first_crossing(number, series.steps, series.values, threshold)
    seconds = first_crossing(number, series.wall_s, series.values, threshold)
    return None if step is None or seconds is None else (step, seconds)
