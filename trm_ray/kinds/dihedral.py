"""The eight turns and mirror images of a square board."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from trm_ray.data.counters import counter_draws
from trm_ray.data.rows import TokenBatch


@dataclass(frozen=True)
class DihedralSymmetry:
    """Turn and mirror square boards; `dihedral_cells` numbers the eight ways."""

    def augment(
        self, rows: TokenBatch, *, seed: int, epoch: int | np.ndarray, puzzle_keys: np.ndarray, row_keys: np.ndarray
    ) -> TokenBatch:
        """See `Symmetry.augment`."""
        return self.variant(rows, counter_draws(seed, epoch, puzzle_keys, 1)[:, 0] >> np.uint64(61))

    def num_variants(self, puzzle_identifiers: np.ndarray) -> np.ndarray:
        """See `Symmetry.num_variants`."""
        return np.full(len(puzzle_identifiers), 8)

    def variant(self, rows: TokenBatch, number: np.ndarray) -> TokenBatch:
        """See `Symmetry.variant`."""
        size = math.isqrt(rows.inputs.shape[1])
        check_boards(rows, size)
        cells = dihedral_cells(size)[number]
        inputs, labels = (np.take_along_axis(tokens, cells, axis=1) for tokens in (rows.inputs, rows.labels))
        return replace(rows, inputs=inputs, labels=labels)


@lru_cache(maxsize=8)
def dihedral_cells(size: int) -> np.ndarray:
    """Say for each cell of a transformed square board which cell it comes from: (8, size²).

    0 to 3 are quarter turns counter-clockwise, 4 mirrors left and right, 5 top and bottom, 6 transposes, 7 transposes
    along the other diagonal.
    """
    board = np.arange(size * size).reshape(size, size)
    turned = [np.rot90(board, turns) for turns in range(4)]
    return np.stack([*turned, board[:, ::-1], board[::-1], board.T, board[::-1, ::-1].T]).reshape(8, -1)


def check_boards(rows: TokenBatch, size: int) -> None:
    """Refuse rows that are no square boards of that size."""
    inputs, labels = rows.inputs, rows.labels
    if inputs.shape != labels.shape or inputs.shape[1] != size * size:
        raise ValueError(
            f"inputs {inputs.shape} and labels {labels.shape} must both be (rows, {size * size}): "
            f"the symmetry is that of {size}×{size} boards"
        )
