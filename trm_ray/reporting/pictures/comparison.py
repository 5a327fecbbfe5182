"""The picture of several runs: held-out numbers over steps, time and depth, and steps to a threshold."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from trm_ray.reporting.numbers.curves import curves_of
from trm_ray.reporting.numbers.depth import number_by_depth
from trm_ray.reporting.numbers.groups import Band, Group, group_runs, spread_over_seeds
from trm_ray.reporting.numbers.measure import (
    NATS,
    SHARE,
    Measure,
    Number,
    Unit,
    best_of,
    goal_of,
    measure_of,
    yardsticks_of,
)
from trm_ray.reporting.numbers.statistics import censored_median
from trm_ray.reporting.numbers.summary import reach, summarise
from trm_ray.reporting.numbers.unfinished import ReadGroup
from trm_ray.reporting.pictures import style
from trm_ray.reporting.pictures.style import FAINT, INK, MUTED, LineLook
from trm_ray.reporting.run_log import Run, Series

MAX_COLOURED_GROUPS = 10  # more lines than this nobody tells apart: the best ones are drawn, the others left grey
WIDTH_IN, HEIGHT_IN = 20.0, 10.0
BAR_CHARACTERS, BOLD_BAR_CHARACTERS = 56, 44  # what fits over a bar

Styled = tuple[Group, LineLook]
Read = Callable[[Run], Series]


def draw_comparison(runs: Sequence[Run], threshold: float | None = None) -> Figure:
    """Draw several runs against each other by their held-out numbers.

    Seeds of one config make one line, their mean, in a band from the lowest to the highest of them. Depths and steps
    to a threshold count a scenario's finished runs where it has any, as the ranking does.

    Args:
        threshold: of the number that ranks, whose first crossing the last panel tells; as of `compare_runs`.
    """
    with style.styled():
        scale = Scale.of(runs, threshold)
        groups = coloured(group_runs(runs), runs)
        counted = [(counted_runs(group), look) for group, look in groups]
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 4)
        for row, over in enumerate(("steps", "time")):
            for axes, number in zip(panels[row], scale.measure.panels, strict=False):
                draw_lines(axes, f"{number.title} over {over}", groups, number, over_time=over == "time")
            draw_levels(panels[row, 1], scale)
        draw_depths(panels[0, 3], counted, scale)
        draw_steps_to(panels[1, 3], counted, scale)
        _frame(figure, groups, runs)
        return figure


def save_comparison(runs: Sequence[Run], path: Path, threshold: float | None = None) -> Path:
    """Draw the comparison into a file; its ending (`.png`, `.svg`, `.pdf`) chooses the format."""
    return style.save(draw_comparison(runs, threshold), path)


@dataclass(frozen=True)
class Scale:
    """What runs are ranked by, what their steps are counted to, and what is as good without a model, by name."""

    measure: Measure
    goal: float | None
    yardsticks: Mapping[str, float]

    @classmethod
    def of(cls, runs: Sequence[Run], threshold: float | None) -> Scale:
        """Choose them for some runs."""
        measure = measure_of(runs)
        return cls(measure, goal_of(measure, runs, threshold), yardsticks_of(measure, runs))

    @property
    def number(self) -> Number:
        """The number that ranks."""
        return self.measure.final

    @property
    def depth_title(self) -> str:
        """Title of the panel of depths."""
        return f"{self.number.title} over depth"

    @property
    def steps_title(self) -> str:
        """Title of the panel of steps to a threshold."""
        if self.goal is None:
            return "Steps to a yardstick"
        named = [f" ({name})" for name, value in self.yardsticks.items() if value == self.goal]
        return f"Steps to {self.measure.goal_words(self.goal)} {self.measure.noun}{''.join(named)}"


def counted_runs(group: Group) -> Group:
    """Keep the runs that the ranking counts: the finished ones, or all where none is."""
    done = tuple(curves.run for curves in ReadGroup.of(group, None).finished.curves)
    return replace(group, runs=done or group.runs)


# ---- which group looks how -------------------------------------------------------------------------------


def coloured(groups: list[Group], runs: Sequence[Run]) -> list[Styled]:
    """Give each group its look; when there are too many, all but the best are grey and drawn first."""
    looks = style.group_looks([group.scenario for group in groups])
    if len(groups) <= MAX_COLOURED_GROUPS:
        return list(zip(groups, looks, strict=True))
    best = {summary.label for summary in summarise(runs)[:MAX_COLOURED_GROUPS]}
    kept = [group for group in groups if group.label in best]
    looks = style.group_looks([group.scenario for group in kept])
    grey = LineLook(FAINT, "-", "")
    return [(group, grey) for group in groups if group.label not in best] + list(zip(kept, looks, strict=True))


def reader(tag: str) -> Read:
    """Read a tag over the seconds in steps, as the comparison counts time: evaluations and checkpoints left out."""

    def read(run: Run) -> Series:
        series = run.series(tag)
        return series._replace(wall_s=curves_of(run).cost("seconds", series.steps))

    return read


# ---- panels ----------------------------------------------------------------------------------------------


def draw_lines(axes: Axes, title: str, groups: Sequence[Styled], number: Number, over_time: bool = False) -> None:
    """Draw a number over steps, or over the seconds in them."""
    axes.set_title(title)
    read = reader(number.tag)
    bands = [(group, look, spread_over_seeds([read(run) for run in group.runs])) for group, look in groups]
    if not any(band.num_seeds for _, _, band in bands):
        style.say(axes, _why_none([run for group, _ in groups for run in group.runs]))
        return
    divisor, unit = _time_unit(bands) if over_time else (1.0, "")
    for group, look, band in bands:
        _draw_band(axes, band, band.wall_s / divisor if over_time else band.steps, look)
        _mark_early_stops(axes, group, read, look, divisor if over_time else None)
    style.step_axis(axes, f"training time ({unit})" if over_time else "step")
    _finish_values(axes, number.unit)


def draw_levels(axes: Axes, scale: Scale) -> None:
    """Draw a line where steps and seconds are counted to, and one for each yardstick, as far as they are in sight."""
    if not axes.lines:
        return
    named = {level: f"{name} {level:.2f}" for name, level in scale.yardsticks.items()}
    levels = {**({} if scale.goal is None else {scale.goal: ""}), **named}
    low, high = axes.get_ylim()
    for level in (level for level in levels if low < level < high):
        axes.axhline(level, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(levels[level], (1, level), (-2, 2), ha="right", va="bottom", color=MUTED, fontsize=9, **place)
    if below := [f"↓ {name}" for level, name in named.items() if level <= low]:  # where curves that fall are not
        axes.annotate(
            ", ".join(below),
            (0, 0),
            (4, 3),
            xycoords="axes fraction",
            textcoords="offset points",
            color=MUTED,
            fontsize=9,
        )


def _draw_band(axes: Axes, band: Band, x: np.ndarray, look: LineLook) -> None:
    """Draw the mean, thin where a seed has ended and the mean is over fewer of them."""
    if not band.num_seeds:
        return
    last_full = int(np.flatnonzero(band.count == band.num_seeds)[-1]) if (band.count == band.num_seeds).any() else 0
    line: dict[str, Any] = {"color": look.colour, "linestyle": look.line_style, "zorder": 3 if look.marker else 2}
    whole, rest = slice(0, last_full + 1), slice(last_full, None)
    axes.plot(
        x[whole], band.mean[whole], marker=look.marker or None, markevery=max(1, len(x) // 12), markersize=6,
        markeredgecolor="white", markeredgewidth=0.6, **line,
    )  # fmt: skip
    if last_full + 1 < len(x):
        axes.plot(x[rest], band.mean[rest], linewidth=0.9, **line)
    if band.num_seeds > 1 and look.marker:
        axes.fill_between(x, band.low, band.high, color=look.colour, alpha=0.16, linewidth=0)


def _mark_early_stops(axes: Axes, group: Group, read: Read, look: LineLook, divisor: float | None) -> None:
    for run in group.runs:
        steps, wall_s, values = read(run)
        if run.stopped_early and len(steps) and look.marker:
            x = steps[-1] if divisor is None else wall_s[-1] / divisor
            axes.plot([x], [values[-1]], "x", color=look.colour, markersize=8, markeredgewidth=2.2, zorder=4)


def _finish_values(axes: Axes, unit: Unit) -> None:
    if unit is SHARE:
        top = axes.dataLim.y1 if np.isfinite(axes.dataLim.y1) else 1.0
        axes.set_ylim(-0.02 * max(top, 0.01), 1.03 if top > 0.6 else max(0.01, 1.15 * top))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    elif unit is NATS:
        style.log_axis(axes)
    axes.set_ylabel(unit.axis)


def draw_depths(axes: Axes, groups: Sequence[Styled], scale: Scale) -> None:
    """Draw how good the answer is after so many H-cycles at the last evaluation: at equal cost of inference."""
    axes.set_title(scale.depth_title)
    bands = [(number_by_depth(group.runs, scale.number.name), look) for group, look in groups]
    drawn = [(band, look) for band, look in bands if band.num_seeds]
    if not drawn:
        style.say(axes, _why_none([run for group, _ in groups for run in group.runs]))
        return
    for band, look in drawn:
        marked = [2**k - 1 for k in range(len(band.depths).bit_length())]  # evenly far apart on the axis
        line: dict[str, Any] = {"color": look.colour, "linestyle": look.line_style, "marker": look.marker or None}
        axes.plot(band.depths, band.mean, markevery=marked, **line)
        if band.num_seeds > 1 and look.marker:
            axes.fill_between(band.depths, band.low, band.high, color=look.colour, alpha=0.16, linewidth=0)
    style.depth_axis(axes, max(len(band.depths) for band, _ in drawn))
    axes.set_xlabel(f"depth: H-cycles since the {scale.measure.item} was taken up")
    _finish_values(axes, scale.number.unit)
    draw_levels(axes, replace(scale, goal=None))


def draw_steps_to(axes: Axes, groups: Sequence[Styled], scale: Scale) -> None:
    """Draw a bar a group, its seeds as dots, and words for who never got there."""
    axes.set_title(scale.steps_title)
    shown = [(group, look) for group, look in groups if look.marker]
    if not any(len(run.series(scale.number.tag).steps) for group, _ in shown for run in group.runs):
        style.say(axes, _why_none([run for group, _ in shown for run in group.runs]))
        return
    if scale.goal is None:
        style.say(
            axes,
            "No run is as good as a model of\nsingle tokens yet." if scale.yardsticks else "No yardstick is known.",
        )
        return
    for row, (group, look) in enumerate(shown):
        _draw_bar(axes, row, group, look, _Goal(scale.number, scale.goal))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(shown) - 0.35, -0.55)
    style.step_axis(axes)
    axes.set_xlim(0, 1.02 * max(run.last_step for group, _ in shown for run in group.runs))


@dataclass(frozen=True)
class _Goal:
    number: Number
    value: float

    def crossing(self, series: Series) -> tuple[float, float] | None:
        """Find step and seconds where a series first was as good."""
        return reach(series, self.number, self.value)

    def is_missed(self, series: Series) -> bool:
        """Tell whether a series was followed in vain."""
        return bool(len(series.steps)) and self.crossing(series) is None


def _draw_bar(axes: Axes, row: int, group: Group, look: LineLook, goal: _Goal) -> None:
    """Draw a group's name and words over its bar: there no word meets a bar or leaves the panel."""
    series = [reader(goal.number.tag)(run) for run in group.runs]
    reached = [found for one in series if (found := goal.crossing(one)) is not None]
    steps = [step for step, _ in reached]
    if steps:
        length, is_known = _middle(steps, [float(one.steps[-1]) for one in series if goal.is_missed(one)])
        axes.barh(row + 0.2, length, height=0.34, color=look.colour, alpha=0.9 if is_known else 0.35)
        if len(group.runs) > 1:
            axes.plot(steps, [row + 0.2] * len(steps), "o", color="white", markeredgecolor=INK, markersize=5, zorder=4)
    words = _bar_words(series, goal, max(run.last_step for run in group.runs))
    name = shortened(group.label, BAR_CHARACTERS - len(words))
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "bottom"}
    weight = "bold" if len(name) + len(words) <= BOLD_BAR_CHARACTERS else "normal"
    colour = look.colour if _is_dark(look.colour) else INK
    axes.annotate(name, (0, row), (2, 1), color=colour, fontweight=weight, **place)
    axes.annotate(words, (1, row), (0, 1), ha="right", **place)


