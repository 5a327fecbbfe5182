"""Scenarios against their baseline, seed by seed: at equal steps, equal seconds and equal counted operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from trm_ray.reporting.numbers.curves import AXES, Axis, Curves
from trm_ray.reporting.numbers.groups import Group, num_differences
from trm_ray.reporting.numbers.measure import SECONDS_TO, STEPS_TO, Measure, Number
from trm_ray.reporting.numbers.statistics import (
    ALPHA,
    Claim,
    claim,
    holm,
    paired_difference,
    seeds_needed,
    sign_flip_p,
)

BASELINE = "baseline"
_WAITS: dict[Axis, Number] = {"steps": STEPS_TO, "seconds": SECONDS_TO}

Both = tuple[float, float]  # the number of a scenario and of its baseline
# Takes a seed's runs of both sides; None where they lack the number, NaN where they have none to compare.
Read = Callable[[Sequence[Curves], Sequence[Curves]], Both | None]


@dataclass(frozen=True, eq=False)
class Finished:
    """A group's runs that were trained to their end, by seed; of one seed there may be several runs."""

    group: Group
    by_seed: dict[int, tuple[Curves, ...]]

    @property
    def label(self) -> str:
        """Name of the group."""
        return self.group.label

    @cached_property
    def curves(self) -> tuple[Curves, ...]:
        """All runs."""
        return tuple(curves for runs in self.by_seed.values() for curves in runs)

    def of_seeds(self, read: Callable[[Curves], float | None]) -> dict[int, float]:
        """Read a number of each seed that has it; runs of one seed are no independent ones, and count by their mean."""
        found = {seed: [read(curves) for curves in runs] for seed, runs in self.by_seed.items()}
        known = {seed: [one for one in values if one is not None] for seed, values in found.items()}
        return {seed: float(np.mean(values)) for seed, values in known.items() if values}

    def length(self, at: Axis) -> float:
        """Give the mean cost of the whole runs; NaN where it is unknown."""
        lengths = [length for curves in self.curves if (length := curves.length(at)) is not None]
        return float(np.mean(lengths)) if lengths else math.nan


@dataclass(frozen=True)
class Verdict:
    """What may be said of one number of a scenario against its baseline.

    number, at: which number, and what both had spent alike where it was read: steps, seconds or flops.
    ours, theirs: the means over the pairs; `difference` is ours − theirs, `sd` the standard deviation over the pairs.
    low, high: 95 % interval of this difference alone.
    p: corrected (Holm) for all scenarios that were compared in this number at this axis; it decides the claim.
    p_uncorrected, p_permutation: of the paired t test, and of swapping the sides of the pairs.
    n: pairs of runs of the same seed; `unpaired_seeds` are those of which one side has no run, or no such number there.
    num_censored: pairs of which a side never reached the threshold: they are in no difference, and forbid a claim.
    more_seeds: to be added so that a true difference of this size would be claimed in four of five cases; None where
        it is claimed already, cannot be, or would take more than a hundred seeds.
    """

    scenario: str
    baseline: str
    number: str
    at: Axis
    difference: float
    low: float
    high: float
    p: float
    n: int
    claim: Claim
    ours: float
    theirs: float
    sd: float
    p_uncorrected: float
    p_permutation: float
    more_seeds: int | None = None
    unpaired_seeds: tuple[int, ...] = ()
    num_censored: int = 0


def finished_of(group: Group, runs: Iterable[Curves]) -> Finished:
    """Sort the finished runs of a group by their seeds."""
    by_seed: dict[int, tuple[Curves, ...]] = {}
    for curves in runs:
        by_seed[curves.run.seed] = (*by_seed.get(curves.run.seed, ()), curves)
    return Finished(group, dict(sorted(by_seed.items())))


def judge(
    groups: Sequence[Finished], measure: Measure, threshold: float | None, baseline: str = BASELINE
) -> list[Verdict]:
    """Compare every scenario with its baseline in every number on every axis.

    Args:
        threshold: what steps and seconds count to, of the number that ranks; None = nothing.
        baseline: the scenario, or the label of the one group, that the others are compared with.
    """
    theirs = [group for group in groups if baseline in (group.group.scenario, group.label)]
    ours = [group for group in groups if group not in theirs]
    found: list[Verdict] = []
    for at in AXES:
        pairs = [(group, rival) for group in ours if (rival := rival_of(group, theirs, at)) is not None]
        for number in measure.numbers:
            found += _family(pairs, number, at, _at_equal(number.name, at))
        if threshold is not None and at in _WAITS:
            found += _family(pairs, _WAITS[at], at, _to_threshold(measure.final.name, at, threshold))
    return found


