"""The film of how an answer is refined: an animated GIF, one picture a segment."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from trm_ray.reporting.pictures import style
from trm_ray.reporting.pictures.boards import FILLS, Board, Frame

CHANGED_FILL, CHANGED_EDGE, WRONG_FILL, GUESS_INK, HALT_FILL = "#FFE9A8", "#E69F00", "#F9D5CE", "#0072B2", "#0072B2"
SHORTEST_DELAY_MS = 20  # viewers show shorter ones at a speed of their own
_VALID_INK = {True: style.MARK_COLOURS["ok"], False: style.MARK_COLOURS["bad"], None: style.INK}


def save_gif(
    frames: Sequence[Frame], path: Path, title: str, delay_ms: int, advance: Callable[[int], None] = lambda amount: None
) -> Path:
    """Draw one picture a segment, the last held four times as long.

    Args:
        advance: told of each picture.

    Raises:
        ValueError: the file's name does not end with .gif, or the delay is too short to be shown.
    """
    check_gif(path, delay_ms)
    pictures = []
    for frame in frames:
        pictures.append(Image.fromarray(draw_frame(frame, len(frames), title)))
        advance(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    durations = [delay_ms] * (len(pictures) - 1) + [4 * delay_ms]
    film = io.BytesIO()
    pictures[0].save(film, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    path.write_bytes(film.getvalue())
    return path


def check_gif(path: Path, delay_ms: int) -> None:
    """Refuse what `save_gif` could not write, before anything is computed.

    Raises:
        ValueError: as `save_gif`.
    """
    if path.suffix.lower() != ".gif":
        raise ValueError(f"--gif {path} must end with .gif")
    if delay_ms < SHORTEST_DELAY_MS:
        raise ValueError(f"--delay {delay_ms} must be at least {SHORTEST_DELAY_MS} milliseconds")


def draw_frame(frame: Frame, num_segments: int, title: str) -> np.ndarray:
    """Draw a segment as pixels (H, W, 3): words above, the board, the halt probability as a bar below."""
    with style.styled():
        figure = Figure(figsize=(4.8, 5.9), dpi=100)
        canvas = FigureCanvasAgg(figure)
        figure.text(0.06, 0.958, title, weight="bold", size=12, va="center")
        figure.text(0.94, 0.958, f"segment {frame.segment} of {num_segments}", ha="right", va="center", size=11)
        figure.text(0.06, 0.912, frame.verdict, color=_VALID_INK[frame.valid], va="center")
        figure.text(0.94, 0.912, f"changed: {frame.num_changed}", ha="right", va="center", color=style.MUTED)
        _draw_board(figure.add_axes((0.06, 0.145, 0.88, 0.735)), frame.board)
        _draw_halt_bar(figure.add_axes((0.06, 0.05, 0.88, 0.025)), frame)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_board(axes: Axes, board: Board) -> None:
    """Draw cells, symbols and lines; y grows downwards, as rows do."""
    rows, columns = board.symbols.shape
    axes.axis("off")
    axes.set_aspect("equal")
    if board.symbols.size == 0:
        axes.text(0.5, 0.5, "no grid", ha="center", va="center", color=style.MUTED)
        return
    axes.imshow(_fills(board), extent=(0, columns, rows, 0), interpolation="nearest")
    for at in np.ndindex(rows, columns):
        _write_cell(axes, board, (at[0], at[1]))
    _draw_lines(axes, board)
    if board.kind in FILLS:  # where colours say what a cell holds, frames say the rest
        _frame_cells(axes, board.changed, CHANGED_EDGE)
        _frame_cells(axes, board.wrong, style.MARK_COLOURS["bad"])
    axes.set_xlim(-0.02 * columns, 1.02 * columns)
    axes.set_ylim(1.02 * rows, -0.02 * rows)


def _fills(board: Board) -> np.ndarray:
    """Choose each cell's colour (H, W, 3): what it holds, else whether it changed or is wrong."""
    quiet = np.where(board.changed, CHANGED_FILL, np.where(board.wrong, WRONG_FILL, "#FFFFFF"))
    fills = FILLS.get(board.kind, {})
    names = [fills.get(str(symbol), str(other)) for symbol, other in zip(board.symbols.flat, quiet.flat, strict=True)]
    return np.array([list(bytes.fromhex(name[1:])) for name in names], np.uint8).reshape(*board.symbols.shape, 3)


def _write_cell(axes: Axes, board: Board, at: tuple[int, int]) -> None:
    (row, column), symbol, fills = at, str(board.symbols[at]), FILLS.get(board.kind, {})
    if symbol == " " or (symbol in fills and symbol not in "SG"):
        return
    ink = style.MARK_COLOURS["bad"] if board.wrong[at] else style.INK if board.given[at] or fills else GUESS_INK
    size, weight = 190 / max(10, *board.symbols.shape), "bold" if board.given[at] else "normal"
    axes.text(column + 0.5, row + 0.53, symbol, ha="center", va="center", size=size, color=ink, weight=weight)


def _frame_cells(axes: Axes, chosen: np.ndarray, colour: str) -> None:
    frames = [Rectangle((column + 0.08, row + 0.08), 0.84, 0.84) for row, column in np.argwhere(chosen)]
    width = 1.6 if max(chosen.shape) <= 15 else 1.0
    axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor=colour, linewidth=width))


def _draw_lines(axes: Axes, board: Board) -> None:
    """Draw the lines between cells, stronger around boxes."""
    rows, columns = board.symbols.shape
    height, width = board.box or (rows, columns)
    thin, colour = (0.4 if max(rows, columns) > 12 else 0.8), "#8A8A8A" if board.kind == "arc" else "#BBBBBB"
    for every_row, every_column, thick, ink in ((1, 1, thin, colour), (height, width, 1.6, style.INK)):
        look: dict[str, Any] = {"linewidth": thick, "color": ink, "capstyle": "projecting"}
        axes.hlines(range(0, rows + 1, every_row), 0, columns, **look)
        axes.vlines(range(0, columns + 1, every_column), 0, rows, **look)


def _draw_halt_bar(axes: Axes, frame: Frame) -> None:
    """Draw the halt probability from 0 to 1, with a tick where the head says stop."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.axis("off")
    axes.add_patch(Rectangle((0, 0), 1, 1, facecolor=style.FAINT, edgecolor="none"))
    axes.add_patch(Rectangle((0, 0), frame.halt_probability, 1, facecolor=HALT_FILL, edgecolor="none"))
    axes.plot([0.5, 0.5], [-0.4, 1], color=style.INK, linewidth=1, clip_on=False)
    words = f"halt probability {frame.halt_probability:.3f}" + ("   the halt head stops here" if frame.halts else "")
    axes.text(0, 1.5, words, va="bottom", color=style.INK)
