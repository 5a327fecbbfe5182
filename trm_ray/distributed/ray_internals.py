"""Every use of Ray's private parts, in one file: what another release of Ray breaks, it breaks here.

Tested with Ray 2.60.0, the one of `jobs/constraints.txt`; `tests/distributed/test_ray_internals.py` says what another
release lacks: 2.56.0 nothing but the news of a preemption. The only other file that names private parts is
`quiet_data.yaml`, which Ray Data reads.

An import of this file costs no more than `import ray`: Ray Train, a second of it, comes in with what needs it, which
`trm-ray jobs` does not.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray._private import ray_constants, services
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.experimental import internal_kv
from ray.job_config import JobConfig

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.callback import ControllerCallback as ControllerCallback
else:

    def __getattr__(name: str) -> Any:
        """Import `ControllerCallback`: it hears of the controller's states, of which a public callback does not."""
        if name != "ControllerCallback":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ray.train.v2._internal.execution.callback import ControllerCallback

        return ControllerCallback


# ---- a cluster of this machine -----------------------------------------------------------------------------


def reread_environment() -> None:
    """Let Ray's processes that start here have the settings of now: Ray has read them when it was imported."""
    ray._raylet.Config.initialize("")


@contextmanager
def on_loopback(only: bool) -> Iterator[None]:
    """Keep all doors of a cluster that starts meanwhile on 127.0.0.1: Ray read that setting when it was imported."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not only
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def new_process_session() -> Iterator[None]:
    """Start Ray's processes meanwhile in a session of their own, which `ray.init` has no option for."""
    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = before


def job_config(module_places: list[str]) -> JobConfig:
    """Say where workers look for modules first; Ray extends the list, and has no option to leave places out."""
    config = JobConfig()
    config._py_driver_sys_path = module_places  # as an argument, an empty list would be replaced by Ray's own
    return config


def webui_url() -> str:
    """Name the dashboard's address, empty if it did not start. What `ray.init` returns does not always tell that."""
    return str(_node().address_info["webui_url"] or "")


def logs_dir() -> str:
    """Name the folder of this machine in which Ray's processes write logs; only who calls `ray.init` is told where."""
    return str(_node().get_logs_dir_path())


def session_dir() -> Path:
    """Name the folder of this machine for the cluster's temporary files, as `logs_dir` does for logs."""
    return Path(_node().get_session_dir_path())


def _node() -> Any:
    return ray._private.worker._global_node  # at the time of the call: None until Ray has started


def store_bytes() -> tuple[int, int]:
    """Tell how much the cluster's object stores hold, and how much they have spilled to disk so far."""
    from ray._private import internal_api, state

    stats = internal_api.get_memory_info_reply(state.state).store_stats
    return int(stats.object_store_bytes_used), int(stats.spilled_bytes_total)


# ---- the cluster's notes, groups and actors ----------------------------------------------------------------


def write_note(key: str, text: str) -> None:
    """Keep a text in the cluster's memory. Ray's public way to share a value is an actor, which needs a process."""
    internal_kv._internal_kv_put(key, text, overwrite=True)


def read_note(key: str) -> bytes | None:
    """Read what `write_note` has kept, in whichever process."""
    note: bytes | None = internal_kv._internal_kv_get(key)
    return note


def forget_note(key: str) -> None:
    """Remove what `write_note` has kept."""
    internal_kv._internal_kv_del(key)


def find_notes_again() -> None:
    """Look for notes in this process's own cluster, which Ray forgets when any other cluster of the process ends."""
    internal_kv._initialize_internal_kv(ray._private.worker.global_worker.gcs_client)


@dataclass(frozen=True)
class Group:
    """A placement group: CPUs and GPUs that are asked for at once.

    Args:
        job: the program that asked for them, as Ray's runtime context numbers it.
        actor: which of its actors did; empty for the program itself.
        is_held: whether they are reserved by now.
    """

    id: bytes
    job: str
    actor: str
    is_held: bool


def placement_groups() -> list[Group]:
    """List all placement groups. Ray's public table leaves out who asked for them."""
    table = ray._private.state.state._connect_and_get_accessor().get_placement_group_table()
    groups = map(gcs_pb2.PlacementGroupTableData.FromString, table)
    held = gcs_pb2.PlacementGroupTableData.CREATED
    return [
        Group(group.placement_group_id, group.creator_job_id.hex(), group.creator_actor_id.hex(), group.state == held)
        for group in groups
    ]


def kill_controller(actor: str) -> None:
    """Kill an actor by its number for good: `ray.kill` wants a handle, and Ray Train keeps its controller's."""
    ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor), True)


# A resource of the head node alone, for what must not run on a machine that may be taken away.
HEAD_NODE = "node:__internal_head__"


# ---- Ray Train ---------------------------------------------------------------------------------------------

# What Ray Train's controller calls the states in which it has no workers, its last ones, and a change of their number.
WITHOUT_WORKERS = ("INITIALIZING", "SCHEDULING", "RESCHEDULING", "RESTARTING")
ENDED = ("ERRORED", "FINISHED", "ABORTED")
RESIZING = "RESIZING"


def state_name(controller_state: Any) -> str:
    """Name the state that a `ControllerCallback` is given."""
    return str(controller_state._state_type.state_name)


def propagate(variable: str) -> None:
    """Let all processes of Ray Train have an environment variable of this one; its options reach workers alone."""
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.add(variable)


def is_preempted() -> bool:
    """Tell whether Ray has told this worker that a node of the run is being preempted.

    Ray's own `get_preemption_info` makes all workers wait for each other; ours ask once a step and agree by themselves.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    context = getattr(get_train_context(), "preemption_context", None)  # older releases of Ray tell nothing
    return context is not None and context.preemption_info is not None


def raised_by_worker(failure: Exception) -> Exception:
    """Unwrap what a worker raised, of which Ray Train shows the traceback alone."""
    cause: Exception = getattr(failure, "_base_exc", failure)
    return cause


# ---- the job server ----------------------------------------------------------------------------------------

# Loggers that tell of each request and upload.
TALKATIVE_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class AroundRequests:
    """Put before `JobSubmissionClient` as a base class, lets it do something around each of its requests."""

    def around_request(self) -> AbstractContextManager[object]:
        """Open what a request is made in."""
        raise NotImplementedError

    def _do_request(self, *words: Any, **options: Any) -> Any:
        client: Any = super()
        with self.around_request():
            return client._do_request(*words, **options)


# ---- faults on purpose -------------------------------------------------------------------------------------

# Options of a head node that believes within ten seconds that a node is lost; Ray takes half a minute.
LOST_SOON = {
    "_system_config": {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 10_000,
    }
}


def announce_preemption(address: str, node: str, seconds: float) -> None:
    """Give the notice that a cloud gives before it takes a spot machine away, as `ray drain-node` does.

    Args:
        address: the cluster's.
        node: the machine's number.
        seconds: how long it is still there.
    """
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int(1000 * (time.time() + seconds))
    accepted, refusal = ray._raylet.GcsClient(address=address).drain_node(node, reason, "selftest", deadline_ms)
    assert accepted, refusal
