"""Checkpoints of models that nobody has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import SHAPE, tiny_config

from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.training.checkpoint import save_checkpoint
from trm_ray.training.state import TokenShape, build_model


def checkpoint(
    folder: Path,
    shape: TokenShape = SHAPE,
    *,
    halt_bias: float = -5.0,
    identifiers: PuzzleIdentifiers | None = None,
    average_seed: int | None = None,
    **arch: Any,
) -> Path:
    """A checkpoint of an untrained model; the halt head's weights are zero, so that it says what its bias says."""
    config = tiny_config(arch={"residual_init_scale": 1.0, **arch})
    model = build_model(config, shape)
    with torch.no_grad():
        model.q_head.get_parameter("bias").fill_(halt_bias)
    other = None if average_seed is None else build_model(tiny_config(seed=average_seed, arch=arch), shape)
    state = {
        "config": config.model_dump(mode="json"),
        "shape": vars(shape),
        "step": 12,
        "model": model.state_dict(),
        "ema": None if other is None else {name: weight.detach() for name, weight in other.named_parameters()},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    return save_checkpoint(folder, state, None if identifiers is None else identifiers.to_bytes())
