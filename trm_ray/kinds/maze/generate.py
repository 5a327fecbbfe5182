"""Maze datasets: mazes that are generated, or read from the public CSV files.

A board is a square of the characters `# SGo`: wall, free, start, goal, path. Tokens: 0 PAD, then 1 to 5 in this order.
The question shows walls, free cells, S and G; the answer marks the cells between S and G on the shortest path with `o`.
A path's length is its number of steps from S to G, one more than the cells marked.
All work is done on hundreds of boards at once, as in `sudoku`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trm_ray.data.format import DatasetInfo
from trm_ray.data.progress import tell
from trm_ray.data.rows import Rows
from trm_ray.data.write import owns_output, write_dataset
from trm_ray.kinds.csv import Choice, CsvKind, CsvTable, check_rules, codes_of, read_csv_splits
from trm_ray.kinds.generation import Puzzles, generate, num_processes
from trm_ray.kinds.symmetries import dihedral_cells
from trm_ray.storage import as_path

Augment = Literal["none", "dihedral"]

CHARACTERS = "# SGo"
WALL, FREE, START, GOAL, PATH = range(1, 6)
VOCAB_SIZE = len(CHARACTERS) + 1
SMALLEST = 4

# Boards that are worked on together: enough to hide Python's cost, few enough to stay in the cache.
_BATCH = 256
# Below this many mazes a second process costs more than it saves.
_MAZES_PER_PROCESS = 5_000
# Mazes differ in how often a corridor is left for another place to go on: the more often, the shorter the paths.
_MOST_JUMPS = 0.1
# A minimum length that fewer mazes than this reach is refused rather than searched for.
_LEAST_REACHING = 0.02


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


def format_maze(tokens: np.ndarray) -> str:
    """Draw a maze (cells,), a line a row; `?` stands for tokens that no maze has (a model may predict PAD)."""
    size = math.isqrt(len(tokens))
    cells = [CHARACTERS[token - 1] if 1 <= token < VOCAB_SIZE else "?" for token in tokens.tolist()]
    return "\n".join("".join(cells[row * size : (row + 1) * size]) for row in range(size))


# --- Paths -----------------------------------------------------------------------------------------------


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
    boards = _boards(question)
    lengths = (_distances(boards != WALL, boards == START) * (boards == GOAL)).sum((1, 2))
    return lengths.reshape(question.shape[:-1])


def _checked(question: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which answers are valid and how long their paths are, shaped as the boards without their cells."""
    questions, answers = _boards(question), _boards(answer)
    marked = answers == PATH
    path = marked | (questions == START) | (questions == GOAL)
    agrees = np.where(marked, questions == FREE, answers == questions).all((1, 2))
    joined = (_distances(path, questions == START) >= 0) | ~path
    simple = np.where(path, num_neighbours(path) == 1 + marked, True).all((1, 2))
    valid = agrees & joined.all((1, 2)) & simple
    return valid.reshape(question.shape[:-1]), (path.sum((1, 2)) - 1).reshape(question.shape[:-1])


def _boards(tokens: np.ndarray) -> np.ndarray:
    size = math.isqrt(tokens.shape[-1])
    return tokens.reshape(-1, size, size)


def num_neighbours(cells: np.ndarray) -> np.ndarray:
    """Count for each cell (B, n, n) on how many of its four sides one of the `cells` lies."""
    padded = np.pad(cells, ((0, 0), (1, 1), (1, 1))).astype(np.int8)
    return padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]


def _distances(free: np.ndarray, sources: np.ndarray) -> np.ndarray:
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


# --- Generating ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    size: int
    min_length: int
    seed: int


