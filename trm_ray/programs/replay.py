"""Replay early stopping on runs that were trained to their end: what each setting of ASHA would have saved and lost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from trm_ray.config import AshaConfig, ConfigError, load_yaml
from trm_ray.config.errors import did_you_mean
from trm_ray.config.keys import flatten
from trm_ray.config.sweep import Metric, best_mode
from trm_ray.programs.stages import SWEEP_FILE
from trm_ray.reporting.numbers.groups import Group, group_runs
from trm_ray.reporting.numbers.measure import Measure, measure_of
from trm_ray.reporting.numbers.replay import (
    Compute,
    Replay,
    Replayed,
    finals,
    mean_outcome,
    omens,
    outcome,
    shared_steps,
    shared_tags,
)
from trm_ray.reporting.run_log import Run, find_runs

if TYPE_CHECKING:
    from trm_ray.distributed.replay import Entrant

UNITS = ("trial", "group")
Shown = Callable[[Sequence[AshaConfig]], Iterable[AshaConfig]]


@dataclass(frozen=True)
class Rules:
    """What early stopping goes by besides `asha.*`; `slots` trials train at a time."""

    keep: Sequence[str]
    group_by: str | None
    slots: int


def replay(
    paths: Sequence[Path],
    *,
    grace: Sequence[int] | None = None,
    reduction: Sequence[float] = (2.0, 3.0, 4.0),
    metrics: Sequence[str] | None = None,
    units: Sequence[str] = UNITS,
    keep: Sequence[str] | None = None,
    group_by: str | None = None,
    slots: int = 2,
    orders: int = 50,
    seed: int = 0,
    shown: Shown = iter,
) -> Replay:
    """Replay every setting in the order in which a sweep starts its trials, and in random orders.

    Args:
        paths: folders of runs, or folders that hold runs, such as a sweep's.
        grace: values of `asha.grace_period`; up to three of the steps at which the runs were evaluated, if not given.
        metrics: of `asha.metric`; all that every run has logged, if not given.
        units: of `asha.unit`.
        keep, group_by: as in a sweep; those of the sweep that is replayed, if not given.
        slots: trials that train at a time.
        orders: random orders besides that of a sweep; `seed` draws them.
        shown: goes through the settings, and may show how far that is.

    Raises:
        ValueError: a run was not trained to its end, there is nothing to compare, or a value does not fit.
    """
    found = find_runs(paths)
    measure = measure_of(found)
    groups = _groups(found, measure)
    rules = _rules(groups, paths, keep, group_by, slots)
    settings = _settings(found, measure, grace, reduction, metrics, units)
    field = _Field(groups, measure, rules, orders, seed)
    return Replay(
        measure=measure,
        finals=field.finals,
        kept=tuple(group.label for group in groups if _is_kept(group.runs[0], rules)),
        num_steps=max(run.last_step for run in _runs(groups)),
        num_orders=orders + 1,
        slots=slots,
        settings=tuple(field.replayed(asha) for asha in shown(settings)),
        omens=tuple(omens(groups, measure)),
    )


# ---- the runs --------------------------------------------------------------------------------------------


def _groups(runs: Sequence[Run], measure: Measure) -> list[Group]:
    for run in runs:
        _check_end(run, measure)
    groups = group_runs(runs)
    if len(groups) < 2:
        way_out = "name at least two, such as those of a sweep's folder"
        raise ConfigError(f"all {len(runs)} runs are of one group, {groups[0].label}; {way_out}")
    if len(steps := shared_steps(runs, measure.final.tag)) < 2:
        rule = f"must all be evaluated at two steps or more, and share {steps or 'none'}"
        raise ConfigError(f"the {len(runs)} runs {rule}; name runs with the same eval_interval")
    return groups


def _check_end(run: Run, measure: Measure) -> None:
    if run.stopped_early:
        way_out = "train with asha.enabled=false, or name other runs"
        place = f"step {run.last_step} of {run.planned_steps}"
        raise ConfigError(f"{run.folder} ends at {place} and must be trained to its end to be replayed; {way_out}")
    if not measure.is_logged_by(run):
        raise ConfigError(
            f"{run.folder} has no {measure.final.tag} and must be evaluated to be replayed; name other runs"
        )


def _runs(groups: Iterable[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


class _Field:
    """Runs that compete, over and over."""

    def __init__(self, groups: Sequence[Group], measure: Measure, rules: Rules, orders: int, seed: int):
        self._groups, self._rules, self._orders, self._seed = groups, rules, orders, seed
        self._entrants = {run.folder: _entrant(run, group, measure, rules) for group in groups for run in group.runs}
        self._compute = Compute(_runs(groups))
        self.finals = finals(groups, measure)

    def replayed(self, asha: AshaConfig) -> Replayed:
        """Replay a setting in all orders, which are the same for all settings."""
        from trm_ray.distributed.replay import last_steps

        outcomes = []
        for runs in self._all_orders(asha.unit):
            steps = last_steps(asha, [self._entrants[run.folder] for run in runs], self._rules.slots)
            last = {run.folder: step for run, step in zip(runs, steps, strict=True)}
            outcomes.append(outcome(self._groups, self.finals, self._compute, last))
        return Replayed(asha, outcomes[0], mean_outcome(outcomes))

    def _all_orders(self, unit: str) -> Iterator[list[Run]]:
        """Yield the order of a sweep, then random ones.

        A sweep begins with the first seed of every group; where groups compete, with all seeds of the first one.
        """
        rows: Sequence[Sequence[Run | None]] = [group.runs for group in self._groups]
        if unit == "trial":
            rows = [(run,) for row in itertools.zip_longest(*rows) for run in row]
        yield _flat(rows)
        random = np.random.default_rng(self._seed)
        for _ in range(self._orders):
            yield _flat([rows[number] for number in random.permutation(len(rows))])


def _flat(rows: Iterable[Sequence[Run | None]]) -> list[Run]:
    return [run for row in rows for run in row if run is not None]


def _entrant(run: Run, group: Group, measure: Measure, rules: Rules) -> Entrant:
    from trm_ray.distributed.replay import Entrant
    from trm_ray.distributed.scheduler import Contender

    league = "" if rules.group_by is None else str(flatten(run.config)[rules.group_by])
    contender = Contender(league, _is_kept(run, rules), group.label, len(group.runs))
    return Entrant(contender, [row for row in run.rows if measure.final.tag in row])


def _is_kept(run: Run, rules: Rules) -> bool:
    return run.config_name in rules.keep


# ---- what is asked for -----------------------------------------------------------------------------------


def _rules(
    groups: Sequence[Group],
    paths: Sequence[Path],
    keep: Sequence[str] | None,
    group_by: str | None,
    slots: int,
) -> Rules:
    of_sweep = _sweep_keys(paths)
    keep = of_sweep.get("keep", []) if keep is None else keep
    group_by = group_by or of_sweep.get("group_by")
    names = [group.runs[0].config_name for group in groups]
    for name in keep:
        if name not in names:
            raise ConfigError(f"keep={name} must name the scenario of a run; {did_you_mean(name, names)}")
    keys = set.intersection(*(set(flatten(run.config)) for run in _runs(groups)))
    if group_by is not None and group_by not in keys:
        raise ConfigError(f"group_by={group_by} must be a run key; {did_you_mean(group_by, sorted(keys))}")
    return Rules(keep, group_by, slots)


def _sweep_keys(paths: Sequence[Path]) -> dict[str, Any]:
    """Read the keys of the first path that is a sweep's folder."""
    files = [file for path in paths if (file := path / SWEEP_FILE).is_file()]
    keys = load_yaml(files[0].read_text(encoding="utf-8")) if files else {}
    return keys if isinstance(keys, dict) else {}


