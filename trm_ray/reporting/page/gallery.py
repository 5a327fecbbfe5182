"""Held-out puzzles solved depth by depth: what is shown of each answer, and how a board becomes a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from trm_ray.reporting.page.passage import KEPT_DEPTHS, Passage
from trm_ray.reporting.pictures.boards import FILLS, Board, ink


class Path(NamedTuple):
    """An SVG path: its class, its colour where it has one of its own, its data."""

    look: str
    colour: str
    data: str


class Letters(NamedTuple):
    """Text in one row of a board: a place for each character."""

    look: str
    colour: str
    x: str
    y: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """A board as SVG, a cell a unit wide and high; lines and letters take their colours from the page."""

    board: Board

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height, in cells."""
        rows, columns = self.board.symbols.shape
        return columns, rows

    @cached_property
    def paths(self) -> list[Path]:
        """Draw fills, then lines, then what marks wrong cells."""
        board, fills = self.board, FILLS.get(self.board.kind, {})
        found = [Path("", "#FFFFFF", _cells(board.symbols != ""))] if fills else []  # in the dark, too
        found += [Path("", fill, _cells(board.symbols == symbol)) for symbol, fill in fills.items()]
        found += [Path("thin", "", self._lines(1, 1))]
        found += [Path("thick", "", self._lines(*(board.box or board.symbols.shape)))]
        if fills:  # a cross, on a light ground so that it is seen on any colour
            found += [Path(look, "", _crosses(board.wrong)) for look in ("halo", "cross")]
        else:
            found += [Path("wrong-cell", "", _cells(board.wrong)), Path("underline", "", _underlines(board.wrong))]
        return [path for path in found if path.data]

    @cached_property
    def letters(self) -> list[Letters]:
        """Write the cells that no colour tells, those of a row and a look at once."""
        fills = {symbol: fill for symbol, fill in FILLS.get(self.board.kind, {}).items() if symbol not in "SG"}
        rows: dict[tuple[int, str, str], list[tuple[int, str]]] = {}
        for (row, column), symbol in np.ndenumerate(self.board.symbols):
            if str(symbol).strip() and symbol not in fills:
                fill = FILLS.get(self.board.kind, {}).get(str(symbol))
                key = (row, self._look(row, column), ink(fill) if fill else "")
                rows.setdefault(key, []).append((column, str(symbol)))
        return [letters for key, cells in rows.items() for letters in _letters(key, cells)]

    def _look(self, row: int, column: int) -> str:
        return "wrong" if self.board.wrong[row, column] else "given" if self.board.given[row, column] else "guess"

    def _lines(self, height: int, width: int) -> str:
        columns, rows = self.size
        if not rows * columns:
            return ""
        across = (f"M0 {y}H{columns}" for y in range(0, rows + 1, height))
        return "".join((*across, *(f"M{x} 0V{rows}" for x in range(0, columns + 1, width))))


def _letters(key: tuple[int, str, str], cells: Sequence[tuple[int, str]]) -> Iterable[Letters]:
    """Put single characters of a row into one text; longer ones each into its own."""
    row, look, colour = key
    short = [(column, symbol) for column, symbol in cells if len(symbol) == 1]
    if short:
        places, text = " ".join(f"{column}.5" for column, _ in short), "".join(symbol for _, symbol in short)
        yield Letters(look, colour, places, row + 0.5, text)
    for column, symbol in cells:
        if len(symbol) > 1:
            yield Letters(f"{look} long", colour, f"{column}.5", row + 0.5, symbol)


def _cells(chosen: np.ndarray) -> str:
    """Cover chosen cells, those beside each other at once."""
    found = []
    for row, line in enumerate(chosen):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], line.astype(np.int8), [0]))))
        found += [f"M{start} {row}h{end - start}v1h-{end - start}z" for start, end in edges.reshape(-1, 2)]
    return "".join(found)


def _underlines(chosen: np.ndarray) -> str:
    return "".join(f"M{column}.22 {row}.86h.56" for row, column in np.argwhere(chosen))


def _crosses(chosen: np.ndarray) -> str:
    return "".join(f"M{column}.25 {row}.25l.5 .5m0-.5l-.5 .5" for row, column in np.argwhere(chosen))


@dataclass(frozen=True)
class Stage:
    """An answer that stands from depth `first` to `last`; num_wrong: of the cells that have a known answer."""

    first: int
    last: int
    board: Board
    num_wrong: int

    @property
    def drawing(self) -> Drawing:
        """Draw the board."""
        return Drawing(self.board)

    @property
    def is_kept(self) -> bool:
        """Tell whether it is shown where nothing slides."""
        return self.first == 1 or any(self.first <= depth <= self.last for depth in KEPT_DEPTHS)

    @property
    def words(self) -> str:
        """Say what is right or wrong."""
        return f"✗ {self.num_wrong} wrong" if self.num_wrong else "✓ solved"

    @property
    def depths(self) -> str:
        """Say how long it stands."""
        return f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class Answer:
    """What a scenario makes of a puzzle, without gaps from depth 1 on; the last stage stands for good."""

    label: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Puzzle:
    """A held-out puzzle and the answers of each scenario, in one order for all puzzles."""

    name: str
    question: Board
    answers: tuple[Answer, ...]

    @property
    def drawing(self) -> Drawing:
        """Draw the question."""
        return Drawing(self.question)


@dataclass(frozen=True)
class Gallery:
    """Puzzles of one dataset under several scenarios, or passages of a text.

    title: name of the task.
    num_depths, num_cycles: H-cycles of the deepest, and a segment; None where they differ.
    words: how runs and puzzles were chosen, and what is missing.
    """

    title: str
    words: tuple[str, ...]
    puzzles: tuple[Puzzle, ...] = ()
    num_depths: int = 0
    num_cycles: int | None = None
    passages: tuple[Passage, ...] = ()


def stages(boards: Sequence[tuple[Board, int]]) -> tuple[Stage, ...]:
    """Put equal boards that follow each other into one stage.

    Args:
        boards: after 1, 2, … H-cycles, each with its number of wrong cells.
    """
    found: list[Stage] = []
    for depth, (board, num_wrong) in enumerate(boards, start=1):
        if found and _are_equal(found[-1].board, board) and found[-1].num_wrong == num_wrong:
            found[-1] = Stage(found[-1].first, depth, found[-1].board, num_wrong)
        else:
            found.append(Stage(depth, depth, board, num_wrong))
    return tuple(found)


def _are_equal(one: Board, other: Board) -> bool:
    return np.array_equal(one.symbols, other.symbols) and np.array_equal(one.wrong, other.wrong)
