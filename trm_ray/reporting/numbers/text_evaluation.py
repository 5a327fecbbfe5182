"""What an evaluation of text has found: bits per byte at every depth, beside what takes no model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from rich import box
from rich.table import Table

from trm_ray.reporting.numbers.evaluation import FEW_UNITS, Z95, Estimate, percents, wilson

_MOST_SHOWN = 16  # depths in the table


@dataclass(frozen=True)
class TextSums:
    """Sums over rows with labels: all that numbers and intervals take, however many rows there are.

    A row has three numbers at every depth: its nats, how many of its labels are the likeliest token, and whether all
    are. They are measured against its three sizes: bytes, labelled tokens, and 1.

    found, found_squared: (3, D) the numbers. crossed: (3, D) each times its size. size, size_squared: (3,).
    seen: () tokens that labels are predicted from, over all labels.
    """

    found: np.ndarray
    found_squared: np.ndarray
    crossed: np.ndarray
    size: np.ndarray
    size_squared: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, found: np.ndarray, size: np.ndarray, seen: float) -> TextSums:
        """Sum up the numbers (3, D, B) and the sizes (3, B) of some rows; those without labels have 0 everywhere."""
        crossed = (found * size[:, None]).sum(-1)
        sums = (found.sum(-1), (found**2).sum(-1), crossed, size.sum(-1), (size**2).sum(-1))
        return cls(*sums, np.array(seen))

    def __add__(self, other: TextSums) -> TextSums:
        return TextSums(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def ratio(self, which: int) -> tuple[np.ndarray, np.ndarray]:
        """Divide all of a number by all of its size, and say how far the result would vary: (D,) each.

        The variance is that of a ratio of two means over U rows: U / (U − 1) · Σ (number − ratio·size)² / (Σ size)².
        """
        size, units = self.size[which] or math.nan, self.size[2]
        ratio = self.found[which] / size
        residuals = self.found_squared[which] - 2 * ratio * self.crossed[which] + ratio**2 * self.size_squared[which]
        return ratio, np.maximum(residuals, 0) / size**2 * (units / (units - 1) if units > 1 else math.nan)


@dataclass(frozen=True)
class TextDepth:
    """What holds after so many H-cycles; exact_accuracy is null where no row is right as a whole."""

    depth: int
    bits_per_byte: Estimate
    loss: float
    perplexity: float
    accuracy: Estimate
    exact_accuracy: Estimate | None


@dataclass(frozen=True)
class TextEvaluation:
    """All numbers of an evaluation of text; `by_depth[d - 1]` holds those after d H-cycles.

    yardsticks: bits per byte of the same split that take no model, by their name.
    seq_len: tokens of a row; of running text the next one begins where it ends, so that is the stride too.
    mean_context: tokens that a label is predicted from, on average: in its row, under a mask in its document.
    anytime_…: averaged over the trained depths with weights 1/d; NaN if fewer were measured.
    """

    num_rows: int
    num_tokens: int
    num_bytes: int
    seq_len: int
    packing: str
    document_mask: bool
    mean_context: float
    num_cycles: int
    trained_depth: int
    requested_segments: list[int]
    by_depth: list[TextDepth]
    anytime_bits_per_byte: float
    anytime_accuracy: float | None
    yardsticks: dict[str, float]

    @property
    def shown(self) -> list[TextDepth]:
        """The depths of the table: all, or the first segment's and the ends of those that were asked for."""
        if len(self.by_depth) <= _MOST_SHOWN:
            return self.by_depth
        ends = {number * self.num_cycles for number in self.requested_segments}
        return [one for one in self.by_depth if one.depth <= self.num_cycles or one.depth in ends]


def summarise_text(
    sums: TextSums,
    *,
    seq_len: int,
    packing: str,
    document_mask: bool,
    num_cycles: int,
    trained_segments: int,
    segments: Sequence[int],
    yardsticks: Mapping[str, float],
) -> TextEvaluation:
    """Summarise an evaluation of text; without any label all shares are NaN."""
    num_bytes, num_tokens, num_rows = (int(size) for size in sums.size)
    depths = _depths(sums, whole_rows=packing == "prompt")
    trained = trained_segments * num_cycles
    exact = [one.exact_accuracy.value for one in depths if one.exact_accuracy is not None]
    return TextEvaluation(
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        seq_len=seq_len,
        packing=packing,
        document_mask=document_mask,
        mean_context=float(sums.seen) / (num_tokens or math.nan),
        num_cycles=num_cycles,
        trained_depth=trained,
        requested_segments=list(segments),
        by_depth=depths,
        anytime_bits_per_byte=_anytime([one.bits_per_byte.value for one in depths], trained),
        anytime_accuracy=_anytime(exact, trained) if exact else None,
        yardsticks=dict(yardsticks),
    )


