import io
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from trm_ray.reporting.numbers.groups import group_runs, spread_over_seeds
from trm_ray.reporting.numbers.summary import seconds_per_step, summarise, summary_json, summary_markdown, summary_table
from trm_ray.reporting.run_log import Run
from trm_ray.reporting.terminal import show

MakeRun = Callable[..., Run]


def evaluated(losses: list[float], exact: list[float], every: int = 100, step_s: float = 0.5) -> list[dict[str, float]]:
    return [
        {
            "step": every * (i + 1),
            "wall_s": step_s * every * (i + 1),
            "eval/loss": losses[i],
            "eval/exact_accuracy": exact[i],
            "throughput/steps_per_s": 1 / step_s,
        }
        for i in range(len(losses))
    ]


@pytest.fixture
def two_scenarios(make_run: MakeRun) -> list[Run]:
    """Linear: seeds of losses 0.2, 0.4 and exact 0.8, 0.6; the baseline: 0.5 and stopped at step 200 of 400."""
    baseline = {"config_name": "deep_supervision_baseline"}
    return [
        make_run(evaluated([1.0, 0.6, 0.3, 0.2], [0.0, 0.5, 0.7, 0.8]), "l0", seed=0),
        make_run(evaluated([1.0, 0.7, 0.35, 0.4], [0.0, 0.4, 0.65, 0.6]), "l1", seed=1),
        make_run(evaluated([1.2, 0.5], [0.1, 0.3], step_s=0.25), "b0", finished=False, **baseline),
    ]


def test_a_summary_agrees_with_numbers_worked_by_hand(two_scenarios: list[Run]) -> None:
    linear, baseline = summarise(two_scenarios, threshold=0.5)
    assert (linear.label, linear.num_seeds) == ("linear", 2)
    # (0.2 + 0.4) / 2 and the sample deviation |0.4 − 0.2| / √2
    assert linear.final_loss.mean == pytest.approx(0.3)
    assert linear.final_loss.sd == pytest.approx(0.2 / math.sqrt(2))
    assert linear.best_loss.mean == pytest.approx((0.2 + 0.35) / 2)
    assert linear.final_exact_accuracy.mean == pytest.approx(0.7)
    assert linear.best_exact_accuracy.mean == pytest.approx((0.8 + 0.65) / 2)
    # seed 0 reaches 0.5 at step 200 (100 s), seed 1 at step 300 (150 s)
    assert (linear.steps_to_threshold.mean, linear.steps_to_threshold.count) == (250.0, 2)
    assert linear.seconds_to_threshold.mean == 125.0
    assert (linear.planned_steps, linear.done_steps, linear.saved_steps) == (800, 800, 0)
    assert linear.seconds_per_step.mean == pytest.approx(0.5)
    assert linear.best_run.endswith("l0")
    assert (baseline.label, baseline.num_seeds) == ("baseline", 1)
    assert math.isnan(baseline.final_loss.sd)
    assert baseline.steps_to_threshold.count == 0
    assert (baseline.planned_steps, baseline.done_steps, baseline.saved_steps) == (400, 200, 200)
    assert baseline.num_stopped_early == 1


def test_seeds_that_never_reach_the_threshold_are_not_in_its_mean(two_scenarios: list[Run]) -> None:
    linear = summarise(two_scenarios, threshold=0.75)[0]
    assert (linear.steps_to_threshold.mean, linear.steps_to_threshold.count) == (400.0, 1)


def test_groups_rank_by_final_held_out_loss_and_those_without_one_come_last(make_run: MakeRun) -> None:
    runs = [
        make_run([{"step": 10, "wall_s": 1.0}], "silent", config_name="a_silent"),
        make_run(evaluated([0.1, None], [0.9, 0.0]), "diverged", config_name="b_diverged"),  # type: ignore[list-item]
        make_run(evaluated([0.9], [0.9]), "worse", config_name="c_worse"),
        make_run(evaluated([0.8], [0.1]), "better", config_name="d_better"),
    ]
    assert [summary.label for summary in summarise(runs)] == ["d_better", "c_worse", "a_silent", "b_diverged"]


def test_total_steps_come_from_the_environment_then_the_config_then_the_argument(make_run: MakeRun) -> None:
    def planned(name: str, **given: Any) -> int:
        run = make_run(evaluated([1.0], [0.0]), name, finished=False, **given)
        return summarise([run], total_steps=700)[0].planned_steps

    assert planned("environment", environment={"total_steps": 300}) == 300
    assert planned("config") == 400
    assert planned("argument", max_steps=None) == 700


def test_runs_that_differ_in_seed_folder_and_logging_alone_are_one_group(make_run: MakeRun) -> None:
    runs = [make_run([], str(seed), seed=seed, log_dir=f"runs/{seed}", log_interval=seed + 1) for seed in (2, 0, 1)]
    (group,) = group_runs(runs)
    assert group.label == "linear"
    assert [run.seed for run in group.runs] == [0, 1, 2]


