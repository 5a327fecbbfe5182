"""What an evaluation has found: accuracies with their intervals, how far the halt head can be believed, the picture."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich import box
from rich.table import Table

from trm_ray.reporting.pictures import style
from trm_ray.reporting.pictures.dashboard import CYCLE_COLOURS
from trm_ray.reporting.pictures.style import FAINT, INK, MUTED

FORMAT_VERSION = 1
Z95 = 1.959963984540054  # standard deviations of the normal distribution that hold 95 % of it
NUM_BINS = 10
FEW_UNITS = 10  # fewer say too little of how far they lie apart
MAX_NAMES = 20  # of test inputs without predictions, on the console

_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
_BLUE, _ORANGE = "#0072B2", "#E69F00"


# ---- numbers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval; all NaN over nothing."""

    value: float
    low: float
    high: float


def wilson(share: float, count: float) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a share of `count` independent cases, which may be an effective number.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22 (1927).
    """
    if count <= 0:
        return math.nan, math.nan
    spread = Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def estimate(values: np.ndarray, units: np.ndarray, most: int | None = None) -> Share:
    """Estimate a mean of values in [0, 1] with Wilson's interval, units being what is independent.

    The cells of a puzzle are not independent, nor are the copies of a puzzle: what counts is how far whole units lie
    apart. The interval is that of the number n of independent cases which would vary as much as the mean does over the
    U units: p·(1 − p) / n = U / (U − 1) · Σ_unit (Σ (value − p))² / N², the unbiased variance. n is kept from U to
    `most`; with U < 10, and where p is 0 or 1, it is U, as little is known of the spread then. For N solved-or-not
    rows that are a unit each, n = N: Wilson's interval as everybody knows it. Units are taken to be of about one size.

    Args:
        values: (N,) in [0, 1]: solved or not, or the share of right cells.
        units: (N,) which unit each row belongs to.
        most: what n can be at most: all cells for shares of cells; the N rows if not given.
    """
    if not len(values):
        return Share(math.nan, math.nan, math.nan)
    share = float(values.mean(dtype=np.float64))
    _, members = np.unique(units, return_inverse=True)
    residuals = np.bincount(members, weights=values - share)
    num = len(residuals)
    if num < FEW_UNITS:
        return Share(share, *wilson(share, num))
    variance = num / (num - 1) * float((residuals**2).sum()) / len(values) ** 2
    count = share * (1 - share) / max(variance, sys.float_info.min)
    return Share(share, *wilson(share, min(max(count, num), len(values) if most is None else most)))


@dataclass(frozen=True)
class Calibration:
    """Rows by what the halt head says, in ten bins of equal width over the probability.

    count, probability, solved: (10,) rows in the bin, their mean probability, the share of them that is solved.
    error: expected calibration error, the mean distance of the last two over the rows.
    """

    count: list[int]
    probability: list[float]
    solved: list[float]
    error: float


def calibrate(halt_logits: np.ndarray, solved: np.ndarray) -> Calibration:
    """Compare the halt head's probability with what is solved, entry by entry of two arrays of one shape."""
    probability = 1 / (1 + np.exp(-np.clip(halt_logits.astype(np.float64).ravel(), -500, 500)))
    bins = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    sums = [np.bincount(bins, weights=w, minlength=NUM_BINS) for w in (probability, solved.ravel().astype(float))]
    error = float(np.abs(sums[0] - sums[1]).sum() / count.sum()) if count.sum() else math.nan
    with np.errstate(invalid="ignore"):
        means = [total / count for total in sums]
    return Calibration(count.tolist(), means[0].tolist(), means[1].tolist(), error)


@dataclass(frozen=True)
class RowResults:
    """What each row came to at every segment: S segments, C H-cycles, N rows with labels.

    solved, cells: (S, C, N) whether all cells are right after each cycle, and the share of right ones.
    losses, halt_logits: (S, N) cross-entropy of the last cycle, output of the halt head.
    num_run: (N,) segments that were computed; what stands after them is repeated.
    units: (N,) what is independent of each other.
    num_cells: (N,) cells with labels.
    """

    solved: np.ndarray
    cells: np.ndarray
    losses: np.ndarray
    halt_logits: np.ndarray
    num_run: np.ndarray
    units: np.ndarray
    num_cells: np.ndarray


