"""Kill a process of Ray's on purpose, on whichever node it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors


class _Killer:
    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def killing(actor: str, due: Callable[[], bool], note: Callable[[], None]) -> Iterator[None]:
    """Kill the process of one actor with SIGKILL as soon as it is due.

    Args:
        actor: its class's name.
        due: asked every few milliseconds.
        note: called in another thread right after the kill.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_hunt, args=(actor, due, note, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _hunt(actor: str, due: Callable[[], bool], note: Callable[[], None], ended: threading.Event) -> None:
    killers = {node["NodeID"]: _killer_on(node["NodeID"]) for node in ray.nodes() if node["Alive"]}
    address = ray.get_runtime_context().gcs_address  # not found by itself where several clusters run
    try:
        victim = None
        while victim is None and not ended.wait(0.1):
            alive = list_actors(address, [("state", "=", "ALIVE"), ("class_name", "=", actor)])
            victim = next((one for one in alive if one.pid), None)
        while not due() and not ended.is_set():
            time.sleep(0.002)
        if victim is not None and not ended.is_set():
            ray.get(killers[victim.node_id].kill.remote(victim.pid))
            note()
    finally:
        for killer in killers.values():
            ray.kill(killer)


def _killer_on(node: str) -> Any:
    """Start a process on a node that can kill others there; it is ready before it is needed."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    killer: Any = ray.remote(num_cpus=0, scheduling_strategy=strategy)(_Killer).remote()
    return killer
