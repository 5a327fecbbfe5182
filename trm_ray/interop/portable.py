"""A model in one safetensors file: weights by our names, and as metadata all that is needed to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from trm_ray.config import Config, config_from_values, load_yaml, to_yaml
from trm_ray.interop.original import contradictions, facts_of
from trm_ray.storage import local_file, made_elsewhere
from trm_ray.training.checkpoint import find_checkpoint, load_checkpoint, load_identifiers, load_tokenizer
from trm_ray.training.state import TokenShape

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
    """Write a checkpoint's `model` with its config, token shape, step, identifiers and tokenizer."""
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
    if state.get("tokenizer") is not None:
        metadata["tokenizer"] = state["tokenizer"].decode()
    with made_elsewhere(path) as temporary:
        save_file(state["model"], temporary, metadata)


def read_portable(path: Path) -> Portable:
    """Read a safetensors file, memory-mapped.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    from safetensors import SafetensorError, safe_open

    readable = local_file(path)
    try:
        with safe_open(readable, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); write it anew") from None
    if "trm_ray_format_version" not in metadata:
        return Portable(tensors, None, None)
    identifiers = metadata.get("identifiers")
    return Portable(tensors, _state(path, metadata, tensors), identifiers.encode() if identifiers else None)


def read_model(path: Path) -> tuple[Path, dict[str, Any], bytes | None]:
    """Read a run, a checkpoint's folder or a safetensors file of ours, memory-mapped.

    Returns:
        What was read, its state as `load_checkpoint` returns it, with the tokenizer.json that lies beside it as
        `tokenizer`, and its identifiers.json if it has one.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    if not path.exists():
        kinds = f"the folder of a run that has saved a checkpoint, a checkpoint's folder, or a {SUFFIX} file"
        raise ValueError(f"{path} does not exist; name {kinds}")
    if not path.is_file():
        folder = find_checkpoint(path)
        state = {**load_checkpoint(folder, mapped=True), "tokenizer": load_tokenizer(folder)}
        return folder, state, load_identifiers(folder)
    portable = read_portable(path) if path.suffix == SUFFIX else None
    if portable is None or portable.state is None:
        raise ValueError(f"{path} says nothing of its architecture; make a run of it: trm-ray import-checkpoint {path}")
    return path, portable.state, portable.identifiers


def _state(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    if (version := metadata["trm_ray_format_version"]) != str(FORMAT_VERSION):
        raise ValueError(f"{path} has trm_ray_format_version={version}, this trm-ray reads {FORMAT_VERSION}")
    try:
        # A few lines of aliases inside aliases would spell more than any memory holds; we write none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(metadata["config"])):
            raise ValueError("its config has YAML aliases")
        config = load_yaml(metadata["config"])
        del config["format_version"]
        shape, step = json.loads(metadata["shape"]), int(metadata["step"])
    except Exception as error:  # somebody else's text may break every rule
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} has damaged metadata ({type(error).__name__}: {reason}); write it anew") from error
    tokenizer = metadata["tokenizer"].encode() if "tokenizer" in metadata else None
    return {"config": config, "shape": shape, "step": step, "model": tensors, "ema": None, "tokenizer": tokenizer}


def _are_weights(held: Any) -> bool:
    return isinstance(held, dict) and all(isinstance(name, str) and _is_weight(value) for name, value in held.items())


def _is_weight(value: Any) -> bool:
    """Tell whether this is a tensor whose values lie in memory one by one, which loading takes as it is."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.layout == torch.strided and not value.is_meta


def described(state: Mapping[str, Any], source: str | Path) -> tuple[Config, TokenShape]:
    """Read which network a state is of, and hold that against its weights before anything of that size is built.

    Args:
        state: as `load_checkpoint` or `read_model` returns it.

    Raises:
        ValueError: something is missing or of the wrong type, or the weights are another network's.
    """
    config, model, given = config_from_values(state.get("config"), str(source)), state.get("model"), state.get("shape")
    if not isinstance(model, dict) or not _are_weights(model) or not _are_weights(state.get("ema") or {}):
        raise ValueError(f"{source} holds no weights by name; name a checkpoint that trm-ray wrote")
    values = given if isinstance(given, dict) else {}
    numbers: dict[str, Any] = {field.name: values.get(field.name) for field in fields(TokenShape)}
    separator = numbers.pop("separator")  # of a text alone
    if not all(type(number) is int and 1 <= number < 2**31 for number in numbers.values()):
        raise ValueError(f"{source} has shape={given!s:.80}; it must hold {', '.join(numbers)}, each at least 1")
    if separator is not None and not (type(separator) is int and 0 <= separator < numbers["vocab_size"]):
        raise ValueError(f"{source} has shape={given!s:.80}; its separator must be one of its tokens")
    shape, facts = TokenShape(**numbers, separator=separator), facts_of(model)
    wrong = contradictions(config.arch, shape, facts)
    if config.arch.L_layers != facts.L_layers:
        wrong.append(f"L_layers={config.arch.L_layers} but there are {facts.L_layers}")
    if wrong:
        raise ValueError(f"{source} contradicts itself: {'; '.join(wrong)}; name an intact checkpoint")
    return config, shape
