"""A split that does not fit into memory: read from its files a chunk at a time, in an order that the seed decides.

An epoch takes the row groups of all files in random order and gathers them into chunks, which are shuffled as a whole;
the next epoch gathers others. So the order of all rows is a function of the seed, the epoch and the files. Every worker
reads every chunk and keeps the rows of its slice of the batches: that is what lets any number of workers see the same
batches, without passing rows to each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from trm_ray.data.chunk import Chunk, NamedRows, narrowed, smallest_type
from trm_ray.data.counters import counter_draws
from trm_ray.data.format import DatasetInfo, number_shifts, read_row_group, row_group_sizes
from trm_ray.data.rows import IGNORED_LABEL, Rows, concatenate, shifted
from trm_ray.data.share import Share, Visits

# What runs `read(number)` for one number after the other and yields the results in their order: `map`, or Ray Data.
InOrder = Callable[[Callable[[int], NamedRows], Iterator[int]], Iterator[NamedRows]]

_CHUNKS_IN_MEMORY = 8  # in the size up to which a split is held in memory instead
_SALT_CHUNKS = np.uint64(0xE5)  # so that the order of row groups says nothing of that in them


def rows_of_chunk(seq_len: int, memory_gib: float) -> int:
    """Count the rows that are shuffled together, where a split would be held in memory up to `memory_gib`."""
    return max(1, int(memory_gib * 2**30 / _CHUNKS_IN_MEMORY / (2 * 4 * seq_len)))


@dataclass(frozen=True)
class RowGroup:
    """The least of a file that is read at once."""

    folder: Path
    file: str
    number: int
    num_rows: int
    number_shift: tuple[int, int]  # what keeps puzzles and groups of several folders apart

    def read(self, seq_len: int) -> Rows:
        """Read the rows from the file."""
        rows = read_row_group(self.folder, self.file, self.number, seq_len, self.num_rows)
        return shifted(rows, *self.number_shift)


@dataclass(frozen=True)
class StoredSplit:
    """The rows of a split whose groups hold one puzzle each, where they lie.

    Args:
        chunk_rows: about how many rows are shuffled together, and are in memory at once; at least a row group.
        in_order: who reads the chunks.
    """

    row_groups: tuple[RowGroup, ...]
    seq_len: int
    vocab_size: int
    chunk_rows: int
    in_order: InOrder = map

    @classmethod
    def of(cls, folders: Sequence[Path], split: str, *, memory_gib: float, in_order: InOrder = map) -> StoredSplit:
        """Look up the row groups of a split of several datasets.

        Args:
            memory_gib: up to which size a split would be held in memory (`data_memory_gib`).
        """
        infos = [DatasetInfo.load(folder) for folder in folders]
        groups = [
            RowGroup(folder, file, number, num_rows, shift)
            for folder, info, shift in zip(folders, infos, number_shifts(folders, split), strict=True)
            for file in info.split(split).files
            for number, num_rows in enumerate(row_group_sizes(folder, file))
            if num_rows
        ]
        seq_len, vocab_size = infos[0].seq_len, infos[0].vocab_size
        return cls(tuple(groups), seq_len, vocab_size, rows_of_chunk(seq_len, memory_gib), in_order)

    @cached_property
    def num_rows(self) -> int:
        """Count the rows that an epoch visits: all."""
        return int(self._sizes.sum())

    @property
    def num_chunks(self) -> int:
        """Count the chunks of an epoch."""
        return min(len(self.row_groups), -(-self.num_rows // self.chunk_rows))

    def visits(self, seed: int, share: Share, start: int) -> Iterator[Visits]:
        """Yield a worker's rows from batch `start` on, for ever; only the chunks from its first row on are read."""
        epoch, skip = divmod(start * share.batch_size, self.num_rows)
        ends = np.cumsum([self._sizes[chunk].sum() for chunk in self._chunks(seed, epoch)])
        first = epoch * self.num_chunks + int(np.searchsorted(ends, skip, side="right"))
        read = partial(self.read, seed, share, start)
        return map(Visits.of_all, self.in_order(read, itertools.count(first)))

    def read(self, seed: int, share: Share, start: int, number: int) -> NamedRows:
        """Read a chunk, by its number in the endless stream: a worker's rows from batch `start` on, in their order."""
        epoch, position = divmod(number, self.num_chunks)
        chunks = self._chunks(seed, epoch)
        begin = epoch * self.num_rows + sum(int(self._sizes[chunk].sum()) for chunk in chunks[:position])
        chunk = Chunk.of(concatenate([self._read(int(group)) for group in chunks[position]]))
        order = chunk.order(seed, epoch, position)
        return chunk.rows[order[share.places(begin, len(order), start)]]

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([group.num_rows for group in self.row_groups])

    def _chunks(self, seed: int, epoch: int) -> list[np.ndarray]:
        """Deal the row groups out to the chunks of an epoch."""
        draws = counter_draws(seed, epoch, np.arange(len(self.row_groups)).astype(np.uint64) ^ _SALT_CHUNKS, 1)[:, 0]
        return np.array_split(np.argsort(draws, kind="stable"), self.num_chunks)

    def _read(self, number: int) -> Rows:
        highest = self.vocab_size - 1  # of the dataset, not of the chunk: all chunks have the same types
        types = smallest_type(0, highest), smallest_type(IGNORED_LABEL, highest)
        return narrowed(self.row_groups[number].read(self.seq_len), *types)
