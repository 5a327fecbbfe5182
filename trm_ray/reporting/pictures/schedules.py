"""The figure of `trm-ray schedule`: what each H-cycle's loss weighs, over cycles and steps, and what a step costs."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trm_ray.reporting.numbers.schedules import Phase, ScheduleView, shares
from trm_ray.reporting.pictures import style
from trm_ray.reporting.pictures.style import INK, MUTED

_ROW_IN, _FOOT_IN = 2.1, 0.25  # inches
MOST_LABELS = 6  # bars that have room for a label each
_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}


def draw_schedules(views: Sequence[ScheduleView]) -> Figure:
    """Draw a row a schedule: weights of the cycles at the end, their shares of the loss over the steps, the cost."""
    with style.styled(), style.room_for_notes():
        figure = Figure(figsize=(12, _FOOT_IN + _ROW_IN * len(views)), dpi=130)
        style.lay_out(figure, (0.005, 0.005, 0.99, 0.99), wspace=0.01, hspace=0.03)
        rows = figure.subplots(len(views), 3, width_ratios=(3, 6, 3), squeeze=False)
        heaviest = max(max(view.phases[-1].weights[-1]) for view in views)
        dearest = max(phase.cost for view in views for phase in view.phases)
        for view, (weights, over_steps, costs) in zip(views, rows, strict=True):
            _draw_weights(weights, view, heaviest)
            _draw_shares(over_steps, view)
            _draw_costs(costs, view, dearest)
        rows[0][1].set_title("Share of the loss over the steps")
        style.note(rows[0][1], "stacked: w/W of each H-cycle, the first at the bottom")
        rows[0][2].set_title("FLOPs of a step")
        style.note(rows[0][2], "× the baseline's, which is dashed")
        for axes in rows[-1][1:]:
            axes.set_xlabel("step")
    return figure


def _draw_weights(axes: Axes, view: ScheduleView, heaviest: float) -> None:
    """Draw the weights that a run ends with, each with its value and its share; of many the first and the last."""
    weights = view.phases[-1].weights[-1]
    crowded = len(weights) > MOST_LABELS
    axes.bar(range(len(weights)), weights, 0.62, color=style.cycle_colours(len(weights)))
    for cycle, (weight, share) in enumerate(zip(weights, shares(weights), strict=True)):
        if crowded and cycle not in (0, len(weights) - 1):
            continue
        label = f"{weight:.3g}\n{100 * share:.0f} %" if weight else "0"
        axes.annotate(label, (cycle, weight), (0, 3), ha="center", va="bottom", linespacing=1.3, **_SMALL)
    axes.set_xticks(range(len(weights)), ["0" if crowded else "H-cycle 0", *map(str, range(1, len(weights)))])
    axes.set_ylim(0, 1.45 * heaviest)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_title(view.name)
    style.note(axes, f"weights at the end; gradient: {view.phases[-1].gradient}")


def _draw_shares(axes: Axes, view: ScheduleView) -> None:
    """Stack the shares of the cycles over the steps, and tell the depth where it changes."""
    most = max(phase.H_cycles for phase in view.phases)
    points = [(step, shares(weights)) for phase in view.phases for step, weights in _points(phase)]
    of_cycles = zip(*((*of, *(0.0,) * (most - len(of))) for _, of in points), strict=True)
    axes.stackplot([step for step, _ in points], *of_cycles, colors=style.cycle_colours(most), linewidth=0)
    depths = [(depth, next(phases).begin) for depth, phases in itertools.groupby(view.phases, _depth)]
    for depth, begin in depths if len(depths) > 1 else ():
        axes.axvline(begin, color="white", linewidth=1.5)
        place: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}, "va": "top"}
        axes.annotate(depth, (begin, 1), (4, -4), **place, **_SMALL)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    _finish_steps(axes, view)


def _points(phase: Phase) -> list[tuple[int, tuple[float, ...]]]:
    return [*zip(phase.at, phase.weights, strict=True), (phase.end, phase.weights[-1])]


def _depth(phase: Phase) -> str:
    return f"{phase.H_cycles} × {phase.L_cycles} cycles"


def _draw_costs(axes: Axes, view: ScheduleView, dearest: float) -> None:
    """Draw the cost over the steps, with its number where it changes and that of the whole run."""
    axes.axhline(1, color=MUTED, linestyle="--", linewidth=1, zorder=1)
    levels = [(cost, [*phases]) for cost, phases in itertools.groupby(view.phases, lambda phase: phase.cost)]
    edges = [0, *(phases[-1].end for _, phases in levels)]
    costs = [cost for cost, _ in levels]
    axes.stairs(costs, edges, color=INK, alpha=0.1, fill=True)
    axes.stairs(costs, edges, color=INK, baseline=None, linewidth=1.8, zorder=3)
    for cost, phases in levels:
        middle = (phases[0].begin + phases[-1].end) / 2
        if phases[-1].end - phases[0].begin > 0.12 * view.num_steps:
            clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}  # of the dashed line
            axes.annotate(f"{cost:.2f}", (middle, cost), (0, 4), ha="center", bbox=clear, **_SMALL)
    if len(levels) > 1:
        axes.annotate(f"all steps: {view.cost:.2f}", (1, 1), (0, -2), ha="right", va="top", color=MUTED,
                      xycoords="axes fraction", **_SMALL)  # fmt: skip
    axes.set_ylim(0, 1.45 * dearest)
    _finish_steps(axes, view)


def _finish_steps(axes: Axes, view: ScheduleView) -> None:
    style.step_axis(axes, "")
    axes.set_xlim(0, view.num_steps)
    axes.grid(False)
