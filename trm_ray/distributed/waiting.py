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
from ray.exceptions import RpcError
from ray.util.placement_group import PlacementGroup, remove_placement_group

from trm_ray.distributed import ray_internals
from trm_ray.distributed.ray_internals import ENDED, WITHOUT_WORKERS, ControllerCallback, Group
from trm_ray.distributed.surroundings import StartError

_LOOK_EVERY_S = 0.5
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
            f"no worker of Ray came up within ray.start_timeout_s={self._limit_s:g} seconds; "
            f"{ray_internals.logs_dir()} on the machine that it was to run on says why"
        )


class TellsOfWorkers(ControllerCallback):
    """Notes in the cluster in which state Ray Train's controller is, for `WorkerWatch`, wherever that looks."""

    def __init__(self) -> None:
        self.key = f"trm_ray-{secrets.token_hex(8)}"

    def after_controller_start(self, train_run_context: Any) -> None:
        """Note that the controller is there."""
        self._note(WITHOUT_WORKERS[0])

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Note every state."""
        self._note(ray_internals.state_name(current_state))

    def _note(self, state: str) -> None:
        actor = ray.get_runtime_context().get_actor_id()
        with suppress(RpcError):  # the cluster's memory is gone for a while; the next state is noted again
            if _read(self.key) == _GIVEN_UP:
                os._exit(1)  # nobody waits any longer, and what this actor has asked for goes with it
            if state in ENDED:
                ray_internals.forget_note(self.key)
            else:
                ray_internals.write_note(self.key, json.dumps([state, actor]))


def _read(key: str) -> list[str | None] | None:
    note = ray_internals.read_note(key)
    return None if note is None else json.loads(note)


class WorkerWatch:
    """Looks whether a run on Ray Train has workers, or is to stop before it has any.

    Args:
        callback: tells of the run; its trainer has it too.
        check_stop: called while there are no workers that could answer to a request to stop; raises if there is one.
    """

    def __init__(self, callback: TellsOfWorkers, limit_s: float, check_stop: Callable[[], None]):
        self._key, self._clock, self._check_stop = callback.key, Clock(limit_s), check_stop
        self._last: list[str | None] = [WITHOUT_WORKERS[0], None]

    def look(self) -> None:
        """Raise what ends the wait for workers, if something does."""
        state, controller = self._noted()
        if state not in WITHOUT_WORKERS:
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
            ray_internals.write_note(self._key, json.dumps(_GIVEN_UP))
        if controller is not None:
            ray_internals.kill_controller(controller)
            for group in _groups_of(controller):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.id)))

    def _noted(self) -> list[str | None]:
        with suppress(RpcError):  # then what was noted last holds
            self._last = _read(self._key) or self._last
        return self._last


def has_room(creator: str | None) -> bool:
    """Tell whether the CPUs and GPUs that an actor has asked for, or this program itself, are held for it.

    Args:
        creator: the actor's number.
    """
    return any(group.is_held for group in _groups_of(creator))


def _groups_of(creator: str | None) -> list[Group]:
    job, groups = ray.get_runtime_context().get_job_id(), ray_internals.placement_groups()
    return [group for group in groups if group.job == job and creator in (None, group.actor)]
