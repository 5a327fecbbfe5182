"""Tasks that make files, run by Ray Data: each is to do nothing where its file is there, and may run twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trm_ray.data.rows import DatasetError
from trm_ray.distributed.cluster import ray_cluster

_Run = Callable[[Callable[[Any], None], Sequence[Any]], Iterator[int]]


@contextmanager
def task_runner(workers: int, *, here: bool) -> Iterator[_Run]:
    """Lend what calls a function with each of some items in `workers` processes, and yields when one is done.

    Ray starts when there are items for the first time, and runs until the end.

    Args:
        here: on this machine alone, whose files the others do not have.

    Raises:
        DatasetError: as the first task that did.
    """
    with ExitStack() as until_the_end:
        start = cache(lambda: until_the_end.enter_context(ray_cluster(None)))

        def run(do: Callable[[Any], None], items: Sequence[Any]) -> Iterator[int]:
            if items:
                start()
                yield from _run_all(workers, here, do, items)

        yield run


def _run_all(workers: int, here: bool, do: Callable[[Any], None], items: Sequence[Any]) -> Iterator[int]:
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    where = {"scheduling_strategy": node} if here else {}
    numbers = ray.data.from_items(list(range(len(items))), override_num_blocks=len(items))
    done = numbers.map_batches(
        _Task(do, items), batch_size=None, compute=ray.data.TaskPoolStrategy(size=workers), **where
    )
    for block in done.iter_batches(batch_size=None, batch_format="numpy"):
        for error in block["error"].tolist():
            if error:
                raise DatasetError(error)
            yield 1


class _Task:
    """What Ray Data runs of each item; an error of the user's is a result, for Ray would tell it in many lines."""

    def __init__(self, do: Callable[[Any], None], items: Sequence[Any]):
        self._do, self._items = do, items

    def __call__(self, numbers: dict[str, np.ndarray]) -> dict[str, list[str]]:
        return {"error": [self._error(int(number)) for number in numbers["item"]]}

    def _error(self, number: int) -> str:
        try:
            self._do(self._items[number])
        except DatasetError as error:
            return str(error)
        return ""