@dataclass(frozen=True)
class SegmentNumbers:
    """What is right after so many segments; the lists hold every H-cycle of the last of them."""

    segments: int
    exact_accuracy: Share
    accuracy: Share
    loss: float
    cycle_exact_accuracy: list[float]
    cycle_accuracy: list[float]


@dataclass(frozen=True)
class Halting:
    """What becomes of rows that stop at the first segment whose halt logit is above 0, else at the last.

    histogram: (S,) rows that stop at each segment, of which `never_stopped` at the last against their halt head.
    share_saved: segments that are not needed.
    """

    exact_accuracy: Share
    accuracy: Share
    mean_segment: float
    histogram: list[int]
    never_stopped: int
    share_saved: float


@dataclass(frozen=True)
class Evaluation:
    """All numbers of an evaluation; `by_segment[n - 1]` holds those after n segments."""

    num_rows: int
    trained_segments: int
    requested_segments: list[int]
    by_segment: list[SegmentNumbers]
    halting: Halting
    calibration: Calibration
    calibration_all_segments: Calibration

    @property
    def requested(self) -> list[SegmentNumbers]:
        """The numbers that were asked for."""
        return [self.by_segment[n - 1] for n in self.requested_segments]


@dataclass(frozen=True)
class Voting:
    """What ARC's votes come to: pass@k by k, over the puzzles whose outputs are known.

    without_predictions: the test inputs nothing was predicted for, as NAME[number]; they count as wrong.
    """

    pass_at: dict[int, Share]
    num_puzzles: int
    num_scored: int
    without_predictions: list[str]


def summarise_evaluation(rows: RowResults, *, segments: Sequence[int], trained_segments: int) -> Evaluation:
    """Summarise an evaluation; without any row with labels, all shares are NaN."""
    solved, halt_logits = rows.solved[:, -1], rows.halt_logits
    run = np.arange(1, len(solved) + 1)[:, None] <= rows.num_run
    return Evaluation(
        num_rows=len(rows.units),
        trained_segments=trained_segments,
        requested_segments=list(segments),
        by_segment=[_segment_numbers(rows, index) for index in range(len(solved))],
        halting=_halting(rows),
        calibration=calibrate(halt_logits[-1], solved[-1]),
        calibration_all_segments=calibrate(halt_logits[run], solved[run]),
    )


def _segment_numbers(rows: RowResults, index: int) -> SegmentNumbers:
    return SegmentNumbers(
        segments=index + 1,
        exact_accuracy=estimate(rows.solved[index, -1], rows.units),
        accuracy=estimate(rows.cells[index, -1], rows.units, int(rows.num_cells.sum())),
        loss=_mean(rows.losses[index]),
        cycle_exact_accuracy=[_mean(solved) for solved in rows.solved[index]],
        cycle_accuracy=[_mean(cells) for cells in rows.cells[index]],
    )


