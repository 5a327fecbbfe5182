"""Start Ray on this machine or join a cluster, and say early what does not fit."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import ray

from trm_ray.config import Config, ConfigError
from trm_ray.config.errors import show
from trm_ray.distributed import VERBOSE, apply_settings
from trm_ray.distributed.own_session import own_session

# One machine needs no other network interface than its own, and Ray's ports are not to be reached from outside.
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# A training run on one machine has no node that could be preempted.
_NO_PREEMPTION = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
_AUTH_MODE = "RAY_AUTH_MODE"
_PATIENCE_S = 5.0
_LOOK_EVERY_S = 1.0
_ROUNDING = 1e-3  # of fractions of a GPU that add up to whole ones


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` or RAY_ADDRESS, else start one on this machine; leave it in the end.

    The dashboard stays on: without it Ray Train cannot give back the resources of a trial that is stopped early.
    """
    apply_settings()
    if ray.is_initialized():  # a caller's session, such as the tests', which it will end itself
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _stay_on_loopback()
        os.environ.setdefault(_NO_PREEMPTION, "0")
        _make_private_token()
    _check_answers(address)
    quiet = {} if VERBOSE else {"logging_level": "ERROR", "log_to_driver": False}
    if not VERBOSE:
        quiet["logging_config"] = ray.LoggingConfig(log_level="ERROR")
    local = {"dashboard_host": "127.0.0.1"} if address == "local" else {}
    with own_session():
        ray.init(address=address, **local, **quiet)
    if not VERBOSE:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the sweep tells failed trials, in a line each
    ray.data.DataContext.get_current().enable_progress_bars = VERBOSE
    try:
        with _own_warnings_heard():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _own_warnings_heard() -> Iterator[None]:
    """Print our own warnings: Ray gives the root logger its own level, and a handler for nothing below that."""
    logger, handler = logging.getLogger("trm_ray"), logging.StreamHandler()
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for as long as this lasts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def stay_private() -> None:
    """Have Ray's processes that start here listen on 127.0.0.1 and ask for the user's token, as `ray.init` does."""
    _stay_on_loopback()
    _make_private_token()
    os.environ.setdefault(_AUTH_MODE, "token")
    ray._raylet.Config.initialize("")  # Ray has read the environment when it was imported


def _stay_on_loopback() -> None:
    """Keep all doors of a cluster that is started here on 127.0.0.1; Ray read that setting when it was imported."""
    from ray._private import ray_constants

    if os.environ.setdefault(_LOOPBACK_ONLY, "0") == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False


def _make_private_token() -> None:
    """Keep the token that Ray asks for at every door of a cluster that it starts in a file for its owner alone.

    Ray would write a missing file so that all users of the machine can read it. Older releases know no tokens and do
    not look at the file.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get(_AUTH_MODE, "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    if path.is_file():
        try:
            path.chmod(0o600)
        except OSError as error:  # somebody else's, or mounted to be read only
            logging.getLogger("trm_ray").warning("%s could not be closed to others (%s)", path, error)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _check_answers(address: str) -> None:
    """Knock at a cluster's door first: Ray would knock for a minute and end the process if nobody opens.

    Raises:
        ConnectionError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host:  # local or auto, which Ray knows to find or not
        return
    way_out = "start a cluster there, or leave the address out to start one on this machine"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ConnectionError(f"ray.address={address} does not answer: {error}; {way_out}") from error


def worker_resources(config: Config) -> dict[str, float]:
    """Give what one worker asks for."""
    gpus = {"GPU": config.ray.gpus_of_worker} if config.ray.use_gpu else {}
    return {"CPU": config.ray.cpus_per_worker, **gpus}


def may_grow(config: Config) -> bool:
    """Tell whether nodes may still join: Ray runs on more than this machine, or was found at an address."""
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    return len(ray.nodes()) > 1 or address != "local"


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
        told = f"ray.cpus_per_worker={amount:g}" if kind == "CPU" else config.ray.gpus_told
        needed, key = amount * fewest, told.partition("=")[0]
        if needed > there.get(kind, 0) + _ROUNDING:
            raise ConfigError(
                f"{option}={show(config.ray.num_workers)} with {told} needs {needed:g} {kind}s, this "
                f"machine has {there.get(kind, 0):g}; use fewer workers, a smaller {key}, or {option}=0 to do "
                f"without Ray"
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        before = None
        while not self._end.wait(_LOOK_EVERY_S):
            there = {kind: ray.cluster_resources().get(kind, 0) for kind in worker_resources(self._config)}
            told = missing_room(self._config, there, self._num_runs())
            if told is not None and there != before:
                self._tell(told)
            before = there


def missing_room(config: Config, there: Mapping[str, float], num_runs: int) -> str | None:
    """Say what a cluster lacks for `num_runs` runs at the same time; None if nothing."""
    each = {kind: amount * config.ray.fewest_workers for kind, amount in worker_resources(config).items()}
    told = []
    for kind, amount in each.items():
        missing = amount * num_runs - there.get(kind, 0)
        if missing > _ROUNDING:
            told.append(f"{missing:g} {kind}s (the cluster has {there.get(kind, 0):g} of {amount * num_runs:g})")
    return f"waiting for {' and '.join(told)}" if told else None
