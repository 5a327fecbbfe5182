"""A program that uses the Python API finds itself afterwards as it was: also when something went wrong."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from as_found import left_as_found
from run_helpers import run_config, some_puzzles

import trm_ray
from trm_ray.training.optim import NonFiniteError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return trm_ray.train(run_config(data, folder, "ray.num_workers=0")).folder


@pytest.fixture(autouse=True)
def three_threads(run: Path) -> Iterator[None]:
    """Begin with a number that nothing of ours would choose, and after torch's imports, which set a variable."""
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def test_training_leaves_the_program_as_it_was(data: Path, tmp_path: Path):
    config = run_config(data, tmp_path / "run", "ray.num_workers=0", "ema=true")
    with left_as_found():
        trm_ray.train(config)
    with left_as_found():
        trm_ray.train(config, resume=True)
    with left_as_found(), pytest.raises(ValueError, match="already holds a run"):
        trm_ray.train(config)


def test_training_that_fails_leaves_the_program_as_it_was(data: Path, tmp_path: Path):
    config = run_config(data, tmp_path / "run", "ray.num_workers=0", "lr=1e30", "lr_warmup_steps=0")
    with left_as_found(), pytest.raises(NonFiniteError):
        trm_ray.train(config)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_training_that_is_interrupted_leaves_the_program_as_it_was(data: Path, tmp_path: Path, number: int):
    config = run_config(data, tmp_path / "run", "ray.num_workers=0", "max_steps=100000")
    with left_as_found(), pytest.raises(KeyboardInterrupt) as stopped, signal_once_there(tmp_path, number):
        trm_ray.train(config)
    assert stopped.value.exit_code == 128 + number
    assert list((tmp_path / "run").glob("checkpoint_step_*"))


def test_measuring_loading_and_solving_leave_the_program_as_it_was(run: Path, data: Path):
    with left_as_found():
        trm_ray.evaluate(run)
        model = trm_ray.load_model(run)
        trm_ray.solve(model, torch.ones(2, 16))
    with left_as_found(), pytest.raises(ValueError, match="at least 1"):
        trm_ray.evaluate(run, segments=[0])
    words = [f"data_paths=[{data / 'nothing'}]", "task=null", "max_steps=1", f"log_dir={run / 'sweep'}"]
    with left_as_found(), pytest.raises(ValueError, match="nothing"):
        trm_ray.sweep("five_scenarios", words)


def test_a_program_may_train_in_another_thread(data: Path, tmp_path: Path):
    """Where signals cannot be taken over."""
    ended: list[Path] = []
    config = run_config(data, tmp_path / "run", "ray.num_workers=0")
    with left_as_found():
        thread = threading.Thread(target=lambda: ended.append(trm_ray.train(config).folder))
        thread.start()
        thread.join()
    assert ended == [tmp_path / "run"]


def test_a_programs_own_handler_stays_in_charge(data: Path, tmp_path: Path):
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with left_as_found(), signal_once_there(tmp_path, signal.SIGUSR1):
            trm_ray.train(run_config(data, tmp_path / "run", "ray.num_workers=0"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
    assert (tmp_path / "run" / "final_model").is_dir()


class signal_once_there:  # noqa: N801
    """Send this process a signal once a run has logged its first row."""

    def __init__(self, folder: Path, number: int):
        self._metrics, self._number, self._over = folder / "run" / "metrics.jsonl", number, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not (self._metrics.is_file() and self._metrics.stat().st_size) and not self._over.wait(0.001):
            pass
        os.kill(os.getpid(), self._number)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
