"""Find config files, read them with the line of each key, and write them."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trm_ray.config.errors import ConfigError, did_you_mean, show
from trm_ray.config.keys import NAME, NAME_RULE, Settings, flatten
from trm_ray.config.text import read_text
from trm_ray.config.values import UNREADABLE, dump_yaml, key_of, parse_yaml
from trm_ray.storage import as_path

_LOG = logging.getLogger("trm_ray")
FORMAT_VERSION = 1  # of the YAML that `to_yaml` writes
MOST_BYTES = 1 << 20  # of a config that goes along with a job
OWN_CONFIGS = Path("configs")  # the user's, in the working directory; they go before the shipped ones


@dataclass(frozen=True)
class Entry:
    """Hold a value and where it stands (`file:line`; empty when no file says it)."""

    value: Any
    origin: str = ""


_KINDS = {  # kind of file: its folder below configs/, the key that names it, how it is used
    "scenario": (".", "config_name", "trm-ray train --config-name {}"),
    "task": ("task", "task", "trm-ray train --config-name SCENARIO task={}"),
    "sweep": ("sweep", "config_name", "trm-ray sweep --config-name {}"),
}


def find_file(kind: str, name: str, config_dir: str | os.PathLike[str] | None) -> Path:
    """Return the file of a scenario, task or sweep, by name or by path.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    if name.endswith(".yaml") and (path := as_path(name)).is_file():
        return path
    label = f"{_KINDS[kind][1]}={show(name)}"
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{label} must be {NAME_RULE}, or the path of an existing .yaml file")
    for folder in _folders(kind, config_dir):
        path = folder / f"{name.removesuffix('.yaml')}.yaml"
        if path.is_file():
            return path
    raise ConfigError(f"{label} must name an existing {kind}{_instead(kind, name, config_dir)}")


def config_names(kind: str = "scenario", config_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """List the names of the scenarios, tasks or sweeps that can be loaded."""
    files = [path for folder in _folders(kind, config_dir) for path in folder.glob("*.yaml") if is_config(path)]
    return sorted({path.stem for path in files})


def is_config(path: Path) -> bool:
    """Tell a file from what else may have the name of one: a folder, a pipe, a dead link, a Mac's `._x.yaml`."""
    return path.is_file() and not path.name.startswith(".")


def find_configs(folder: Path) -> list[Path]:
    """Find the configs below a folder that can be carried elsewhere; tell of those that cannot in one line."""
    found = sorted(path for path in folder.rglob("*.yaml") if not path.is_dir() and not path.name.startswith("."))
    carried = [
        path for path in found if is_config(path) and os.access(path, os.R_OK) and path.stat().st_size <= MOST_BYTES
    ]
    passed = sorted(set(found) - set(carried))
    if passed:
        more = f" and {len(passed) - 3} more" if len(passed) > 3 else ""
        rule = f"a config is a readable file of up to {MOST_BYTES >> 20} MiB"
        _LOG.warning("left behind: %s%s (%s)", ", ".join(map(str, passed[:3])), more, rule)
    return carried


def _folders(kind: str, config_dir: str | os.PathLike[str] | None) -> list[Path]:
    """List where a kind is looked for: the folder given, ./configs, those that came with the package."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"config_dir={config_dir} must be an existing folder; the default is ./configs")
    given = [] if config_dir is None else [Path(config_dir)]
    return [folder / _KINDS[kind][0] for folder in (*given, OWN_CONFIGS, shipped_configs())]


def shipped_configs() -> Path:
    """Return the folder of the configs that came with the package."""
    package = Path(__file__).resolve().parents[1]
    installed, checkout = package / "configs", package.parent / "configs"
    return installed if installed.is_dir() else checkout


def _instead(kind: str, name: str, config_dir: str | os.PathLike[str] | None) -> str:
    for other, (_, _, command) in _KINDS.items():
        if name in config_names(other, config_dir):
            return f", but it is a {other}; use `{command.format(name)}`"
    names = config_names(kind, config_dir)
    return f"; {did_you_mean(name, names)} (there are {', '.join(names)})"


def read_file(path: Path) -> dict[str, Entry]:
    """Return a file's values by dotted key.

    Raises:
        ConfigError: it is no YAML mapping, gives a key twice, or is of another format version.
    """
    values, lines = _parse_file(path)
    version = values.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        rule = f"format_version={show(version)} must be {FORMAT_VERSION}"
        raise ConfigError(f"{path}: {rule}; use the trm-ray that wrote it")
    return {
        key: Entry(value, f"{path}:{lines[key]}" if key in lines else str(path))
        for key, value in flatten(values).items()
    }


def _parse_file(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = read_text(path)
        values, node = parse_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name a readable .yaml file") from None
    except (yaml.YAMLError, *UNREADABLE) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{where}: must be valid YAML: {problem}") from None
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}:1: must be lines of `key: value`, not {show(values)}")
    return values or {}, _lines(path, node)


def _lines(path: Path, node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Return the line of each key, with dots for those inside others; PyYAML would let a second one win."""
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = f"{prefix}{key_of(key)}", key.start_mark.line + 1
        if name in lines:
            raise ConfigError(f"{path}:{line}: `{name}` is given twice; remove one")
        lines |= {name: line} | _lines(path, value, f"{name}.")
    return lines


def to_yaml(config: Settings) -> str:
    """Write all resolved values as YAML that `load_config`, `config_from_run` or `load_sweep` reads back."""
    return dump_yaml({"format_version": FORMAT_VERSION, **config.model_dump(mode="json")})
