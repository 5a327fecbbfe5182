"""Resolve a run or a sweep from its layers: files, a trial's values, `key=value`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trm_ray.config.errors import ConfigError, misfit, show, unknown_key
from trm_ray.config.files import Entry, find_file, read_file
from trm_ray.config.keys import TOLD, Settings, find_field, flatten, nest
from trm_ray.config.run import Config, Generator, flat, is_of_kind, known_keys
from trm_ray.config.sweep import SweepConfig
from trm_ray.config.values import read_value

_Layer = Mapping[str, Entry]  # by dotted key
_Model = TypeVar("_Model", bound=Settings)


def load_config(
    config_name: str,
    overrides: Sequence[str] = (),
    *,
    config_dir: str | os.PathLike[str] | None = None,
    extra: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Resolve a run: defaults < scenario < task < `extra` < `overrides` < `options`.

    A run's own config.yaml, given by its path, is complete: its task file is read only when `task` is given.

    Args:
        config_name: a scenario's name, or the path of a .yaml file.
        overrides: `key=value` as on the command line: text as it is, other values as YAML.
        extra: values of a sweep's trial by dotted key.
        options: values of the command's own options by dotted key.

    Raises:
        ConfigError: one line that names key, value, rule and way out.
    """
    path = find_file("scenario", config_name, config_dir)
    scenario = read_file(path)
    # Their order counts: generator=null generator.size=9
    given = [_layer(extra or {}), *_once([*map(_parse, overrides)]), _layer(options or {})]
    chosen = _merge(given)
    if "config_name" in chosen:
        name = show(chosen["config_name"].value)
        raise ConfigError(f"config_name={name} must not be overridden; use --config-name {name}")
    complete = "config_name" in scenario and "task" not in chosen
    task = {} if complete else _read_task({**scenario, **chosen}.get("task"), config_dir)
    own = {} if complete else {key: entry for key, entry in scenario.items() if key not in task}
    shipped, asked = scenario if complete else task, _merge([own, *given])
    return _build(Config, _named("config_name", path, [scenario, task, *given, _own_data(shipped, asked)]))


def load_sweep(
    name: str, overrides: Sequence[str] = (), *, config_dir: str | os.PathLike[str] | None = None
) -> SweepConfig:
    """Resolve a sweep and check every trial that it will run.

    Args:
        overrides: `key=value`; a sweep's key (`seeds=[0,1]`, `asha.max_t=200`, `search_space.lr=[1e-4]`)
            changes the sweep; any other must be a run key and holds for all trials.

    Raises:
        ConfigError: one line that names key, value, rule and way out.
    """
    path = find_file("sweep", name, config_dir)
    given = [{_sweep_key(key): entry for key, entry in layer.items()} for layer in map(_parse, overrides)]
    sweep = _build(SweepConfig, _named("name", path, [read_file(path), *_once(given)]))
    for config in trial_configs(sweep, config_dir=config_dir):
        for key, distribution in sweep.random_space().items():
            for value in distribution.extremes():
                with_overrides(config, {key: value})
    return sweep


def trial_configs(sweep: SweepConfig, *, config_dir: str | os.PathLike[str] | None = None) -> list[Config]:
    """Resolve each of `sweep.variants()`, in their order; sampled keys are laid over by `with_overrides`.

    Raises:
        ConfigError: a scenario or task does not exist, or a combination of values is impossible.
    """
    configs = []
    for variant in sweep.variants():
        values = {**sweep.overrides, **variant}
        configs.append(load_config(values.pop("config_name"), config_dir=config_dir, extra=values))
    return configs


def config_from_run(folder: Path) -> Config:
    """Read the config that a run was started with from its folder.

    Raises:
        ConfigError: the folder holds no run, or its config.yaml was damaged.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} must be a run's folder, and has no config.yaml; name one such as runs/NAME")
    return _build(Config, [read_file(path)])


def config_from_values(values: Any, source: str) -> Config:
    """Check the config that somebody else's file holds, such as a checkpoint.

    Raises:
        ConfigError: it is none; the message begins with `source`.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        known, values = known_keys(), {key: detail["input"]}
        mistake = _first_mistake(error, Config, values, known) if key in known else detail["msg"]
    raise ConfigError(f"{source} holds no config of a run: {mistake if '=' in mistake else f'{key}: {mistake}'}")


def with_overrides(config: Config, values: Mapping[str, Any]) -> Config:
    """Return the config with other values by dotted key, checked again; reads no file.

    Raises:
        ConfigError: a value does not fit, or `task` changes (that needs its file: `load_config`).
    """
    given = _layer(values)
    if "task" in given and given["task"].value != config.task:
        task = show(given["task"].value)
        raise ConfigError(f"task={task} must be chosen when the config is loaded; in a sweep, use a grid")
    before = _layer(flat(config))
    return _build(Config, [before, given, _own_data(before, given)])


