"""Tiny models, 4×4 Sudoku puzzles in memory, and a session on them: runs without data files and without Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm_ray.config import Config
from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from trm_ray.training.loop import run_training
from trm_ray.training.session import Depths, LogRow, Session
from trm_ray.training.state import TokenShape, build_model

SHAPE = TokenShape(seq_len=16, vocab_size=6, num_puzzle_identifiers=32)  # PAD, blank, digits 1 to 4
SOLUTION = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]])

TINY_ARCH: dict[str, Any] = {
    "H_cycles": 3,
    "L_cycles": 2,
    "L_layers": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "expansion": 2,
    "ffn_multiple_of": 8,
    "mixer": "mlp",
    "pos_encodings": "none",
    "residual_init_scale": 0.1,
    "halt_max_steps": 3,
    "halt_exploration_prob": 0.3,
    "forward_dtype": "float32",
}


def tiny_config(**changes: Any) -> Config:
    """A run of seconds; `changes` are keys of the config, `arch` a dict of what differs from `TINY_ARCH`."""
    values: dict[str, Any] = {
        "data_paths": ["in-memory"],
        "max_steps": 8,
        "global_batch_size": 8,
        "lr": 3e-3,
        "lr_warmup_steps": 2,
        "eval_interval": 4,
        "log_interval": 1,
        "deep_supervision_enabled": False,
    }
    arch = TINY_ARCH | changes.pop("arch", {})
    return Config.model_validate(values | changes | {"arch": arch})


def supervised(schedule: str = "linear_decay", weight: float = 0.5, **more: Any) -> dict[str, Any]:
    """The keys that turn supervision on."""
    keys = {"enabled": True, "schedule": schedule, "weight": weight}
    return {f"deep_supervision_{key}": value for key, value in keys.items()} | more


def tiny_model(*, seed: int = 0, **arch: Any) -> TinyRecursiveModel:
    return build_model(tiny_config(seed=seed, arch=arch), SHAPE)


TEXT_ARCH = {"mixer": "attention", "pos_encodings": "rope", "causal": True, "halt_max_steps": 1}


def text_shape(seq_len: int = 12) -> TokenShape:
    """Of bytes and a separator."""
    return TokenShape(seq_len, 257, separator=256)


def shape_of(config: Config) -> TokenShape:
    """What a run's model takes: texts if it is causal, else boards."""
    return text_shape() if config.arch.causal else SHAPE


def text_model(seq_len: int, *, seed: int = 0, arch: Mapping[str, Any] = {}, **changes: Any) -> TinyRecursiveModel:
    return build_model(tiny_config(seed=seed, arch=TEXT_ARCH | dict(arch), **changes), text_shape(seq_len))


@dataclass(frozen=True)
class Puzzles:
    """Rows as numpy arrays; also a batch of them, since a batch is rows."""

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: slice | np.ndarray) -> Puzzles:
        return Puzzles(*(array[chosen].copy() for array in (self.inputs, self.labels, self.puzzle_identifiers)))

    def batch(self) -> Batch:
        return Batch(*map(torch.from_numpy, (self.inputs, self.labels, self.puzzle_identifiers)))


def sudoku(rows: int, *, seed: int = 0, blanks: int = 6) -> Puzzles:
    """4×4 boards with relabelled digits and random blanks; puzzle identifiers number the rows."""
    rng = np.random.default_rng(seed)
    solved = np.stack([(rng.permutation(4) + 2)[SOLUTION - 1].ravel() for _ in range(rows)]).astype(np.int32)
    blank = rng.random(solved.shape).argsort(1) < blanks
    return Puzzles(np.where(blank, 1, solved).astype(np.int32), solved, np.arange(rows, dtype=np.int32))


