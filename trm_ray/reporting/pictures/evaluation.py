"""The picture of an evaluation: accuracy by segment and by depth, and how far the halt head can be believed."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from trm_ray.reporting.numbers.evaluation import NUM_BINS, Evaluation
from trm_ray.reporting.numbers.text_evaluation import TextEvaluation
from trm_ray.reporting.pictures import style, text_evaluation
from trm_ray.reporting.pictures.style import FAINT, INK, MUTED

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
_BLUE, _ORANGE = "#0072B2", "#E69F00"


def draw_evaluation(evaluation: Evaluation | TextEvaluation, title: str, subtitle: str = "") -> Figure:
    """Draw accuracy by segment and by depth, the halt head's reliability, and where it stops; text has its own."""
    panels: Mapping[str, Callable[[Axes, Any], None]] = PANELS
    if isinstance(evaluation, TextEvaluation):
        panels = text_evaluation.PANELS
    lines = len(panels) // 2
    height = 4.5 * lines  # inches
    with style.styled(), style.room_for_notes():
        figure = Figure(figsize=(13, height), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (heading, draw) in zip(figure.subplots(lines, 2).flat, panels.items(), strict=True):
            axes.set_title(heading)
            if evaluation.num_rows:
                draw(axes, evaluation)
            else:
                style.say(axes, "No row has labels.")
        figure.text(0.014, 1 - 0.135 / height, title, va="top", fontsize=15, fontweight="bold")
        figure.text(0.986, 1 - 0.171 / height, subtitle, va="top", ha="right", color=MUTED)
        style.lay_out(figure, (0.006, 0.006, 0.988, 1 - 0.585 / height), wspace=0.04, hspace=0.06)
        return figure


def save_evaluation(evaluation: Evaluation | TextEvaluation, path: Path, title: str, subtitle: str = "") -> Path:
    """Draw an evaluation into a file; its ending (`.png`, `.svg`, `.pdf`) chooses the format."""
    return style.save(draw_evaluation(evaluation, title, subtitle), path)


def _draw_segments(axes: Axes, evaluation: Evaluation) -> None:
    x = np.arange(1, len(evaluation.by_segment) + 1)
    for label, name, colour in (("cells", "accuracy", MUTED), ("exact (band: 95 %)", "exact_accuracy", _BLUE)):
        shares = [getattr(one, name) for one in evaluation.by_segment]
        marker = "o" if len(x) <= 20 else ""
        axes.plot(x, [s.value for s in shares], color=colour, marker=marker, markersize=3.5, label=label)
        axes.fill_between(x, [s.low for s in shares], [s.high for s in shares], color=colour, alpha=0.25, linewidth=0)
    halts_at = evaluation.halting.mean_segment, evaluation.halting.exact_accuracy.value
    axes.plot(*halts_at, "D", color=_ORANGE, markersize=7, label="where it halts")
    trained = evaluation.trained_segments
    if trained <= len(x):
        axes.axvline(trained, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"trained: {trained}", zorder=1)
    _finish(axes, "accuracy")
    lowest = min(share.low for one in evaluation.by_segment for share in (one.exact_accuracy, one.accuracy))
    # From 0 where something is near it; otherwise lines close to 100 % could not be told apart.
    bottom = 0.0 if lowest < 0.5 else math.floor(10 * lowest) / 10
    axes.set_ylim(bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom))


def _draw_depths(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the accuracy over depth, past the trained one too if more segments were asked for."""
    values = np.array([one.cycle_exact_accuracy for one in evaluation.by_segment])
    what = "exact accuracy"
    if not values.any():
        values, what = np.array([one.cycle_accuracy for one in evaluation.by_segment]), "cell accuracy"
    num_cycles = values.shape[1]
    depths = np.arange(1, values.size + 1).reshape(values.shape)
    axes.plot(depths.ravel(), values.ravel(), color=FAINT, linewidth=1.2, zorder=1)
    for cycle in range(num_cycles):
        label = f"H-cycle {cycle}" if num_cycles <= 4 or cycle in (0, num_cycles - 1) else None
        colour = style.CYCLE_COLOURS(cycle / max(1, num_cycles - 1))
        axes.plot(depths[:, cycle], values[:, cycle], "o", color=colour, label=label)
    trained = evaluation.trained_segments * num_cycles
    if trained < values.size:
        axes.axvline(trained, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"trained: {trained}", zorder=1)
    _finish(axes, what)
    style.depth_axis(axes, values.size)


def _draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the share solved over what the halt head says, with the number of rows in each bin underneath."""
    axes.set_axis_off()
    panel, bars = axes.inset_axes((0, 0.27, 1, 0.73)), axes.inset_axes((0, 0, 1, 0.2))
    panel.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="a perfect one")
    last = len(evaluation.by_segment)
    drawn = (
        (f"after {last} segments", evaluation.calibration, _BLUE, "o", -0.021),
        ("all segments", evaluation.calibration_all_segments, _ORANGE, "s", 0.021),
    )
    middles = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    for label, found, colour, marker, offset in drawn:
        label = f"{label}: ECE {found.error:.3f}"
        panel.plot(found.probability, found.solved, color=colour, marker=marker, markerfacecolor="white", label=label)
        bars.bar(middles + offset, found.count, 0.04, color=colour)
    _finish_reliability(panel, bars, max(evaluation.calibration_all_segments.count))


def _finish_reliability(panel: Axes, bars: Axes, most: int) -> None:
    for axes in (panel, bars):
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.xaxis.set_major_formatter(_PERCENT)
    panel.tick_params(labelbottom=False)
    panel.set_ylim(-0.03, 1.03)
    panel.yaxis.set_major_formatter(_PERCENT)
    panel.set_ylabel("solved")
    style.legend_above(panel)
    bars.set_yscale("symlog", linthresh=1)
    top = 10 ** math.ceil(math.log10(max(most, 10)))
    bars.set_ylim(0, 1.5 * top)
    bars.set_yticks([0, 1, top])
    bars.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bars.minorticks_off()
    bars.set_ylabel("rows")
    bars.set_xlabel("the halt head's probability that the puzzle is solved")


def _draw_halting(axes: Axes, evaluation: Evaluation) -> None:
    halting = evaluation.halting
    counts, x = np.array(halting.histogram), np.arange(1, len(halting.histogram) + 1)
    stopped = counts.copy()
    stopped[-1] -= halting.never_stopped
    axes.bar(x, stopped, 0.85, color=_BLUE, label="stopped")
    if halting.never_stopped:
        never = f"never stopped: {halting.never_stopped:,}"
        axes.bar(x[-1:], [halting.never_stopped], 0.85, bottom=stopped[-1:], color="#B9B9B9", label=never)
    mean, saved = halting.mean_segment, 100 * halting.share_saved
    label = f"mean {mean:.2f}: saves {saved:.0f} %"
    axes.axvline(mean, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
    axes.grid(False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylabel("rows")
    style.step_axis(axes, "segments")
    axes.set_xlim(0.3, len(x) + 0.7)
    style.legend_above(axes)


PANELS = {
    "Accuracy by number of segments": _draw_segments,
    "Accuracy by depth": _draw_depths,
    "Halt head: does it know?": _draw_reliability,
    "Where the halt head stops": _draw_halting,
}


def _finish(axes: Axes, what: str) -> None:
    axes.set_ylabel(what)
    axes.yaxis.set_major_formatter(_PERCENT)
    style.step_axis(axes, "segments")
    style.legend_above(axes)