def _halting(rows: RowResults) -> Halting:
    stop = rows.halt_logits > 0
    never = ~stop.any(axis=0)
    at = np.where(never, len(stop) - 1, stop.argmax(axis=0))
    every = np.arange(len(at))
    return Halting(
        exact_accuracy=estimate(rows.solved[at, -1, every], rows.units),
        accuracy=estimate(rows.cells[at, -1, every], rows.units, int(rows.num_cells.sum())),
        mean_segment=_mean(at + 1),
        histogram=np.bincount(at, minlength=len(stop)).tolist(),
        never_stopped=int(never.sum()),
        share_saved=1 - _mean(at + 1) / len(stop),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else math.nan


# ---- files and tables ------------------------------------------------------------------------------------


def evaluation_json(
    evaluation: Evaluation, provenance: Mapping[str, Any], compute: Mapping[str, float], voting: Voting | None = None
) -> str:
    """Write an evaluation and where it comes from as JSON; a number that does not exist is null."""
    content = {
        "format_version": FORMAT_VERSION,
        "provenance": provenance,
        **asdict(evaluation),
        "compute": compute,
        "voting": voting and asdict(voting),
    }
    return json.dumps(_jsonable(content), indent=2, allow_nan=False) + "\n"


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluation_table(evaluation: Evaluation) -> Table:
    """Lay the accuracies out: the first segment, the numbers asked for, and where the halt head stops."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("segments", "exact %", "95 % interval", "cells %", "95 % interval", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = {1: evaluation.by_segment[0], **{one.segments: one for one in evaluation.requested}}
    for one in shown.values():
        name = f"{'as trained: ' if one.segments == evaluation.trained_segments else ''}{one.segments}"
        loss = "–" if math.isnan(one.loss) else f"{one.loss:.4f}"
        table.add_row(name, *_told(one.exact_accuracy), *_told(one.accuracy), loss)
    halting = evaluation.halting
    if evaluation.num_rows:
        name = f"halting: mean {halting.mean_segment:.2f}"
        table.add_row(name, *_told(halting.exact_accuracy), *_told(halting.accuracy), "")
    return table


def _told(share: Share) -> tuple[str, str]:
    if math.isnan(share.value):
        return "–", ""
    return f"{100 * share.value:.2f}", f"{100 * share.low:.2f}–{100 * share.high:.2f}"


def evaluation_lines(evaluation: Evaluation, compute: Mapping[str, float], voting: Voting | None = None) -> list[str]:
    """Tell what the table does not hold: the halt head, what halting saves, ARC's votes.

    Args:
        compute: `boards` and `segments` that took `seconds`; `halt`, whether rows were halted, and `share_saved` by it.
    """
    lines = []
    if evaluation.num_rows:
        last, overall = evaluation.calibration.error, evaluation.calibration_all_segments.error
        number = evaluation.requested_segments[-1]
        lines.append(f"halt head: calibration error {last:.3f} after {number} segments, {overall:.3f} over all of them")
    if compute["halt"]:
        lines.append(f"halting left out {100 * compute['share_saved']:.1f} % of the segments")
    elif evaluation.num_rows:
        lines.append(f"--halt would leave out {100 * evaluation.halting.share_saved:.1f} % of the segments")
    lines.append(f"{compute['segments']:,} segments of {compute['boards']:,} boards in {compute['seconds']:.1f} s")
    return lines + (_voting_lines(voting) if voting else [])


def _voting_lines(voting: Voting) -> list[str]:
    lines = [f"votes over {voting.num_puzzles:,} puzzles, of which {voting.num_scored:,} have known outputs:"]
    for k, share in voting.pass_at.items():
        value, interval = _told(share)
        lines.append(f"  pass@{k:<4} {value:>6} %   [{interval}]")
    if missing := voting.without_predictions:
        names = ", ".join(missing[:MAX_NAMES]) + (", …" if len(missing) > MAX_NAMES else "")
        lines.append(f"{len(missing):,} test inputs without predictions count as wrong: {names}")
    return lines


# ---- picture ---------------------------------------------------------------------------------------------


def draw_evaluation(evaluation: Evaluation, title: str, subtitle: str = "") -> Figure:
    """Draw accuracy by segment and by H-cycle, the halt head's reliability, and where it stops."""
    with style.styled(), style.room_for_notes():
        figure = Figure(figsize=(13, 9), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        panels = (_draw_segments, _draw_cycles, _draw_reliability, _draw_halting)
        for axes, draw in zip(figure.subplots(2, 2).flat, panels, strict=True):
            draw(axes, evaluation)
        figure.text(0.014, 0.985, title, va="top", fontsize=15, fontweight="bold")
        figure.text(0.986, 0.981, subtitle, va="top", ha="right", color=MUTED)
        style.lay_out(figure, (0.006, 0.006, 0.988, 0.935), wspace=0.04, hspace=0.06)
        return figure


def save_evaluation(evaluation: Evaluation, path: Path, title: str, subtitle: str = "") -> Path:
    """Draw an evaluation into a file; its ending (`.png`, `.svg`, `.pdf`) chooses the format."""
    return style.save(draw_evaluation(evaluation, title, subtitle), path)


def _draw_segments(axes: Axes, evaluation: Evaluation) -> None:
    axes.set_title("Accuracy by number of segments")
    if not evaluation.num_rows:
        style.say(axes, "No row has labels.")
        return
    x = np.arange(1, len(evaluation.by_segment) + 1)
    for label, name, colour in (("cells", "accuracy", MUTED), ("exact (band: 95 %)", "exact_accuracy", _BLUE)):
        shares = [getattr(one, name) for one in evaluation.by_segment]
        marker = "o" if len(x) <= 20 else ""
        axes.plot(x, [s.value for s in shares], color=colour, marker=marker, markersize=3.5, label=label)
        axes.fill_between(x, [s.low for s in shares], [s.high for s in shares], color=colour, alpha=0.25, linewidth=0)
    halting = evaluation.halting
    axes.plot(
        *(halting.mean_segment, halting.exact_accuracy.value, "D"), color=_ORANGE, markersize=7, label="where it halts"
    )
    _mark_trained(axes, evaluation)
    _finish(axes, "accuracy")
    lowest = min(share.low for one in evaluation.by_segment for share in (one.exact_accuracy, one.accuracy))
    # From 0 where something is near it; otherwise lines close to 100 % could not be told apart.
    bottom = 0.0 if lowest < 0.5 else math.floor(10 * lowest) / 10
    axes.set_ylim(bottom - 0.02 * (1 - bottom), 1 + 0.02 * (1 - bottom))


def _draw_cycles(axes: Axes, evaluation: Evaluation) -> None:
    axes.set_title("Accuracy within the segments")
    if not evaluation.num_rows:
        style.say(axes, "No row has labels.")
        return
    trained = evaluation.by_segment[: evaluation.trained_segments]
    values = np.array([one.cycle_exact_accuracy for one in trained])
    what = "exact accuracy"
    if not values.any():
        values, what = np.array([one.cycle_accuracy for one in trained]), "cell accuracy"
    num_cycles = values.shape[1]
    x = np.arange(len(values))[:, None] + np.arange(1, num_cycles + 1) / num_cycles
    axes.plot(x.ravel(), values.ravel(), color=FAINT, linewidth=1.2, zorder=1)
    for cycle in range(num_cycles):
        label = f"H-cycle {cycle}" if num_cycles <= 4 or cycle in (0, num_cycles - 1) else None
        colour = CYCLE_COLOURS(cycle / max(1, num_cycles - 1))
        axes.plot(x[:, cycle], values[:, cycle], "o", color=colour, label=label)
    _finish(axes, what)
    axes.set_xlim(0, len(values) + 0.3)


def _draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    """Draw the share solved over what the halt head says, with the number of rows in each bin underneath."""
    axes.set_title("Halt head: does it know?")
    if not evaluation.num_rows:
        style.say(axes, "No row has labels.")
        return
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
        panel.plot(
            *(found.probability, found.solved), color=colour, marker=marker, markerfacecolor="white",
            label=f"{label}: ECE {found.error:.3f}",
        )  # fmt: skip
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
    axes.set_title("Where the halt head stops")
    if not evaluation.num_rows:
        style.say(axes, "No row has labels.")
        return
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


def _mark_trained(axes: Axes, evaluation: Evaluation) -> None:
    if evaluation.trained_segments <= len(evaluation.by_segment):
        trained = evaluation.trained_segments
        axes.axvline(trained, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"trained: {trained}", zorder=1)


def _finish(axes: Axes, what: str) -> None:
    axes.set_ylabel(what)
    axes.yaxis.set_major_formatter(_PERCENT)
    style.step_axis(axes, "segments")
    style.legend_above(axes)
