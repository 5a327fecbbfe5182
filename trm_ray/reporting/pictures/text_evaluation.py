"""The picture of an evaluation of text: bits per byte by depth beside what takes no model, and what is right."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from trm_ray.reporting.numbers.evaluation import Estimate
from trm_ray.reporting.numbers.text_evaluation import TextEvaluation
from trm_ray.reporting.pictures import style
from trm_ray.reporting.pictures.style import INK, MUTED

_BLUE, _ORANGE, _GREEN = "#0072B2", "#E69F00", "#009E73"
_YARDSTICKS = {"unigram": (_ORANGE, (0, (6, 2))), "xz": (_GREEN, (0, (2, 2)))}


def draw_bits(axes: Axes, evaluation: TextEvaluation) -> None:
    """Draw bits per byte over depth, the yardsticks as lines with their names."""
    _draw_estimates(axes, [one.bits_per_byte for one in evaluation.by_depth], _BLUE, "model (band: 95 %)")
    for name, bits in evaluation.yardsticks.items():
        colour, dashes = _YARDSTICKS.get(name, (MUTED, (0, (4, 3))))
        axes.axhline(bits, color=colour, linestyle=dashes, linewidth=1.5, zorder=1)
        axes.annotate(
            f"{name} {bits:.3f}", (1, bits), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", color=INK,
        )  # fmt: skip
    _finish(axes, evaluation, "bits per byte")
    axes.margins(y=0.12)


def draw_right(axes: Axes, evaluation: TextEvaluation) -> None:
    """Draw the share of tokens that are the likeliest over depth, and of prompts those answered rightly as a whole."""
    exact = [one.exact_accuracy for one in evaluation.by_depth if one.exact_accuracy is not None]
    if exact:
        _draw_estimates(axes, exact, _BLUE, "answers, whole (band: 95 %)")
    _draw_estimates(axes, [one.accuracy for one in evaluation.by_depth], MUTED, "tokens, the likeliest one")
    _finish(axes, evaluation, "right")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def _draw_estimates(axes: Axes, estimates: Sequence[Estimate], colour: str, label: str) -> None:
    depths = range(1, len(estimates) + 1)
    axes.plot(depths, [one.value for one in estimates], color=colour, marker="o", markersize=4, label=label)
    lows, highs = [one.low for one in estimates], [one.high for one in estimates]
    if not all(map(math.isnan, lows)):
        axes.fill_between(depths, lows, highs, color=colour, alpha=0.25, linewidth=0)


def _finish(axes: Axes, evaluation: TextEvaluation, what: str) -> None:
    trained, most = evaluation.trained_depth, len(evaluation.by_depth)
    if trained < most:
        axes.axvline(trained, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"trained: {trained}", zorder=1)
    axes.set_ylabel(what)
    style.depth_axis(axes, most)
    axes.set_xlabel("depth: H-cycles")
    style.legend_above(axes)


PANELS = {"Bits per byte by depth": draw_bits, "Right by depth": draw_right}
