"""What Ray's processes get from the environment of the user, and what they leave there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers import metric_rows
from run_helpers import ROOT, some_puzzles, tiny_overrides

from trm_ray.distributed.surroundings import (
    StartError,
    _Places,
    _token,
    environment,
    own_cluster,
    past_proxies,
    temporary_folder,
)

NOWHERE = "http://127.0.0.1:9"


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRM_A", "before")
    monkeypatch.delenv("TRM_B", raising=False)
    before = dict(os.environ)
    with suppress(ZeroDivisionError), environment({"TRM_A": "now", "TRM_B": "new"}):
        assert (os.environ["TRM_A"], os.environ["TRM_B"]) == ("now", "new")
        raise ZeroDivisionError
    assert dict(os.environ) == before
    with own_cluster():
        assert dict(os.environ) != before
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("lower", "upper", "told"),
    [
        (None, None, "localhost,10.0.0.7"),
        ("a.example, localhost", None, "a.example,localhost,10.0.0.7"),
        (None, "b.example", "b.example,localhost,10.0.0.7"),
        ("a.example", "b.example,,", "a.example,b.example,localhost,10.0.0.7"),
        ("*", None, "*"),
    ],
)
def test_hosts_are_added_to_those_that_need_no_proxy(
    monkeypatch: pytest.MonkeyPatch, lower: str | None, upper: str | None, told: str
):
    for name, value in (("no_proxy", lower), ("NO_PROXY", upper)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert past_proxies(["localhost", "10.0.0.7"]) == {"no_proxy": told, "NO_PROXY": told}


@pytest.mark.parametrize("home", ["/dev/null", "/proc/none", ""])
def test_a_token_stays_in_memory_where_the_home_folder_takes_none(monkeypatch: pytest.MonkeyPatch, home: str):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home or "/dev/null/x")
    first = _token()
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert _token() == first  # for Ray reads it once


def test_a_token_that_the_user_has_named_is_his_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file" / "token"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        _token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    assert _token() == {}


def test_workers_look_for_modules_where_their_program_does(monkeypatch: pytest.MonkeyPatch):
    standard = os.path.dirname(os.__file__)
    monkeypatch.setattr(sys, "path", ["/scripts", "", standard, "/site", "/late"])
    monkeypatch.chdir("/usr")
    places = _Places()
    places.extend(["/scripts", "/usr", "/late", "/work", str(ROOT)])
    assert places == ["/scripts", "/usr", str(ROOT)]
    monkeypatch.setattr(sys, "path", ["/bin", standard])
    assert _Places() == []
    places = _Places()
    places.extend(["/bin", "/usr"])
    assert places == ["/bin"]


def test_a_long_temporary_folder_is_replaced_while_ray_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 60)))
    with temporary_folder():
        place = Path(os.environ["RAY_TMPDIR"])
        assert os.environ["TMPDIR"] == str(place)
        assert (len(str(place)) <= 37, place.stat().st_mode & 0o777) == (True, 0o700)
        (place / "ray" / "session_1").mkdir(parents=True)
    assert not place.exists()
    for error, left in (
        (KeyboardInterrupt, {"trm-ray-copy"}),
        (ValueError, {"trm-ray-copy"}),
        (StartError, {"trm-ray-copy", "ray", "pymp"}),
    ):
        place = Path(interrupted_by(error))
        assert {path.name for path in place.iterdir()} == left
        shutil.rmtree(place)
    assert "RAY_TMPDIR" not in os.environ


def interrupted_by(error: type[BaseException]) -> str:
    """Ray's temporary folder of a run that ended so, which has kept a copy of a checkpoint that could not be stored."""
    with suppress(error), temporary_folder():
        place = os.environ["RAY_TMPDIR"]
        for name in ("ray", "trm-ray-copy", "pymp"):
            Path(place, name).mkdir()
        raise error
    return place


# ---- whole runs ----------------------------------------------------------------------------------------------


