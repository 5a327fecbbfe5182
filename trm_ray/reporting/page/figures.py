"""The figures of the report: the panels of the comparison one by one, as SVG that takes its colours from the page."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trm_ray.reporting.numbers.depth import number_by_depth
from trm_ray.reporting.numbers.groups import group_runs, spread_over_seeds
from trm_ray.reporting.numbers.measure import Number
from trm_ray.reporting.numbers.spending import PART_WORDS, Spending
from trm_ray.reporting.numbers.summary import reach
from trm_ray.reporting.page.links import csv_uri
from trm_ray.reporting.pictures import comparison as drawn
from trm_ray.reporting.pictures import style
from trm_ray.reporting.run_log import Run

SIZE_IN = (5.0, 3.4)  # at 360 pixels, on a phone, letters are still as large as they are on paper
_SVG = {"svg.fonttype": "none", "savefig.transparent": True}
_SPACE, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# By what seconds went into; a part that is not named is grey.
_PART_COLOURS = {
    "steps": "#0072B2",
    "evaluation": "#E69F00",
    "start": "#009E73",
    "gradient_stats": "#CC79A7",
    "data": "#D55E00",
    "checkpoints": "#56B4E9",
}
_OTHER_COLOUR = "#9A9A9A"

Rows = list[Sequence[object]]  # the first one has the headings


@dataclass(frozen=True)
class PageFigure:
    """A figure with its data: `alt` says what is to be seen, `rows` holds what was drawn."""

    name: str
    title: str
    alt: str
    svg: Markup
    rows: Rows

    @property
    def csv_uri(self) -> str:
        """Write the data as a link that holds them."""
        return csv_uri(self.rows)


@dataclass(frozen=True)
class Look:
    """An entry of the legend that all figures share."""

    label: str
    svg: Markup


@dataclass(frozen=True)
class Figures:
    """All that is drawn of some runs."""

    legend: list[Look]
    curves: list[PageFigure]
    costs: list[PageFigure]


def draw_figures(
    runs: Sequence[Run], threshold: float | None, advance: Callable[[int], None] = lambda amount: None
) -> Figures:
    """Draw runs for the page.

    Args:
        threshold: of the number that ranks, which steps count to; as of `compare_runs`.
        advance: told of each figure.
    """
    with style.styled(), matplotlib.rc_context(_SVG):
        groups, scale = drawn.coloured(group_runs(runs), runs), drawn.Scale.of(runs, threshold)

        def all_of(figures: Iterable[PageFigure]) -> list[PageFigure]:
            found = []
            for figure in figures:
                found.append(figure)
                advance(1)
            return found

        counted = [(drawn.counted_runs(group), look) for group, look in groups]
        curves = all_of(chain(_curves(groups, scale), _steps(counted, scale), _depths(counted, scale)))
        return Figures(list(_legend(groups)), curves, all_of(_costs(counted)))


NUM_FIGURES = 9  # at most, for a bar of progress


# ---- what is drawn ---------------------------------------------------------------------------------------


def _curves(groups: Sequence[drawn.Styled], scale: drawn.Scale) -> Iterator[PageFigure]:
    alt = "mean over the seeds of each scenario, lowest to highest"
    for over in ("steps", "time"):
        for number in scale.measure.panels:
            figure, axes = _panel()
            drawn.draw_lines(axes, "", groups, number, over_time=over == "time")
            if number is scale.number:
                drawn.draw_levels(axes, scale)
            yield _figure(figure, f"{number.title} over {over}", alt, _lines(groups, number))


def _steps(groups: Sequence[drawn.Styled], scale: drawn.Scale) -> Iterator[PageFigure]:
    figure, axes = _panel()
    drawn.draw_steps_to(axes, groups, scale)
    axes.set_title("")
    yield _figure(figure, scale.steps_title, "a bar a scenario, a dot a seed", _steps_to(groups, scale))


def _lines(groups: Sequence[drawn.Styled], number: Number) -> Rows:
    rows: Rows = [("scenario", "step", "training_s", "mean", "lowest", "highest", "seeds")]
    for group, _ in groups:
        band = spread_over_seeds([drawn.reader(number.tag)(run) for run in group.runs])
        columns = (band.steps, band.wall_s, band.mean, band.low, band.high, band.count)
        rows += [(group.label, *_rounded(row)) for row in zip(*columns, strict=True)]
    return rows


def _steps_to(groups: Sequence[drawn.Styled], scale: drawn.Scale) -> Rows:
    rows: Rows = [("scenario", "seed", "steps", "training_s")]
    for group, _ in groups:
        for run in group.runs:
            series = drawn.reader(scale.number.tag)(run)
            found = None if scale.goal is None else reach(series, scale.number, scale.goal)
            rows.append((group.label, run.seed, *(_rounded(found) if found else ("", ""))))
    return rows


def _depths(groups: Sequence[drawn.Styled], scale: drawn.Scale) -> Iterator[PageFigure]:
    figure, axes = _panel()
    drawn.draw_depths(axes, groups, scale)
    axes.set_title("")
    rows: Rows = [("scenario", "depth", "mean", "lowest", "highest", "seeds")]
    for group, _ in groups:
        band = number_by_depth(group.runs, scale.number.name)
        columns = (band.depths, band.mean, band.low, band.high)
        rows += [(group.label, *_rounded(row), band.num_seeds) for row in zip(*columns, strict=True)]
    yield _figure(figure, scale.depth_title, f"{scale.measure.by} after so many H-cycles, at the end", rows)


def _costs(groups: Sequence[drawn.Styled]) -> Iterator[PageFigure]:
    """Draw a bar a scenario: core-seconds a run, by what they went into."""
    spent = [(group.label, Spending.of(group.runs), len(group.runs)) for group, _ in groups]
    found = {part for _, spending, _ in spent for part in spending.parts}
    parts = [part for part in (*_PART_COLOURS, *sorted(found - _PART_COLOURS.keys())) if part in found]
    if not parts:
        return
    figure, axes = _panel(0.9 + 0.34 * len(spent))
    starts = [0.0] * len(spent)
    for part in parts:
        lengths = [spending.parts.get(part, 0.0) / count for _, spending, count in spent]
        axes.barh(
            range(len(spent)),
            lengths,
            left=starts,
            height=0.62,
            color=_PART_COLOURS.get(part, _OTHER_COLOUR),
            label=PART_WORDS.get(part, part),
        )
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    axes.set_yticks(range(len(spent)), [drawn.shortened(label, 24) for label, _, _ in spent])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    style.step_axis(axes, "core-seconds a run")
    figure.legend(loc="outside upper left", ncols=4, handlelength=1, columnspacing=1.1, handletextpad=0.5)
    rows: Rows = [("scenario", "part", "core_s", "runs")]
    rows += [
        (label, part, round(s, 3), count) for label, spending, count in spent for part, s in spending.parts.items()
    ]
    yield _figure(figure, "Core-seconds a run", "a bar a scenario, by what they went into", rows)


def _legend(groups: Sequence[drawn.Styled]) -> Iterator[Look]:
    for number, (group, look) in enumerate(groups):
        if look.marker:
            figure = Figure(figsize=(0.46, 0.2))
            line: dict[str, Any] = {"color": look.colour, "linestyle": look.line_style, "marker": look.marker}
            figure.add_artist(Line2D([0.05, 0.5, 0.95], [0.5] * 3, markevery=[1], markeredgecolor="white", **line))
            yield Look(group.label + drawn.seed_words(group), _svg(figure, f"look-{number}", ""))


def _rounded(values: Iterable[float]) -> list[object]:
    """Write numbers with six digits: more of them nobody has measured."""
    return [int(value) if float(value).is_integer() else float(f"{value:.6g}") for value in values]


# ---- how it gets into the page ---------------------------------------------------------------------------


def _panel(height_in: float = SIZE_IN[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIZE_IN[0], height_in), layout="constrained")
    return figure, figure.subplots()


def _figure(figure: Figure, title: str, alt: str, rows: Rows) -> PageFigure:
    name = "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())
    return PageFigure(name, title, f"{title}: {alt}", _svg(figure, name, f"{title}: {alt}"), rows)


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """Write a figure as an SVG element: names that only it has, and nothing that reaches beyond it.

    Args:
        alt: what it shows; without, it is decoration.
    """
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    root = ET.fromstring(picture.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.tag == f"{_SPACE}style":  # a style would hold for the page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SPACE)
        if element.tag == "g":
            element.attrib.pop("id", None)
        if _LINK in element.attrib:
            element.set("href", element.attrib.pop(_LINK))
    for attribute in ("version", "width", "height"):
        root.attrib.pop(attribute, None)
    root.set("class", "plot" if alt else "look")
    root.attrib.update({"role": "img", "aria-label": alt} if alt else {"aria-hidden": "true"})
    return Markup(ET.tostring(root, encoding="unicode"))
