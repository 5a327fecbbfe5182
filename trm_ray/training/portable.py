"""A model in one safetensors file: weights by our names, and as metadata all that is needed to use them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from trm_ray.config import Config, to_yaml
from trm_ray.training.checkpoint import find_checkpoint, load_checkpoint, load_identifiers

FORMAT_VERSION = 1
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Portable:
    """A safetensors file's content.

    state: as `load_checkpoint` returns it, None where the metadata is not ours. identifiers: an identifiers.json.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any] | None
    identifiers: bytes | None


def write_portable(path: Path, state: dict[str, Any], identifiers: bytes | None) -> None:
    """Write a checkpoint's `model` with its config, token shape, step and identifiers."""
    from safetensors.torch import save_file

    metadata = {
        "format": "pt",  # what other readers look for
        "trm_ray_format_version": str(FORMAT_VERSION),
        "config": to_yaml(Config.model_validate(state["config"])),
        "shape": json.dumps(state["shape"]),
        "step": str(state["step"]),
    }
    if identifiers is not None:
        metadata["identifiers"] = identifiers.decode()
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(state["model"], temporary, metadata)
    temporary.replace(path)


def read_portable(path: Path) -> Portable:
    """Read a safetensors file, memory-mapped.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); write it anew") from None
    if "trm_ray_format_version" not in metadata:
        return Portable(tensors, None, None)
    identifiers = metadata.get("identifiers")
    return Portable(tensors, _state(path, metadata, tensors), identifiers.encode() if identifiers else None)


def read_model(path: Path) -> tuple[Path, dict[str, Any], bytes | None]:
    """Read a run, a checkpoint's folder or a safetensors file of ours.

    Returns:
        What was read, its state as `load_checkpoint` returns it, and its identifiers.json if it has one.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    if not path.is_file():
        folder = find_checkpoint(path)
        return folder, load_checkpoint(folder), load_identifiers(folder)
    portable = read_portable(path) if path.suffix == SUFFIX else None
    if portable is None or portable.state is None:
        raise ValueError(f"{path} says nothing of its architecture; make a run of it: trm-ray import-checkpoint {path}")
    return path, portable.state, portable.identifiers


def _state(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    if (version := metadata["trm_ray_format_version"]) != str(FORMAT_VERSION):
        raise ValueError(f"{path} has trm_ray_format_version={version}, this trm-ray reads {FORMAT_VERSION}")
    config = yaml.safe_load(metadata["config"])
    del config["format_version"]
    return {
        "config": config,
        "shape": json.loads(metadata["shape"]),
        "step": int(metadata["step"]),
        "model": tensors,
        "ema": None,
    }
