"""What an evaluation takes of a kind of puzzle, and counts beside the numbers that all kinds have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import Rows, TokenBatch, first_puzzles
from trm_ray.data.stream import Symmetry


@dataclass(frozen=True)
class Asked:
    """Which rows are to be evaluated, those of several folders one after the other.

    num_variants: the most variants of a row, itself included; None = as many as it has.
    max_puzzles: only so many puzzles, the first; None = all.
    """

    folders: tuple[Path, ...]
    split: str
    num_variants: int | None
    max_puzzles: int | None


@dataclass(frozen=True)
class Extra:
    """What was found: keys of the JSON, lines of the console, texts of files beside the JSON."""

    numbers: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)


class Tally:
    """Take rows as they are and count nothing more. Every worker opens one to `count`, whoever evaluates one to `add`.

    files: what may be written beside the common files.
    rows: the N rows that are taken.
    stored: (N,) which variant of its puzzle each is in the dataset; 0 is the puzzle as it is.
    variants: (N,) in how many variants each is predicted, itself included.
    votes: whether those are for anything.
    """

    files: ClassVar[tuple[str, ...]] = ()
    votes = False

    def __init__(self, asked: Asked, rows: Rows, identifiers: PuzzleIdentifiers, symmetry: Symmetry | None):
        self.rows = first_puzzles(rows, asked.max_puzzles)
        self.stored, self.variants = np.zeros(len(self.rows), np.int64), np.ones(len(self.rows), np.int64)

    def count(self, tokens: TokenBatch, answers: np.ndarray, halt_probabilities: np.ndarray) -> Any:
        """Count a batch: tokens and answers (B, L), probabilities (B,). What comes of it is pickled."""

    def add(self, counted: Any) -> None:
        """Add what `count` gave for a batch, in whichever process."""

    def result(self) -> Extra:
        """Say what all of it comes to."""
        return Extra()
