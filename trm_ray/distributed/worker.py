"""What runs on a Ray worker: the same `execute` as without Ray, with a session that reports to its launcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray.train
import ray.train.torch
from ray import tune

from trm_ray.data.stream import Shard, fits_in_memory
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
    """Train as one worker of a `TorchTrainer`, on its slice of each batch and its share of the test split."""
    plan: RunPlan = settings["plan"]
    source = ray.train.get_dataset_shard("train")
    return execute(
        plan,
        train=read_rows(source) if settings["whole"] else _shard(plan, source),
        test_rows=read_rows(ray.train.get_dataset_shard("test")),
        device=ray.train.torch.get_device(),
        session_type=TrainSession,
    )


def _shard(plan: RunPlan, source: Any) -> Shard:
    # `streaming_split` gives every worker equally many rows and drops the remainder.
    num_workers = max(1, plan.config.ray.num_workers)
    return Shard(lambda: iter_rows(source), plan.info.split("train").rows // num_workers)


def train_trial(plan: RunPlan, train: Any, test: Any) -> dict[str, float]:
    """Train as a Tune trial of one worker."""
    return execute(
        plan,
        train=read_rows(train) if fits_in_memory(plan.info, "train") else _shard(plan, train),
        test_rows=read_rows(test),
        device=choose_device(plan.config),
        session_type=TuneSession,
    )
