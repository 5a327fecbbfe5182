"""What `trm-ray selftest` does to Ray on purpose, and what it counts afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors, list_placement_groups, list_workers

from trm_ray.distributed import ray_internals
from trm_ray.distributed.surroundings import own_cluster


class LocalNodes:
    """A cluster of this machine's processes: a head without CPUs, and nodes of one CPU each that can be lost and added.

    Nodes must be added by the main thread, for Ray sets a signal handler; a run then trains in another one.
    """

    def __init__(self, num_nodes: int):
        self._own = ExitStack()
        self._own.enter_context(own_cluster())
        self._place = tempfile.mkdtemp(prefix="nodes-")  # short, for sockets; where nobody looks for a cluster to join
        # Without a dashboard Ray Train does not give back what lost workers held.
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port(), "temp_dir": self._place}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, **ray_internals.LOST_SOON})
        self.address: str = self._cluster.address
        self._nodes: list[Any] = []
        for _ in range(num_nodes):
            self.add()

    def __enter__(self) -> LocalNodes:
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()
        if ray.is_initialized():
            ray_internals.find_notes_again()
        self._own.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def add(self) -> None:
        """Start a node."""
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def lose(self) -> None:
        """Kill the node that was added last, with all that runs on it."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def announce_loss(self, seconds: float) -> None:
        """Give notice of the loss of the node that was added last, as a cloud does for a spot machine."""
        ray_internals.announce_preemption(self.address, self._nodes[-1].node_id, seconds)


def free_port() -> int:
    """Find a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


@dataclass(frozen=True)
class Inventory:
    """What lives in a cluster: worker processes and placement groups on all nodes, runs' temporary files here."""

    processes: int
    placement_groups: int
    temporary_files: int

    @classmethod
    def take(cls) -> Inventory:
        """Count; Ray's own logs do not."""
        address = ray.get_runtime_context().gcs_address  # not found by itself where several clusters run
        alive: dict[str, Any] = {"limit": 10_000, "raise_on_missing_output": False}
        processes = list_workers(address, [("is_alive", "=", True)], **alive)
        groups = list_placement_groups(address, [("state", "!=", "REMOVED")], **alive)
        artifacts = ray_internals.session_dir() / "artifacts"
        files = [path for path in artifacts.rglob("*") if path.is_file()]
        return cls(len(processes), len(groups), len(files))

    def more_than(self, before: Inventory) -> dict[str, int]:
        """Say of what there is more than before."""
        now, then = vars(self), vars(before)
        return {name: now[name] - then[name] for name in now if now[name] > then[name]}
