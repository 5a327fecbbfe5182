"""Sudoku datasets: puzzles that are generated, or read from the public CSV files.

Tokens: 0 PAD, 1 blank, digit d → d + 1. A board in this module is a row of digits, 0 for blank, row by row.
Solver and generator work on hundreds of boards at once: candidates are bit masks (cells, boards), and
one numpy operation serves them all. Python's own cost vanishes in the batch, so no compiled code is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trm_ray.data.format import DatasetInfo
from trm_ray.data.progress import tell
from trm_ray.data.rows import Rows
from trm_ray.data.write import owns_output, write_dataset
from trm_ray.kinds.csv import Choice, CsvKind, check_rules, codes_of, read_csv_splits
from trm_ray.kinds.generation import Puzzles, generate, num_processes
from trm_ray.kinds.symmetries import canonical_forms
from trm_ray.storage import as_path

Difficulty = Literal["singles", "any"]
Box = tuple[int, int]

BOXES: dict[int, Box] = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
DEFAULT_CLUES = {4: (4, 8), 6: (9, 18), 9: (26, 40)}
# Fewer clues never leave one solution. Source: Wikipedia, Mathematics of Sudoku; for 9×9 McGuire, Tugemann and
# Civario, arXiv 1201.0749.
FEWEST_CLUES = {4: 4, 6: 8, 9: 17}
BLANK_TOKEN = 1

# How often a puzzle above its target is dug anew, and how many clues are put back for it: measured on 9×9, where 22
# clues are then as common as 25. Below the default's range only, where one digging seldom reaches.
_REDIGS, _PUT_BACK = 30, 4

# Boards that are worked on together: enough to hide Python's cost, few enough to stay in the cache.
_BATCH = 512
# Below this many boards a second process costs more than it saves.
_BOARDS_PER_PROCESS = {4: 60_000, 6: 30_000, 9: 5_000}


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


def format_board(board: np.ndarray) -> str:
    """Draw a board (cells,), boxes set apart, `.` for a blank."""
    size = int(len(board) ** 0.5)
    height, width = box_of(size)
    characters = ["." if digit == 0 else str(digit) for digit in board.tolist()]
    lines = []
    for row in range(size):
        cells = characters[row * size : (row + 1) * size]
        lines.append(" | ".join(" ".join(cells[at : at + width]) for at in range(0, size, width)))
        if (row + 1) % height == 0 and row + 1 < size:
            lines.append("+".join(["-" * 2 * width, *["-" * (2 * width + 1)] * (size // width - 2), "-" * 2 * width]))
    return "\n".join(lines)


def is_solution(boards: np.ndarray) -> np.ndarray:
    """Say which boards (P, cells) hold every digit once in each row, column and box: (P,) bool."""
    size = int(boards.shape[1] ** 0.5)
    masks = np.uint16(1) << boards.astype(np.uint16) >> np.uint16(1)
    seen = np.bitwise_or.reduce(masks[:, _geometry(box_of(size)).units], axis=2)
    return (seen == _all_digits(size)).all(1)


# --- Solving ---------------------------------------------------------------------------------------------


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


def _all_digits(size: int) -> np.uint16:
    return np.uint16((1 << size) - 1)


def _candidates(boards: np.ndarray, size: int) -> np.ndarray:
    """Turn boards (P, cells) into masks of candidates (cells, P): bit d − 1 says that digit d is possible."""
    masks = np.uint16(1) << boards.T.astype(np.uint16) >> np.uint16(1)
    return np.where(boards.T == 0, _all_digits(size), masks)


def _digits(masks: np.ndarray) -> np.ndarray:
    """Turn masks (cells, P) with one bit each into boards (P, cells)."""
    return np.ascontiguousarray((_bit_counts()[masks - 1] + 1).T)


@dataclass(frozen=True)
class _Outcome:
    masks: np.ndarray  # (cells, P)
    solved: np.ndarray  # (P,)
    impossible: np.ndarray  # (P,)


def _propagated(masks: np.ndarray, box: Box) -> _Outcome:
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
    broken = (once != _all_digits(size)).any(0) | (masks == 0).any(0)
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
    masks, owners = _candidates(puzzles, size), np.arange(len(puzzles))
    while len(owners):
        # Depth first, a batch at a time: breadth first would hold every open branch at once.
        outcome, these = _propagated(masks[:, -_BATCH:], box), owners[-_BATCH:]
        _note_solutions(found, outcome, these, limit)
        open_branch = ~outcome.solved & ~outcome.impossible
        new_masks, new_owners = _branches(outcome.masks[:, open_branch], these[open_branch])
        masks = np.concatenate([masks[:, :-_BATCH], new_masks], axis=1)
        owners = np.concatenate([owners[:-_BATCH], new_owners])
        wanted = found.counts[owners] < limit
        masks, owners = masks[:, wanted], owners[wanted]
    return found


def _note_solutions(found: Solved, outcome: _Outcome, owners: np.ndarray, limit: int) -> None:
    owners = owners[outcome.solved]
    found.boards[owners] = _digits(outcome.masks[:, outcome.solved])
    found.counts[:] = np.minimum(found.counts + np.bincount(owners, minlength=len(found.counts)), limit)


def _branches(masks: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split each board in two: its most constrained cell holds its lowest candidate, or does not."""
    cells, boards = _most_constrained(masks), np.arange(masks.shape[1])
    chosen = masks[cells, boards]
    lowest = chosen & (~chosen + np.uint16(1))
    with_it, without_it = masks.copy(), masks.copy()
    with_it[cells, boards] = lowest
    without_it[cells, boards] = chosen & ~lowest
    return np.concatenate([without_it, with_it], axis=1), np.concatenate([owners, owners])


