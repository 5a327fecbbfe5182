"""Puzzles in CSV files: columns `question`, `answer` and perhaps `rating`, a board of characters a field.

The public files have `source,question,answer,rating`. Columns are found by name, in any order and case, and others are
passed over; fields may be parted by commas, semicolons or tabs, and the file packed by gzip. What is drawn from a file
is a pure function of the seed and the line numbers, and is recorded in `chosen_rows.json` beside the dataset, with the
SHA-256 of the files: the same files and arguments give the same puzzles to everybody.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from trm_ray.config.text import opened_text
from trm_ray.data.counters import counter_draws
from trm_ray.data.progress import progress, tell
from trm_ray.data.rows import DatasetError
from trm_ray.storage import sha256

# What others call the columns; the first name goes before the others.
NAMES = {
    "question": ("question", "questions", "puzzle", "puzzles", "quiz", "quizzes"),
    "answer": ("answer", "answers", "solution", "solutions"),
    "rating": ("rating", "difficulty"),
}
CHOSEN_ROWS = "chosen_rows.json"
ENDINGS = (".csv", ".csv.gz")
# Archives and spreadsheets, which nobody should wonder about.
_PACKED = (".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz", ".xlsx", ".xls", ".ods", ".parquet")
_SEPARATORS = [",", ";", "\t"]

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
        is_ambiguous: says which questions (P, cells) have more than one right answer.
        told_ambiguous: what those have, in words.
        blanks_count: whether a blank at the end of a board is a cell of it.
    """

    num_cells: Callable[[str], int]
    boards: Callable[[Sequence[str], Sequence[str]], tuple[np.ndarray, np.ndarray]]
    forms: Callable[[np.ndarray], list[bytes]]
    is_ambiguous: Callable[[np.ndarray], np.ndarray]
    told_ambiguous: str
    blanks_count: bool = False


@dataclass(frozen=True)
class Choice:
    """Say which puzzles to take.

    Args:
        test: how many test puzzles to draw: from the test file, or held out of the training file without one.
        subsample: how many training puzzles to draw; None keeps all in the order of the file.
        min_difficulty: the least `rating` to keep, in both files; a puzzle without a rating has less.
        keep_ambiguous: take puzzles too that have more than one right answer.
    """

    test: int | None = None
    subsample: int | None = None
    min_difficulty: float | None = None
    seed: int = 0
    keep_ambiguous: bool = False


@dataclass(frozen=True)
class CsvTable:
    """Hold questions and answers (P, cells), and the lines (P,) of the file that they stood on."""

    file: Path
    questions: np.ndarray
    answers: np.ndarray
    lines: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> CsvTable:
        return CsvTable(self.file, self.questions[chosen], self.answers[chosen], self.lines[chosen])

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
    ambiguous = _Ambiguous(kind, choice.keep_ambiguous)
    test, train = _splits(kind, tables[0], tables[1] if test_file else None, choice, ambiguous)
    ambiguous.tell()
    files = {file.name: sha256(file) for file in (train_file, test_file) if file}
    arguments = {
        "files": files,
        "test": choice.test,
        "subsample": choice.subsample,
        "min_difficulty": choice.min_difficulty,
        **({"keep_ambiguous": True} if choice.keep_ambiguous else {}),
    }
    recorded = {
        name: {
            "file": file.name,
            "sha256": files[file.name],
            # The header's is 1; None stands for all of (at least) the rating asked for.
            "lines": chosen.lines.tolist() if len(chosen) < len(whole) else None,
            **ambiguous.recorded(file),
        }
        for name, file, chosen, whole in (
            ("train", train_file, train, tables[0]),
            ("test", test_file or train_file, test, tables[-1]),
        )
    }
    side_file = json.dumps({"format_version": 1, "seed": choice.seed, **recorded}) + "\n"
    return CsvSplits(train, test, arguments, {CHOSEN_ROWS: side_file.encode()})


