"""A trained model for use: load it from a checkpoint, and let it refine an answer segment by segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trm_ray.config import Config
from trm_ray.model.trm import Batch, SegmentOutput, TinyRecursiveModel
from trm_ray.storage import as_path
from trm_ray.training.initialise import averaged as with_average
from trm_ray.training.losses import IGNORED_LABEL
from trm_ray.training.portable import described, read_model
from trm_ray.training.state import TokenShape, build_model


class LoadedModel(TinyRecursiveModel):
    """A trained network as any other module, in evaluation mode, that knows where it comes from.

    Args:
        model: whose weights and parts it takes over.
        config: that of its run; the architecture is always the checkpoint's own.
        identifiers: the identifiers.json of the puzzles that it was trained on.
        averaged: whether these are the averaged weights.
    """

    def __init__(
        self,
        model: TinyRecursiveModel,
        *,
        config: Config,
        shape: TokenShape,
        identifiers: bytes | None,
        step: int,
        path: Path,
        averaged: bool,
    ):
        nn.Module.__init__(self)  # not the network's own, which would draw weights
        self.__dict__.update(model.__dict__)
        self.config, self.shape, self.identifiers = config, shape, identifiers
        self.step, self.path, self.averaged = step, path, averaged
        self.eval()

    @property
    def model(self) -> TinyRecursiveModel:
        """The network itself, for callers from when it was only a part of what is loaded."""
        return self

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.embed_tokens.device

    def extra_repr(self) -> str:
        """Say where it comes from above its layers."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        kind = "averaged" if self.averaged else "raw"
        return f"path={str(self.path)!r}, step={self.step}, weights={kind!r}, parameters={weights:,}"


def load_model(path: str | Path, *, averaged: bool = True, device: torch.device | str = "cpu") -> LoadedModel:
    """Load the model of a run, a checkpoint or an imported checkpoint.

    On the CPU its weights are those of the file, memory-mapped; writing to them leaves the file alone.

    Args:
        path: a run's folder (its final model, else its latest checkpoint), a checkpoint's, or an exported
            .safetensors file.
        averaged: take the averaged weights if there are any.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    folder, state, identifiers = read_model(as_path(path))
    config, shape = described(state, folder)
    averaged = averaged and state.get("ema") is not None
    try:
        model = _filled(config, shape, with_average(state) if averaged else state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:  # also where memory is too small for what it asks
        told = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder} does not fit its own config ({told}); name an intact checkpoint") from error
    return LoadedModel(
        model.to(device),
        config=config,
        shape=shape,
        identifiers=identifiers,
        step=int(state.get("step") or 0),
        path=folder,
        averaged=averaged,
    )


def _filled(config: Config, shape: TokenShape, weights: dict[str, Tensor]) -> TinyRecursiveModel:
    """Build a model around weights, which stay where they are; a table may take gigabytes."""
    model = build_model(config, replace(shape, num_puzzle_identifiers=1))
    if model.puzzle_embedding is not None:
        model.puzzle_embedding.table = model.puzzle_embedding.table.expand(shape.num_puzzle_identifiers, -1)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return model


def run_segments(model: TinyRecursiveModel, batch: Batch, num_segments: int | None = None) -> Iterator[SegmentOutput]:
    """Refine the answers of a batch and yield every segment's output; no row is halted or replaced.

    Args:
        num_segments: `halt_max_steps`, as trained, if not given; more are possible.
    """
    carry = model.initial_carry(batch)
    for _ in range(num_segments or model.halt_max_steps):
        with torch.inference_mode():
            output = model(carry, batch, supervise_all_cycles=False)
        carry = replace(output.carry, halted=torch.zeros_like(output.carry.halted))
        yield replace(output, carry=carry)


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
    model: TinyRecursiveModel,
    inputs: Tensor,
    puzzle_identifiers: Tensor | None = None,
    segments: int | None = None,
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
    vocab_size = model.embed_tokens.shape[0]
    if inputs.dim() != 2 or inputs.shape[1] != model.seq_len:
        raise ValueError(f"inputs of shape {tuple(inputs.shape)} must be (B, {model.seq_len}) token ids")
    if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < vocab_size:
        raise ValueError(
            f"inputs hold tokens from {inputs.min()} to {inputs.max()}; they must be 0 to {vocab_size - 1}"
        )
    if segments is not None and segments < 1:
        raise ValueError(f"segments={segments} must be at least 1; leave it out for {model.halt_max_steps}")
    if puzzle_identifiers is None:
        return
    rows = 1 if model.puzzle_embedding is None else len(model.puzzle_embedding.table)
    if puzzle_identifiers.shape != inputs.shape[:1]:
        raise ValueError(f"puzzle_identifiers of shape {tuple(puzzle_identifiers.shape)} must be ({len(inputs)},)")
    if (
        model.puzzle_embedding is not None
        and not 0 <= int(puzzle_identifiers.min()) <= int(puzzle_identifiers.max()) < rows
    ):
        raise ValueError(f"puzzle_identifiers up to {puzzle_identifiers.max()} must be 0 to {rows - 1}")
