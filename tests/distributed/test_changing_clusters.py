"""Nodes that come and go: the real autoscaler, and runs that go on when a node is lost or added.

Every cluster stands in a process of its own, since these tests have one in theirs. The picture in the README is of such
a run: `python tests/distributed/changing_clusters.py autoscaling DATA FOLDER docs/autoscaling.png`.
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
from trm_ray.run import claim_folder, plan_run, train_in_process
from trm_ray.training.checkpoint import read_manifest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

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
    """Three trials of one CPU on nodes of two."""
    seen = scaled[1]["seen"]
    assert seen[0]["nodes"] == 0
    at_once = [look["nodes"] for look in seen if look["trials"] == 3]
    assert at_once
    assert min(at_once) >= 2  # Ray counts a node that it has just replaced for a moment more
    assert seen[-1]["nodes"] == 0
    assert scaled[1]["failed"] == {}


def test_no_node_is_taken_away_from_a_trial_that_trains(scaled: tuple[Path, dict[str, Any]]):
    folder, record = scaled
    assert all(look["trials"] <= 2 * look["nodes"] for look in record["seen"])
    for run in (folder / "sweep").glob("deep_supervision_*"):
        assert [row["step"] for row in lines(run)] == list(range(10, 401, 10))


def test_a_sweep_that_waits_for_nodes_says_so(scaled: tuple[Path, dict[str, Any]]):
    printed = (scaled[0] / "printed.txt").read_text().splitlines()
    waits = [line for line in printed if line.startswith("waiting for")]
    assert waits[0] == "waiting for 3 CPUs (the cluster has 0 of 3)"
    assert set(waits[1:]) <= {"waiting for 1 CPUs (the cluster has 2 of 3)"}  # none where both nodes come together


# ---- nodes that are lost and added -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("elastic")
    return folder, recorded("elastic", puzzles, folder)


@pytest.fixture(scope="module")
def left_alone(changed: tuple[Path, dict[str, Any]]) -> Path:
    """The run whose nodes changed, in one process and without Ray."""
    folder, record = changed
    return trained(folder / "resized", folder / "resized_alone", max_steps=record["resized"]["stopped"])


def trained(run: Path, folder: Path, **changes: Any) -> Path:
    config: Config = with_overrides(config_from_run(run), {"log_dir": str(folder), "ray.num_workers": 0, **changes})
    plan = plan_run(config)
    claim_folder(plan)
    train_in_process(plan)
    return folder


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_on_with_fewer_workers_and_with_more(changed: tuple[Path, dict[str, Any]]):
    folder, record = changed
    workers = [row["throughput/num_workers"] for row in lines(folder / "resized")]
    changes = [(before, after) for before, after in pairwise(workers) if before != after]
    assert workers[0] == 2
    assert changes == [(2, 1), (1, 2)]
    assert record["resized"]["stopped"] > record["resized"]["gained"]


def test_no_step_is_missing_and_none_is_logged_twice(changed: tuple[Path, dict[str, Any]]):
    folder, record = changed
    counts = Counter(row["step"] for row in lines(folder / "resized"))
    assert set(counts.values()) == {1}
    # The last step is saved before it is logged, for it was asked to stop there.
    assert sorted(counts) == list(range(1, record["resized"]["stopped"]))


def test_a_wish_for_more_workers_loses_no_step(changed: tuple[Path, dict[str, Any]]):
    """The step under way was saved for it, and logged by those who went on: such a checkpoint has no score."""
    run = changed[0] / "resized"
    workers = [row["throughput/num_workers"] for row in lines(run)]
    first_of_two_again = lines(run)[len(workers) - workers[::-1].index(1)]["step"]
    manifest = read_manifest(run / f"checkpoint_step_{first_of_two_again:.0f}")
    assert manifest is not None
    assert (manifest.score is None) == (first_of_two_again % 20 != 0)  # but where an evaluation was due


def test_the_metrics_are_those_of_a_run_that_was_left_alone(changed: tuple[Path, dict[str, Any]], left_alone: Path):
    ours, theirs = metric_rows(changed[0] / "resized"), metric_rows(left_alone)
    for step, row in ours.items():
        for tag in ("train/lm_loss", "train/grad_norm", "eval/loss", "eval/exact_accuracy"):
            if tag in row:
                assert row[tag] == pytest.approx(theirs[step][tag], rel=1e-4, abs=1e-5), (step, tag)


def test_a_run_whose_only_node_is_lost_arrives_at_the_same_bytes_on_another(changed: tuple[Path, dict[str, Any]]):
    folder, record = changed
    alone = trained(folder / "moved", folder / "moved_alone")
    assert record["moved"]["told"][-1] == "waiting for 1 CPUs (the cluster has 0 of 1)"
    ours, theirs = ((run / "final_model" / "state.pt").read_bytes() for run in (folder / "moved", alone))
    assert ours == theirs
    assert metric_rows(folder / "moved") == metric_rows(alone)
    assert [row["step"] for row in lines(folder / "moved")] == list(range(1, 61))
