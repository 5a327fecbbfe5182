"""Maze datasets: mazes that are generated, or read from the public CSV files.

A board is a square of the characters `# SGo`: wall, free, start, goal, path. Tokens: 0 PAD, then 1 to 5 in this order.
The question shows walls, free cells, S and G; the answer marks the cells between S and G on the shortest path with `o`.
A path's length is its number of steps from S to G, one more than the cells marked.
All work is done on hundreds of boards at once, as in `sudoku`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trm_ray.data.format import DatasetInfo
from trm_ray.data.progress import tell
from trm_ray.data.write import owns_output
from trm_ray.kinds.generation import Puzzles, check_least, generate, num_processes, write_boards
from trm_ray.kinds.maze import rules

Augment = Literal["none", "dihedral"]

# Below this many mazes a second process costs more than it saves.
_MAZES_PER_PROCESS = 5_000
# Mazes differ in how often a corridor is left for another place to go on: the more often, the shorter the paths.
_MOST_JUMPS = 0.1
# A minimum length that fewer mazes than this reach is refused rather than searched for.
_LEAST_REACHING = 0.02


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
            size, np.zeros((count, (size + 2) ** 2), bool), touching.reshape(count, -1), cells, np.zeros(count, np.intp)
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
    one_end = _greatest(rules.distances(free, _greatest(free)))
    from_one = rules.distances(free, one_end)
    from_other = rules.distances(free, _greatest(from_one))
    return np.maximum(from_one, from_other)


def _greatest(values: np.ndarray) -> np.ndarray:
    """Mark the first cell of each board (B, n, n) that holds its greatest value."""
    flat = rules.flattened(values)
    return (np.arange(flat.shape[1]) == flat.argmax(1)[:, None]).reshape(values.shape)


def _drawn(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the allowed cells of each board, all alike."""
    return _greatest(np.where(allowed, rng.random(allowed.shape), -1.0))


def _chunk(recipe: _Recipe, number: int) -> Puzzles:
    """Make one chunk of mazes; recipe and number decide it, not the process that makes it."""
    rng = np.random.default_rng([recipe.seed, recipe.size, number])
    free = random_mazes(rules.BATCH, recipe.size, rng)
    reach = _farthest(free)
    long_enough = (reach >= recipe.min_length).any((1, 2))
    free, reach = free[long_enough], reach[long_enough]
    start = _drawn(reach >= recipe.min_length, rng)
    goal = _drawn(rules.distances(free, start) >= recipe.min_length, rng)
    questions = np.where(free, rules.FREE, rules.WALL).astype(np.uint8)
    questions[start], questions[goal] = rules.START, rules.GOAL
    marked = rules.on_shortest(free, start, goal) & (questions == rules.FREE)
    answers = np.where(marked, rules.PATH, questions).astype(np.uint8)
    questions, answers = rules.flattened(questions), rules.flattened(answers)
    is_right = rules.is_shortest_answer(questions, answers)
    assert is_right.all(), "an answer that is not the only shortest path was generated"
    return Puzzles(questions, answers, rules.canonical_forms(questions))


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
    recipe = _Recipe(size, min_length, seed)
    _check_recipe(recipe, train, test)
    symmetry = symmetry_of(augment)
    tell(f"Making {train + test:,} mazes {size}×{size} with paths of at least {min_length} steps")
    if processes is None:
        processes = num_processes(train + test, _MAZES_PER_PROCESS)
    made = generate(
        partial(_chunk, recipe), train=train, test=test, processes=processes, unit="mazes", way_out="lower --min-length"
    )
    return write_boards(
        output,
        {name: rules.rows_of_boards(part) for name, part in made.items()},
        kind="maze",
        vocab_size=rules.VOCAB_SIZE,
        generator="maze",
        arguments={"size": size, "min_length": min_length, "train": train, "test": test},
        seed=seed,
        symmetry=symmetry,
        overwrite=overwrite,
    )


def symmetry_of(augment: Augment) -> dict[str, Any] | None:
    """Name the symmetry of dataset.json.

    Raises:
        ValueError: no such augmentation.
    """
    if augment not in ("none", "dihedral"):
        raise ValueError(f"augment={augment!r} must be none or dihedral")
    return {"name": "dihedral"} if augment == "dihedral" else None


def _check_recipe(recipe: _Recipe, train: int, test: int) -> None:
    check_least(("size", recipe.size, rules.SMALLEST), ("min_length", recipe.min_length, 1))
    check_least(("train", train, 1), ("test", test, 0), ("seed", recipe.seed, 0))
    longest = _farthest(random_mazes(rules.BATCH, recipe.size, np.random.default_rng(0))).max((1, 2))
    if (longest >= recipe.min_length).mean() < _LEAST_REACHING:
        told = f"min_length={recipe.min_length} is too long for size={recipe.size}"
        raise ValueError(
            f"{told}: the longest path of {rules.BATCH} such mazes has {longest.max()} steps; use at most "
            f"{int(np.quantile(longest, 0.5))}, which half of them reach"
        )
