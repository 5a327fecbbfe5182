"""A sweep under Ray whose folder and data lie on object storage; `test_ray_stop.py` has a run."""

import io
from pathlib import Path

import pytest
from helpers import assert_same, metric_rows
from rich.console import Console
from run_helpers import TINY_RUN, final_weights, some_puzzles

from trm_ray.config import SweepConfig
from trm_ray.distributed.tuner import STOPPED
from trm_ray.programs.sweep import compare_trials, plan_sweep, start_sweep
from trm_ray.reporting.run_log import read_run
from trm_ray.storage import remove_tree
from trm_ray.training.checkpoint import checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_a_sweep_goes_on_there_with_what_it_finds(bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "configs").mkdir()
    for name, rate in (("good", 3e-2), ("idle", 1e-9)):
        (tmp_path / "configs" / f"{name}.yaml").write_text(f"task: sudoku4\nlr: {rate}\nmax_steps: 6\n")
    monkeypatch.chdir(tmp_path)
    common = {key: value for key, value in TINY_RUN.items() if key not in ("lr", "max_steps")}
    data = str(some_puzzles(bucket / "puzzles", train=64))
    told = {
        "scenarios": ["good", "idle"],
        "overrides": {**common, "data_paths": [data], "ray.storage_path": str(bucket)},
        "asha": {"grace_period": 3},
        "max_concurrent_trials": 1,
        "log_dir": "sweep",
    }
    plan, console = plan_sweep(SweepConfig.model_validate(told)), Console(file=io.StringIO(), width=200)
    assert plan.folder == bucket / "sweep"
    start_sweep(plan, console, resume=False, overwrite=False)
    good, idle = (plan.folder / f"{name}-seed0" for name in ("good", "idle"))
    weights, rows = final_weights(good), metric_rows(good)
    assert (idle / STOPPED).is_file()
    remove_tree(good / "final_model")
    remove_tree(good / "checkpoint_step_6")
    outcome = start_sweep(plan, console, resume=True, overwrite=False).outcome
    compare_trials(plan, outcome, console)
    assert outcome.failed == {}
    assert_same(final_weights(good), weights)
    assert metric_rows(good) == rows
    assert [folder.name for folder in checkpoints(idle)] == ["checkpoint_step_3"]
    assert read_run(idle).stopped_early
    assert {path.name for path in (plan.folder / "report").iterdir()} >= {
        "comparison.png",
        "report.html",
        "summary.json",
    }
    assert f"ray.storage_path={bucket}" in console.file.getvalue()  # type: ignore[attr-defined]
