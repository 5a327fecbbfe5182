"""Training rows as an endless stream: shuffled every epoch, augmented on the way, never on disk.

Batch k is a pure function of (seed, k) and of the set of rows, whoever reads them in whatever order: a resumed run asks
for the batch that it needs next and gets it, and workers who take their slices of it see together what one sees alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from trm_ray.data.counters import counter_draws
from trm_ray.data.format import DatasetInfo
from trm_ray.data.rows import DatasetError, Rows, TokenBatch

# Splits up to this size, as int32 tokens, every worker holds whole: 3.3 million 9×9 boards.
MAX_BYTES_IN_MEMORY = 2**31
# Rows of a larger split that are shuffled together: 170 MB at 81 tokens.
SHUFFLE_ROWS = 2**18

_HASHED_ROWS = 256  # at once: few enough to stay in the cache
_SALT_PICK = np.uint64(0xD4)  # so that the puzzle picked says nothing of its augmentation


class Symmetry(Protocol):
    """Transform puzzles into equivalent ones."""

    def augment(
        self, rows: TokenBatch, *, seed: int, epoch: int | np.ndarray, puzzle_keys: np.ndarray, row_keys: np.ndarray
    ) -> TokenBatch:
        """Transform each row by a symmetry that (seed, epoch, its puzzle, itself) alone decide.

        Args:
            rows: left as they are.
            epoch: one for all rows, or (B,): a batch may cross from one epoch into the next.
            puzzle_keys: (B,) a uint64 that names each row's puzzle; its examples are to be transformed alike.
            row_keys: (B,) a uint64 that names each row (`stream.row_keys`).

        Returns:
            New rows of the same shapes and dtypes.
        """

    def num_variants(self, puzzle_identifiers: np.ndarray) -> np.ndarray:
        """Say in how many forms (B,) the model knows each puzzle, itself included: what an evaluation may vote over."""

    def variant(self, rows: TokenBatch, number: np.ndarray) -> TokenBatch:
        """Bring each row into the form of that number (B,); 0 is the row as it is."""


@dataclass(frozen=True)
class Shard:
    """A worker's own part of a split that does not fit into memory.

    Args:
        read: gives its rows in pieces of up to `SHUFFLE_ROWS`, shuffled one by one; the same pieces at every call.
        num_rows: how many those are.
    """

    read: Callable[[], Iterable[Rows]]
    num_rows: int


def fits_in_memory(info: DatasetInfo, split: str) -> bool:
    """Decide whether every worker holds the whole split.

    Raises:
        DatasetError: it does not fit, and its groups hold several puzzles, of which only a whole split lets one pick.
    """
    described = info.split(split)
    needed = 2 * 4 * info.seq_len * described.rows
    if needed <= MAX_BYTES_IN_MEMORY:
        return True
    if described.rows > round(described.groups * described.mean_puzzle_examples):
        size, most = f"{needed / 2**30:.1f} GiB", f"{MAX_BYTES_IN_MEMORY / 2**30:g} GiB"
        way_out = "leave stored augmentations out, or use ray.num_workers=0"
        raise DatasetError(f"the {split} split takes {size}; beyond {most} a group must hold one puzzle: {way_out}")
    return False


def own_slice(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Say where a worker's rows of a batch begin, and how many they are."""
    size, more = divmod(num_rows, world_size)
    return rank * size + min(rank, more), size + (rank < more)


class RowStream:
    """The batches of one worker.

    An epoch visits every group once, in random order, picks one of its puzzles and takes all of that one's examples.

    Args:
        source: all rows, of whose batches the worker takes its slice, or its own shard, which it shuffles for itself.
        batch_size: rows of a batch over all workers.
        symmetry: augmentation of the puzzles, or None.
        rank: which of `world_size` slices of each batch is the worker's; where they cannot be equal, the first ones
            hold a row more (as `torch.tensor_split`).
    """

    def __init__(
        self,
        source: Rows | Shard,
        *,
        batch_size: int,
        seed: int,
        symmetry: Symmetry | None,
        rank: int = 0,
        world_size: int = 1,
    ):
        assert batch_size >= world_size, "every worker takes a row"
        first, self.slice_size = own_slice(batch_size, rank, world_size)
        self.seed, self.symmetry = seed, symmetry
        self._chunks: Callable[[], Iterable[_Chunk]]
        if isinstance(source, Shard):
            self._chunks, self.num_rows = (lambda: map(_Chunk.of, source.read())), source.num_rows
            self.batch_size, self._offset = self.slice_size, 0
        else:
            chunk = _Chunk.of(source)
            self._chunks, self.num_rows = (lambda: [chunk]), chunk.num_visited
            self.batch_size, self._offset = batch_size, first

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """Yield the batches from number `start` on, for ever; epochs follow each other within a batch."""
        rows = _Cursor(self._visits(start * self.batch_size + self._offset))
        while True:
            yield self._batch(list(rows.take(self.slice_size)))
            rows.skip(self.batch_size - self.slice_size)

    def _visits(self, first: int) -> Iterator[_Visits]:
        """Yield the rows of the endless stream from number `first` on, a chunk of an epoch at a time."""
        epoch, skip = divmod(first, self.num_rows)
        for number in itertools.count(epoch):
            for position, chunk in enumerate(self._chunks()):
                order = chunk.order(self.seed, number, position)
                yield _Visits(number, chunk, order[skip:])
                skip = max(0, skip - len(order))

    def _batch(self, parts: list[_Visits]) -> TokenBatch:
        def gathered(name: str) -> np.ndarray:
            return _joined([getattr(part.chunk.rows, name)[part.rows] for part in parts]).astype(np.int32, copy=False)

        batch = TokenBatch(gathered("inputs"), gathered("labels"), gathered("puzzle_identifiers"))
        if self.symmetry is None:
            return batch
        return self.symmetry.augment(
            batch,
            seed=self.seed,
            epoch=np.repeat([part.epoch for part in parts], [len(part.rows) for part in parts]),
            puzzle_keys=_joined([part.chunk.puzzle_keys[part.rows] for part in parts]),
            row_keys=_joined([part.chunk.keys[part.rows] for part in parts]),
        )


