"""Deep supervision: how much each H-cycle's loss weighs at a step, and the losses that follow from it.

All weights are pure functions of the cycle index and the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trm_ray.config.schedules import SCHEDULES
from trm_ray.model.trm import SegmentOutput
from trm_ray.training.losses import CellLoss, puzzle_loss, solved_cells


def supervision_weights(schedule: str, num_cycles: int, weight: float) -> tuple[float, ...]:
    """Weigh each H-cycle's loss; the last always weighs 1.

    Args:
        schedule: a name of `config.schedules`, which gives each cycle's factor.
        num_cycles: at least 1 (H_cycles).
        weight: base weight w of the intermediate cycles, in [0, 1]; cycle i of N weighs w·factor(i, N).

    Raises:
        ValueError: `num_cycles` < 1, `weight` outside [0, 1] or an unknown schedule.
    """
    if num_cycles < 1:
        raise ValueError(f"num_cycles={num_cycles} must be at least 1; set arch.H_cycles to 1 or more")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight} must lie in [0, 1]; 0.5 is the usual deep_supervision_weight")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} must be one of {', '.join(SCHEDULES)}")
    factor = SCHEDULES[schedule]
    return (*(weight * factor(cycle, num_cycles) for cycle in range(num_cycles - 1)), 1.0)


def curriculum_weight(step: int, start_step: int, end_step: int, weight: float) -> float:
    """Ramp the base weight from 0 at `start_step` linearly to `weight` at `end_step`."""
    return weight * min(1.0, max(0.0, (step - start_step) / (end_step - start_step)))


@dataclass(frozen=True)
class Supervision:
    """One scenario: the base weight over the steps and its distribution over the H-cycles.

    own: a weight for each cycle in place of weight and schedule, in any unit. The base weight is then the share of them
    that counts, which a curriculum lets grow from 0 to 1.
    """

    enabled: bool
    schedule: str
    weight: float
    curriculum: tuple[int, int] | None
    own: tuple[float, ...] | None = None

    def base_weight(self, step: int) -> float:
        """Weight of the intermediate cycles at a step; 0 takes the baseline's path."""
        if not self.enabled:
            return 0.0
        weight = self.weight if self.own is None else 1.0
        return weight if self.curriculum is None else curriculum_weight(step, *self.curriculum, weight)

    def weights(self, step: int, num_cycles: int) -> tuple[float, ...]:
        """Weigh the cycles' losses at a step; the last weighs 1."""
        base = self.base_weight(step)
        if self.own is None:
            return supervision_weights(self.schedule, num_cycles, base)
        *earlier, last = self.own
        return (*(base * weight / last for weight in earlier), 1.0)

    def num_supervised(self, steps: int) -> int:
        """Count the steps among the first so many in which a cycle before the last has a weight above 0."""
        if not self.enabled or not (self.weight if self.own is None else any(self.own[:-1])):
            return 0
        return steps if self.curriculum is None else max(0, steps - self.curriculum[0] - 1)


@dataclass(frozen=True)
class CycleWeights:
    """The weights of a segment's H-cycles on a device, where a ramp changes them without a new graph.

    values: (N + 1,) float64: each cycle's weight, of which the last is 1, then their sum.
    supervise: whether any before the last is above 0; if not, the step is the baseline's.
    """

    values: Tensor
    supervise: bool

    @classmethod
    def of(cls, weights: tuple[float, ...], device: torch.device | None = None) -> CycleWeights:
        """Take weights to a device without waiting for the copy."""
        values = torch.tensor((*weights, sum(weights)), dtype=torch.float64)
        return cls(values.to(device, non_blocking=True), any(weights[:-1]))


@dataclass(frozen=True)
class SegmentLosses:
    """Losses of one segment, averaged over puzzles; scalars, and `total` = `act` + `supervised` carries the gradient.

    act: CE of the last cycle / W + ½·halt, W the sum of the weights. supervised: Σ wᵢ·CEᵢ / W over the earlier cycles.
    lm: CE of the last cycle, unscaled. cycles: CE of every cycle. halt: BCE of the halt logit against "puzzle solved".
    rows: CE of every cycle for each puzzle here, (B,), without gradient.
    """

    total: Tensor
    act: Tensor
    supervised: Tensor
    lm: Tensor
    cycles: tuple[Tensor, ...]
    halt: Tensor
    rows: tuple[Tensor, ...]


def segment_losses(
    output: SegmentOutput, weights: CycleWeights, cell_loss: CellLoss, num_puzzles: int
) -> SegmentLosses:
    """Combine the cycles' cross-entropies and the halt loss.

    Args:
        weights: one a cycle. In the baseline the cycles before the last are measured without gradient.
        num_puzzles: puzzles in the global batches of a step; losses are sums over the rows here divided by it, so that
            they add up over the workers and the step's segments.
    """
    labels = output.carry.puzzles.labels
    cycles, rows, last = [], [], len(output.cycle_logits) - 1
    for cycle, logits in enumerate(output.cycle_logits):
        with torch.set_grad_enabled(torch.is_grad_enabled() and (cycle == last or weights.supervise)):
            of_rows = puzzle_loss(cell_loss, logits, labels)
            cycles.append(of_rows.sum() / num_puzzles)
            rows.append(of_rows.detach())
    solved = solved_cells(output.cycle_logits[-1].detach(), labels)[1]
    halt = F.binary_cross_entropy_with_logits(output.halt_logits, solved.float(), reduction="sum") / num_puzzles
    *each, _, total_weight = weights.values.to(cycles[-1].dtype).unbind()
    act = cycles[-1] / total_weight + 0.5 * halt
    weighted = [weight * ce / total_weight for weight, ce in zip(each, cycles[:-1], strict=True)]
    supervised = torch.stack(weighted).sum() if weights.supervise else torch.zeros_like(act)
    return SegmentLosses(act + supervised, act, supervised, cycles[-1], tuple(cycles), halt, tuple(rows))
