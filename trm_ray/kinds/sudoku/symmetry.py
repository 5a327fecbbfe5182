"""Symmetries of puzzles: augmentation while streaming, and the canonical form that symmetric puzzles share.

Augmentation is a pure function of (seed, epoch, puzzle, row): how rows are batched, sharded or ordered cannot
change what a row becomes. A hash in counter mode stands in for a random generator, which keeps it vectorised.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from trm_ray.data.counters import GOLDEN, counter_draws, mixed
from trm_ray.data.rows import TokenBatch
from trm_ray.kinds.dihedral import check_boards

FIRST_DIGIT = 2  # tokens below are PAD and blank, which no relabelling touches

_SALT_ROWS, _SALT_DIGITS, _SALT_CHOSEN = (np.uint64(salt) for salt in (0xA1, 0xB2, 0xC3))
# Enough for colours to cross a 9×9 board; what they leave undecided is branched over.
_REFINEMENTS = 4
_MAX_BRANCHES = 50_000  # of one board
BATCH = 2048


@dataclass(frozen=True)
class SudokuSymmetry:
    """Relabel digits, permute bands and stacks and the lines inside them, transpose where boxes are square.

    Args:
        box: rows and columns of a box: (2, 2), (2, 3) or (3, 3).
    """

    box: tuple[int, int]

    def augment(
        self, rows: TokenBatch, *, seed: int, epoch: int | np.ndarray, puzzle_keys: np.ndarray, row_keys: np.ndarray
    ) -> TokenBatch:
        """See `Symmetry.augment`; every row is a puzzle by itself."""
        size = self.box[0] * self.box[1]
        check_boards(rows, size)
        draws = counter_draws(seed, epoch, row_keys, 5 * size)
        cells = self._sources(draws)
        digits = np.argsort(draws[:, 4 * size :], axis=1) + FIRST_DIGIT
        return replace(rows, inputs=_moved(rows.inputs, cells, digits), labels=_moved(rows.labels, cells, digits))

    def num_variants(self, puzzle_identifiers: np.ndarray) -> np.ndarray:
        """See `Symmetry.num_variants`; to the model an augmented Sudoku is another puzzle."""
        return np.ones(len(puzzle_identifiers), np.int64)

    def variant(self, rows: TokenBatch, number: np.ndarray) -> TokenBatch:
        """See `Symmetry.variant`."""
        assert not np.any(number), "a Sudoku has no variants"
        return rows

    def _sources(self, draws: np.ndarray) -> np.ndarray:
        """Say for each cell (B, L) of a transformed board which cell it comes from."""
        height, width = self.box
        size = height * width
        bands, rows, stacks, columns = (draws[:, k * size : (k + 1) * size] for k in range(4))
        # A box has `height` rows, so there are `width` bands.
        row_order = _line_order(bands[:, :width], rows, height)
        column_order = _line_order(stacks[:, :height], columns, width)
        cells = row_order[:, :, None] * size + column_order[:, None, :]
        if height == width:
            transposed = bands[:, -1] >> np.uint64(63) == 1
            cells[transposed] = cells[transposed].transpose(0, 2, 1)
        return cells.reshape(len(draws), size * size)


def _line_order(block_draws: np.ndarray, line_draws: np.ndarray, lines_per_block: int) -> np.ndarray:
    """Order lines (B, n) by random blocks, and at random inside each: one sort for both.

    The high half of a sort key is the block's draw, ending in the block's number so that blocks never tie.
    """
    num_blocks = block_draws.shape[1]
    high = block_draws >> np.uint64(36) << np.uint64(36) | np.arange(num_blocks, dtype=np.uint64) << np.uint64(32)
    keys = np.repeat(high, lines_per_block, axis=1) | line_draws >> np.uint64(32)
    return np.argsort(keys, axis=1)


def _moved(tokens: np.ndarray, cells: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Take each row's tokens (B, L) from `cells` and rename digit k to digits[:, k]; other values stay."""
    rows = np.arange(len(tokens))[:, None]
    moved = np.take(tokens, cells + rows * tokens.shape[1])
    renamed = np.take(digits.astype(tokens.dtype), moved + (rows * digits.shape[1] - FIRST_DIGIT), mode="clip")
    is_digit = (moved >= FIRST_DIGIT) & (moved < FIRST_DIGIT + digits.shape[1])
    return np.where(is_digit, renamed, moved)


def canonical_forms(boards: np.ndarray, box: tuple[int, int]) -> list[bytes]:
    """Find for each board the one representative of all boards that are symmetric to it.

    Two boards are equivalent exactly when their forms are equal: a form is a board of the same class (so
    equal forms are equivalent), and every step that leads to it is blind to how the board was permuted.
    Rows, columns and digits are coloured by what surrounds them until their colours differ; where they do
    not, every choice is tried and the smallest board wins.

    Args:
        boards: (P, size²) digits, 0 for blank.

    Raises:
        ValueError: a board has so many symmetries of its own that trying them all takes too long.

    Source: colour refinement with individualisation, McKay, Practical Graph Isomorphism (1981).
    """
    boards = np.ascontiguousarray(boards, np.uint8)
    states = _turned(_first_states(boards, box), box)
    best: dict[int, bytes] = {}
    branches = np.zeros(len(boards), np.int64)
    while len(states.owners):
        # Depth first, a batch at a time: breadth first would hold every open branch at once.
        children, leaves = _branched(states[-BATCH:])
        for owner, form in zip(leaves.owners.tolist(), _ordered_boards(leaves, box), strict=True):
            best[owner] = min(best.get(owner, form), form)
        branches += np.bincount(children.owners, minlength=len(boards))
        if branches.max() > _MAX_BRANCHES:
            raise ValueError("a board has too many symmetries of its own; puzzles with one solution do not")
        states = _joined([states[:-BATCH], _refined(children, box)])
    return [best[owner] for owner in range(len(boards))]