def _settings(
    runs: Sequence[Run],
    measure: Measure,
    grace: Sequence[int] | None,
    reduction: Sequence[float],
    metrics: Sequence[str] | None,
    units: Sequence[str],
) -> list[AshaConfig]:
    usable = [tag for tag in shared_tags(runs, measure) if tag in get_args(Metric)]
    for metric in metrics or ():
        _check_metric(metric, usable)
    steps = shared_steps(runs, measure.final.tag)
    for value in grace or ():
        if not 1 <= value < max(steps):
            way_out = f"use {','.join(map(str, _some(steps)))}"
            raise ConfigError(f"grace={value} must be from 1 to below the last step, {max(steps)}; {way_out}")
    for factor in reduction:
        if not 1 < factor < math.inf:
            raise ConfigError(f"reduction={factor:g} must be above 1; use 2,3,4")
    for unit in units:
        if unit not in UNITS:
            raise ConfigError(f"unit={unit} must be one of {', '.join(UNITS)}")
    axes: tuple[Any, ...] = (units, metrics or usable, grace or _some(steps), reduction)
    return [
        AshaConfig(unit=unit, metric=metric, mode=best_mode(metric), grace_period=first, reduction_factor=float(factor))
        for unit, metric, first, factor in itertools.product(*axes)
    ]


def _check_metric(metric: str, usable: Sequence[str]) -> None:
    if metric not in get_args(Metric):
        raise ConfigError(f"metric={metric} must be one of {', '.join(get_args(Metric))}")
    if metric not in usable:
        raise ConfigError(f"metric={metric} must be logged by all runs, and is not; use one of {', '.join(usable)}")


def _some(steps: Sequence[int]) -> list[int]:
    """Choose up to three evaluations of the first two thirds."""
    early = [step for step in steps if step <= 2 / 3 * max(steps)] or [steps[0]]
    return [early[i] for i in sorted({round(i) for i in np.linspace(0, len(early) - 1, 3)})]
