"""Saving while training goes on: the same bits, nothing lost when the storage fails, and no more on it than asked."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SHAPE, RunDiedError, assert_same, local_session, metric_rows, tiny_config

from trm_ray.training import store as store_module
from trm_ray.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from trm_ray.training.loop import run_training
from trm_ray.training.session import Session
from trm_ray.training.store import CheckpointStore, StorageError

ROOT = Path(__file__).resolve().parents[2]


def state_of(step: int, size: int = 3) -> dict[str, Any]:
    return {"step": step, "model": {"w": torch.full((size,), float(step))}}


def saved(store: CheckpointStore, step: int, score: float | None = None) -> None:
    store.save(f"checkpoint_step_{step}", state_of(step), score=score)


def names(run_dir: Path) -> set[str]:
    return {path.name for path in run_dir.iterdir()}


def steps_in(run_dir: Path) -> list[int]:
    assert not list(run_dir.glob(".*"))
    return sorted(int(name.rpartition("_")[2]) for name in names(run_dir) if name.startswith("checkpoint_step_"))


class Flaky:
    """`save_checkpoint` on storage that fails the first times with an error, and notes the pauses in between."""

    def __init__(self, failures: int, error: OSError):
        self.failures, self.error, self.pauses = failures, error, []

    def __call__(self, folder: Path, *content: Any) -> Path:
        self.failures -= 1
        if self.failures >= 0 and "trm-ray-" not in str(folder):
            raise self.error
        return save_checkpoint(folder, *content)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# -- in the background ------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_state_of_its_step_though_training_went_on(tmp_path, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(store_module, "save_checkpoint", lambda *args: go.wait() and save_checkpoint(*args))
    state = {"step": 1, "model": {"w": torch.zeros(4), "list": [torch.zeros(2)]}}
    with CheckpointStore(tmp_path) as store:
        store.save("checkpoint_step_1", state)
        state["model"]["w"] += 1
        state["model"]["list"][0] += 1
        state["step"] = 2
        go.set()
    read = load_checkpoint(tmp_path / "checkpoint_step_1")
    assert (read["step"], read["model"]["w"].tolist(), read["model"]["list"][0].tolist()) == (1, [0.0] * 4, [0.0] * 2)


def test_a_view_of_a_large_tensor_is_saved_without_the_rest(tmp_path):
    with CheckpointStore(tmp_path) as store:
        store.save("final_model", {"step": 1, "view": torch.zeros(1_000_000)[:3]})
    assert (tmp_path / "final_model" / "state.pt").stat().st_size < 10_000


def test_a_save_waits_for_the_one_before_and_says_so_in_the_numbers(tmp_path, monkeypatch):
    at_work = []

    def slow(folder: Path, *content: Any) -> Path:
        at_work.append(folder)
        assert len(at_work) == 1
        threading.Event().wait(0.2)
        return save_checkpoint(at_work.pop(), *content)

    monkeypatch.setattr(store_module, "save_checkpoint", slow)
    with CheckpointStore(tmp_path) as store:
        saved(store, 1)
        first = store.numbers()
        saved(store, 2)
        second = store.numbers()
        store.wait()
        assert store.numbers()["checkpoint/write_s"] >= 0.2
    assert first.keys() == {"checkpoint/stall_ms"}
    assert first["checkpoint/stall_ms"] < 150
    assert second["checkpoint/stall_ms"] > 150
    assert second["checkpoint/write_s"] >= 0.2
    assert store.numbers() == {}


class Waiting(Session):
    """A session before whose report every checkpoint must be there: saving is as good as synchronous."""

    awaits_checkpoints = True


def test_a_run_that_waits_for_its_checkpoints_and_one_that_does_not_are_bitwise_one(tmp_path):
    config = tiny_config(eval_interval=2, ema=True, keep_last=2, keep_best=1)
    for kind in (Session, Waiting):
        run_training(config, SHAPE, 8, local_session(tmp_path / kind.__name__, config, kind=kind))
    first, second = tmp_path / "Session", tmp_path / "Waiting"
    assert metric_rows(first) == metric_rows(second)
    assert names(first) == names(second)
    for name in (*(f"checkpoint_step_{step}" for step in steps_in(first)), "final_model"):
        ours, theirs = load_checkpoint(first / name), load_checkpoint(second / name)
        for state in (ours, theirs):
            del state["wall_s"], state["core_seconds"]
        assert_same(ours, theirs)


def test_the_log_tells_what_saving_cost_at_the_next_row(tmp_path):
    config = tiny_config(eval_interval=2)
    run_training(config, SHAPE, 4, local_session(tmp_path, config, kind=Waiting))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    tags = [{tag for tag in row if tag.startswith("checkpoint/")} for row in rows]
    assert tags == [set(), set(), {"checkpoint/stall_ms", "checkpoint/write_s"}, set()]
    assert rows[2]["checkpoint/stall_ms"] >= 1000 * rows[2]["checkpoint/write_s"] > 0


# -- storage that fails -----------------------------------------------------------------------------------------------


def test_storage_that_fails_for_a_while_is_tried_again_with_growing_pauses(tmp_path, monkeypatch, caplog):
    flaky = Flaky(3, OSError(errno.EIO, "Input/output error"))
    monkeypatch.setattr(store_module, "save_checkpoint", flaky)
    with CheckpointStore(tmp_path, sleep=flaky.sleep) as store:
        saved(store, 1)
    assert flaky.pauses == [1, 2, 4]
    assert load_checkpoint(tmp_path / "checkpoint_step_1")["step"] == 1
    assert len(caplog.messages) == 3
    assert f"{tmp_path / 'checkpoint_step_1'} could not be written ([Errno 5]" in caplog.messages[0]


def test_storage_that_fails_for_good_ends_the_run_with_a_copy_elsewhere(tmp_path, elsewhere, monkeypatch):
    run_dir = tmp_path / "run"
    flaky = Flaky(100, OSError(errno.EIO, "Input/output error"))
    store = CheckpointStore(run_dir, sleep=flaky.sleep)
    saved(store, 1)
    store.wait()
    monkeypatch.setattr(store_module, "save_checkpoint", flaky)
    saved(store, 2)
    with pytest.raises(StorageError) as caught:
        store.wait()
    assert sum(flaky.pauses) == 30
    told = str(caught.value)
    assert f"{run_dir / 'checkpoint_step_2'} (step 2) could not be written: [Errno 5] Input/output error" in told
    (copy,) = elsewhere.glob("trm-ray-*/checkpoint_step_2")
    assert f"a copy is {copy} on " in told
    assert_same(load_checkpoint(copy)["model"], state_of(2)["model"])
    assert steps_in(run_dir) == [1]


def test_where_no_copy_can_be_written_either_the_error_says_so(tmp_path, elsewhere, monkeypatch):
    def full(folder: Path, *content: Any) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "save_checkpoint", full)
    store = CheckpointStore(tmp_path, sleep=lambda seconds: None)
    saved(store, 2)
    with pytest.raises(StorageError, match=r"No space left on device; nor could a copy on .*No space.*before it stand"):
        store.wait()
    assert names(elsewhere) == set()


@pytest.mark.parametrize("call", ["save", "wait", "numbers"])
def test_what_went_wrong_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch, call):
    def broken(folder: Path, *content: Any) -> Path:
        raise RunDiedError

    monkeypatch.setattr(store_module, "save_checkpoint", broken)
    store = CheckpointStore(tmp_path)
    saved(store, 1)
    assert store._saving is not None
    store._saving.exception()
    calls = {"save": lambda: saved(store, 2), "wait": store.wait, "numbers": store.numbers}
    with pytest.raises(RunDiedError):
        calls[call]()


def test_an_error_of_the_run_is_not_hidden_by_one_of_its_storage(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store_module, "save_checkpoint", Flaky(100, OSError(errno.EIO, "Input/output error")))

    def die_while_saving() -> None:
        with CheckpointStore(tmp_path, sleep=lambda seconds: None) as store:
            saved(store, 1)
            raise RunDiedError

    with pytest.raises(RunDiedError):
        die_while_saving()
    assert "checkpoint_step_1 (step 1) could not be written" in caplog.messages[-1]


def test_a_run_on_failing_storage_stops_and_its_last_checkpoint_stands(tmp_path, monkeypatch):
    config = tiny_config(eval_interval=2, keep_last=1)

    def fails_from_step_6_on(folder: Path, state: Any, *more: Any) -> Path:
        if state["step"] >= 6 and "trm-ray-" not in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_checkpoint(folder, state, *more)

    monkeypatch.setattr("trm_ray.storage.RETRY_DELAYS", ())
    monkeypatch.setattr(store_module, "save_checkpoint", fails_from_step_6_on)
    with pytest.raises(StorageError, match=r"checkpoint_step_6 \(step 6\) could not be written: .*No space left"):
        run_training(config, SHAPE, 8, local_session(tmp_path, config))
    assert steps_in(tmp_path) == [4]
    assert load_checkpoint(tmp_path / "checkpoint_step_4")["step"] == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_on_a_full_disk_nothing_half_is_left_and_space_that_comes_free_is_used(small_disk):
    ballast = small_disk / "ballast"

    def free(seconds: float) -> None:
        assert names(small_disk) == {"checkpoint_step_1", "ballast"}
        ballast.unlink(missing_ok=True)

    with CheckpointStore(small_disk, sleep=free) as store:
        saved(store, 1)
        store.wait()
        ballast.write_bytes(bytes(600_000))
        store.save("checkpoint_step_2", state_of(2, size=150_000))  # 600 kB
    assert steps_in(small_disk) == [1, 2]
    assert load_checkpoint(small_disk / "checkpoint_step_2")["model"]["w"].eq(2).all()


def test_an_error_in_the_middle_of_a_file_is_told_as_what_it_is(tmp_path, monkeypatch):
    """The system's own error for a file beyond a limit, with half of it written."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from trm_ray.training.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path(sys.argv[1]) / "checkpoint_step_1", {"step": 1, "w": torch.zeros(1_000_000)})
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[Errno 27] File too large\n"
    assert names(tmp_path) == set()


