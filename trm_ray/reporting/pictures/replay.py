"""The figure of `trm-ray replay`: what each setting of early stopping saves, and what it loses."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trm_ray.reporting.numbers.replay import ENOUGH, Replay, Replayed, pareto
from trm_ray.reporting.pictures.style import INK, MUTED, legend_above, note, save, step_axis, styled

_COLOURS = ("#4D4D4D", "#E69F00", "#009E73", "#0072B2", "#CC79A7")
_MARKERS = {"trial": "o", "group": "s"}


def save_replay(replay: Replay, path: Path) -> Path:
    """Draw a replay into a file; its ending chooses the format.

    Raises:
        ValueError: the ending is of no format.
    """
    return save(draw_replay(replay), path)


def draw_replay(replay: Replay) -> Figure:
    """Draw settings, saved × regret, beside what foretells the end."""
    with styled():
        figure = Figure(figsize=(12, 4.8), dpi=130, layout="constrained")
        settings, omens = figure.subplots(1, 2)
        _draw_settings(settings, replay)
        _draw_omens(omens, replay)
    return figure


def _draw_settings(axes: Axes, replay: Replay) -> None:
    axes.set_title("What a setting saves and loses (colours as on the right)", pad=25)
    scale = replay.measure.unit.scale
    for (metric, words), colour in zip(replay.omen_words.items(), _COLOURS, strict=True):
        _scatter(axes, [one for one in replay.settings if one.asha.metric == metric], colour, words, scale)
    line = pareto(replay.settings)
    axes.plot(*_places(line, scale), color=MUTED, linewidth=1, zorder=1)
    marks = f"filled: the best or its equal kept in {100 * ENOUGH:.0f} % of the orders; squares: groups"
    if replay.advised is not None:
        axes.scatter(
            *_places([replay.advised], scale), s=170, facecolors="none", edgecolors=INK, linewidths=1.5, zorder=4
        )
        marks += "; ring: take"
    axes.set_xlabel("% of the steps saved (line: none saves more and loses less)")
    axes.set_ylabel(f"expected regret, {replay.measure.loses}")
    note(axes, marks)


def _scatter(axes: Axes, settings: Sequence[Replayed], colour: str, label: str, scale: float) -> None:
    for good in (True, False):
        chosen, face = [one for one in settings if (one.mean.equal >= ENOUGH) == good], colour if good else "none"
        for unit, marker in _MARKERS.items():
            places = _places([one for one in chosen if one.asha.unit == unit], scale)
            axes.scatter(*places, s=32, marker=marker, facecolors=face, edgecolors=colour, zorder=3)
    if settings:
        axes.scatter([], [], color=colour, label=label)


def _places(settings: Sequence[Replayed], scale: float) -> tuple[list[float], list[float]]:
    return [100 * one.mean.saved_steps for one in settings], [scale * one.mean.regret for one in settings]


def _draw_omens(axes: Axes, replay: Replay) -> None:
    axes.set_title("What foretells the end (Spearman over trials)", pad=25)
    for (tag, words), colour in zip(replay.omen_words.items(), _COLOURS, strict=True):
        found = [omen for omen in replay.omens if omen.tag == tag and math.isfinite(omen.trials)]
        if found:
            steps, values = [omen.step for omen in found], [omen.trials for omen in found]
            axes.plot(steps, values, color=colour, marker="o", label=words)
    values = [omen.trials for omen in replay.omens if math.isfinite(omen.trials)]
    axes.set_ylabel("rank correlation with the end (1: same order)")
    axes.set_ylim(min([0.0, *values]) - 0.02, 1.02)
    step_axis(axes)
    legend_above(axes)
