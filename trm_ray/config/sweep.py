"""Every key of a sweep, and the trials that it stands for."""

# ruff: noqa: RUF012  # pydantic copies defaults
from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from trm_ray.config.errors import ConfigError, did_you_mean, misfit, show, unknown_key
from trm_ray.config.keys import (
    STRICT,
    TOLD,
    AboveOne,
    Folder,
    Name,
    Names,
    Positive,
    PositiveOrNull,
    Reasons,
    Seed,
    Settings,
    Share,
    TextOrNull,
    find_field,
    flatten,
)
from trm_ray.config.run import Config, is_of_kind, known_keys

Kind = Literal["uniform", "loguniform", "choice", "randint"]
Metric = Literal[
    "eval/loss",
    "eval/accuracy",
    "eval/exact_accuracy",
    "eval/anytime_accuracy",
    "eval/first_segment/step_0_exact_accuracy",
    "eval/bits_per_byte",
    "eval/anytime_bits_per_byte",
    "eval/first_segment/step_0_bits_per_byte",
]


@dataclass(frozen=True)
class Distribution:
    """Name one of Tune's sampling functions and its arguments (`randint`'s upper end is exclusive)."""

    kind: Kind
    values: tuple[Any, ...]

    def extremes(self) -> tuple[Any, ...]:
        """Return the ends of what can be sampled; all values of a choice."""
        if self.kind == "randint":
            return self.values[0], self.values[1] - 1
        return self.values


def best_mode(metric: str) -> Literal["min", "max"]:
    """Tell whether less or more of a metric is better."""
    return "min" if metric == "eval/loss" or metric.endswith("bits_per_byte") else "max"


class AshaConfig(Settings):
    """Say when a trial is stopped for being behind (`asha.*`)."""

    enabled: bool = True  # false = every trial runs to its end
    # what competes: each trial by itself, or a group (a scenario or variant) by the mean over its seeds
    unit: Literal["trial", "group"] = "trial"
    metric: Metric = "eval/loss"  # what trials are judged by, on held-out puzzles or text
    mode: Literal["min", "max"] = "min"  # min for eval/loss and bits per byte, max for the others
    grace_period: Positive = 1000  # optimizer steps that every trial gets: past the warm-up
    reduction_factor: AboveOne = 2.0  # one trial in so many goes on past each rung
    max_t: PositiveOrNull = None  # most steps of a trial that is not kept; null = the trials' max_steps

    @model_validator(mode="after")
    def _check(self) -> AshaConfig:
        best = best_mode(self.metric)
        if self.mode != best:
            rule = f"must be {best} for asha.metric={self.metric}"
            raise ValueError(f"asha.mode={self.mode} {rule}; use asha.mode={best}")
        grace, most = self.grace_period, self.max_t
        if most is not None and grace > most:
            way_out = f"use asha.grace_period={max(most // 2, 1)}"
            raise ValueError(f"asha.grace_period={grace} must be at most asha.max_t={most}; {way_out}")
        return self


class FinalConfig(Settings):
    """Say what is trained again, on more seeds and without stopping, once all trials have ended (`final.*`)."""

    top_k: PositiveOrNull = None  # so many of the best groups, and those of `keep`; null = there is no second stage
    seeds: PositiveOrNull = None  # of each; those of the first stage that ended count; null = as many as there


