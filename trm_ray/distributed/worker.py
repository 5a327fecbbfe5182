"""What runs on a Ray worker: the same `execute` as without Ray, with a session that reports to its launcher."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
from ray import tune

from trm_ray.distributed.dataset import read_in_order, read_rows
from trm_ray.distributed.elastic import RESIZE_FILE
from trm_ray.distributed.gauges import RunGauges
from trm_ray.distributed.ray_internals import is_preempted
from trm_ray.runs.execute import choose_device, execute
from trm_ray.runs.plan import RunPlan
from trm_ray.training.checkpoint import latest_checkpoint
from trm_ray.training.optim import NonFiniteError
from trm_ray.training.session import Depths, Session
from trm_ray.training.stopping import Interrupted, StopFile

_WAIT_S = 0.5


@dataclass(frozen=True)
class RaySession(Session):
    """What is common to all: the rows that are logged also go to the node's Prometheus endpoint."""

    gauges: RunGauges = field(kw_only=True)

    def log(self, step: int, wall_s: float, metrics: Mapping[str, float], depths: Depths | None = None) -> None:
        """Write one row of metrics and show it, from rank 0 only."""
        super().log(step, wall_s, metrics, depths)
        if self.rank == 0:
            self.gauges.show(step, metrics)


class TrainSession(RaySession):
    """A worker of a `TorchTrainer`; ranks and sums over them come from its process group."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report to the trainer's controller. Checkpoints already lie in the run's folder, which resumes find."""
        ray.train.report({"step": step, **metrics})


class TrialTrainSession(TrainSession):
    """A worker of a `TorchTrainer` that is a trial."""

    awaits_checkpoints = True


class TuneSession(RaySession):
    """A trial that trains in its own process."""

    awaits_checkpoints = True

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report to the scheduler, which may stop the trial here."""
        tune.report({"step": step, **metrics})


def train_worker(settings: Mapping[str, Any]) -> dict[str, float] | NonFiniteError:
    """Train as one worker of a `TorchTrainer`, on its slice of each batch and its share of the test split.

    A worker that has saved because a node is about to be taken away waits: when that time is over, Ray Train ends all
    workers and starts them anew elsewhere, which is not charged to `ray.max_failures` as an error would be.

    Returns:
        The last evaluation; nothing where the run was asked to stop. That is no failure for Ray to try again after, and
        neither is a loss that is not finite, which is returned: it would come again.
    """
    import ray.train.torch  # half a CPU-second that trials of one worker need not pay

    plan: RunPlan = settings["plan"]
    context: Any = ray.train.get_context()
    stop_file = StopFile(settings["stop_file"])
    resize_file = StopFile(plan.folder / RESIZE_FILE) if plan.config.ray.is_elastic else None

    def resizing() -> bool:
        return resize_file is not None and resize_file.requested()

    try:
        evaluation = execute(
            plan,
            latest_checkpoint(plan.folder, verified=True) if context.get_world_rank() == 0 else None,
            read_train=lambda: read_rows(ray.train.get_dataset_shard("train")),
            in_order=read_in_order,
            test_rows=read_rows(ray.train.get_dataset_shard("test")),
            device=ray.train.torch.get_device(),
            session_type=partial(settings["session_type"], gauges=RunGauges(plan)),
            stop_requested=lambda: stop_file.requested() or resizing() or is_preempted(),
        )
        _answer(plan)
        return evaluation
    except NonFiniteError as error:  # all workers come to it at the same step
        return error
    except Interrupted:
        _answer(plan)
        while not (stop_file.requested() or resizing()):
            time.sleep(_WAIT_S)
        return {}


def _answer(plan: RunPlan) -> None:
    """Tell who waits to start another number of workers that all is saved."""
    if plan.config.ray.is_elastic and ray.train.get_context().get_world_rank() == 0:  # who has written it
        with suppress(OSError):  # then it is waited for longer
            (plan.folder / RESIZE_FILE).unlink(missing_ok=True)


def train_trial(plan: RunPlan, latest: Path | None, train: Any, test: Any, stop_file: Path) -> None:
    """Train as a Tune trial of one worker, on from its latest checkpoint, until it ends or is asked to stop."""
    return_free_memory()
    with suppress(Interrupted):
        execute(
            plan,
            latest,
            read_train=partial(read_rows, train),
            in_order=read_in_order,
            test_rows=read_rows(test),
            device=choose_device(plan.config),
            session_type=partial(TuneSession, gauges=RunGauges(plan)),
            stop_requested=StopFile(stop_file).requested,
        )


def return_free_memory() -> None:
    """Return to the system what this process has freed, where its C library can.

    Tune runs each trial in a thread of its own, and glibc keeps the memory of ended threads in a heap each: a process
    that takes over trial after trial would grow by some 100 MB with every one.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