def _own_data(shipped: _Layer, asked: _Layer) -> _Layer:
    """Take a dataset that the user names as it is where the generator is not his: he has not asked for its check."""
    is_generated = any(key.startswith("generator.") for key in shipped)
    asks = any(key.partition(".")[0] == "generator" for key in asked)
    named, usual = (_listed(layer.get("data_paths")) for layer in (asked, shipped))
    is_own = is_generated and not asks and named not in ([], usual)
    return {"generator.check_existing": Entry(False)} if is_own else {}


def _listed(entry: Entry | None) -> list[Any]:
    value = [] if entry is None else entry.value
    return value if isinstance(value, list) else [value]


def _layer(values: Mapping[str, Any]) -> _Layer:
    return {key: Entry(value) for key, value in flatten(values).items()}


def _parse(override: str) -> _Layer:
    key, equals, text = override.partition("=")
    if not equals or not key or key != key.strip():
        raise ConfigError(f"{show(override)} must be key=value, without spaces around `=`; write e.g. lr=5e-5")
    return _layer({key: read_value(key, text)})


def _once(layers: Sequence[_Layer]) -> Sequence[_Layer]:
    """Refuse a key that is given twice: which of its values was meant cannot be known."""
    found: dict[str, Any] = {}
    for key, entry in itertools.chain.from_iterable(layer.items() for layer in layers):
        if key in found:
            name, values = key.removeprefix("overrides."), (found[key], entry.value)
            told = " and ".join(f"{name}={show(value)}" for value in values)
            raise ConfigError(f"{told} must not both be given; leave one out")
        found[key] = entry.value
    return layers


def _sweep_key(key: str) -> str:
    """Send a key to the sweep when it has it, else to the run keys that hold for all trials."""
    return key if key.partition(".")[0] in SweepConfig.model_fields else f"overrides.{key}"


def _read_task(task: Entry | None, config_dir: str | os.PathLike[str] | None) -> _Layer:
    if task is None or task.value is None:
        return {}
    return read_file(find_file("task", str(task.value), config_dir))


def _named(key: str, path: Path, layers: Sequence[_Layer]) -> list[_Layer]:
    """Lay the layers over the file's name, and the log folder of that name."""
    name = _merge([{key: Entry(path.stem)}, *layers])[key].value
    return [{key: Entry(name), "log_dir": Entry(f"runs/{name}")}, *layers]


def _merge(layers: Sequence[_Layer]) -> _Layer:
    """Lay later layers over earlier ones; a whole section (`generator: null`) replaces its keys, and back."""
    merged: dict[str, Entry] = {}
    for layer in layers:
        for key, entry in layer.items():
            for old in [old for old in merged if f"{old}.".startswith(f"{key}.") or key.startswith(f"{old}.")]:
                del merged[old]
            merged[key] = entry
    return merged


def _build(model: type[_Model], layers: Sequence[_Layer]) -> _Model:
    layer = _merge(layers)
    return _checked(model, layer, [*known_keys(model), *filter(is_of_kind, layer)])  # a task names its kind's keys


def check_generator(generator: Generator, model: type[_Model]) -> _Model:
    """Read the keys of `generator.*` that a kind of puzzle knows as its model has them; `ConfigError` if it cannot."""
    layer = {f"generator.{k}": Entry(value, generator.origin(k)) for k, value in (generator.model_extra or {}).items()}
    known = [f"generator.{key}" for key in (*known_keys(Generator), *known_keys(model))]
    return _checked(model, layer, known, "generator.")


def _checked(model: type[_Model], layer: _Layer, known: Sequence[str], prefix: str = "") -> _Model:
    """Build a model of a layer's keys, which begin with `prefix`; a misspelt one was meant to be one of the known."""
    origins = {key: entry.origin for key, entry in layer.items()}
    values = {key.removeprefix(prefix): entry.value for key, entry in layer.items()}
    try:
        return model.model_validate(nest(values), context=origins)
    except ValidationError as error:
        line = _first_mistake(error, model, values, known, prefix)
    key = line.partition("=")[0]
    raise ConfigError(": ".join([*filter(None, map(origins.get, (key, f"overrides.{key}"))), line]))


def _first_mistake(
    error: ValidationError, model: type[Settings], values: Mapping[str, Any], known: Sequence[str], prefix: str = ""
) -> str:
    details = error.errors()
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    first = details[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    told = f"{prefix}{key}"
    if first["type"] == "value_error":  # a relation: ours, and a whole sentence
        return str(first["ctx"]["error"]) + more
    if first["type"] in TOLD:
        return f"{told}={show(values.get(key))}: {first['msg']}{more}"
    if first["type"] == "extra_forbidden":
        return unknown_key(told, first["input"], known) + more
    return misfit(told, values.get(key), find_field(model, key)) + more