@dataclass(frozen=True)
class _Visits:
    """Rows of a chunk, by their places in it, in the order in which an epoch visits them."""

    epoch: int
    chunk: _Chunk
    rows: np.ndarray


class _Cursor:
    """Cut what comes in pieces of any length into pieces of the length asked for."""

    def __init__(self, pieces: Iterator[_Visits]):
        self._pieces, self._left = pieces, next(pieces)

    def take(self, count: int) -> Iterator[_Visits]:
        while count:
            if len(self._left.rows) == 0:
                self._left = next(self._pieces)
            piece = self._left
            taken = piece.rows[:count]
            self._left = _Visits(piece.epoch, piece.chunk, piece.rows[count:])
            count -= len(taken)
            yield _Visits(piece.epoch, piece.chunk, taken)

    def skip(self, count: int) -> None:
        for _ in self.take(count):
            pass  # rows are only gathered for a batch


@dataclass(frozen=True)
class _Chunk:
    """Rows that are shuffled together, sorted by what groups, puzzles and rows hold, wherever they stood.

    Args:
        rows: with tokens of the smallest type that holds them, a quarter of int32, for they stay for the whole run.
        keys: (N,) what names each row.
        puzzle_keys: (N,) what names each row's puzzle.
        group_keys: (G,) what names each group.
        starts: (P,) the first row of each puzzle.
        first_puzzle: (G,) the first puzzle of each group.
        num_puzzles: (G,) how many it holds.
        num_examples: (G,) how many rows each of those has.
    """

    rows: Rows
    keys: np.ndarray
    puzzle_keys: np.ndarray
    group_keys: np.ndarray
    starts: np.ndarray
    first_puzzle: np.ndarray
    num_puzzles: np.ndarray
    num_examples: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> _Chunk:
        keys = row_keys(rows)
        puzzle_keys, group_keys = _sums(keys, rows.puzzles), _sums(keys, rows.groups)
        # The numbers part what holds the same, and only that.
        order = np.lexsort((keys, rows.puzzles, puzzle_keys, rows.groups, group_keys))
        rows = replace(rows, inputs=_smallest(rows.inputs), labels=_smallest(rows.labels))[order]
        keys, puzzle_keys, group_keys = keys[order], puzzle_keys[order], group_keys[order]
        starts, group_starts = _starts(rows.puzzles), _starts(rows.groups)
        first_puzzle = np.searchsorted(starts, group_starts)
        return cls(
            rows=rows,
            keys=keys,
            puzzle_keys=puzzle_keys,
            group_keys=group_keys[group_starts],
            starts=starts,
            first_puzzle=first_puzzle,
            num_puzzles=np.diff(first_puzzle, append=len(starts)),
            num_examples=np.diff(starts, append=len(rows))[first_puzzle],
        )

    @property
    def num_visited(self) -> int:
        """Count the rows that an epoch visits."""
        return int(self.num_examples.sum())

    def order(self, seed: int, epoch: int, position: int) -> np.ndarray:
        """Shuffle the groups and pick a puzzle of each: the rows that an epoch visits, by their places."""
        groups = np.random.default_rng([seed, epoch, position]).permutation(len(self.group_keys))
        draws = counter_draws(seed, epoch, self.group_keys ^ _SALT_PICK, 1)[:, 0]
        picked = self.first_puzzle + (draws % self.num_puzzles.astype(np.uint64)).astype(np.int64)
        first, lengths = self.starts[picked][groups], self.num_examples[groups]
        ends = np.cumsum(lengths)
        return np.repeat(first - (ends - lengths), lengths) + np.arange(ends[-1])


def _smallest(tokens: np.ndarray) -> np.ndarray:
    """Store whole numbers in as few bytes as hold them all."""
    low, high = tokens.min(), tokens.max()
    kinds = (np.iinfo(kind) for kind in (np.uint8, np.int8, np.uint16, np.int16, np.int32))
    return tokens.astype(next(kind.dtype for kind in kinds if kind.min <= low and high <= kind.max), copy=False)


def row_keys(rows: Rows) -> np.ndarray:
    """Name each row by a 64-bit hash of all that it holds, so that its place in a file or a shard does not matter."""
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


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def test_batches(rows: Rows, batch_size: int, rank: int, world_size: int) -> Iterator[TokenBatch]:
    """Yield one worker's share of the test rows, every row exactly once over all workers."""
    share = np.arange(rank, len(rows), world_size)
    for begin in range(0, len(share), batch_size):
        picked = share[begin : begin + batch_size]
        yield TokenBatch(rows.inputs[picked], rows.labels[picked], rows.puzzle_identifiers[picked])
