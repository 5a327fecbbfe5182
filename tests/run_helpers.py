"""Runs of a second or two with real files: a dataset of 4×4 puzzles, a folder, and what is in it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers import Puzzles, sudoku

from trm_ray.config import Config, load_config
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import Rows
from trm_ray.data.write import write_dataset
from trm_ray.training.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]

# By dotted key, as a sweep's `overrides` take them.
TINY_RUN: dict[str, Any] = {
    "task": None,
    "arch.H_cycles": 2,
    "arch.L_cycles": 1,
    "arch.L_layers": 1,
    "arch.hidden_size": 16,
    "arch.ffn_multiple_of": 8,
    "arch.mixer": "mlp",
    "arch.pos_encodings": "none",
    "arch.residual_init_scale": 0.1,
    "arch.halt_max_steps": 2,
    "arch.forward_dtype": "float32",
    "global_batch_size": 8,
    "eval_batch_size": 64,
    "max_steps": 6,
    "eval_interval": 3,
    "log_interval": 1,
    "lr": 3e-2,
    "lr_min_ratio": 0.1,
    "lr_warmup_steps": 0,
}

# The same for all datasets, so that they can be used together.
IDENTIFIERS = PuzzleIdentifiers.plain([f"puzzle {number}" for number in range(1, 1000)])


def tiny_overrides(**changes: Any) -> list[str]:
    """The tiny run as words of a command line."""
    values = {**TINY_RUN, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [f"{key}={'null' if value is None else value}" for key, value in values.items()]


def laid_over(usual: Sequence[str], words: Sequence[str]) -> list[str]:
    """Words of a command line, of which the second ones stand in place of those with the same key."""
    return list({word.partition("=")[0]: word for word in (*usual, *words)}.values())


def run_config(data: Path, log_dir: Path, *words: str, scenario: str = "deep_supervision_linear") -> Config:
    """A tiny run on one dataset; `words` are `key=value`, in place of the tiny run's."""
    places = [f"data_paths=[{data}]", f"log_dir={log_dir}"]
    return load_config(scenario, laid_over([*tiny_overrides(), *places], words), config_dir=ROOT / "configs")


def write_puzzles(folder: Path, train: Puzzles, test: Puzzles) -> Path:
    """Write 4×4 puzzles as a dataset, every one a group of its own."""
    splits = {
        name: replace(Rows.of_single_puzzles(rows.inputs, rows.labels), puzzle_identifiers=rows.puzzle_identifiers)
        for name, rows in (("train", train), ("test", test))
    }
    symmetry = {"name": "sudoku", "box": [2, 2]}
    told: dict[str, Any] = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": symmetry}
    write_dataset(folder, splits, vocab_size=6, identifiers=IDENTIFIERS, **told)
    return folder


def some_puzzles(folder: Path, train: int = 768, test: int = 65) -> Path:
    """Write a dataset of random puzzles: training rows in three files, an odd number of test rows."""
    return write_puzzles(folder, sudoku(train, seed=0), sudoku(test, seed=1))


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a finished run left."""
    weights: dict[str, torch.Tensor] = load_checkpoint(folder / "final_model")["model"]
    return weights
