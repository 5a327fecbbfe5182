"""One run on one or more Ray workers, by Ray Train's `TorchTrainer`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import ray.data
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from trm_ray.distributed import VERBOSE
from trm_ray.distributed.cluster import check_resources, ray_cluster, worker_resources
from trm_ray.distributed.dataset import load_split
from trm_ray.distributed.worker import train_worker
from trm_ray.run import RunPlan

# Ray Train keeps its own notes here. The run's folder is the truth, so they are thrown away before every start: a torn
# one would stop a resume.
NOTES = ".ray"


def train_on_ray(plan: RunPlan) -> dict[str, float]:
    """Train a run on Ray workers and return its last evaluation."""
    with ray_cluster(plan.config.ray.address):
        check_resources(plan.config)
        train = load_split(plan.train_paths, "train", plan.config.ray.num_workers)
        result = build_trainer(plan, train, load_split(plan.test_paths, "test")).fit()
        evaluation: dict[str, float] = result.return_value
        return evaluation


def build_trainer(plan: RunPlan, train: Any, test: Any, callbacks: Sequence[UserCallback] = ()) -> TorchTrainer:
    """Build the trainer of a run: the train split is dealt out to the workers, the test split goes to all whole."""
    shutil.rmtree(plan.folder / NOTES, ignore_errors=True)
    options = ray.data.ExecutionOptions(preserve_order=True)  # the same shards in every run
    return TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan},
        scaling_config=ScalingConfig(
            num_workers=plan.config.ray.num_workers,
            use_gpu=plan.config.ray.use_gpu,
            resources_per_worker=worker_resources(plan.config),
        ),
        datasets={"train": train, "test": test},
        dataset_config=DataConfig(datasets_to_split=["train"], execution_options=options),
        run_config=RunConfig(
            name=NOTES,
            storage_path=str(plan.folder),
            failure_config=FailureConfig(max_failures=plan.config.ray.max_failures),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="INFO" if VERBOSE else "CRITICAL"),
        ),
    )
