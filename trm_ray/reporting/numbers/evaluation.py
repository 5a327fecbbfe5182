"""What an evaluation has found: accuracies with their intervals, how far the halt head can be believed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from trm_ray.reporting.numbers.json_text import json_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT_VERSION = 1
Z95 = 1.959963984540054  # standard deviations of the normal distribution that hold 95 % of it
NUM_BINS = 10
FEW_UNITS = 10  # fewer say too little of how far they lie apart


@dataclass(frozen=True)
class Estimate:
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


def estimate(values: np.ndarray, units: np.ndarray, most: int | None = None) -> Estimate:
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
        return Estimate(math.nan, math.nan, math.nan)
    share = float(values.mean(dtype=np.float64))
    _, members = np.unique(units, return_inverse=True)
    residuals = np.bincount(members, weights=values - share)
    num = len(residuals)
    if num < FEW_UNITS:
        return Estimate(share, *wilson(share, num))
    variance = num / (num - 1) * float((residuals**2).sum()) / len(values) ** 2
    count = share * (1 - share) / max(variance, sys.float_info.min)
    return Estimate(share, *wilson(share, min(max(count, num), len(values) if most is None else most)))


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
    exact_accuracy: Estimate
    accuracy: Estimate
    loss: float
    cycle_exact_accuracy: list[float]
    cycle_accuracy: list[float]


@dataclass(frozen=True)
class Halting:
    """What becomes of rows that stop at the first segment whose halt logit is above 0, else at the last asked for.

    histogram: (S,) rows that stop at each segment, of which `never_stopped` at the last against their halt head.
    share_saved: segments that are not needed.
    """

    exact_accuracy: Estimate
    accuracy: Estimate
    mean_segment: float
    histogram: list[int]
    never_stopped: int
    share_saved: float


@dataclass(frozen=True)
class Evaluation:
    """All numbers of an evaluation; `by_segment[n - 1]` holds those after n segments.

    anytime_accuracy: exact accuracy averaged over the trained depths with weights 1/d; NaN if fewer were measured.
    """

    num_rows: int
    trained_segments: int
    requested_segments: list[int]
    by_segment: list[SegmentNumbers]
    anytime_accuracy: float
    halting: Halting
    calibration: Calibration
    calibration_all_segments: Calibration

    @property
    def requested(self) -> list[SegmentNumbers]:
        """The numbers that were asked for."""
        return [self.by_segment[n - 1] for n in self.requested_segments]


def summarise_evaluation(rows: RowResults, *, segments: Sequence[int], trained_segments: int) -> Evaluation:
    """Summarise an evaluation; without any row with labels, all shares are NaN."""
    solved, halt_logits = rows.solved[:, -1], rows.halt_logits
    run = np.arange(1, len(solved) + 1)[:, None] <= rows.num_run
    return Evaluation(
        num_rows=len(rows.units),
        trained_segments=trained_segments,
        requested_segments=list(segments),
        by_segment=[_segment_numbers(rows, index) for index in range(len(solved))],
        anytime_accuracy=_anytime(rows.solved[:trained_segments]) if len(solved) >= trained_segments else math.nan,
        halting=_halting(rows),
        calibration=calibrate(halt_logits[-1], solved[-1]),
        calibration_all_segments=calibrate(halt_logits[run], solved[run]),
    )


def _anytime(solved: np.ndarray) -> float:
    """Average what is solved, (S, C, N), over the depths d = 1, 2, …, each weighing 1/d."""
    by_depth = [_mean(rows) for segment in solved for rows in segment]
    return float(np.average(by_depth, weights=1 / np.arange(1, len(by_depth) + 1)))


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
    evaluation: DataclassInstance, provenance: Mapping[str, Any], compute: Mapping[str, float], extra: Mapping[str, Any]
) -> str:
    """Write an evaluation and where it comes from as JSON; a number that does not exist is null.

    Args:
        evaluation: an `Evaluation`, or one of text.
        extra: keys that the kind of puzzle adds.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "provenance": provenance,
        **asdict(evaluation),
        "compute": compute,
        "voting": None,  # format 1 has it for every kind
        **extra,
    }
    return json_text(content)


def evaluation_table(evaluation: Evaluation) -> Table:
    """Lay the accuracies out: the first segment, the numbers asked for, and where the halt head stops."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("segments", "exact %", "95 % interval", "cells %", "95 % interval", "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = {1: evaluation.by_segment[0], **{one.segments: one for one in evaluation.requested}}
    for one in shown.values():
        name = f"{'as trained: ' if one.segments == evaluation.trained_segments else ''}{one.segments}"
        loss = "–" if math.isnan(one.loss) else f"{one.loss:.4f}"
        table.add_row(name, *percents(one.exact_accuracy), *percents(one.accuracy), loss)
    halting = evaluation.halting
    if evaluation.num_rows:
        name = f"halting: mean {halting.mean_segment:.2f}"
        table.add_row(name, *percents(halting.exact_accuracy), *percents(halting.accuracy), "")
    return table


def percents(share: Estimate) -> tuple[str, str]:
    """Write a share and its interval in percent."""
    if math.isnan(share.value):
        return "–", ""
    return f"{100 * share.value:.2f}", f"{100 * share.low:.2f}–{100 * share.high:.2f}"


def evaluation_lines(evaluation: Evaluation, compute: Mapping[str, float]) -> list[str]:
    """Tell what the table does not hold: the halt head, what halting saves.

    Args:
        compute: `boards` and `segments` that took `seconds`; `halt`, whether rows were halted, and `share_saved` by it.
    """
    lines = []
    if evaluation.num_rows:
        last, overall = evaluation.calibration.error, evaluation.calibration_all_segments.error
        number = evaluation.requested_segments[-1]
        lines.append(f"halt head: calibration error {last:.3f} after {number} segments, {overall:.3f} over all of them")
        if (most := len(evaluation.halting.histogram)) != evaluation.trained_segments:
            lines.append(f"halting: after at most {most} segments here, {evaluation.trained_segments} in training")
    if compute["halt"]:
        lines.append(f"halting left out {100 * compute['share_saved']:.1f} % of the segments")
    elif evaluation.num_rows:
        lines.append(f"--halt would leave out {100 * evaluation.halting.share_saved:.1f} % of the segments")
    lines.append(f"{compute['segments']:,} segments of {compute['boards']:,} boards in {compute['seconds']:.1f} s")
    return lines
