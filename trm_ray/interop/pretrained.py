"""A token embedding out of a safetensors file of others, to begin with."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from trm_ray.config import ArchConfig
from trm_ray.storage import as_path, local_file
from trm_ray.training.state import TokenShape

_SUFFIX = ".safetensors"


def token_embedding(arch: ArchConfig, shape: TokenShape) -> Tensor:
    """Read the table (V, E) that `arch.pretrained_embeddings` names, in float32.

    It is scaled as a whole to the mean square of the one that it stands for, 1 / E: tables differ a hundredfold in it.

    Raises:
        ValueError: there is no such file or tensor, or it is of another vocabulary or width.
    """
    assert arch.pretrained_embeddings is not None
    given = f"arch.pretrained_embeddings={arch.pretrained_embeddings}"
    table, width = _read(arch.pretrained_embeddings, given, shape.vocab_size), arch.embedding_size or arch.hidden_size
    rows, columns = table.shape
    if rows != shape.vocab_size:
        raise ValueError(f"{given} has {rows} tokens, the dataset {shape.vocab_size}; prepare it with that tokenizer")
    if columns != width:
        raise ValueError(f"{given} is {columns} wide and not {width}; use arch.embedding_size={columns}")
    table = table.float()
    return table / (table.square().mean().sqrt() * math.sqrt(width))


def _read(source: str, given: str, num_tokens: int) -> Tensor:
    from safetensors import SafetensorError, safe_open

    path, tensor = _parted(source)
    if not path.is_file():
        raise ValueError(f"{given}: {path} does not exist; name FILE{_SUFFIX} or FILE{_SUFFIX}:TENSOR")
    try:
        with safe_open(local_file(path), framework="pt") as file:
            names = list(file.keys())
            sizes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            tables = [name for name in names if len(sizes[name]) == 2 and sizes[name][0] == num_tokens]
            chosen = [tensor] if tensor else tables
            if len(chosen) == 1 and len(sizes.get(chosen[0], ())) == 2:
                return file.get_tensor(chosen[0])
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{given} cannot be read as safetensors ({error}); name another file") from None
    held = ", ".join(tables or names)[:200]
    lacks = f"no table {tensor}" if tensor else f"{len(tables)} tables of {num_tokens} tokens"
    raise ValueError(f"{given}: the file has {lacks}; name one as FILE{_SUFFIX}:TENSOR, of {held}")


def _parted(source: str) -> tuple[Path, str | None]:
    """Part FILE.safetensors:TENSOR."""
    file, found, tensor = source.rpartition(f"{_SUFFIX}:")
    return (as_path(file + _SUFFIX), tensor) if found else (as_path(source), None)
