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
from trm_ray.programs.evaluate import Evaluator, MeasuredBatch, evaluate_run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def test_two_workers_give_what_one_process_gives(tmp_path: Path):
    """A run with puzzle embeddings, the votes for whose puzzles travel from the workers."""
    run = arc_run(tmp_path)[0]
    with patch("trm_ray.programs.evaluate.save_evaluation", lambda evaluation, path, *words: path):
        here, there = (
            evaluate_run(run, segments=[2, 4], batch_size=1, num_workers=n, output=tmp_path / str(n)) for n in (0, 2)
        )
    # The same batches in the same shapes, so to the last digit; NaN of empty bins is null in JSON.
    one, other = (json.loads(report.files[0].read_text()) for report in (here, there))
    for written in (one, other):
        del written["compute"]["seconds"]
    assert one == other
    assert one["num_rows"] == 2
    assert one["voting"] is not None
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
        patch("trm_ray.programs.evaluate.Evaluator", Noted),
        patch("trm_ray.distributed.evaluator.map_on_ray", in_this_process),
        patch("trm_ray.programs.evaluate.choose_device", side_effect=lambda config: torch.device("cpu")) as chosen,
        patch("trm_ray.programs.evaluate.save_evaluation", lambda evaluation, path, *words: path),
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
