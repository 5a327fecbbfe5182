"""Two runs in turns: each is the run that it would have been alone, and they never train at once."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from helpers import SHAPE, assert_same, local_session, metric_rows, supervised, tiny_config

from trm_ray.runs.turns import ENDED, TurnSession, read_turns
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training

STEPS, WINDOW = 6, 2
CONFIG = tiny_config(max_steps=STEPS, log_interval=WINDOW, eval_interval=WINDOW, **supervised())


def train(run_dir: Path, kind: Callable[..., TurnSession] = TurnSession) -> None:
    """Train, and tell the other run of the end, as whoever starts two does."""
    run_training(CONFIG, SHAPE, STEPS, local_session(run_dir, CONFIG, kind=kind))
    (run_dir.parent / ENDED).touch()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    threads = [threading.Thread(target=train, args=(folder / name,)) for name in ("1", "0")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return folder


def test_turns_follow_each_other(pair: Path):
    times = [(pair / f"turn_{number}").stat().st_mtime_ns for number in range(1, 2 * STEPS // WINDOW + 1)]
    assert times == sorted(times)


def test_a_run_in_turns_is_the_run_alone(pair: Path, tmp_path: Path):
    run_training(CONFIG, SHAPE, STEPS, local_session(tmp_path, CONFIG))
    for name in ("0", "1"):
        assert metric_rows(pair / name) == metric_rows(tmp_path)
        ours, theirs = (load_checkpoint(run / "final_model") for run in (pair / name, tmp_path))
        assert_same(ours["model"], theirs["model"])


def test_each_turn_notes_its_rates_and_its_processor_time(pair: Path):
    for name in ("0", "1"):
        (rows,) = read_turns(pair / name)
        assert [row["step"] for row in rows] == [2, 4, 6]
        logged = list(map(json.loads, (pair / name / "metrics.jsonl").read_text().splitlines()))
        for row, line in zip(rows, logged, strict=True):
            assert row["throughput/steps_per_s"] == line["throughput/steps_per_s"]
            assert row["cpu_s"] > 0


@dataclass(frozen=True)
class Costly(TurnSession):
    """Spends a second a batch, and a hundred on each evaluation and each report, by a clock of its own."""

    spent: list[float] = field(default_factory=lambda: [0.0], kw_only=True)

    def train_batches(self, start):
        for batch in super().train_batches(start):
            self.spent[0] += 1
            yield batch

    def test_batches(self, whole=True):
        batches = super().test_batches(whole)
        self.spent[0] += 100
        return batches

    def report(self, step, metrics):
        self.spent[0] += 100
        super().report(step, metrics)


def test_evaluations_and_reports_are_in_no_turns_processor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spent = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: spent[0])
    (tmp_path / ENDED).touch()
    train(tmp_path / "0", partial(Costly, spent=spent))
    (rows,) = read_turns(tmp_path / "0")
    assert [row["cpu_s"] for row in rows] == [WINDOW] * (STEPS // WINDOW)


def test_a_run_whose_other_has_ended_waits_no_longer(tmp_path: Path):
    (tmp_path / ENDED).touch()
    train(tmp_path / "1")
    assert len(metric_rows(tmp_path / "1")) == 3
