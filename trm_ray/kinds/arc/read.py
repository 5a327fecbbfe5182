"""ARC datasets: the public JSON files as token rows, whose augmentations are computed while they stream.

A grid has up to 30 × 30 colours 0 to 9. Tokens: 0 PAD, 1 EOS, colour c → c + 2, on a 30 × 30 canvas; EOS runs along the
lower and the right border of the grid where there is room. The loss looks at colours and EOS, not at PAD.
Only the puzzles as they are lie on the disk. An identifier stands for each of their augmentations, a dihedral
transform and a permutation of the colours that leaves black; `arc_symmetry` makes it, and moves it about the canvas.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.data.counters import counter_draws, mixed
from trm_ray.data.format import DatasetInfo, read_json
from trm_ray.data.identifiers import NUM_COLOURS, PuzzleIdentifiers, draw_transforms
from trm_ray.data.progress import progress, tell
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID, DatasetError, Rows
from trm_ray.data.write import owns_output
from trm_ray.data.write import write_dataset as write_rows
from trm_ray.kinds.arc.duplicates import find_duplicates
from trm_ray.storage import as_path, sha256

SIDE = 30
SEQ_LEN = SIDE * SIDE
EOS = 1
FIRST_COLOUR = 2
VOCAB_SIZE = FIRST_COLOUR + NUM_COLOURS
TEST_PUZZLES_NAME = "test_puzzles.json"
# So many trials for each augmentation that is wanted, then a puzzle has to do with those found.
TRIALS_PER_AUGMENTATION = 5

# The eight dihedral transforms as the original numbers them: the identity, counter-clockwise quarter turns (1 to 3),
# left and right exchanged, top and bottom exchanged, transposed, transposed about the other diagonal.
# Each is: reverse the rows' order, reverse the columns', transpose, in this order, where the table says so.
FLIP_ROWS = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
FLIP_COLUMNS = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
TRANSPOSE = np.array([0, 1, 0, 1, 0, 0, 1, 1], bool)
_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
_SALT_POSITION, _SALT_COLOUR = 0xB2, 0xC3


# --- Grids and tokens --------------------------------------------------------------------------------------


def transformed(grid: np.ndarray, dihedral: int, colours: np.ndarray) -> np.ndarray:
    """Augment a grid (H, W): rename its colours and turn it."""
    return _turned(colours[grid], dihedral)


def restored(grid: np.ndarray, dihedral: int, colours: np.ndarray) -> np.ndarray:
    """Undo `transformed`."""
    return np.argsort(colours).astype(np.uint8)[_turned(grid, _INVERSE[dihedral])]


def _turned(grid: np.ndarray, dihedral: int) -> np.ndarray:
    grid = grid[::-1] if FLIP_ROWS[dihedral] else grid
    grid = grid[:, ::-1] if FLIP_COLUMNS[dihedral] else grid
    return grid.T if TRANSPOSE[dihedral] else grid


def input_tokens(grid: np.ndarray) -> np.ndarray:
    """Lay a grid (H, W) in the upper left corner of the canvas: (900,) int32."""
    height, width = grid.shape
    canvas = np.full((SIDE, SIDE), PAD_ID, np.int32)
    canvas[:height, :width] = grid.astype(np.int32) + FIRST_COLOUR
    canvas[height : height + 1, :width] = EOS
    canvas[:height, width : width + 1] = EOS
    return canvas.reshape(-1)


def label_tokens(grid: np.ndarray | None) -> np.ndarray:
    """Write what the loss compares with, (900,) int32; of an unknown grid nothing."""
    if grid is None:
        return np.full(SEQ_LEN, IGNORED_LABEL, np.int32)
    tokens = input_tokens(grid)
    return np.where(tokens == PAD_ID, np.int32(IGNORED_LABEL), tokens)


def grid_sizes(tokens: np.ndarray) -> np.ndarray:
    """Measure the largest rectangle of colours in the upper left corner of each canvas (B, 900): (B, 2) rows, columns.

    The one of the fewest rows wins a tie; a canvas that does not begin with a colour has 0 × 0.
    """
    canvas = tokens.reshape(-1, SIDE, SIDE)
    is_colour = (canvas >= FIRST_COLOUR) & (canvas < VOCAB_SIZE)
    ends = is_colour.argmin(2)
    ends[(ends == 0) & is_colour[:, :, 0]] = SIDE  # no cell is other than a colour
    widths = np.minimum.accumulate(ends, axis=1)
    rows = (widths * np.arange(1, SIDE + 1)).argmax(1)
    columns = widths[np.arange(len(rows)), rows]
    return np.stack([np.where(columns > 0, rows + 1, 0), columns], axis=1)


def grids_of(tokens: np.ndarray) -> list[np.ndarray]:
    """Cut the grid out of each canvas (B, 900): uint8 colours, of the size that `grid_sizes` finds."""
    canvas = tokens.reshape(-1, SIDE, SIDE)
    sizes = grid_sizes(tokens).tolist()
    return [
        (board[:rows, :columns] - FIRST_COLOUR).astype(np.uint8)
        for board, (rows, columns) in zip(canvas, sizes, strict=True)
    ]


# --- Reading the public files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Hold an input and its output, None where it is hidden; both (H, W) uint8."""

    input: np.ndarray
    output: np.ndarray | None


