"""Evaluation on held-out puzzles: sums for the training loop, and what every row comes to at every segment."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trm_ray.model.trm import Batch, SegmentOutput, TinyRecursiveModel
from trm_ray.model.unread import Unread
from trm_ray.training.inference import Forward, forward_of, run_segments
from trm_ray.training.losses import IGNORED_LABEL, CellLoss, puzzle_loss, solved_cells, weighed
from trm_ray.training.metrics import MetricSums
from trm_ray.training.session import Session

_HALTING = ("exact_accuracy_halting", "act_steps", "q_halt_accuracy")
_BY_DEPTH = ("loss", "accuracy", "exact_accuracy")
_COUNTS = ("tokens", "rows", "bytes")


@dataclass(frozen=True)
class HeldOut:
    """What a model comes to on held-out puzzles.

    row: numbers by tag. depths: `loss`, `accuracy` and `exact_accuracy` after each of the D H-cycles since the puzzle
    was taken up, (D,) each. Of a text also `bits_per_byte`, and no `exact_accuracy` where no row is right as a whole.
    """

    row: dict[str, float]
    depths: dict[str, list[float]]


def evaluate(
    model: TinyRecursiveModel,
    batches: Iterable[Batch],
    cell_loss: CellLoss,
    session: Session,
    forward: Forward | None = None,
) -> HeldOut:
    """Measure a model on held-out puzzles at every depth, each with `halt_max_steps` segments.

    Rows without any label have no solution to compare with and count nowhere; if there are no others, all is NaN.

    Args:
        forward: the compiled `forward_of`, if there is one. It is a graph for batches as large as the first, so that a
            shorter one is filled up with rows that count nowhere.

    Returns:
        A row with `eval/loss` (CE of the last H-cycle at the last segment), `eval/step_{i}_loss` of that segment's
        cycles, the cell accuracy and the exact accuracy at the last segment, at the first, and where the halt head
        would stop, whose mean is `eval/act_steps`; `eval/q_halt_accuracy`: how often its last verdict is right;
        `eval/first_segment/step_{i}_loss` and `…_exact_accuracy`; `eval/anytime_accuracy`. And the depths themselves.
        That of a text is `_of_text`'s.
    """
    was_training = model.training
    model.eval()
    measured = _of_text if model.causal else _of_puzzles
    held_out = measured(
        model, batches if forward is None else _filled(batches), cell_loss, session, forward or forward_of
    )
    model.train(was_training)
    return held_out


def _of_puzzles(
    model: TinyRecursiveModel, batches: Iterable[Batch], cell_loss: CellLoss, session: Session, forward: Forward
) -> HeldOut:
    sums = _Sums(("count", *_HALTING), model, session)
    for batch in batches:
        sums.add(*_batch_sums(model, batch, cell_loss, forward))
    totals, by_depth = sums.drain()
    count = totals["count"] or math.nan
    depths = dict(zip(_BY_DEPTH, (by_depth / count).tolist(), strict=True))
    return HeldOut({**_depth_row(depths, model.H_cycles), **{f"eval/{n}": totals[n] / count for n in _HALTING}}, depths)


def _of_text(
    model: TinyRecursiveModel, batches: Iterable[Batch], cell_loss: CellLoss, session: Session, forward: Forward
) -> HeldOut:
    """Measure what a model makes of a text: tokens weigh alike, and so do rows where one may be right as a whole.

    Returns:
        A row as that of puzzles, without what nothing in a text can move: no row halts, and of running text none is
        right as a whole. `eval/perplexity` goes with `eval/loss`. Where it is known what bytes the tokens stand for,
        `eval/bits_per_byte`, all nats over ln 2 and all bytes, `eval/anytime_bits_per_byte`,
        `eval/first_segment/step_{i}_bits_per_byte`, and the yardsticks.
    """
    text, sums = session.text, _Sums(_COUNTS, model, session)
    token_bytes = None if text is None else text.token_bytes.to(session.device)
    for batch in batches:
        sums.add(count_text(batch.labels, token_bytes), measure_text(model, batch, cell_loss, forward=forward).sum(-1))
    totals, (nats, right, solved) = sums.drain()
    tokens, rows, num_bytes = (totals[name] or math.nan for name in _COUNTS)
    depths = {"loss": (nats / tokens).tolist(), "accuracy": (right / tokens).tolist()}
    if session.whole_rows:
        depths["exact_accuracy"] = (solved / rows).tolist()
    if text is not None:
        depths["bits_per_byte"] = (nats / (math.log(2) * num_bytes)).tolist()
    row = _depth_row(depths, model.H_cycles) | {"eval/perplexity": perplexity(depths["loss"][-1])}
    return HeldOut(row | dict(text.yardsticks if text else {}), depths)


class _Sums:
    """What is counted of rows, and the three numbers of every depth, over batches and workers."""

    def __init__(self, names: tuple[str, ...], model: TinyRecursiveModel, session: Session):
        self.session, self.counts = session, MetricSums(names, session.device)
        shape = (len(_BY_DEPTH), model.halt_max_steps * model.H_cycles)
        self.by_depth = torch.zeros(shape, dtype=torch.float64, device=session.device)

    def add(self, counts: dict[str, Tensor], by_depth: Tensor) -> None:
        """Add a batch's; nothing waits for the device."""
        self.counts.add(counts)
        self.by_depth += by_depth

    def drain(self) -> tuple[dict[str, float], Tensor]:
        """Add them over the workers. Synchronises with the device."""
        self.session.sum_over_ranks(self.by_depth)
        return self.counts.drain(self.session), self.by_depth.cpu()


