"""What early stopping would have saved and cost on runs that were trained to their end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from trm_ray.config.sweep import AshaConfig, best_mode
from trm_ray.reporting.numbers.groups import Group
from trm_ray.reporting.numbers.json_text import json_text
from trm_ray.reporting.numbers.measure import LOSS, SHARE, Measure
from trm_ray.reporting.run_log import Run
from trm_ray.reporting.terminal import number_table

# In so many orders a setting must keep the winner, or a group that cannot be told from it, to be advised.
ENOUGH = 0.95
_WITHOUT = "Take asha.enabled=false, or let variants compete within a scenario: group_by=config_name"


def omen_words(measure: Measure) -> dict[str, str]:
    """Name what may foretell the end, by its tag, in the words of the tables."""
    return {
        LOSS.tag: "loss",
        "eval/accuracy": measure.cells,
        measure.final.tag: "exact" if measure.unit is SHARE else measure.noun,
        measure.first_cycle.tag: "first cycle",
        measure.anytime.tag: "anytime",
    }


# ---- where the groups ended ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finals:
    """What runs are measured by at the end, over the seeds of each group.

    Args:
        winner: number of the best group.
        equals: numbers of those that cannot be told from it, itself included.
    """

    labels: tuple[str, ...]
    num_seeds: tuple[int, ...]
    means: tuple[float, ...]
    winner: int
    equals: frozenset[int]


def final_of(run: Run, measure: Measure) -> float:
    """Give what a run is measured by at its last evaluation, the worst where it is not finite."""
    value = float(run.series(measure.final.tag).values[-1])
    return value if math.isfinite(value) else measure.worst


def finals(groups: Sequence[Group], measure: Measure) -> Finals:
    """Find the best group by its mean over the seeds, and those that cannot be told from it."""
    values = [{run.seed: final_of(run, measure) for run in group.runs} for group in groups]
    means = tuple(float(np.mean(list(one.values()))) for one in values)
    winner = int(np.argmax([measure.unit.better(mean) for mean in means]))
    equals = frozenset(number for number, one in enumerate(values) if not _told_apart(values[winner], one, measure))
    sizes = tuple(len(group.runs) for group in groups)
    return Finals(tuple(group.label for group in groups), sizes, means, winner, equals)


def _told_apart(best: Mapping[int, float], other: Mapping[int, float], measure: Measure) -> bool:
    """Tell by a t interval of 95 %, paired by seed where that can be; for a single seed by the measure's noise."""
    seeds = sorted(best.keys() & other.keys())
    if len(seeds) < 2:
        return bool(abs(np.mean(list(best.values())) - np.mean(list(other.values()))) > measure.noise)
    differences = np.array([best[seed] - other[seed] for seed in seeds])
    if np.ptp(differences) < 1e-12:
        return bool(abs(differences[0]) > 1e-12)
    return bool(stats.ttest_1samp(differences, 0.0).pvalue < 0.05)


