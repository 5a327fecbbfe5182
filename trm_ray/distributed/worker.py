"""What runs on a Ray worker: the same `execute` as without Ray, with a session that reports to its launcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.train
import ray.train.torch
from ray import tune

from trm_ray.distributed.dataset import iter_rows, read_rows
from trm_ray.run import RunPlan, choose_device, execute
from trm_ray.training.session import Session


class TrainSession(Session):
    """A worker of a `TorchTrainer`; ranks and sums over them come from its process group."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report to the trainer's controller. Checkpoints already lie in the run's folder, which resumes find."""
        ray.train.report({"step": step, **metrics})


class TuneSession(Session):
    """A trial that trains in its own process."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report to the scheduler, which may stop the trial here."""
        tune.report({"step": step, **metrics})


def train_worker(settings: Mapping[str, Any]) -> dict[str, float]:
    """Train as one worker of a `TorchTrainer`, on its shard of the train split and its share of the test split."""
    plan: RunPlan = settings["plan"]
    shard = ray.train.get_dataset_shard("train")
    return execute(
        plan,
        train_chunks=lambda: iter_rows(shard),
        # `streaming_split` gives every worker equally many rows and drops the remainder.
        num_rows=plan.info.split("train").rows // ray.train.get_context().get_world_size(),
        test_rows=read_rows(ray.train.get_dataset_shard("test")),
        device=ray.train.torch.get_device(),
        session_type=TrainSession,
    )


def train_trial(plan: RunPlan, train: Any, test: Any) -> dict[str, float]:
    """Train as a Tune trial of one worker."""
    return execute(
        plan,
        train_chunks=lambda: iter_rows(train),
        num_rows=plan.info.split("train").rows,
        test_rows=read_rows(test),
        device=choose_device(plan.config),
        session_type=TuneSession,
    )
