"""The figure of `trm-ray bench scaling`: what more workers bring, and where their time goes."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trm_ray.reporting.pictures.style import FAINT, MUTED, legend_above, styled

Rows = Sequence[Mapping[str, Any]]

_COLOURS = {"strong": "#0072B2", "weak": "#E69F00"}
_PARTS = {"computing": "#0072B2", "exchange": "#56B4E9", "waiting": "#E69F00", "data": "#D55E00"}


def draw_scaling(rows: Rows) -> Figure:
    """Draw what `measure.scaling.scaling_rows` gives: speed-up, processor time a puzzle, where a step's time goes."""
    with styled():
        figure = Figure(figsize=(12, 4), dpi=130, layout="constrained")
        speed, work, time = figure.subplots(1, 3, width_ratios=(3, 3, 4))
        _draw_speed(speed, rows)
        _draw_work(work, rows)
        _draw_time(time, rows)
    return figure


def _draw_speed(axes: Axes, rows: Rows) -> None:
    axes.set_title("Puzzles a second, × plain loop", pad=25)
    most, cpus = max(row["workers"] for row in rows), rows[0]["cpus"]
    axes.plot([1, most], [1, most], color=FAINT, linestyle="--", label="perfect")
    if most > cpus:
        axes.axvline(cpus, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(f"{cpus} CPUs", (cpus, 0.03), (3, 0), ("data", "axes fraction"), "offset points", color=MUTED)
    _draw_kinds(axes, rows, "speed_up")


def _draw_work(axes: Axes, rows: Rows) -> None:
    axes.set_title("Processor time a puzzle, × plain loop", pad=25)
    axes.axhline(1, color=FAINT, linestyle="--")
    _draw_kinds(axes, rows, "cpu_ratio")


def _draw_kinds(axes: Axes, rows: Rows, key: str) -> None:
    """Draw medians with the middle half as a bar; one worker begins both lines."""
    for kind, colour in _COLOURS.items():
        chosen = [row for row in rows if row["scaling"] == kind or row["workers"] == 1]
        if not chosen:
            continue
        low, middle, high = zip(*(row[key] for row in chosen), strict=True)
        errors = [[m - b for m, b in zip(middle, low, strict=True)], [t - m for m, t in zip(middle, high, strict=True)]]
        axes.errorbar(
            [row["workers"] for row in chosen], middle, errors, color=colour, marker="o", capsize=3, label=kind
        )
    axes.set_ylim(bottom=0)
    axes.set_xticks(sorted({row["workers"] for row in rows}))
    axes.set_xlabel("Ray workers")
    legend_above(axes)


def _draw_time(axes: Axes, rows: Rows) -> None:
    axes.set_title("Where a step's time goes", pad=25)
    names = [f"{row['workers']} {row['scaling'] if row['workers'] > 1 else ''}".strip() for row in rows]
    left = [0.0] * len(rows)
    for part, colour in _PARTS.items():
        shares = [100 * _shares(row)[part] for row in rows]
        axes.barh(names, shares, left=left, color=colour, label=part)
        left = [begin + share for begin, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the workers' time")
    legend_above(axes)


def _shares(row: Mapping[str, Any]) -> dict[str, float]:
    exchange, least, data = row["exchange"][1], row["least_exchange"], row["data_wait"]
    return {"computing": 1 - exchange - data, "exchange": least, "waiting": exchange - least, "data": data}