# ---- what a setting does ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What early stopping did in one order, or in the mean over several.

    saved_steps, saved_flops: share of the training that was not done; None where no operations were logged.
    winner, equal: 1 where at least half the seeds of the best group were trained to their end; of it or an equal one.
    regret: by how much the best group is better than the best group that was trained to its end.
    """

    saved_steps: float
    saved_flops: float | None
    winner: float
    equal: float
    regret: float


@dataclass(frozen=True)
class Replayed:
    """A setting of early stopping: its outcome as the runs came, and the mean over that and all random orders."""

    asha: AshaConfig
    as_they_came: Outcome
    mean: Outcome

    @property
    def words(self) -> str:
        """The setting, as words of a command line."""
        keys = ("unit", "metric", "mode", "grace_period", "reduction_factor")
        return " ".join(f"asha.{key}={_short(getattr(self.asha, key))}" for key in keys)


class Compute:
    """Steps and operations of runs, and what was saved of them."""

    def __init__(self, runs: Sequence[Run]):
        self._steps = {run.folder: run.last_step for run in runs}
        self._flops = {run.folder: run.series("train/flops") for run in runs}
        self._has_flops = all(len(series.steps) for series in self._flops.values())

    def saved_steps(self, last: Mapping[Path, int]) -> float:
        """Give the share of steps that were not taken."""
        return 1 - sum(last.values()) / sum(self._steps.values())

    def saved_flops(self, last: Mapping[Path, int]) -> float | None:
        """Give the share of operations that were not made."""
        if not self._has_flops:
            return None
        done = [max(one.values[one.steps <= last[folder]], default=0.0) for folder, one in self._flops.items()]
        return 1 - float(sum(done)) / float(sum(one.values[-1] for one in self._flops.values()))


def outcome(groups: Sequence[Group], found: Finals, compute: Compute, last: Mapping[Path, int]) -> Outcome:
    """Say what it costs to have trained every run only so far.

    Args:
        last: step that each run got to, by its folder.
    """
    shares = [float(np.mean([last[run.folder] >= run.last_step for run in group.runs])) for group in groups]
    left = {number for number, share in enumerate(shares) if share >= min(0.5, max(shares))}
    return Outcome(
        saved_steps=compute.saved_steps(last),
        saved_flops=compute.saved_flops(last),
        winner=float(found.winner in left),
        equal=float(bool(found.equals & left)),
        regret=min(abs(found.means[found.winner] - found.means[number]) for number in left),
    )


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Take the mean of every number."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in outcomes]))

    flops = None if outcomes[0].saved_flops is None else mean("saved_flops")
    return Outcome(mean("saved_steps"), flops, mean("winner"), mean("equal"), mean("regret"))


def pareto(settings: Sequence[Replayed]) -> list[Replayed]:
    """Keep the settings that no other beats in steps saved and in regret, the most thrifty first; one of equal ones."""
    line: list[Replayed] = []
    for one in sorted(settings, key=lambda one: (-one.mean.saved_steps, one.mean.regret, -one.mean.equal)):
        if not line or one.mean.regret < line[-1].mean.regret:
            line.append(one)
    return line


def advised(settings: Sequence[Replayed]) -> Replayed | None:
    """Choose what saves most of those that keep the winner or its equal in `ENOUGH` of the orders, if one does."""
    good = [one for one in settings if one.mean.equal >= ENOUGH and one.mean.saved_steps > 0]
    return max(good, key=lambda one: (one.mean.saved_steps, -one.mean.regret), default=None)


# ---- what foretells the end ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Omen:
    """Spearman's correlation of an early number with the measure at the end: over trials, and over group means.

    Higher is better for all of them: what is lower when it is better has its sign turned. NaN where all are equal.
    """

    tag: str
    step: int
    trials: float
    groups: float


def omens(groups: Sequence[Group], measure: Measure) -> list[Omen]:
    """Correlate every number that all runs have, at every evaluation but the last that all have made."""
    runs = [run for group in groups for run in group.runs]
    found = []
    for tag in shared_tags(runs, measure):
        for step in shared_steps(runs, tag)[:-1]:
            early = {id(run): _at(run, tag, step) for run in runs}
            found.append(Omen(tag, step, *_correlations(groups, early, measure)))
    return found


def shared_tags(runs: Sequence[Run], measure: Measure) -> list[str]:
    """List what may foretell the end and is logged by all runs."""
    return [tag for tag in omen_words(measure) if all(len(run.series(tag).steps) for run in runs)]


def shared_steps(runs: Sequence[Run], tag: str) -> list[int]:
    """List the steps at which all runs have a tag."""
    return sorted(set.intersection(*({int(step) for step in run.series(tag).steps} for run in runs)))


def _at(run: Run, tag: str, step: int) -> float:
    series = run.series(tag)
    value = float(series.values[series.steps == step][0])
    return -value if best_mode(tag) == "min" else value


def _correlations(groups: Sequence[Group], early: Mapping[int, float], measure: Measure) -> tuple[float, float]:
    better = measure.unit.better
    pairs = [[(early[id(run)], better(final_of(run, measure))) for run in group.runs] for group in groups]
    over_trials = [pair for group in pairs for pair in group]
    return _spearman(over_trials), _spearman([np.mean(group, axis=0) for group in pairs])


def _spearman(pairs: Sequence[Any]) -> float:
    first, second = np.array(pairs, dtype=np.float64).T
    usable = np.isfinite(first) & np.isfinite(second)
    first, second = first[usable], second[usable]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def best_omen(found: Sequence[Omen], up_to: float) -> Omen | None:
    """Find what foretells best over trials, of what is measured up to a step; the earliest of equal ones."""
    usable = [one for one in found if one.step <= up_to and math.isfinite(one.trials)]
    return max(usable, key=lambda one: (one.trials, -one.step), default=None)


# ---- all of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """Early stopping replayed: where the groups ended, what every setting would have done, what foretells the end.

    Args:
        measure: what the groups are ranked by.
        kept: labels of the groups that are never stopped.
        num_orders: orders that the means are over, the one of arrival included.
    """

    measure: Measure
    finals: Finals
    kept: tuple[str, ...]
    num_steps: int
    num_orders: int
    slots: int
    settings: tuple[Replayed, ...]
    omens: tuple[Omen, ...]

    @property
    def is_open(self) -> bool:
        """Whether no group can be told from the best: then whatever survives is as good, and no setting is better."""
        return len(self.finals.equals) == len(self.finals.labels)

    @property
    def omen_words(self) -> dict[str, str]:
        """Name what may foretell the end, by its tag."""
        return omen_words(self.measure)

    @property
    def final_words(self) -> str:
        """What the best group ended at."""
        final = self.finals.means[self.finals.winner]
        return f"{100 * final:.1f} % exact" if self.measure.unit is SHARE else f"{final:.3f} {self.measure.noun}"

    def regret_words(self, regret: float) -> str:
        """Write a regret in the measure's unit."""
        unit = self.measure.unit
        return f"{unit.scale * regret:.{unit.digits}f}"

    @property
    def advised(self) -> Replayed | None:
        """The setting to take, None where early stopping is better left alone."""
        return None if self.is_open else advised(self.settings)


