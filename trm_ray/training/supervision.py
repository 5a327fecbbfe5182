"""Deep supervision: how much each H-cycle's loss weighs at a step, and the losses that follow from it.

All weights are pure functions of the cycle index and the step.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trm_ray.config.schedules import SCHEDULES
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import SegmentOutput
from trm_ray.model.unread import Unread
from trm_ray.training.losses import CellLoss, puzzle_loss, solved_cells, weighed


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


class Stage(NamedTuple):
    """A segment's H-cycles and the L-cycles of each from a step on; None = as many as the model has."""

    begin: int
    H_cycles: int
    L_cycles: int | None = None


@dataclass(frozen=True)
class Supervision:
    """One scenario: the base weight over the steps, its distribution over the H-cycles, and the gradient's path.

    grad_depth: through how many of the last cycles the gradient runs; None goes by the weights.
    detached: cut the gradient between the cycles.
    own: a weight for each cycle in place of weight and schedule, in any unit. The base weight is then the share of them
    that counts, which a curriculum lets grow from 0 to 1.
    stages: of a segment's depth, the first from step 0 on; none = `num_cycles` at all steps.
    """

    enabled: bool
    schedule: str
    weight: float
    curriculum: tuple[int, int] | None
    num_cycles: int
    grad_depth: int | None = None
    detached: bool = False
    own: tuple[float, ...] | None = None
    stages: tuple[Stage, ...] = ()

    def stage(self, step: int) -> Stage:
        """Tell how deep a segment is at a step."""
        reached = [stage for stage in self.stages if stage.begin <= step]
        return reached[-1] if reached else Stage(0, self.num_cycles)

    def base_weight(self, step: int) -> float:
        """Weight of the intermediate cycles at a step; 0 takes the baseline's path."""
        if not self.enabled:
            return 0.0
        weight = self.weight if self.own is None else 1.0
        return weight if self.curriculum is None else curriculum_weight(step, *self.curriculum, weight)

    def weights(self, step: int) -> tuple[float, ...]:
        """Weigh the cycles' losses at a step; the last weighs 1, those before the gradient's path nothing."""
        base, num_cycles = self.base_weight(step), self.stage(step).H_cycles
        if self.own is None:
            weights = supervision_weights(self.schedule, num_cycles, base)
        else:
            weights = (*(base * weight / self.own[-1] for weight in self.own[:-1]), 1.0)
        before = max(0, num_cycles - (self.grad_depth or num_cycles))
        return (0.0,) * before + weights[before:]

    def path(self, step: int) -> GradientPath:
        """Choose the cycles and the gradient's path at a step."""
        stage = self.stage(step)
        depth = None if self.grad_depth is None else min(self.grad_depth, stage.H_cycles)
        path = GradientPath.along(self.weights(step), depth, detached=self.detached)
        return replace(path, L_cycles=stage.L_cycles)

    def phases(self, num_steps: int) -> list[tuple[int, int]]:
        """Cut so many steps where the path may change, (begin, end) each: a stage begins, or a curriculum's ramp."""
        ramp = () if self.curriculum is None else (self.curriculum[0] + 1,)
        begins = {step for step in (0, *ramp, *(stage.begin for stage in self.stages)) if step < num_steps}
        return [*itertools.pairwise((*sorted(begins), num_steps))]

    def paths(self, num_steps: int) -> Counter[GradientPath]:
        """Count the steps of each path among the first so many."""
        counted: Counter[GradientPath] = Counter()
        for begin, end in self.phases(num_steps):
            counted[self.path(begin)] += end - begin
        return counted


@dataclass(frozen=True)
class CycleWeights:
    """The weights of a segment's H-cycles on a device, where a ramp changes them without a new graph.

    values: (N + 1,) float64: each cycle's weight, of which the segment's last is 1, then the sum over the segment.
    """

    values: Tensor
    path: GradientPath

    @classmethod
    def of(
        cls, weights: tuple[float, ...], path: GradientPath | None = None, device: torch.device | None = None
    ) -> CycleWeights:
        """Take weights to a device without waiting for the copy; the path goes by them if it is not given."""
        values = torch.tensor((*weights, sum(weights)), dtype=torch.float64)
        return cls(values.to(device, non_blocking=True), path or GradientPath.along(weights))

    def stretches(self) -> Iterator[CycleWeights]:
        """Yield those of each stretch of the path."""
        *each, total_weight = self.values.unbind()
        for path in self.path.stretches:
            own, each = each[: len(path.supervised)], each[len(path.supervised) :]
            yield CycleWeights(torch.stack((*own, total_weight)), path)


