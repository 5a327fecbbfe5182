"""The public CSV layout of puzzles: `source,question,answer,rating`, a board of characters a field.

What is drawn from a file is a pure function of the seed and the line numbers, and is recorded in `chosen_rows.json`
beside the dataset, with the SHA-256 of the files: the same files and arguments give the same puzzles to everybody.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.data.counters import counter_draws
from trm_ray.data.progress import Advance, progress
from trm_ray.data.schema import DatasetError, sha256

HEADER = ["source", "question", "answer", "rating"]
CHOSEN_ROWS = "chosen_rows.json"

_BLOCK = 16_384
_CANONICAL_BLOCK = 2048


class BadRow(Exception):  # noqa: N818  # a message on its way to the file and line that it belongs to
    """Say which row of a block breaks which rule."""

    def __init__(self, row: int, rule: str) -> None:
        super().__init__(rule)
        self.row = row


@dataclass(frozen=True)
class CsvKind:
    """Say what the files of one kind of puzzle hold.

    Args:
        num_cells: how many characters a board has, told by the first question of a file.
        boards: turns questions and answers, texts of that length, into boards (P, cells); raises `BadRow`.
        forms: what symmetric questions (P, cells) share.
    """

    num_cells: Callable[[str], int]
    boards: Callable[[Sequence[str], Sequence[str]], tuple[np.ndarray, np.ndarray]]
    forms: Callable[[np.ndarray], list[bytes]]


@dataclass(frozen=True)
class Choice:
    """Say which puzzles to take.

    Args:
        test: how many test puzzles to draw: from the test file, or held out of the training file without one.
        subsample: how many training puzzles to draw; None keeps all in the order of the file.
        min_difficulty: the least `rating` to keep, in both files.
    """

    test: int | None = None
    subsample: int | None = None
    min_difficulty: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class CsvTable:
    """Hold questions and answers (P, cells), and the lines (P,) of the file that they stood on."""

    questions: np.ndarray
    answers: np.ndarray
    lines: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> CsvTable:
        return CsvTable(self.questions[chosen], self.answers[chosen], self.lines[chosen])

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class CsvSplits:
    """Hold what was chosen, and the arguments and files that record the choice in the dataset."""

    train: CsvTable
    test: CsvTable
    arguments: dict[str, Any]
    side_files: dict[str, bytes]


def read_csv_splits(kind: CsvKind, csv_path: Path, test_csv: Path | None, choice: Choice) -> CsvSplits:
    """Read puzzles and choose among them; training puzzles that are symmetric to a test puzzle are left out.

    Args:
        csv_path: a folder with train.csv and test.csv, or the training file.
        test_csv: the test file, where `csv_path` is a file.

    Raises:
        DatasetError: a file is missing or malformed (line and value are named), or holds too few puzzles.
    """
    train_file, test_file = _files(csv_path, test_csv)
    for name, number in (("subsample", choice.subsample), ("test", choice.test)):
        if number is not None and number < 1:
            raise DatasetError(f"{name}={number} must be at least 1")
    if test_file is None and choice.test is None:
        raise DatasetError(f"{train_file} has no test file; pass --test N, or a folder with train.csv and test.csv")
    tables = [_read(kind, file, choice.min_difficulty) for file in (train_file, test_file) if file]
    test, train = _splits(kind, tables[0], tables[1] if test_file else None, choice)
    files = {file.name: sha256(file) for file in (train_file, test_file) if file}
    arguments = {
        "files": files,
        "test": choice.test,
        "subsample": choice.subsample,
        "min_difficulty": choice.min_difficulty,
    }
    recorded = {
        name: {"file": file.name, "sha256": files[file.name], "lines": _chosen_lines(chosen, whole)}
        for name, file, chosen, whole in (
            ("train", train_file, train, tables[0]),
            ("test", test_file or train_file, test, tables[-1]),
        )
    }
    side_file = json.dumps({"format_version": 1, "seed": choice.seed, **recorded}) + "\n"
    return CsvSplits(train, test, arguments, {CHOSEN_ROWS: side_file.encode()})


def _chosen_lines(chosen: CsvTable, whole: CsvTable) -> list[int] | None:
    """List the lines of the file, the header's being 1; None stands for all of (at least) the rating asked for."""
    return chosen.lines.tolist() if len(chosen) < len(whole) else None


def _files(path: Path, test_path: Path | None) -> tuple[Path, Path | None]:
    files = (path / "train.csv", path / "test.csv") if path.is_dir() else (path, test_path)
    for file in files:
        if file is not None and not file.is_file():
            raise DatasetError(f"{file} does not exist; pass a CSV file, or a folder with train.csv and test.csv")
    if files[1] is not None and files[0].name == files[1].name:
        raise DatasetError(
            f"{files[0]} and {files[1]} must have different names, by which dataset.json tells them apart"
        )
    return files


# --- Choosing --------------------------------------------------------------------------------------------


def _splits(kind: CsvKind, train: CsvTable, held_out: CsvTable | None, choice: Choice) -> tuple[CsvTable, CsvTable]:
    """Choose the test rows, then training rows that are symmetric to none of them."""
    pool = train if held_out is None else held_out
    _check_enough("test", choice.test, len(pool))
    order = np.arange(len(pool)) if choice.test is None else _shuffled(pool, choice.seed)
    test = pool[np.sort(order[: choice.test])]
    rest = np.arange(len(train)) if choice.subsample is None else _shuffled(train, choice.seed)
    if held_out is None:
        rest = rest[~np.isin(train.lines[rest], test.lines)]
    kept = _unlike(kind, train, rest, test, choice.subsample)
    _check_enough("subsample", choice.subsample, len(kept))
    if not len(kept):
        raise DatasetError("no training puzzle is left; lower --min-difficulty or --test")
    return test, train[np.sort(kept)]


