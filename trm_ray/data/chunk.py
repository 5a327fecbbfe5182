"""Rows that are shuffled together, and what names them wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from trm_ray.data.counters import counter_draws
from trm_ray.data.rows import Rows

_HASHED_ROWS = 256  # at once: few enough to stay in the cache
_SALT_PICK = np.uint64(0xD4)  # so that the puzzle picked says nothing of its augmentation


@dataclass(frozen=True)
class NamedRows:
    """Hold rows (N, L), their tokens of any whole type, with what their augmentation is drawn from.

    Args:
        keys: (N,) what names each row.
        puzzle_keys: (N,) what names each row's puzzle.
    """

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    keys: np.ndarray
    puzzle_keys: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, places: np.ndarray) -> NamedRows:
        return NamedRows(*(getattr(self, field.name)[places] for field in fields(self)))


@dataclass(frozen=True)
class Chunk:
    """Rows that are shuffled together, sorted by what groups, puzzles and rows hold, wherever they stood.

    Args:
        group_keys: (G,) what names each group.
        starts: (P,) the first row of each puzzle.
        first_puzzle: (G,) the first puzzle of each group.
        num_puzzles: (G,) how many it holds.
        num_examples: (G,) how many rows each of those has.
    """

    rows: NamedRows
    group_keys: np.ndarray
    starts: np.ndarray
    first_puzzle: np.ndarray
    num_puzzles: np.ndarray
    num_examples: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> Chunk:
        """Sort rows; their tokens may be of any whole type."""
        keys = row_keys(rows)
        puzzle_keys, group_keys = _sums(keys, rows.puzzles), _sums(keys, rows.groups)
        # The numbers part what holds the same, and only that.
        order = np.lexsort((keys, rows.puzzles, puzzle_keys, rows.groups, group_keys))
        named = NamedRows(rows.inputs, rows.labels, rows.puzzle_identifiers, keys, puzzle_keys)[order]
        starts, group_starts = _starts(rows.puzzles[order]), _starts(rows.groups[order])
        first_puzzle = np.searchsorted(starts, group_starts)
        return cls(
            rows=named,
            group_keys=group_keys[order[group_starts]],
            starts=starts,
            first_puzzle=first_puzzle,
            num_puzzles=np.diff(first_puzzle, append=len(starts)),
            num_examples=np.diff(starts, append=len(named))[first_puzzle],
        )

    @property
    def num_visited(self) -> int:
        """Count the rows that an epoch visits."""
        return int(self.num_examples.sum())

    def order(self, seed: int, epoch: int, position: int = 0) -> np.ndarray:
        """Shuffle the groups and pick a puzzle of each: the rows that an epoch visits, by their places.

        Args:
            position: of the chunk in the epoch.
        """
        groups = np.random.default_rng([seed, epoch, position]).permutation(len(self.group_keys))
        draws = counter_draws(seed, epoch, self.group_keys ^ _SALT_PICK, 1)[:, 0]
        picked = self.first_puzzle + (draws % self.num_puzzles.astype(np.uint64)).astype(np.int64)
        first, lengths = self.starts[picked][groups], self.num_examples[groups]
        ends = np.cumsum(lengths)
        return np.repeat(first - (ends - lengths), lengths) + np.arange(ends[-1])


def narrowed(rows: Rows, inputs: np.dtype, labels: np.dtype) -> Rows:
    """Store tokens in fewer bytes than the format's four."""
    return replace(rows, inputs=rows.inputs.astype(inputs, copy=False), labels=rows.labels.astype(labels, copy=False))


def smallest_type(low: int, high: int) -> np.dtype:
    """Choose the type of the fewest bytes that holds whole numbers from `low` to `high`."""
    kinds = (np.iinfo(kind) for kind in (np.uint8, np.int8, np.uint16, np.int16, np.int32))
    return next(kind.dtype for kind in kinds if kind.min <= low and high <= kind.max)


def row_keys(rows: Rows) -> np.ndarray:
    """Name each row by a 64-bit hash of all that it holds, so that its place in a file does not matter."""
    factors = counter_draws(0, 0, np.arange(2 * rows.inputs.shape[1] + 1), 1)[:, 0]
    keys = np.empty(len(rows), np.uint64)
    for begin in range(0, len(rows), _HASHED_ROWS):
        part = slice(begin, begin + _HASHED_ROWS)
        columns = [rows.inputs[part], rows.labels[part], rows.puzzle_identifiers[part, None]]
        keys[part] = np.concatenate(columns, axis=1).astype(np.uint64) @ factors  # wraps around, as it should
    return keys


def _sums(keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Name what each row (N,) belongs to by the sum of its rows' keys, which wraps around."""
    order = np.argsort(numbers, kind="stable")
    starts = _starts(numbers[order])
    sums = np.empty_like(keys)
    sums[order] = np.repeat(np.add.reduceat(keys[order], starts), np.diff(starts, append=len(keys)))
    return sums


def _starts(numbers: np.ndarray) -> np.ndarray:
    """Find where runs of equal numbers begin."""
    return np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
