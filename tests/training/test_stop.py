"""A run that is asked to stop saves where it stands, and goes on as if nobody had asked."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SHAPE, local_session, metric_rows, supervised, tiny_config
from workers import begin_work

from trm_ray.training.loop import run_training
from trm_ray.training.session import Session
from trm_ray.training.stopping import STOP_FILE, Interrupted, StopFile, StopSignals, StopVotes

NUM_STEPS = 6
# Steps with nothing due, with a log, with an evaluation of two batches, with both; gradients measured in between.
CONFIG = tiny_config(
    max_steps=NUM_STEPS, eval_interval=4, log_interval=3, ema=True,
    **supervised(compute_gradient_stats=True, gradient_stats_interval=2),
)  # fmt: skip
# Asked once a step, and in each of the two evaluations once a batch and once after the last.
NUM_LOOKS = NUM_STEPS + 2 * 3


def from_look(number: int) -> Callable[[], bool]:
    """Be asked to stop between two looks: look `number` is the first that sees it."""
    looks = iter(range(1, 1000))
    return lambda: next(looks) >= number


def run(folder: Path, stop_requested: Callable[[], bool] = lambda: False) -> Session:
    session = replace(local_session(folder, CONFIG), stop_requested=stop_requested)
    run_training(CONFIG, SHAPE, NUM_STEPS, session)
    return session


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def final_bytes(folder: Path) -> bytes:
    return (folder / "final_model" / "state.pt").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def assert_whole(folder: Path, whole: Path) -> None:
    assert logged_steps(folder) == logged_steps(whole) == [2, 3, 4, 6]
    assert metric_rows(folder) == metric_rows(whole)
    assert final_bytes(folder) == final_bytes(whole)


# ---- one process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", range(1, NUM_LOOKS + 1))
def test_a_run_stopped_at_any_point_goes_on_to_the_same_rows_and_the_same_bytes(tmp_path, whole, look):
    with pytest.raises(Interrupted, match=r"stopped after step \d, which is saved") as stopped:
        run(tmp_path, from_look(look))
    step = int(str(stopped.value).split()[3].rstrip(","))
    assert (tmp_path / f"checkpoint_step_{step}" / "manifest.json").is_file()
    assert all(logged < step for logged in logged_steps(tmp_path)) if (tmp_path / "metrics.jsonl").exists() else True
    assert not (tmp_path / "final_model").exists()
    run(tmp_path)
    assert_whole(tmp_path, whole)


def test_a_run_looks_that_often(tmp_path):
    """What makes the test above one of every point."""
    run(tmp_path, from_look(NUM_LOOKS + 1))
    assert (tmp_path / "final_model").is_dir()


def test_a_run_stopped_again_and_again_arrives_all_the_same(tmp_path, whole):
    stops = 0
    while not (tmp_path / "final_model").exists():
        try:
            run(tmp_path, from_look(4))  # an evaluation that is given up is begun anew, and takes three
        except Interrupted:
            stops += 1
        assert stops < 50
    assert stops >= 2
    assert_whole(tmp_path, whole)


def test_a_run_that_is_asked_at_once_stops_after_one_step(tmp_path):
    with pytest.raises(Interrupted, match="stopped after step 1"):
        run(tmp_path, lambda: True)


def test_a_stopped_runs_seconds_go_on(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, from_look(3))
    of_run = json.loads((tmp_path / "checkpoint_step_3" / "run.json").read_text())
    assert of_run["wall_s"] > 0


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_and_its_number_becomes_the_exit_code(number, code):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def stopped_by_it() -> None:
        with StopSignals() as signals:
            assert not signals.requested()
            os.kill(os.getpid(), number)
            assert signals.requested()
            raise Interrupted

    with pytest.raises(Interrupted) as stopped:
        stopped_by_it()
    assert stopped.value.exit_code == code
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_second_ctrl_c_interrupts_at_once():
    def interrupted_twice() -> None:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt) as interrupted:
        interrupted_twice()
    assert not isinstance(interrupted.value, Interrupted)


def test_a_signal_makes_the_file_that_tells_workers_and_an_old_one_is_removed(tmp_path):
    path = tmp_path / STOP_FILE
    path.touch()
    with StopSignals(path):
        assert not path.exists()
        asked = StopFile(path)
        assert not asked.requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert path.exists()
        assert not asked.requested()  # looks twice a second at most
        time.sleep(0.6)
        assert asked.requested()
    assert not path.exists()
    assert asked.requested()  # once asked, always


def test_ctrl_c_during_training_saves_the_step_under_way(tmp_path, whole):
    session = local_session(tmp_path, CONFIG)

    def log_and_interrupt(step, wall_s, metrics):
        session.log_row(step, wall_s, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    def interrupted() -> None:
        with StopSignals() as signals:
            asked = replace(session, log_row=log_and_interrupt, stop_requested=signals.requested)
            run_training(CONFIG, SHAPE, NUM_STEPS, asked)

    with pytest.raises(Interrupted, match="stopped after step 4") as stopped:
        interrupted()
    assert stopped.value.exit_code == 130
    run(tmp_path)
    assert_whole(tmp_path, whole)


# ---- several workers -------------------------------------------------------------------------------------------------

STOPS = {"training": 3, "evaluation": 6}


def stop_one_rank(rank: int, folder: Path) -> None:
    """Ask the second of two processes alone, in the middle of training and of an evaluation; then let both go on."""
    begin_work(rank, folder, world_size=2)
    for name, look in [*STOPS.items(), ("whole", 1000)]:
        for stop in (from_look(look) if rank == 1 else lambda: False, lambda: False):
            session = local_session(folder / name, CONFIG, test_batch_size=1, rank=rank, world_size=2)
            try:
                run_training(CONFIG, SHAPE, NUM_STEPS, replace(session, stop_requested=stop))
            except Interrupted as stopped:
                (folder / name / f"{rank}.txt").write_text(str(stopped))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_workers")
    torch.multiprocessing.spawn(stop_one_rank, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize(("name", "step"), [("training", 3), ("evaluation", 4)])
def test_all_workers_stop_after_the_same_step_and_go_on_to_the_same_bytes(two_workers, name, step):
    for rank in (0, 1):
        told = (two_workers / name / f"{rank}.txt").read_text()
        assert told == f"stopped after step {step}, which is saved"
    assert_whole(two_workers / name, two_workers / "whole")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_votes_are_read_four_steps_later():
    votes = StopVotes(torch.device("cuda"))
    carried = []
    for step in range(8):
        votes.add(torch.full((), float(step == 1), device="cuda"))
        carried.append(votes.carried())
    assert carried.index(True) == 5
    assert sum(carried) == 1
