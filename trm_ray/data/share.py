"""Which rows of the stream are a worker's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trm_ray.data.chunk import NamedRows


@dataclass(frozen=True)
class Share:
    """A worker's slice of each batch: `size` rows of its `batch_size`, from row `first` on."""

    batch_size: int
    first: int
    size: int

    @classmethod
    def of(cls, batch_size: int, rank: int, world_size: int) -> Share:
        """Give a worker its slice; where slices cannot be equal, the first ones hold a row more.

        Source: `torch.tensor_split`.
        """
        size, more = divmod(batch_size, world_size)
        return cls(batch_size, rank * size + min(rank, more), size + (rank < more))

    def numbers(self, batch: int) -> np.ndarray:
        """Number the worker's rows of a batch, in the endless stream of all rows."""
        return batch * self.batch_size + self.first + np.arange(self.size)

    def places(self, begin: int, count: int, start: int) -> np.ndarray:
        """Find the worker's rows from batch `start` on among `count` rows of which the first has number `begin`."""
        skipped = min(count, max(0, start * self.batch_size - begin))
        numbers = np.arange(begin + skipped, begin + count)
        return skipped + np.flatnonzero((numbers - self.first) % self.batch_size < self.size)


@dataclass(frozen=True)
class Visits:
    """Rows in the order in which a worker visits them, by their places."""

    rows: NamedRows
    places: np.ndarray

    @classmethod
    def of_all(cls, rows: NamedRows) -> Visits:
        """Visit rows as they stand."""
        return cls(rows, np.arange(len(rows)))


class Split(Protocol):
    """The rows of a split, wherever they are."""

    @property
    def num_rows(self) -> int:
        """Rows that an epoch visits."""

    def visits(self, seed: int, share: Share, start: int) -> Iterator[Visits]:
        """Yield a worker's rows from batch `start` on, in their order, for ever; epochs follow each other."""
