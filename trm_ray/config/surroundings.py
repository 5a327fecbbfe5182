"""What a run on Ray needs of the environment that it was started in, checked before anything is touched."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from trm_ray.config.errors import ConfigError, show
from trm_ray.config.keys import check_address

LOCAL = "local"
# Who names the folder for Ray's temporary files, the first of them that is set, and what does where that will not.
_TEMPORARY, _SHORT_FOLDERS = ("RAY_TMPDIR", "TMPDIR"), ("/tmp", "/var/tmp", "/dev/shm")
# The longest such folder in which the names of Ray's sockets, such as
# `ray/session_2026-01-31_12-59-59_123456_1234567/sockets/plasma_store`, stay within the 107 bytes that a system allows.
_LONGEST = 107 - 70
_PATIENCE_S = 5.0


def cluster_address(address: str | None) -> str:
    """Say which cluster is joined: the key's, else the variable RAY_ADDRESS's, else one is started on this machine."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def check_surroundings(address: str | None) -> None:
    """Refuse an environment in which no cluster could be started or joined.

    Args:
        address: the key `ray.address`.

    Raises:
        ConfigError: RAY_ADDRESS is no cluster's address, or temporary files cannot be written.
        ConnectionError: nobody answers at the address.
    """
    named = "ray.address" if address else "RAY_ADDRESS"
    check_address(named, cluster_address(address))
    check_answers(named, cluster_address(address))
    if cluster_address(address) == LOCAL:
        _check_temporary_folder()


def check_answers(named: str, address: str) -> None:
    """Knock at a cluster's door first: Ray would knock for a minute and end the process if nobody opens.

    Raises:
        ConnectionError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host:  # local or auto, which Ray knows to find or not
        return
    leave = "unset RAY_ADDRESS" if named == "RAY_ADDRESS" else "leave the address out"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError, ValueError) as error:
        way_out = f"start a cluster there, or {leave} to start one on this machine"
        raise ConnectionError(f"{named}={address} does not answer: {error}; {way_out}") from error


def _check_temporary_folder() -> None:
    """Refuse a folder for temporary files that is not there, where Ray would fail or go elsewhere without a word."""
    named = next((name for name in _TEMPORARY if os.environ.get(name)), None)
    if named is not None and not _can_write(os.environ[named]):
        raise ConfigError(
            f"{named}={show(os.environ[named])} must be a folder that can be written to, for Ray's temporary files; "
            f"make it, or use e.g. {named}=/tmp"
        )
    if not serves_ray(usual_folder()) and short_folder() is None:
        raise ConfigError(
            f"{show(usual_folder())} cannot hold Ray's temporary files (names of sockets may be 107 bytes long), and "
            f"{', '.join(_SHORT_FOLDERS)} cannot be written to; use RAY_TMPDIR=FOLDER of at most {_LONGEST} bytes"
        )


def usual_folder() -> str:
    """Name the folder in which Ray would make its own for temporary files."""
    return next((os.environ[name] for name in _TEMPORARY if os.environ.get(name)), _SHORT_FOLDERS[0])


def short_folder() -> str | None:
    """Find a folder whose name is short and in which files can be made; None if there is none."""
    return next((folder for folder in _SHORT_FOLDERS if _can_write(folder)), None)


def serves_ray(folder: str) -> bool:
    """Tell whether Ray can keep its sockets in a folder: in `ray` there, which may be another user's."""
    place = os.path.join(folder, "ray")
    return len(os.fsencode(folder)) <= _LONGEST and _can_write(place if os.path.exists(place) else folder)


def _can_write(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for as long as this lasts; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
