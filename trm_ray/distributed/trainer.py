"""One run on one or more Ray workers, by Ray Train's `TorchTrainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.train import DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback, WorkerGroupError

from trm_ray.config.surroundings import environment
from trm_ray.distributed import VERBOSE, ray_internals
from trm_ray.distributed.cluster import RoomWatch, check_resources, ray_cluster, worker_resources
from trm_ray.distributed.dataset import load_split, ray_storage
from trm_ray.distributed.elastic import SavesBeforeResize
from trm_ray.distributed.surroundings import StartError
from trm_ray.distributed.waiting import TellsOfWorkers, WorkerWatch, await_worker, wait_beside
from trm_ray.distributed.worker import TrainSession, TrialTrainSession, train_worker
from trm_ray.runs.folder import is_finished, start_step
from trm_ray.runs.plan import RunPlan
from trm_ray.storage import StorageError, remove_tree
from trm_ray.training.optim import NonFiniteError
from trm_ray.training.stopping import STOP_FILE, Interrupted, StopFile, StopSignals, stopped_after

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# Ray Train keeps its own notes here. The run's folder is the truth, so they are thrown away before every start: a torn
# one would stop a resume.
NOTES = ".ray"

_LOG = logging.getLogger("trm_ray")


def train_on_ray(
    plan: RunPlan,
    tell: Callable[[str], None] = _LOG.warning,
    session_type: type[TrainSession] = TrainSession,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train a run on Ray workers and return its last evaluation.

    Args:
        tell: takes a line when the run waits for nodes.
        begin: is called when nothing but training can fail any more: begins to write the run's folder.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came, and the workers have saved the step that was under way.
    """
    _ = plan.holds_train  # a split that can be read neither way is refused at once
    stop_file = plan.folder / STOP_FILE
    # Signals are taken over once Ray is there, since its start takes SIGTERM.
    with ray_cluster(plan.config.ray.address), StopSignals(stop_file):
        check_resources(plan.config)
        with RoomWatch(plan.config, lambda: 1, tell):
            look = stop_check(plan, stop_file)
            await_worker(plan.config.ray.start_timeout_s, look)
            train, test = wait_beside(lambda: load_splits(plan), look)
            begin()
            trainer = build_trainer(plan, train, test, stop_file, session_type=session_type)
            evaluation = outcome_of(trainer, plan, stop_file)
        if not is_finished(plan, step := start_step(plan)):
            raise stopped_after(step)
        return evaluation


def stop_check(plan: RunPlan, stop_file: Path) -> Callable[[], None]:
    """Build what raises `Interrupted` once a run is asked to stop while no worker could answer to that."""
    requested = StopFile(stop_file).requested

    def look() -> None:
        if requested():
            raise stopped_after(start_step(plan))

    return look


def load_splits(plan: RunPlan) -> tuple[Any, Any]:
    """Hold a run's data in the object store: the test split, and the train split unless it is read in chunks."""
    train = load_split(plan.train_paths, "train") if plan.holds_train else None
    return train, load_split(plan.test_paths, "test")


def outcome_of(trainer: TorchTrainer, plan: RunPlan, stop_file: Path) -> dict[str, float]:
    """Train, and return the last evaluation or raise what keeps the run from going on.

    Raises:
        StartError: there was room for workers, and none came up.
        Interrupted: the run was asked to stop while there was none that could answer.
    """
    (callback,) = (one for one in trainer.run_config.callbacks if isinstance(one, TellsOfWorkers))
    watch = WorkerWatch(callback, plan.config.ray.start_timeout_s, stop_check(plan, stop_file))
    # One of Ray Train's processes, which gives back what an ended run held, looks its cluster up on the machine, and
    # where there are several it takes the latest: it would give back what a living run holds, or nothing at all.
    ray_internals.propagate("RAY_ADDRESS")
    try:
        # Not in the other thread, which lives on for a while where this one gives up.
        with environment({"RAY_ADDRESS": ray.get_runtime_context().gcs_address}):
            return wait_beside(lambda: _fit(trainer), watch.look)
    except (StartError, Interrupted):
        watch.give_up()
        raise


def _fit(trainer: TorchTrainer) -> dict[str, float]:
    try:
        outcome: dict[str, float] | NonFiniteError = trainer.fit().return_value
    except WorkerGroupError as error:
        raise _cause_of(error) from error
    if isinstance(outcome, NonFiniteError):
        raise outcome
    return outcome


def _cause_of(error: WorkerGroupError) -> Exception:
    """Find what a user can do something about in what the workers died of; without it, all of it."""
    for failure in error.worker_failures.values():
        cause = ray_internals.raised_by_worker(failure)
        if isinstance(cause, (NonFiniteError, StorageError, OSError, ValueError)):
            return cause
    return error


def build_trainer(
    plan: RunPlan,
    train: Any,
    test: Any,
    stop_file: Path,
    callbacks: Sequence[UserCallback] = (),
    session_type: type[TrainSession] = TrialTrainSession,
) -> TorchTrainer:
    """Build the trainer of a run: all workers get both splits whole; a train split too large for that they read.

    Args:
        stop_file: asks the workers to save and stop as soon as it is there.
    """
    from ray.train.torch import TorchTrainer  # half a CPU-second that trials of one worker need not pay

    remove_tree(plan.folder / NOTES, ignore_errors=True)
    options = ray.data.ExecutionOptions(preserve_order=True)  # evaluations sum the same batches in every run
    return TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "stop_file": stop_file, "session_type": session_type},
        scaling_config=ScalingConfig(
            num_workers=plan.config.ray.num_workers,
            use_gpu=plan.config.ray.use_gpu,
            resources_per_worker=worker_resources(plan.config),
            placement_strategy=plan.config.ray.placement_strategy,
            elastic_resize_monitor_interval_s=plan.config.ray.resize_check_s,
        ),
        datasets={"test": test} if train is None else {"train": train, "test": test},
        dataset_config=DataConfig(datasets_to_split=[], execution_options=options),
        run_config=RunConfig(
            name=NOTES,
            **ray_storage(plan.folder),
            failure_config=FailureConfig(max_failures=plan.config.ray.failures_allowed),
            callbacks=[
                TellsOfWorkers(),
                *callbacks,
                *([SavesBeforeResize(plan.folder)] if plan.config.ray.is_elastic else []),
            ],
            logging_config=LoggingConfig(log_level="INFO" if VERBOSE else "CRITICAL"),
        ),
    )
