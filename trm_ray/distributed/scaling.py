"""The Ray half of `trm-ray bench scaling`: a run whose workers train in turns with a run without Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

from trm_ray.config import Config, with_overrides
from trm_ray.distributed.worker import TrainSession
from trm_ray.runs.turns import TurnSession


@dataclass(frozen=True)
class TurnTrainSession(TurnSession, TrainSession):
    """A worker of a `TorchTrainer` that trains in turns."""


def sharing_cpus(config: Config) -> Config:
    """Let workers share CPUs where there are fewer of them. Ray must have been started."""
    there = ray.cluster_resources().get("CPU", 1.0)
    # Ray counts in ten-thousandths.
    share = int(10_000 * there / max(1, config.ray.num_workers)) / 10_000
    return with_overrides(config, {"ray.cpus_per_worker": min(config.ray.cpus_per_worker, share)})


def worker_niceness() -> int:
    """Ask a worker of Ray how far it steps back for other processes of its machine (`nice`). Ray must be started."""
    niceness: int = ray.get(ray.remote(num_cpus=0)(lambda: os.nice(0)).remote())
    return niceness
