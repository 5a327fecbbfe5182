"""What each of two processes does in test_session.py: the same runs as one process, with half of every batch."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import SHAPE, TEXT_ARCH, local_session, supervised, text_shape, texts, tiny_config

from trm_ray.training.loop import run_training
from trm_ray.training.session import Session
from trm_ray.training.text import TextMeasure

NUM_STEPS = 8
RUNS: dict[str, dict[str, Any]] = {
    "supervised": supervised(ema=True, compute_gradient_stats=True, gradient_stats_interval=3, log_interval=2),
    "stablemax": {"loss_type": "stablemax_cross_entropy", "optimizer": "adam_atan2"},
    "puzzles": supervised(arch={"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}, puzzle_emb_lr=3e-3),
    "bfloat16": supervised(arch={"forward_dtype": "bfloat16"}),
    "segments": supervised(
        segments_per_update=2, arch={"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}, puzzle_emb_lr=3e-3, log_interval=2
    ),
    "stages": supervised(depth_curriculum=[[0, 1, 1], [0.25, 2, 1], [0.5, 3, 2]], log_interval=3),
    "detached": supervised(
        **{"detach_cycles": True, "compute_gradient_stats": True, "gradient_stats_interval": 3},
        **{"arch": {"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}, "puzzle_emb_lr": 3e-3},
    ),
    # Four rows of each batch to one worker and three to the other.
    "uneven": supervised(
        global_batch_size=7, arch={"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}, puzzle_emb_lr=3e-3, log_interval=2
    ),
}


def train(name: str, run_dir: Path, rank: int = 0, world_size: int = 1) -> None:
    config = tiny_config(**RUNS[name])
    session = local_session(run_dir, config, test_batch_size=3, rank=rank, world_size=world_size)
    run_training(config, SHAPE, NUM_STEPS, session)


def train_on_text(run_dir: Path, rank: int = 0, world_size: int = 1) -> None:
    """Two steps from the first weights on, then an evaluation of rows that cannot be halved."""
    config, data = tiny_config(**supervised(arch=TEXT_ARCH, global_batch_size=7, log_interval=2)), texts(7, 12)
    held_out = texts(7, 12, seed=1, labelled=0.2)
    session = local_session(run_dir, config, data, test=held_out, test_batch_size=2, rank=rank, world_size=world_size)
    text = TextMeasure(torch.arange(257) % 5, whole_rows=True)
    run_training(config, text_shape(12), 2, replace(session, text=text))


def exchange(session: Session) -> dict[str, Any]:
    """Sums and rows of known tensors, as this rank sees them after the exchange."""
    scalar, table = torch.tensor(1.0 + session.rank), torch.arange(6.0).view(2, 3).T * (session.rank + 1)
    session.sum_over_ranks(scalar, table)
    rows = torch.arange(12).view(4, 3)
    dtypes = (torch.float32, torch.bfloat16, torch.int32, torch.bool)
    gathered = {
        str(t): session.gather_rows(session.own_rows(rows % 2 if t == torch.bool else rows).to(t), 4) for t in dtypes
    }
    odd = torch.arange(10).view(5, 2)
    gathered["odd"] = session.gather_rows(session.own_rows(odd), 5)
    return {"scalar": scalar, "table": table, "own": session.own_rows(rows), **gathered}


def begin_work(rank: int, folder: Path, world_size: int) -> None:
    """Meet the other processes."""
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder / 'meeting'}", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=patience)


def work(rank: int, folder: Path) -> None:
    begin_work(rank, folder, world_size=2)
    jobs: dict[str, Callable[[], Any]] = {
        name: lambda name=name: train(name, folder / name, rank, 2)  # type: ignore[misc]
        for name in RUNS
    }
    session = local_session(folder / "exchange", tiny_config())
    jobs["exchange"] = lambda: torch.save(exchange(session), folder / "exchange" / f"{rank}.pt")
    jobs["text"] = lambda: train_on_text(folder / "text", rank, 2)
    for name, job in jobs.items():
        try:
            job()
        except Exception:  # told to the test of this job; the other jobs have tests of their own
            (folder / name / "error.txt").write_text(traceback.format_exc())
    dist.destroy_process_group()
