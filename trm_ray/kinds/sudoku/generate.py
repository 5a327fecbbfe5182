"""Sudoku datasets: puzzles that are generated, or read from the public CSV files.

Tokens: 0 PAD, 1 blank, digit d → d + 1. A board in this module is a row of digits, 0 for blank, row by row.
Solver and generator work on hundreds of boards at once: candidates are bit masks (cells, boards), and
one numpy operation serves them all. Python's own cost vanishes in the batch, so no compiled code is needed.
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
from trm_ray.kinds.sudoku import rules
from trm_ray.kinds.sudoku.symmetry import canonical_forms

Difficulty = Literal["singles", "any"]

DEFAULT_CLUES = {4: (4, 8), 6: (9, 18), 9: (26, 40)}

# How often a puzzle above its target is dug anew, and how many clues are put back for it: measured on 9×9, where 22
# clues are then as common as 25. Below the default's range only, where one digging seldom reaches.
_REDIGS, _PUT_BACK = 30, 4

# Below this many boards a second process costs more than it saves.
_BOARDS_PER_PROCESS = {4: 60_000, 6: 30_000, 9: 5_000}


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
    box, finished = rules.box_of(size), []
    masks = rules.candidates(np.zeros((count, size * size), np.uint8), size)
    while masks.shape[1]:
        outcome = rules.propagated(masks, box)
        finished.append(rules.digits_of(outcome.masks[:, outcome.solved]))
        masks = outcome.masks[:, ~outcome.solved]
        broken = outcome.impossible[~outcome.solved]
        masks[:, broken] = rules.all_digits(size)
        _guess(masks, rng)
    return np.concatenate(finished)


def _guess(masks: np.ndarray, rng: np.random.Generator) -> None:
    cells, boards = rules.most_constrained(masks), np.arange(masks.shape[1])
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
        return rules.solve(puzzles).counts == 1
    # What two sound rules fill in completely has no other solution.
    return rules.propagated(rules.candidates(puzzles, size), rules.box_of(size)).solved


def _chunk(recipe: _Recipe, number: int) -> Puzzles:
    """Make one chunk of puzzles; recipe and number decide it, not the process that makes it."""
    rng = np.random.default_rng([recipe.seed, recipe.size, number])
    grids = random_grids(rules.BATCH, recipe.size, rng)
    targets = rng.integers(recipe.clues[0], recipe.clues[1] + 1, rules.BATCH)
    questions = dig(grids, targets, recipe.difficulty, rng)
    if recipe.clues[0] < DEFAULT_CLUES[recipe.size][0]:
        questions = dig_deeper(questions, grids, targets, recipe.difficulty, rng)
    within = (questions > 0).sum(1) <= recipe.clues[1]
    questions, answers = questions[within], grids[within]
    solved = rules.solve(questions)
    assert (solved.counts == 1).all(), "a puzzle without exactly one solution was generated"
    assert (solved.boards == answers).all()
    return Puzzles(questions, answers, canonical_forms(questions, rules.box_of(recipe.size)))


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
    low, high = recipe.clues
    tell(f"Making {train + test:,} Sudoku puzzles {size}×{size} with {low}–{high} clues")
    if processes is None:
        processes = num_processes(train + test, _BOARDS_PER_PROCESS[size])
    made = generate(
        partial(_chunk, recipe), train=train, test=test, processes=processes, unit="puzzles", way_out="widen --clues"
    )
    splits = {name: rules.rows_of_boards(part.questions, part.answers) for name, part in made.items()}
    arguments = {"size": size, "train": train, "test": test, "clues": [low, high], "difficulty": difficulty}
    about: dict[str, Any] = {"generator": "sudoku", "arguments": arguments, "seed": seed, "overwrite": overwrite}
    info = write_boards(output, splits, **described(size), **about)
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
    rules.box_of(size)
    low, high = clues or DEFAULT_CLUES[size]
    if not rules.FEWEST_CLUES[size] <= low <= high < size * size:
        raise ValueError(
            f"clues={low} {high} must be MIN ≤ MAX between {rules.FEWEST_CLUES[size]} and {size * size - 1} on a "
            f"{size}×{size} board; the default is {DEFAULT_CLUES[size][0]} {DEFAULT_CLUES[size][1]}"
        )
    if difficulty not in ("singles", "any"):
        raise ValueError(f"difficulty={difficulty!r} must be singles or any")
    check_least(("train", train, 1), ("test", test, 0), ("seed", seed, 0))
    return _Recipe(size, (low, high), difficulty, seed)


def described(size: int) -> dict[str, Any]:
    """Say what `write_dataset` has to know of such boards."""
    symmetry = {"name": "sudoku", "box": list(rules.box_of(size))}
    return {"kind": "sudoku", "vocab_size": size + 2, "symmetry": symmetry}
