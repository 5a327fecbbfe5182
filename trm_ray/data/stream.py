"""One worker's training rows as an endless stream: shuffled every epoch, augmented on the way, never on disk.

Batch k is a pure function of (seed, k) and of the set of rows, whoever reads them in whatever order: a resumed run asks
for the batch that it needs next and gets it, and one worker under Ray sees what a process without Ray sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from trm_ray.data.schema import Rows
from trm_ray.data.symmetries import Symmetry, counter_draws

# Rows that are shuffled together, and kept in memory if they are all: 170 MB at 81 tokens.
SHUFFLE_ROWS = 2**18


@dataclass(frozen=True)
class TokenBatch:
    """inputs, labels (B, L) and puzzle_identifiers (B,), all int32."""

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray


class RowStream:
    """The batches of one worker.

    Args:
        chunks: gives the rows of one epoch in pieces of up to `SHUFFLE_ROWS`, shuffled one by one. Called once if all
            fit into one piece, otherwise once an epoch; then it must give the same pieces every time.
        symmetry: augmentation of the puzzles, or None.
    """

    def __init__(
        self,
        chunks: Callable[[], Iterable[Rows]],
        *,
        num_rows: int,
        batch_size: int,
        seed: int,
        symmetry: Symmetry | None,
    ):
        self._chunks, self._whole = chunks, num_rows <= SHUFFLE_ROWS
        self._cache: list[_Chunk] = []
        self.num_rows, self.batch_size, self.seed, self.symmetry = num_rows, batch_size, seed, symmetry

    def batches(self, start: int) -> Iterator[TokenBatch]:
        """Yield the batches from number `start` on, for ever; epochs follow each other within a batch."""
        first_epoch, skip = divmod(start * self.batch_size, self.num_rows)
        pieces: list[TokenBatch] = []
        missing = self.batch_size
        for epoch, chunk, order in self._shuffled(first_epoch):
            order, skip = order[skip:], max(0, skip - len(order))
            for begin, end in _cuts(len(order), missing, self.batch_size):
                pieces.append(self._take(epoch, chunk, order[begin:end]))
                missing -= end - begin
                if missing == 0:
                    yield _joined(pieces)
                    pieces, missing = [], self.batch_size

    def _shuffled(self, first_epoch: int) -> Iterator[tuple[int, _Chunk, np.ndarray]]:
        for epoch in itertools.count(first_epoch):
            for number, chunk in enumerate(self._epoch()):
                yield epoch, chunk, np.random.default_rng([self.seed, epoch, number]).permutation(len(chunk.keys))

    def _epoch(self) -> Iterable[_Chunk]:
        if not self._whole:
            return map(_Chunk.of, self._chunks())
        if not self._cache:
            self._cache = [_Chunk.of(rows) for rows in self._chunks()]
        return self._cache

    def _take(self, epoch: int, chunk: _Chunk, picked: np.ndarray) -> TokenBatch:
        inputs, labels = chunk.rows.inputs[picked], chunk.rows.labels[picked]
        if self.symmetry is not None:
            keys = chunk.keys[picked]
            inputs, labels = self.symmetry.augment(inputs, labels, seed=self.seed, epoch=epoch, index=keys)
        return TokenBatch(inputs, labels, chunk.rows.puzzle_identifiers[picked])


@dataclass(frozen=True)
class _Chunk:
    """Rows in the order of their keys."""

    rows: Rows
    keys: np.ndarray

    @classmethod
    def of(cls, rows: Rows) -> _Chunk:
        keys = row_keys(rows)
        order = np.argsort(keys, kind="stable")
        return cls(rows[order], keys[order])


def row_keys(rows: Rows) -> np.ndarray:
    """Name each row by a 64-bit hash of all that it holds, so that its place in a file or a shard does not matter."""
    content = np.concatenate([rows.inputs, rows.labels, rows.puzzle_identifiers[:, None]], axis=1)
    factors = counter_draws(0, 0, np.arange(content.shape[1]), 1).reshape(-1)
    keys = np.zeros(len(rows), np.uint64)
    for column, factor in zip(content.T, factors, strict=True):
        keys += column.astype(np.uint64) * factor  # wraps around, as it should
    return keys


def _cuts(length: int, first: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut `length` rows into a piece of `first` and pieces of `size`, the last one shorter."""
    bounds = [0, *range(first, length, size), length]
    return itertools.pairwise(bounds) if length else iter(())


def _joined(pieces: list[TokenBatch]) -> TokenBatch:
    if len(pieces) == 1:
        return pieces[0]
    return TokenBatch(*(np.concatenate([getattr(p, name) for p in pieces]) for name in TokenBatch.__dataclass_fields__))


def test_batches(rows: Rows, batch_size: int, rank: int, world_size: int) -> Iterator[TokenBatch]:
    """Yield one worker's share of the test rows, every row exactly once over all workers."""
    mine = np.arange(rank, len(rows), world_size)
    for begin in range(0, len(mine), batch_size):
        picked = mine[begin : begin + batch_size]
        yield TokenBatch(rows.inputs[picked], rows.labels[picked], rows.puzzle_identifiers[picked])
