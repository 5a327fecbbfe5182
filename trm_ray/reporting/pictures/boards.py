"""Boards as text for a console, segment by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

# By the kind of puzzle and what a cell shows; a cell that is not named is white. The colours of ARC are its site's.
FILLS: dict[str, dict[str, str]] = {
    "maze": {"#": "#3A3A3A", "S": "#009E73", "G": "#D55E00", "o": "#56B4E9"},
    "arc": {
        **{"0": "#000000", "1": "#0074D9", "2": "#FF4136", "3": "#2ECC40", "4": "#FFDC00"},
        **{"5": "#AAAAAA", "6": "#F012BE", "7": "#FF851B", "8": "#7FDBFF", "9": "#870C25"},
    },
}
LEGEND = "bold: given   *: changed in this segment   !: breaks a rule"


@dataclass(frozen=True)
class Board:
    """A board of any kind, all arrays (H, W): what each cell shows, and whether it was given, changed or is wrong."""

    kind: str
    symbols: np.ndarray
    given: np.ndarray
    changed: np.ndarray
    wrong: np.ndarray
    box: tuple[int, int] | None = None


@dataclass(frozen=True)
class Frame:
    """The board after a segment (numbered from 1), what the halt head and the rules say, and if the head stops here."""

    segment: int
    board: Board
    halt_probability: float
    num_changed: int
    verdict: str
    valid: bool | None
    halts: bool


def worth_showing(frames: Sequence[Frame]) -> list[Frame]:
    """Leave out segments that changed nothing, but not the first, the last, or where the halt head stops."""
    ends = (frames[0], frames[-1])
    return [frame for frame in frames if frame.num_changed or frame.halts or any(frame is end for end in ends)]


def frame_text(frame: Frame) -> RenderableType:
    """Write a segment: three lines of words and the board."""
    head = Text(f"segment {frame.segment}", style="bold")
    if frame.halts:
        head.append("  ■ halts", style="bold cyan")
    verdict = Text(frame.verdict, style={True: "green", False: "red", None: ""}[frame.valid])
    return Group(
        head, Text(f"halt {frame.halt_probability:.3f}  changed {frame.num_changed}"), verdict, board_text(frame.board)
    )


def board_text(board: Board) -> Text:
    """Write a board, a mark behind each cell that changed or is wrong, boxes set apart."""
    if board.symbols.size == 0:
        return Text("(no grid)", style="dim")
    rows, columns = board.symbols.shape
    height, width = board.box or (rows, columns)
    cell_width = 1 + max(map(len, board.symbols.ravel().tolist()))
    rule = "┼─".join(["─" * cell_width * width] * (columns // width))
    text = Text(no_wrap=True)
    for row in range(rows):
        if row and row % height == 0:
            text.append(rule + "\n", style="dim")
        for column in range(columns):
            if column and column % width == 0:
                text.append("│ ", style="dim")
            text.append(_cell_text(board, (row, column)).rjust(cell_width), style=_cell_style(board, (row, column)))
        text.append("\n" if row + 1 < rows else "")
    return text


def _cell_text(board: Board, at: tuple[int, int]) -> str:
    return str(board.symbols[at]) + ("!" if board.wrong[at] else "*" if board.changed[at] else " ")


def _cell_style(board: Board, at: tuple[int, int]) -> str:
    fill = FILLS.get(board.kind, {}).get(str(board.symbols[at]))
    weight = "bold " if board.given[at] or board.changed[at] else ""
    if fill:
        return f"{weight}{ink(fill)} on {fill}"
    if board.wrong[at]:
        return "bold white on red" if board.changed[at] else f"{weight}red"
    return f"{weight}black on yellow" if board.changed[at] else weight


def ink(fill: str) -> str:
    """Choose black or white, whichever is read more easily on a colour."""
    red, green, blue = (int(fill[at : at + 2], 16) for at in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"