def test_variants_are_labelled_by_the_keys_in_which_they_differ(make_run: MakeRun) -> None:
    runs = [
        make_run([], "a", lr=5e-5),
        make_run([], "b", lr=1e-4),
        make_run([], "c", lr=1e-4, deep_supervision_weight=0.7),
        make_run([], "d", lr=1e-4, config_name="deep_supervision_baseline", deep_supervision_weight=0.0),
    ]
    assert [group.label for group in group_runs(runs)] == [
        "baseline · lr=1e-4",
        "linear · lr=1e-4 · weight=0.5",
        "linear · lr=1e-4 · weight=0.7",
        "linear · lr=5e-5 · weight=0.5",
    ]


def test_tasks_are_told_apart_in_the_labels(make_run: MakeRun) -> None:
    runs = [make_run([], "a"), make_run([], "b", task="sudoku4", lr=1e-4, arch={"H_cycles": 2})]
    assert [group.label for group in group_runs(runs)] == ["linear · sudoku4", "linear · sudoku6"]


def test_scenarios_keep_their_usual_order(make_run: MakeRun) -> None:
    names = ["zebra", "curriculum", "exponential", "linear", "constant", "baseline"]
    runs = [make_run([], name, config_name=f"deep_supervision_{name}") for name in names]
    assert [group.scenario for group in group_runs(runs)] == [*reversed(names[1:]), "zebra"]


def test_a_band_is_mean_lowest_and_highest_of_the_seeds_that_got_there(two_scenarios: list[Run]) -> None:
    longer, shorter = two_scenarios[0], two_scenarios[2]
    band = spread_over_seeds([longer.series("eval/loss"), shorter.series("eval/loss")])
    assert band.steps.tolist() == [100, 200, 300, 400]
    assert band.mean == pytest.approx([1.1, 0.55, 0.3, 0.2])
    assert band.low == pytest.approx([1.0, 0.5, 0.3, 0.2])
    assert band.high == pytest.approx([1.2, 0.6, 0.3, 0.2])
    assert band.count.tolist() == [2, 2, 1, 1]
    assert band.wall_s == pytest.approx([37.5, 75.0, 150.0, 200.0])


def test_seconds_a_step_are_the_median_of_the_logs_or_else_the_mean_of_the_run(make_run: MakeRun) -> None:
    rates = [{"step": i, "wall_s": 99.0, "throughput/steps_per_s": rate} for i, rate in enumerate((2.0, 4.0, 0.1))]
    assert seconds_per_step(make_run(rates, "rates")) == 0.5
    assert seconds_per_step(make_run([{"step": 10, "wall_s": 4.0}], "wall")) == 0.4
    assert seconds_per_step(make_run([], "nothing")) is None


@pytest.mark.parametrize("width", [40, 50])
def test_a_narrow_terminal_keeps_rank_and_scenario(two_scenarios: list[Run], width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(console, summary_table(summarise(two_scenarios)), names=2)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.strip() for line in lines if line[:1].isdecimal()] == ["1 linear", "2 baseline"]
    assert max(map(len, lines)) <= width
    assert "Held-out loss 0.300 ± 0.141" in " ".join(" ".join(lines).split())


def printed(runs: list[Run], width: int, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(summary_table(summarise(runs, **options)))
    return capture.get()


def test_the_table_fits_eighty_characters_without_cutting_a_number(two_scenarios: list[Run]) -> None:
    text = printed(two_scenarios, 80, threshold=0.75)
    row = next(line for line in text.splitlines() if "linear" in line)
    assert row.split() == [
        "1",
        "linear",
        "2",
        "0.300",
        "±",
        "0.141",
        "70.0",
        "±",
        "14.1",
        "400",
        "(1/2)",
        "200",
        "0",
        "0.500",
    ]
    assert "…" not in text
    assert "never" in next(line for line in text.splitlines() if "baseline" in line)


def test_the_table_warns_of_single_seeds_and_early_stops(two_scenarios: list[Run]) -> None:
    text = " ".join(printed(two_scenarios, 120).split())
    assert "One seed: differences under 3 to 5 points" in text
    assert "Runs stopped early count with their last evaluation" in text
    assert "One seed" not in printed(two_scenarios[:2], 120)


def test_the_json_is_valid_and_has_null_for_numbers_that_do_not_exist(two_scenarios: list[Run]) -> None:
    content = json.loads(summary_json(summarise(two_scenarios)), parse_constant=lambda name: pytest.fail(name))
    assert content["format_version"] == 1
    assert [scenario["label"] for scenario in content["scenarios"]] == ["linear", "baseline"]
    assert content["scenarios"][1]["final_loss"] == {"mean": 0.5, "sd": None, "count": 1}


def test_the_markdown_table_has_a_row_a_scenario_and_the_same_number_of_cells(
    two_scenarios: list[Run],
) -> None:
    lines = [line for line in summary_markdown(summarise(two_scenarios)).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {10}