def _files(path: Path, test_path: Path | None) -> tuple[Path, Path | None]:
    files = (_in_folder(path, "train"), _in_folder(path, "test")) if path.is_dir() else (path, test_path)
    for file in files:
        if file is not None and not file.is_file():
            raise DatasetError(f"{file} does not exist; pass a CSV file, or a folder with train.csv and test.csv")
        if file is not None and file.suffix.lower() in _PACKED:
            raise DatasetError(f"{file} is not read; {' and '.join(ENDINGS)} are: unpack it, or save it as such")
    if files[1] is not None and files[0].name == files[1].name:
        rule = "must have different names, by which dataset.json tells them apart"
        raise DatasetError(f"{files[0]} and {files[1]} {rule}")
    return files


def _in_folder(folder: Path, name: str) -> Path:
    """Find a file by its name without ending; the one that is not packed goes first."""
    places = [folder / f"{name}{ending}" for ending in ENDINGS]
    return next((place for place in places if place.is_file()), places[0])


# --- Choosing --------------------------------------------------------------------------------------------


def _splits(
    kind: CsvKind, train: CsvTable, held_out: CsvTable | None, choice: Choice, ambiguous: _Ambiguous
) -> tuple[CsvTable, CsvTable]:
    """Choose the test rows, then training rows that are symmetric to none of them."""
    pool = train if held_out is None else held_out
    _check_enough("test", choice.test, len(pool))
    order = np.arange(len(pool)) if choice.test is None else _shuffled(pool, choice.seed)
    kept = _clear(pool, order, choice.test, ambiguous)
    _check_enough("test", choice.test, len(kept))
    if not len(kept):
        raise DatasetError(f"no test puzzle is left: all have {kind.told_ambiguous}; --keep-ambiguous takes them")
    test = pool[np.sort(kept)]
    rest = np.arange(len(train)) if choice.subsample is None else _shuffled(train, choice.seed)
    if held_out is None:
        rest = rest[~np.isin(train.lines[rest], [*test.lines, *ambiguous.left_out(train.file)])]
    kept = _unlike(kind, train, rest, test, choice.subsample, ambiguous)
    if len(kept) < (choice.subsample or 1):
        left_out = {
            "held out for the test split": len(test) if held_out is None else 0,
            f"with {kind.told_ambiguous} (--keep-ambiguous takes them)": len(ambiguous.left_out(train.file)),
        }
        left_out["symmetric to a test puzzle"] = len(train) - len(kept) - sum(left_out.values())
        raise DatasetError(_told_too_few(train, len(kept), left_out, choice))
    return test, train[np.sort(kept)]


def _told_too_few(train: CsvTable, num_left: int, left_out: Mapping[str, int], choice: Choice) -> str:
    """Say what became of the training puzzles where too few are left."""
    rated = "" if choice.min_difficulty is None else f" with a rating of at least {choice.min_difficulty:g}"
    counted = ", ".join(f"{number:,} {why}" for why, number in left_out.items() if number)
    of = f"of the {len(train):,} in {train.file}{rated}" + (f": {counted}" if counted else "")
    if num_left:
        return f"subsample={choice.subsample} is more than the {num_left:,} puzzles that are left {of}; ask for fewer"
    fewer = "" if choice.min_difficulty is None else ", or lower --min-difficulty"
    return f"no training puzzle is left {of}; take fewer test puzzles (--test){fewer}"


class _Ambiguous:
    """Find the puzzles that have more than one right answer, of which the file names one, and count them.

    Accuracy would call a right answer wrong, so they are left out unless they were asked for.
    """

    def __init__(self, kind: CsvKind, kept: bool) -> None:
        self._kind, self._kept = kind, kept
        self._num_seen, self._lines = 0, dict[Path, list[int]]()

    def without(self, table: CsvTable, rows: np.ndarray) -> np.ndarray:
        """Return those of some rows, which were not asked about before, that are to be taken."""
        ambiguous = self._kind.is_ambiguous(table.questions[rows])
        self._num_seen += len(rows)
        self._lines.setdefault(table.file, []).extend(table.lines[rows[ambiguous]].tolist())
        return rows if self._kept else rows[~ambiguous]

    def left_out(self, file: Path) -> list[int]:
        """List the lines of a file that are not to be taken."""
        return [] if self._kept else sorted(self._lines.get(file, []))

    def recorded(self, file: Path) -> dict[str, list[int]]:
        """Give what chosen_rows.json says of a file, nothing where nothing was left out."""
        lines = self.left_out(file)
        return {"ambiguous_lines_left_out": lines} if lines else {}

    def tell(self) -> None:
        """Say how many there are and what became of them."""
        found = [f"{file.name}:{line}" for file, lines in self._lines.items() for line in sorted(lines)]
        if not found:
            return
        became = "are kept" if self._kept else "are left out; --keep-ambiguous keeps them"
        first = f"the first is {found[0]}" if len(found) > 1 else found[0]
        told = f"{len(found):,} of {self._num_seen:,} puzzles have {self._kind.told_ambiguous} ({first})"
        tell(f"{told} and {became}")