def _middle(reached: Sequence[float], censored: Sequence[float]) -> tuple[float, bool]:
    """Give the median of the seeds and True; where too few got there, how far the others were followed and False."""
    median = censored_median(reached, censored)
    return (median, True) if np.isfinite(median) else (max(censored), False)


def _bar_words(series: Sequence[Series], goal: _Goal, last_step: int) -> str:
    evaluated = [one for one in series if len(one.values)]
    reached = [found for one in series if (found := goal.crossing(one)) is not None]
    if not evaluated:
        return "not evaluated"
    if not reached:
        return f"not in {last_step:,} steps (best {_best_words(goal.number, evaluated)})"
    some = f" ({len(reached)}/{len(series)} seeds)" if len(reached) < len(series) else ""
    lacking = [one for one in evaluated if goal.is_missed(one)]
    steps, is_known = _middle([step for step, _ in reached], [float(one.steps[-1]) for one in lacking])
    if not is_known:
        return f"> {steps:,.0f} steps{some}"
    passed, waited = [second for _, second in reached], [float(one.wall_s[-1]) for one in lacking]
    if not np.isfinite([*passed, *waited]).all():  # a run that was stopped in its last evaluation has not logged them
        return f"{steps:,.0f} steps{some}"
    seconds, _ = _middle(passed, waited)
    return f"{steps:,.0f} steps · {_duration(seconds)}{some}"


