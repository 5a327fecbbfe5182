"""A trained model at work: it refines an answer segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trm_ray.model.trm import Batch, Carry, SegmentOutput, TinyRecursiveModel
from trm_ray.training.losses import IGNORED_LABEL

Forward = Callable[[TinyRecursiveModel, Carry, Batch], SegmentOutput]


def forward_of(model: TinyRecursiveModel, carry: Carry, batch: Batch) -> SegmentOutput:
    """Run a segment of which nothing is to be learned."""
    return model(carry, batch)


def run_segments(
    model: TinyRecursiveModel, batch: Batch, num_segments: int | None = None, forward: Forward = forward_of
) -> Iterator[SegmentOutput]:
    """Refine the answers of a batch and yield every segment's output; no row is halted or replaced.

    Args:
        num_segments: `halt_max_steps`, as trained, if not given; more are possible.
        forward: `forward_of`, or the same compiled.
    """
    carry = model.initial_carry(batch)
    for _ in range(num_segments or model.halt_max_steps):
        with torch.inference_mode():
            output = forward(model, carry, batch)
        carry = replace(output.carry, halted=torch.zeros_like(output.carry.halted))
        # Detached, since the head of a text's is a weight, and no gradient goes through what was made here.
        yield replace(output, carry=carry, cycle_logits=tuple(logits.detach() for logits in output.cycle_logits))


@dataclass(frozen=True)
class Solution:
    """What a model makes of some puzzles: logits (S, B, L, V) and halt logits (S, B) of S segments, in float32."""

    logits: Tensor
    halt_logits: Tensor

    @property
    def answers(self) -> Tensor:
        """Token ids (B, L) after the last segment."""
        return self.logits[-1].argmax(-1)


def solve(
    model: TinyRecursiveModel, inputs: Tensor, puzzle_identifiers: Tensor | None = None, segments: int | None = None
) -> Solution:
    """Let a model solve puzzles.

    Args:
        inputs: (B, L) token ids.
        puzzle_identifiers: (B,) rows of the puzzle embedding; 0, a puzzle nobody knows, if not given.
        segments: how many; `halt_max_steps`, as trained, if not given.

    Raises:
        ValueError: shapes, tokens or identifiers that the model does not have.
    """
    _check_inputs(model, inputs, puzzle_identifiers, segments)
    device = model.embed_tokens.device
    inputs = inputs.to(device, torch.int32)
    if puzzle_identifiers is None:
        puzzle_identifiers = torch.zeros(len(inputs))
    batch = Batch(inputs, torch.full_like(inputs, IGNORED_LABEL), puzzle_identifiers.to(device, torch.int32))
    outputs = list(run_segments(model.eval(), batch, segments))
    return Solution(
        torch.stack([output.cycle_logits[-1].float() for output in outputs]),
        torch.stack([output.halt_logits for output in outputs]),
    )


def _check_inputs(
    model: TinyRecursiveModel, inputs: Tensor, puzzle_identifiers: Tensor | None, segments: int | None
) -> None:
    vocab_size = len(model.embed_tokens)
    if inputs.dim() != 2 or inputs.shape[1] != model.seq_len:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)} must be (B, {model.seq_len}) token ids")
    if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < vocab_size:
        rule = f"they must be 0 to {vocab_size - 1}"
        raise ValueError(f"inputs hold tokens from {inputs.min()} to {inputs.max()}; {rule}")
    if segments is not None and segments < 1:
        raise ValueError(f"segments={segments} must be at least 1; leave it out for {model.halt_max_steps}")
    if puzzle_identifiers is None:
        return
    if puzzle_identifiers.shape != inputs.shape[:1]:
        raise ValueError(f"puzzle_identifiers of shape {tuple(puzzle_identifiers.shape)} must be ({len(inputs)},)")
    if model.puzzle_embedding is not None:
        last, least, most = len(model.puzzle_embedding.table) - 1, puzzle_identifiers.min(), puzzle_identifiers.max()
        if not 0 <= int(least) <= int(most) <= last:
            raise ValueError(f"puzzle_identifiers up to {most} must be 0 to {last}")