def _clear(table: CsvTable, order: np.ndarray, limit: int | None, ambiguous: _Ambiguous) -> np.ndarray:
    """Go through rows in `order` and keep up to `limit` that are to be taken."""
    limit = len(order) if limit is None else limit
    kept: list[int] = []
    with progress("puzzles solved", min(limit, len(order))) as advance:
        while len(kept) < limit and len(order):
            block, order = np.split(order, [min(_CANONICAL_BLOCK, limit - len(kept))])
            kept += ambiguous.without(table, block).tolist()
            advance(len(block))
    return np.array(kept, np.int64)


def _shuffled(table: CsvTable, seed: int) -> np.ndarray:
    """Order rows by a hash of seed and line: no generator whose stream another release might change."""
    return np.argsort(counter_draws(seed, 0, table.lines, 1)[:, 0], kind="stable")


def _check_enough(name: str, wanted: int | None, there: int) -> None:
    if wanted is not None and wanted > there:
        raise DatasetError(f"{name}={wanted} is more than the {there:,} puzzles that there are; ask for fewer")


def _unlike(
    kind: CsvKind, train: CsvTable, order: np.ndarray, test: CsvTable, limit: int | None, ambiguous: _Ambiguous
) -> np.ndarray:
    """Go through the training rows in `order` and keep up to `limit` that no test row is symmetric to."""
    limit = len(order) if limit is None else limit
    kept: list[int] = []
    with progress("compared", len(test) + min(limit, len(order))) as advance:
        test_forms: set[bytes] = set()
        for start in range(0, len(test), _CANONICAL_BLOCK):
            forms = kind.forms(test.questions[start : start + _CANONICAL_BLOCK])
            test_forms.update(forms)
            advance(len(forms))
        while len(kept) < limit and len(order):
            part, order = np.split(order, [min(_CANONICAL_BLOCK, limit - len(kept))])
            block = ambiguous.without(train, part)
            forms = kind.forms(train.questions[block])
            kept += [row for row, form in zip(block.tolist(), forms, strict=True) if form not in test_forms]
            advance(len(part))
    return np.array(kept, np.int64)


# --- Reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Say where in a row of so many fields question, answer and rating stand, and what the header calls all of them."""

    question: int
    answer: int
    rating: int | None
    names: list[str]


def _read(kind: CsvKind, path: Path, min_difficulty: float | None) -> CsvTable:
    blocks = []
    try:
        with opened_text(path) as (text, file), progress("bytes", path.stat().st_size) as advance:
            come = 0
            for block in _blocks(kind, path, text, min_difficulty):
                blocks.append(block)
                advance(file.tell() - come)
                come = file.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is cut short or damaged ({error}); fetch or pack it again") from error
    if not blocks:
        least = "" if min_difficulty is None else f" with a rating of at least {min_difficulty:g}"
        raise DatasetError(f"{path} holds no puzzle{least}")
    columns = zip(*((block.questions, block.answers, block.lines) for block in blocks), strict=True)
    return CsvTable(path, *(np.concatenate(column) for column in columns))


