"""Sweeps: what is stopped, what is kept, what is given back, what a resume does."""

import ctypes
import io
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ctrl_c import ctrl_c_once
from helpers import assert_same, metric_rows
from ray.util import placement_group_table
from ray.util.state import list_actors
from rich.console import Console
from run_helpers import TINY_RUN, final_weights, run_config

from trm_ray.config import SweepConfig, to_yaml
from trm_ray.distributed.faults import Inventory
from trm_ray.distributed.tuner import STOPPED, Outcome
from trm_ray.distributed.worker import return_free_memory
from trm_ray.programs.sweep import SweepPlan, compare_trials, plan_sweep, start_sweep
from trm_ray.reporting.run_log import find_runs, read_run
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.training.checkpoint import checkpoint_step, latest_checkpoint
from trm_ray.training.clock import PARTS
from trm_ray.training.stopping import Interrupted

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

# Scenarios of these tests: one learns, two stand still, of which one is kept, and one explodes.
GOOD, IDLE, KEPT, WILD = ("good", "idle", "kept", "wild")
RATES = {GOOD: 3e-2, IDLE: 1e-9, KEPT: 1e-9, WILD: 1e30}
# The one to be stopped has far to go: with workers of its own it trains on until the stop has reached them.
STEPS = {GOOD: 6, IDLE: 600, KEPT: 6, WILD: 6}


def trial(scenario: str) -> str:
    return f"{scenario}-seed0"