def _depths(sums: TextSums, *, whole_rows: bool) -> list[TextDepth]:
    (nats, spread), (right, right_spread), (solved, solved_spread) = map(sums.ratio, range(3))
    tokens, rows = sums.size[1:]
    loss = sums.found[0] / (tokens or math.nan)
    return [
        TextDepth(
            depth=at + 1,
            bits_per_byte=_about(nats[at] / math.log(2), math.sqrt(spread[at]) / math.log(2), rows),
            loss=float(loss[at]),
            perplexity=_perplexity(loss[at]),
            accuracy=_share(right[at], right_spread[at], rows, tokens),
            exact_accuracy=_share(solved[at], solved_spread[at], rows, rows) if whole_rows else None,
        )
        for at in range(len(nats))
    ]


def _perplexity(nats: float) -> float:
    with np.errstate(over="ignore"):  # infinite where no float holds it
        return float(np.exp(nats))


def _about(value: float, deviation: float, units: float) -> Estimate:
    """Give a mean its interval by the normal distribution; a few units say too little of how far they lie apart."""
    half = Z95 * deviation if units >= FEW_UNITS else math.nan
    return Estimate(float(value), float(value - half), float(value + half))


def _share(value: float, variance: float, units: float, most: float) -> Estimate:
    """Give a share the interval of `numbers.evaluation.estimate`: Wilson's, of so many cases as would vary as much."""
    if math.isnan(value):
        return Estimate(math.nan, math.nan, math.nan)
    count = value * (1 - value) / variance if variance > 0 and units >= FEW_UNITS else units
    return Estimate(float(value), *wilson(float(value), float(min(max(count, units), most))))


def _anytime(values: Sequence[float], trained: int) -> float:
    if len(values) < trained:
        return math.nan
    return float(np.average(values[:trained], weights=1 / np.arange(1, trained + 1)))


# ---- in the terminal -------------------------------------------------------------------------------------


def text_table(evaluation: TextEvaluation) -> Table:
    """Lay out bits per byte over depth, and of prompts what is solved, above the yardsticks."""
    prompts = evaluation.by_depth[0].exact_accuracy is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    measures = ("exact %", "95 % interval", "bits/byte") if prompts else ("bits/byte", "95 % interval")
    for heading in ("depth", *measures, "perplexity", "top-1 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in evaluation.shown:
        name = f"{'as trained: ' if one.depth == evaluation.trained_depth else ''}{one.depth}"
        bits = _bits(one.bits_per_byte)
        cells = bits if one.exact_accuracy is None else (*percents(one.exact_accuracy), bits[0])
        perplexity = "–" if math.isnan(one.perplexity) else f"{one.perplexity:,.2f}"
        table.add_row(name, *cells, perplexity, percents(one.accuracy)[0])
    if evaluation.yardsticks:
        table.add_section()
    for name, value in evaluation.yardsticks.items():
        table.add_row(name, *[""] * measures.index("bits/byte"), f"{value:.4f}")
    return table


def _bits(bits: Estimate) -> tuple[str, str]:
    if math.isnan(bits.value):
        return "–", ""
    return f"{bits.value:.4f}", "" if math.isnan(bits.low) else f"{bits.low:.4f}–{bits.high:.4f}"


def text_lines(evaluation: TextEvaluation, compute: Mapping[str, float]) -> list[str]:
    """Tell what the table does not hold: what each token is predicted from, how good an early answer is."""
    rows = f"rows of {evaluation.seq_len} tokens"
    how = f"{rows}, a document each" if evaluation.packing == "prompt" else f"{rows}, stride {evaluation.seq_len}"
    lines = []
    if evaluation.num_tokens:
        within = "row and document" if evaluation.document_mask else "row"
        seen = f"{evaluation.mean_context:.1f} tokens on average"
        lines.append(f"{how}: a token sees what stands before it in its {within}, {seen}")
    if not math.isnan(evaluation.anytime_bits_per_byte):
        lines.append(f"anytime: {evaluation.anytime_bits_per_byte:.4f} bits per byte, the first cycles weighing most")
    lines.append(f"{compute['segments']:,} segments of {compute['boards']:,} rows in {compute['seconds']:.1f} s")
    return lines