# -- killed -----------------------------------------------------------------------------------------------------------

KILLED = """
import os, random, signal, sys, time, torch
from pathlib import Path
from trm_ray.training.checkpoint import checkpoint_step, latest_checkpoint, load_checkpoint, remove_leftovers
from trm_ray.training.store import CheckpointStore

torch.set_num_threads(1)
run_dir, before, torn = Path(sys.argv[1]), 0, 0
random.seed(0)
for attempt in range(25):
    child = os.fork()
    if child == 0:
        with CheckpointStore(run_dir, keep_last=2) as store:
            for step in range(before + 1, 10**6):
                state = {"step": step, "w": torch.full((100_000,), float(step))}
                store.save(f"checkpoint_step_{step}", state, b"{}", score=1.0 / step)
                store.save("final_model", state)
    time.sleep(random.uniform(0.1, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += len(list(run_dir.glob(".*")))
    remove_leftovers(run_dir)
    assert not list(run_dir.glob(".*"))
    latest = latest_checkpoint(run_dir, verified=True)
    if latest is None:
        assert before == 0
        continue
    assert checkpoint_step(latest) >= before
    before = checkpoint_step(latest)
    state = load_checkpoint(latest)
    assert state["step"] == before and (state["w"] == before).all()
    assert len(list(run_dir.glob("checkpoint_step_*"))) <= 3
print(before, torn)
"""


