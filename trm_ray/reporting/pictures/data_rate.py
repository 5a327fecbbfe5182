"""The figure of `trm-ray bench data`: how fast rows come, and what is in memory meanwhile."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trm_ray.reporting.pictures.style import MUTED, legend_above, styled

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def draw_data(measured: Mapping[str, Any]) -> Figure:
    """Draw what `measure.data_rate.measure_data` gives, second by second."""
    with styled():
        figure = Figure(figsize=(12, 4), dpi=130, layout="constrained")
        rate, memory, store = figure.subplots(1, 3)
        _draw_rate(rate, measured)
        _draw_memory(memory, measured)
        _draw_store(store, measured)
        for axes in (rate, memory, store):
            axes.set_ylim(bottom=0)
            axes.set_xlabel("seconds")
    return figure


def _draw_rate(axes: Axes, measured: Mapping[str, Any]) -> None:
    axes.set_title("Thousand rows a second", pad=25)
    held = sum(measured["held_per_s"]) / len(measured["held_per_s"]) / 1e3
    axes.axhline(held, color=MUTED, linestyle="--", label="from memory")
    for worker, colour in zip(range(measured["workers"]), _COLOURS * measured["workers"], strict=False):
        rates = [moment["rows_per_s"][worker] / 1e3 for moment in measured["moments"]]
        axes.plot(_seconds(measured), rates, color=colour, label=f"worker {worker}")
    legend_above(axes)


def _draw_memory(axes: Axes, measured: Mapping[str, Any]) -> None:
    axes.set_title("Resident memory, MiB", pad=25)
    for worker, colour in zip(range(measured["workers"]), _COLOURS * measured["workers"], strict=False):
        held = [moment["worker_mib"][worker] for moment in measured["moments"]]
        axes.plot(_seconds(measured), held, color=colour, label=f"worker {worker}")
    tasks = [moment["task_mib"] for moment in measured["moments"]]
    axes.plot(_seconds(measured), tasks, color=MUTED, label="all that read for them")
    legend_above(axes)


def _draw_store(axes: Axes, measured: Mapping[str, Any]) -> None:
    axes.set_title("Ray's object store, MiB", pad=25)
    axes.axhline(measured["store_limit_mib"], color=MUTED, linestyle="--", label="its size")
    for key, label, colour in (("store_mib", "in use", "#0072B2"), ("spilled_mib", "spilled to disk", "#D55E00")):
        axes.plot(_seconds(measured), [moment[key] for moment in measured["moments"]], color=colour, label=label)
    legend_above(axes)


def _seconds(measured: Mapping[str, Any]) -> list[float]:
    return [moment["seconds"] for moment in measured["moments"]]
