"""What a kind of puzzle is: reading it from text, laying it out as a board, judging an answer by the rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trm_ray.config.keys import Positive, Seed, Settings
from trm_ray.data.format import DatasetInfo, TextInfo
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.data.stream import Symmetry
from trm_ray.kinds.tally import Tally


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


class Arguments(Settings):
    """What a kind that can be made takes as `generator.*`; one of its own declares more."""

    train: Positive = 2000  # puzzles to train on
    test: Positive = 512  # held-out puzzles, none symmetric to a training puzzle
    seed: Seed = 0  # same seed, same bytes


class Kind(ABC):
    """A sort of puzzle; an instance is one of its boards. `kinds.registry` lists them all."""

    name: ClassVar[str]
    arguments: ClassVar[type[Arguments] | None] = None  # keys of `generator.*`; None = it cannot be made
    generate: ClassVar[Callable[..., DatasetInfo]]  # makes a dataset in a folder, given those
    tally: ClassVar[type[Tally]] = Tally  # what an evaluation counts
    known_by: ClassVar[str | None] = None  # the file that it asks for; None = any dataset of the kind's name will do
    has_own_symmetry: ClassVar[bool] = False  # one called as the kind, beside `dihedral` of all square boards

    @classmethod
    @abstractmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Kind | None:
        """Return the board of that shape, None if there is none."""

    @classmethod
    def shape_made(cls, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Say which seq_len and vocab_size `generate` gives for its arguments."""
        raise NotImplementedError

    @classmethod
    def text_made(cls, arguments: Mapping[str, Any]) -> TextInfo | None:
        """Say how `generate` packs the text of its arguments; None of puzzles."""
        return None

    @classmethod
    def symmetry(cls, named: Mapping[str, Any], identifiers: PuzzleIdentifiers) -> Symmetry:
        """Build the kind's own symmetry from what dataset.json says of it."""
        raise NotImplementedError

    def has_symmetry(self, named: Mapping[str, Any]) -> bool:
        """Tell whether that symmetry is this board's."""
        return False

    @property
    def box(self) -> tuple[int, int] | None:
        """Return the rows and columns of a box on the board, if it has boxes."""
        return None

    @abstractmethod
    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read every puzzle of a text.

        Args:
            source: what to call the text in an error.
            name: what to call its puzzles, with a number if there are several.

        Raises:
            DatasetError: the text holds something else, or puzzles of another size.
        """

    @abstractmethod
    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Say which tokens (L,) of a puzzle its answer must keep."""

    @abstractmethod
    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Say which positions (H, W) of the tokens (L,) make the board."""

    @abstractmethod
    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write tokens (L,) as they are drawn: (L,) short texts."""

    @abstractmethod
    def plain(self, tokens: np.ndarray) -> Any:
        """Write an answer (L,) for JSON, in the form that `read` takes."""

    @abstractmethod
    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Hold an answer (L,) against the rules."""


@dataclass(frozen=True)
class SquareKind(Kind):
    """Boards of `size` rows of `size` cells, a character each."""

    size: int

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the cells out row by row."""
        return np.arange(self.size**2).reshape(self.size, self.size)

    def plain(self, tokens: np.ndarray) -> list[str]:
        """Write one text a row."""
        return ["".join(row) for row in self.symbols(tokens)[self.layout(tokens)].tolist()]


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