@dataclass(frozen=True)
class StretchLosses:
    """Losses of cycles before the segment's last, in which the gradient ends.

    total: Σ wᵢ·CEᵢ / W over these cycles, which carries the gradient. cycles: (n,), rows: (n, B), as in
    `SegmentLosses`, without.
    """

    total: Tensor
    cycles: Tensor
    rows: Tensor


@dataclass(frozen=True)
class SegmentLosses:
    """Losses of one segment, averaged over puzzles; scalars, and `total` = `act` + `supervised` carries the gradient.

    Those of a text are sums over its labelled tokens, divided by all cells of the step; of these, `labelled` is the
    share that has a label here, by which to divide once the shares of all workers are added. None where puzzles weigh
    alike.

    act: CE of the last cycle / W + ½·halt, W the sum of the weights. supervised: Σ wᵢ·CEᵢ / W over the earlier cycles.
    lm: CE of the last cycle, unscaled. cycles: CE of every cycle. halt: BCE of the halt logit against "puzzle solved",
    0 for a text. rows: CE of every cycle for each puzzle here, (B,), without gradient.
    cells, solved: the last cycle's `solved_cells`.
    """

    total: Tensor
    act: Tensor
    supervised: Tensor
    lm: Tensor
    cycles: tuple[Tensor, ...]
    halt: Tensor
    rows: tuple[Tensor, ...]
    cells: Tensor
    solved: Tensor
    labelled: Tensor | None = None


def segment_losses(
    output: SegmentOutput,
    weights: CycleWeights,
    cell_loss: CellLoss,
    num_puzzles: int,
    before: Sequence[StretchLosses] = (),
) -> SegmentLosses:
    """Combine the cycles' cross-entropies and the halt loss.

    Args:
        num_puzzles: puzzles in the global batches of a step; losses are sums over the rows here divided by it, so that
            they add up over the workers and the step's segments.
        before: of the segment's stretches before the output's. What they weigh counts in `supervised`, and its gradient
            has been passed back already.
    """
    cycles, rows = _cross_entropies(output, weights.path, cell_loss, num_puzzles)
    last, labels = output.cycle_logits[-1].detach(), output.carry.puzzles.labels
    cells, solved = solved_cells(last, labels)
    halt = F.binary_cross_entropy_with_logits(output.halt_logits, solved.float(), reduction="sum") / num_puzzles
    labelled = None
    if isinstance(last, Unread):
        # Of a text no row is right as a whole, and its first position, which the halt head reads, sees one token.
        halt, labelled = torch.zeros_like(halt), weighed(torch.ones_like(cells), last, labels).sum() / num_puzzles
    *_, total_weight = weights.values.to(cycles[-1].dtype).unbind()
    act = cycles[-1] / total_weight + 0.5 * halt
    weighted = [*(losses.total.detach() for losses in before), *_weighted(cycles[:-1], weights)]
    supervised = torch.stack(weighted).sum() if weighted else torch.zeros_like(act)
    all_cycles = (*(ce for losses in before for ce in losses.cycles), *cycles)
    all_rows = (*(ces for losses in before for ces in losses.rows), *rows)
    total = act + supervised
    return SegmentLosses(total, act, supervised, cycles[-1], all_cycles, halt, all_rows, cells, solved, labelled)


def stretch_losses(
    output: SegmentOutput, weights: CycleWeights, cell_loss: CellLoss, num_puzzles: int
) -> StretchLosses:
    """Weigh the cross-entropies of cycles before the segment's last; arguments as those of `segment_losses`."""
    cycles, rows = _cross_entropies(output, weights.path, cell_loss, num_puzzles)
    total = torch.stack([*_weighted(cycles, weights)]).sum()
    return StretchLosses(total, torch.stack([cycle.detach() for cycle in cycles]), torch.stack(rows))


def _cross_entropies(
    output: SegmentOutput, path: GradientPath, cell_loss: CellLoss, num_puzzles: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Measure each cycle: the mean over puzzles, with gradient where it is supervised, and that of each, without."""
    cycles, rows, labels = [], [], output.carry.puzzles.labels
    for logits, supervised in zip(output.cycle_logits, path.supervised, strict=True):
        with torch.set_grad_enabled(torch.is_grad_enabled() and supervised):
            of_rows = puzzle_loss(cell_loss, logits, labels)
            cycles.append(weighed(of_rows, logits, labels).sum() / num_puzzles)
            rows.append(of_rows.detach())
    return cycles, rows


def _weighted(cycles: Sequence[Tensor], weights: CycleWeights) -> Iterator[Tensor]:
    """Yield wᵢ·CEᵢ / W of those of the first so many cycles that are supervised."""
    *each, total_weight = weights.values.unbind()
    for ce, weight, supervised in zip(cycles, each, weights.path.supervised, strict=False):
        if supervised:
            yield weight.to(ce.dtype) * ce / total_weight.to(ce.dtype)
