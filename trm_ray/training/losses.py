"""Cross-entropies: logits (B, L, V) and labels (B, L) to a loss for each cell (B, L), zero where none counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trm_ray.model.unread import Unread

IGNORED_LABEL = -100

CellLoss = Callable[[Tensor, Tensor], Tensor]


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy of each cell, in float32."""
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten().long(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return flat.view_as(labels)


class _LogStable(torch.autograd.Function):
    """log s(x) = ±log(1 + |x|), s being stablemax's stand-in for exp; its slope is 1 / (1 + |x|), at 0 too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().log1p_().copysign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + x.abs())


def log_stable(x: Tensor) -> Tensor:
    """Take the logarithm of s(x); under a compiler, which cannot look into hand-written functions, as it is spelt."""
    return _composed_log_stable(x) if torch.compiler.is_compiling() else _LogStable.apply(x)


def _composed_log_stable(x: Tensor) -> Tensor:
    # `abs` has no slope at 0; with both branches clamped the one that is not taken stays finite.
    return torch.where(x < 0, -torch.log1p(-x.clamp(max=0)), torch.log1p(x.clamp(min=0)))


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Stablemax cross-entropy of each cell, in float32: the softmax one of log s(x), which nothing overflows.

    Source: Prieto et al., arXiv 2501.04697: s(x) = x + 1 for x ≥ 0, 1 / (1 − x) below.
    """
    return softmax_cross_entropy(log_stable(logits.float()), labels)


def stablemax_cross_entropy_float64(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the same in float64 and by the formula, as the original does; for parity, several times slower."""
    x = logits.double()
    # The branch that is not taken must stay finite, or its gradient turns the other one into NaN.
    s = torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x + 1)
    ignored = labels == IGNORED_LABEL
    picked = s.gather(-1, labels.long().masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1)
    return (s.sum(-1).log() - picked.log()).masked_fill(ignored, 0.0)


LOSSES: dict[str, CellLoss] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "stablemax_cross_entropy": stablemax_cross_entropy,
    "stablemax_cross_entropy_float64": stablemax_cross_entropy_float64,
}


def log_probabilities(loss_type: str, logits: Tensor) -> Tensor:
    """Take the logarithms of what a loss takes for probabilities: logits (…, V) to (…, V), in float32."""
    logits = logits.float()
    return F.log_softmax(logits if loss_type == "softmax_cross_entropy" else log_stable(logits), -1)


def puzzle_loss(cell_loss: CellLoss, logits: Tensor | Unread, labels: Tensor) -> Tensor:
    """Average a cell loss over the labelled cells of each puzzle: (B,)."""
    counted = (labels != IGNORED_LABEL).sum(-1).clamp(min=1)
    cells = logits.each(cell_loss, labels) if isinstance(logits, Unread) else cell_loss(logits, labels)
    return cells.sum(-1) / counted


def weighed(rows: Tensor, logits: Tensor | Unread, labels: Tensor) -> Tensor:
    """Weigh what rows (B,) have on average: puzzles alike, rows of a text by the share of their tokens with a label.

    So tokens weigh alike, in whichever row, batch and worker, and nobody has to know how many others there are.
    """
    return rows * (labels != IGNORED_LABEL).float().mean(-1) if isinstance(logits, Unread) else rows


def solved_cells(logits: Tensor | Unread, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compare predictions with labels.

    Returns:
        Share of the labelled cells that are right, (B,) float32, and whether all of them are, (B,) bool.
    """
    counted = labels != IGNORED_LABEL
    right = ((logits.argmax(-1) == labels) & counted).sum(-1)
    total = counted.sum(-1)
    return right / total.clamp(min=1), right == total
