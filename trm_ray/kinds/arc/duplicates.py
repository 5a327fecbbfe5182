"""ARC's duplicates, found by content: pairs that stand in two puzzles, turned or in other colours.

A training row that is a test pair of another puzzle gives its answer away, for the model is trained on all that can be
made of the row. Two pairs are one if one of the eight turns and a permutation of the ten colours, the same for input
and output, make one of the other. What a puzzle shows itself is never taken from it, however much it is like what it
asks: whoever solves the puzzle sees that too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from trm_ray.data.counters import GOLDEN, mixed
from trm_ray.data.identifiers import NUM_COLOURS, PuzzleIdentifiers
from trm_ray.data.progress import progress, tell
from trm_ray.data.rows import Rows

# Gives for each of some rows the sums of the colours' weights under each turn, (2, 8, 10) of input and output, and
# whether the output is hidden.
SumsOf = Callable[[np.ndarray, np.ndarray], Iterator[tuple[np.ndarray, bool]]]

_FIRST_COLOUR = 2  # after PAD and EOS
# So many rows are a puzzle's stored augmentations: those alone are compared whose colours are as many as a test row's.
_MANY_ROWS = 20_000
_BLOCK = 2048
_MOST_NAMES = 8


@dataclass(frozen=True)
class Duplicates:
    """Say what stands twice.

    Args:
        leaking: (N,) which training rows are a test pair of another puzzle.
        tested: by the name of each puzzle that has such rows, the puzzles whose test pairs they are.
        shared: names of two puzzles, and how many different training pairs they have in common besides.
    """

    leaking: np.ndarray
    tested: dict[str, list[str]]
    shared: dict[tuple[str, str], int]

    def tell(self, *, kept: bool) -> None:
        """Say how many rows there are, of which puzzles, and what becomes of them."""
        if self.tested:
            names = _listed(f"{name} of {', '.join(asked)}" for name, asked in self.tested.items())
            became = "kept" if kept else "left out (--keep-duplicates keeps them, as the original does)"
            what = "Training rows that are a test pair of another puzzle, up to turns and colours"
            tell(f"{what}: {int(self.leaking.sum()):,}, {became}: {names}")
        if self.shared:
            names = _listed(f"{one} and {other} ({count})" for (one, other), count in self.shared.items())
            tell(f"Puzzles that have training pairs in common, which are kept: {names}")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _MOST_NAMES
    return ", ".join(found[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def find_duplicates(train: Rows, test: Rows, identifiers: PuzzleIdentifiers, sums_of: SumsOf) -> Duplicates:
    """Compare all training rows with the test rows of other puzzles.

    A test pair whose output is hidden is one with a training row of the same input if the two puzzles have another pair
    in common.

    Args:
        sums_of: reads inputs and labels (B, 900).
    """
    which = _worth_comparing(train, test)
    shown = _Forms.of(train, which[0], identifiers, sums_of)
    asked = _Forms.of(test, which[1], identifiers, sums_of)
    tested: defaultdict[str, set[str]] = defaultdict(set)
    leaking = np.zeros(len(train), bool)
    for row, others in enumerate(_asked_by_others(shown, asked)):
        leaking[shown.rows[row]] = bool(others)
        if others:
            tested[shown.owners[row]] |= others
    return Duplicates(leaking, {name: sorted(tested[name]) for name in sorted(tested)}, _shared(shown, leaking))


@dataclass(frozen=True)
class _Forms:
    """Hold of some rows, by their numbers, the puzzle's name and what all turns and colourings of a pair share.

    Args:
        pairs: hashes of input and output; None where the output is hidden.
        inputs: hashes of the inputs alone.
    """

    rows: np.ndarray
    owners: list[str]
    pairs: list[int | None]
    inputs: list[int]

    @classmethod
    def of(cls, rows: Rows, which: np.ndarray, identifiers: PuzzleIdentifiers, sums_of: SumsOf) -> _Forms:
        numbers = identifiers.puzzle_of(rows.puzzle_identifiers[which]).tolist()
        owners = [identifiers.names[number] if number >= 0 else "" for number in numbers]
        pairs: list[int | None] = []
        inputs: list[int] = []
        with progress("rows compared", len(which)) as advance:
            for begin in range(0, len(which), _BLOCK):
                block = which[begin : begin + _BLOCK]
                for sums, is_hidden in sums_of(rows.inputs[block], rows.labels[block]):
                    inputs.append(_form(sums[0]))
                    pairs.append(None if is_hidden else _form(sums[0] * GOLDEN + mixed(sums[1])))
                advance(len(block))
        return cls(which, owners, pairs, inputs)


def _form(sums: np.ndarray) -> int:
    """Hash what the colours' sums (8, 10) have in common: the colours in any order, the least of the eight turns."""
    return int(mixed(sums).sum(1).min())


def _asked_by_others(shown: _Forms, asked: _Forms) -> Iterator[set[str]]:
    """Give for each training row the names of the other puzzles that ask its pair."""
    by_pair = _owners(asked.pairs, asked.owners)
    by_input: defaultdict[int, set[str]] = defaultdict(set)
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for pair, form, owner in zip(asked.pairs, asked.inputs, asked.owners, strict=True):
        if pair is None:
            by_input[form].add(owner)
    for owners in _owners(shown.pairs, shown.owners).values():
        for owner in owners:
            seen[owner] |= owners
    for pair, form, owner in zip(shown.pairs, shown.inputs, shown.owners, strict=True):
        yield (by_pair.get(pair, set()) | (by_input[form] & seen[owner] if by_input else set())) - {owner}


def _owners(forms: Iterable[int | None], owners: Iterable[str]) -> dict[int | None, set[str]]:
    found: defaultdict[int | None, set[str]] = defaultdict(set)
    for form, owner in zip(forms, owners, strict=True):
        if form is not None:
            found[form].add(owner)
    return dict(found)


def _shared(shown: _Forms, leaking: np.ndarray) -> dict[tuple[str, str], int]:
    owners = _owners(
        (None if leaking[row] else pair for row, pair in zip(shown.rows, shown.pairs, strict=True)), shown.owners
    )
    return dict(Counter(two for names in owners.values() for two in combinations(sorted(names), 2)))


def _worth_comparing(train: Rows, test: Rows) -> tuple[np.ndarray, np.ndarray]:
    """List the rows of each side that may be found on the other one."""
    if len(train) <= _MANY_ROWS:
        return np.arange(len(train)), np.arange(len(test))
    shown, asked = _colour_counts(train), _colour_counts(test)
    return np.flatnonzero(np.isin(shown, np.unique(asked))), np.flatnonzero(np.isin(asked, np.unique(shown)))


def _colour_counts(rows: Rows) -> np.ndarray:
    """Hash how many cells of each colour, whichever it is, input and output have: (N,) uint64."""
    hashes = np.empty(len(rows), np.uint64)
    for begin in range(0, len(rows), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        sides = (rows.inputs[part], rows.labels[part])
        colours = range(_FIRST_COLOUR, _FIRST_COLOUR + NUM_COLOURS)
        asked, answered = (np.stack([(side == colour).sum(1) for colour in colours], 1) for side in sides)
        hashes[part] = mixed((asked << 10 | answered).astype(np.uint64) + GOLDEN).sum(1)
    return hashes
