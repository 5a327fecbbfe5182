"""Waiting for workers: not for ever, in the knowledge of what is waited for, and open to a request to stop."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.core.generated import gcs_pb2
from ray.exceptions import RpcError
from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from trm_ray.distributed.cluster import logs_folder
from trm_ray.distributed.surroundings import StartError

_LOOK_EVERY_S = 0.5
# What Ray Train's controller calls the times in which it has no workers.
_WITHOUT_WORKERS = ("INITIALIZING", "SCHEDULING", "RESCHEDULING", "RESTARTING")
_ENDED = ("ERRORED", "FINISHED", "ABORTED")
_GIVEN_UP: list[str | None] = ["GIVEN UP", None]
_Result = TypeVar("_Result")


def wait_beside(work: Callable[[], _Result], look: Callable[[], None]) -> _Result:
    """Do something in another thread, where Ray leaves signals alone: its answer to Ctrl-C is to abort the workers.

    Args:
        look: is called in this thread twice a second; what it raises ends the wait.
    """
    outcome: Future[_Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # whatever it is, the waiting thread raises it
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # a second Ctrl-C does not wait for it
    while True:
        try:
            return outcome.result(timeout=_LOOK_EVERY_S)
        except NotYet:
            if outcome.done():
                raise
            look()


def await_worker(limit_s: float, look: Callable[[], None]) -> None:
    """Wait until a process of Ray answers, which needs no room.

    Args:
        look: as `wait_beside` takes it.

    Raises:
        StartError: none does.
    """
    clock = Clock(limit_s)

    def look_at_clock() -> None:
        look()
        clock.check()

    wait_beside(lambda: ray.get(ray.remote(num_cpus=0)(_answer).remote()), look_at_clock)


def _answer() -> None:
    """Show by its return that a process of Ray is there."""


class Clock:
    """Counts the time for which workers have not come up.

    Args:
        limit_s: how long that may take.
    """

    def __init__(self, limit_s: float):
        self._limit_s, self._since = limit_s, time.monotonic()

    def reset(self) -> None:
        """Begin anew: a worker is there, or there is no room for one."""
        self._since = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether it took too long."""
        return time.monotonic() - self._since > self._limit_s

    def check(self) -> None:
        """Raise a StartError once it took too long."""
        if self.is_over:
            raise self.error()

    def error(self) -> StartError:
        """Say what was waited for, and where its logs are."""
        return StartError(
            f"no worker of Ray came up within ray.start_timeout_s={self._limit_s:g} seconds; {logs_folder()} on the "
            "machine that it was to run on says why"
        )


class TellsOfWorkers(ControllerCallback):
    """Notes in the cluster in which state Ray Train's controller is, for `WorkerWatch`, wherever that looks."""

    def __init__(self) -> None:
        self.key = f"trm_ray-{secrets.token_hex(8)}"

    def after_controller_start(self, train_run_context: Any) -> None:
        """Note that the controller is there."""
        self._note(_WITHOUT_WORKERS[0])

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Note every state."""
        self._note(current_state._state_type.state_name)

    def _note(self, state: str) -> None:
        actor = ray.get_runtime_context().get_actor_id()
        with suppress(RpcError):  # the cluster's memory is gone for a while; the next state is noted again
            if _read(self.key) == _GIVEN_UP:
                os._exit(1)  # nobody waits any longer, and what this actor has asked for goes with it
            if state in _ENDED:
                internal_kv._internal_kv_del(self.key)
            else:
                internal_kv._internal_kv_put(self.key, json.dumps([state, actor]), overwrite=True)


def _read(key: str) -> list[str | None] | None:
    note = internal_kv._internal_kv_get(key)
    return None if note is None else json.loads(note)


class WorkerWatch:
    """Looks whether a run on Ray Train has workers, or is to stop before it has any.

    Args:
        told: the callback of the run's trainer.
        check_stop: called while there are no workers that could answer to a request to stop; raises if there is one.
    """

    def __init__(self, told: TellsOfWorkers, limit_s: float, check_stop: Callable[[], None]):
        self._key, self._clock, self._check_stop = told.key, Clock(limit_s), check_stop
        self._last: list[str | None] = [_WITHOUT_WORKERS[0], None]

    def look(self) -> None:
        """Raise what ends the wait for workers, if something does."""
        state, controller = self._noted()
        if state not in _WITHOUT_WORKERS:
            self._clock.reset()
            return
        self._check_stop()
        if controller is not None and not has_room(controller):
            self._clock.reset()
        self._clock.check()

    def give_up(self) -> None:
        """End Ray Train's controller, which would go on in a session that outlives this wait; give back its room."""
        _, controller = self._noted()
        with suppress(RpcError):  # then there is no cluster that could go on
            internal_kv._internal_kv_put(self._key, json.dumps(_GIVEN_UP), overwrite=True)
        if controller is not None:
            ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID.from_hex(controller), True)
            for group in _groups_of(controller):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))

    def _noted(self) -> list[str | None]:
        with suppress(RpcError):  # then what was noted last holds
            self._last = _read(self._key) or self._last
        return self._last


def has_room(creator: str | None) -> bool:
    """Tell whether the CPUs and GPUs that an actor has asked for, or this program itself, are held for it.

    Args:
        creator: the actor's number.
    """
    return any(group.state == gcs_pb2.PlacementGroupTableData.CREATED for group in _groups_of(creator))


def _groups_of(creator: str | None) -> list[Any]:
    job = ray.get_runtime_context().get_job_id()
    accessor = ray._private.state.state._connect_and_get_accessor()
    groups = map(gcs_pb2.PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    return [
        group
        for group in groups
        if group.creator_job_id.hex() == job and (creator is None or group.creator_actor_id.hex() == creator)
    ]
