"""ARC's evaluation: predictions for all augmentations of a puzzle are mapped back and vote for its answer.

The rules are those of the official evaluators/arc.py: a prediction is the largest rectangle of colours in the upper
left corner; grids are ranked by votes, then by their mean halt probability; pass@k asks whether the answer is among the
first k; a puzzle's score is the mean over its test inputs. Where those leave the order to chance, votes and probability
being equal, grids are ordered by what they hold, so that the number of workers changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from trm_ray.data.format import read_json
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import Rows, TokenBatch
from trm_ray.data.stream import Symmetry
from trm_ray.kinds.arc.read import TEST_PUZZLES_NAME, grids_of, restored
from trm_ray.kinds.tally import Asked, Extra, Tally
from trm_ray.reporting.numbers.evaluation import Estimate, percents, wilson

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2  # of a submission
MAX_NAMES = 20  # of test inputs without predictions, on the console
SUBMISSION = "submission.json"
# Halt probabilities are summed as whole numbers of this unit: exact, hence the same in whatever order workers add them.
_UNIT = 2.0**-60

# By puzzle and test input: for each predicted grid its votes and the sum of their halt probabilities, in _UNIT.
Counts = dict[tuple[str, bytes], dict[bytes, tuple[int, int]]]


@dataclass(frozen=True)
class ArcResult:
    """Hold what the votes come to.

    Args:
        pass_at: by k, the mean score of the puzzles whose outputs are known; None if none is.
        submission: by puzzle and test input, the attempts, in the Kaggle form.
        without_predictions: the test inputs nothing was predicted for, as NAME[number]; they count as wrong.
        num_puzzles: puzzles that were asked.
        num_scored: those of them of which an output is known.
    """

    pass_at: dict[int, float] | None
    submission: dict[str, list[dict[str, list[list[int]]]]]
    without_predictions: list[str]
    num_puzzles: int
    num_scored: int


@dataclass
class Votes:
    """Collect predictions batch by batch.

    Args:
        identifiers: what the puzzle identifiers of the predictions stand for.
        counts: the votes so far; plain content, that a worker can send to `merge`.
    """

    identifiers: PuzzleIdentifiers
    counts: Counts = field(default_factory=dict)

    def add(
        self, identifiers: np.ndarray, inputs: np.ndarray, predictions: np.ndarray, halt_probabilities: np.ndarray
    ) -> None:
        """Count one vote a row; rows without a puzzle are padding and are passed over.

        Args:
            identifiers: (B,) which puzzle and which augmentation.
            inputs: (B, 900) tokens, the grid in the upper left corner.
            predictions: (B, 900) tokens.
            halt_probabilities: (B,) in [0, 1].
        """
        puzzles = self.identifiers.puzzle_of(identifiers)
        halts = np.rint(np.asarray(halt_probabilities, np.float64) / _UNIT)
        rows = zip(puzzles, identifiers, grids_of(inputs), grids_of(predictions), halts, strict=True)
        for puzzle, identifier, asked, predicted, halt in rows:
            if puzzle >= 0:
                asked, predicted = self._as_it_was(identifier, asked), self._as_it_was(identifier, predicted)
                _count(self.counts, (self.identifiers.names[puzzle], _packed(asked)), _packed(predicted), 1, int(halt))

    def merge(self, counts: Counts) -> None:
        """Add the counts of another worker."""
        for question, grids in counts.items():
            for grid, (votes, halt) in grids.items():
                _count(self.counts, question, grid, votes, halt)

    def result(self, test_puzzles: Mapping[str, Any]) -> ArcResult:
        """Rank the candidates of each test input and score the puzzles.

        Args:
            test_puzzles: by name, the tasks as ARC's public files have them, outputs where they are known.
        """
        ranked = {name: [self._ranked(name, pair) for pair in task["test"]] for name, task in test_puzzles.items()}
        scores = [_scores(task["test"], ranked[name]) for name, task in test_puzzles.items()]
        known = [score for score in scores if score is not None]
        return ArcResult(
            pass_at=dict(zip(PASS_AT, np.mean(known, axis=0).tolist(), strict=True)) if known else None,
            submission={name: [_attempts(candidates) for candidates in tests] for name, tests in ranked.items()},
            without_predictions=[
                f"{name}[{n}]" for name in ranked for n, found in enumerate(ranked[name]) if not found
            ],
            num_puzzles=len(test_puzzles),
            num_scored=len(known),
        )

    def _as_it_was(self, identifier: int, grid: np.ndarray) -> np.ndarray:
        return restored(grid, int(self.identifiers.dihedral[identifier]), self.identifiers.colours[identifier])

    def _ranked(self, name: str, pair: Mapping[str, Any]) -> list[_Ranked]:
        grids = self.counts.get((name, _packed(np.array(pair["input"], np.uint8))), {})
        # Votes first, then the mean probability, which for equal votes is the sum.
        return sorted(
            ((*stats, grid) for grid, stats in grids.items()), key=lambda entry: (-entry[0], -entry[1], entry[2])
        )


_Ranked = tuple[int, int, bytes]  # votes, sum of halt probabilities in _UNIT, grid


def _count(counts: Counts, question: tuple[str, bytes], grid: bytes, votes: int, halt: int) -> None:
    grids = counts.setdefault(question, {})
    before = grids.get(grid, (0, 0))
    grids[grid] = (before[0] + votes, before[1] + halt)


def _packed(grid: np.ndarray) -> bytes:
    """Turn a grid into a key: its height, its width, its cells."""
    return bytes(grid.shape) + grid.tobytes()


def _unpacked(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.uint8, offset=2).reshape(packed[0], packed[1])


def _scores(pairs: Sequence[Mapping[str, Any]], ranked: Sequence[Sequence[_Ranked]]) -> np.ndarray | None:
    """Score a puzzle for each k of `PASS_AT` over the test inputs whose output is known, or None if none is."""
    places = []
    for pair, candidates in zip(pairs, ranked, strict=True):
        if pair.get("output") is not None:
            answer = _packed(np.array(pair["output"], np.uint8))
            places.append(next((place for place, entry in enumerate(candidates) if entry[2] == answer), np.inf))
    return np.mean([[place < k for k in PASS_AT] for place in places], axis=0) if places else None


def _attempts(candidates: Sequence[_Ranked]) -> dict[str, list[list[int]]]:
    """Write the first candidates, the best once more where there are too few; [[0]] for none and for an empty grid."""
    grids = [_unpacked(entry[2]).tolist() or [[0]] for entry in candidates[:ATTEMPTS]] or [[[0]]]
    padded = [*grids, *[grids[0]] * (ATTEMPTS - len(grids))]
    return {f"attempt_{number + 1}": grid for number, grid in enumerate(padded)}


# ---- in an evaluation ------------------------------------------------------------------------------------


class ArcTally(Tally):
    """Take puzzles together with their variants, stored or computed, which vote where the test split asks something."""

    files = (SUBMISSION,)

    def __init__(self, asked: Asked, rows: Rows, identifiers: PuzzleIdentifiers, symmetry: Symmetry | None):
        self._votes = Votes(identifiers)
        owners = self._owners(rows)
        rows = replace(rows, puzzles=np.where(owners < 0, -1 - rows.puzzles, owners).astype(np.int32))
        # Only those of the test split have something to vote for.
        most = asked.num_variants or len(identifiers) if asked.split == "test" else 1
        wanted = self._stored(rows) < most
        super().__init__(asked, rows if wanted.all() else rows[wanted], identifiers, symmetry)
        self.stored = self._stored(self.rows)
        self._tasks = self._read_tasks(asked) if asked.split == "test" else {}
        self.votes = bool(self._tasks)
        if self.votes and symmetry is not None:
            variants = symmetry.num_variants(self.rows.puzzle_identifiers)
            self.variants = np.minimum(variants, asked.num_variants or variants.max())

    def _owners(self, rows: Rows) -> np.ndarray:
        return self._votes.identifiers.puzzle_of(rows.puzzle_identifiers)

    def _stored(self, rows: Rows) -> np.ndarray:
        owners, first = self._owners(rows), np.append(self._votes.identifiers.first, 0)
        return np.where(owners < 0, 0, rows.puzzle_identifiers - first[owners])

    def _read_tasks(self, asked: Asked) -> dict[str, Any]:
        """Read what is asked: all puzzles, also those that no row asks about, unless only some are wanted."""
        files = [path for folder in asked.folders if (path := folder / TEST_PUZZLES_NAME).is_file()]
        tasks = {name: task for path in files for name, task in read_json(path).items()}
        if asked.max_puzzles is None:
            return tasks
        chosen = {self._votes.identifiers.names[number] for number in self._owners(self.rows) if number >= 0}
        return {name: task for name, task in tasks.items() if name in chosen}

    def count(self, tokens: TokenBatch, answers: np.ndarray, halt_probabilities: np.ndarray) -> Counts:
        """Let each board vote."""
        votes = Votes(self._votes.identifiers)
        if self.votes:
            votes.add(tokens.puzzle_identifiers, tokens.inputs, answers, halt_probabilities)
        return votes.counts

    def add(self, counted: Counts) -> None:
        """Add the votes of a batch."""
        self._votes.merge(counted)

    def result(self) -> Extra:
        """Give pass@k with its intervals over the puzzles, and the submission."""
        if not self.votes:
            return Extra()
        found = self._votes.result(self._tasks)
        shares = {k: Estimate(share, *wilson(share, found.num_scored)) for k, share in (found.pass_at or {}).items()}
        voting = {name: getattr(found, name) for name in ("num_puzzles", "num_scored", "without_predictions")}
        voting = {"pass_at": {k: asdict(share) for k, share in shares.items()}, **voting}
        return Extra({"voting": voting}, [*_told(found, shares)], {SUBMISSION: json.dumps(found.submission) + "\n"})


def _told(found: ArcResult, shares: Mapping[int, Estimate]) -> Iterator[str]:
    yield f"votes over {found.num_puzzles:,} puzzles, of which {found.num_scored:,} have known outputs:"
    for k, share in shares.items():
        value, interval = percents(share)
        yield f"  pass@{k:<4} {value:>6} %   [{interval}]"
    if missing := found.without_predictions:
        names = ", ".join(missing[:MAX_NAMES]) + (", …" if len(missing) > MAX_NAMES else "")
        yield f"{len(missing):,} test inputs without predictions count as wrong: {names}"
