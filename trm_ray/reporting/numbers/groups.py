"""Runs put into groups (one scenario or variant, several seeds), and each group's numbers and rank."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.config import defaults
from trm_ray.config.keys import flatten
from trm_ray.reporting.run_log import Run, Series

SCENARIO_ORDER = ("baseline", "constant", "linear", "exponential", "curriculum")
# Keys that tell runs apart without making them different experiments.
_PER_RUN_KEYS = {
    *("config_name", "task", "seed", "log_dir", "prepare_command", "generator.check_existing"),
    *("ray.storage_path", "ray.address", "ray.max_failures", "ray.start_timeout_s"),
    *("ray.placement_strategy", "ray.resize_check_s"),
    *("log_interval", "log_per_step_losses", "compute_gradient_stats", "gradient_stats_interval"),
    *("compile", "checkpoint_cycles", "device"),
    *("eval_interval", "eval_batch_size", "eval_quick_puzzles", "checkpoint_every_eval", "keep_last", "keep_best"),
}
# Keys that scenarios are made of: they differ between scenarios by definition.
_SCENARIO_KEYS = ("deep_supervision_", "curriculum_", "recurrent_grad_depth", "detach_cycles", "depth_curriculum")
_LENGTH_KEYS = {"max_steps", "max_flops", "epochs"}


@dataclass(frozen=True)
class Band:
    """A tag over the seeds of a group, at the steps where any seed has it.

    `mean`, `low`, `high` (n,) are over the seeds that got that far, `count` (n,) says how many; `wall_s` (n,)
    is their mean training time at that step; `num_seeds` had the tag at all.
    """

    steps: np.ndarray
    wall_s: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    num_seeds: int


@dataclass(frozen=True)
class Group:
    """Runs whose configs are equal but for the seed."""

    label: str
    scenario: str
    runs: tuple[Run, ...]

    def band(self, tag: str) -> Band:
        """Spread a tag over the seeds; between its own rows a seed is interpolated."""
        return spread_over_seeds([run.series(tag) for run in self.runs])


def spread_over_seeds(all_series: Sequence[Series]) -> Band:
    """Take mean, lowest and highest of the series at every step that one of them has."""
    present = [series for series in all_series if len(series.steps)]
    if not present:
        empty = np.zeros(0)
        return Band(empty.astype(np.int64), empty, empty, empty, empty, empty.astype(np.int64), 0)
    steps = np.unique(np.concatenate([series.steps for series in present]))
    values = np.ma.masked_invalid([_at(steps, series.steps, series.values) for series in present])
    times = np.ma.masked_invalid([_at(steps, series.steps, series.wall_s) for series in present])
    over_seeds = (times.mean(axis=0), values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    wall_s, mean, low, high = (column.filled(np.nan) for column in over_seeds)
    return Band(steps, wall_s, mean, low, high, values.count(axis=0), len(present))


def _at(steps: np.ndarray, own_steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.interp(steps, own_steps, values, left=np.nan, right=np.nan)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by config; scenarios in their usual order, variants by their label.

    A label is the scenario, with the keys in which its runs differ: `linear · lr=5e-5`.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(_identity(run), []).append(run)
    groups = list(members.values())
    labels = _labels([group[0] for group in groups])
    made = [
        Group(label, scenario_name(group[0]), tuple(sorted(group, key=lambda run: run.seed)))
        for label, group in zip(labels, groups, strict=True)
    ]
    return sorted(made, key=_rank)


def scenario_name(run: Run) -> str:
    """Shorten the name of the scenario's config file: `deep_supervision_linear` is `linear`."""
    return run.config_name.removeprefix("deep_supervision_")


def num_differences(one: Run, other: Run) -> int:
    """Count the keys in which two runs differ beside seed, scenario and length; a depth curriculum goes with any."""
    flat, others = _values(one), _values(other)
    keys = flat.keys() | others.keys()
    compared = [key for key in keys if key == "depth_curriculum" or not key.startswith(_SCENARIO_KEYS)]
    left_out = _PER_RUN_KEYS | _LENGTH_KEYS
    return sum(flat.get(key) != others.get(key) for key in compared if key not in left_out)


def differences(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Name the keys that make two runs different experiments, each with the value of both; None where it is missing."""
    flat, others = _values(one), _values(other)
    keys = [key for key in {**flat, **others} if key not in _PER_RUN_KEYS and flat.get(key) != others.get(key)]
    return {key: (flat.get(key), others.get(key)) for key in keys}


_defaults = functools.cache(defaults)


def _values(run: Run) -> dict[str, Any]:
    """Give a run's config by dotted key, with the default of what its release did not know yet."""
    return {**_defaults(), **flatten(run.config)}


def _identity(run: Run) -> str:
    keys = {key: value for key, value in _values(run).items() if key not in _PER_RUN_KEYS}
    return json.dumps([run.config_name, run.config.get("task"), keys], sort_keys=True, default=str)


def _labels(runs: Sequence[Run]) -> list[str]:
    tasks = {run.config.get("task") for run in runs}
    labels = []
    for run in runs:
        peers = [other for other in runs if other.config.get("task") == run.config.get("task")]
        parts = [scenario_name(run)] + ([str(run.config.get("task"))] if len(tasks) > 1 else [])
        labels.append(" · ".join(parts + _differences(run, peers)))
    return labels


def _differences(run: Run, peers: Sequence[Run]) -> list[str]:
    """Name the keys in which `run` stands out; a scenario's own keys count only within the scenario."""
    all_values = [(peer.config_name, _values(peer)) for peer in peers]
    differences = []
    for key, own in _values(run).items():
        in_scenario = key.startswith(_SCENARIO_KEYS)
        compared = [values for name, values in all_values if not in_scenario or name == run.config_name]
        if key not in _PER_RUN_KEYS and len({json.dumps(values.get(key), default=str) for values in compared}) > 1:
            differences.append(f"{key.removeprefix('deep_supervision_').removeprefix('arch.')}={_short(own)}")
    return sorted(differences)


def _short(value: Any) -> str:
    if isinstance(value, float):
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{value:g}" if not 0 < abs(value) < 0.01 else f"{float(mantissa):g}e{int(exponent)}"
    if value and isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return f"[{', '.join(f'{item:g}' for item in value)}]"
    if isinstance(value, list):
        return "+".join(Path(str(item)).name for item in value) or "none"
    return "null" if value is None else str(value)


def _rank(group: Group) -> tuple[int, str, str]:
    known = SCENARIO_ORDER.index(group.scenario) if group.scenario in SCENARIO_ORDER else len(SCENARIO_ORDER)
    return known, group.scenario, group.label
