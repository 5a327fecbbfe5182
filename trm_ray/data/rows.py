"""Examples as arrays: what is read, streamed and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from trm_ray.config.errors import printable

PAD_ID = 0
IGNORED_LABEL = -100


class DatasetError(ValueError):
    """Say in one line what is wrong with a dataset folder and how to mend it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class Rows:
    """Hold N examples of L tokens, all int32 and C-contiguous.

    Args:
        inputs: (N, L) token ids.
        labels: (N, L) token ids or `IGNORED_LABEL`; a row of nothing else has no known solution.
        puzzle_identifiers: (N,) rows of the embedding table.
        puzzles: (N,) which puzzle each is an example of; a puzzle belongs to one group.
        groups: (N,) sets of puzzles of which an epoch visits one.
    """

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzles: np.ndarray
    groups: np.ndarray

    @classmethod
    def of_single_puzzles(cls, inputs: np.ndarray, labels: np.ndarray) -> Rows:
        """Hold puzzles (N, L) that have no name, one example each and nothing to do with each other."""
        numbers = np.arange(len(inputs), dtype=np.int32)
        return cls(inputs, labels, np.zeros_like(numbers), numbers, numbers)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: slice | np.ndarray) -> Rows:
        return Rows(*(np.ascontiguousarray(getattr(self, f.name)[chosen]) for f in fields(self)))


@dataclass(frozen=True)
class TokenBatch:
    """Hold inputs, labels (B, L) and puzzle_identifiers (B,), all int32."""

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


def first_puzzles(rows: Rows, count: int | None) -> Rows:
    """Keep the first puzzles, with all their rows; None keeps all."""
    puzzles, first = np.unique(rows.puzzles, return_index=True)
    if count is None or count >= len(puzzles):
        return rows
    return rows[np.flatnonzero(np.isin(rows.puzzles, puzzles[np.argsort(first)[:count]]))]


def shifted(rows: Rows, puzzle: int, group: int) -> Rows:
    """Add to the numbers of puzzles and groups."""
    return replace(rows, puzzles=rows.puzzles + np.int32(puzzle), groups=rows.groups + np.int32(group))


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Join rows, one part after the other."""
    return Rows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)))