def replay_lines(replay: Replay) -> list[str]:
    """Say in words where the groups ended, what foretells that, and which setting to take."""
    found = replay.finals
    trials, groups = sum(found.num_seeds), len(found.labels)
    best = f"{found.labels[found.winner]} ({replay.final_words} at the end)"
    equals = ", ".join(found.labels[number] for number in sorted(found.equals - {found.winner})) or "no other"
    return [
        f"{trials} trials in {groups} groups, {replay.num_steps} steps each.",
        f"Best: {best}; not to be told from it: {equals}.",
        *_kept_lines(replay),
        *_omen_lines(replay),
        *_advice_lines(replay),
    ]


def _kept_lines(replay: Replay) -> list[str]:
    labels = replay.finals.labels
    like = [label for label in replay.kept if labels.index(label) in replay.finals.equals]
    trivial = f" {', '.join(like)} cannot be told from the best: every setting keeps one as good." if like else ""
    return [f"Never stopped: {', '.join(replay.kept)}.{trivial}"] if replay.kept else []


def _omen_lines(replay: Replay) -> list[str]:
    omen = best_omen(replay.omens, replay.num_steps / 2)
    if omen is None:
        return ["Nothing that was measured in the first half foretells the end."]
    over_groups = f", {omen.groups:.2f} over groups" if math.isfinite(omen.groups) else ""
    told = f"{replay.omen_words[omen.tag]} at step {omen.step} (Spearman {omen.trials:.2f} over trials{over_groups})"
    return [f"Of the first half, what foretells the end best is {told}."]


