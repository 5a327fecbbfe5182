"""Ctrl-C under Ray: the workers save the step under way, and the run goes on as if nobody had asked."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from as_found import left_as_found
from ctrl_c import ctrl_c_once
from helpers import metric_rows
from run_helpers import run_config

from trm_ray.distributed.trainer import train_on_ray
from trm_ray.run import RunPlan, claim_folder, is_finished, plan_run, start_step, train_in_process
from trm_ray.selftest.ground import Ground, started, wait_for_hit
from trm_ray.training.stopping import STOP_FILE, Interrupted

pytestmark = pytest.mark.ray


def planned(data: Path, folder: Path, steps: int) -> RunPlan:
    same_at_any_length = [f"max_steps={steps}", "lr_min_ratio=1"]
    often = ["eval_interval=50", "log_interval=10", "keep_last=3"]
    return plan_run(run_config(data, folder, *same_at_any_length, *often))


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_saves_the_step_under_way_and_a_resume_arrives_at_the_same_bytes(puzzles: Path, tmp_path: Path):
    """`test_changing_clusters.py` has two workers that stop together, `test_stop.py` two that go on bitwise."""
    endless = planned(puzzles, tmp_path / "stopped", 100_000)
    claim_folder(endless)
    with pytest.raises(Interrupted) as stopped, ctrl_c_once((endless.folder / "checkpoint_step_50").exists):
        train_on_ray(endless)
    step = start_step(endless)
    assert step > 50
    assert str(stopped.value) == f"stopped after step {step}, which is saved"
    assert stopped.value.exit_code == 130
    assert not (endless.folder / STOP_FILE).exists()
    stopped_run, whole_run = endless.folder, tmp_path / "whole"
    rest, whole = (planned(puzzles, folder, step + 25) for folder in (stopped_run, whole_run))
    claim_folder(rest, resume=True)
    with left_as_found():
        evaluation = train_on_ray(rest)
    claim_folder(whole)
    assert train_in_process(whole) == evaluation
    assert is_finished(rest)
    for file in ("state.pt", "identifiers.json"):
        assert (stopped_run / "final_model" / file).read_bytes() == (whole_run / "final_model" / file).read_bytes()
    assert metric_rows(stopped_run) == metric_rows(whole_run)
    steps = [json.loads(line)["step"] for line in (endless.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted({*range(10, step + 26, 10), step + 25})


def test_a_second_ctrl_c_ends_a_run_on_ray_without_waiting_and_leaves_no_process(tmp_path: Path):
    ground = Ground(tmp_path, 1)
    plan = ground.plan("endless", max_steps=1_000_000, eval_interval=1_000_000, ray__num_workers=1)
    with started(plan) as process:
        wait_for_hit(plan.folder, process)
        processes = descendants(process.pid)
        lasting = {pid for pid in processes if name_of(pid).startswith(("gcs_server", "raylet", "ray::RayTrain"))}
        assert len(lasting) >= 3
        # What a closed terminal and a batch system send to all; a terminal's own signals reach its session alone.
        assert not {pid for pid in lasting if os.getsid(pid) == os.getsid(process.pid)}
        for pid in processes:
            with suppress(ProcessLookupError):  # Ray ends workers that have nothing to do
                os.kill(pid, signal.SIGHUP)
                os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        assert lasting <= descendants(process.pid)
        process.send_signal(signal.SIGINT)
        first = process.stderr.readline()
        while not (plan.folder / STOP_FILE).exists():  # the last that is done about the first one
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert first == "stopping after the step under way; Ctrl-C again ends without saving it\n"
    told = "ended at once; the last checkpoint stands; the same command with --resume goes on"
    assert rest == f"error: interrupted: {told}\n"
    assert process.returncode == 130
    assert len(processes) > 3
    deadline = time.monotonic() + 60
    while left := {pid for pid in processes if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def name_of(pid: int) -> str:
    """What a process calls itself; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    told = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in told.splitlines())
    found, new = set[int](), {pid}
    while new := {child for child, parent in parents.items() if parent in new}:
        found |= new
    return found