def random_mazes(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Carve mazes whose free cells form a tree, so that one path joins any two: (count, size, size), True is free.

    A cell is carved next to exactly one free cell, mostly the newest one, so corridors are long and winding.
    Nothing depends on a lattice of even cells: every size fills its board.
    """
    board = _Carving.blank(count, size, rng)
    jumps = rng.uniform(0, _MOST_JUMPS, count)
    while (going_on := np.flatnonzero(board.num_open)).size:
        newest = board.num_open[going_on] - 1
        jumping = rng.random(len(going_on)) < jumps[going_on]
        places = np.where(jumping, (rng.random(len(going_on)) * (newest + 1)).astype(np.intp), newest)
        board.step(going_on, places, rng)
    return board.inner(board.free)


@dataclass(frozen=True)
class _Carving:
    """Hold boards (B, (size + 2)²) under work, a border around each, and the cells whose sides are still open."""

    size: int
    free: np.ndarray
    touching: np.ndarray  # how many free cells lie beside each; the border counts as full
    open_cells: np.ndarray  # (B, size²), of which the first num_open (B,) count
    num_open: np.ndarray

    @classmethod
    def blank(cls, count: int, size: int, rng: np.random.Generator) -> _Carving:
        touching = np.full((count, size + 2, size + 2), 9, np.int8)
        touching[:, 1:-1, 1:-1] = 0
        cells = np.zeros((count, size * size), np.int32)
        board = cls(
            size,
            np.zeros((count, (size + 2) ** 2), bool),
            touching.reshape(count, -1),
            cells,
            np.zeros(count, np.intp),
        )
        first = rng.integers(0, size, (2, count)) + 1
        board._carve(np.arange(count), first[0] * (size + 2) + first[1])
        return board

    def inner(self, boards: np.ndarray) -> np.ndarray:
        return boards.reshape(-1, self.size + 2, self.size + 2)[:, 1:-1, 1:-1]

    def step(self, which: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> None:
        """Go on from the open cell at `places` of each board: carve beside it, or close it if no side is left."""
        sides = self.open_cells[which, places][:, None] + self._sides()
        possible = (self.touching[which[:, None], sides] == 1) & ~self.free[which[:, None], sides]
        side = (rng.random(possible.shape) * possible).argmax(1)
        can = possible.any(1)
        self._carve(which[can], sides[can, side[can]])
        self._close(which[~can], places[~can])

    def _sides(self) -> np.ndarray:
        return np.array([-self.size - 2, -1, 1, self.size + 2], np.int32)

    def _carve(self, which: np.ndarray, cells: np.ndarray) -> None:
        self.free[which, cells] = True
        self.touching[which[:, None], cells[:, None] + self._sides()] += 1  # four different cells of each board
        self.open_cells[which, self.num_open[which]] = cells
        self.num_open[which] += 1

    def _close(self, which: np.ndarray, places: np.ndarray) -> None:
        self.num_open[which] -= 1
        self.open_cells[which, places] = self.open_cells[which, self.num_open[which]]


def _farthest(free: np.ndarray) -> np.ndarray:
    """Count the steps from each free cell to the farthest one: in a tree that is an end of its longest path."""
    one_end = _greatest(_distances(free, _greatest(free)))
    from_one = _distances(free, one_end)
    from_other = _distances(free, _greatest(from_one))
    return np.maximum(from_one, from_other)


def _greatest(values: np.ndarray) -> np.ndarray:
    """Mark the first cell of each board (B, n, n) that holds its greatest value."""
    flat = _flat(values)
    return (np.arange(flat.shape[1]) == flat.argmax(1)[:, None]).reshape(values.shape)


def _flat(boards: np.ndarray) -> np.ndarray:
    return boards.reshape(len(boards), boards.shape[1] * boards.shape[2])


def _drawn(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the allowed cells of each board, all alike."""
    return _greatest(np.where(allowed, rng.random(allowed.shape), -1.0))


def _chunk(recipe: _Recipe, number: int) -> Puzzles:
    """Make one chunk of mazes; recipe and number decide it, not the process that makes it."""
    rng = np.random.default_rng([recipe.seed, recipe.size, number])
    free = random_mazes(_BATCH, recipe.size, rng)
    reach = _farthest(free)
    long_enough = (reach >= recipe.min_length).any((1, 2))
    free, reach = free[long_enough], reach[long_enough]
    start = _drawn(reach >= recipe.min_length, rng)
    goal = _drawn(_distances(free, start) >= recipe.min_length, rng)
    questions = np.where(free, FREE, WALL).astype(np.uint8)
    questions[start], questions[goal] = START, GOAL
    answers = np.where(_on_shortest(free, start, goal) & (questions == FREE), PATH, questions).astype(np.uint8)
    questions, answers = _flat(questions), _flat(answers)
    assert is_shortest_answer(questions, answers).all(), "an answer that is not the only shortest path was generated"
    return Puzzles(questions, answers, canonical_forms(questions))


def _on_shortest(free: np.ndarray, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Mark the cells that lie on some shortest path; if there were two, they would not be a valid answer."""
    from_start, from_goal = _distances(free, start), _distances(free, goal)
    length = (from_start * goal).sum((1, 2))[:, None, None]
    return free & (from_start + from_goal == length)


def canonical_forms(boards: np.ndarray) -> list[bytes]:
    """Find for each maze (P, cells) the one that stands for all its rotations and mirror images."""
    turned = boards[:, dihedral_cells(math.isqrt(boards.shape[1]))]
    return [min(board.tobytes() for board in eight) for eight in turned]


@owns_output
def prepare_maze(
    output: str | Path,
    *,
    size: int,
    min_length: int,
    train: int,
    test: int,
    seed: int = 0,
    augment: Augment = "none",
    overwrite: bool = False,
    processes: int | None = None,
) -> DatasetInfo:
    """Generate a dataset of mazes without loops, each with the one path from S to G.

    The test mazes come first in the seed's stream, so a larger training split leaves them as they are. No test maze
    is a rotation or mirror image of another one or of a training maze. Same arguments, same bytes.

    Args:
        min_length: fewest steps from S to G.
        augment: "dihedral" rotates and mirrors training mazes while streaming.
        processes: None decides by the amount of work and the cores.

    Raises:
        ValueError: an argument is out of range, or mazes of this size hardly ever have so long a path.
    """
    recipe = _checked_recipe(size, min_length, train, test, seed)
    symmetry = symmetry_of(augment)
    tell(f"Making {train + test:,} mazes {size}×{size} with paths of at least {min_length} steps")
    if processes is None:
        processes = num_processes(train + test, _MAZES_PER_PROCESS)
    made = generate(
        partial(_chunk, recipe),
        train=train,
        test=test,
        processes=processes,
        unit="mazes",
        way_out="lower --min-length",
    )
    arguments = {"size": size, "min_length": min_length, "train": train, "test": test}
    splits = {name: _rows(part) for name, part in made.items()}
    return _write(output, splits, "maze", arguments, seed, symmetry, overwrite=overwrite)


def _rows(boards: Puzzles | CsvTable) -> Rows:
    return Rows.of_single_puzzles(boards.questions.astype(np.int32), boards.answers.astype(np.int32))


def _write(
    output: str | Path,
    splits: dict[str, Rows],
    generator: str,
    arguments: dict[str, Any],
    seed: int,
    symmetry: dict[str, Any] | None,
    **more: Any,
) -> DatasetInfo:
    info = write_dataset(
        output,
        splits,
        vocab_size=VOCAB_SIZE,
        generator=generator,
        arguments=arguments,
        seed=seed,
        symmetry=symmetry,
        **more,
    )
    tell(f"Wrote {output}: " + ", ".join(f"{split.rows:,} {name}" for name, split in info.splits.items()))
    return info


def symmetry_of(augment: Augment) -> dict[str, Any] | None:
    """Name the symmetry of dataset.json.

    Raises:
        ValueError: no such augmentation.
    """
    if augment not in ("none", "dihedral"):
        raise ValueError(f"augment={augment!r} must be none or dihedral")
    return {"name": "dihedral"} if augment == "dihedral" else None


def _checked_recipe(size: int, min_length: int, train: int, test: int, seed: int) -> _Recipe:
    values = (("size", size, SMALLEST), ("min_length", min_length, 1), ("train", train, 1), ("test", test, 0))
    for name, value, least in (*values, ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    recipe = _Recipe(size, min_length, seed)
    _check_reachable(recipe)
    return recipe


def _check_reachable(recipe: _Recipe) -> None:
    longest = _farthest(random_mazes(_BATCH, recipe.size, np.random.default_rng(0))).max((1, 2))
    if (longest >= recipe.min_length).mean() < _LEAST_REACHING:
        raise ValueError(
            f"min_length={recipe.min_length} is too long for size={recipe.size}: the longest path of {_BATCH} such "
            f"mazes has {longest.max()} steps; use at most {int(np.quantile(longest, 0.5))}, which half of them reach"
        )


# --- The public CSV files --------------------------------------------------------------------------------


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
    longer = [_num_longer(table) for table in (read.train, read.test)]
    if any(longer):
        tell(f"{sum(longer):,} answers are paths with a shorter way; they are kept as they are")
    splits = {"train": _rows(read.train), "test": _rows(read.test)}
    more = {"side_files": read.side_files, "overwrite": overwrite}
    return _write(output, splits, "maze_csv", read.arguments, seed, symmetry, **more)


def _num_longer(mazes: Puzzles | CsvTable) -> int:
    """Count the answers that are no shortest path."""
    return sum(
        int((~is_shortest_answer(mazes.questions[start : start + _BATCH], mazes.answers[start : start + _BATCH])).sum())
        for start in range(0, len(mazes.questions), _BATCH)
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
    for start in range(0, len(questions), _BATCH):
        boards = _boards(questions[start : start + _BATCH])
        begin, goal = boards == START, boards == GOAL
        on_path = _on_shortest(boards != WALL, begin, goal).sum((1, 2))
        marked.append(on_path > 1 + shortest_lengths(questions[start : start + _BATCH]))
    return np.concatenate([np.zeros(0, bool), *marked])


def _tokens_of(texts: Sequence[str]) -> np.ndarray:
    """Turn texts into tokens (P, cells), 0 for what is no character of a maze."""
    tokens = np.zeros(256, np.uint8)
    tokens[[ord(character) for character in CHARACTERS]] = np.arange(1, VOCAB_SIZE)
    return tokens[codes_of(texts)]


def _is_joined(answers: np.ndarray) -> np.ndarray:
    boards = _boards(answers)
    way = np.isin(boards, (START, GOAL, PATH))
    return ((_distances(way, boards == START) >= 0) & (boards == GOAL)).any((1, 2))


_CSV = CsvKind(
    num_cells=_num_cells,
    boards=_csv_boards,
    forms=canonical_forms,
    is_ambiguous=_has_several_shortest,
    told_ambiguous="several shortest paths",
    blanks_count=True,
)