def _advice_lines(replay: Replay) -> list[str]:
    chosen, share = replay.advised, f"in {100 * ENOUGH:.0f} % of {replay.num_orders} orders"
    if replay.is_open:
        told = "No group can be told from the best, so every setting keeps one as good and none is to be preferred"
        return [f"{told}. {_WITHOUT}; more seeds may tell them apart."]
    if chosen is None:
        told = f"No setting saves anything and keeps the best group, or one not to be told from it, {share}"
        return [f"{told}. {_WITHOUT}."]
    got = chosen.mean
    flops = "" if got.saved_flops is None else f" ({100 * got.saved_flops:.0f} % of the operations)"
    kept = (
        f"keeps the best group, or one not to be told from it, in {100 * got.equal:.0f} % of {replay.num_orders} orders"
    )
    return [
        f"Take {chosen.words}",
        f"It saves {100 * got.saved_steps:.0f} % of the steps{flops} and {kept}; "
        f"expected regret {replay.regret_words(got.regret)} {replay.measure.unit.difference}.",
    ]


def settings_table(replay: Replay) -> Table:
    """Lay out the settings that no other beats, with the one to take marked."""
    headings = ("unit", "grace", "factor", "steps saved", "FLOPs saved", "best kept", "as good kept", "regret")
    legend = (
        f"→: take it. Means over {replay.num_orders} orders of the trials. best kept: how often the best group reaches "
        "the end with half its seeds; as good kept: that group or one not to be told from it; regret: by how many "
        f"{replay.measure.loses} the best that reaches the end falls short of it."
    )
    table = number_table("metric", headings, **_told("Settings that save more or lose less than all others", legend))
    line = pareto(replay.settings)
    chosen = replay.advised
    for one in line if chosen is None or chosen in line else [chosen, *line]:
        table.add_row(
            *_cells(one, replay.omen_words, "→ " if one is chosen else ""), replay.regret_words(one.mean.regret)
        )
    return table


def _cells(one: Replayed, words: Mapping[str, str], mark: str) -> list[str]:
    got, flops = one.mean, one.mean.saved_flops
    shares = (got.saved_steps, flops, got.winner, got.equal)
    percent = ["–" if share is None else f"{100 * share:.0f} %" for share in shares]
    grace, factor = str(one.asha.grace_period), f"{one.asha.reduction_factor:g}"
    return [mark + words[one.asha.metric], one.asha.unit, grace, factor, *percent]


def omens_table(replay: Replay) -> Table:
    """Lay out how well each number foretells the end: over trials / over groups, by step."""
    steps = sorted({omen.step for omen in replay.omens})
    steps = [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(6, len(steps)))})]
    legend = (
        "Spearman's rank correlation with it, over trials / over groups: 1 where they end in the "
        "order that this number has them in at that step, 0 where it tells nothing."
    )
    told = _told(f"What foretells {replay.measure.noun} at the end", legend)
    table = number_table("measured at step", [f"{step:,}" for step in steps], **told)
    for tag in dict.fromkeys(omen.tag for omen in replay.omens):
        at = {omen.step: omen for omen in replay.omens if omen.tag == tag}
        table.add_row(replay.omen_words[tag], *(_pair(at[step]) if step in at else "–" for step in steps))
    return table


def _told(title: str, legend: str) -> dict[str, Any]:
    """Say over and under a table what it is about and what its columns mean."""
    return {"title": title, "title_justify": "left", "caption": legend, "caption_justify": "left"}


def _pair(omen: Omen) -> str:
    return " / ".join(f"{value:.2f}" if math.isfinite(value) else "–" for value in (omen.trials, omen.groups))


def replay_json(replay: Replay) -> str:
    """Write everything as JSON; shares are from 0 to 1."""
    chosen = replay.advised
    return json_text(
        {
            "format_version": 1,
            "finals": asdict(replay.finals) | {"equals": sorted(replay.finals.equals)},
            **{name: getattr(replay, name) for name in ("kept", "num_steps", "num_orders", "slots")},
            "settings": [_plain(one) for one in replay.settings],
            "pareto": [replay.settings.index(one) for one in pareto(replay.settings)],
            "advised": None if chosen is None else replay.settings.index(chosen),
            "omens": [asdict(omen) for omen in replay.omens],
        }
    )


def _plain(one: Replayed) -> dict[str, Any]:
    return {"asha": one.asha.model_dump(), "as_they_came": asdict(one.as_they_came), "mean": asdict(one.mean)}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
