"""Sudoku datasets: puzzles that are generated, or read from the public CSV files.

Tokens: 0 PAD, 1 blank, digit d → d + 1. A board in this module is a row of digits, 0 for blank, row by row.
Solver and generator work on hundreds of boards at once: candidates are bit masks (cells, boards), and
one numpy operation serves them all. Python's own cost vanishes in the batch, so no compiled code is needed.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from trm_ray.data.schema import DatasetError, DatasetInfo, Rows, check_target, sha256, write_dataset
from trm_ray.data.symmetries import canonical_forms

Difficulty = Literal["singles", "any"]
Box = tuple[int, int]

BOXES: dict[int, Box] = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
DEFAULT_CLUES = {4: (4, 8), 6: (9, 18), 9: (26, 40)}
# Fewer clues never leave one solution. Source: Wikipedia, Mathematics of Sudoku; for 9×9 McGuire, Tugemann and
# Civario, arXiv 1201.0749.
FEWEST_CLUES = {4: 4, 6: 8, 9: 17}
BLANK_TOKEN = 1

# Boards that are worked on together: enough to hide Python's cost, few enough to stay in the cache.
_BATCH = 512
# Below this many boards a second process costs more than it saves.
_BOARDS_PER_PROCESS = {4: 60_000, 6: 30_000, 9: 5_000}
# The generator gives up on new puzzles after so many chunks with hardly any (a 4×4 board has few).
_BARREN_CHUNKS = 12
_CSV_HEADER = ["source", "question", "answer", "rating"]
_CSV_BLOCK = 16_384
_CANONICAL_BLOCK = 2048


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
class Puzzles:
    """Hold puzzles (P, cells), their solutions (P, cells) and their canonical forms."""

    questions: np.ndarray
    answers: np.ndarray
    forms: list[bytes]


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
    puzzles = grids.copy()
    clues = np.full(len(grids), grids.shape[1])
    order = rng.permuted(np.tile(np.arange(grids.shape[1]), (len(grids), 1)), axis=1)
    for cell in order.T:
        going_on = np.flatnonzero(clues > targets)
        trial = puzzles[going_on]
        trial[np.arange(len(going_on)), cell[going_on]] = 0
        kept = going_on[_has_one_solution(trial, difficulty)]
        puzzles[kept, cell[kept]] = 0
        clues[kept] -= 1
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
    within = (questions > 0).sum(1) <= recipe.clues[1]
    questions, answers = questions[within], grids[within]
    solved = solve(questions)
    assert (solved.counts == 1).all(), "a puzzle without exactly one solution was generated"
    assert (solved.boards == answers).all()
    return Puzzles(questions, answers, canonical_forms(questions, box_of(recipe.size)))


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
    only when the board has no more (4×4). The number of clues is drawn uniformly; where a grid cannot be
    brought down to it, the fewest that its order of cells allows stay. Same arguments, same bytes.

    Args:
        clues: fewest and most clues; by default 4–8, 9–18 and 26–40 for the sizes 4, 6 and 9.
        difficulty: "singles": naked and hidden singles solve it; "any": may need guessing.
        processes: None decides by the amount of work and the cores.

    Raises:
        ValueError: an argument is out of range, or the board has too few different puzzles.
    """
    recipe = _checked_recipe(size, train, test, clues, difficulty, seed)
    check_target(output, overwrite=overwrite)
    told = f"{train + test:,} Sudoku puzzles {size}×{size} with {recipe.clues[0]}–{recipe.clues[1]} clues"
    print(f"Making {told}", flush=True)
    collected = _Collected(train, test)
    with _progress("puzzles", train + test) as advance, _chunks(recipe, processes, train + test) as chunks:
        for chunk in chunks:
            advance(collected.take(chunk))
            if collected.complete:
                break
    print(collected.told())
    splits = {name: part.rows() for name, part in collected.parts.items() if part.wanted}
    arguments = {
        "size": size,
        "train": train,
        "test": test,
        "clues": list(recipe.clues),
        "difficulty": difficulty,
    }
    return _write(output, splits, size, "sudoku", arguments, seed, overwrite)


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