def _most_constrained(masks: np.ndarray) -> np.ndarray:
    counts = _bit_counts()[masks]
    counts[counts == 1] = 99
    return counts.argmin(0)


# --- Generating ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    size: int
    clues: tuple[int, int]
    difficulty: Difficulty
    seed: int


def random_grids(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Fill `count` empty boards at random: (count, cells).

    A board that runs into a contradiction starts again from nothing, so no grid is favoured by backtracking.
    """
    box, finished = box_of(size), []
    masks = _candidates(np.zeros((count, size * size), np.uint8), size)
    while masks.shape[1]:
        outcome = _propagated(masks, box)
        finished.append(_digits(outcome.masks[:, outcome.solved]))
        masks = outcome.masks[:, ~outcome.solved]
        broken = outcome.impossible[~outcome.solved]
        masks[:, broken] = _all_digits(size)
        _guess(masks, rng)
    return np.concatenate(finished)


def _guess(masks: np.ndarray, rng: np.random.Generator) -> None:
    cells, boards = _most_constrained(masks), np.arange(masks.shape[1])
    bits = masks[cells, boards][:, None] >> np.arange(9, dtype=np.uint16) & 1
    digit = (rng.random(bits.shape) * bits).argmax(1)
    masks[cells, boards] = np.uint16(1) << digit.astype(np.uint16)


def dig(grids: np.ndarray, targets: np.ndarray, difficulty: Difficulty, rng: np.random.Generator) -> np.ndarray:
    """Blank cells of full grids (P, cells) in random order while one solution remains.

    Args:
        targets: (P,) the number of clues to stop at, where it can be reached.
        difficulty: "singles" keeps puzzles that need no guessing, "any" asks for uniqueness alone.
    """
    order = rng.permuted(np.tile(np.arange(grids.shape[1]), (len(grids), 1)), axis=1)
    return _blanked(grids, order, targets, difficulty)


def _blanked(puzzles: np.ndarray, order: np.ndarray, targets: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    """Blank the cells of `order` (P, n) one after the other, blanks passed over, where one solution remains."""
    puzzles, rows = puzzles.copy(), np.arange(len(puzzles))
    clues = (puzzles > 0).sum(1)
    for cell in order.T:
        going_on = np.flatnonzero((clues > targets) & (puzzles[rows, cell] > 0))
        trial = puzzles[going_on]
        trial[np.arange(len(going_on)), cell[going_on]] = 0
        kept = going_on[_has_one_solution(trial, difficulty)]
        puzzles[kept, cell[kept]] = 0
        clues[kept] -= 1
    return puzzles


def dig_deeper(
    puzzles: np.ndarray, grids: np.ndarray, targets: np.ndarray, difficulty: Difficulty, rng: np.random.Generator
) -> np.ndarray:
    """Bring puzzles (P, cells) that got stuck above their targets (P,) further down, in place.

    Each gets a few clues of its grid back and is dug anew in another order. What has no more clues than before is kept,
    so that the next round begins elsewhere; a local search, which finds what no single order of the cells does.
    """
    for _ in range(_REDIGS):
        above = np.flatnonzero((puzzles > 0).sum(1) > targets)
        if not len(above):
            break
        old, rows = puzzles[above], np.arange(len(above))[:, None]
        put_back = np.argsort(rng.random(old.shape) + (old > 0), axis=1)[:, :_PUT_BACK]
        trial = old.copy()
        trial[rows, put_back] = grids[above[:, None], put_back]
        clues_first = np.argsort(rng.random(trial.shape) + (trial == 0), axis=1)
        new = _blanked(trial, clues_first[:, : (trial > 0).sum(1).max()], targets[above], difficulty)
        no_worse = (new > 0).sum(1) <= (old > 0).sum(1)
        puzzles[above[no_worse]] = new[no_worse]
    return puzzles


def _has_one_solution(puzzles: np.ndarray, difficulty: Difficulty) -> np.ndarray:
    size = int(puzzles.shape[1] ** 0.5)
    if difficulty == "any":
        return solve(puzzles).counts == 1
    # What two sound rules fill in completely has no other solution.
    return _propagated(_candidates(puzzles, size), box_of(size)).solved


def _chunk(recipe: _Recipe, number: int) -> Puzzles:
    """Make one chunk of puzzles; recipe and number decide it, not the process that makes it."""
    rng = np.random.default_rng([recipe.seed, recipe.size, number])
    grids = random_grids(_BATCH, recipe.size, rng)
    targets = rng.integers(recipe.clues[0], recipe.clues[1] + 1, _BATCH)
    questions = dig(grids, targets, recipe.difficulty, rng)
    if recipe.clues[0] < DEFAULT_CLUES[recipe.size][0]:
        questions = dig_deeper(questions, grids, targets, recipe.difficulty, rng)
    within = (questions > 0).sum(1) <= recipe.clues[1]
    questions, answers = questions[within], grids[within]
    solved = solve(questions)
    assert (solved.counts == 1).all(), "a puzzle without exactly one solution was generated"
    assert (solved.boards == answers).all()
    return Puzzles(questions, answers, canonical_forms(questions, box_of(recipe.size)))


@owns_output
def prepare_sudoku(
    output: str | Path,
    *,
    size: int,
    train: int,
    test: int,
    clues: tuple[int, int] | None = None,
    seed: int = 0,
    difficulty: Difficulty = "singles",
    overwrite: bool = False,
    processes: int | None = None,
) -> DatasetInfo:
    """Generate a dataset of puzzles with one solution each.

    The test puzzles come first in the seed's stream, so a larger training split leaves them as they are. No
    test puzzle is symmetric to another one or to a training puzzle; training puzzles repeat under symmetry
    only when the board has no more (4×4). The number of clues is drawn uniformly; where a grid is not brought
    down to it, the fewest that were found stay, and what was made is told. A range that begins below the size's
    own is dug in several rounds (`dig_deeper`): on 9×9 22 clues are within reach, 20 rare. Same arguments, same bytes.

    Args:
        clues: fewest and most clues; by default 4–8, 9–18 and 26–40 for the sizes 4, 6 and 9.
        difficulty: "singles": naked and hidden singles solve it; "any": may need guessing.
        processes: None decides by the amount of work and the cores.

    Raises:
        ValueError: an argument is out of range, or the board has too few different puzzles.
    """
    recipe = _checked_recipe(size, train, test, clues, difficulty, seed)
    told = f"{train + test:,} Sudoku puzzles {size}×{size} with {recipe.clues[0]}–{recipe.clues[1]} clues"
    tell(f"Making {told}")
    if processes is None:
        processes = num_processes(train + test, _BOARDS_PER_PROCESS[size])
    made = generate(
        partial(_chunk, recipe),
        train=train,
        test=test,
        processes=processes,
        unit="puzzles",
        way_out="widen --clues",
    )
    splits = {name: rows_of_boards(part.questions, part.answers) for name, part in made.items()}
    arguments = {
        "size": size,
        "train": train,
        "test": test,
        "clues": list(recipe.clues),
        "difficulty": difficulty,
    }
    info = _write(output, splits, size, "sudoku", arguments, seed, overwrite=overwrite)
    tell(_told_clues(np.concatenate([part.questions for part in made.values()])))
    return info


def _told_clues(questions: np.ndarray) -> str:
    """Say how many puzzles came out with each number of clues."""
    numbers, puzzles = np.unique((questions > 0).sum(1), return_counts=True)
    each = ", ".join(f"{number}: {count:,}" for number, count in zip(numbers.tolist(), puzzles.tolist(), strict=True))
    return f"Puzzles by their number of clues: {each}"


def _checked_recipe(
    size: int, train: int, test: int, clues: tuple[int, int] | None, difficulty: Difficulty, seed: int
) -> _Recipe:
    box_of(size)
    low, high = clues or DEFAULT_CLUES[size]
    if not FEWEST_CLUES[size] <= low <= high < size * size:
        raise ValueError(
            f"clues={low} {high} must be MIN ≤ MAX between {FEWEST_CLUES[size]} and {size * size - 1} on a "
            f"{size}×{size} board; the default is {DEFAULT_CLUES[size][0]} {DEFAULT_CLUES[size][1]}"
        )
    if difficulty not in ("singles", "any"):
        raise ValueError(f"difficulty={difficulty!r} must be singles or any")
    for name, value, least in (("train", train, 1), ("test", test, 0), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    return _Recipe(size, (low, high), difficulty, seed)


def rows_of_boards(questions: np.ndarray, answers: np.ndarray) -> Rows:
    """Turn boards (P, cells) into token rows, each a puzzle and a group of its own."""
    return Rows.of_single_puzzles(questions.astype(np.int32) + BLANK_TOKEN, answers.astype(np.int32) + BLANK_TOKEN)


def _write(
    output: str | Path,
    splits: dict[str, Rows],
    size: int,
    generator: str,
    arguments: dict[str, Any],
    seed: int,
    **more: Any,
) -> DatasetInfo:
    info = write_dataset(
        output,
        splits,
        vocab_size=size + 2,
        generator=generator,
        arguments=arguments,
        seed=seed,
        symmetry={"name": "sudoku", "box": list(box_of(size))},
        **more,
    )
    tell(f"Wrote {output}: " + ", ".join(f"{split.rows:,} {name}" for name, split in info.splits.items()))
    return info


# --- The public CSV files --------------------------------------------------------------------------------


@owns_output
def prepare_sudoku_from_csv(
    csv_path: str | Path,
    output: str | Path,
    *,
    test_csv: str | Path | None = None,
    test: int | None = None,
    subsample: int | None = None,
    min_difficulty: float | None = None,
    seed: int = 0,
    keep_ambiguous: bool = False,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read 9×9 puzzles from CSV files with the columns question and answer, and perhaps rating.

    Training puzzles that are symmetric to a test puzzle are left out. The chosen lines are recorded in
    chosen_rows.json, so that others can take the same puzzles.

    Args:
        csv_path: a folder with train.csv and test.csv, or the training file.
        test_csv: the test file, where `csv_path` is a file.
        test: how many test puzzles to draw: from the test file, or held out of the training file without one.
        subsample: how many training puzzles to draw; None keeps all in the order of the file.
        min_difficulty: the least `rating` to keep, in both files.
        keep_ambiguous: take puzzles with more than one solution too; otherwise they are left out, and counted.

    Raises:
        DatasetError: a file is missing or malformed (line and value are named), or holds too few puzzles.
    """
    choice = Choice(
        test=test, subsample=subsample, min_difficulty=min_difficulty, seed=seed, keep_ambiguous=keep_ambiguous
    )
    read = read_csv_splits(_CSV, as_path(csv_path), as_path(test_csv) if test_csv is not None else None, choice)
    splits = {name: rows_of_boards(t.questions, t.answers) for name, t in (("train", read.train), ("test", read.test))}
    more = {"side_files": read.side_files, "overwrite": overwrite}
    return _write(output, splits, 9, "sudoku_csv", read.arguments, seed, **more)


def _csv_boards(questions: Sequence[str], answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    asked, answered = (_digits_of(texts) for texts in (questions, answers))
    clues = asked > 0
    no_grid = ~is_solution(np.minimum(answered, 9)) | (answered > 9).any(1)
    too_few = clues.sum(1) < FEWEST_CLUES[9]
    check_rules(
        [
            (asked.max(1) > 9, questions, "the question must hold the characters 0–9 and . alone"),
            (no_grid, answers, "the answer is no valid grid"),
            ((clues & (asked != answered)).any(1), questions, "the answer does not agree with the question"),
            (too_few, questions, f"with less than {FEWEST_CLUES[9]} clues no puzzle has one solution"),
        ]
    )
    return asked, answered


def _csv_forms(questions: np.ndarray) -> list[bytes]:
    return canonical_forms(questions, BOXES[9])


def _has_several_solutions(questions: np.ndarray) -> np.ndarray:
    return solve(questions).counts > 1


def _digits_of(texts: Sequence[str]) -> np.ndarray:
    """Turn texts of 81 characters into (P, 81) digits; what is none becomes a number above 9."""
    codes = codes_of(texts)
    return np.where(codes == ord("."), 0, codes - np.uint8(ord("0"))).astype(np.uint8)


_CSV = CsvKind(
    num_cells=lambda question: 81,
    boards=_csv_boards,
    forms=_csv_forms,
    is_ambiguous=_has_several_solutions,
    told_ambiguous="more than one solution",
)
