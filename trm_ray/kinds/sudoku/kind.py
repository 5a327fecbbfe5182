"""Sudoku as a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trm_ray.config.keys import PairOrNull
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.data.stream import Symmetry
from trm_ray.kinds.kind import Arguments, Question, SquareKind, Verdict, named, text_blocks
from trm_ray.kinds.sudoku.generate import prepare_sudoku
from trm_ray.kinds.sudoku.rules import BOXES, box_of, parse_board
from trm_ray.kinds.sudoku.symmetry import SudokuSymmetry


class SudokuArguments(Arguments):
    """Puzzles with one solution each."""

    size: Literal[4, 6, 9] = 6  # cells a side
    clues: PairOrNull = None  # [fewest, most]; null = the size's own


@dataclass(frozen=True)
class Sudoku(SquareKind):
    """Boards of digits: token 1 is a blank, d + 1 the digit d."""

    name = "sudoku"
    arguments = SudokuArguments
    generate = staticmethod(prepare_sudoku)
    has_own_symmetry = True

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Sudoku | None:
        """Return the board of 4, 6 or 9 digits."""
        size = vocab_size - 2
        return cls(size) if size in BOXES and seq_len == size**2 else None

    @classmethod
    def shape_made(cls, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Say so of boards of `size` digits."""
        return arguments["size"] ** 2, arguments["size"] + 2

    @classmethod
    def symmetry(cls, named: Mapping[str, Any], identifiers: PuzzleIdentifiers) -> Symmetry:
        """Build that of boards with boxes."""
        return SudokuSymmetry(tuple(named["box"]))

    def has_symmetry(self, named: Mapping[str, Any]) -> bool:
        """Tell whether the boxes are this board's."""
        return named.get("box") == list(self.box)

    @property
    def box(self) -> tuple[int, int]:
        """Return the rows and columns of a box."""
        return box_of(self.size)

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read boards of digits, `.` or `0` for a blank: a line each, or a block of lines each."""
        boards = [self._board(piece, source) for block in text_blocks(text) for piece in self._pieces(block)]
        return named(source, name, [board + 1 for board in boards])

    def _pieces(self, block: list[str]) -> list[str]:
        """Take a block as one board unless each of its lines is one."""
        lines = ["".join(line.split()) for line in block]
        return lines if all(len(line) == self.size**2 for line in lines) else ["".join(lines)]

    def _board(self, cells: str, source: str) -> np.ndarray:
        wrong = sorted(set(cells) - set("." + "0123456789"[: self.size + 1]))
        if wrong:
            raise DatasetError(f"{source} has the character {wrong[0]!r}; use 1 to {self.size}, and . or 0 for a blank")
        if len(cells) != self.size**2:
            rule = f"this model solves {self.size}×{self.size} boards of {self.size**2}"
            raise DatasetError(f"{source} has a puzzle of {len(cells)} cells; {rule}, with blank lines between them")
        return parse_board(cells)

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep the clues."""
        return inputs > 1

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write digits, `.` for a blank, `?` for what is no cell."""
        return np.array(["?", ".", *"123456789"])[tokens]

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Call a grid valid when no digit comes twice, none is missing and the clues stand."""
        clashing, empty = self._clashing(tokens), tokens < 2
        moved = self.given(question.inputs) & (tokens != question.inputs)
        counts = {"clashing": clashing.sum(), "blank": empty.sum(), "changed clues": moved.sum()}
        broken = [f"{what}: {count}" for what, count in counts.items() if count]
        return Verdict(not broken, ", ".join(broken) or "solved", clashing | moved | (tokens == 0))

    def _clashing(self, tokens: np.ndarray) -> np.ndarray:
        """Find the digits that another cell of the row, column or box has too."""
        (height, width), cells = self.box, np.arange(self.size**2)
        row, column = cells // self.size, cells % self.size
        units = (row, column, row // height * self.size + column // width)
        peers = np.logical_or.reduce([unit[:, None] == unit for unit in units]) & ~np.eye(len(cells), dtype=bool)
        return (peers & (tokens[:, None] == tokens)).any(1) & (tokens > 1)
