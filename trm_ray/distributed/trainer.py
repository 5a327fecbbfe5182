"""One run on one or more Ray workers, by Ray Train's `TorchTrainer`."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray.data
from ray.train import (
    DataConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from trm_ray.data.stream import fits_in_memory
from trm_ray.distributed import VERBOSE
from trm_ray.distributed.cluster import check_resources, ray_cluster, worker_resources
from trm_ray.distributed.dataset import load_split
from trm_ray.distributed.worker import train_worker
from trm_ray.run import RunPlan
from trm_ray.training.optim import NonFiniteError

# Ray Train keeps its own notes here. The run's folder is the truth, so they are thrown away before every start: a torn
# one would stop a resume.
NOTES = ".ray"


def train_on_ray(plan: RunPlan) -> dict[str, float]:
    """Train a run on Ray workers and return its last evaluation."""
    fits_in_memory(plan.info, "train")  # a split that can neither be held whole nor dealt out is refused at once
    with ray_cluster(plan.config.ray.address):
        check_resources(plan.config)
        train = load_split(plan.train_paths, "train", plan.config.ray.num_workers)
        trainer = build_trainer(plan, train, load_split(plan.test_paths, "test"))
        try:
            with _interrupts_as_python_has_them():
                evaluation: dict[str, float] = trainer.fit().return_value
        except WorkerGroupError as error:
            raise told_cause(error) from error
        return evaluation


@contextmanager
def _interrupts_as_python_has_them() -> Iterator[None]:
    """Turn what `fit` makes of Ctrl-C, an exit with code 0 after the workers have stopped, into an interrupt."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main_thread else None
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


def told_cause(error: WorkerGroupError) -> Exception:
    """Find what a user can do something about in what the workers died of; without it, all of it."""
    for failure in error.worker_failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, (NonFiniteError, ValueError)):
            return cause
    return error


def build_trainer(plan: RunPlan, train: Any, test: Any, callbacks: Sequence[UserCallback] = ()) -> TorchTrainer:
    """Build the trainer of a run: all workers get both splits whole; a train split too large for that is dealt out."""
    shutil.rmtree(plan.folder / NOTES, ignore_errors=True)
    whole = fits_in_memory(plan.info, "train")
    options = ray.data.ExecutionOptions(preserve_order=True)  # the same shards in every run
    return TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "whole": whole},
        scaling_config=ScalingConfig(
            num_workers=plan.config.ray.num_workers,
            use_gpu=plan.config.ray.use_gpu,
            resources_per_worker=worker_resources(plan.config),
        ),
        datasets={"train": train, "test": test},
        dataset_config=DataConfig(datasets_to_split=[] if whole else ["train"], execution_options=options),
        run_config=RunConfig(
            name=NOTES,
            storage_path=str(plan.folder),
            failure_config=FailureConfig(max_failures=plan.config.ray.max_failures),
            callbacks=list(callbacks),
            logging_config=LoggingConfig(log_level="INFO" if VERBOSE else "CRITICAL"),
        ),
    )
