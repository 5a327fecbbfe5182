"""Sudoku boards: reading, checking and solving them, hundreds at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from trm_ray.data.rows import Rows

Box = tuple[int, int]
BOXES: dict[int, Box] = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
BLANK_TOKEN = 1
# Fewer clues never leave one solution. Source: Wikipedia, Mathematics of Sudoku; for 9×9 McGuire, Tugemann and
# Civario, arXiv 1201.0749.
FEWEST_CLUES = {4: 4, 6: 8, 9: 17}
# Boards that are worked on together: enough to hide Python's cost, few enough to stay in the cache.
BATCH = 512


def box_of(size: int) -> Box:
    """Look up the rows and columns of a box.

    Raises:
        ValueError: no such board.
    """
    if size not in BOXES:
        raise ValueError(f"size={size} is not supported; use {', '.join(map(str, BOXES))}")
    return BOXES[size]


def parse_board(text: str) -> np.ndarray:
    """Read a board (cells,) from digits, with `.` or `0` for a blank; white space is skipped.

    Raises:
        ValueError: a wrong number of cells, or a character that is no digit of this board.
    """
    cells = "".join(text.split()).replace(".", "0")
    size = {size * size: size for size in BOXES}.get(len(cells))
    if size is None:
        raise ValueError(f"a board has 16, 36 or 81 cells; got {len(cells)} in {text!r}")
    wrong = [character for character in cells if character not in "0123456789"[: size + 1]]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no digit of a {size}×{size} board in {text!r}; use . or 0 to {size}")
    return np.array([int(character) for character in cells], np.uint8)


def is_solution(boards: np.ndarray) -> np.ndarray:
    """Say which boards (P, cells) hold every digit once in each row, column and box: (P,) bool."""
    size = int(boards.shape[1] ** 0.5)
    masks = np.uint16(1) << boards.astype(np.uint16) >> np.uint16(1)
    seen = np.bitwise_or.reduce(masks[:, _geometry(box_of(size)).units], axis=2)
    return (seen == all_digits(size)).all(1)


@dataclass(frozen=True)
class _Geometry:
    """Hold the cells of each unit (3·size, size) and the row, column and box of each cell (cells,)."""

    units: np.ndarray
    units_of_cell: tuple[np.ndarray, np.ndarray, np.ndarray]


@lru_cache
def _geometry(box: Box) -> _Geometry:
    height, width = box
    size = height * width
    cells = np.arange(size * size)
    row, column = cells // size, cells % size
    box_number = row // height * (size // width) + column // width
    units_of_cell = (row, size + column, 2 * size + box_number)
    units = [np.flatnonzero(kind == unit) for kind in units_of_cell for unit in np.unique(kind)]
    return _Geometry(np.stack(units), units_of_cell)


@lru_cache
def _bit_counts() -> np.ndarray:
    return np.array([number.bit_count() for number in range(1 << 9)], np.uint8)


def all_digits(size: int) -> np.uint16:
    """Return the mask in which every digit is possible."""
    return np.uint16((1 << size) - 1)


def candidates(boards: np.ndarray, size: int) -> np.ndarray:
    """Turn boards (P, cells) into masks of candidates (cells, P): bit d − 1 says that digit d is possible."""
    masks = np.uint16(1) << boards.T.astype(np.uint16) >> np.uint16(1)
    return np.where(boards.T == 0, all_digits(size), masks)


def digits_of(masks: np.ndarray) -> np.ndarray:
    """Turn masks (cells, P) with one bit each into boards (P, cells)."""
    return np.ascontiguousarray((_bit_counts()[masks - 1] + 1).T)


@dataclass(frozen=True)
class _Outcome:
    masks: np.ndarray  # (cells, P)
    solved: np.ndarray  # (P,)
    impossible: np.ndarray  # (P,)


def propagated(masks: np.ndarray, box: Box) -> _Outcome:
    """Fill in naked and hidden singles in all boards until nothing changes."""
    masks = masks.copy()
    open_boards = np.arange(masks.shape[1])
    solved = np.zeros(masks.shape[1], bool)
    impossible = solved.copy()
    work = masks
    while len(open_boards):
        swept, broken = _swept(work, box)
        changed = (swept != work).any(0)
        masks[:, open_boards] = swept
        impossible[open_boards] = broken
        going_on = changed & ~broken
        solved[open_boards[~changed & ~broken]] = True  # for now: no contradiction and at rest
        open_boards, work = open_boards[going_on], swept[:, going_on]
    solved &= (masks & (masks - 1) == 0).all(0)
    return _Outcome(masks, solved, impossible)


def _swept(masks: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Apply both rules once; say which boards (P,) have a cell without a digit or a digit without a cell."""
    geometry, size = _geometry(box), box[0] * box[1]
    single = masks & (masks - 1) == 0
    singles = np.where(single, masks, np.uint16(0))
    units, taken = masks[geometry.units], np.bitwise_or.reduce(singles[geometry.units], axis=1)
    once, twice = units[:, 0], np.zeros_like(taken)
    for place in range(1, size):
        twice |= once & units[:, place]
        once = once | units[:, place]
    broken = (once != all_digits(size)).any(0) | (masks == 0).any(0)
    lone = once & ~twice
    row, column, box_number = geometry.units_of_cell
    hidden = masks & (lone[row] | lone[column] | lone[box_number])
    rest = np.where(hidden != 0, hidden, masks) & ~(taken[row] | taken[column] | taken[box_number])
    return np.where(single, masks, rest), broken


