"""Training rows as an endless stream: shuffled every epoch, augmented on the way, never on disk.

Batch k is a pure function of (seed, k) and of the dataset, whoever reads it: a resumed run asks for the batch that it
needs next and gets it, and workers who take their slices of it see together what one sees alone. Of a split that is
held in memory only the set of rows counts, not in what order or files they lie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trm_ray.data.chunk import Chunk, NamedRows, narrowed, smallest_type
from trm_ray.data.format import DatasetInfo
from trm_ray.data.rows import DatasetError, Rows, TokenBatch
from trm_ray.data.share import Share, Split, Visits


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
            row_keys: (B,) a uint64 that names each row (`chunk.row_keys`).

        Returns:
            New rows of the same shapes and dtypes.
        """

    def num_variants(self, puzzle_identifiers: np.ndarray) -> np.ndarray:
        """Say in how many forms (B,) the model knows each puzzle, itself included: what an evaluation may vote over."""

    def variant(self, rows: TokenBatch, number: np.ndarray) -> TokenBatch:
        """Bring each row into the form of that number (B,); 0 is the row as it is."""


def fits_in_memory(info: DatasetInfo, split: str, memory_gib: float) -> bool:
    """Decide whether every worker holds the whole split.

    Args:
        memory_gib: what it may take as int32 tokens (`data_memory_gib`).

    Raises:
        DatasetError: it does not fit, and its groups hold several puzzles, of which only a whole split lets one pick.
    """
    described = info.split(split)
    needed = 2 * 4 * info.seq_len * described.rows
    if needed <= memory_gib * 2**30:
        return True
    if described.rows > round(described.groups * described.mean_puzzle_examples):
        size, enough = f"{needed / 2**30:.1f} GiB", math.ceil(needed / 2**30)
        rule = f"beyond data_memory_gib={memory_gib:g} a group must hold one puzzle"
        way_out = f"leave stored augmentations out, or use data_memory_gib={enough} if every worker has the memory"
        raise DatasetError(f"the {split} split takes {size}; {rule}: {way_out}")
    return False


@dataclass(frozen=True)
class HeldSplit:
    """A split in memory, shuffled as a whole."""

    chunk: Chunk

    @classmethod
    def of(cls, rows: Rows) -> HeldSplit:
        """Hold rows in a quarter of the format's bytes where their tokens allow it: they stay for the whole run."""
        types = (smallest_type(tokens.min(), tokens.max()) for tokens in (rows.inputs, rows.labels))
        return cls(Chunk.of(narrowed(rows, *types)))

    @property
    def num_rows(self) -> int:
        """Count the rows that an epoch visits."""
        return self.chunk.num_visited

    def visits(self, seed: int, share: Share, start: int) -> Iterator[Visits]:
        """See `Split.visits`."""
        for epoch in itertools.count(start * share.batch_size // self.num_rows):
            order = self.chunk.order(seed, epoch)
            yield Visits(self.chunk.rows, order[share.places(epoch * self.num_rows, len(order), start)])


class RowStream:
    """The batches of one worker.

    An epoch visits every group once, in random order, picks one of its puzzles and takes all of that one's examples.

    Args:
        source: all rows, in memory or not, of whose batches the worker takes its slice.
        batch_size: rows of a batch over all workers.
        symmetry: augmentation of the puzzles, or None.
        rank: which of `world_size` slices of each batch is the worker's.
    """

    def __init__(
        self,
        source: Rows | Split,
        *,
        batch_size: int,
        seed: int,
        symmetry: Symmetry | None,
        rank: int = 0,
        world_size: int = 1,
    ):
        assert batch_size >= world_size, "every worker takes a row"
        self.seed, self.symmetry = seed, symmetry
        self._share = Share.of(batch_size, rank, world_size)
        self._split: Split = HeldSplit.of(source) if isinstance(source, Rows) else source

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """Yield the batches from number `start` on, for ever; epochs follow each other within a batch."""
        rows = _Cursor(self._split.visits(self.seed, self._share, start))
        for number in itertools.count(start):
            epochs = self._share.numbers(number) // self._split.num_rows
            yield self._batch([part.rows[part.places] for part in rows.take(self._share.size)], epochs)

    def _batch(self, parts: list[NamedRows], epochs: np.ndarray) -> TokenBatch:
        def gathered(name: str) -> np.ndarray:
            return _joined([getattr(part, name) for part in parts])

        names = ("inputs", "labels", "puzzle_identifiers")
        batch = TokenBatch(*(gathered(name).astype(np.int32, copy=False) for name in names))
        if self.symmetry is None:
            return batch
        keys = {"puzzle_keys": gathered("puzzle_keys"), "row_keys": gathered("keys")}
        return self.symmetry.augment(batch, seed=self.seed, epoch=epochs, **keys)


class _Cursor:
    """Cut what comes in pieces of any length into pieces of the length asked for."""

    def __init__(self, pieces: Iterator[Visits]):
        self._pieces, self._left = pieces, next(pieces)

    def take(self, count: int) -> Iterator[Visits]:
        while count:
            if len(self._left.places) == 0:
                self._left = next(self._pieces)
            rows, taken, left = self._left.rows, self._left.places[:count], self._left.places[count:]
            self._left = Visits(rows, left)
            count -= len(taken)
            yield Visits(rows, taken)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def test_batches(rows: Rows, batch_size: int, rank: int, world_size: int) -> Iterator[TokenBatch]:
    """Yield one worker's share of the test rows, every row exactly once over all workers."""
    share = np.arange(rank, len(rows), world_size)
    for begin in range(0, len(share), batch_size):
        picked = share[begin : begin + batch_size]
        yield TokenBatch(rows.inputs[picked], rows.labels[picked], rows.puzzle_identifiers[picked])