@dataclass(frozen=True)
class Puzzle:
    """Hold a task: what it shows and what it asks."""

    name: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]


def read_puzzles(prefix: str | Path, subset: str) -> list[Puzzle]:
    """Read `PREFIX_{subset}_challenges.json` and `…_solutions.json`, or a folder `PREFIX/{subset}` of one file a task.

    Raises:
        DatasetError: neither is there, or a file is malformed: its name, the puzzle, the pair and the rule.
    """
    sources = _sources(as_path(prefix), subset)
    if sources[0].name.endswith("_challenges.json"):
        tasks = {name: (sources[0], task) for name, task in read_json(sources[0]).items()}
        solutions = read_json(sources[1]) if len(sources) > 1 else {}
    else:
        tasks, solutions = {path.stem: (path, read_json(path)) for path in sources}, {}
    puzzles = [parse_puzzle(f"{path}: puzzle {name}", name, task) for name, (path, task) in tasks.items()]
    return [_with_solutions(puzzle, solutions, sources[-1]) for puzzle in puzzles]


def _sources(prefix: Path, subset: str) -> list[Path]:
    challenges = prefix.with_name(f"{prefix.name}_{subset}_challenges.json")
    if challenges.is_file():
        solutions = prefix.with_name(f"{prefix.name}_{subset}_solutions.json")
        return [challenges, solutions] if solutions.is_file() else [challenges]
    folder = prefix if prefix.name == subset else prefix / subset
    # What a Mac's archive or an editor leaves there is no task: `._x.json`, `.#x.json`, a folder, a dead link.
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith(".") and file.is_file())
    if not files:
        raise DatasetError(
            f"subset {subset}: there is neither {challenges} nor {folder}/*.json; "
            "--input is what stands before _SUBSET_challenges.json, or the folder of the subsets' folders"
        )
    return files


def parse_puzzle(where: str, name: str, task: Any) -> Puzzle:
    """Read a task from its JSON.

    Args:
        where: what to call it in an error.

    Raises:
        DatasetError: it is malformed: the pair and the rule.
    """
    for key in ("train", "test"):
        if not isinstance(task, dict) or not isinstance(task.get(key), list) or not task[key]:
            raise DatasetError(f"{where}: it must have a list of at least one pair under {key!r}")
    pairs = {
        key: tuple(_pair(f"{where}, {key} pair {n}", raw, key) for n, raw in enumerate(task[key]))
        for key in ("train", "test")
    }
    return Puzzle(name, **pairs)


def _pair(where: str, raw: Any, kind: str) -> Pair:
    if not isinstance(raw, dict) or "input" not in raw or (kind == "train" and "output" not in raw):
        raise DatasetError(f"{where}: it must have {'an input' if kind == 'test' else 'an input and an output'}")
    output = raw.get("output")
    return Pair(_grid(f"{where}, input", raw["input"]), None if output is None else _grid(f"{where}, output", output))