def rival_of(group: Finished, baselines: Sequence[Finished], at: Axis) -> Finished | None:
    """Choose the baseline that differs in the fewest keys; among equals, the one that cost most nearly as much."""

    def distance(other: Finished) -> tuple[int, float]:
        apart = abs(math.log(group.length(at) / other.length(at))) if group.length(at) * other.length(at) > 0 else 0.0
        return num_differences(group.group.runs[0], other.group.runs[0]), apart

    task = group.group.runs[0].config.get("task")
    alike = [other for other in baselines if other.group.runs[0].config.get("task") == task]
    return min(alike, key=distance, default=None)


def _at_equal(number: str, at: Axis) -> Read:
    """Read a number of both sides where both had spent what the shorter one did in all."""

    def read(ours: Sequence[Curves], theirs: Sequence[Curves]) -> Both | None:
        ends = [end for curves in (*ours, *theirs) if (end := curves.end(number, at)) is not None]
        if len(ends) < len(ours) + len(theirs):
            return None
        sides = [[curves.value(number, at, min(ends)) for curves in side] for side in (ours, theirs)]
        return _means(sides)

    return read


def _to_threshold(number: str, at: Axis, threshold: float) -> Read:
    """Read where both sides reached a threshold; NaN for a side that did not."""

    def read(ours: Sequence[Curves], theirs: Sequence[Curves]) -> Both | None:
        sides = []
        for side in (ours, theirs):
            found = [curves.crossing(number, at, threshold) for curves in side]
            sides.append([None if one is None else one.at if one.reached else math.nan for one in found])
        return _means(sides)

    return read


def _means(sides: Sequence[Sequence[float | None]]) -> Both | None:
    known = [[value for value in side if value is not None] for side in sides]
    if any(len(few) < len(all_of_it) for few, all_of_it in zip(known, sides, strict=True)):
        return None
    return float(np.mean(known[0])), float(np.mean(known[1]))


def _family(pairs: Sequence[tuple[Finished, Finished]], number: Number, at: Axis, read: Read) -> list[Verdict]:
    """Compare all scenarios in one number at one axis, and correct for how many they are."""
    drafts = [draft for ours, theirs in pairs if (draft := _compared(ours, theirs, number, at, read)) is not None]
    corrected = holm([draft.p_uncorrected for draft in drafts])
    num_tests = sum(math.isfinite(p) for p in corrected)
    return [_decided(draft, number, p, num_tests) for draft, p in zip(drafts, corrected, strict=True)]


def _compared(ours: Finished, theirs: Finished, number: Number, at: Axis, read: Read) -> Verdict | None:
    common = [seed for seed in ours.by_seed if seed in theirs.by_seed]
    measured = [read(ours.by_seed[seed], theirs.by_seed[seed]) for seed in common]
    unread = [seed for seed, pair in zip(common, measured, strict=True) if pair is None]
    both = np.array([pair for pair in measured if pair is not None]).reshape(-1, 2)
    waits = number in _WAITS.values()
    censored = int(np.isnan(both).any(axis=1).sum()) if waits else 0
    both = both[~np.isnan(both).any(axis=1)] if waits else both
    if not len(both):
        return None
    found, p = paired_difference(both[:, 0], both[:, 1]), sign_flip_p(both[:, 0] - both[:, 1])
    return Verdict(
        *(ours.label, theirs.label, number.name, at, found.mean, found.low, found.high),
        *(math.nan, len(both), "none", float(both[:, 0].mean()), float(both[:, 1].mean()), found.sd),
        p_uncorrected=math.nan if censored else found.p,
        p_permutation=math.nan if censored else p,
        unpaired_seeds=tuple(sorted({*(ours.by_seed.keys() ^ theirs.by_seed.keys()), *unread})),
        num_censored=censored,
    )


def _decided(draft: Verdict, number: Number, p: float, num_tests: int) -> Verdict:
    found = claim(draft.difference, p, number.unit.higher_is_better)
    more = None
    if found == "none" and math.isfinite(p):
        needed = seeds_needed(draft.difference, draft.sd, ALPHA / num_tests)
        more = None if needed is None else max(needed - draft.n, 1)
    return replace(draft, p=p, claim=found, more_seeds=more)
