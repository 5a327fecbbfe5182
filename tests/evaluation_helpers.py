"""Checkpoints of models that nobody has trained, to evaluate."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from run_helpers import run_config

from trm_ray.data.format import read_identifiers
from trm_ray.kinds.arc.read import prepare_arc
from trm_ray.training.checkpoint import save_checkpoint
from trm_ray.training.state import TokenShape, build_model

EMBEDDED = ("arch.puzzle_emb_ndim=16", "arch.puzzle_emb_len=1")
SMALL, LONG = [[0, 1], [2, 3]], [[4, 5, 6]]


def checkpoint(
    folder: Path, data: Path, *words: str, identifiers: bytes | None = None, shape: TokenShape | None = None
) -> Path:
    """A run's folder with a model that nobody has trained; it copies clues now and then, and halts some rows."""
    config = run_config(data, folder, "arch.halt_max_steps=3", "ema=true", "seed=3", *words)
    shape = shape or TokenShape(16, 6, len(read_identifiers(data)))
    model = build_model(config, shape)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.embed_tokens / 8)
        model.q_head.weight.normal_(generator=draws)
        model.q_head.get_parameter("bias").fill_(-1.0)
        if model.puzzle_embedding is not None:
            model.puzzle_embedding.table.normal_(generator=draws)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    raw = {name: 0.9 * tensor for name, tensor in weights.items()}
    state = {
        "config": config.model_dump(mode="json"),
        "shape": asdict(shape),
        "step": 7,
        "model": raw,
        "ema": {name: weights[name] for name, _ in model.named_parameters()},
    }
    save_checkpoint(folder / "checkpoint_step_7", state, identifiers)
    return folder


def arc_run(folder: Path) -> tuple[Path, Path]:
    """Two tasks with three test inputs, one of whose outputs is hidden: a run's folder and its dataset."""
    pairs = [{"input": LONG, "output": LONG}]
    tasks = {
        "first": {"train": pairs, "test": [{"input": SMALL}, {"input": LONG}]},
        "hidden": {"train": pairs, "test": [{"input": SMALL}]},
    }
    (folder / "arc_evaluation_challenges.json").write_text(json.dumps(tasks))
    (folder / "arc_evaluation_solutions.json").write_text(json.dumps({"first": [SMALL, LONG]}))
    data = folder / "data"
    told: dict[str, Any] = {"prefix": folder / "arc", "subsets": ["evaluation"], "test_set": "evaluation"}
    prepare_arc(data, augmentations=4, seed=1, keep_duplicates=True, **told)
    identifiers = read_identifiers(data)
    run = folder / "run"
    checkpoint(run, data, *EMBEDDED, identifiers=identifiers.to_bytes(), shape=TokenShape(900, 12, len(identifiers)))
    return run, data