def test_whoever_is_killed_while_saving_leaves_an_intact_checkpoint_and_nothing_that_stays(tmp_path):
    """25 processes, one after the other, that do nothing but save, each killed at another moment."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    last, torn = map(int, done.stdout.split())
    assert last > 25
    assert torn > 5  # the kills did hit saves


def test_a_run_goes_on_bitwise_from_the_checkpoint_before_a_damaged_one(tmp_path):
    config = tiny_config(eval_interval=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_training(config, SHAPE, 8, local_session(whole, config))
    shutil.copytree(whole, broken)
    for name in ("final_model", "checkpoint_step_8"):
        shutil.rmtree(broken / name)
    state = broken / "checkpoint_step_6" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    run_training(config, SHAPE, 8, local_session(broken, config))
    assert metric_rows(broken) == metric_rows(whole)
    for name in ("checkpoint_step_6", "final_model"):
        ours, theirs = load_checkpoint(broken / name), load_checkpoint(whole / name)
        for state in (ours, theirs):
            del state["wall_s"], state["core_seconds"]
        assert_same(ours, theirs)


# -- what stays -------------------------------------------------------------------------------------------------------

SCORES = {1: 0.9, 2: 0.1, 3: 0.7, 4: 0.2, 5: 0.8, 6: 0.6}


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "left"),
    [
        (None, 0, [1, 2, 3, 4, 5, 6]),
        (1, 0, [6]),
        (2, 0, [5, 6]),
        (1, 1, [2, 6]),
        (2, 2, [2, 4, 5, 6]),
        (9, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_latest_and_the_best_stay_and_the_final_model_in_any_case(tmp_path, keep_last, keep_best, left):
    save_checkpoint(tmp_path / "final_model", state_of(0))
    for steps in ((1, 2, 3), (4, 5, 6)):  # the second three after a resume
        with CheckpointStore(tmp_path, keep_last=keep_last, keep_best=keep_best) as store:
            for step in steps:
                saved(store, step, SCORES[step])
            store.save("final_model", state_of(steps[-1]))
    assert steps_in(tmp_path) == left
    assert load_checkpoint(tmp_path / "final_model")["step"] == 6


def test_an_evaluation_that_came_to_nothing_is_never_the_best(tmp_path):
    with CheckpointStore(tmp_path, keep_last=1, keep_best=1) as store:
        for step, score in enumerate([float("nan"), None, 0.5, float("-inf"), 0.7], start=1):
            saved(store, step, score)
    assert steps_in(tmp_path) == [3, 5]


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_latest(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / f"checkpoint_step_{step}", state_of(step))
    os.truncate(tmp_path / "checkpoint_step_3" / "state.pt", 100)
    with CheckpointStore(tmp_path, keep_last=2) as store:
        saved(store, 4)
    assert steps_in(tmp_path) == [2, 4]


def test_what_an_earlier_attempt_left_at_later_steps_does_not_push_out_the_good_ones(tmp_path):
    for step in (10, 20, 30):  # 20 and 30 turned out to be damaged, so the run went on from 10
        save_checkpoint(tmp_path / f"checkpoint_step_{step}", state_of(step))
    with CheckpointStore(tmp_path, keep_last=1) as store:
        saved(store, 15)
        store.wait()
        assert steps_in(tmp_path) == [15, 20, 30]
        saved(store, 20)
    assert steps_in(tmp_path) == [20, 30]
    assert load_checkpoint(tmp_path / "checkpoint_step_20")["step"] == 20


def test_a_save_that_fails_removes_no_older_checkpoint(tmp_path, monkeypatch):
    with CheckpointStore(tmp_path, keep_last=1) as store:
        saved(store, 1)
        store.wait()
        monkeypatch.setattr(store_module, "save_checkpoint", Flaky(1, OSError(errno.EIO, "Input/output error")))
        monkeypatch.setattr("trm_ray.storage.RETRY_DELAYS", ())
        saved(store, 2)
        with pytest.raises(StorageError):
            store.wait()
    assert steps_in(tmp_path) == [1]


def test_old_checkpoints_that_cannot_be_removed_do_not_end_a_run(tmp_path, monkeypatch, caplog):
    rename = os.rename

    def none_out(source: Path, target: Path) -> None:
        if str(target).endswith(".old"):
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    with CheckpointStore(tmp_path, keep_last=1) as store:
        saved(store, 1)
        store.wait()
        monkeypatch.setattr(store_module.os, "rename", none_out)
        saved(store, 2)
    monkeypatch.undo()
    assert steps_in(tmp_path) == [1, 2]
    assert "checkpoint_step_1 could not be removed" in caplog.messages[-1]


def test_a_run_keeps_by_its_evaluations_and_a_resume_finds_what_it_needs(tmp_path):
    config = tiny_config(eval_interval=1, keep_last=2, keep_best=1)
    with pytest.raises(RunDiedError):
        run_training(config, SHAPE, 8, local_session(tmp_path, config, die_after=5))
    run_training(config, SHAPE, 8, local_session(tmp_path, config))
    losses = {step: row["eval/loss"] for step, row in metric_rows(tmp_path).items()}
    assert steps_in(tmp_path) == sorted({7, 8, min(losses, key=lambda step: losses[step])})
    assert latest_checkpoint(tmp_path, verified=True) == tmp_path / "checkpoint_step_8"


def test_keeping_the_best_without_saying_how_many_of_the_latest_is_refused():
    with pytest.raises(ValueError, match="keep_best=1 needs keep_last, which is null: all stay; use keep_last=2"):
        tiny_config(keep_best=1)
    assert tiny_config(keep_best=1, keep_last=2).keep_best == 1