@dataclass(frozen=True)
class Solved:
    """Hold what the solver found.

    Args:
        boards: (P, cells) a solution of each puzzle; zeros where there is none.
        counts: (P,) how many solutions, none counted beyond the limit.
    """

    boards: np.ndarray
    counts: np.ndarray


def solve(puzzles: np.ndarray, *, limit: int = 2) -> Solved:
    """Search all puzzles (P, cells) for solutions, and stop at `limit` of them: 2 decides uniqueness."""
    size = int(puzzles.shape[1] ** 0.5)
    box = box_of(size)
    found = Solved(np.zeros_like(puzzles, np.uint8), np.zeros(len(puzzles), np.int64))
    masks, owners = candidates(puzzles, size), np.arange(len(puzzles))
    while len(owners):
        # Depth first, a batch at a time: breadth first would hold every open branch at once.
        outcome, these = propagated(masks[:, -BATCH:], box), owners[-BATCH:]
        _note_solutions(found, outcome, these, limit)
        open_branch = ~outcome.solved & ~outcome.impossible
        new_masks, new_owners = _branches(outcome.masks[:, open_branch], these[open_branch])
        masks = np.concatenate([masks[:, :-BATCH], new_masks], axis=1)
        owners = np.concatenate([owners[:-BATCH], new_owners])
        wanted = found.counts[owners] < limit
        masks, owners = masks[:, wanted], owners[wanted]
    return found


def _note_solutions(found: Solved, outcome: _Outcome, owners: np.ndarray, limit: int) -> None:
    owners = owners[outcome.solved]
    found.boards[owners] = digits_of(outcome.masks[:, outcome.solved])
    found.counts[:] = np.minimum(found.counts + np.bincount(owners, minlength=len(found.counts)), limit)


def _branches(masks: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split each board in two: its most constrained cell holds its lowest candidate, or does not."""
    cells, boards = most_constrained(masks), np.arange(masks.shape[1])
    chosen = masks[cells, boards]
    lowest = chosen & (~chosen + np.uint16(1))
    with_it, without_it = masks.copy(), masks.copy()
    with_it[cells, boards] = lowest
    without_it[cells, boards] = chosen & ~lowest
    return np.concatenate([without_it, with_it], axis=1), np.concatenate([owners, owners])


def most_constrained(masks: np.ndarray) -> np.ndarray:
    """Find the open cell (P,) with the fewest candidates of each board, masks (cells, P)."""
    counts = _bit_counts()[masks]
    counts[counts == 1] = 99
    return counts.argmin(0)


def rows_of_boards(questions: np.ndarray, answers: np.ndarray) -> Rows:
    """Turn boards (P, cells) into token rows, each a puzzle and a group of its own."""
    return Rows.of_single_puzzles(questions.astype(np.int32) + BLANK_TOKEN, answers.astype(np.int32) + BLANK_TOKEN)