def _grid(where: str, raw: Any) -> np.ndarray:
    rows = raw if isinstance(raw, list) and raw and all(isinstance(row, list) for row in raw) else [[]]
    if not rows[0] or {len(row) for row in rows} != {len(rows[0])}:
        raise DatasetError(f"{where}: a grid is a list of rows of the same length, at least 1")
    if len(rows) > SIDE or len(rows[0]) > SIDE:
        raise DatasetError(f"{where}: the grid is {len(rows)} × {len(rows[0])}; it may be {SIDE} × {SIDE} at most")
    wrong = [value for row in rows for value in row if type(value) is not int or not 0 <= value < NUM_COLOURS]
    if wrong:
        raise DatasetError(f"{where}: {wrong[0]!r} is no colour; use 0 to {NUM_COLOURS - 1}")
    return np.array(rows, np.uint8)


def _with_solutions(puzzle: Puzzle, solutions: Mapping[str, Any], source: Path) -> Puzzle:
    grids = solutions.get(puzzle.name)
    if grids is None:
        return puzzle
    where = f"{source}: puzzle {puzzle.name}"
    if not isinstance(grids, list) or len(grids) != len(puzzle.test):
        raise DatasetError(f"{where}: it must have {len(puzzle.test)} solutions, one for each test pair")
    outputs = [_grid(f"{where}, test pair {n}, output", grid) for n, grid in enumerate(grids)]
    return replace(puzzle, test=tuple(replace(p, output=o) for p, o in zip(puzzle.test, outputs, strict=True)))


def _united(subsets: Mapping[str, Sequence[Puzzle]]) -> dict[str, Puzzle]:
    """Gather the puzzles of all subsets by name; one that is in two must be the same in both."""
    puzzles: dict[str, Puzzle] = {}
    home: dict[str, str] = {}
    for subset, members in subsets.items():
        for puzzle in members:
            name = puzzle.name
            first = home.setdefault(name, subset)
            puzzles[name] = _merged(puzzles.get(name, puzzle), puzzle, f"subsets {first} and {subset}")
    return puzzles


def _merged(one: Puzzle, other: Puzzle, told: str) -> Puzzle:
    """Take two readings of a puzzle for one; an output that is hidden in the first is taken from the second."""
    sides = [(p.train, p.test) for p in (one, other)]
    same = all(len(a) == len(b) and all(map(_agree, a, b)) for a, b in zip(*sides, strict=True))
    if not same:
        raise DatasetError(f"puzzle {one.name}: {told} both have it, and differ; rename it in one, or leave one out")
    test = tuple(a if a.output is not None else b for a, b in zip(one.test, other.test, strict=True))
    return replace(one, test=test)


def _agree(one: Pair, other: Pair) -> bool:
    if one.output is not None and other.output is not None and not np.array_equal(one.output, other.output):
        return False
    return np.array_equal(one.input, other.input)


# --- Finding the augmentations of a puzzle -------------------------------------------------------------------


def find_augmentations(puzzle: Puzzle, augmentations: int, seed: int) -> np.ndarray:
    """Find the first trials whose augmented puzzles are new: neither the puzzle itself nor an earlier trial's.

    The k-th depends on the seed, the puzzle and k alone, and not on how many are wanted.

    Args:
        augmentations: how many are wanted.

    Returns:
        Numbers of `draw_transforms`, rising; fewer than wanted if 5 · `augmentations` trials give no more.
    """
    sums = np.stack([_colour_sums(pair) for pair in (*puzzle.train, *puzzle.test)])
    hashes = _puzzle_hashes(sums, np.zeros(1, np.uint8), np.arange(NUM_COLOURS, dtype=np.uint8)[None])
    new = np.zeros(0, np.int64)
    for begin in range(0, TRIALS_PER_AUGMENTATION * augmentations, max(1, augmentations)):
        trials = np.arange(begin, begin + augmentations)
        hashes = np.concatenate([hashes, _puzzle_hashes(sums, *draw_transforms(seed, puzzle.name, trials))])
        new = np.sort(np.unique(hashes, return_index=True)[1])[1:] - 1
        if len(new) >= augmentations:
            break
    return new[:augmentations]