def texts(rows: int, seq_len: int, *, seed: int = 0, labelled: float = 1.0) -> Puzzles:
    """Uniformly random bytes, a separator here and there, each labelled with the one after it.

    labelled: the share of each row's labels that counts, from its beginning on, differing from row to row.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(256, size=(rows, seq_len + 1), dtype=np.int32)
    inputs = np.where(rng.random((rows, seq_len)) < 0.1, 256, tokens[:, :-1]).astype(np.int32)
    ends = seq_len * (1 - (1 - labelled) * rng.random((rows, 1)))
    labels = np.where(np.arange(seq_len) < ends, tokens[:, 1:], -100).astype(np.int32)
    return Puzzles(inputs, labels, np.zeros(rows, dtype=np.int32))


def rows_for(config: Config, rows: int, *, seed: int = 0) -> Puzzles:
    """Boards, or for a causal model texts of which some have few labels and some many."""
    return texts(rows, text_shape().seq_len, seed=seed, labelled=0.2) if config.arch.causal else sudoku(rows, seed=seed)


def cycling(puzzles: Puzzles, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1) -> Any:
    """A stream whose batch k is a pure function of (seed, k); a worker takes its part of the rows."""

    def batches(start: int) -> Iterator[Puzzles]:
        number = start
        while True:
            picked = np.random.default_rng([seed, number]).permutation(len(puzzles))[:batch_size]
            yield puzzles[np.array_split(picked, world_size)[rank]]
            number += 1

    return batches


class RunDiedError(Exception):
    """Somebody pulled the plug."""


def interrupted_after(batches: Callable[[int], Iterator[Puzzles]], steps: int) -> Any:
    """The same stream, but the run dies when it asks for batch number `steps`."""

    def until(start: int) -> Iterator[Puzzles]:
        for number, batch in enumerate(batches(start), start):
            if number == steps:
                raise RunDiedError
            yield batch

    return until


def log_to(path: Path) -> LogRow:
    def log(step: int, wall_s: float, metrics: Mapping[str, float], depths: Depths | None = None) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "wall_s": wall_s, **metrics}) + "\n")

    return log


def local_session(
    run_dir: Path,
    config: Config,
    puzzles: Puzzles | None = None,
    *,
    test: Puzzles | None = None,
    test_batch_size: int = 4,
    rank: int = 0,
    world_size: int = 1,
    die_after: int | None = None,
    kind: Callable[..., Session] = Session,
) -> Session:
    """A session of one worker on puzzles or texts in memory; rows of metrics go to `run_dir`/metrics.jsonl."""
    run_dir.mkdir(parents=True, exist_ok=True)
    part = {"rank": rank, "world_size": world_size}
    train = cycling(puzzles or rows_for(config, 24), config.global_batch_size, seed=config.seed, **part)
    test = test or rows_for(config, 7, seed=1)
    held_out = test[np.arange(rank, len(test), world_size)]
    return kind(
        run_dir,
        torch.device("cpu"),
        train if die_after is None else interrupted_after(train, die_after),
        lambda whole: (held_out[i : i + test_batch_size] for i in range(0, len(held_out), test_batch_size)),
        log_to(run_dir / "metrics.jsonl"),
        latest=latest_checkpoint(run_dir, verified=True),
    )


def metric_rows(run_dir: Path) -> dict[int, dict[str, float]]:
    """The last row of each step, without the seconds, which differ from run to run."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {
        row["step"]: {
            tag: v
            for tag, v in row.items()
            if tag != "wall_s" and not tag.startswith(("throughput/", "checkpoint/", "core_seconds/"))
        }
        for row in rows
    }


def begun(run_dir: Path, **changes: Any) -> Path:
    """Make a checkpoint of step 1, in the middle of a logging window, whose halt head stops rows at once.

    Rows then go on for as long as exploration makes them.
    """
    config = tiny_config(**changes)
    run_training(config, shape_of(config), 1, local_session(run_dir, config))
    folder = run_dir / "checkpoint_step_1"
    state = load_checkpoint(folder)
    state["model"]["q_head.bias"][0] = 0.5
    state["sums"] = state["sums"].detach() + 1.0
    save_checkpoint(folder, state)
    return folder


def assert_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Fail unless two state dicts are bitwise equal."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, Mapping):
            assert_same(value, second[name])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def literal_cross_entropy(name: str, logits: torch.Tensor, label: int) -> float:
    """The loss of one cell, by its formula, in Python's floats."""
    values = logits.tolist()
    if name == "softmax_cross_entropy":
        top = max(values)
        return math.log(sum(math.exp(v - top) for v in values)) - (values[label] - top)
    s = [v + 1 if v >= 0 else 1 / (1 - v) for v in values]
    return -math.log(s[label] / sum(s))
