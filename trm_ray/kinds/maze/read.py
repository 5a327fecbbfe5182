"""Mazes from the public CSV files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trm_ray.data.format import DatasetInfo
from trm_ray.data.progress import tell
from trm_ray.data.write import owns_output
from trm_ray.kinds.csv import Choice, CsvKind, CsvTable, check_rules, codes_of, read_csv_splits
from trm_ray.kinds.generation import write_boards
from trm_ray.kinds.maze.generate import Augment, symmetry_of
from trm_ray.kinds.maze.rules import (
    BATCH,
    CHARACTERS,
    FREE,
    GOAL,
    PATH,
    START,
    VOCAB_SIZE,
    WALL,
    canonical_forms,
    distances,
    is_shortest_answer,
    on_shortest,
    rows_of_boards,
    shortest_lengths,
    squares,
)
from trm_ray.storage import as_path


@owns_output
def prepare_maze_from_csv(
    csv_path: str | Path,
    output: str | Path,
    *,
    test: int | None = None,
    subsample: int | None = None,
    seed: int = 0,
    augment: Augment = "none",
    keep_ambiguous: bool = False,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read mazes from CSV files with the columns question and answer.

    Training mazes that are a rotation or mirror image of a test maze are left out. The chosen lines are recorded in
    chosen_rows.json.

    Args:
        csv_path: a folder with train.csv and test.csv, or one file.
        test: how many test mazes to draw: from the test file, or held out of the one file.
        subsample: how many training mazes to draw; None keeps all in the order of the file.
        keep_ambiguous: take mazes with several shortest paths too; otherwise they are left out, and counted.

    Raises:
        ValueError: a file is missing or malformed (line and value are named), or holds too few mazes.
    """
    symmetry = symmetry_of(augment)
    choice = Choice(test=test, subsample=subsample, seed=seed, keep_ambiguous=keep_ambiguous)
    read = read_csv_splits(_CSV, as_path(csv_path), None, choice)
    longer = _num_longer(read.train) + _num_longer(read.test)
    if longer:
        tell(f"{longer:,} answers are paths with a shorter way; they are kept as they are")
    return write_boards(
        output,
        {"train": rows_of_boards(read.train), "test": rows_of_boards(read.test)},
        kind="maze",
        vocab_size=VOCAB_SIZE,
        generator="maze_csv",
        arguments=read.arguments,
        seed=seed,
        symmetry=symmetry,
        side_files=read.side_files,
        overwrite=overwrite,
    )


def _num_longer(mazes: CsvTable) -> int:
    """Count the answers that are no shortest path."""
    return sum(
        int((~is_shortest_answer(mazes.questions[start : start + BATCH], mazes.answers[start : start + BATCH])).sum())
        for start in range(0, len(mazes.questions), BATCH)
    )


def _num_cells(question: str) -> int:
    if not question or math.isqrt(len(question)) ** 2 != len(question):
        raise ValueError(f"question has {len(question)} characters, {question!r}; a maze is a square of them")
    return len(question)


def _csv_boards(questions: Sequence[str], answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    asked, answered = (_tokens_of(texts) for texts in (questions, answers))
    ends = [(asked == end).sum(1) != 1 for end in (START, GOAL)]
    same = (asked == answered) | ((answered == PATH) & (asked == FREE))
    check_rules(
        [
            (((asked == 0) | (asked == PATH)).any(1), questions, "the question must hold the characters `# SG` alone"),
            ((answered == 0).any(1), answers, "the answer must hold the characters `# SGo` alone"),
            (ends[0] | ends[1], questions, "the question must have exactly one S and one G"),
            (~same.all(1), answers, "the answer does not agree with the question outside o"),
            (~_is_joined(answered), answers, "the cells marked with o do not lead from S to G"),
        ]
    )
    return asked, answered


def _has_several_shortest(questions: np.ndarray) -> np.ndarray:
    """Say which mazes (P, cells) have more than one shortest path: more cells lie on one than it has."""
    marked = []
    for start in range(0, len(questions), BATCH):
        boards = squares(questions[start : start + BATCH])
        begin, goal = boards == START, boards == GOAL
        on_path = on_shortest(boards != WALL, begin, goal).sum((1, 2))
        marked.append(on_path > 1 + shortest_lengths(questions[start : start + BATCH]))
    return np.concatenate([np.zeros(0, bool), *marked])


def _tokens_of(texts: Sequence[str]) -> np.ndarray:
    """Turn texts into tokens (P, cells), 0 for what is no character of a maze."""
    tokens = np.zeros(256, np.uint8)
    tokens[[ord(character) for character in CHARACTERS]] = np.arange(1, VOCAB_SIZE)
    return tokens[codes_of(texts)]


def _is_joined(answers: np.ndarray) -> np.ndarray:
    boards = squares(answers)
    way = np.isin(boards, (START, GOAL, PATH))
    return ((distances(way, boards == START) >= 0) & (boards == GOAL)).any((1, 2))


_CSV = CsvKind(
    num_cells=_num_cells,
    boards=_csv_boards,
    forms=canonical_forms,
    is_ambiguous=_has_several_shortest,
    told_ambiguous="several shortest paths",
    blanks_count=True,
)
