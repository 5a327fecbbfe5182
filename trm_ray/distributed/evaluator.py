"""Numbered pieces of work on several Ray workers, each of which opens the same thing once: how a model is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import ray
from ray.util import ActorPool

from trm_ray.config import Config
from trm_ray.distributed.cluster import check_resources, ray_cluster, worker_resources
from trm_ray.distributed.waiting import await_worker

Result = TypeVar("Result")


class _Worker:
    def __init__(self, opened: Callable[[], Callable[[int], object]]):
        self._measure = opened()

    def measure(self, number: int) -> object:
        return self._measure(number)


def map_on_ray(
    opened: Callable[[], Callable[[int], Result]], count: int, config: Config, num_workers: int
) -> Iterator[Result]:
    """Yield the results for the numbers below `count` in their order, computed by whichever worker is free.

    Args:
        opened: called once on each worker; what it returns is called with the numbers.
        config: its `ray` section says what a worker asks for.

    Raises:
        ConfigError: this machine has too few CPUs or GPUs for the workers.
    """
    workers = config.ray.model_copy(update={"num_workers": num_workers})
    with ray_cluster(config.ray.address):
        check_resources(config.model_copy(update={"ray": workers}), "--workers")
        await_worker(config.ray.start_timeout_s, lambda: None)
        asked = worker_resources(config)
        actor = ray.remote(num_cpus=asked["CPU"], num_gpus=asked.get("GPU", 0))(_Worker)
        actors = [actor.remote(opened) for _ in range(num_workers)]
        try:
            yield from ActorPool(actors).map(lambda worker, number: worker.measure.remote(number), range(count))
        finally:
            for one in actors:
                ray.kill(one)
