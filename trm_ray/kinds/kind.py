"""What a kind of puzzle is: reading it from text, laying it out as a board, judging an answer by the rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trm_ray.data.rows import DatasetError


@dataclass(frozen=True)
class Question:
    """A puzzle to be solved: inputs (L,) token ids, labels (L,) if they are known, the task it belongs to."""

    name: str
    inputs: np.ndarray
    labels: np.ndarray | None = None
    task: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the rules say of an answer; `valid` is None where there are no rules. wrong: (L,) cells that break one."""

    valid: bool | None
    words: str
    wrong: np.ndarray


class Kind(Protocol):
    """A sort of puzzle."""

    @property
    def name(self) -> str:
        """Return what it is called."""

    @property
    def box(self) -> tuple[int, int] | None:
        """Return the rows and columns of a box on the board, if it has boxes."""

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read every puzzle of a text.

        Args:
            source: what to call the text in an error.
            name: what to call its puzzles, with a number if there are several.

        Raises:
            DatasetError: the text holds something else, or puzzles of another size.
        """

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Say which tokens (L,) of a puzzle its answer must keep."""

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Say which positions (H, W) of the tokens (L,) make the board."""

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write tokens (L,) as they are drawn: (L,) short texts."""

    def plain(self, tokens: np.ndarray) -> Any:
        """Write an answer (L,) for JSON, in the form that `read` takes."""

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Hold an answer (L,) against the rules."""


def side_of(seq_len: int) -> int:
    """Return the side of a square board, 0 if there is none."""
    side = round(seq_len**0.5)
    return side if side * side == seq_len else 0


def named(source: str, name: str, puzzles: Sequence[np.ndarray]) -> list[Question]:
    """Call a single puzzle `name`, several by number too.

    Raises:
        DatasetError: there are none.
    """
    if not puzzles:
        raise DatasetError(f"{source} holds no puzzle; give one, or several with blank lines between them")
    names = numbered_names(name, len(puzzles))
    return [Question(called, tokens.astype(np.int32)) for called, tokens in zip(names, puzzles, strict=True)]


def numbered_names(name: str, number: int) -> list[str]:
    """Call puzzles by one name, and by number if there are several."""
    return [name] if number == 1 else [f"{name} #{n}" for n in range(1, number + 1)]


def text_blocks(text: str) -> list[list[str]]:
    """Part a text at its blank lines."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def rows_of_text(kind: Kind, tokens: np.ndarray) -> list[str]:
    """Write a board (L,) as a text a row."""
    return ["".join(row) for row in kind.symbols(tokens)[kind.layout(tokens)].tolist()]
