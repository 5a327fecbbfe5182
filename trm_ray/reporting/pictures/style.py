"""How the project's figures look: colours, axes, legends, files. No pyplot, hence no global state."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, MUTED, FAINT = "#222222", "#6B6B6B", "#D9D9D9"

# Okabe & Ito (2008): told apart with any colour vision. A scenario keeps its colour in every figure.
SCENARIO_COLOURS = {
    "baseline": "#4D4D4D",
    "constant": "#E69F00",
    "linear": "#0072B2",
    "exponential": "#009E73",
    "curriculum": "#CC79A7",
}
OTHER_COLOURS = ("#D55E00", "#56B4E9", "#882255", "#999933", "#332288", "#661100")
MARK_COLOURS = {"ok": "#00795A", "warn": "#B25F00", "bad": "#C2260C"}
MARK_SIGNS = {"ok": "✓", "warn": "!", "bad": "✗"}
CYCLE_COLOURS = LinearSegmentedColormap.from_list("cycles", ["#8EC1E0", "#2F7FB8", "#08306B"])
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINE_STYLES = ("-", "--", "-.", ":")

RC = {
    "text.parse_math": False,  # a name may hold `$`
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9A9A9A",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": "#9A9A9A",
    "ytick.color": "#9A9A9A",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "text.color": INK,
    "figure.facecolor": "white",
}
_SIGNED = {"Software": "trm-ray"}
# All but what only matters to windows, which matplotlib may not look up without opening one.
_DEFAULTS = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}


class LineLook(NamedTuple):
    """How a group's line is drawn."""

    colour: str
    line_style: str
    marker: str


def scenario_colours(scenarios: Sequence[str]) -> dict[str, str]:
    """Give every scenario its colour; the ones not known by name take spare colours in alphabetical order."""
    others = sorted(set(scenarios) - set(SCENARIO_COLOURS))
    spare = {name: OTHER_COLOURS[index % len(OTHER_COLOURS)] for index, name in enumerate(others)}
    return {name: SCENARIO_COLOURS.get(name) or spare[name] for name in scenarios}


def cycle_colours(count: int) -> list[str]:
    """Shade the cycles from pale (first) to dark (last)."""
    return [to_hex(CYCLE_COLOURS(i / max(1, count - 1) if count > 1 else 1.0)) for i in range(count)]


def group_looks(scenarios: Sequence[str]) -> list[LineLook]:
    """Tell groups apart: by the scenario's colour, and variants of one scenario by dashes and markers.

    Variants of a single scenario get colours too: there is no other scenario to mistake them for.

    Args:
        scenarios: scenario of each group, in the order of the legend.
    """
    if len(set(scenarios)) == 1 and len(scenarios) > 1:
        palette = (*(c for name, c in SCENARIO_COLOURS.items() if name != "baseline"), *OTHER_COLOURS)
        return [
            LineLook(palette[i % len(palette)], LINE_STYLES[i // len(palette) % 4], MARKERS[i % len(MARKERS)])
            for i in range(len(scenarios))
        ]
    colours = scenario_colours(scenarios)
    order = [*SCENARIO_COLOURS, *sorted(set(scenarios) - set(SCENARIO_COLOURS))]
    looks = []
    for index, name in enumerate(scenarios):
        variant = list(scenarios[:index]).count(name)
        marker = MARKERS[(order.index(name) + variant) % len(MARKERS)]
        looks.append(LineLook(colours[name], LINE_STYLES[variant % len(LINE_STYLES)], marker))
    return looks


@contextmanager
def styled() -> Iterator[None]:
    """Use the project's look inside a `with`, and nothing of what a user has set for his own pictures."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update({**_DEFAULTS, **RC})
        yield


def room_for_notes() -> Any:
    """Lift the titles inside a `with`, so that a line of legend or words fits under each."""
    return matplotlib.rc_context({"axes.titlepad": 25})


def step_axis(axes: Axes, label: str = "step") -> None:
    """Write the x axis as counts with thousands separators."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def depth_axis(axes: Axes, most: int) -> None:
    """Make the x axis one of depths from 1 to `most`, logarithmic: what matters happens in the first few."""
    ticks = [2**k for k in range(most.bit_length())]
    ticks = [*ticks, most] if most >= 1.4 * ticks[-1] else ticks
    axes.set_xscale("log")
    axes.set_xlim(0.92, 1.09 * most)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("depth: H-cycles since the puzzle was taken up")


def log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic when the data span enough for it, with numbers written in full."""
    low, high = axes.dataLim.intervaly
    if not 0 < low < high or high / low < 4:
        return
    axes.set_yscale("log")
    if high / low < 300:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1e-4 else f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def say(axes: Axes, words: str) -> None:
    """Put words where the data would be."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_facecolor("#FAFAFA")
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED, linespacing=1.5)


def note(axes: Axes, words: str) -> None:
    """Write one quiet line between title and panel."""
    axes.annotate(words, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", va="bottom", color=MUTED)


def legend_above(axes: Axes) -> None:
    """Write the legend between title and panel, where no line can run under it."""
    count = len(axes.get_legend_handles_labels()[1])
    if count:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=count, borderpad=0.1, borderaxespad=0.35,
            handlelength=1.3, handletextpad=0.5, columnspacing=1.1,
        )  # fmt: skip


def lay_out(figure: Figure, rect: tuple[float, float, float, float], wspace: float, hspace: float) -> None:
    """Keep the panels inside `rect` (left, bottom, width, height as shares of the figure)."""
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=rect, w_pad=0.12, h_pad=0.11, wspace=wspace, hspace=hspace))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; the file's ending chooses the format.

    Raises:
        ValueError: the ending names no format that can be written.
    """
    kind = format_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    with styled():
        figure.savefig(picture, dpi=figure.dpi, format=kind, metadata=_SIGNED if kind == "png" else None)
    path.write_bytes(picture.getvalue())
    return path


def format_of(path: Path) -> str:
    """Read the format of a picture off its file's ending.

    Raises:
        ValueError: the ending names none that can be written.
    """
    kind, formats = path.suffix.lstrip(".").lower(), sorted(FigureCanvasBase.get_supported_filetypes())
    if kind not in formats:
        raise ValueError(f"cannot save a picture as {path}: its name must end with one of .{', .'.join(formats)}")
    return kind


def is_drawn_by_us(path: Path) -> bool:
    """Tell by its content whether a picture is a PNG that `save` wrote."""
    return b"Software\0trm-ray" in path.read_bytes()[:1000]
