"""The two stages of a sweep, on folders of runs written by hand: which groups go on, with which seeds, what counts."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from replay_helpers import rows_of, write_run
from run_helpers import TINY_RUN, some_puzzles

from trm_ray.config import SweepConfig
from trm_ray.programs.compare import compare
from trm_ray.programs.stages import FINAL_FILE, Stage, counted, final_config, stages
from trm_ray.programs.sweep import SweepPlan, plan_sweep
from trm_ray.reporting.run_log import find_runs

BASELINE, LINEAR, CONSTANT = (f"deep_supervision_{name}" for name in ("baseline", "linear", "constant"))
# Exact accuracy at the end, by scenario and seed; None where ASHA stopped the trial.
ENDS = {BASELINE: (0.2, 0.3), LINEAR: (0.8, None), CONSTANT: (0.7, 0.5)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


def planned(data: Path, folder: Path, **changes: Any) -> SweepPlan:
    values = {
        "scenarios": list(ENDS),
        "seeds": [0, 1],
        "keep": [BASELINE],
        "final": {"top_k": 1, "seeds": 3},
        "overrides": {**TINY_RUN, "data_paths": [str(data)]},
        "log_dir": str(folder),
    }
    return plan_sweep(SweepConfig.model_validate({**values, **changes}))


def write_first_stage(folder: Path, ends: Mapping[str, tuple[float | None, ...]] = ENDS) -> None:
    for scenario, of_seeds in ends.items():
        for seed, solved in enumerate(of_seeds):
            rows = rows_of(0.95 if solved is None else solved)
            run = write_run(folder / f"{scenario}-seed{seed}", scenario, seed, rows[:2] if solved is None else rows)
            if solved is not None:
                finish(run)


def finish(run: Path) -> None:
    (run / "final_model").mkdir()
    (run / "final_model" / "manifest.json").write_text("{}")


def names(stage: Stage) -> list[str]:
    return [f"{run.config.config_name}-seed{run.config.seed}" for run in stage.runs]


def staged(plan: SweepPlan) -> tuple[list[Stage], list[str]]:
    """Both stages, the first having been run, and what was told."""
    told: list[str] = []
    return list(stages(Stage(plan.sweep, plan.runs), plan.final, plan.folder, told.append)), told


def test_a_sweep_without_a_final_has_one_stage(data: Path, tmp_path: Path):
    plan = planned(data, tmp_path, final={})
    assert plan.final is None
    (stage,), _ = staged(plan)
    assert names(stage) == [path.name for path in stage.folders(tmp_path)]
    assert not (tmp_path / FINAL_FILE).exists()


def test_of_text_those_with_the_fewest_bits_per_byte_go_on(data: Path, tmp_path: Path):
    """They are written as 5 less the share that puzzles would solve: `linear` is best by its finished seed again."""
    write_first_stage(tmp_path)
    for file in tmp_path.glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["eval/bits_per_byte"] = 5 - row.pop("eval/exact_accuracy")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, told = staged(planned(data, tmp_path))
    assert told == [f"Final stage: {BASELINE}, {LINEAR}, 3 trials to train"]


def test_the_second_stage_trains_what_is_missing_of_the_best_and_of_what_is_kept(data: Path, tmp_path: Path):
    """`linear` is best by its finished seed; its other one goes on, and each gets a third one."""
    write_first_stage(tmp_path)
    found, told = staged(planned(data, tmp_path))
    assert len(found) == 2
    assert names(found[1]) == [f"{LINEAR}-seed1", f"{BASELINE}-seed2", f"{LINEAR}-seed2"]
    assert (found[0].sweep.asha.enabled, found[1].sweep.asha.enabled) == (True, False)
    assert told == [f"Final stage: {BASELINE}, {LINEAR}, 3 trials to train"]


def test_new_seeds_follow_the_highest(data: Path, tmp_path: Path):
    more = planned(data, tmp_path, seeds=[7, 3], final={"top_k": 1, "seeds": 4})
    assert final_config(more.sweep).seeds == [7, 3, 8, 9]
    assert final_config(planned(data, tmp_path, final={"top_k": 1}).sweep).seeds == [0, 1]


def test_a_second_stage_that_had_begun_goes_on_without_the_first(data: Path, tmp_path: Path):
    """The choice stands, whatever the runs have come to since."""
    write_first_stage(tmp_path)
    staged(planned(data, tmp_path))
    finish(tmp_path / f"{LINEAR}-seed1")
    shutil.rmtree(tmp_path / f"{LINEAR}-seed0" / "final_model")
    found, _ = staged(planned(data, tmp_path))
    assert [names(stage) for stage in found] == [[f"{LINEAR}-seed0", f"{BASELINE}-seed2", f"{LINEAR}-seed2"]]


def test_when_all_are_finished_nothing_is_trained(data: Path, tmp_path: Path):
    write_first_stage(tmp_path, {BASELINE: (0.2, 0.3), LINEAR: (0.8, 0.7), CONSTANT: (0.7, 0.5)})
    found, told = staged(planned(data, tmp_path, final={"top_k": 1}))
    assert len(found) == 1
    assert told[0].endswith("0 trials to train")


def test_a_group_of_which_nothing_was_finished_comes_after_all_others(data: Path, tmp_path: Path):
    write_first_stage(tmp_path, {BASELINE: (0.2, 0.3), LINEAR: (None, None), CONSTANT: (0.1, None)})
    staged(planned(data, tmp_path, keep=[], final={"top_k": 2}))
    groups = json.loads((tmp_path / FINAL_FILE).read_text())["groups"]
    assert [scenario for scenario, _ in groups] == [BASELINE, CONSTANT]


def test_variants_are_groups_of_their_own(data: Path, tmp_path: Path):
    plan = planned(data, tmp_path, scenarios=[LINEAR], keep=[], search_space={"weight_decay": [0.1, 0.2]})
    for rate, solved in ((0.1, 0.3), (0.2, 0.6)):
        for seed in (0, 1):
            finish(write_run(tmp_path / f"{LINEAR}-seed{seed}-weight_decay={rate}", LINEAR, seed, rows_of(solved)))
    found, told = staged(plan)
    assert [(run.config.seed, run.config.weight_decay) for run in found[1].runs] == [(2, 0.2)]
    assert told == [f"Final stage: {LINEAR} weight_decay=0.2, 1 trials to train"]


def test_only_finished_trials_of_the_second_stage_count(data: Path, tmp_path: Path):
    write_first_stage(tmp_path)
    plan = planned(data, tmp_path)
    runs = find_runs([tmp_path])
    assert counted(runs, tmp_path) == runs  # the second stage has not begun
    staged(plan)
    ended = [f"{BASELINE}-seed0", f"{BASELINE}-seed1", f"{LINEAR}-seed0"]
    assert [run.name for run in counted(runs, tmp_path)] == ended
    assert counted(runs, tmp_path / "another") == runs


def test_a_comparison_of_the_sweep_goes_by_the_same_trials_beside_other_runs(data: Path, tmp_path: Path):
    write_first_stage(tmp_path / "sweep")
    staged(planned(data, tmp_path / "sweep"))
    finish(write_run(tmp_path / "mine", "mine", 0, rows_of(0.4)))
    found = compare([tmp_path])
    assert [run.name for run in found.runs] == ["mine", f"{BASELINE}-seed0", f"{BASELINE}-seed1", f"{LINEAR}-seed0"]
    assert found.comparison.unfinished == []
    named = tmp_path / "sweep" / f"{CONSTANT}-seed0"
    assert [run.folder for run in compare([named]).runs] == [named]


def test_of_variants_those_that_were_chosen_count(tmp_path: Path):
    for rate in (0.1, 0.2):
        finish(write_run(tmp_path / str(rate), LINEAR, 0, rows_of(rate), weight_decay=rate, arch={"H_cycles": 3}))
    groups = [[LINEAR, {"weight_decay": 0.2, "arch.H_cycles": 3}]]
    (tmp_path / FINAL_FILE).write_text(json.dumps({"format_version": 1, "groups": groups}))
    assert [run.name for run in counted(find_runs([tmp_path]), tmp_path)] == ["0.2"]