class SweepConfig(Settings):
    """Hold what a sweep compares: scenarios × grid × seeds, and how it stops the bad ones."""

    name: Name = "sweep"  # the sweep file's name
    # files of configs/, each a trial for each seed and each point of the grid
    scenarios: Annotated[Names, Field(min_length=1, description="a list of one or more names")]
    # several give a spread
    seeds: Annotated[list[Seed], Field(min_length=1, description="a list of one or more whole numbers")] = [0]
    overrides: dict[str, Any] = {}  # run keys that hold for every trial
    search_space: dict[str, Any] = {}  # run key -> [values] or {distribution: [arguments]}
    num_samples: Positive = 1  # samples of the distributions for each point of the grid
    group_by: TextOrNull = None  # a run key: trials compete only with those of equal value
    keep: Names = []  # scenarios that are never stopped early
    # ends a hopeless trial for good, a kept one too: its loss is not finite; or it has lost what it had learned
    stop_on: Reasons = ["non_finite", "diverging"]
    asha: AshaConfig = AshaConfig()
    final: FinalConfig = FinalConfig()
    # exact accuracy that "steps to threshold" counts to; where there is only text, that is what `xz` or unigrams take
    threshold: Share = 0.5
    max_concurrent_trials: PositiveOrNull = None  # at once; null = as many as the resources hold
    log_dir: Folder = "runs/sweep"  # filled in when loading: runs/NAME

    @field_validator("overrides", mode="before")
    @classmethod
    def _check_overrides(cls, values: Any) -> dict[str, Any]:
        suggested = (*known_keys(), *known_keys(cls))
        return {key: _checked(key, value) for key, value in _run_keys(values, "", suggested).items()}

    @field_validator("search_space", mode="before")
    @classmethod
    def _check_search_space(cls, values: Any) -> dict[str, Any]:
        suggested = [f"search_space.{key}" for key in known_keys()]
        return {key: _axis(key, spec) for key, spec in _run_keys(values, "search_space.", suggested).items()}

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        _check_names(self)
        _check_space(self)
        return self

    def variants(self) -> list[dict[str, Any]]:
        """List the fixed part of every trial: `config_name`, `seed` and the grid's keys.

        Seeds change slowest and scenarios fastest, so that a sweep compares all scenarios early. Where groups compete
        the seeds of each stand together, so that a group is whole early.
        """
        grid = {key: spec for key, spec in self.search_space.items() if isinstance(spec, list)}
        points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        groups = [(scenario, point) for point in points for scenario in self.scenarios]
        if self.asha.unit == "group":
            ordered = [(seed, *group) for group in groups for seed in self.seeds]
        else:
            ordered = [(seed, *group) for seed in self.seeds for group in groups]
        return [{"config_name": scenario, "seed": seed, **point} for seed, scenario, point in ordered]

    def random_space(self) -> dict[str, Distribution]:
        """List the keys that are sampled, `num_samples` times for each variant."""
        return {
            key: Distribution(kind, tuple(values))
            for key, spec in self.search_space.items()
            if isinstance(spec, dict)
            for kind, values in spec.items()
        }


_SET_BY_SWEEP = {"config_name": "scenarios=[NAME]", "seed": "seeds=[0, 1]", "log_dir": "the sweep's log_dir"}


def _run_keys(values: Any, prefix: str, suggested: Sequence[str]) -> dict[str, Any]:
    """Flatten run keys inside a sweep and refuse those that are no run keys or that the sweep sets itself."""
    if not isinstance(values, Mapping):
        section = prefix or "overrides."
        raise ValueError(f"{section[:-1]}={show(values)} must be a mapping of run keys; write {section}KEY=VALUE")
    flat = flatten(values)
    for key, value in flat.items():
        if key in _SET_BY_SWEEP:
            raise ValueError(f"{prefix}{key}={show(value)} must not be set in a sweep; use {_SET_BY_SWEEP[key]}")
        removes_section = value is None and key in Config.model_fields  # generator=null
        if key not in known_keys() and not removes_section and not is_of_kind(key):
            raise ValueError(unknown_key(f"{prefix}{key}", value, suggested))
    return flat


def _checked(key: str, value: Any, prefix: str = "") -> Any:
    """Return a value as its run key's type; errors name `prefix` + key. What a kind knows stays as it was read."""
    return value if is_of_kind(key) else check_value(f"{prefix}{key}", value, find_field(Config, key))


