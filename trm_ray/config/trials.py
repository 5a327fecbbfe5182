"""What the trials of a sweep are called, and so their folders."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping
from typing import Any

from trm_ray.config.run import Config, flat
from trm_ray.config.sweep import SweepConfig

# No file system takes more than 255 bytes, and Tune, checkpoints and copies put something around a name.
MOST_BYTES = 180


def trial_name(sweep: SweepConfig, config: Config, sampled: Mapping[str, Any]) -> str:
    """Name a trial by what sets it apart: scenario, seed and the keys of the search space, cut where that is long.

    Args:
        sampled: values of the keys that are drawn, by dotted key.
    """
    apart = _apart(sweep, config, sampled)
    parts = (f"{key}={_short(value) if isinstance(value, float) else value}" for key, value in apart)
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "_", "-".join([f"{config.config_name}-seed{config.seed}", *parts]))
    return name if len(name) <= MOST_BYTES else _marked(name, _exact(sweep, config, sampled))


def _short(value: float) -> str:
    """Write a number without the plus of an exponent, which no name of a folder keeps."""
    return f"{value:.4g}".replace("e+0", "e").replace("e+", "e")


def _apart(sweep: SweepConfig, config: Config, sampled: Mapping[str, Any]) -> list[tuple[str, Any]]:
    values = flat(config)
    return [(key, sampled.get(key, values[key])) for key in sweep.search_space]


def _exact(sweep: SweepConfig, config: Config, sampled: Mapping[str, Any]) -> str:
    return repr((config.config_name, config.seed, _apart(sweep, config, sampled)))


def _marked(name: str, exact: str) -> str:
    """Put the mark of all values behind as much of a name as there is room for."""
    mark = hashlib.sha256(exact.encode()).hexdigest()[:8]
    return f"{name[: MOST_BYTES - len(mark) - 1]}-{mark}"


class TrialNames:
    """Name the trials of a sweep so that no two share a folder; asked in the same order, it gives the same names."""

    def __init__(self, sweep: SweepConfig):
        self._sweep = sweep
        self._names: dict[Hashable, str] = {}

    def of(self, trial: Hashable, config: Config, sampled: Mapping[str, Any]) -> str:
        """Return a trial's name; values that only differ in what a name leaves out get a mark.

        Args:
            trial: tells one trial from another, also from one of the same values.
        """
        if trial not in self._names:
            self._names[trial] = self._free_name(config, sampled)
        return self._names[trial]

    def _free_name(self, config: Config, sampled: Mapping[str, Any]) -> str:
        name = plain = trial_name(self._sweep, config, sampled)
        taken, again = set(self._names.values()), 0
        while name in taken:
            name = _marked(plain, f"{_exact(self._sweep, config, sampled)} {again}")
            again += 1
        return name
