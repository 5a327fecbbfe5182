"""What a plan counts: steps, hours between the bounds of early stopping, memory, disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_helpers import TINY_RUN, run_config, some_puzzles
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.config import ConfigError, SweepConfig, load_config, load_sweep
from trm_ray.measure.budget import (
    Plan,
    checkpoints_left,
    halved_steps,
    measured_here,
    plan_cost,
    plan_json,
    plan_lines,
    planned,
    run_step_ms,
    stopping_steps,
    told_data,
    told_ms,
)
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run

BASELINE, LINEAR, CURRICULUM = (f"deep_supervision_{kind}" for kind in ("baseline", "linear", "curriculum"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


def sweep(data: Path, **changes: Any) -> SweepConfig:
    run = {**TINY_RUN, "data_paths": [str(data)], "max_steps": 100, "eval_interval": 10, **changes.pop("run", {})}
    values = {"scenarios": [BASELINE, LINEAR], "overrides": run, "asha": {"grace_period": 15}}
    return SweepConfig.model_validate({**values, **changes})


def told(asked: SweepConfig, step_ms: float = 36.0) -> Plan:
    """At 36 ms a step, 100 steps are a thousandth of an hour."""
    return plan_cost(asked, told_ms(step_ms), "told")


# ---- early stopping --------------------------------------------------------------------------------------


def test_asha_looks_at_evaluations_only(data: Path):
    """A grace period of 15 ends at the evaluation of step 20, twice as much at 30, then 60; 120 is beyond the end."""
    asked = sweep(data)
    config = run_config(data, data / "run", "eval_interval=10")
    assert stopping_steps(asked, config, 100) == [20, 30, 60, 100]
    assert stopping_steps(sweep(data, asha={"enabled": False}), config, 100) == [100]
    assert stopping_steps(sweep(data, asha={"grace_period": 15, "max_t": 45}), config, 100) == [20, 30, 50]
    assert stopping_steps(sweep(data, asha={"grace_period": 200}), config, 100) == [100]


def test_half_of_the_trials_go_on_at_each_rung():
    """Of 8 trials all take 20 steps, 4 go on to 30, 2 to 60, 1 to 100."""
    assert halved_steps([20, 30, 60, 100], 2.0) == (8 * 20 + 4 * 10 + 2 * 30 + 1 * 40) / 8
    assert halved_steps([100], 2.0) == 100


def test_the_hours_lie_between_the_best_and_the_worst_that_asha_can_do(data: Path):
    plan = told(sweep(data, seeds=[0, 1]))  # 4 trials
    assert plan.hours.most == pytest.approx(4e-3)
    assert plan.hours.least == pytest.approx((3 * 20 + 100) / 1e5)  # the best of them trains to its end
    assert plan.hours.least <= plan.hours.halving <= plan.hours.most


def test_a_scenario_that_is_kept_trains_to_its_end(data: Path):
    plan = told(sweep(data, keep=[BASELINE]))
    assert plan.hours.least == pytest.approx((100 + 20) / 1e5)


def test_each_group_has_a_best_trial(data: Path):
    grouped = sweep(data, search_space={"weight_decay": [0.1, 0.2]}, group_by="weight_decay")
    assert told(grouped).hours.least == pytest.approx((2 * 100 + 2 * 20) / 1e5)


def test_without_early_stopping_there_is_nothing_to_bound(data: Path):
    plan = told(sweep(data, asha={"enabled": False}))
    assert plan.hours.least == plan.hours.halving == plan.hours.most == pytest.approx(2e-3)


# ---- the second stage ------------------------------------------------------------------------------------


def test_the_second_stage_trains_new_seeds_and_goes_on_with_what_was_stopped(data: Path):
    """Three whole trials of the best; of the other scenario two, which ASHA stops at step 20 or never."""
    plan = told(sweep(data, seeds=[0, 1], final={"top_k": 1, "seeds": 3}))
    assert plan.hours.least == pytest.approx((3 * 100 + 2 * 20) / 1e5)
    assert plan.hours.most == pytest.approx((3 * 100 + 2 * 100) / 1e5)
    assert plan.hours.least <= plan.hours.halving <= plan.hours.most
    assert plan.final is not None
    assert (plan.final.groups, plan.final.seeds, plan.final.trials) == ((1, 1), 3, (1, 3))
    assert plan.final.hours.most == pytest.approx(1e-3)
    assert plan.disk_mib == pytest.approx(5 * plan.trials[0].disk_mib / 2)


def test_scenarios_that_are_kept_are_trained_in_the_second_stage_beside_the_best_or_among_them(data: Path):
    plan = told(sweep(data, seeds=[0, 1], keep=[BASELINE], final={"top_k": 1, "seeds": 4}))
    assert plan.final is not None
    assert (plan.final.groups, plan.final.trials) == ((1, 2), (2, 6))
    assert plan.hours.least == pytest.approx((4 * 100 + 2 * 20) / 1e5)
    assert plan.hours.most == pytest.approx(8 * 100 / 1e5)


def test_the_best_of_a_grid_without_stopping_take_new_seeds_alone(data: Path):
    asked = sweep(
        data, search_space={"weight_decay": [0.1, 0.2]}, asha={"enabled": False}, final={"top_k": 3, "seeds": 2}
    )
    plan = told(asked)
    assert plan.final is not None
    assert (plan.final.groups, plan.final.trials) == ((3, 3), (3, 3))
    assert plan.hours.least == pytest.approx(plan.hours.most) == pytest.approx((4 + 3) * 1e-3)


def test_the_second_stage_has_a_line_of_its_own(data: Path):
    plan = told(sweep(data, seeds=[0, 1], final={"top_k": 1, "seeds": 3}))
    [line] = [line for line in plan_lines(plan, 2.0) if line.startswith("Second stage")]
    assert line == "Second stage: 1 to 3 trials, for 3 seeds of 1 group: 0.001 to 0.00225 of these CPU-hours"
    assert json.loads(plan_json(plan, 2.0))["price"]["most"] == pytest.approx(2 * 5e-3)
    assert not any(line.startswith("Second stage") for line in plan_lines(told(sweep(data)), None))


# ---- machines --------------------------------------------------------------------------------------------


def test_trials_that_share_a_gpu_ask_for_their_part_of_it(data: Path):
    run = {"ray.use_gpu": True, "ray.gpus_per_trial": 0.2, "device": "auto"}
    plan = told(sweep(data, seeds=[0, 1, 2, 3, 4], run=run))
    assert (plan.num_trials, plan.at_once, plan.gpus_of_trial) == (10, 10, 0.2)
    values = json.loads(plan_json(plan, 3.0))
    assert values["gpu_hours"]["most"] == pytest.approx(0.2 * 10e-3)
    assert values["price"]["most"] == pytest.approx(3.0 * 0.2 * 10e-3)
    assert "trials that share a GPU do not slow each other down" in plan.assumed


def test_a_trial_s_workers_count_together(data: Path):
    plan = told(sweep(data, max_concurrent_trials=1, run={"ray.num_workers": [1, 4], "ray.cpus_per_worker": 2}))
    assert (plan.at_once, plan.workers, plan.cpus_of_trial) == (1, 4, 8)
    assert "all 4 workers are there all the time" in plan.assumed
    assert json.loads(plan_json(plan, None))["cpu_hours"]["most"] == pytest.approx(8 * 2e-3)


# ---- data ------------------------------------------------------------------------------------------------


def test_the_data_is_counted_as_it_lies_there(data: Path):
    (found,) = told(sweep(data)).data
    assert (found.train_rows, found.test_rows) == (64, 9)
    assert found.disk_mib == pytest.approx(sum(f.stat().st_size for f in data.rglob("*") if f.is_file()) / 2**20)
    assert found.object_store_mib == pytest.approx((64 + 9) * (16 + 16 + 3) * 4 / 2**20)


def test_data_that_a_generator_would_make_is_described_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_cost(load_config(LINEAR, ["task=sudoku6", "max_steps=null", "epochs=2"]), told_ms(1), "told")
    (found,) = plan.data
    assert (found.train_rows, found.test_rows, found.disk_mib) == (20_000, 512, None)
    assert plan.trials[0].num_steps == 2 * 20_000 // 32
    assert list(tmp_path.iterdir()) == []
    assert any("will be made when the training starts" in line for line in plan.assumed)


def test_data_that_are_told_are_not_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A text of 1,000 rows and a frozen embedding, which takes no moments of an optimizer."""
    monkeypatch.chdir(tmp_path)
    words = ["task=text_bytes_tiny", "generator=null", "max_steps=null", "epochs=2", "data_paths_test=[elsewhere]"]
    frozen = ["arch.pretrained_embeddings=any.safetensors", "arch.freeze_embeddings=true"]
    asked = (load_config(LINEAR, [*words, *more]) for more in ([], frozen))
    learned, still = (plan_cost(one, told_ms(1), "told", told=told_data("1000,10,128,4000")) for one in asked)
    (found,) = learned.data
    assert (found.train_rows, found.test_rows, found.disk_mib) == (1000, 10, None)
    (one,), (other,) = learned.trials, still.trials
    assert one.num_steps == 2 * 1000 // 8
    assert one.optimizer_mib - other.optimizer_mib == pytest.approx(2 * 4 * 4000 * 64 / 2**20)
    assert list(tmp_path.iterdir()) == []
    assert any("what --data says" in line for line in learned.assumed)


