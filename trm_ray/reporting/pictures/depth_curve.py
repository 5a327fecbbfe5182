"""A small picture of an evaluation over depth, drawn while a run trains: without matplotlib, whose import is slow."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE = (480, 300)  # pixels
_CURVES = {"exact_accuracy": ("solved", "#0072B2"), "accuracy": ("cells right", "#E69F00")}
_TEXT_CURVES = {"bits_per_byte": ("bits per byte", "#0072B2")}
_INK, _GRID, _PAPER = "#4D4D4D", "#E3E3E3", "#FFFFFF"
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 34, 14, 40
_FINER = 2  # drawn so many times as large and then made smaller, for smooth lines
_MOST_LABELS = 8


def depth_curve(depths: Mapping[str, Sequence[float]], *, num_cycles: int, step: int) -> bytes:
    """Draw exact and cell accuracy, or a text's bits per byte, after every H-cycle since it was taken up, as a PNG.

    Args:
        depths: `exact_accuracy` and `accuracy`, (D,) each, from 0 to 1, or else `bits_per_byte`; what is not finite is
            left out.
        num_cycles: of a segment, whose ends are marked; 0 = none are.
    """
    curves = _CURVES if "exact_accuracy" in depths else _TEXT_CURVES
    image = Image.new("RGB", (SIZE[0] * _FINER, SIZE[1] * _FINER), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13 * _FINER)
    num = len(next(iter(depths.values())))
    low, high = (0.0, 1.0) if curves is _CURVES else _whole_range(depths["bits_per_byte"])
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        words = f"{100 * share:.0f} %" if curves is _CURVES else f"{low + share * (high - low):.4g}"
        _line(draw, [(1, share), (num, share)], num, _GRID, 1)
        draw.text(_place(1, share, num, -8), words, _INK, font, anchor="rm")
    for depth in _marked(num, num_cycles or 1):
        _line(draw, [(depth, 0.0), (depth, 1.0)], num, _GRID, 1)
        draw.text(_place(depth, 0.0, num, 0, 6), str(depth), _INK, font, anchor="mt")
    draw.text((SIZE[0] * _FINER // 2, (SIZE[1] - 4) * _FINER), "depth: H-cycles", _INK, font, anchor="mb")
    x = _LEFT * _FINER
    for name, (label, colour) in curves.items():
        finite = [(depth, value) for depth, value in enumerate(depths[name], start=1) if math.isfinite(value)]
        _line(draw, [(depth, (value - low) / (high - low)) for depth, value in finite], num, colour, 2)
        draw.text((x, 10 * _FINER), label, colour, font)
        x += int(draw.textlength(f"{label}    ", font))
    draw.text(((SIZE[0] - _RIGHT) * _FINER, 10 * _FINER), f"step {step:,}", _INK, font, anchor="ra")
    file = io.BytesIO()
    image.resize(SIZE, Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def _whole_range(values: Sequence[float]) -> tuple[float, float]:
    """Choose ends of a scale that need few digits at its quarters too: multiples of 1, 2 or 4 tenths and the like."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    unit = 10.0 ** math.floor(math.log10(max(high - low, 1e-3)))
    for step in (0.2 * unit, 0.4 * unit, unit, 2 * unit, 4 * unit):
        start = math.floor(low / step) * step
        if start + 4 * step >= high:
            return start, start + 4 * step
    raise AssertionError("ten units and more are wider than any range of one digit")


def _marked(num: int, num_cycles: int) -> Iterator[int]:
    """Choose the depths to name: the first, and ends of segments as far as there is room."""
    ends = list(range(num_cycles, num + 1, num_cycles)) or [num]
    every = -(-len(ends) // _MOST_LABELS)
    yield from sorted({1, *ends[::-every]})


def _place(depth: float, share: float, num: int, right: int = 0, down: int = 0) -> tuple[float, float]:
    """Find where on the picture a depth from 1 to `num` and a share from 0 to 1 are, moved by some pixels."""
    width, height = SIZE[0] - _LEFT - _RIGHT, SIZE[1] - _TOP - _BOTTOM
    x = _LEFT + width * (depth - 1) / max(1, num - 1) + right
    return x * _FINER, (_TOP + height * (1 - share) + down) * _FINER


def _line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], num: int, colour: str, width: int) -> None:
    draw.line([_place(*point, num) for point in points], colour, width * _FINER, joint="curve")
