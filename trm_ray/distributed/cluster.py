"""Start Ray on this machine or join a cluster, and say early what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from trm_ray.config import Config, ConfigError
from trm_ray.distributed import VERBOSE

# One machine needs no other network interface than its own, and Ray's ports are not to be reached from outside.
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# A training run on one machine has no node that could be preempted.
_NO_PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, else start one on this machine; leave it in the end.

    The dashboard stays on: without it Ray Train cannot give back the resources of a trial that is stopped early.
    """
    if ray.is_initialized():  # a caller's session, such as the tests', which it will end itself
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        os.environ.setdefault(_LOOPBACK_ONLY, "0")
        os.environ.setdefault(_NO_PREEMPTION, "0")
    quiet = {} if VERBOSE else {"logging_level": "ERROR", "log_to_driver": False}
    if not VERBOSE:
        quiet["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    ray.init(address=address, **quiet)
    ray.data.DataContext.get_current().enable_progress_bars = VERBOSE
    try:
        yield
    finally:
        ray.shutdown()


def worker_resources(config: Config) -> dict[str, float]:
    """Give what one worker asks for."""
    gpus = {"GPU": config.ray.gpus_per_worker} if config.ray.use_gpu else {}
    return {"CPU": config.ray.cpus_per_worker, **gpus}


def check_resources(config: Config, option: str = "ray.num_workers") -> None:
    """Refuse workers that this machine can never run; a cluster may still grow.

    Args:
        option: what the user sets their number with.

    Raises:
        ConfigError: they ask for more CPUs or GPUs than there are.
    """
    if len(ray.nodes()) > 1 or config.ray.address or os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources()
    for kind, amount in worker_resources(config).items():
        needed, key = amount * config.ray.num_workers, f"ray.{kind.lower()}s_per_worker"
        if needed > there.get(kind, 0):
            raise ConfigError(
                f"{option}={config.ray.num_workers} with {key}={amount:g} needs {needed:g} {kind}s, this "
                f"machine has {there.get(kind, 0):g}; use fewer workers, a smaller {key}, or {option}=0 to do "
                f"without Ray"
            )
