"""One optimizer step: what is computed, exchanged and updated, and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, Carry, TinyRecursiveModel
from trm_ray.model.unread import Unread
from trm_ray.training.losses import puzzle_loss, weighed
from trm_ray.training.metrics import step_sums
from trm_ray.training.segment import SegmentResult
from trm_ray.training.session import Session
from trm_ray.training.state import Recipe, TrainState
from trm_ray.training.supervision import CycleWeights


def train_step(state: TrainState, recipe: Recipe, batches: Sequence[Batch], session: Session) -> None:
    """Run a segment for each batch and update the weights once; nothing here waits for the device."""
    model, segments = state.model, [_pass_back(state, recipe, batch, session) for batch in batches]
    # Losses and gradients are shares of the step's puzzles, so their sums over segments and workers are those of one
    # large batch.
    sums = {name: _added(segment.sums[name] for segment in segments) for name in segments[0].names}
    total = _added(segment.loss.to(torch.float32, copy=True) for segment in segments)
    stop_votes = torch.full_like(total, session.stop_requested())
    session.sum_over_ranks(total, stop_votes, *(p.grad for p in model.parameters() if p.grad is not None))
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip_norm)
    rate = recipe.rate_at(state.step)
    state.guard.watch(
        {
            "step": torch.full_like(total, state.step + 1),
            "total_loss": total,
            **{name: sums[name] for name in ("act_loss", "supervised_loss", "lm_loss")},
            "grad_norm": grad_norm,
            "lr": torch.full_like(total, rate),
        }
    )
    state.stop_votes.add(stop_votes)
    state.update_weights(rate)
    state.update_puzzle_embedding(segments, recipe.puzzle_rate_at(state.step), recipe.puzzle_weight_decay, session)
    state.sums.add(step_sums(sums, grad_norm, session.world_size))
    state.step += 1


def _pass_back(state: TrainState, recipe: Recipe, batch: Batch, session: Session) -> SegmentResult:
    """Run one segment and add its gradients to those at hand; what is returned remembers no graph."""
    model, supervision = state.model, recipe.supervision
    weights = CycleWeights.of(supervision.weights(state.step), supervision.path(state.step), session.device)
    min_steps = session.own_rows(_exploration(state, recipe)).to(session.device, non_blocking=True)
    segment = recipe.segment(model, state.carry or model.initial_carry(batch), batch, min_steps, weights)
    segment.loss.backward()
    state.carry = segment.carry
    return replace(segment, loss=segment.loss.detach())


def _added(tensors: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, tensors)


def _exploration(state: TrainState, recipe: Recipe) -> Tensor:
    """Draw the fewest segments of each row of the global batch: mostly 0, now and then 2 to `halt_max_steps`.

    Source: the original's `min_halt_steps`.
    """
    rows, most = recipe.global_batch_size, state.model.halt_max_steps
    explores = torch.rand(rows, generator=state.generator) < recipe.exploration_prob
    return explores * torch.randint(min(2, most), most + 1, (rows,), generator=state.generator)


def gradient_stats(state: TrainState, recipe: Recipe, batch: Batch, session: Session) -> dict[str, float]:
    """Measure the gradient norms that each H-cycle's loss gives: mean, max and min over the parameter tensors.

    One more forward pass and one backward pass a cycle, on the step's own (first) batch; neither weights, gradients nor
    generators change. Cycles that are not supervised have none. Synchronises with the device.
    """
    path, model = recipe.supervision.path(state.step), state.model
    learned = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    parameters = [parameter for name, parameter in learned if not name.startswith("q_head")]
    row: dict[str, float] = {}
    for cycle, (logits, labels) in enumerate(_cycles(model, state.carry or model.initial_carry(batch), batch, path)):
        if not path.supervised[cycle]:
            continue
        rows = puzzle_loss(recipe.cell_loss, logits, labels)
        loss = weighed(rows, logits, labels).sum() / recipe.global_batch_size
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        session.sum_over_ranks(*gradients)
        norms = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients])
        for name, value in (("mean", norms.mean()), ("max", norms.max()), ("min", norms.min())):
            row[f"train/gradients/step_{cycle}_grad_norm_{name}"] = value.item()
    return row


def _cycles(
    model: TinyRecursiveModel, carry: Carry, batch: Batch, path: GradientPath
) -> Iterator[tuple[Tensor | Unread, Tensor]]:
    """Yield each cycle's logits, with the labels, one stretch of the path after the other."""
    for stretch in path.stretches:
        output = model(carry, batch, stretch)
        yield from ((logits, output.carry.puzzles.labels) for logits in output.cycle_logits)
        carry = output.carry.within_segment()
