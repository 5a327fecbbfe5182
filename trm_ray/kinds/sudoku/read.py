"""Sudoku from the public CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trm_ray.data.format import DatasetInfo
from trm_ray.data.write import owns_output
from trm_ray.kinds.csv import Choice, CsvKind, check_rules, codes_of, read_csv_splits
from trm_ray.kinds.generation import write_boards
from trm_ray.kinds.sudoku.generate import described
from trm_ray.kinds.sudoku.rules import BOXES, FEWEST_CLUES, is_solution, rows_of_boards, solve
from trm_ray.kinds.sudoku.symmetry import canonical_forms
from trm_ray.storage import as_path


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
    return write_boards(
        output,
        splits,
        **described(9),
        generator="sudoku_csv",
        arguments=read.arguments,
        seed=seed,
        side_files=read.side_files,
        overwrite=overwrite,
    )


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


def _digits_of(texts: Sequence[str]) -> np.ndarray:
    """Turn texts of 81 characters into (P, 81) digits; what is none becomes a number above 9."""
    codes = codes_of(texts)
    return np.where(codes == ord("."), 0, codes - np.uint8(ord("0"))).astype(np.uint8)


_CSV = CsvKind(
    num_cells=lambda question: 81,
    boards=_csv_boards,
    forms=lambda questions: canonical_forms(questions, BOXES[9]),
    is_ambiguous=lambda questions: solve(questions).counts > 1,
    told_ambiguous="more than one solution",
)