def _best_words(number: Number, evaluated: Sequence[Series]) -> str:
    best = best_of(number, np.concatenate([one.values for one in evaluated]))
    if number.unit is SHARE:
        return f"{100 * (best if np.isfinite(best) else 0.0):.1f} %"
    return f"{best:.2f}" if np.isfinite(best) else "–"


# ---- around the panels -----------------------------------------------------------------------------------


def _frame(figure: Figure, groups: Sequence[Styled], runs: Sequence[Run]) -> None:
    """Write the heading, one legend for all panels and the caption, and leave the panels the room between."""
    figure.text(0.012, 0.985, _heading(groups, runs), va="top", fontsize=15, fontweight="bold")
    coloured = [(group, look) for group, look in groups if look.marker]
    handles = [_handle(look) for _, look in coloured]
    labels = [group.label + seed_words(group) for group, _ in coloured]
    if len(coloured) < len(groups):
        handles.append(Line2D([], [], color=FAINT))
        labels.append(f"{len(groups) - len(coloured)} others")
    widest = max(map(len, labels), default=1)
    columns = max(1, min(len(labels), int((WIDTH_IN - 0.4) / (0.078 * widest + 0.65))))
    legend = figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.006, 0.952), ncols=columns, fontsize=10,
        columnspacing=1.8, handlelength=2.4, borderaxespad=0.2,
    )  # fmt: skip
    caption = figure.text(0.012, 0.012, _caption(coloured, runs), va="bottom", fontsize=9, color=MUTED)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    height = figure.bbox.height
    top = legend.get_window_extent(renderer).y0 / height - 0.012
    bottom = caption.get_window_extent(renderer).y1 / height + 0.012
    style.lay_out(figure, (0.005, bottom, 0.99, top - bottom), wspace=0.04, hspace=0.06)