def _shuffled(table: CsvTable, seed: int) -> np.ndarray:
    """Order rows by a hash of seed and line: no generator whose stream another release might change."""
    return np.argsort(counter_draws(seed, 0, table.lines, 1)[:, 0], kind="stable")


def _check_enough(name: str, wanted: int | None, there: int) -> None:
    if wanted is not None and wanted > there:
        raise DatasetError(f"{name}={wanted} is more than the {there:,} puzzles that there are; ask for fewer")


def _unlike(kind: CsvKind, train: CsvTable, order: np.ndarray, test: CsvTable, limit: int | None) -> np.ndarray:
    """Go through the training rows in `order` and keep up to `limit` that no test row is symmetric to."""
    limit = len(order) if limit is None else limit
    kept: list[int] = []
    with progress("compared", len(test) + min(limit, len(order))) as advance:
        test_forms: set[bytes] = set()
        for start in range(0, len(test), _CANONICAL_BLOCK):
            forms = kind.forms(test.questions[start : start + _CANONICAL_BLOCK])
            test_forms.update(forms)
            advance(len(forms))
        for start in range(0, len(order), _CANONICAL_BLOCK):
            block = order[start : start + _CANONICAL_BLOCK]
            forms = kind.forms(train.questions[block])
            kept += [row for row, form in zip(block.tolist(), forms, strict=True) if form not in test_forms]
            advance(len(block))
            if len(kept) >= limit:
                break
    return np.array(kept[:limit], np.int64)


# --- Reading ---------------------------------------------------------------------------------------------


def _read(kind: CsvKind, path: Path, min_difficulty: float | None) -> CsvTable:
    print(f"Reading {path}", flush=True)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != HEADER:
            raise DatasetError(f"{path}:1: the header is {','.join(header)!r}; it must be {','.join(HEADER)!r}")
        with progress("bytes", path.stat().st_size) as advance:
            blocks = list(_blocks(kind, path, reader, min_difficulty, advance))
    if not blocks:
        least = "" if min_difficulty is None else f" with a rating of at least {min_difficulty:g}"
        raise DatasetError(f"{path} holds no puzzle{least}")
    columns = zip(*((block.questions, block.answers, block.lines) for block in blocks), strict=True)
    return CsvTable(*(np.concatenate(column) for column in columns))


def _blocks(
    kind: CsvKind, path: Path, reader: Any, min_difficulty: float | None, advance: Advance
) -> Iterator[CsvTable]:
    rows: list[tuple[int, str, str]] = []
    num_cells = 0
    try:
        for row in reader:
            where = f"{path}:{reader.line_num}"
            num_cells = num_cells or _num_cells(kind, where, row)
            question, answer, rating = _fields(where, row, num_cells)
            advance(sum(map(len, row)) + len(row))
            if min_difficulty is None or rating >= min_difficulty:
                rows.append((reader.line_num, question, answer))
            if len(rows) == _BLOCK:
                yield _checked_table(kind, path, rows)
                rows = []
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error
    if rows:
        yield _checked_table(kind, path, rows)


def _num_cells(kind: CsvKind, where: str, row: Sequence[str]) -> int:
    try:
        return kind.num_cells(row[1] if len(row) > 1 else "")
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error


def _fields(where: str, row: Sequence[str], num_cells: int) -> tuple[str, str, float]:
    if len(row) != len(HEADER):
        raise DatasetError(f"{where}: {len(row)} fields; it must have {len(HEADER)}: {','.join(HEADER)}")
    _, question, answer, rating = row
    for name, board in (("question", question), ("answer", answer)):
        if len(board) != num_cells:
            raise DatasetError(f"{where}: {name} has {len(board)} characters, {board!r}; it must have {num_cells}")
    try:
        return question, answer, float(rating)
    except ValueError as error:
        raise DatasetError(f"{where}: rating {rating!r} must be a number") from error


def _checked_table(kind: CsvKind, path: Path, rows: Sequence[tuple[int, str, str]]) -> CsvTable:
    lines, questions, answers = zip(*rows, strict=True)
    try:
        return CsvTable(*kind.boards(questions, answers), np.array(lines, np.int64))
    except BadRow as error:
        raise DatasetError(f"{path}:{lines[error.row]}: {error}") from error


def codes_of(texts: Sequence[str]) -> np.ndarray:
    """Turn texts of one length into ASCII codes (P, cells) uint8; what is no ASCII becomes `?`."""
    return np.frombuffer("".join(texts).encode("ascii", errors="replace"), np.uint8).reshape(len(texts), -1)


def check_rules(rules: Sequence[tuple[np.ndarray, Sequence[str], str]]) -> None:
    """Check rows (P,) against rules, each (which rows break it, what to show of them, its words).

    Raises:
        BadRow: the first rule that is broken, at the first row that breaks it.
    """
    for broken, texts, rule in rules:
        if broken.any():
            row = int(broken.argmax())
            raise BadRow(row, f"{texts[row]}: {rule}")