def check_value(label: str, value: Any, field: FieldInfo) -> Any:
    """Return a value as a field's type.

    Raises:
        ConfigError: it does not fit; the message calls it `label`.
    """
    kind: Any = Annotated[field.annotation, field]
    try:
        return TypeAdapter(kind, config=STRICT).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
    has_own_words = first["type"] in TOLD
    raise ConfigError(f"{label}={show(value)}: {first['msg']}" if has_own_words else misfit(label, value, field))


def _axis(key: str, spec: Any) -> list[Any] | dict[str, list[Any]]:
    """Check a grid's values, or a distribution's."""
    label = f"search_space.{key}={show(spec)}"
    kind, values = next(iter(spec.items())) if isinstance(spec, Mapping) and len(spec) == 1 else (None, spec)
    if kind not in (None, *get_args(Kind)) or not isinstance(values, list) or not values:
        rule = f"must be a list of values (a grid) or have one of {', '.join(get_args(Kind))}"
        raise ValueError(f"{label} {rule}; use e.g. {{choice: [a, b]}}")
    if kind and key.startswith("generator."):
        raise ValueError(f"{label} must be a list of values (a grid): data are made before anything is drawn")
    values = [_checked(key, value, "search_space.") for value in values]
    if kind not in (None, "choice"):
        _check_ends(label, kind, values)
    return {kind: values} if kind else values


def _check_ends(label: str, kind: str, values: list[Any]) -> None:
    wanted = int if kind == "randint" else float
    if any(type(value) is not wanted for value in values):
        fitting = "randint is for whole numbers, uniform and loguniform for other numbers, choice for the rest"
        raise ValueError(f"{label} must fit the key's type; {fitting}")
    if len(values) != 2 or values[0] >= values[1]:
        raise ValueError(f"{label} must be [LOW, HIGH] with LOW < HIGH; use e.g. {{{kind}: [1, 2]}}")
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError(f"{label} must start above 0 on a logarithmic scale; use uniform, or a small low end")


def _check_names(sweep: SweepConfig) -> None:
    for field, values in (("scenarios", sweep.scenarios), ("seeds", sweep.seeds)):
        once = list(dict.fromkeys(values))
        if len(once) < len(values):
            raise ValueError(f"{field}={show(values)} must not name one twice; use {show(once)}")
    for name in sweep.keep:
        if name not in sweep.scenarios:
            rule = f"must name scenarios, and `{name}` is none"
            raise ValueError(f"keep={show(sweep.keep)} {rule}; {did_you_mean(name, sweep.scenarios)}")
    if sweep.group_by is not None and sweep.group_by not in known_keys() and not is_of_kind(sweep.group_by):
        meant = did_you_mean(sweep.group_by, known_keys())
        raise ValueError(f"group_by={show(sweep.group_by)} must be a run key; {meant}")


def _check_space(sweep: SweepConfig) -> None:
    if sweep.final.top_k is not None and sweep.random_space():
        rule = "must not stand beside a distribution in search_space, which draws other values for every seed"
        raise ValueError(f"final.top_k={sweep.final.top_k} {rule}; use lists of values, or final.top_k=null")
    if sweep.final.seeds is not None and sweep.final.seeds < len(sweep.seeds):
        rule = f"must be at least the number of seeds, {len(sweep.seeds)}"
        raise ValueError(f"final.seeds={sweep.final.seeds} {rule}; use final.seeds={len(sweep.seeds)}")
    for key in sorted(sweep.search_space.keys() & sweep.overrides.keys()):
        value = show(sweep.overrides[key])
        raise ValueError(f"{key}={value} must not stand beside search_space.{key}; remove one")
    if sweep.num_samples > 1 and not sweep.random_space():
        rule = "needs a distribution in search_space"
        raise ValueError(f"num_samples={sweep.num_samples} {rule}; for a spread use seeds")
    if sweep.asha.unit == "group" and sweep.random_space():
        rule = "must not stand beside a distribution in search_space, which draws other values for every seed"
        raise ValueError(f"asha.unit=group {rule}; use lists of values, or asha.unit=trial")
