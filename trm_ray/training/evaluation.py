"""Evaluation on held-out puzzles: every row gets `halt_max_steps` segments."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trm_ray.model.trm import Batch, SegmentOutput, TinyRecursiveModel
from trm_ray.training.losses import CellLoss, puzzle_loss, solved_cells
from trm_ray.training.metrics import MetricSums
from trm_ray.training.session import Session

_MEANS = (
    "accuracy",
    "exact_accuracy",
    "exact_accuracy_first",
    "exact_accuracy_halting",
    "act_steps",
    "q_halt_accuracy",
)


def evaluate(
    model: TinyRecursiveModel, batches: Iterable[Batch], cell_loss: CellLoss, session: Session
) -> dict[str, float]:
    """Measure a model on held-out puzzles.

    Returns:
        `eval/loss` (CE of the last H-cycle at the last segment), `eval/step_{i}_loss` of every cycle, the cell accuracy
        and the exact accuracy at the last segment, at the first, and where the halt head would stop, whose mean is
        `eval/act_steps`. `eval/q_halt_accuracy`: how often its last verdict is right.
    """
    names = ("count", *_MEANS, *(f"step_{i}_loss" for i in range(model.H_cycles)))
    sums = MetricSums(names, session.device)
    was_training = model.training
    model.eval()
    for batch in batches:
        sums.add(_batch_sums(model, batch, cell_loss))
    model.train(was_training)
    totals = sums.drain(session)
    row = {f"eval/{name}": totals[name] / totals["count"] for name in names[1:]}
    return {"eval/loss": row[f"eval/step_{model.H_cycles - 1}_loss"], **row}


@torch.inference_mode()
def _batch_sums(model: TinyRecursiveModel, batch: Batch, cell_loss: CellLoss) -> dict[str, Tensor]:
    solved, halt = [], []
    carry = model.initial_carry(batch)
    output: SegmentOutput
    for _ in range(model.halt_max_steps):
        output = model(carry, batch, supervise_all_cycles=False)
        carry = output.carry
        solved.append(solved_cells(output.cycle_logits[-1], batch.labels)[1])
        halt.append(output.halt_logits > 0)
    at = _halting_segment(torch.stack(halt))
    cells, last = solved_cells(output.cycle_logits[-1], batch.labels)
    losses = (puzzle_loss(cell_loss, logits, batch.labels).sum() for logits in output.cycle_logits)
    return {
        "count": torch.tensor(len(batch), device=last.device),
        "accuracy": cells.sum(),
        "exact_accuracy": last.sum(),
        "exact_accuracy_first": solved[0].sum(),
        "exact_accuracy_halting": torch.stack(solved).gather(0, at.unsqueeze(0)).sum(),
        "act_steps": (at + 1).sum(),
        "q_halt_accuracy": (halt[-1] == last).sum(),
        **{f"step_{i}_loss": loss for i, loss in enumerate(losses)},
    }


def _halting_segment(halt: Tensor) -> Tensor:
    """Find the first segment at which the halt head says stop, else the last: (S, B) bool to (B,)."""
    stop = halt.clone()
    stop[-1] = True
    return stop.int().argmax(0)
