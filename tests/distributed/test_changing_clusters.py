"""Nodes that come and go: the real autoscaler, and runs that go on when a node is lost or added.

Every cluster stands in a process of its own, since these tests have one in theirs. The picture in docs/sweep.md is of
such a run: `python tests/distributed/changing_clusters.py autoscaling DATA FOLDER docs/autoscaling.png`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import metric_rows

from trm_ray.config import Config, config_from_run, with_overrides
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.training.checkpoint import read_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EVAL_EVERY = 20
SCRIPT = Path(__file__).with_name("changing_clusters.py")


def recorded(what: str, data: Path, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(data), str(folder)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    record: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return record


# ---- the autoscaler --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scaled(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("autoscaling")
    return folder, recorded("autoscaling", puzzles, folder)


def test_nodes_come_for_a_sweep_that_the_head_has_no_room_for_and_go_when_idle(scaled: tuple[Path, dict[str, Any]]):
    """Two trials of one CPU on nodes of one."""
    seen = scaled[1]["seen"]
    assert seen[0]["nodes"] == 0
    at_once = [look["nodes"] for look in seen if look["trials"] == 2]
    assert at_once
    assert min(at_once) >= 2  # Ray counts a node that it has just replaced for a moment more
    assert seen[-1]["nodes"] == 0
    assert scaled[1]["failed"] == {}


def test_no_node_is_taken_away_from_a_trial_that_trains(scaled: tuple[Path, dict[str, Any]]):
    folder, record = scaled
    assert all(look["trials"] <= look["nodes"] for look in record["seen"])
    for run in (folder / "sweep").glob("deep_supervision_*"):
        assert [row["step"] for row in lines(run)] == list(range(10, 401, 10))


def test_a_sweep_that_waits_for_nodes_says_so(scaled: tuple[Path, dict[str, Any]]):
    printed = (scaled[0] / "printed.txt").read_text().splitlines()
    waits = [line for line in printed if line.startswith("waiting for")]
    assert waits[0] == "waiting for 2 CPUs (the cluster has 0 of 2)"
    assert set(waits[1:]) <= {"waiting for 1 CPUs (the cluster has 1 of 2)"}  # none where both nodes come together


# ---- nodes that are lost and added -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("elastic")
    return folder, recorded("elastic", puzzles, folder)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_with_more_workers_and_with_fewer(changed: tuple[Path, dict[str, Any]]):
    workers = [row["throughput/num_workers"] for row in lines(changed[0] / "run")]
    changes = [(before, after) for before, after in pairwise(workers) if before != after]
    assert workers[0] == 1
    assert changes == [(1, 2), (2, 1)]


def test_no_step_is_missing_and_none_is_logged_twice(changed: tuple[Path, dict[str, Any]]):
    folder, record = changed
    counts = Counter(row["step"] for row in lines(folder / "run"))
    assert set(counts.values()) == {1}
    # The last step is saved before it is logged, for it was asked to stop there.
    assert sorted(counts) == list(range(1, record["stopped"]))


def test_notice_of_a_loss_saves_the_step_under_way_and_a_run_without_a_node_waits_for_one(
    changed: tuple[Path, dict[str, Any]],
):
    folder, record = changed
    assert (record["at_risk"], record["noticed"]) == (0, record["stopped"])
    assert_saved_unasked(folder / "run", record["noticed"])
    assert set(record["told"]) == {"waiting for 1 CPUs (the cluster has 0 of 1)"}


def assert_saved_unasked(run: Path, step: int) -> None:
    """Such a checkpoint has no score, but where an evaluation was due."""
    manifest = read_manifest(run / f"checkpoint_step_{step}")
    assert manifest is not None
    assert (manifest.score is None) == (step % EVAL_EVERY != 0)


def test_a_wish_for_more_workers_loses_no_step(changed: tuple[Path, dict[str, Any]]):
    """The step under way was saved for it, and logged by those who went on."""
    run = changed[0] / "run"
    first_of_two = next(row["step"] for row in lines(run) if row["throughput/num_workers"] == 2)
    assert_saved_unasked(run, int(first_of_two))


def test_the_metrics_are_those_of_a_run_that_was_left_alone(changed: tuple[Path, dict[str, Any]]):
    folder, record = changed
    alone = {"log_dir": str(folder / "alone"), "ray.num_workers": 0, "max_steps": record["stopped"]}
    config: Config = with_overrides(config_from_run(folder / "run"), alone)
    plan = plan_run(config)
    claim_folder(plan)
    train_in_process(plan)
    ours, theirs = metric_rows(folder / "run"), metric_rows(plan.folder)
    for step, row in ours.items():
        for tag in ("train/lm_loss", "train/grad_norm", "eval/loss", "eval/exact_accuracy"):
            if tag in row:
                assert row[tag] == pytest.approx(theirs[step][tag], rel=1e-4, abs=1e-5), (step, tag)
