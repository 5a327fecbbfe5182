"""A run on text whose held-out rows two processes cannot halve, in test_session.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from helpers import TEXT_ARCH, local_session, supervised, text_shape, texts, tiny_config

from trm_ray.training.loop import run_training
from trm_ray.training.text import TextMeasure


def train_on_text(run_dir: Path, rank: int = 0, world_size: int = 1) -> None:
    """Take two steps from the first weights on, and evaluate."""
    config, data = tiny_config(**supervised(arch=TEXT_ARCH, global_batch_size=7, log_interval=2)), texts(7, 12)
    held_out = texts(7, 12, seed=1, labelled=0.2)
    session = local_session(run_dir, config, data, test=held_out, test_batch_size=2, rank=rank, world_size=world_size)
    text = TextMeasure(torch.arange(257) % 5, whole_rows=True)
    run_training(config, text_shape(12), 2, replace(session, text=text))