@pytest.fixture(scope="module", autouse=True)
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work in a folder whose configs/ holds them."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "configs").mkdir()
    for name, rate in RATES.items():
        (folder / "configs" / f"{name}.yaml").write_text(f"task: sudoku4\nlr: {rate}\nmax_steps: {STEPS[name]}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def sweep_config(data: Path, folder: Path, scenarios: Sequence[str], **more: Any) -> SweepConfig:
    """ASHA judges at step 3, the first evaluation, where a trial that stands still is behind one that learns."""
    common = {key: value for key, value in TINY_RUN.items() if key not in ("lr", "max_steps")}
    values = {
        "scenarios": list(scenarios),
        "overrides": {**common, "data_paths": [str(data)], **more},
        "asha": {"grace_period": 3},
        "stop_on": [],
        "keep": [KEPT] if KEPT in scenarios else [],
        "max_concurrent_trials": 1,
        "log_dir": str(folder),
    }
    return SweepConfig.model_validate(values)


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended, with what it printed."""

    plan: SweepPlan
    outcome: Outcome
    printed: str

    def folder(self, scenario: str) -> Path:
        return self.plan.folder / trial(scenario)


def swept(sweep: SweepConfig, *, resume: bool = False) -> Swept:
    plan, console = plan_sweep(sweep), Console(file=io.StringIO(), width=200)
    outcome = start_sweep(plan, console, resume=resume, overwrite=False).outcome
    assert isinstance(console.file, io.StringIO)
    return Swept(plan, outcome, console.file.getvalue())


def assert_all_resources_are_back() -> None:
    total = ray.cluster_resources()["CPU"]
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != total or "CREATED" in _group_states():
        assert time.monotonic() < deadline, (ray.available_resources(), _group_states())
        time.sleep(0.2)


def _group_states() -> set[str]:
    return {group["state"] for group in placement_group_table().values()}


# ---- trials of one worker ------------------------------------------------------------------------------------


def trial_processes() -> set[str]:
    """Name the actors that train trials, or did."""
    address = ray.get_runtime_context().gcs_address
    return {actor.actor_id for actor in list_actors(address, [("class_name", "=", "Trial")])}


@pytest.fixture(scope="module")
def processes_before(puzzles: Path) -> set[str]:
    return trial_processes()


@pytest.fixture(scope="module")
def done(processes_before: set[str], puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return swept(sweep_config(puzzles, tmp_path_factory.mktemp("sweeps") / "größe 实验 🎉", [GOOD, IDLE, KEPT, WILD]))


def test_trials_of_one_worker_take_over_each_others_processes(processes_before: set[str], done: Swept):
    """They run one at a time, and the one that fails is the last."""
    assert len(trial_processes() - processes_before) == 1


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library gives no memory back")
def test_what_an_ended_thread_has_freed_goes_back_to_the_system():
    """128 MB in blocks too small to be mapped each, and one after them that is kept, as a trial leaves them."""
    kept: list[bytearray] = []

    def fill_and_free() -> None:
        blocks = [bytearray(64_000) for _ in range(2_000)]
        kept.append(bytearray(64_000))
        blocks.clear()

    thread = threading.Thread(target=fill_and_free)
    thread.start()
    thread.join()
    before = psutil.Process().memory_info().rss
    return_free_memory()
    assert before - psutil.Process().memory_info().rss > 100_000_000
    assert len(kept[0]) == 64_000


def test_a_sweeps_summary_tells_what_all_its_core_seconds_went_into(done: Swept):
    told = json.loads((done.plan.folder / "report" / "summary.json").read_text(encoding="utf-8"))["core_seconds"]
    available, total = told.pop("available"), told.pop("total")
    assert told.keys() == {*PARTS, "other"}
    assert min(told.values()) >= 0
    assert sum(told.values()) == pytest.approx(total)
    assert 0 < told["steps"] < total < available


def test_a_stopped_trial_gives_its_resources_back(done: Swept):
    assert (done.folder(IDLE) / STOPPED).is_file()
    assert_all_resources_are_back()


def test_every_trial_s_folder_is_a_run_s(done: Swept):
    assert {run.name for run in find_runs([done.plan.folder])} == set(map(trial, RATES))
    run = read_run(done.folder(GOOD))
    assert (run.config_name, run.config["lr"], run.config["log_dir"]) == (GOOD, RATES[GOOD], str(run.folder))
    assert run.environment["total_steps"] == 6


def test_a_trial_trains_bitwise_as_a_run_without_ray(done: Swept, puzzles: Path, tmp_path: Path):
    plan = plan_run(run_config(puzzles, tmp_path / "alone", f"lr={RATES[GOOD]}"))
    claim_folder(plan)
    train_in_process(plan)
    assert metric_rows(done.folder(GOOD)) == metric_rows(plan.folder)
    assert_same(final_weights(done.folder(GOOD)), final_weights(plan.folder))


@pytest.mark.slow
def test_a_trial_on_all_cpus_trains_on_a_split_that_does_not_fit_as_a_run_without_ray(puzzles: Path, tmp_path: Path):
    memory, cpus = {"data_memory_gib": 1e-5}, ray.cluster_resources()["CPU"]
    result = swept(sweep_config(puzzles, tmp_path / "sweep", [GOOD], **memory, **{"ray.cpus_per_worker": cpus}))
    plan = plan_run(run_config(puzzles, tmp_path / "alone", f"lr={RATES[GOOD]}", "data_memory_gib=1e-5"))
    assert not plan.holds_train
    claim_folder(plan)
    train_in_process(plan)
    assert metric_rows(result.folder(GOOD)) == metric_rows(plan.folder)
    assert_same(final_weights(result.folder(GOOD)), final_weights(plan.folder))


def test_a_trial_that_is_behind_is_stopped_at_its_first_evaluation(done: Swept):
    folder = done.folder(IDLE)
    assert json.loads((folder / STOPPED).read_text())["step"] == 3
    assert not (folder / "final_model").exists()
    assert (folder / "checkpoint_step_3" / "state.pt").is_file()
    assert read_run(folder).stopped_early


def test_a_scenario_to_keep_is_never_stopped(done: Swept):
    """It is as far behind as the one that was stopped."""
    run = read_run(done.folder(KEPT))
    assert (run.finished, run.last_step) == (True, 6)
    assert not (run.folder / STOPPED).exists()
    assert run.rows[-1]["eval/loss"] > read_run(done.folder(GOOD)).rows[-1]["eval/loss"]


def test_a_failing_trial_is_reported_and_the_others_go_on(done: Swept):
    assert done.outcome.failed.keys() == {trial(WILD)}
    assert "not finite" in done.outcome.failed[trial(WILD)]
    assert "try a lower lr" in done.outcome.failed[trial(WILD)]
    assert not (done.folder(WILD) / STOPPED).exists()


def test_a_sweep_tells_what_happens(done: Swept):
    lines = done.printed.splitlines()
    assert lines[0] == f"Sweep sweep: 4 trials in {done.plan.folder}"
    assert [line for line in lines if line.startswith("idle")][0::2] == [
        "idle-seed0  started",
        "idle-seed0  stopped early at step 3",
    ]
    assert (
        len([line for line in lines if re.match(r"good-seed0  step +[36] of 6  eval loss \d\.\d{4}  exact ", line)])
        == 2
    )
    assert {"good-seed0  finished", "kept-seed0  finished", "wild-seed0  failed"} <= set(lines)


def test_a_sweep_ends_with_a_ranking_a_command_and_a_picture(done: Swept):
    console = Console(file=io.StringIO(), width=200)
    compare_trials(done.plan, done.outcome, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert f"failed {trial(WILD)}: " in printed
    assert "trm-ray train --config-name good" in printed
    assert (done.plan.folder / "report" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def lines_of(done: Swept, name: str) -> list[str]:
    """What was told of a trial, without its evaluations."""
    lines = [line.split(maxsplit=1) for line in done.printed.splitlines() if line.startswith(name)]
    return [told for _, told in lines if not told.startswith("step")]


@pytest.fixture(scope="module")
def by_groups(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Scenarios compete over two seeds, and hopeless trials are ended. What failed would be tried twice more."""
    folder = tmp_path_factory.mktemp("sweeps") / "by_groups"
    sweep = sweep_config(puzzles, folder, [GOOD, IDLE, WILD], **{"ray.max_failures": 2}).model_dump()
    asha = {"grace_period": 3, "unit": "group"}
    told = {"seeds": [0, 1], "asha": asha, "stop_on": ["non_finite"], "max_concurrent_trials": 2}
    return swept(SweepConfig.model_validate({**sweep, **told}))


def test_a_hopeless_trial_is_stopped_for_good_and_is_no_failure(by_groups: Swept):
    assert by_groups.outcome.failed == {}
    for seed in (0, 1):
        mark = json.loads((by_groups.plan.folder / f"{WILD}-seed{seed}" / STOPPED).read_text())
        assert mark["by"] == "non_finite"
        state = f"stopped: not finite at step {mark['step']}"
        assert lines_of(by_groups, f"{WILD}-seed{seed}") == ["started", state]


def test_a_scenario_that_is_behind_over_its_seeds_is_stopped_whole(by_groups: Swept):
    steps = [json.loads((by_groups.plan.folder / f"{IDLE}-seed{seed}" / STOPPED).read_text()) for seed in (0, 1)]
    assert min(mark["step"] for mark in steps) == 3
    assert all(mark["by"] == "ASHA" and mark["step"] < STEPS[IDLE] for mark in steps)
    assert all(lines_of(by_groups, f"{GOOD}-seed{seed}") == ["started", "finished"] for seed in (0, 1))


@pytest.mark.slow
def test_the_second_stage_trains_on_what_was_stopped_and_adds_seeds(puzzles: Path, tmp_path: Path):
    """One after the other: the scenario that is behind is stopped, and then goes on; a resume finds nothing left."""
    sweep = sweep_config(puzzles, tmp_path / "stages", [GOOD, KEPT]).model_dump()
    staged = SweepConfig.model_validate({**sweep, "keep": [], "final": {"top_k": 2, "seeds": 2}})
    done = swept(staged)
    assert lines_of(done, trial(KEPT)) == ["started", "stopped early at step 3", "started", "finished"]
    assert lines_of(done, trial(GOOD)) == ["started", "finished"]
    assert "Final stage: good, kept, 3 trials to train" in done.printed.splitlines()
    runs = find_runs([done.plan.folder])
    names = [f"{name}-seed{seed}" for name in (GOOD, KEPT) for seed in (0, 1)]
    assert [(run.name, run.finished) for run in runs] == [(name, True) for name in names]
    assert [int(row["step"]) for row in read_run(done.folder(KEPT)).rows] == [1, 2, 3, 4, 5, 6]
    again = swept(staged, resume=True)
    assert "Final stage: good, kept, 0 trials to train" in again.printed.splitlines()
    assert "started" not in again.printed


def test_a_resumed_sweep_finishes_what_was_begun_and_leaves_the_rest(
    done: Swept, puzzles: Path, tmp_path_factory: pytest.TempPathFactory
):
    """A copy of the sweep, as if it had been killed after the first trial's first evaluation."""
    folder = tmp_path_factory.mktemp("sweeps") / "interrupted"
    shutil.copytree(done.plan.folder, folder)
    for name in ("final_model", "checkpoint_step_6"):
        shutil.rmtree(folder / trial(GOOD) / name)
    left = {path: _mark(path) for name in (IDLE, KEPT) for path in folder.glob(f"{trial(name)}/*/state.pt")}
    sweep = sweep_config(puzzles, folder, [GOOD, IDLE, KEPT])
    (folder / "sweep.yaml").write_text(to_yaml(sweep))

    before, actors = Inventory.take(), num_actors()
    again = swept(sweep, resume=True)
    assert_nothing_is_left_behind(before, actors)

    assert again.outcome == Outcome({})
    assert_same(final_weights(again.folder(GOOD)), final_weights(done.folder(GOOD)))
    lines = (again.folder(GOOD) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {path: _mark(path) for path in left} == left
    assert json.loads((again.folder(IDLE) / STOPPED).read_text())["step"] == 3
    assert not (again.folder(IDLE) / "final_model").exists()
    for name in (GOOD, IDLE, KEPT):
        assert metric_rows(again.folder(name)) == metric_rows(done.folder(name))
    for name in (IDLE, KEPT):
        assert len(list(again.folder(name).glob("events.*"))) == 1, "nothing was left to log"


def assert_nothing_is_left_behind(before: Inventory, actors: int) -> None:
    """No actor, no placement group, no file: what a trial leaves would be there again and again.

    Of processes Ray keeps as many idle ones as there are CPUs, so that the next that is asked for is there at once.
    """
    deadline = time.monotonic() + 30
    while True:
        left = Inventory.take().more_than(before)
        if left.pop("processes", 0) <= ray.cluster_resources()["CPU"] and not left and num_actors() <= actors:
            return
        assert time.monotonic() < deadline, (left, num_actors(), actors)
        time.sleep(0.5)


def num_actors() -> int:
    return len(list_actors(ray.get_runtime_context().gcs_address, [("state", "=", "ALIVE")]))


def _mark(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_ino


# ---- trials of several workers -------------------------------------------------------------------------------


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where Ray would wait for ever for resources that nobody gives back."""

    def expire(number: int, frame: object) -> None:
        raise TimeoutError(f"not done after {seconds} s: {ray.available_resources()}, {placement_group_table()}")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def done_by_workers(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Two workers a trial, who take all CPUs that there are."""
    folder, several = tmp_path_factory.mktemp("sweeps") / "workers", {"ray.num_workers": 2, "ray.cpus_per_worker": 1.5}
    with within(400):
        return swept(sweep_config(puzzles, folder, [GOOD, IDLE, WILD], **several))


@pytest.mark.slow
def test_a_stopped_trial_of_several_workers_gives_its_resources_back(done_by_workers: Swept):
    """The third trial could start, for which all CPUs of the second are needed, and nothing is held in the end."""
    assert read_run(done_by_workers.folder(GOOD)).finished
    assert json.loads((done_by_workers.folder(IDLE) / STOPPED).read_text())["step"] == 3
    assert done_by_workers.outcome.failed.keys() == {trial(WILD)}
    assert "not finite" in done_by_workers.outcome.failed[trial(WILD)]
    assert_all_resources_are_back()


@pytest.mark.slow
def test_a_trial_of_several_workers_evaluates_all_test_rows_and_logs_once(done_by_workers: Swept):
    lines = (done_by_workers.folder(GOOD) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    exact = json.loads(lines[2])["eval/exact_accuracy"] * 65
    assert exact == pytest.approx(round(exact), abs=1e-4)


# ---- Ctrl-C --------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_a_sweep_that_can_be_gone_on_with(puzzles: Path, tmp_path: Path):
    endless = {"max_steps": 20_000, "eval_interval": 20, "log_interval": 20}
    plan = plan_sweep(sweep_config(puzzles, tmp_path / "sweep", [GOOD, KEPT], **endless))
    console, reached = Console(file=io.StringIO(), width=200), dict[Path, int]()

    def trained() -> bool:
        if not list(plan.folder.glob("*/checkpoint_step_40")):
            return False
        reached.update({run.folder: run.last_step for run in find_runs([plan.folder])})
        return True

    with pytest.raises(Interrupted, match="2 trials did not finish") as stopped, ctrl_c_once(trained):
        start_sweep(plan, console, resume=False, overwrite=False)
    assert stopped.value.exit_code == 130
    for folder, step in reached.items():  # nothing is lost
        saved = latest_checkpoint(folder)
        assert saved is not None
        assert checkpoint_step(saved) >= step
    assert isinstance(console.file, io.StringIO)
    assert "stopped early at" not in console.file.getvalue()
    assert not list(plan.folder.glob(f"*/{STOPPED}"))
    assert not any(run.finished for run in find_runs([plan.folder]))
    assert_all_resources_are_back()
