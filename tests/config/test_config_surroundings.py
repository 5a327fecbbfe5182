"""What the environment says of clusters and temporary files is checked as the keys are, before anything is touched."""

import socket
from pathlib import Path

import pytest
from config_helpers import complaint, load

from trm_ray.config import ConfigError, surroundings
from trm_ray.config.surroundings import check_surroundings, serves_ray

NAMED = ["ray.address", "RAY_ADDRESS"]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def refusal(monkeypatch: pytest.MonkeyPatch, named: str, address: str) -> str:
    """What is said of an address that the key or the variable names."""
    if named == "ray.address":
        return complaint(load, f"ray.address='{address}'")
    monkeypatch.setenv(named, address)
    with pytest.raises(ConfigError) as refused:
        check_surroundings(None)
    return str(refused.value)


@pytest.mark.parametrize("named", NAMED)
@pytest.mark.parametrize(
    ("address", "way_out"),
    [
        ("http://127.0.0.1:8265", "this is a job server's, to which `trm-ray submit --address http://127.0.0.1:8265`"),
        ("https://head.example:443/x", "this is a job server's"),
        ("ray://127.0.0.1:10001", "Ray Client is not supported: `trm-ray submit --address http://HOST:8265` sends"),
        ("headnode", "use {named}=headnode:6379"),
        ("10.0.0.7", "use {named}=10.0.0.7:6379"),
        ("[::1]", "use {named}=[::1]:6379"),
        ("head:", "from outside the cluster use `trm-ray submit`"),
        ("head:port", "from outside the cluster use `trm-ray submit`"),
        (" ", "from outside the cluster use `trm-ray submit`"),
        ("head:6379 ", "from outside the cluster use `trm-ray submit`"),
        ("LOCAL", "use {named}=LOCAL:6379"),
    ],
)
def test_the_variable_is_held_to_the_rule_of_the_key(
    monkeypatch: pytest.MonkeyPatch, named: str, address: str, way_out: str
):
    told = refusal(monkeypatch, named, address)
    assert told.startswith(f"{named}=")
    assert " must be null, local, auto or HOST:PORT; " in told if named == "ray.address" else " must be local, " in told
    assert way_out.format(named=named) in told
    assert "\n" not in told


@pytest.mark.parametrize("address", ["", "local", "auto"])
def test_a_variable_that_names_no_place_is_taken(monkeypatch: pytest.MonkeyPatch, address: str):
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_surroundings(None)
    assert surroundings.cluster_address(None) == (address or "local")


def test_the_key_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    check_surroundings("local")
    assert surroundings.cluster_address("local") == "local"


@pytest.mark.parametrize("named", NAMED)
def test_an_address_where_nobody_answers_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch, named: str):
    leave = {"ray.address": "leave the address out", "RAY_ADDRESS": "unset RAY_ADDRESS"}[named]
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if named == "RAY_ADDRESS":
            monkeypatch.setenv(named, address)
        key = address if named == "ray.address" else None
        check_surroundings(key)  # somebody does
        server.close()
        with pytest.raises(ConnectionError) as refused:
            check_surroundings(key)
    assert str(refused.value).startswith(f"{named}={address} does not answer: ")
    assert str(refused.value).endswith(f"; start a cluster there, or {leave} to start one on this machine")


@pytest.mark.parametrize("named", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file", Path("/proc")):
        monkeypatch.setenv(named, str(folder))
        with pytest.raises(ConfigError, match=rf"^{named}=.* must be a folder that can be written to.*use e\.g\."):
            check_surroundings("local")
    assert surroundings.cluster_address("local") == "local"


def test_a_long_temporary_folder_needs_a_short_one_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    check_surroundings("local")
    assert surroundings.cluster_address("local") == "local"
    monkeypatch.setattr(surroundings, "_SHORT_FOLDERS", (str(tmp_path / "none"), "/proc"))
    with pytest.raises(ConfigError, match=r"cannot hold Ray's temporary files .*107 bytes.*use RAY_TMPDIR=FOLDER of"):
        check_surroundings("local")
    assert surroundings.cluster_address("local") == "local"


def test_the_longest_folder_holds_rays_longest_socket():
    socket_name = "ray/session_2026-01-31_12-59-59_123456_1234567/sockets/plasma_store"
    assert serves_ray("/tmp")
    for length in range(2, 107):
        folder = "/" + "ä" * ((length - 1) // 2)
        fits = len(f"{folder}/{socket_name}".encode()) <= 107
        assert fits or not serves_ray(folder)
