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
_ROWS_AT_ONCE = 64  # few enough for their indices to stay in the cache
_FAR = 2**40  # beyond all cells of a batch


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
        grids = _Grids.of(rows)
        sizes = np.maximum(*grids.sizes)
        sizes = np.where(TRANSPOSE[self.identifiers.dihedral[chosen], None], sizes[:, ::-1], sizes)
        moves = places[:, 2:] >> np.uint64(62) > 0
        return self._made(rows, grids, chosen, np.where(moves, below(places[:, :2], SIDE + 1 - sizes), 0))

    def num_variants(self, puzzle_identifiers: np.ndarray) -> np.ndarray:
        """Count the identifiers of each row's puzzle: (B,)."""
        puzzles = self.identifiers.puzzle_of(puzzle_identifiers)
        return np.where(puzzles < 0, 1, np.append(self.identifiers.counts, 1)[puzzles])

    def variant(self, rows: TokenBatch, number: np.ndarray) -> TokenBatch:
        """Make each row's augmentation of the given number (B,), in the upper left corner; 0 is the row as it is."""
        corner = np.zeros((len(rows.inputs), 2), np.int64)
        return self._made(rows, _Grids.of(rows), self._chosen(rows, number), corner)

    def _chosen(self, rows: TokenBatch, number: np.ndarray) -> np.ndarray:
        puzzles = self.identifiers.puzzle_of(rows.puzzle_identifiers)
        return np.where(puzzles < 0, 0, np.append(self.identifiers.first, 0)[puzzles] + number).astype(np.int32)

    def _made(self, rows: TokenBatch, grids: _Grids, chosen: np.ndarray, offsets: np.ndarray) -> TokenBatch:
        dihedral = self.identifiers.dihedral[chosen]
        renamed = np.full((len(chosen), VOCAB_SIZE), EOS, np.int32)
        renamed[:, FIRST_COLOUR:] = self.identifiers.colours[chosen] + np.int32(FIRST_COLOUR)
        moved = {}
        for side, (name, outside) in enumerate((("inputs", PAD_ID), ("labels", IGNORED_LABEL))):
            renamed[:, PAD_ID] = outside
            moved[name] = _moved(grids.canvases[side], grids.sizes[side], dihedral, renamed, offsets)
        return replace(rows, **moved, puzzle_identifiers=chosen)


@dataclass(frozen=True)
class _Grids:
    """The questions and the answers of rows: canvases (B, 900) as uint8, and (B, 2) rows and columns of their grids."""

    canvases: tuple[np.ndarray, np.ndarray]
    sizes: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, rows: TokenBatch) -> _Grids:
        canvases = rows.inputs.astype(np.uint8), rows.labels.astype(np.uint8)  # −100 becomes 156, which is no colour
        return cls(canvases, (grid_sizes(canvases[0]), grid_sizes(canvases[1])))


def _moved(
    canvas: np.ndarray, sizes: np.ndarray, dihedral: np.ndarray, renamed: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Turn the grid in the corner of each canvas (B, 900), put it at its offset with its border, and rename its tokens.

    The cell that a place's token comes from is linear in the place's row and column, so it is a sum of two lines. Lines
    beyond the grid add so much that the sum points past one end of all canvases, where a PAD stands, and lines of the
    border so that it points past the other, where an EOS stands.

    Args:
        canvas: uint8 tokens.
        sizes: (B, 2) rows and columns of the grids.
        dihedral: (B,) transforms.
        renamed: (B, 12) what each token becomes; the one for PAD stands beyond the grid and its border.
        offsets: (B, 2) row and column of the new upper left corner.
    """
    batch = np.arange(len(canvas))[:, None]
    up, back, swap = (table[dihedral][:, None] for table in (FLIP_ROWS, FLIP_COLUMNS, TRANSPOSE))
    down, right = np.where(up, -SIDE, SIDE), np.where(back, -1, 1)
    start = 1 + SEQ_LEN * batch + up * SIDE * (sizes[:, :1] - 1) + back * (sizes[:, 1:] - 1)
    height, width = np.where(swap, sizes[:, ::-1], sizes).T[:, :, None]
    rows, columns = (np.arange(SIDE) - offsets[:, axis, None] for axis in (0, 1))
    from_row = _beyond(rows, height, start + rows * np.where(swap, right, down))
    from_column = _beyond(columns, width, columns * np.where(swap, down, right))
    between = np.full(canvas.size + 2, PAD_ID, np.uint8)
    between[1:-1], between[-1] = canvas.reshape(-1), EOS
    moved = np.empty((len(canvas), SIDE, SIDE), np.int32)
    for begin in range(0, len(canvas), _ROWS_AT_ONCE):
        part = slice(begin, begin + _ROWS_AT_ONCE)
        places = from_row[part, :, None] + from_column[part, None, :]
        np.add(np.take(between, places, mode="clip"), VOCAB_SIZE * batch[part, None], out=places)
        np.take(renamed, places, out=moved[part], mode="clip")
    # Where both borders would meet, neither is.
    row, column = (offsets + np.hstack([height, width])).T
    corners = np.flatnonzero((row < SIDE) & (column < SIDE))
    moved[corners, row[corners], column[corners]] = renamed[corners, PAD_ID]
    return moved.reshape(canvas.shape)


def _beyond(lines: np.ndarray, end: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Point past the ends of all canvases (see `_moved`) for lines (B, 30) that are not from 0 to `end` − 1."""
    return np.where((lines >= 0) & (lines < end), cells, np.where(lines == end, _FAR, -3 * _FAR))
