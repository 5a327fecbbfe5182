"""The stages of a sweep: all trials with early stopping; then, if `final` asks for it, the best again on more seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_ray.config import Config, SweepConfig, flat
from trm_ray.config.keys import flatten
from trm_ray.config.trials import TrialNames
from trm_ray.reporting.numbers.measure import Measure, measure_of
from trm_ray.reporting.run_log import Run, is_run, read_run
from trm_ray.runs.plan import RunPlan
from trm_ray.storage import write_whole

SWEEP_FILE = "sweep.yaml"
CORE_SECONDS_FILE = "core_seconds.json"
# Which groups the second stage trains. As soon as it is there the first one is over.
FINAL_FILE = "final.json"


@dataclass(frozen=True)
class Stage:
    """Trials that are run together: one a plan."""

    sweep: SweepConfig
    runs: list[RunPlan]

    def folders(self, folder: Path) -> list[Path]:
        """Name each trial's folder inside the sweep's; only of a stage without distributions."""
        names = TrialNames(self.sweep)
        return [folder / names.of(number, run.config, {}) for number, run in enumerate(self.runs)]


def final_config(sweep: SweepConfig) -> SweepConfig:
    """Give the sweep that the second stage takes its trials from: with more seeds, and without ASHA."""
    missing = (sweep.final.seeds or 0) - len(sweep.seeds)
    seeds = [*sweep.seeds, *range(max(sweep.seeds) + 1, max(sweep.seeds) + 1 + missing)]
    return sweep.model_copy(update={"seeds": seeds, "asha": sweep.asha.model_copy(update={"enabled": False})})


def stages(first: Stage, final: Stage | None, folder: Path, tell: Callable[[str], None]) -> Iterator[Stage]:
    """Yield the first stage and then, when that has been run, what is left to train of the second.

    Args:
        final: every trial that the second stage may come to need.
        folder: the sweep's. A second stage that has begun there goes on, without the first.
        tell: takes a line that says what the second stage trains.
    """
    if chosen_groups(folder) is None:
        yield first
    if final is None:
        return
    if chosen_groups(folder) is None:
        write_whole(folder / FINAL_FILE, json.dumps({"format_version": 1, "groups": _choose(first, folder)}) + "\n")
    left = [run for run, place in _final_trials(final, folder) if not (is_run(place) and read_run(place).finished)]
    tell(f"Final stage: {', '.join(_told(key) for key in chosen_groups(folder) or ())}, {len(left)} trials to train")
    if left:
        yield Stage(final.sweep, left)


def counted(runs: Sequence[Run], folder: Path) -> list[Run]:
    """Take the runs that a sweep's statistics go by: the finished ones of its second stage, all where it has none."""
    groups = chosen_groups(folder) or []
    return [run for run in runs if run.finished and any(_is_of(run, *key) for key in groups)] or list(runs)


def _is_of(run: Run, scenario: str, values: Mapping[str, Any]) -> bool:
    own = flatten(run.config)
    return run.config_name == scenario and all(own.get(name) == value for name, value in values.items())


def chosen_groups(folder: Path) -> list[list[Any]] | None:
    """Read which groups the second stage trains; None before it has begun."""
    file = folder / FINAL_FILE
    return json.loads(file.read_text(encoding="utf-8"))["groups"] if file.is_file() else None


def _final_trials(final: Stage, folder: Path) -> Iterable[tuple[RunPlan, Path]]:
    chosen, trials = chosen_groups(folder) or [], zip(final.runs, final.folders(folder), strict=True)
    return [(run, place) for run, place in trials if _key(final.sweep, run.config) in chosen]


def _key(sweep: SweepConfig, config: Config) -> list[Any]:
    """Name a group by its scenario and its values of the grid, as JSON reads them."""
    values = flat(config)
    key: list[Any] = json.loads(json.dumps([config.config_name, {name: values[name] for name in sweep.search_space}]))
    return key


def _told(key: list[Any]) -> str:
    return " ".join([key[0], *(f"{name}={value}" for name, value in key[1].items())])


def _choose(first: Stage, folder: Path) -> list[list[Any]]:
    """Choose the best groups by what runs are ranked by, and those to keep, in the order of the sweep."""
    groups: dict[str, list[Run]] = {}
    for run, place in zip(first.runs, first.folders(folder), strict=True):
        found = groups.setdefault(json.dumps(_key(first.sweep, run.config)), [])
        found += [read_run(place)] if is_run(place) else []
    measure = measure_of(run for runs in groups.values() for run in runs)
    best = sorted(groups, key=lambda name: _score(groups[name], measure), reverse=True)[: first.sweep.final.top_k]
    keys = [json.loads(name) for name in groups if name in best or json.loads(name)[0] in first.sweep.keep]
    return keys


def _score(runs: Sequence[Run], measure: Measure) -> tuple[bool, float]:
    """Rank a group by the mean of its finished seeds; one without any comes after all that have one."""
    finished = [run for run in runs if run.finished]
    last = [series.values[-1] for run in finished or runs if len((series := run.series(measure.final.tag)).steps)]
    mean = sum(last) / len(last) if last else math.nan
    return bool(finished), measure.unit.better(mean) if math.isfinite(mean) else -math.inf
