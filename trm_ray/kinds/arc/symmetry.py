"""ARC's augmentations while streaming: a puzzle's rows turned and renamed as one of its identifiers says, and moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trm_ray.data.counters import below, counter_draws
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID, TokenBatch
from trm_ray.kinds.arc.read import (
    EOS,
    FIRST_COLOUR,
    FLIP_COLUMNS,
    FLIP_ROWS,
    SEQ_LEN,
    SIDE,
    TRANSPOSE,
    VOCAB_SIZE,
    grid_sizes,
)

_SALT = np.uint64(0xA1)


@dataclass(frozen=True)
class ArcSymmetry:
    """Turn rows of puzzles as they are into those of their augmentations.

    Source: what the official build_arc_dataset.py writes to disk; there one example of each augmented puzzle stays in
    the upper left corner, here each does with probability 1/4 (ARC-AGI-1 puzzles have 4.2 examples).
    """

    identifiers: PuzzleIdentifiers

    def augment(
        self, rows: TokenBatch, *, seed: int, epoch: int | np.ndarray, puzzle_keys: np.ndarray, row_keys: np.ndarray
    ) -> TokenBatch:
        """Pick one augmentation for all rows of a puzzle, anew each epoch, and move each row about the canvas.

        Where a row lies depends on its augmentation and its key, not on the epoch.
        """
        draws = counter_draws(seed, epoch, puzzle_keys ^ _SALT, 1)[:, 0]
        chosen = self._chosen(rows, below(draws, self.num_variants(rows.puzzle_identifiers)))
        places = counter_draws(self.identifiers.seed or 0, chosen.astype(np.int64), row_keys, 3)
        sizes = np.maximum(grid_sizes(rows.inputs), grid_sizes(rows.labels))
        sizes = np.where(TRANSPOSE[self.identifiers.dihedral[chosen], None], sizes[:, ::-1], sizes)
        moves = places[:, 2:] >> np.uint64(62) > 0
        return self._made(rows, chosen, np.where(moves, below(places[:, :2], SIDE + 1 - sizes), 0))

    def num_variants(self, puzzle_identifiers: np.ndarray) -> np.ndarray:
        """Count the identifiers of each row's puzzle: (B,)."""
        puzzles = self.identifiers.puzzle_of(puzzle_identifiers)
        return np.where(puzzles < 0, 1, np.append(self.identifiers.counts, 1)[puzzles])

    def variant(self, rows: TokenBatch, number: np.ndarray) -> TokenBatch:
        """Make each row's augmentation of the given number (B,), in the upper left corner; 0 is the row as it is."""
        return self._made(rows, self._chosen(rows, number), np.zeros((len(rows.inputs), 2), np.int64))

    def _chosen(self, rows: TokenBatch, number: np.ndarray) -> np.ndarray:
        puzzles = self.identifiers.puzzle_of(rows.puzzle_identifiers)
        return np.where(puzzles < 0, 0, np.append(self.identifiers.first, 0)[puzzles] + number).astype(np.int32)

    def _made(self, rows: TokenBatch, chosen: np.ndarray, offsets: np.ndarray) -> TokenBatch:
        dihedral = self.identifiers.dihedral[chosen]
        renamed = np.full((len(chosen), VOCAB_SIZE), EOS, np.int32)
        renamed[:, FIRST_COLOUR:] = self.identifiers.colours[chosen] + np.int32(FIRST_COLOUR)
        moved = {}
        for name, outside in (("inputs", PAD_ID), ("labels", IGNORED_LABEL)):
            renamed[:, PAD_ID] = outside
            moved[name] = _moved(getattr(rows, name), dihedral, renamed, offsets)
        return replace(rows, **moved, puzzle_identifiers=chosen)


def _moved(canvas: np.ndarray, dihedral: np.ndarray, renamed: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Turn the grid in the corner of each canvas (B, 900), put it at its offset with its border, and rename its tokens.

    The cell that a place's token comes from is linear in the place's row and column, so it is a sum of two lines.

    Args:
        dihedral: (B,) transforms.
        renamed: (B, 12) what each token becomes; the one for PAD stands beyond the grid and its border.
        offsets: (B, 2) row and column of the new upper left corner.
    """
    batch, sizes = np.arange(len(canvas))[:, None], grid_sizes(canvas)
    up, back, swap = (table[dihedral][:, None] for table in (FLIP_ROWS, FLIP_COLUMNS, TRANSPOSE))
    down, right = np.where(up, -SIDE, SIDE), np.where(back, -1, 1)
    start = SEQ_LEN * batch + up * SIDE * (sizes[:, :1] - 1) + back * (sizes[:, 1:] - 1)
    rows, columns = (np.arange(SIDE) - offsets[:, axis, None] for axis in (0, 1))
    from_row, from_column = start + rows * np.where(swap, right, down), columns * np.where(swap, down, right)
    tokens = np.take(canvas.astype(np.uint8), from_row[:, :, None] + from_column[:, None, :], mode="clip")
    height, width = np.where(swap, sizes[:, ::-1], sizes).T[:, :, None]
    in_row, in_column = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    tokens *= in_row[:, :, None] & in_column[:, None, :]
    tokens += (rows == height)[:, :, None] & in_column[:, None, :] | in_row[:, :, None] & (columns == width)[:, None, :]
    return np.take(renamed, tokens.reshape(len(canvas), SEQ_LEN) + VOCAB_SIZE * batch)
