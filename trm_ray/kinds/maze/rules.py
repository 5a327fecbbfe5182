"""Mazes as boards: reading them, checking paths, measuring distances, hundreds at once."""

from __future__ import annotations

import math

import numpy as np

from trm_ray.data.rows import Rows
from trm_ray.kinds.csv import CsvTable
from trm_ray.kinds.dihedral import dihedral_cells
from trm_ray.kinds.generation import Puzzles

CHARACTERS = "# SGo"
WALL, FREE, START, GOAL, PATH = range(1, 6)
VOCAB_SIZE = len(CHARACTERS) + 1
SMALLEST = 4
# Boards that are worked on together: enough to hide Python's cost, few enough to stay in the cache.
BATCH = 256


def parse_maze(text: str) -> np.ndarray:
    """Read a maze (cells,) of tokens from characters, with or without line ends.

    Raises:
        ValueError: not a square, a character that is none of `# SGo`, or not exactly one S and one G.
    """
    cells = "".join(text.splitlines())
    size = math.isqrt(len(cells))
    if size * size != len(cells) or size < 2:
        raise ValueError(f"a maze is a square of characters; got {len(cells)} of them (trailing blanks count)")
    wrong = [character for character in cells if character not in CHARACTERS]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no character of a maze; use # for walls, blanks for free cells, S, G and o")
    for name in "SG":
        if cells.count(name) != 1:
            raise ValueError(f"a maze has exactly one {name}; got {cells.count(name)}")
    return np.array([CHARACTERS.index(character) + 1 for character in cells], np.uint8)


def is_valid_answer(question: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Say whether the cells marked in an answer are a path from S to G through free cells.

    Each marked cell has the path on two sides, S and G on one: nothing branches, and nothing is marked besides.

    Args:
        question: (B, cells) or (cells,) tokens with one S and one G.
        answer: tokens of the same shape, whatever a model predicted.

    Returns:
        (B,) or () bool.
    """
    return _checked(question, answer)[0]


def is_shortest_answer(question: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Say whether an answer is valid and no shorter path exists; arguments and result as in `is_valid_answer`."""
    valid, length = _checked(question, answer)
    return valid & (length == shortest_lengths(question))


def shortest_lengths(question: np.ndarray) -> np.ndarray:
    """Count the steps from S to G on a shortest path: (B,) or (); −1 where there is none."""
    boards = squares(question)
    lengths = (distances(boards != WALL, boards == START) * (boards == GOAL)).sum((1, 2))
    return lengths.reshape(question.shape[:-1])


def _checked(question: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which answers are valid and how long their paths are, shaped as the boards without their cells."""
    questions, answers = squares(question), squares(answer)
    marked = answers == PATH
    path = marked | (questions == START) | (questions == GOAL)
    agrees = np.where(marked, questions == FREE, answers == questions).all((1, 2))
    joined = (distances(path, questions == START) >= 0) | ~path
    simple = np.where(path, num_neighbours(path) == 1 + marked, True).all((1, 2))
    valid = agrees & joined.all((1, 2)) & simple
    return valid.reshape(question.shape[:-1]), (path.sum((1, 2)) - 1).reshape(question.shape[:-1])


def squares(tokens: np.ndarray) -> np.ndarray:
    """Lay boards (…, cells) out as squares (P, n, n)."""
    size = math.isqrt(tokens.shape[-1])
    return tokens.reshape(-1, size, size)


def num_neighbours(cells: np.ndarray) -> np.ndarray:
    """Count for each cell (B, n, n) on how many of its four sides one of the `cells` lies."""
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1))).astype(np.int8)
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def distances(free: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Count the steps to each free cell (B, n, n) from the nearest source, −1 where no path leads."""
    border = ((0, 0), (1, 1), (1, 1))
    width = free.shape[1] + 2
    unseen = np.pad(free, border).reshape(-1)
    steps = np.full(unseen.shape, -1, np.int32)
    frontier, step = np.flatnonzero(np.pad(sources & free, border)), 0
    while frontier.size:
        steps[frontier], unseen[frontier] = step, False
        beside = (frontier[:, None] + [-width, -1, 1, width]).reshape(-1)
        frontier, step = np.unique(beside[unseen[beside]]), step + 1
    return steps.reshape(-1, width, width)[:, 1:-1, 1:-1]


def flattened(boards: np.ndarray) -> np.ndarray:
    """Undo `squares`."""
    return boards.reshape(len(boards), boards.shape[1] * boards.shape[2])


def on_shortest(free: np.ndarray, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Mark the cells that lie on some shortest path; if there were two, they would not be a valid answer."""
    from_start, from_goal = distances(free, start), distances(free, goal)
    length = (from_start * goal).sum((1, 2))[:, None, None]
    return free & (from_start + from_goal == length)


def canonical_forms(boards: np.ndarray) -> list[bytes]:
    """Find for each maze (P, cells) the one that stands for all its rotations and mirror images."""
    turned = boards[:, dihedral_cells(math.isqrt(boards.shape[1]))]
    return [min(board.tobytes() for board in eight) for eight in turned]


def rows_of_boards(boards: Puzzles | CsvTable) -> Rows:
    """Turn mazes (P, cells) into token rows, each a puzzle and a group of its own."""
    return Rows.of_single_puzzles(boards.questions.astype(np.int32), boards.answers.astype(np.int32))