@dataclass(frozen=True)
class _States:
    """Hold boards (S, cells), which puzzle each stands for (S,), and colours of lines and digits (S, n)."""

    boards: np.ndarray
    owners: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    digits: np.ndarray

    def __getitem__(self, chosen: np.ndarray | slice) -> _States:
        parts = (self.boards, self.owners, self.rows, self.columns, self.digits)
        return _States(*(part[chosen] for part in parts))


def _first_states(boards: np.ndarray, box: tuple[int, int]) -> _States:
    same = np.zeros((len(boards), box[0] * box[1]), np.uint64)
    blank = _States(boards, np.arange(len(boards)), same + _SALT_ROWS, same + _SALT_ROWS, same + _SALT_DIGITS)
    return _refined(blank, box)


def _turned(states: _States, box: tuple[int, int]) -> _States:
    """Lay each board, where it may be transposed, so that its rows' colours are smaller; both in a tie."""
    if box[0] != box[1]:
        return states
    size = box[0] * box[1]
    transposed = states.boards.reshape(-1, size, size).transpose(0, 2, 1).reshape(-1, size * size)
    turned = _States(transposed, states.owners, states.columns, states.rows, states.digits)
    rows, columns = states.rows.sum(1), states.columns.sum(1)
    return _joined([states[rows <= columns], turned[columns <= rows]])


def _joined(parts: Iterable[_States]) -> _States:
    columns = zip(*((s.boards, s.owners, s.rows, s.columns, s.digits) for s in parts), strict=True)
    return _States(*(np.concatenate(column) for column in columns))


def _refined(states: _States, box: tuple[int, int]) -> _States:
    """Mix into each colour those of the clues that it meets, a fixed number of times."""
    if not len(states.owners):
        return states
    size = box[0] * box[1]
    grids = states.boards.reshape(-1, size, size)
    digit_of_cell = np.maximum(grids.astype(np.intp), 1) - 1 + np.arange(len(grids))[:, None, None] * size
    is_clue = (grids > 0).astype(np.uint64)
    rows, columns, digits = states.rows, states.columns, states.digits
    for _ in range(_REFINEMENTS):
        clues = mixed(rows[:, :, None] + columns[:, None, :] + np.take(digits * GOLDEN, digit_of_cell)) * is_clue
        rows = mixed(_with_blocks(rows, box[0]) + clues.sum(2))
        columns = mixed(_with_blocks(columns, box[1]) + clues.sum(1))
        digits = mixed(digits + GOLDEN + _sums_by_digit(clues, grids))
    return _States(states.boards, states.owners, rows, columns, digits)


def _with_blocks(colours: np.ndarray, lines_per_block: int) -> np.ndarray:
    blocks = colours.reshape(len(colours), -1, lines_per_block).sum(2)
    return colours * GOLDEN + np.repeat(mixed(blocks), lines_per_block, axis=1)


def _sums_by_digit(clues: np.ndarray, grids: np.ndarray) -> np.ndarray:
    size = grids.shape[1]
    by_digit = [np.where(grids == digit, clues, np.uint64(0)).sum((1, 2)) for digit in range(1, size + 1)]
    return np.stack(by_digit, axis=1)


def _branched(states: _States) -> tuple[_States, _States]:
    """Part the finished states from the others, and give those one child for each member of a tied colour."""
    kinds = np.stack([states.rows, states.columns, states.digits], axis=1)
    in_order = np.sort(kinds, axis=2)
    tied = in_order[:, :, 1:] == in_order[:, :, :-1]
    is_leaf = ~tied.any((1, 2))
    states_left, kinds, in_order, tied = states[~is_leaf], kinds[~is_leaf], in_order[~is_leaf], tied[~is_leaf]
    # The first kind that has a tie, and in it the smallest tied colour: a choice that no permutation changes.
    kind = tied.any(2).argmax(1)
    each = np.arange(len(kinds))
    colour = in_order[each, kind, tied[each, kind].argmax(1)]
    parent, member = np.nonzero(kinds[each, kind] == colour[:, None])
    kinds = kinds[parent]
    kinds[np.arange(len(parent)), kind[parent], member] ^= _SALT_CHOSEN << np.uint64(40)
    children = _States(states_left.boards[parent], states_left.owners[parent], *kinds.transpose(1, 0, 2))
    return children, states[is_leaf]


def _ordered_boards(leaves: _States, box: tuple[int, int]) -> list[bytes]:
    """Put lines and digits into the order of their colours."""
    size = box[0] * box[1]
    rows = _order_in_blocks(leaves.rows, box[0])
    columns = _order_in_blocks(leaves.columns, box[1])
    each = np.arange(len(rows))[:, None, None]
    boards = leaves.boards.reshape(-1, size, size)[each, rows[:, :, None], columns[:, None, :]]
    names = np.zeros((len(rows), size + 1), np.uint8)
    names[:, 1:] = leaves.digits.argsort(1).argsort(1) + 1
    forms = names[each, boards].reshape(len(rows), size * size)
    return [form.tobytes() for form in forms]


def _order_in_blocks(colours: np.ndarray, lines_per_block: int) -> np.ndarray:
    blocks = colours.reshape(len(colours), colours.shape[1] // lines_per_block, lines_per_block)
    lines = blocks.argsort(2) + _block_starts(blocks.shape[1], lines_per_block)
    order = blocks.min(2).argsort(1)
    return np.take_along_axis(lines, order[:, :, None], axis=1).reshape(colours.shape)


@lru_cache
def _block_starts(num_blocks: int, lines_per_block: int) -> np.ndarray:
    return (np.arange(num_blocks) * lines_per_block)[:, None]