def _filled(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Fill shorter batches up to the size of the first by their last row, without its labels."""
    size = 0
    for batch in batches:
        size = size or len(batch)
        rows, last = torch.arange(size, device=batch.labels.device), len(batch) - 1
        whole = batch.each(operator.itemgetter(rows.clamp(max=last)))
        yield replace(whole, labels=whole.labels.masked_fill((rows > last).unsqueeze(1), IGNORED_LABEL))


def _depth_row(depths: dict[str, list[float]], num_cycles: int) -> dict[str, float]:
    """Take the numbers that are followed over the steps out of those of all depths."""
    row = {"eval/loss": depths["loss"][-1], "eval/accuracy": depths["accuracy"][-1]}
    if exact := depths.get("exact_accuracy"):
        row["eval/exact_accuracy"] = exact[-1]
        row["eval/exact_accuracy_first"] = exact[num_cycles - 1]
        row["eval/anytime_accuracy"] = anytime(exact)
    if bits := depths.get("bits_per_byte"):
        row |= {"eval/bits_per_byte": bits[-1], "eval/anytime_bits_per_byte": anytime(bits)}
    row |= {f"eval/step_{i}_loss": value for i, value in enumerate(depths["loss"][-num_cycles:])}
    first = {name: values for name, values in depths.items() if name != "accuracy"}
    for i in range(num_cycles):
        row |= {f"eval/first_segment/step_{i}_{name}": values[i] for name, values in first.items()}
    return row


def anytime(values: Sequence[float]) -> float:
    """Average a number over the depths d = 1, 2, …, each weighing 1/d: how good an early answer is."""
    weights = [1 / depth for depth in range(1, len(values) + 1)]
    return sum(map(operator.mul, weights, values)) / sum(weights)


def perplexity(nats: float) -> float:
    """Say among how many tokens, all as likely, a model would be as unsure; infinite where no float holds it."""
    return math.inf if nats > 700 else math.exp(nats)


@torch.inference_mode()
def measure_text(
    model: TinyRecursiveModel,
    batch: Batch,
    cell_loss: CellLoss,
    num_segments: int | None = None,
    forward: Forward = forward_of,
) -> Tensor:
    """Measure rows of a text at every depth: (3, D, B) in float64.

    That is the nats that all labelled tokens of a row take together, how many of them are the likeliest, and whether
    all are; rows without labels have 0 of each.
    """
    counted, by_depth = batch.labels != IGNORED_LABEL, []
    for output in run_segments(model, batch, num_segments, forward):
        for logits in output.cycle_logits:
            assert isinstance(logits, Unread), "the logits of a text are computed where they are read"
            right = (logits.argmax(-1) == batch.labels) & counted
            solved = (right == counted).all(-1) & counted.any(-1)
            by_depth.append(torch.stack((logits.each(cell_loss, batch.labels).double().sum(-1), right.sum(-1), solved)))
    return torch.stack(by_depth, 1)


def count_text(labels: Tensor, token_bytes: Tensor | None) -> dict[str, Tensor]:
    """Count the tokens that have a label, the rows that hold any, and the bytes that they stand for, if that is known.

    Args:
        token_bytes: (V,) those of each token.
    """
    counted = labels != IGNORED_LABEL
    counts = {"tokens": counted.sum(), "rows": counted.any(-1).sum()}
    if token_bytes is not None:
        counts["bytes"] = (token_bytes[labels.clamp(min=0).long()] * counted).sum()
    return counts


@torch.inference_mode()
def _batch_sums(
    model: TinyRecursiveModel, batch: Batch, cell_loss: CellLoss, forward: Forward
) -> tuple[dict[str, Tensor], Tensor]:
    """Sum up where the halt head stops, and the numbers of every depth: (3, D)."""
    halts, curves = [], []
    for output in run_segments(model, batch, forward=forward):
        halts.append(output.halt_logits > 0)
        # Cycle by cycle: all logits of a segment at once would take H_cycles times the memory.
        for logits in output.cycle_logits:
            cells, solved = solved_cells(logits, batch.labels)
            curves.append(torch.stack((puzzle_loss(cell_loss, logits, batch.labels).double(), cells, solved)))
    halt, by_depth = torch.stack(halts), torch.stack(curves, 1)
    weights = weighed(has_labels(batch), logits, batch.labels)
    at, solved = _halting_segment(halt), by_depth[2, model.H_cycles - 1 :: model.H_cycles]
    rows = {
        "count": torch.ones_like(at),
        "exact_accuracy_halting": solved.gather(0, at.unsqueeze(0))[0],
        "act_steps": at + 1,
        "q_halt_accuracy": halt[-1] == solved[-1],
    }
    return {name: (values * weights).sum() for name, values in rows.items()}, (by_depth * weights).sum(-1)


def has_labels(batch: Batch) -> Tensor:
    """Tell which rows (B,) have any label; a row without has no solution to compare an answer with."""
    return (batch.labels != IGNORED_LABEL).any(-1)


def _halting_segment(halt: Tensor) -> Tensor:
    """Find the first segment at which the halt head says stop, else the last: (S, B) bool to (B,)."""
    stop = halt.clone()
    stop[-1] = True
    return stop.int().argmax(0)


@dataclass(frozen=True)
class MeasuredRows:
    """What each row of a batch came to at every segment: S segments, C H-cycles, B rows.

    labelled: (B,) rows with labels; without them only halt_logits, num_run and answers mean something.
    solved (bool), cells (share of right ones): (S, C, B) at every cycle.
    losses, halt_logits: (S, B), of the last cycle.
    num_run: (B,) segments that were computed; a row that halted keeps what it had.
    answers: (B, L) token ids after the last segment.
    """

    labelled: Tensor
    solved: Tensor
    cells: Tensor
    losses: Tensor
    halt_logits: Tensor
    num_run: Tensor
    answers: Tensor


@torch.inference_mode()
def measure_rows(
    model: TinyRecursiveModel, batch: Batch, num_segments: int, cell_loss: CellLoss, *, halt: bool = False
) -> MeasuredRows:
    """Measure every row of a batch at every segment, in evaluation mode.

    Args:
        num_segments: may be more than the model was trained with.
        halt: take rows out of the batch once their halt logit is above 0.
    """
    shape, cycles = (num_segments, len(batch)), model.H_cycles
    zeros = torch.zeros(shape, device=batch.inputs.device)
    solved, cells = (zeros[:, None].repeat(1, cycles, 1).to(dtype) for dtype in (torch.bool, torch.float32))
    measured = MeasuredRows(
        labelled=has_labels(batch), solved=solved, cells=cells, losses=zeros, halt_logits=zeros.clone(),
        num_run=torch.zeros(len(batch), dtype=torch.int32, device=zeros.device), answers=batch.inputs.clone(),
    )  # fmt: skip
    every = torch.arange(len(batch), device=zeros.device)
    if halt:
        segments = _halting_segments(model, batch, every, num_segments)
    else:
        segments = ((every, output) for output in run_segments(model, batch, num_segments))
    for segment, (rows, output) in enumerate(segments):
        _write_segment(measured, segment, rows, output, batch.labels[rows], cell_loss)
    return measured


def _write_segment(
    measured: MeasuredRows, segment: int, rows: Tensor, output: SegmentOutput, labels: Tensor, cell_loss: CellLoss
) -> None:
    """Write what some rows came to at a segment, and for the time being at all that follow."""
    for cycle, logits in enumerate(output.cycle_logits):
        cells, solved = solved_cells(logits, labels)
        measured.solved[segment, cycle, rows] = solved
        measured.cells[segment, cycle, rows] = cells
    # What follows is the answer of the last cycle, kept by a row that halts here.
    measured.solved[segment + 1 :, :, rows] = solved
    measured.cells[segment + 1 :, :, rows] = cells
    measured.losses[segment:, rows] = puzzle_loss(cell_loss, output.cycle_logits[-1], labels).float()
    measured.halt_logits[segment:, rows] = output.halt_logits
    measured.num_run[rows] += 1
    measured.answers[rows] = output.cycle_logits[-1].argmax(-1).to(measured.answers.dtype)


def _halting_segments(
    model: TinyRecursiveModel, batch: Batch, rows: Tensor, num_segments: int
) -> Iterator[tuple[Tensor, SegmentOutput]]:
    """Yield each segment with the rows (R,) that take part in it: those that the halt head has not stopped before.

    The rows that go on are gathered after each segment, which waits for the device.
    """
    carry = model.initial_carry(batch)
    for _ in range(num_segments):
        output = model(carry, batch)
        yield rows, output
        on = (output.halt_logits <= 0).nonzero()[:, 0]
        rows, batch = rows[on], batch.each(operator.itemgetter(on))
        if not len(rows):
            return
        carry = replace(
            output.carry,
            answer=output.carry.answer[on],
            latent=output.carry.latent[on],
            steps=output.carry.steps[on],
            halted=torch.zeros_like(on, dtype=torch.bool),
            puzzles=batch,
        )
