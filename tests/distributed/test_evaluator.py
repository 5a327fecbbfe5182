"""Evaluation on Ray workers gives what this process gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from evaluation_helpers import arc_run, checkpoint
from run_helpers import run_config

from trm_ray.config import ConfigError
from trm_ray.distributed.evaluator import map_on_ray
from trm_ray.evaluations import Evaluator, MeasuredBatch, evaluate_run
from trm_ray.run import claim_folder, plan_run, train_in_process

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def sudoku_run(puzzles: Path, folder: Path) -> Path:
    plan = plan_run(run_config(puzzles, folder / "run"))
    claim_folder(plan)
    train_in_process(plan)
    return plan.folder


def arc_votes(puzzles: Path, folder: Path) -> Path:
    """A run with puzzle embeddings, the votes for whose puzzles travel from the workers."""
    return arc_run(folder)[0]


@pytest.mark.parametrize(("make_run", "batch_size", "num_rows"), [(sudoku_run, 8, 65), (arc_votes, 4, 2)])
def test_two_workers_give_what_one_process_gives(
    make_run: Callable[[Path, Path], Path], batch_size: int, num_rows: int, puzzles: Path, tmp_path: Path
):
    run = make_run(puzzles, tmp_path)
    with patch("trm_ray.evaluations.save_evaluation", lambda evaluation, path, *words: path):
        here, there = (
            evaluate_run(run, segments=[2, 4], batch_size=batch_size, num_workers=n, output=tmp_path / str(n))
            for n in (0, 2)
        )
    # The same batches in the same shapes, so to the last digit; NaN of empty bins is null in JSON.
    one, other = (json.loads(report.files[0].read_text()) for report in (here, there))
    for written in (one, other):
        del written["compute"]["seconds"]
    assert one == other
    assert one["num_rows"] == num_rows
    assert (one["voting"] is not None) == (make_run is arc_votes)
    assert [path.read_bytes() for path in here.files[1:-1]] == [path.read_bytes() for path in there.files[1:-1]]


def test_a_process_whose_workers_measure_holds_no_weights(puzzles: Path, tmp_path: Path):
    opened: list[Evaluator] = []

    class Noted(Evaluator):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            opened.append(self)

    def in_this_process(make: Callable[[], Evaluator], count: int, *options: Any) -> Iterator[MeasuredBatch]:
        return map(make(), range(count))

    with (
        patch("trm_ray.evaluations.Evaluator", Noted),
        patch("trm_ray.distributed.evaluator.map_on_ray", in_this_process),
        patch("trm_ray.evaluations.choose_device", side_effect=lambda config: torch.device("cpu")) as chosen,
        patch("trm_ray.evaluations.save_evaluation", lambda evaluation, path, *words: path),
    ):
        evaluate_run(checkpoint(tmp_path, puzzles), num_workers=2)
    driver, worker = opened
    assert {weight.device.type for weight in driver.loaded.model.parameters()} == {"meta"}
    assert {weight.device.type for weight in worker.loaded.model.parameters()} == {"cpu"}
    assert chosen.call_count == 1  # the driver asks for no device at all


def test_results_come_in_the_order_of_their_numbers(puzzles: Path, tmp_path: Path):
    def opened():
        return lambda number: number**2

    assert list(map_on_ray(opened, 7, run_config(puzzles, tmp_path), 2)) == [0, 1, 4, 9, 16, 25, 36]


def test_more_workers_than_the_machine_has_are_refused(puzzles: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--workers=64 with ray.cpus_per_worker=.*or --workers=0 to do without Ray"):
        next(map_on_ray(lambda: lambda number: number, 7, run_config(puzzles, tmp_path), 64))
