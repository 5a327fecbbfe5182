"""What Ray's processes inherit from this one, and what they must not: modules, proxies, folders, the token, signals."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.job_config import JobConfig

import trm_ray
from trm_ray.config.surroundings import environment, serves_ray, short_folder, usual_folder
from trm_ray.distributed import ray_internals
from trm_ray.training.stopping import STOP_SIGNALS

# One machine needs no other network interface than its own, and Ray's ports are not to be reached from outside.
_LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# `ray.init` would wait for the first workers, without an end and deaf to signals, where none can start.
_WAIT_FOR_WORKERS = "RAY_prestart_worker_first_driver"
_AUTH_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# Python processes find no `random.py` or `numpy.py` of the user's for their own (Python 3.11 and newer).
_SAFE_MODULES = {"PYTHONSAFEPATH": "1"}
_NO_PROXY = ("no_proxy", "NO_PROXY")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOG = logging.getLogger("trm_ray")


class StartError(RuntimeError):
    """Ray, or a worker of it, did not start; the message says where its logs are."""


@contextmanager
def own_cluster() -> Iterator[None]:
    """While this lasts, Ray's processes that start here listen on 127.0.0.1 and ask for the user's token.

    They find no modules in the working directory, and no proxy between each other.
    """
    own = {name: os.environ.get(name, "0") for name in (_LOOPBACK_ONLY, _WAIT_FOR_WORKERS)}
    with (
        environment({**own, **_token(), **past_proxies(LOOPBACK), **_SAFE_MODULES}),
        ray_internals.on_loopback(only=own[_LOOPBACK_ONLY] == "0"),
    ):
        ray_internals.reread_environment()
        yield


# ---- proxies ---------------------------------------------------------------------------------------------------------


def past_proxies(hosts: Iterable[str]) -> dict[str, str]:
    """Say in variables that these hosts are reached directly, whatever proxy the environment names for the others."""
    passed = [word for name in _NO_PROXY for word in os.environ.get(name, "").split(",")]
    words = dict.fromkeys(filter(None, map(str.strip, [*passed, *hosts])))
    return dict.fromkeys(_NO_PROXY, "*" if "*" in words else ",".join(words))


# ---- the token -------------------------------------------------------------------------------------------------------


def _token() -> dict[str, str]:
    """Make the token that Ray asks for at every door of a cluster that it starts, for its owner's eyes alone.

    In a file below the home folder, which Ray would write so that all users of the machine can read it; where there is
    no such folder, in the environment of this process and of Ray's, which nobody else sees either. Older releases know
    no tokens and do not look.
    """
    mode = {} if _AUTH_MODE in os.environ else {_AUTH_MODE: "token"}
    if os.environ.get(_AUTH_MODE, "token") != "token" or _TOKEN in os.environ:
        return mode
    try:
        path = token_path()
        _private_file(path)
    except (OSError, RuntimeError) as error:
        if "RAY_AUTH_TOKEN_PATH" in os.environ:
            raise
        _LOG.debug("no token in the home folder (%s)", error)
        return {**mode, _TOKEN: _token_in_memory()}
    return mode


def token_path() -> Path:
    """Name the file that holds this user's token.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


@functools.cache
def _token_in_memory() -> str:
    return secrets.token_hex(32)  # the same for all clusters of this process, in which Ray reads it once


def _private_file(path: Path) -> None:
    """Make a file with a token for its owner alone, or close the one that is there to others."""
    if path.is_file():
        path.read_bytes()
        try:
            path.chmod(0o600)
        except OSError as error:  # somebody else's, or mounted to be read only
            _LOG.warning("%s could not be closed to others (%s)", path, error)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


# ---- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def temporary_folder() -> Iterator[None]:
    """Give Ray a short folder for its temporary files while this lasts, where its own will not do.

    Names of sockets are limited, and the folder of a batch job is often a long one. It is removed in the end, unless
    Ray's logs are to tell why it did not start. What we have put there, such as the copy of a checkpoint that could not
    be stored, stays.
    """
    usual, short = usual_folder(), short_folder()
    if serves_ray(usual) or short is None:
        yield
        return
    place = Path(tempfile.mkdtemp(prefix="ray-", dir=short))
    _LOG.warning(
        "Ray's temporary files go to %s, since %s is closed or too long for the names of sockets", place, usual
    )
    with environment({"RAY_TMPDIR": str(place), "TMPDIR": str(place)}):
        try:
            yield
        except StartError:
            raise
        except BaseException:
            _remove(place)
            raise
    _remove(place)


def _remove(place: Path) -> None:
    left = [path for path in place.iterdir() if path.name.startswith("trm-ray")]
    for path in [path for path in place.iterdir() if path not in left] if left else [place]:
        shutil.rmtree(path, ignore_errors=True)


# ---- signals ---------------------------------------------------------------------------------------------------------


@contextmanager
def own_session() -> Iterator[None]:
    """Start Ray's processes meanwhile in a session of their own: signals of a terminal or `timeout` do not reach it.

    Where a batch system sends signals to all processes of a job, they are blocked in Ray's, but for SIGTERM, with which
    Ray ends them.
    """
    handler = signal.getsignal(signal.SIGTERM)  # for which Ray has one that ends the process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(STOP_SIGNALS) - {signal.SIGTERM, signal.SIGINT})
    try:
        with ray_internals.new_process_session():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


# ---- modules ---------------------------------------------------------------------------------------------------------


class _Places(list[str]):
    """The places that workers look for modules in before all others: those where this process does so too.

    Ray adds the working directory whatever it holds. A file of the user's called `numpy.py` is no concern of a worker's
    unless it is one of this process.
    """

    def extend(self, places: Iterable[str]) -> None:
        standard = os.path.dirname(os.__file__)
        own = [os.path.abspath(place) for place in itertools.takewhile(lambda place: place != standard, sys.path)]
        home = str(Path(trm_ray.__file__).parents[1])  # a checkout that was not installed
        super().extend(place for place in places if place in own or place == home)


def job_config() -> JobConfig:
    """Say what Ray's workers get besides what they are told to do."""
    return ray_internals.job_config(_Places())