def _heading(groups: Sequence[Styled], runs: Sequence[Run]) -> str:
    tasks = sorted({str(run.config.get("task") or "") for run in runs} - {""})
    noun = "scenario" if len({group.scenario for group, _ in groups}) == len(groups) else "variant"
    counts = [(len(groups), noun), (len(runs), "run")]
    return " · ".join([", ".join(tasks) or "Comparison", *(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)])


def _caption(groups: Sequence[Styled], runs: Sequence[Run]) -> str:
    measure = measure_of(runs)
    notes = [f"Held-out {measure.items} only."]
    if any(len(group.runs) > 1 for group, _ in groups):
        notes.append("Line: mean over seeds (time: theirs at that step); band: lowest to highest seed; dots: seeds.")
    else:
        small = f"differences {measure.noise_words} of {measure.noun} are noise"
        notes.append(f"One seed each: {small if measure.noise_words else 'no difference can be told from noise'}.")
    if any(run.stopped_early for run in runs):
        notes.append("×: run ended before its planned steps; thin line: mean of the seeds left.")
    silent = [run.name for run in runs if not len(run.series("eval/loss").steps)]
    if silent and len(silent) < len(runs):
        notes.append(f"Not evaluated yet: {', '.join(silent[:4])}{', …' if len(silent) > 4 else ''}.")
    return "\n".join(textwrap.wrap("  ".join(notes), 285))


def _handle(look: LineLook) -> Line2D:
    return Line2D(
        [], [], color=look.colour, linestyle=look.line_style, marker=look.marker, markeredgecolor="white", markersize=7
    )


def seed_words(group: Group) -> str:
    """Say how many seeds there are, in brackets behind the label; nothing of one."""
    return f" ({len(group.runs)} seeds)" if len(group.runs) > 1 else ""


def _why_none(runs: Sequence[Run]) -> str:
    if any(len(run.series("eval/loss").steps) for run in runs):
        return "Evaluated by a release that\nmeasured no depth."
    intervals = sorted({int(run.config["eval_interval"]) for run in runs if run.config.get("eval_interval")})
    furthest = max((run.last_step for run in runs), default=0)
    due = f"\nThe first is due at step {intervals[0]:,}; the furthest run is at step {furthest:,}." if intervals else ""
    return f"No run has been evaluated yet.{due}"


def _time_unit(bands: Sequence[tuple[Group, LineLook, Band]]) -> tuple[float, str]:
    longest = max(float(np.nanmax(band.wall_s)) for _, _, band in bands if band.num_seeds)
    return (3600.0, "h") if longest > 3 * 3600 else (60.0, "min") if longest > 3600 else (1.0, "s")


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def shortened(label: str, most: int) -> str:
    """Cut what is longer than `most` characters."""
    return label if len(label) <= most else label[: most - 1].rstrip(" ·.=") + "…"


def _is_dark(colour: str) -> bool:
    """Tell whether text of `colour` can be read on white."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
