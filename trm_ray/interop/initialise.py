"""Begin a run with another's weights: which must agree, and whose puzzle vectors go where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trm_ray.config import ArchConfig
from trm_ray.training.state import TokenShape

# They change how long a puzzle is worked on, or what precision and initial weights are taken, not the network.
_FREE_KEYS = {
    *("halt_max_steps", "halt_exploration_prob", "forward_dtype", "residual_init_scale"),
    *("pretrained_embeddings", "freeze_embeddings"),
}


def differing_keys(have: ArchConfig, have_shape: TokenShape, want: ArchConfig, want_shape: TokenShape) -> list[str]:
    """List the keys in which two networks differ, each with both values, in words."""
    pairs = [(f"arch.{key}", getattr(have, key), getattr(want, key)) for key in telling_keys(want)]
    pairs.append(("vocab_size", have_shape.vocab_size, want_shape.vocab_size))
    if want.mixer == "mlp" or want.pos_encodings == "learned":  # else weights know no positions
        pairs.append(("seq_len", have_shape.seq_len, want_shape.seq_len))
    return [f"{key}={there} there and {here} here" for key, there, here in pairs if there != here]


def telling_keys(arch: ArchConfig) -> list[str]:
    """Name the keys that play a part in an architecture."""
    idle = set(_FREE_KEYS)
    idle |= {"num_heads", "rope_theta"} if arch.mixer == "mlp" else {"mixer_norm"}
    idle |= set() if arch.pos_encodings == "rope" else {"rope_theta"}
    idle |= set() if arch.puzzle_emb_ndim else {"puzzle_emb_len"}
    idle |= set() if arch.causal else {"document_mask"}
    return [key for key in ArchConfig.model_fields if key not in idle]


def carry_over_rows(
    table: Tensor, names: Sequence[str] | None, wanted: Sequence[str] | None, num_rows: int
) -> tuple[Tensor, str]:
    """Give each puzzle of a new table its vector from another: by name, else the mean of all vectors.

    Args:
        table: (N, ndim).
        names: of its N identifiers; None if nobody knows them.
        wanted: names of the new table's identifiers; None if nobody knows them.
        num_rows: of the new table.

    Returns:
        The new table (num_rows, ndim), the given one where nothing changes, and in words what became of the vectors.
        Where either map is unknown, tables of one size are taken to be of the same puzzles, and the words say so.
    """
    unknown = names is None or wanted is None
    if (names == wanted or unknown) and len(table) == num_rows:
        assumed = "taken to be of the same puzzles in the same order, as no identifiers.json tells"
        return table, _kept(num_rows, num_rows) + (f", {assumed}" if unknown and num_rows > 1 else "")
    if names is None or wanted is None:
        return table.mean(0).repeat(num_rows, 1), _kept(0, num_rows)
    rows = {name: row for row, name in enumerate(names)}
    pairs = [(to, rows[name]) for to, name in enumerate(wanted) if name in rows]
    targets, sources = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    new = table.mean(0).repeat(num_rows, 1)
    new[targets] = table[sources]
    return new, _kept(len(pairs), num_rows)


def _kept(kept: int, num_rows: int) -> str:
    return f"{kept} of {num_rows} puzzle vectors" + (", the mean for the rest" if kept < num_rows else "")


def averaged(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take a checkpoint's averaged weights where it has them, its weights elsewhere."""
    return {**state["model"], **(state["ema"] or {})}