@contextmanager
def _chunks(recipe: _Recipe, processes: int | None, boards: int) -> Iterator[Iterable[Puzzles]]:
    """Yield chunks in the order of their numbers, without end, however many processes make them."""
    if processes is None:
        processes = min(_cores(), boards // _BOARDS_PER_PROCESS[recipe.size])
    if processes <= 1:
        yield (_chunk(recipe, number) for number in _counting())
        return
    import multiprocessing

    # Not "fork": the caller may hold threads (Ray, torch) whose locks a forked child would inherit.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield _ahead(pool, recipe, processes + 1)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(pool: ProcessPoolExecutor, recipe: _Recipe, ahead: int) -> Iterator[Puzzles]:
    waiting: list[Future[Puzzles]] = []
    for number in _counting():
        waiting.append(pool.submit(_chunk, recipe, number))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()


def _counting() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Part:
    """Collect the puzzles of one split."""

    wanted: int
    forms: set[bytes] = field(default_factory=set)
    questions: list[np.ndarray] = field(default_factory=list)
    answers: list[np.ndarray] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.wanted - len(self.questions)

    def add(self, question: np.ndarray, answer: np.ndarray, form: bytes) -> None:
        self.forms.add(form)
        self.questions.append(question)
        self.answers.append(answer)

    def rows(self) -> Rows:
        return rows_of_boards(np.stack(self.questions), np.stack(self.answers))


class _Collected:
    """Deal puzzles out: test first, then train, all different; when no new ones come, train may repeat."""

    def __init__(self, train: int, test: int) -> None:
        self.parts = {"train": _Part(train), "test": _Part(test)}
        self._barren = 0

    @property
    def complete(self) -> bool:
        return not any(part.missing for part in self.parts.values())

    def take(self, chunk: Puzzles) -> int:
        """Keep what is wanted of a chunk and count it.

        Raises:
            ValueError: no more puzzles are to be had.
        """
        before = sum(part.missing for part in self.parts.values())
        train, test = self.parts["train"], self.parts["test"]
        exhausted = self._barren >= _BARREN_CHUNKS
        if exhausted:
            self._check_repeatable()
        fresh = 0
        for question, answer, form in zip(chunk.questions, chunk.answers, chunk.forms, strict=True):
            is_new = form not in test.forms and form not in train.forms
            fresh += is_new
            if is_new and test.missing:
                test.add(question, answer, form)
            elif train.missing and (is_new or (exhausted and form in train.forms)):
                train.add(question, answer, form)
        self._barren = self._barren + 1 if fresh * 50 < _BATCH else 0
        return before - sum(part.missing for part in self.parts.values())

    def told(self) -> str:
        """Say how many of the puzzles are different, which a small board may not allow for all."""
        train = self.parts["train"]
        repeats = train.wanted - len(train.forms)
        told = f"; {repeats:,} training puzzles repeat another one under symmetry" if repeats else ""
        return f"No test puzzle is symmetric to a training puzzle{told}"

    def _check_repeatable(self) -> None:
        train, test = self.parts["train"], self.parts["test"]
        if test.missing or not train.forms:
            raise ValueError(
                f"train={train.wanted} test={test.wanted}: only {len(test.forms):,} puzzles that differ under "
                "symmetry were found for these clues, and training needs some too; ask for fewer test puzzles "
                "or widen --clues"
            )


def rows_of_boards(questions: np.ndarray, answers: np.ndarray) -> Rows:
    """Turn boards (P, cells) into token rows, each a group of its own."""
    count = len(questions)
    return Rows(
        inputs=questions.astype(np.int32) + BLANK_TOKEN,
        labels=answers.astype(np.int32) + BLANK_TOKEN,
        puzzle_identifiers=np.zeros(count, np.int32),
        groups=np.arange(count, dtype=np.int32),
    )


def _write(
    output: str | Path,
    splits: dict[str, Rows],
    size: int,
    generator: str,
    arguments: dict[str, Any],
    seed: int,
    overwrite: bool,
) -> DatasetInfo:
    info = write_dataset(
        output,
        splits,
        vocab_size=size + 2,
        generator=generator,
        arguments=arguments,
        seed=seed,
        symmetry={"name": "sudoku", "box": list(box_of(size))},
        num_puzzle_identifiers=1,
        overwrite=overwrite,
    )
    print(f"Wrote {output}: " + ", ".join(f"{split.rows:,} {name}" for name, split in info.splits.items()))
    return info


# --- The public CSV files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """Hold puzzles (P, 81), their answers (P, 81) and the lines (P,) that they stood on."""

    questions: np.ndarray
    answers: np.ndarray
    lines: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> _Table:
        return _Table(self.questions[chosen], self.answers[chosen], self.lines[chosen])

    def __len__(self) -> int:
        return len(self.lines)


def prepare_sudoku_from_csv(
    csv_path: str | Path,
    output: str | Path,
    *,
    test_csv: str | Path | None = None,
    test: int | None = None,
    subsample: int | None = None,
    min_difficulty: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read 9×9 puzzles from CSV files with the columns source, question, answer and rating.

    Training puzzles that are symmetric to a test puzzle are left out. The chosen lines are recorded in
    dataset.json where `subsample` or `test` chooses, so that others can take the same puzzles.

    Args:
        csv_path: a folder with train.csv and test.csv, or the training file.
        test_csv: the test file, where `csv_path` is a file.
        test: how many test puzzles to draw: from the test file, or held out of the training file without one.
        subsample: how many training puzzles to draw; None keeps all in the order of the file.
        min_difficulty: the least `rating` to keep, in both files.

    Raises:
        DatasetError: a file is missing or malformed (line and value are named), or holds too few puzzles.
    """
    train_file, test_file = _csv_files(Path(csv_path), Path(test_csv) if test_csv is not None else None)
    for name, number in (("subsample", subsample), ("test", test)):
        if number is not None and number < 1:
            raise DatasetError(f"{name}={number} must be at least 1")
    if test_file is None and test is None:
        raise DatasetError(f"{train_file} has no test file; pass --test N, or a folder with train.csv and test.csv")
    check_target(output, overwrite=overwrite)
    tables = {file.name: _read_csv(file, min_difficulty) for file in (train_file, test_file) if file}
    held_out = tables[test_file.name] if test_file else None
    test_rows, train_rows = _csv_splits(tables[train_file.name], held_out, test, subsample, seed)
    arguments = {
        "files": {file.name: sha256(file) for file in (train_file, test_file) if file},
        "test": test,
        "subsample": subsample,
        "min_difficulty": min_difficulty,
        "train_lines": train_rows.lines.tolist() if subsample is not None else None,
        "test_lines": test_rows.lines.tolist() if test is not None else None,
    }
    splits = {name: rows_of_boards(t.questions, t.answers) for name, t in (("train", train_rows), ("test", test_rows))}
    return _write(output, splits, 9, "sudoku_csv", arguments, seed, overwrite)


def _csv_files(path: Path, test_path: Path | None) -> tuple[Path, Path | None]:
    files = (path / "train.csv", path / "test.csv") if path.is_dir() else (path, test_path)
    for file in files:
        if file is not None and not file.is_file():
            raise DatasetError(f"{file} does not exist; pass a CSV file, or a folder with train.csv and test.csv")
    if files[1] is not None and files[0].name == files[1].name:
        raise DatasetError(
            f"{files[0]} and {files[1]} must have different names, by which dataset.json tells them apart"
        )
    return files


def _csv_splits(
    train: _Table, held_out: _Table | None, test: int | None, subsample: int | None, seed: int
) -> tuple[_Table, _Table]:
    """Choose the test rows, then training rows that are symmetric to none of them."""
    rng = np.random.default_rng(seed)
    pool = train if held_out is None else held_out
    chosen = rng.permutation(len(pool))[:test] if test is not None else np.arange(len(pool))
    _check_enough("test", test, len(pool))
    rest = np.arange(len(train)) if held_out is not None else np.setdiff1d(np.arange(len(train)), chosen)
    order = rng.permutation(rest) if subsample is not None else rest
    test_rows = pool[np.sort(chosen)]
    kept = _unlike(train, order, test_rows, subsample)
    _check_enough("subsample", subsample, len(kept))
    if not len(kept):
        raise DatasetError("no training puzzle is left; lower --min-difficulty or --test")
    return test_rows, train[np.sort(kept)]


def _check_enough(name: str, wanted: int | None, there: int) -> None:
    if wanted is not None and wanted > there:
        raise DatasetError(f"{name}={wanted} is more than the {there:,} puzzles that there are; ask for fewer")


def _unlike(train: _Table, order: np.ndarray, test: _Table, limit: int | None) -> np.ndarray:
    """Go through the training rows in `order` and keep up to `limit` that no test row is symmetric to."""
    limit = len(order) if limit is None else limit
    kept: list[int] = []
    with _progress("compared", len(test) + min(limit, len(order))) as advance:
        test_forms: set[bytes] = set()
        for start in range(0, len(test), _CANONICAL_BLOCK):
            forms = canonical_forms(test.questions[start : start + _CANONICAL_BLOCK], BOXES[9])
            test_forms.update(forms)
            advance(len(forms))
        for start in range(0, len(order), _CANONICAL_BLOCK):
            block = order[start : start + _CANONICAL_BLOCK]
            forms = canonical_forms(train.questions[block], BOXES[9])
            kept += [row for row, form in zip(block.tolist(), forms, strict=True) if form not in test_forms]
            advance(len(block))
            if len(kept) >= limit:
                break
    return np.array(kept[:limit], np.int64)


def _read_csv(path: Path, min_difficulty: float | None) -> _Table:
    print(f"Reading {path}", flush=True)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != _CSV_HEADER:
            raise DatasetError(f"{path}:1: the header is {','.join(header)!r}; it must be {','.join(_CSV_HEADER)!r}")
        with _progress("bytes", path.stat().st_size) as advance:
            blocks = list(_csv_blocks(path, reader, min_difficulty, advance))
    if not blocks:
        least = "" if min_difficulty is None else f" with a rating of at least {min_difficulty:g}"
        raise DatasetError(f"{path} holds no puzzle{least}")
    columns = zip(*((block.questions, block.answers, block.lines) for block in blocks), strict=True)
    return _Table(*(np.concatenate(column) for column in columns))


def _csv_blocks(path: Path, reader: Any, min_difficulty: float | None, advance: _Advance) -> Iterator[_Table]:
    rows: list[tuple[int, str, str]] = []
    try:
        for row in reader:
            question, answer, rating = _csv_fields(f"{path}:{reader.line_num}", row)
            advance(sum(map(len, row)) + len(row))
            if min_difficulty is None or rating >= min_difficulty:
                rows.append((reader.line_num, question, answer))
            if len(rows) == _CSV_BLOCK:
                yield _checked_table(path, rows)
                rows = []
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error
    if rows:
        yield _checked_table(path, rows)


def _csv_fields(where: str, row: Sequence[str]) -> tuple[str, str, float]:
    if len(row) != len(_CSV_HEADER):
        raise DatasetError(f"{where}: {len(row)} fields; it must have {len(_CSV_HEADER)}: {','.join(_CSV_HEADER)}")
    _, question, answer, rating = row
    for name, board in (("question", question), ("answer", answer)):
        if len(board) != 81:
            raise DatasetError(f"{where}: {name} has {len(board)} characters, {board!r}; it must have 81")
    try:
        return question, answer, float(rating)
    except ValueError as error:
        raise DatasetError(f"{where}: rating {rating!r} must be a number") from error


def _checked_table(path: Path, rows: Sequence[tuple[int, str, str]]) -> _Table:
    lines = np.array([line for line, _, _ in rows], np.int64)
    texts = [(question, answer) for _, question, answer in rows]
    questions, answers = (_digits_of(column) for column in zip(*texts, strict=True))
    clues = questions > 0
    rules = (
        ((questions > 9).any(1), 0, "the question must hold the characters 0–9 and . alone"),
        (~is_solution(np.minimum(answers, 9)) | (answers > 9).any(1), 1, "the answer is no valid grid"),
        ((clues & (questions != answers)).any(1), 0, "the answer does not agree with the question"),
        (
            clues.sum(1) < FEWEST_CLUES[9],
            0,
            f"with less than {FEWEST_CLUES[9]} clues no puzzle has one solution",
        ),
    )
    for broken, column, rule in rules:
        if broken.any():
            row = int(broken.argmax())
            raise DatasetError(f"{path}:{lines[row]}: {texts[row][column]}: {rule}")
    return _Table(questions, answers, lines)


def _digits_of(texts: Sequence[str]) -> np.ndarray:
    """Turn texts of 81 characters into (P, 81) digits; what is none becomes a number above 9."""
    codes = np.frombuffer("".join(texts).encode("ascii", errors="replace"), np.uint8).reshape(-1, 81)
    return np.where(codes == ord("."), 0, codes - np.uint8(ord("0"))).astype(np.uint8)


# --- Progress --------------------------------------------------------------------------------------------


class _Advance(Protocol):
    def __call__(self, amount: int) -> None: ...


@contextmanager
def _progress(unit: str, total: int) -> Iterator[_Advance]:
    """Show a bar with the time left on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = Console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=total)

        def advance(amount: int) -> None:
            bar.advance(task, amount)

        yield advance