@pytest.mark.parametrize("numbers", ["1000", "1000,10,128,0", "a,b,c,d"])
def test_data_are_told_in_four_numbers(numbers: str):
    with pytest.raises(
        ValueError, match=rf"--data {numbers} must be four whole numbers of at least 1: .*--data 1000000"
    ):
        told_data(numbers)


def test_data_that_nobody_can_make_must_be_there(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        told(sweep(tmp_path / "nowhere"))


# ---- against a run that was trained ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["ema=true", "keep_last=2", "max_steps=40", "eval_interval=4", "arch.hidden_size=64"]
    plan = plan_run(run_config(data, tmp_path_factory.mktemp("runs") / "run", *words))
    claim_folder(plan)
    train_in_process(plan)
    return plan.folder


def of_run(run: Path, step_ms: float = 1.0) -> Plan:
    return plan_cost(load_config(str(run / "config.yaml")), told_ms(step_ms), "told")


def test_a_checkpoint_is_as_large_as_the_plan_says(run: Path):
    (trial,) = of_run(run).trials
    written = (run / "final_model" / "state.pt").stat().st_size / 2**20
    assert trial.checkpoint_mib == pytest.approx(written, rel=0.15)  # the file names its tensors too


def test_as_many_checkpoints_are_left_as_the_plan_says(run: Path):
    (trial,) = of_run(run).trials
    assert trial.checkpoints == len([*run.glob("checkpoint_step_*"), run / "final_model"])


@pytest.mark.parametrize(
    ("changes", "left"),
    [({}, 11), ({"keep_last": 2}, 3), ({"keep_last": 2, "keep_best": 1}, 4), ({"checkpoint_every_eval": False}, 2)],
)
def test_checkpoints_that_stay_are_counted(data: Path, changes: dict[str, Any], left: int):
    words = [f"{key}={value}" for key, value in changes.items()]
    assert checkpoints_left(run_config(data, data / "run", "eval_interval=10", *words), 100) == left


def test_a_step_time_can_be_read_off_a_run(run: Path, tmp_path: Path):
    rates = [json.loads(line)["throughput/steps_per_s"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 1e3 / max(rates) <= run_step_ms(run) <= 1e3 / min(rates)
    with pytest.raises(ValueError, match="is not a folder"):
        run_step_ms(tmp_path / "none")


def test_each_network_is_measured_once_and_a_curriculum_is_a_mixture(data: Path):
    """Steps before the ramp cost what the baseline's cost, those after it what the supervised ones cost."""
    seen = []

    def timer(config: Any, info: Any) -> Any:
        from trm_ray.measure.step_cost import StepCost

        seen.append(config.deep_supervision_enabled)
        return StepCost(30.0 if config.deep_supervision_enabled else 10.0, None, None)

    ramp = {"curriculum_start_step": 24, "curriculum_end_step": 50}
    plan = plan_cost(sweep(data, scenarios=[BASELINE, LINEAR, CURRICULUM], run=ramp), timer, "told")
    assert sorted(seen) == [False, True]
    # At steps 0 to 24, counted from 0, the curriculum's weight is 0.
    assert [one.step_ms for one in plan.trials] == [10.0, 30.0, (25 * 10 + 75 * 30) / 100]


def test_each_path_of_the_gradient_is_measured_and_weights_alone_make_no_other(data: Path):
    seen = []

    def timer(config: Any, info: Any) -> Any:
        from trm_ray.measure.step_cost import StepCost

        seen.append(config.config_name)
        return StepCost(10.0, None, None)

    names = [BASELINE, LINEAR, "deep_supervision_constant", "detached", "bptt_last"]
    plan = plan_cost(sweep(data, scenarios=names, run={"arch.H_cycles": 3}), timer, "told")
    assert [one.scenario for one in plan.trials] == names
    assert seen == [BASELINE, LINEAR, "detached", "bptt_last"]


def test_steps_are_measured_here_with_what_they_keep(data: Path):
    asked = sweep(data, run={"arch.H_cycles": 3})
    plan = plan_cost(asked, measured_here(2), "measured")
    baseline, linear = plan.trials
    assert all(0 < one.step_ms < 1e4 for one in plan.trials)
    # Three cycles keep about three times what one keeps.
    assert baseline.activations_mib is not None
    assert linear.activations_mib is not None
    assert 2.5 < linear.activations_mib / baseline.activations_mib < 3.5


# ---- the command -----------------------------------------------------------------------------------------


def run_command(*words: str) -> Any:
    return CliRunner().invoke(app, ["plan", *words])


def test_the_command_tells_what_a_sweep_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = ["five_scenarios", "seeds=[0,1,2]", "ray.use_gpu=true", "ray.gpus_per_trial=0.2"]
    result = run_command(*words, "--step-ms", "12", "--price-per-hour", "2.5", "--save", "plan.json")
    assert result.exit_code == 0, result.output
    assert "five_scenarios: 15 trials, each 1 CPU and 0.2 GPUs" in result.output
    assert "At once: 15 of them, 15 CPUs and 3 GPUs" in result.output
    values = json.loads((tmp_path / "plan.json").read_text())
    # 15 trials of 600 steps at 12 ms, a fifth of a GPU each
    assert values["gpu_hours"]["most"] == pytest.approx(15 * 600 * 0.012 / 3600 * 0.2)
    assert values["price"]["most"] == pytest.approx(2.5 * values["gpu_hours"]["most"])
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["five_scenaros"],
            "five_scenaros must name a sweep or a scenario; there are all_schedules, demo, five_scenarios",
        ),
        (["five_scenarios", "--step-ms", "1", "--from-run", "runs/x"], "exclude each other; choose one"),
        (["five_scenarios", "--from-run", "nowhere"], "nowhere is not a folder"),
        (["five_scenarios", "lr=fast"], "lr=fast must be a number above 0"),
        (["five_scenarios", "--step-ms", "1", "--save", "no/plan.json"], "there is no folder no; make it first"),
    ],
)
def test_the_command_refuses_in_one_line(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = run_command(*words)
    assert result.exit_code == 2
    assert expected in " ".join(result.output.split())


def test_a_sweep_a_scenario_and_a_file_are_told_apart(tmp_path: Path):
    assert isinstance(planned("five_scenarios", []), SweepConfig)
    assert planned(LINEAR, ["max_steps=7"]) == load_config(LINEAR, ["max_steps=7"])
    (tmp_path / "mine.yaml").write_text("scenarios: [deep_supervision_linear]\n")
    assert planned(str(tmp_path / "mine.yaml"), []) == load_sweep(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match="must name a sweep or a scenario"):
        planned("nothing", [])
