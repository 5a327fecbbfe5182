"""Ctrl-C under Ray: the worker saves the step under way, and the run goes on as if nobody had asked.

Its folder lies on object storage, where all that a run does is a little harder. Where it lies here, jobs are stopped in
`test_jobs.py`, and two workers together in `test_changing_clusters.py`; `test_stop.py` has two that go on bitwise.
"""

import json
from pathlib import Path

import pytest
from as_found import left_as_found
from ctrl_c import ctrl_c_once
from helpers import metric_rows
from run_helpers import run_config

from trm_ray.distributed.trainer import train_on_ray
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder, is_finished, start_step
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.training.stopping import STOP_FILE, Interrupted

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def planned(data: Path, folder: Path | str, steps: int, *words: str) -> RunPlan:
    same_at_any_length = [f"max_steps={steps}", "lr_min_ratio=1"]
    often = ["eval_interval=50", "log_interval=10", "keep_last=3"]
    return plan_run(run_config(data, folder, *same_at_any_length, *often, *words))


def test_ctrl_c_saves_the_step_under_way_and_a_resume_arrives_at_the_same_bytes(
    puzzles: Path, bucket: Path, tmp_path: Path
):
    there = f"ray.storage_path={bucket}"
    endless = planned(puzzles, "runs/stopped", 100_000, there)
    assert endless.folder == bucket / "runs" / "stopped"
    claim_folder(endless)
    with pytest.raises(Interrupted) as stopped, ctrl_c_once((endless.folder / "checkpoint_step_50").exists):
        train_on_ray(endless)
    step = start_step(endless)
    assert step > 50
    assert str(stopped.value) == f"stopped after step {step}, which is saved"
    assert stopped.value.exit_code == 130
    assert not (endless.folder / STOP_FILE).exists()
    rest, whole = planned(puzzles, "runs/stopped", step + 25, there), planned(puzzles, tmp_path / "whole", step + 25)
    claim_folder(rest, resume=True)
    with left_as_found():
        evaluation = train_on_ray(rest)
    claim_folder(whole)
    assert train_in_process(whole) == evaluation
    assert is_finished(rest, start_step(rest))
    for file in ("state.pt", "identifiers.json"):
        ours, theirs = (plan.folder / "final_model" / file for plan in (rest, whole))
        assert ours.read_bytes() == theirs.read_bytes()
    assert metric_rows(rest.folder) == metric_rows(whole.folder)
    steps = [json.loads(line)["step"] for line in (rest.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted({*range(10, step + 26, 10), step + 25})
