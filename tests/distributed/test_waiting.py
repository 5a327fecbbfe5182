"""Workers that do not come up: the wait has an end, and the first signal is heard."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ctrl_c import ctrl_c_once
from ray.util import placement_group, placement_group_table, remove_placement_group
from run_helpers import ROOT, run_config, some_puzzles, tiny_overrides

from trm_ray.distributed.ray_internals import write_note
from trm_ray.distributed.surroundings import StartError
from trm_ray.distributed.trainer import train_on_ray
from trm_ray.distributed.waiting import TellsOfWorkers, WorkerWatch, has_room, wait_beside
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.training.stopping import STOP_FILE, Interrupted

pytestmark = pytest.mark.ray


def test_what_the_work_raises_ends_the_wait():
    def fails() -> None:
        raise TimeoutError("the work's own")

    with pytest.raises(TimeoutError, match="the work's own"):
        wait_beside(fails, lambda: None)
    assert wait_beside(lambda: 3, lambda: pytest.fail("nothing to wait for")) == 3


@pytest.mark.usefixtures("cluster")
def test_the_clock_runs_while_there_is_room_and_no_worker():
    told, stops, nobody = TellsOfWorkers(), [], "ff" * 16

    def look_for(seconds: float, told: TellsOfWorkers = told) -> None:
        watch, end = WorkerWatch(told, 0.2, lambda: stops.append(1)), time.monotonic() + seconds
        while time.monotonic() < end:
            watch.look()
            time.sleep(0.05)

    def note(state: str) -> None:
        write_note(told.key, json.dumps([state, nobody]))

    for state in ("RUNNING", "RESIZING"):
        note(state)
        look_for(0.4)
    assert stops == []  # workers answer themselves
    note("SCHEDULING")  # and no room is held for it
    look_for(0.4)
    assert stops
    assert not has_room(nobody)
    not_even_the_controller = TellsOfWorkers()
    with pytest.raises(StartError, match=r"no worker of Ray came up within ray\.start_timeout_s=0\.2 seconds; .*/logs"):
        look_for(0.5, not_even_the_controller)


@pytest.mark.usefixtures("cluster")
def test_a_run_that_waits_for_room_ends_at_the_first_ctrl_c(puzzles: Path, tmp_path: Path):
    """Somebody else holds two CPUs of three: the data can be read, and two workers cannot start."""
    plan = plan_run(run_config(puzzles, tmp_path / "run", "ray.num_workers=2"))
    claim_folder(plan)
    taken = placement_group([{"CPU": 2}])
    ray.get(taken.ready())
    assert has_room(None)

    def it_waits() -> bool:
        return any(group["state"] == "PENDING" for group in placement_group_table().values())

    with pytest.raises(Interrupted, match="stopped before the first checkpoint") as stopped, ctrl_c_once(it_waits):
        train_on_ray(plan)
    assert stopped.value.exit_code == 130
    assert not (plan.folder / STOP_FILE).exists()
    remove_placement_group(taken)
    assert_nothing_goes_on(plan)


def assert_nothing_goes_on(plan: RunPlan) -> None:
    """The session is not the run's, and outlives it."""
    deadline = time.monotonic() + 120
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not list(plan.folder.glob("checkpoint_step_*"))


@pytest.mark.usefixtures("cluster")
def test_workers_that_take_too_long_end_a_run(puzzles: Path, tmp_path: Path):
    plan = plan_run(run_config(puzzles, tmp_path / "run", "ray.start_timeout_s=0.001"))
    claim_folder(plan)
    with pytest.raises(StartError, match=r"ray\.start_timeout_s=0\.001 seconds; .* says why"):
        train_on_ray(plan)
    assert_nothing_goes_on(plan)


# ---- a machine whose workers never come up -------------------------------------------------------------------

# Python runs this wherever it starts, as it does a broken `sitecustomize` of a system.
BREAKS_WORKERS = """
import sys
if any("default_worker" in word for word in sys.orig_argv):
    raise SystemExit("this worker ends before it has begun")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stop", [False, True])
def test_where_no_worker_comes_up_a_run_ends_by_itself_or_at_the_first_sigterm(tmp_path: Path, stop: bool):
    data = some_puzzles(tmp_path / "data", train=16, test=5)
    (tmp_path / "sitecustomize.py").write_text(BREAKS_WORKERS)
    words = [*tiny_overrides(), f"data_paths=[{data}]", f"log_dir={tmp_path / 'run'}"]
    words += ["ray.num_workers=1", f"ray.start_timeout_s={600 if stop else 4}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", "from trm_ray.cli import app; app()", "train", *words]
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as place:
        env["RAY_TMPDIR"] = place
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            if stop:
                _await(lambda: list(Path(place).glob("ray/session_*/sockets/raylet")), process)
                process.send_signal(signal.SIGTERM)
                asked = time.monotonic()
            _, told = process.communicate(timeout=240)
        finally:
            process.kill()
    *_, last = told.splitlines()
    if stop:
        assert process.returncode == 143
        assert re.fullmatch(r"error: interrupted: (stopped before the first checkpoint|ended while Ray .*); .*", last)
        assert time.monotonic() - asked < 60
    else:
        assert process.returncode == 1
        logs = rf"{place}/ray/session_\S+/logs"
        assert re.fullmatch(rf"error: no worker .* within ray\.start_timeout_s=4 seconds; {logs} on .* says why", last)
    assert "Traceback" not in told


def _await(there: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