def _colour_sums(pair: Pair) -> np.ndarray:
    """Sum the weights of the cells of each colour under each transform: (2, 8, 10) uint64 of input and output.

    A grid's hash is Σ cells weight(place) · weight(colour): once these sums are known, a permutation of the colours
    costs ten products, whatever the grid's size. Sums wrap around; grids that differ agree once in 2^57 or so.
    """
    sums = np.zeros((2, 8, NUM_COLOURS), np.uint64)
    for side, grid in enumerate((pair.input, pair.output)):
        if grid is not None:
            sums[side] = _place_weights(*grid.shape) @ np.eye(NUM_COLOURS, dtype=np.uint64)[grid.reshape(-1)]
    return sums


def pair_sums(inputs: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Give of rows (B, 900) in the corner what `_colour_sums` gives of a pair, and whether the output is hidden."""
    answered = np.where(labels == IGNORED_LABEL, PAD_ID, labels)
    hidden = (answered == PAD_ID).all(1)
    for asked, answer, is_hidden in zip(grids_of(inputs), grids_of(answered), hidden.tolist(), strict=True):
        yield _colour_sums(Pair(asked, None if is_hidden else answer)), is_hidden


@lru_cache
def _place_weights(height: int, width: int) -> np.ndarray:
    """Give each cell of a grid the weight of the place to which each transform brings it: (8, H · W) uint64."""
    weights = counter_draws(0, _SALT_POSITION, np.arange(SEQ_LEN), 1).reshape(SIDE, SIDE)
    upright, lying = weights[:height, :width], weights[:width, :height]
    return np.stack([_turned(lying if TRANSPOSE[t] else upright, _INVERSE[t]).reshape(-1) for t in range(8)])


def _puzzle_hashes(sums: np.ndarray, dihedral: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Hash a puzzle, as a set of pairs, under each of T transforms: (T,) uint64.

    Args:
        sums: (pairs, 2, 8, 10) of `_colour_sums`.
    """
    weights = counter_draws(0, _SALT_COLOUR, np.arange(NUM_COLOURS), 1).reshape(-1)[colours]
    hashes = np.empty(len(dihedral), np.uint64)
    for transform in np.unique(dihedral):
        chosen = dihedral == transform
        inputs, outputs = (sums[:, side, transform] @ weights[chosen].T for side in (0, 1))
        hashes[chosen] = mixed(inputs + mixed(outputs)).sum(0)
    return hashes


# --- Making the dataset --------------------------------------------------------------------------------------


@owns_output
def prepare_arc(
    output: str | Path,
    *,
    prefix: str | Path,
    subsets: Sequence[str],
    test_set: str,
    augmentations: int = 1000,
    seed: int = 42,
    keep_duplicates: bool = False,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read ARC puzzles, name their augmentations and write the dataset.

    The pairs that a puzzle shows are training rows; those that it asks are test rows if it is in `test_set`, otherwise
    training rows too, if their output is known. The test puzzles lie beside them as `test_puzzles.json`. Training rows
    that are a test pair of another puzzle, up to turns and colours, are left out (`arc_duplicates`).

    Args:
        prefix: what stands before `_{subset}_challenges.json`, or a folder of folders of one file a task.
        augmentations: identifiers of each puzzle besides its own; 0 for none.
        keep_duplicates: leave no training row out, as the original does.

    Raises:
        DatasetError: a file is missing or malformed, or a puzzle is in two subsets and differs.
        ValueError: `test_set` is no subset, or `augmentations` is negative.
    """
    if test_set not in subsets:
        raise ValueError(f"test_set={test_set} must be one of the subsets; got {', '.join(subsets)}")
    if augmentations < 0:
        raise ValueError(f"augmentations={augmentations} must be at least 0; 0 makes none")
    members = {subset: read_puzzles(prefix, subset) for subset in subsets}
    puzzles = _united(members)
    asked = {puzzle.name for puzzle in members[test_set]}
    identifiers = _identifiers(list(puzzles.values()), augmentations, seed)
    splits = _splits(list(puzzles.values()), asked, identifiers)
    duplicates = find_duplicates(splits["train"], splits["test"], identifiers, pair_sums)
    duplicates.tell(kept=keep_duplicates)
    left_out = not keep_duplicates and bool(duplicates.tested)
    info = write_rows(
        output,
        {**splits, "train": splits["train"][~duplicates.leaking]} if left_out else splits,
        vocab_size=VOCAB_SIZE,
        generator="arc",
        arguments={
            "subsets": list(subsets),
            "test_set": test_set,
            "augmentations": augmentations,
            "sources": {p.name: sha256(p) for s in subsets for p in _sources(as_path(prefix), s)},
            **({"duplicates_left_out": duplicates.tested} if left_out else {}),
        },
        seed=seed,
        symmetry={"name": "arc"},
        kind="arc",
        identifiers=identifiers,
        side_files={TEST_PUZZLES_NAME: _test_puzzles([puzzles[name] for name in puzzles if name in asked])},
        overwrite=overwrite,
    )
    rows = ", ".join(f"{split.rows:,} {name} rows" for name, split in info.splits.items())
    tell(f"Wrote {output}: {rows}, {len(identifiers.names):,} puzzles, {len(identifiers):,} identifiers")
    _tell(identifiers, augmentations, members)
    return info


def _identifiers(puzzles: Sequence[Puzzle], augmentations: int, seed: int) -> PuzzleIdentifiers:
    trials = []
    with progress("puzzles", len(puzzles)) as advance:
        for puzzle in puzzles:
            trials.append(find_augmentations(puzzle, augmentations, seed))
            advance(1)
    return PuzzleIdentifiers.drawn(seed, [puzzle.name for puzzle in puzzles], trials)


def _splits(puzzles: Sequence[Puzzle], asked: set[str], identifiers: PuzzleIdentifiers) -> dict[str, Rows]:
    shown: list[tuple[int, Pair]] = []
    held_out: list[tuple[int, Pair]] = []
    for number, puzzle in enumerate(puzzles):
        shown += [(number, pair) for pair in puzzle.train]
        if puzzle.name in asked:
            held_out += [(number, pair) for pair in puzzle.test]
        else:
            shown += [(number, pair) for pair in puzzle.test if pair.output is not None]
    return {"train": _rows(shown, identifiers), "test": _rows(held_out, identifiers)}


def _rows(pairs: Sequence[tuple[int, Pair]], identifiers: PuzzleIdentifiers) -> Rows:
    numbers = np.array([number for number, _ in pairs], np.int32)
    return Rows(
        inputs=np.stack([input_tokens(pair.input) for _, pair in pairs]),
        labels=np.stack([label_tokens(pair.output) for _, pair in pairs]),
        puzzle_identifiers=identifiers.first[numbers].astype(np.int32),
        puzzles=numbers,
        groups=numbers,
    )


def _test_puzzles(puzzles: Iterable[Puzzle]) -> bytes:
    def public(pair: Pair) -> dict[str, Any]:
        known = {} if pair.output is None else {"output": pair.output.tolist()}
        return {"input": pair.input.tolist(), **known}

    tasks = {p.name: {"train": [*map(public, p.train)], "test": [*map(public, p.test)]} for p in puzzles}
    return json.dumps(tasks, separators=(",", ":")).encode()


def _tell(identifiers: PuzzleIdentifiers, augmentations: int, members: Mapping[str, Sequence[Puzzle]]) -> None:
    """Tell of puzzles with fewer augmentations than were wanted, and of outputs that nobody knows."""
    found = identifiers.counts - 1
    if found.min() < augmentations:
        least = int(found.argmin())
        tell(
            f"{int((found < augmentations).sum()):,} puzzles have fewer than {augmentations:,} augmentations that "
            f"differ; {identifiers.names[least]} has the fewest, {found[least]:,}"
        )
    for subset, puzzles in members.items():
        hidden = sum(pair.output is None for puzzle in puzzles for pair in puzzle.test)
        if hidden:
            tell(f"Subset {subset}: {hidden:,} test outputs are not known; they are in no training row and no accuracy")
