"""Evaluation on Ray workers gives what this process gives."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from run_helpers import run_config

from trm_ray.config import ConfigError
from trm_ray.distributed.evaluator import map_on_ray
from trm_ray.evaluations import evaluate_run
from trm_ray.run import claim_folder, plan_run, train_in_process

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def test_two_workers_give_what_one_process_gives(puzzles: Path, tmp_path: Path):
    plan = plan_run(run_config(puzzles, tmp_path / "run"))
    claim_folder(plan)
    train_in_process(plan)
    with patch("trm_ray.evaluations.save_evaluation", lambda evaluation, path, *words: path):
        here, there = (
            evaluate_run(plan.folder, segments=[2, 4], batch_size=8, num_workers=n, output=tmp_path / str(n))
            for n in (0, 2)
        )
    # The same batches in the same shapes, so to the last digit; NaN of empty bins is null in JSON.
    one, other = (json.loads(report.files[0].read_text()) for report in (here, there))
    for written in (one, other):
        del written["compute"]["seconds"]
    assert one == other
    assert one["num_rows"] == 65


def test_results_come_in_the_order_of_their_numbers(puzzles: Path, tmp_path: Path):
    def opened():
        return lambda number: number**2

    assert list(map_on_ray(opened, 7, run_config(puzzles, tmp_path), 2)) == [0, 1, 4, 9, 16, 25, 36]


def test_more_workers_than_the_machine_has_are_refused(puzzles: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--workers=64 with ray.cpus_per_worker=.*or --workers=0 to do without Ray"):
        next(map_on_ray(lambda: lambda number: number, 7, run_config(puzzles, tmp_path), 64))