# What a container with `--user 12345` is like, which may read here what its own user could not.
NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def nobody() -> list[str]:
    """The words that let a command run as a user whom the system does not know; none where that cannot be done."""
    try:
        return NOBODY if subprocess.run([*NOBODY, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def hostile(tmpdir: Path) -> dict[str, str]:
    """An environment that somebody has: a batch job's, behind a proxy, in a container without a home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST"))}
    kept |= {"TMPDIR": str(tmpdir), "PYTHONPATH": str(ROOT), "HOME": "/dev/null"}
    if nobody():
        del kept["HOME"]
    return {**kept, **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "grpc_proxy"), NOWHERE)}


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_minds_no_surroundings_and_ends_at_once_when_told_twice(tmp_path: Path):
    """Neither who runs it, nor where, nor what lies there, nor a terminal that is closed."""
    here, run = tmp_path / "größe 实验", tmp_path / "läufe" / 'a "b" \\ c 🎉'
    long = tmp_path / "scratch/cluster_shared/people/somebody/slurm_jobdir/1355700/tmp.t0016"
    for folder in (here / "torch", run.parent, long):
        folder.mkdir(parents=True)
        os.chown(folder, *((12345, 12345) if nobody() else (-1, -1)))
    for module in ("random", "types", "logging", "numpy", "ray", "yaml", "torch/__init__"):
        (here / f"{module}.py").write_text("raise SystemExit('a module of the user')\n")
    before = set(Path("/tmp").glob("ray-*"))
    with endless(tmp_path, run, long, here) as process:
        processes = descendants(process.pid)
        assert_nobody_is_hurt_by_a_closed_terminal(process.pid, processes)
        process.send_signal(signal.SIGINT)
        await_(lambda: len(told(tmp_path)) == 2, process)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    rows = sorted(metric_rows(run))
    assert rows[:8] == list(range(1, 9))
    place, first, last = told(tmp_path)
    assert place.startswith("Ray's temporary files go to /tmp/ray-")
    assert first == "stopping after the step under way; Ctrl-C again ends without saving it"
    way_on = "the last checkpoint stands; the same command with --resume goes on"
    assert last == f"error: interrupted: ended at once; {way_on}"
    assert process.returncode == 130
    deadline = time.monotonic() + 60
    while left := {pid for pid in processes if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert set(Path("/tmp").glob("ray-*")) <= before


@contextmanager
def endless(tmp_path: Path, run: Path, tmpdir: Path, here: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run on Ray that has saved twice and goes on."""
    data = some_puzzles(tmp_path / "data", train=32, test=5)
    words = [*tiny_overrides(max_steps=1_000_000, eval_interval=4, keep_last=2), f"data_paths=[{data}]"]
    command = [*nobody(), str(Path(sys.executable).with_name("trm-ray")), "train", *words, f"log_dir={run}"]
    with (tmp_path / "told.txt").open("wb") as complaint:
        process = subprocess.Popen(
            [*command, "ray.num_workers=1"], env=hostile(tmpdir), cwd=here, stdout=subprocess.DEVNULL, stderr=complaint
        )
    try:
        await_(lambda: len(list(run.glob("checkpoint_step_*"))) > 1, process)
        yield process
    finally:
        process.kill()
        process.wait()


def told(folder: Path) -> list[str]:
    return (folder / "told.txt").read_text().splitlines()


def await_(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_nobody_is_hurt_by_a_closed_terminal(driver: int, processes: set[int]) -> None:
    """It and a batch system send to all processes; a terminal's own signals reach its session alone."""
    lasting = {pid for pid in processes if name_of(pid).startswith(("gcs_server", "raylet", "ray::RayTrain"))}
    assert len(lasting) >= 3
    assert not {pid for pid in lasting if os.getsid(pid) == os.getsid(driver)}
    for pid in processes:
        with suppress(ProcessLookupError):  # Ray ends workers that have nothing to do
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    assert lasting <= descendants(driver)


def name_of(pid: int) -> str:
    """What a process calls itself; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    found, new = set[int](), {pid}
    while new := {child for child, parent in parents.items() if parent in new}:
        found |= new
    return found
