"""A command made ready for a cluster: which of its files go along, and that nothing it writes is lost there.

A job runs in a copy of a few files, which Ray throws away. What it reads and writes besides must be named so that every
node finds it: by an absolute path on shared storage, or by a URL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from trm_ray.config import Config, ConfigError, load_config, load_sweep, typed
from trm_ray.runs.data import complete, complete_trials
from trm_ray.storage import join

# Small files that a command may read and that go along from the working directory; the rest belongs on shared storage.
_CARRIED = (".yaml", ".json", ".csv", ".txt")
_MOST_BYTES = 64 << 20
_WRITTEN = ("--output", "--save", "--gif")
_LOST = "lies in the job's copy of the working directory, which Ray throws away"
_SHARED = "/mnt/shared (storage that all nodes see) or s3://BUCKET/FOLDER"


@dataclass(frozen=True)
class Submission:
    """A command for a cluster.

    Args:
        words: of the `trm-ray` command.
        files: small files that go along, relative to the working directory.
        results: what to fetch when it has run.
    """

    words: tuple[str, ...]
    files: tuple[str, ...] = ()
    results: str | None = None


def plan_submission(names: Sequence[str], words: Sequence[str], given: Mapping[str, Any]) -> Submission:
    """Check a command's config and places, and complete them.

    Args:
        names: of the command, such as `prepare sudoku`.
        words: what follows them.
        given: the values of its arguments and options, by what the user knows them as (`RUN`, `--output`).

    Raises:
        ConfigError: a value is wrong, or something would be lost or not found in the job.
    """
    if names[0] not in ("train", "sweep"):
        results = next((str(given[key]) for key in _WRITTEN if given.get(key)), _report(names, given))
        return Submission((*names, *words), tuple(_carried(given)), results)
    storage, log_dir, configs = _training(names[0], given)
    if not _lasting(log_dir) and not _lasting(storage or ""):
        raise ConfigError(
            f"ray.storage_path={storage or 'null'} is no shared storage: {log_dir} {_LOST}; use "
            f"ray.storage_path={_SHARED}"
        )
    for config in configs:
        if config.init_from is not None and not _lasting(config.init_from):
            raise ConfigError(
                f"init_from={config.init_from} must be an absolute path or a URL: a job has no copy of it"
            )
    files = tuple(_carried({"--config-name": given["--config-name"]}))
    data = dict(_data(storage, configs))
    kept = [word for word in words if word.partition("=")[0].removeprefix("overrides.") not in data]
    placed = (f"{key}={typed(paths)}" for key, paths in data.items())
    return Submission((*names, *kept, *placed), files, str(join(storage, log_dir)))


def _training(name: str, given: Mapping[str, Any]) -> tuple[str | None, str, list[Config]]:
    """Resolve what is to be trained: where it is stored, its folder there, and the config of every run."""
    words = list(given["OVERRIDES"] or ())
    if name == "sweep":
        sweep = load_sweep(given["--config-name"], words)
        configs = complete_trials(sweep)
        return configs[0].ray.storage_path, sweep.log_dir, configs
    begin = given.get("--init-from")
    config = load_config(given["--config-name"], words, options={} if begin is None else {"init_from": begin})
    return config.ray.storage_path, config.log_dir, [complete(config)]


def _lasting(place: str) -> bool:
    return place.startswith("/") or "://" in place


def _data(storage: str | None, configs: list[Config]) -> Iterator[tuple[str, list[str]]]:
    """Give the keys that put the datasets beside the results, where the job finds or makes them."""
    for key in ("data_paths", "data_paths_test"):
        named = {tuple(getattr(config, key)) for config in configs}
        lost = [path for paths in named for path in paths if not _lasting(path)]
        if not lost:
            continue
        if storage is None or not _lasting(storage):
            raise ConfigError(f"{key}=[{lost[0]}] {_LOST}; use ray.storage_path={_SHARED}, or an absolute path")
        if len(named) > 1:
            raise ConfigError(
                f"{key}: the trials use several datasets, of which {lost[0]} {_LOST}; name absolute paths in the tasks"
            )
        yield key, [str(join(storage, path)) for path in named.pop()]


def _report(names: Sequence[str], given: Mapping[str, Any]) -> str | None:
    """Say where a command that is given no place writes its report: into the run's folder."""
    run = str(given.get("RUN", ""))
    return f"{run}/report" if names[0] in ("evaluate", "dashboard") and not run.endswith(".safetensors") else None


def _carried(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that go along with a command.

    Raises:
        ConfigError: a place is neither that nor one that the job finds.
    """
    for option, place in _places(given):
        if _lasting(place):
            continue
        if place == "-":
            raise ConfigError(f"{option} - is the standard input, which a job has not; name a file")
        if option in (*_WRITTEN, "--json"):  # that of `predict` names no place
            raise ConfigError(f"{option} {place} {_LOST}; use e.g. {option} /mnt/shared/{PurePath(place).name}")
        path = Path(place)
        if not (path.is_file() and place.endswith(_CARRIED)):
            kinds = ", ".join(_CARRIED)
            raise ConfigError(
                f"{option} {place}: a job has no copy of it; name it by an absolute path on storage that all nodes see "
                f"or by a URL (only {kinds} files of the working directory go along)"
            )
        if ".." in path.parts:
            raise ConfigError(
                f"{option} {place} must lie in the working directory to go along with the job; copy it here"
            )
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(
                f"{option} {place} has more than {_MOST_BYTES >> 20} MiB; put it on storage that all nodes see"
            )
        yield path.as_posix()


def _places(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the values that name files or folders, with what they belong to."""
    for option, values in given.items():
        if option == "OVERRIDES":  # keys, of which a command that trains nothing only reads
            continue
        for value in values if isinstance(values, Iterable) and not isinstance(values, str) else [values]:
            text = isinstance(value, str) and ("/" in value or value.endswith(_CARRIED) or value == "-")
            if text or isinstance(value, PurePath):
                yield option, str(value)
