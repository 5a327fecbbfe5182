"""Start Ray on this machine or join a cluster, and say early what does not fit."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray

from trm_ray.config import Config, ConfigError
from trm_ray.config.errors import show
from trm_ray.config.surroundings import LOCAL, check_surroundings, cluster_address, environment, usual_folder
from trm_ray.distributed import VERBOSE, apply_settings, ray_internals
from trm_ray.distributed.surroundings import (
    LOOPBACK,
    StartError,
    job_config,
    own_cluster,
    own_session,
    past_proxies,
    temporary_folder,
)
from trm_ray.training.stopping import Interrupted

# A training run on one machine has no node that could be preempted.
_PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_MOST_WORDS = 300  # characters of Ray's own words that an error repeats
_LOOK_EVERY_S = 1.0
_ROUNDING = 1e-3  # of fractions of a GPU that add up to whole ones

_LOG = logging.getLogger("trm_ray")


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, else start one on this machine; leave it in the end.

    Raises:
        ConfigError: no cluster could be started or joined in this environment.
        StartError: Ray failed to.
    """
    apply_settings()
    if ray.is_initialized():  # a caller's session, such as the tests', which it will end itself
        yield
        return
    check_surroundings(address)
    address = cluster_address(address)
    with _own_warnings_heard(), _same_handler_afterwards(), _surroundings(address):
        _init(address)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _surroundings(address: str) -> Iterator[None]:
    if address == LOCAL:
        with temporary_folder(), own_cluster(), environment({_PREEMPTION: os.environ.get(_PREEMPTION, "0")}):
            yield
        return
    with environment(past_proxies([*LOOPBACK, address.rpartition(":")[0].strip("[]")])):
        yield


def _init(address: str) -> None:
    """Start Ray or join it.

    The dashboard stays on: without it Ray Train cannot give back the resources of a trial that is stopped early.
    """
    if address == LOCAL and threading.current_thread() is not threading.main_thread():
        raise StartError(
            "Ray can be started by the main thread alone; call ray.init() there before, or use ray.num_workers=0"
        )
    quiet = {} if VERBOSE else {"logging_level": "ERROR", "log_to_driver": False}
    if not VERBOSE:
        quiet["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    local = {"dashboard_host": "127.0.0.1"} if address == LOCAL else {}
    try:
        with own_session():
            ray.init(address=address, job_config=job_config(), **local, **quiet)
    except SystemExit as error:  # Ray's answer to SIGTERM
        raise _ended_in_start() from error
    except Exception as error:
        raise StartError(_failure_line(address, error)) from error
    if address == LOCAL and not ray_internals.webui_url():
        _LOG.warning("Ray's dashboard did not start; %s/dashboard.log says why", ray_internals.logs_dir())
    if not VERBOSE:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the sweep tells failed trials, in a line each
    ray.data.DataContext.get_current().enable_progress_bars = VERBOSE


def _ended_in_start() -> Interrupted:
    interrupted = Interrupted("ended while Ray was starting; the last checkpoint stands")
    interrupted.exit_code = 128 + signal.SIGTERM
    return interrupted


def _failure_line(address: str, error: Exception) -> str:
    """Say in a line what Ray says in several, and where it says more."""
    what = "Ray did not start on this machine" if address == LOCAL else f"the Ray cluster at {address} was not joined"
    words = " ".join(str(error).split()) or type(error).__name__
    reason = words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]} …"
    logs = f"its logs are in {usual_folder()}/ray/session_latest/logs"
    where = logs if address == LOCAL else "trm_ray, Ray and Python must be of one version"
    return f"{what}: {reason.rstrip('. ')}; {where}, and --verbose shows more"


@contextmanager
def _same_handler_afterwards() -> Iterator[None]:
    """Take back what is done at SIGTERM, for which Ray has an answer of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_warnings_heard() -> Iterator[None]:
    """Print our own warnings: Ray gives the root logger its own level, and a handler for nothing below that."""
    logger, handler = _LOG, logging.StreamHandler()
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


def worker_resources(config: Config) -> dict[str, float]:
    """Give what one worker asks for."""
    gpus = {"GPU": config.ray.gpus_of_worker} if config.ray.use_gpu else {}
    return {"CPU": config.ray.cpus_per_worker, **gpus}


def may_grow(config: Config) -> bool:
    """Tell whether nodes may still join: Ray runs on more than this machine, or was found at an address."""
    return len(ray.nodes()) > 1 or cluster_address(config.ray.address) != LOCAL


def check_resources(config: Config, option: str = "ray.num_workers") -> None:
    """Refuse workers that this machine can never run; a cluster may still grow.

    Args:
        option: what the user sets their number with.

    Raises:
        ConfigError: they ask for more CPUs or GPUs than there are, or for more nodes than one.
    """
    if may_grow(config):
        return
    there, fewest = ray.cluster_resources(), config.ray.fewest_workers
    for kind, amount in worker_resources(config).items():
        setting = f"ray.cpus_per_worker={amount:g}" if kind == "CPU" else config.ray.gpus_told
        needed, key = amount * fewest, setting.partition("=")[0]
        if needed > there.get(kind, 0) + _ROUNDING:
            fewer = "ray.use_gpu=false, " if kind == "GPU" else ""
            fewer += "fewer workers, " if fewest > 1 else ""
            raise ConfigError(
                f"{option}={show(config.ray.num_workers)} with {setting} needs {needed:g} {kind}{'s' * (needed != 1)}, "
                f"this machine has {there.get(kind, 0):g}; use {fewer}a smaller {key}, or {option}=0 to do without Ray"
            )
    if config.ray.placement_strategy == "STRICT_SPREAD" and fewest > 1:
        raise ConfigError(
            f"ray.placement_strategy=STRICT_SPREAD needs a node for each of {option}={show(config.ray.num_workers)}, "
            "and this machine is one; use ray.placement_strategy=SPREAD"
        )


class RoomWatch:
    """While this lasts, tell of CPUs and GPUs that are not there, at first and whenever the cluster has changed.

    Args:
        config: what one run or trial asks for.
        num_runs: how many of them are still to be run at the same time, the running ones included.
        tell: is called in another thread with a line.
    """

    def __init__(self, config: Config, num_runs: Callable[[], int], tell: Callable[[str], None]):
        self._config, self._num_runs, self._tell = config, num_runs, tell
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RoomWatch:
        if may_grow(self._config):
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        before = None
        while not self._end.wait(_LOOK_EVERY_S):
            there = {kind: ray.cluster_resources().get(kind, 0) for kind in worker_resources(self._config)}
            line = missing_room(self._config, there, self._num_runs())
            if line is not None and there != before:
                self._tell(line)
            before = there


def missing_room(config: Config, there: Mapping[str, float], num_runs: int) -> str | None:
    """Say what a cluster lacks for `num_runs` runs at the same time; None if nothing."""
    each = {kind: amount * config.ray.fewest_workers for kind, amount in worker_resources(config).items()}
    missing = []
    for kind, amount in each.items():
        lacking = amount * num_runs - there.get(kind, 0)
        if lacking > _ROUNDING:
            missing.append(f"{lacking:g} {kind}s (the cluster has {there.get(kind, 0):g} of {amount * num_runs:g})")
    return f"waiting for {' and '.join(missing)}" if missing else None
