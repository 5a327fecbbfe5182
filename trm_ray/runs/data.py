"""A run's datasets: made where a task's generator can make them, opened and checked."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trm_ray.config import Config, ConfigError, Generator, SweepConfig, flat, trial_configs
from trm_ray.config.loading import check_generator
from trm_ray.data.check import RowHashes, check_same_identifiers, open_datasets
from trm_ray.data.format import DatasetInfo, is_dataset
from trm_ray.kinds.kind import Arguments
from trm_ray.kinds.registry import KINDS, check_kind
from trm_ray.kinds.tokens import Tokens
from trm_ray.ownership import FolderInUse
from trm_ray.storage import as_path, meant

_LOG = logging.getLogger("trm_ray")
_LOOK_EVERY_S = 0.5  # whether data that another process makes are there


def made_of(generator: Generator) -> Arguments:
    """Read `generator.*` as its kind of puzzle takes it; `ConfigError` if none of that name can be made, or not so."""
    made = {name: kind.arguments for name, kind in KINDS.items() if kind.arguments}
    if generator.name not in made:
        way_out = "prepare other puzzles, and name their folder in data_paths with generator=null"
        told = f"generator.name={generator.name} must be one of {', '.join(made)}; {way_out}"
        raise ConfigError(": ".join(filter(None, [generator.origin("name"), told])))
    return check_generator(generator, made[generator.name])


def complete(config: Config) -> Config:
    """Return a config with every key of its generator. Errors: those of `made_of`."""
    if config.generator is None:
        return config
    generator = config.generator.model_copy(update=made_of(config.generator).model_dump(mode="json"))
    return config.model_copy(update={"generator": generator})


def complete_trials(sweep: SweepConfig) -> list[Config]:
    """Resolve each of `sweep.variants()` as `complete` does; its `group_by` must be a key of all of them."""
    configs = [complete(config) for config in trial_configs(sweep)]
    if any(sweep.group_by not in (None, *flat(config)) for config in configs):
        raise ConfigError(f"group_by={sweep.group_by} must be a key of every trial; use another run key")
    return configs


def open_data(config: Config) -> DatasetInfo:
    """Open the datasets of a config, all of them checked."""
    _check_made_as_asked(config)
    _check_boards(config)
    hint = config.prepare_command
    splits = ["train"] if config.data_paths_test else ["train", "test"]
    hashes, folders = RowHashes(splits), [*config.data_paths, *config.data_paths_test]
    info = open_datasets(config.data_paths, command_hint=hint, require=splits, hashes=hashes, also=check_kind)
    if config.data_paths_test:
        asked = RowHashes(["test"])
        test = open_datasets(config.data_paths_test, command_hint=hint, require=["test"], hashes=asked, also=check_kind)
        hashes.join(asked)
        for key in ("seq_len", "vocab_size", "spelling"):
            if getattr(info, key) != getattr(test, key):
                rule = f"data_paths has {getattr(info, key)}; they must be equal"
                raise ConfigError(f"data_paths_test={config.data_paths_test} has {key}={getattr(test, key)}, {rule}")
        check_same_identifiers({"data_paths": info, "data_paths_test": test})
        named = max(info, test, key=lambda info: info.num_puzzle_identifiers)
        info = replace(info, num_puzzle_identifiers=named.num_puzzle_identifiers, files=named.files)
    hashes.tell_shared(", ".join(folders))
    return info


def make_missing(config: Config) -> None:
    """Make each dataset that a generated task lacks.

    Raises:
        ValueError: the generator cannot make what is asked for, or one that is there was made otherwise.
    """
    _check_made_as_asked(config)
    if config.generator is not None:
        generate, arguments = KINDS[config.generator.name].generate, made_of(config.generator).model_dump()
        for path in map(as_path, config.data_paths):
            _tell_made(config, path)
            _made_once(path, functools.partial(generate, path, **arguments))


def _tell_made(config: Config, path: Path) -> None:
    """Say that a dataset is made which the user has named, and no task: the name may be a slip."""
    is_own = config.generator is not None and not config.generator.check_existing
    if is_own and not is_dataset(path):
        _LOG.warning(
            "data_paths=%s is not there, so it is made by the task's generator%s", path, meant(path, is_dataset)
        )


def _check_made_as_asked(config: Config) -> None:
    generator = complete(config).generator
    if generator is None or not generator.check_existing:
        return
    for path in filter(is_dataset, map(as_path, config.data_paths)):
        if differing := _differing(generator, path):
            key, wanted, have = differing[0]
            way_out = "set data_paths to a new folder and it is made, or remove the old one"
            raise ConfigError(f"generator.{key}={wanted} but {path} was made with {key}={have}; {way_out}")


def _check_boards(config: Config) -> None:
    """Refuse a dataset of other boards than the task's generator makes: the task's recipe is not for them."""
    if config.generator is None:
        return
    made = made_of(config.generator).model_dump()
    wanted = config.generator.name, *KINDS[config.generator.name].shape_made(made)
    for path in filter(is_dataset, map(as_path, config.data_paths)):
        info = DatasetInfo.load(path)
        names = wanted[0] if info.kind in (None, Tokens.name) else info.kind  # whose tokens may spell anything
        if (have := (names, info.seq_len, info.vocab_size)) != wanted:
            asked = f"task={config.task}" if config.task else f"generator.name={wanted[0]}"
            way_out = "use the task of those puzzles, or generator=null to train on them all the same"
            raise ConfigError(f"data_paths={path} holds {_told(*have)}, and {asked} is for {_told(*wanted)}; {way_out}")


def _told(kind: str, seq_len: int, vocab_size: int) -> str:
    return f"{kind} of {seq_len} cells and {vocab_size} tokens"


def _made_once(path: Path, make: Callable[[], object]) -> None:
    """Make a dataset, or wait for the process that is making it."""
    told = False
    while not is_dataset(path):
        try:
            make()
        except FolderInUse as error:
            if not told:
                _LOG.warning("waiting for the data: %s", error)
            told = True
            time.sleep(_LOOK_EVERY_S)


def _differing(generator: Generator, path: Path) -> list[tuple[str, Any, Any]]:
    """List what the generator wants to be other than it was when a dataset was made: key, wanted, had."""
    info = DatasetInfo.load(path)
    name = info.generator if info.generator in KINDS else generator.name
    have = {"name": name, **info.arguments, "seed": info.seed}
    wanted = {"name": generator.name, **made_of(generator).model_dump(mode="json")}
    given = [(key, value, have[key]) for key, value in wanted.items() if value is not None and key in have]
    return [(key, value, had) for key, value, had in given if value != had]


def tell_own_data(config: Config) -> None:
    """Say that a dataset is the user's own, where the task's generator would have made another one."""
    if config.generator is None or config.generator.check_existing:
        return
    for path in config.data_paths:
        made_by = DatasetInfo.load(as_path(path)).generator
        differing = [f"{key}={had}, not {wanted}" for key, wanted, had in _differing(config.generator, as_path(path))]
        if made_by != config.generator.name or differing:
            told = f"made by {made_by}" + "".join(f"; {text}" for text in differing)
            _LOG.warning("using data_paths=%s as it is (%s)", path, told)
