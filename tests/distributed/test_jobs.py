"""Commands as jobs of a real cluster with a token: submitted, followed, stopped, failed, and their results fetched."""

from __future__ import annotations

import json
import logging
import os
import pty
import random
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobDetails
from run_helpers import ROOT, laid_over, some_puzzles, tiny_overrides
from typer.testing import CliRunner, Result

from trm_ray.cli import app
from trm_ray.distributed.jobs import Job, JobLog, _is_near, _requirements, _working_copy, fetch, last_error
from trm_ray.training.checkpoint import checkpoint_step, latest_checkpoint

pytestmark = pytest.mark.ray

# Clear of 10002 to 19999, where Ray's workers listen, and of what the system gives to whoever asks for any port.
_PORTS = range(20_000, 32_000)
_SECRET = "sesame-5d1c"


def free_ports(number: int) -> list[int]:
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):  # others may look for some at the same time
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no ports are free")


@dataclass(frozen=True)
class Head:
    """A running cluster of one node.

    Args:
        env: what a program needs in order to talk to it, and a secret that has no business there.
        storage: stands for what all nodes mount.
    """

    url: str
    env: dict[str, str]
    storage: Path

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "trm_ray.cli", *map(str, words)]

    def run(self, *words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a trm-ray command here."""
        return subprocess.run(
            self.command(*words),
            env=self.env,
            cwd=cwd,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=180,
        )

    def ask_here(self, *words: str | Path, **env: str | None) -> Result:
        """Run a trm-ray command that only talks to the job server, in this process, which has long imported all."""
        told = {name: self.env[name] for name in ("HOME", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS")}
        return CliRunner().invoke(app, ["jobs", *map(str, words)], env={**told, **env})

    def ask(self, path: str) -> str:
        """Ask the job server itself."""
        token = Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    place = Path(tempfile.mkdtemp(prefix="trm-"))  # short: Ray's sockets lie in it
    token = place / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard, agent, client = free_ports(4)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_", "TRM_RAY_"))}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "HOME": str(place),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = {"": port, "dashboard-": dashboard, "dashboard-agent-listen-": agent, "ray-client-server-": client}
    started = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
            *(f"--{name}port={number}" for name, number in ports.items()),
            *("--dashboard-host=127.0.0.1", "--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"),
            f"--temp-dir={place / 'ray'}",
        ],
        env={
            **env,
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen here alone
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = Head(
        f"http://127.0.0.1:{dashboard}",
        {
            **env,
            "PYTHONPATH": str(ROOT),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "AWS_SECRET": _SECRET,
        },
        place / "storage",
    )
    try:
        wait_for(lambda: started.poll() is None and answers(found), "the job server")
        yield found
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)
        shutil.rmtree(place, ignore_errors=True)


def answers(head: Head) -> bool:
    try:
        return json.loads(head.ask("/api/jobs/")) == []
    except OSError:
        return False


def wait_for(there: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def data(head: Head) -> Path:
    return some_puzzles(head.storage / "data", train=64, test=9)


def submitted(output: str) -> str:
    found = re.search(r"^Submitted (\S+)$", output, re.M)
    assert found, output
    return found[1]


def tiny_run(data: Path, *words: str) -> list[str]:
    return ["train", *laid_over([*tiny_overrides(lr_min_ratio=1), f"data_paths=[{data}]"], words)]


# ---- one job after the other -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_fails_is_told_with_its_own_last_error_and_takes_configs_along(
    head: Head, data: Path, tmp_path: Path
):
    (tmp_path / "configs").mkdir()
    scenario = (ROOT / "configs" / "deep_supervision_linear.yaml").read_text()
    (tmp_path / "configs" / "mine.yaml").write_text(scenario)
    place = f"ray.storage_path={head.storage}"
    command = tiny_run(data, "--config-name", "mine", "ray.num_workers=0", "lr=1e30", place)
    ended = head.run("submit", *command, cwd=tmp_path)
    assert ended.returncode == 1
    assert "config_name: mine" in ended.stdout
    job = submitted(ended.stdout)
    told = rf"error: {job} failed: the loss .* is not finite: step=2, .*try a lower lr"
    assert re.search(told, ended.stderr), ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    status = head.ask_here("status", job).stdout
    assert re.search(r"^state +failed$", status, re.M)
    assert re.search(r"^cause +the loss .* is not finite", status, re.M)
    assert f"results  {head.storage}/runs/mine" in status


@pytest.mark.slow
def test_a_job_that_succeeds_ends_with_0_and_no_secret_goes_along(head: Head, tmp_path: Path):
    output = head.storage / "made"
    words = ["prepare", "sudoku", "--size", "4", "--train", "8", "--test", "2", "--output", output]
    ended = head.run("submit", "--address", head.url, *words, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    job = submitted(ended.stdout)
    assert ended.stdout.splitlines()[-1] == f"{job} succeeded; its results: trm-ray jobs fetch {job}"
    assert f"Wrote {output}: 8 train, 2 test" in ended.stdout
    assert "entrypoint" not in ended.stdout
    assert (output / "dataset.json").is_file()
    told = head.ask(f"/api/jobs/{job}")
    assert _SECRET not in told
    assert set(json.loads(told)["runtime_env"]["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S", "COLUMNS"}


def test_nodes_install_what_the_storage_that_a_command_names_needs(monkeypatch: pytest.MonkeyPatch):
    told = [
        "ray[train]>=2.56",
        "numpy>=1.26",
        "s3fs>=2024.2; extra == 's3'",
        'gcsfs; extra == "gcs"',
        "pytest; extra == 'dev'",
    ]
    monkeypatch.setattr("trm_ray.distributed.jobs.requires", lambda name: told)
    assert _requirements(["train", "log_dir=/mnt/a"]) == ["numpy>=1.26"]
    assert _requirements(["train", "s3://bucket/runs/a"]) == ["numpy>=1.26", "s3fs>=2024.2"]


def test_results_on_object_storage_are_fetched_from_there(bucket: Path, tmp_path: Path):
    for name in ("config.yaml", "final_model/state.pt"):
        (bucket / name).write_text(name)
    job = Job("train-1", "running", False, "train", time.time(), 1.0, None, str(bucket), True)
    nobody = None  # the job server is not asked
    assert fetch(nobody, job, tmp_path / "here") == 1  # type: ignore[arg-type]
    assert (tmp_path / "here" / "config.yaml").read_text() == "config.yaml"
    assert fetch(nobody, job, tmp_path / "here", checkpoints=True) == 2  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_on_workers_is_followed_let_go_stopped_and_fetched_both_ways(head: Head, data: Path, tmp_path: Path):
    place = f"ray.storage_path={head.storage}"
    often = ["max_steps=100000", "eval_interval=50", "log_interval=50", "ray.cpus_per_worker=0.5"]
    command = tiny_run(data, "--config-name", "deep_supervision_baseline", *often, place)
    code, shown = ctrl_c_once(head.command("submit", *command), b"Eval     50", b"\n", head.env, tmp_path)
    job, run = submitted(shown.replace("\r", "")), head.storage / "runs" / "deep_supervision_baseline"
    assert code == 130
    assert "Stop the job too? It saves first [y/N]" in shown
    assert f"{job} goes on" in shown
    listed = head.ask_here("list").stdout
    assert re.search(rf"^{job} +running ", listed, re.M)
    stopped = head.ask_here("stop", job)
    latest = latest_checkpoint(run, verified=True)
    assert latest is not None
    step = checkpoint_step(latest)
    assert step > 50
    assert f"{job} stopped: interrupted: stopped after step {step}, which is saved" in stopped.stdout
    for way, words in (("direct", []), ("cluster", ["--through-cluster"])):
        fetched = head.ask_here("fetch", job, "--output", tmp_path / way, *words)
        assert fetched.exit_code == 0, fetched.stderr
        there = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
        here = {path.name: path.read_bytes() for path in (tmp_path / way).iterdir()}
        assert here.pop("fetched_from.json")
        assert {"config.yaml", "environment.json", "metrics.jsonl"} < set(here)
        assert here == there
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    refused = head.ask_here("fetch", job, "--output", tmp_path / "mine")
    assert refused.exit_code == 2
    assert f"--output {tmp_path / 'mine'} holds files that were not fetched from" in refused.stderr
    followed = head.ask_here("logs", job, "--follow")
    assert followed.exit_code == 1
    assert f"{job} was stopped; the same command with --resume goes on" in followed.stderr


def ctrl_c_once(command: list[str], seen: bytes, answer: bytes, env: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Run a command on a terminal, press Ctrl-C once it has printed something, and answer what it asks."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, env=env, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    printed, pressed, answered = b"", False, False
    deadline = time.monotonic() + 180
    while process.poll() is None or select.select([ours], [], [], 0.2)[0]:
        assert time.monotonic() < deadline, printed.decode()
        if select.select([ours], [], [], 0.2)[0]:
            try:
                printed += os.read(ours, 65536)
            except OSError:  # the terminal is closed
                break
        if seen in printed and not pressed:
            process.send_signal(signal.SIGINT)
            pressed = True
        if b"[y/N]" in printed and not answered:
            os.write(ours, answer)
            answered = True
    os.close(ours)
    return process.wait(30), printed.decode()


@pytest.mark.slow
def test_a_script_of_jobs_runs_by_ray_s_own_command(head: Head, tmp_path: Path):
    output = head.storage / "by_script"
    words = ["sudoku", "--size", "4", "--train", "8", "--test", "2", "--output", str(output)]
    ray = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--address",
        head.url,
        "--working-dir",
        str(ROOT),
    ]
    env = {**head.env, "RAY_AUTH_MODE": "token"}
    del env["RAY_API_SERVER_ADDRESS"]
    ended = subprocess.run(
        [*ray, "--", "python", "jobs/prepare.py", *words],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (output / "dataset.json").is_file()


# ---- what goes wrong before there is a job -----------------------------------------------------------------


@pytest.mark.slow
def test_a_server_that_wants_a_token_is_told_from_one_that_is_not_there(head: Head, tmp_path: Path):
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    for words, env, code, told in (
        (["--address", nobody], {}, 1, rf"no Ray job server answers at {nobody}; `ray dashboard cluster\.yaml`"),
        (
            [],
            {"RAY_API_SERVER_ADDRESS": None},
            2,
            r"no job server is named; use --address http://HOST:8265 or RAY_API_",
        ),
    ):
        ended = head.ask_here("list", *words, **env)
        assert ended.exit_code == code, ended.stderr
        assert re.search(told, ended.stderr), ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    # In processes of their own, since Ray keeps the token that a process has used once.
    without = replace(head, env={**head.env, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    wrong = replace(head, env={**head.env, "RAY_AUTH_TOKEN": "0" * 64})
    for asking, told in (
        (without, r"asks for a token; copy the cluster's to ~/\.ray/auth_token"),
        (wrong, r"refuses this machine's token"),
    ):
        done = asking.run("jobs", "list", cwd=tmp_path)
        assert done.returncode == 1, done.stderr
        assert re.search(told, done.stderr), done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_job_that_is_not_there_is_refused_also_behind_a_proxy_for_the_rest_of_the_world(head: Head):
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    ended = head.ask_here("stop", "train-of-nobody", **proxies, no_proxy=None, NO_PROXY=None)
    assert ended.exit_code == 2
    assert "train-of-nobody is no job of this cluster; `trm-ray jobs list` shows those there are" in ended.stderr


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.1", True), ("localhost", True), ("10.1.2.3", True), ("8.8.8.8", False), ("", False)]
)
def test_a_proxy_is_passed_by_on_the_way_to_near_hosts_alone(host: str, near: bool):
    assert _is_near(host) == near


# ---- without a cluster -------------------------------------------------------------------------------------


def test_the_working_directory_goes_along_without_data_runs_tests_and_secrets(tmp_path: Path):
    for name in ("trm_ray", "configs", "jobs", ".rayignore", ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for name in ("data/x", "runs/x", "docs/x", "tests/x", ".git/x", ".venv/x", "venv/x", ".env", "secret.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    package = tmp_path / "package.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(str(tmp_path), package, include_gitignore=True, excludes=excludes, logger=logging.getLogger("quiet"))
    names = zipfile.ZipFile(package).namelist()
    assert {name.split("/")[0] for name in names} == {"trm_ray", "configs", "jobs"}
    scripts = {"train", "sweep", "prepare", "evaluate", "compare"}
    assert {f"jobs/{name}.py" for name in scripts} <= set(names)
    assert not any("__pycache__" in name for name in names)


def test_what_only_has_the_name_of_a_config_does_not_keep_a_job_from_being_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "task").mkdir(parents=True)
    (tmp_path / "configs" / "mine.yaml").write_text("lr: 0.5\n")
    (tmp_path / "configs" / "._mine.yaml").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "configs" / "gone.yaml").symlink_to(tmp_path / "nowhere.yaml")
    os.mkfifo(tmp_path / "configs" / "task" / "pipe.yaml")
    _working_copy((), tmp_path / "copy")
    shipped = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    copied = {str(path.relative_to(tmp_path / "copy" / "configs")) for path in (tmp_path / "copy").rglob("*.yaml")}
    assert copied == shipped | {"mine.yaml"}
    told = "left behind: configs/gone.yaml, configs/task/pipe.yaml (a config is a readable file of up to 1 MiB)"
    assert [record.getMessage() for record in caplog.records] == [told]


class BreakingServer:
    """A job server whose first connection breaks in the middle of a log."""

    log = "one\ntwo\nthree\n"

    def __init__(self) -> None:
        self.connections = 0

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        self.connections += 1
        yield self.log[:5]
        if self.connections == 1:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield self.log[5:9]

    def list_jobs(self) -> list[JobDetails]:
        return [JobDetails(type="SUBMISSION", submission_id="x", status="SUCCEEDED", entrypoint="true")]

    def get_job_info(self, name: str) -> JobDetails:
        return self.list_jobs()[0]

    def get_job_logs(self, name: str) -> str:
        return self.log


def test_a_log_is_shown_once_whatever_happens_to_the_connection():
    server, shown = BreakingServer(), []
    assert JobLog(server, "x", shown.append).follow().succeeded  # type: ignore[arg-type]
    assert server.connections == 2
    assert "".join(shown) == server.log


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("Step 1\nerror: no data\n", "no data"),
        ("error: first\nerror: second\nbye\n", "second"),
        ("Traceback\nValueError: what\n\n", "ValueError: what"),
        ("", "it left no word"),
    ],
)
def test_the_cause_is_the_last_error_or_the_last_line(log: str, cause: str):
    assert last_error(log) == cause
