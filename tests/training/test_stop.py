"""A run that is asked to stop saves where it stands, and goes on as if nobody had asked."""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from as_found import left_as_found
from helpers import SHAPE, local_session, metric_rows, supervised, tiny_config
from workers import begin_work

from trm_ray.training.loop import run_training
from trm_ray.training.session import Session
from trm_ray.training.stopping import STOP_FILE, Interrupted, StopFile, StopSignals, StopVotes, stops_at_once

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

# As a shell tells them: 128 + the signal's number, which POSIX fixes for the first three.
CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138, "SIGUSR2": 140, "SIGXCPU": 152}


def send(number: int) -> None:
    """Send this process a signal, and let Python answer it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_asks_and_its_number_becomes_the_exit_code(name: str):
    def stopped_by_it() -> None:
        with StopSignals() as signals:
            assert not signals.requested()
            send(getattr(signal, name))
            assert signals.requested()
            raise Interrupted

    with left_as_found(), pytest.raises(Interrupted) as stopped:
        stopped_by_it()
    assert stopped.value.exit_code == CODES[name]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SIGINT", "; Ctrl-C again ends without saving it"),
        ("SIGTERM", "; SIGTERM again ends without saving it"),
        ("SIGUSR1", " (SIGUSR1)"),
    ],
)
def test_a_request_is_answered_in_words_that_fit_its_signal(name: str, told: str, caplog: pytest.LogCaptureFixture):
    with left_as_found(), StopSignals() as signals:
        signals.requested()
        send(getattr(signal, name))
    assert caplog.messages == [f"stopping after the step under way{told}"]


@pytest.mark.parametrize("first", ["SIGINT", "SIGHUP"])
def test_a_ctrl_c_after_a_first_request_interrupts_at_once(first: str):
    def interrupted_twice() -> None:
        with StopSignals() as signals:
            signals.requested()
            send(getattr(signal, first))
            send(signal.SIGINT)
            send(signal.SIGINT)

    with left_as_found(), pytest.raises(KeyboardInterrupt) as interrupted:
        interrupted_twice()
    assert not isinstance(interrupted.value, Interrupted)
    assert interrupted.value.exit_code == 130


def test_signals_that_come_again_by_themselves_change_nothing():
    """A closed terminal sends two, `timeout` its own twice in a moment, Slurm another one after a while."""
    with left_as_found(), StopSignals() as signals:
        signals.requested()
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGHUP, signal.SIGCONT, signal.SIGTERM, signal.SIGTERM):
            send(number)
        assert signals.requested()


def test_a_process_that_goes_on_after_a_pause_is_not_asked_to_stop():
    with StopSignals() as signals:
        signals.requested()
        send(signal.SIGCONT)
        assert not signals.requested()


def test_what_is_ignored_stays_ignored_as_nohup_wants_it():
    with handled(signal.SIGHUP, signal.SIG_IGN), left_as_found(), stops_at_once(), StopSignals() as signals:
        send(signal.SIGHUP)
        assert not signals.requested()


def test_a_programs_own_handler_is_asked_instead():
    heard: list[int] = []
    with handled(signal.SIGUSR1, lambda number, frame: heard.append(number)), left_as_found(), stops_at_once():
        send(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]


def test_a_handler_that_python_does_not_know_of_is_left_alone(capfd: pytest.CaptureFixture[str]):
    faulthandler.register(signal.SIGUSR2, file=sys.__stderr__)
    try:
        with stops_at_once(), StopSignals() as signals:
            signals.requested()
            send(signal.SIGUSR2)
            assert not signals.requested()
    finally:
        faulthandler.unregister(signal.SIGUSR2)
    assert "most recent call first" in capfd.readouterr().err


def test_rays_own_handler_gives_way():
    """It would end the process; a module's name is all that tells whose it is."""

    def ends() -> None:
        raise SystemExit

    ends.__module__ = "ray._private.worker"
    with handled(signal.SIGTERM, ends), left_as_found(), StopSignals() as signals:
        signals.requested()
        send(signal.SIGTERM)
        assert signals.requested()


# ---- with nothing to be saved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_before_anything_is_to_be_saved_a_signal_ends_at_once(name: str):
    def ended() -> None:
        with stops_at_once(), StopSignals():  # which nobody has asked yet, so no step was taken
            send(getattr(signal, name))
            pytest.fail("nothing happened")

    with left_as_found(), pytest.raises(Interrupted, match="nothing was left to save") as stopped:
        ended()
    assert stopped.value.exit_code == CODES[name]


def test_the_way_out_is_not_broken_off_by_the_same_signal_again():
    done: list[str] = []

    def ended() -> None:
        with stops_at_once():
            try:
                send(signal.SIGTERM)
            finally:
                send(signal.SIGTERM)
                time.sleep(0.5)  # for longer than a signal would be taken for lost
                done.append("cleaned up")

    with pytest.raises(Interrupted):
        ended()
    assert done == ["cleaned up"]


def lose_in_finalizer() -> None:
    class Finalized:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    Finalized()
    time.sleep(20)


def lose_in_except() -> None:
    with suppress(BaseException):
        send(signal.SIGTERM)
    time.sleep(20)


def lose_in_import_error() -> None:
    try:
        send(signal.SIGTERM)
    except BaseException:
        raise ImportError("initialization failed") from None


@pytest.mark.parametrize("lose", [lose_in_finalizer, lose_in_except, lose_in_import_error])
def test_a_signal_is_not_lost_where_python_or_an_import_swallows_it(
    lose: Callable[[], None], capfd: pytest.CaptureFixture[str]
):
    began = time.monotonic()

    def ended() -> None:
        with stops_at_once():
            lose()

    with left_as_found(), pytest.raises(Interrupted) as stopped:
        ended()
    assert stopped.value.exit_code == 143
    assert time.monotonic() - began < 10
    assert capfd.readouterr().err == ""


def test_an_error_that_no_signal_has_made_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), stops_at_once():
        _ = 1 / 0


def test_in_another_thread_nothing_is_taken_over():
    def look() -> None:
        with stops_at_once(), StopSignals() as signals:
            assert not signals.requested()

    with left_as_found():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()


# ---- files and steps -------------------------------------------------------------------------------------------------


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

    def log_and_interrupt(step, wall_s, metrics, depths=None):
        session.log_row(step, wall_s, metrics, depths)
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