def _blocks(kind: CsvKind, path: Path, text: TextIO, min_difficulty: float | None) -> Iterator[CsvTable]:
    rows: list[tuple[int, str, str]] = []
    num_cells = 0
    reader, before, columns = _header(path, text)
    if min_difficulty is not None and columns.rating is None:
        asked = f"min_difficulty={min_difficulty:g}"
        raise DatasetError(f"{path} has no column rating, which {asked} asks for; leave it out")
    tell(f"Reading {path}")
    try:
        for row in reader:
            line = before + reader.line_num
            if not any(map(str.strip, row)):
                continue
            question, answer, rating = _fields(f"{path}:{line}", row, columns, min_difficulty)
            if not kind.blanks_count:
                question, answer = question.strip(), answer.strip()
            num_cells = num_cells or _num_cells(kind, f"{path}:{line}", question)
            for name, board in (("question", question), ("answer", answer)):
                if len(board) != num_cells:
                    mistake = f"{name} has {len(board)} characters, {board!r}; it must have {num_cells}"
                    other = "boards of another size come in by `write_dataset` (docs/data.md)"
                    raise DatasetError(f"{path}:{line}: {mistake}; {other}")
            if min_difficulty is None or rating >= min_difficulty:
                rows.append((line, question, answer))
            if len(rows) == _BLOCK:
                yield _checked_table(kind, path, rows)
                rows = []
    except csv.Error as error:
        raise DatasetError(f"{path}:{before + reader.line_num}: not valid CSV: {error}") from error
    if rows:
        yield _checked_table(kind, path, rows)


def _header(path: Path, text: TextIO) -> tuple[Any, int, _Columns]:
    """Find the columns in the first line that is not blank, and what parts them.

    Returns:
        A reader of the rows after it, the number of lines before those, and the columns.
    """
    separators = _SEPARATORS
    for number, line in enumerate(iter(text.readline, ""), 1):
        if named := re.fullmatch(r"sep=(.)\s*", line):  # what a spreadsheet writes before the header
            separators = [named[1]]
        elif line.strip():
            for separator in separators:
                if columns := _columns(next(csv.reader([line], delimiter=separator), [])):
                    return csv.reader(text, delimiter=separator), number, columns
            raise DatasetError(f"{path}:{number}: {_no_header(line.strip())}")
    raise DatasetError(f"{path} is empty; its first line must name the columns question and answer")


def _no_header(line: str) -> str:
    if "\0" in line or "\ufffd" in line:
        return f"it is no text in UTF-8 or UTF-16; save it as CSV: {' and '.join(ENDINGS)} are read"
    return (
        f"the header is {line[:200]!r}; it must name the columns question and answer (or puzzle and solution), "
        "and may name rating"
    )


def _columns(header: Sequence[str]) -> _Columns | None:
    """Find the columns by their names, or None without a question and an answer."""
    names = _without_blank_end([name.strip() for name in header], len(header))
    places = {name.lower(): place for place, name in reversed([*enumerate(names)])}
    found = {column: next((places[name] for name in known if name in places), None) for column, known in NAMES.items()}
    question, answer = found["question"], found["answer"]
    return None if question is None or answer is None else _Columns(question, answer, found["rating"], names)


def _fields(where: str, row: Sequence[str], columns: _Columns, min_difficulty: float | None) -> tuple[str, str, float]:
    if len(row) != len(columns.names):
        row = _without_blank_end(row, len(row) - len(columns.names))
    if len(row) != len(columns.names):
        names = ",".join(columns.names)
        raise DatasetError(f"{where}: {len(row)} fields; it must have {len(columns.names)}: {names}")
    rating = "" if columns.rating is None else row[columns.rating].strip()
    is_asked = min_difficulty is not None or (columns.rating is not None and columns.names[columns.rating] == "rating")
    try:
        return row[columns.question], row[columns.answer], float(rating) if rating and is_asked else math.nan
    except ValueError as error:
        raise DatasetError(f"{where}: rating {rating!r} must be a number") from error


def _without_blank_end(row: Sequence[str], most: int) -> list[str]:
    """Cut up to so many blank fields off the end of a row, which spreadsheets fill up with separators."""
    kept = list(row)
    while most > 0 and kept and not kept[-1].strip():
        kept, most = kept[:-1], most - 1
    return kept


def _num_cells(kind: CsvKind, where: str, question: str) -> int:
    try:
        return kind.num_cells(question)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error


def _checked_table(kind: CsvKind, path: Path, rows: Sequence[tuple[int, str, str]]) -> CsvTable:
    lines, questions, answers = zip(*rows, strict=True)
    try:
        return CsvTable(path, *kind.boards(questions, answers), np.array(lines, np.int64))
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
