"""A trained model for use, loaded from a run, a checkpoint or a file of others."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trm_ray.config import Config
from trm_ray.interop.initialise import averaged as with_average
from trm_ray.interop.portable import described, read_model
from trm_ray.model.trm import TinyRecursiveModel
from trm_ray.storage import as_path
from trm_ray.training.state import TokenShape, build_model


class LoadedModel(TinyRecursiveModel):
    """A trained network as any other module, in evaluation mode, that knows where it comes from.

    Args:
        model: whose weights and parts it takes over.
        config: that of its run; the architecture is always the checkpoint's own.
        identifiers: the identifiers.json of the puzzles that it was trained on.
        averaged: whether these are the averaged weights.
        tokenizer: the tokenizer.json of the text that it was trained on; None where its tokens are bytes, or no text.
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
        tokenizer: bytes | None = None,
    ):
        nn.Module.__init__(self)  # not the network's own, which would draw weights
        self.__dict__.update(model.__dict__)
        self.config, self.shape, self.identifiers = config, shape, identifiers
        self.step, self.path, self.averaged, self.tokenizer = step, path, averaged, tokenizer
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


def load_model(
    path: str | os.PathLike[str], *, averaged: bool = True, device: torch.device | str = "cpu"
) -> LoadedModel:
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
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder} does not fit its own config ({reason}); name an intact checkpoint") from error
    step = int(state.get("step") or 0)
    return LoadedModel(
        model.to(device),
        config=config,
        shape=shape,
        identifiers=identifiers,
        step=step,
        path=folder,
        averaged=averaged,
        tokenizer=state.get("tokenizer"),
    )


def _filled(config: Config, shape: TokenShape, weights: dict[str, Tensor]) -> TinyRecursiveModel:
    """Build a model around weights, which stay where they are; a table may take gigabytes."""
    model = build_model(config, replace(shape, num_puzzle_identifiers=1))
    if model.puzzle_embedding is not None:
        model.puzzle_embedding.table = model.puzzle_embedding.table.expand(shape.num_puzzle_identifiers, -1)
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return model
