"""What groups of runs came to, their ranks, runs that have not finished; all of it in tables, words and JSON."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from simulated import SCENARIOS, sweep

from trm_ray.reporting.numbers.curves import seconds_per_step
from trm_ray.reporting.numbers.measure import EXACT
from trm_ray.reporting.numbers.summary import Comparison, compare_runs, reach, summarise
from trm_ray.reporting.numbers.tables import (
    comparison_content,
    comparison_json,
    comparison_markdown,
    ranking_table,
    show_comparison,
    unfinished_table,
)
from trm_ray.reporting.numbers.words import notes, sentences
from trm_ray.reporting.run_log import DepthRow, Run
from trm_ray.reporting.terminal import show

MakeRun = Callable[..., Run]
BASELINE = {"config_name": "deep_supervision_baseline"}


def evaluated(losses: list[Any], exact: list[Any], every: int = 100, step_s: float = 0.5) -> list[dict[str, float]]:
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


def stopped(run: Run, step: int) -> Run:
    """Mark a run as one that its sweep has stopped."""
    (run.folder / "stopped_early.json").write_text(json.dumps({"step": step, "by": "ASHA"}))
    return run


@pytest.fixture
def two_scenarios(make_run: MakeRun) -> list[Run]:
    """Linear: seeds of losses 0.2, 0.4 and exact 0.8, 0.6; the baseline: 0.5 and stopped at step 200 of 400."""
    return [
        make_run(evaluated([1.0, 0.6, 0.3, 0.2], [0.0, 0.5, 0.7, 0.8]), "l0", seed=0),
        make_run(evaluated([1.0, 0.7, 0.35, 0.4], [0.0, 0.4, 0.65, 0.6]), "l1", seed=1),
        stopped(make_run(evaluated([1.2, 0.5], [0.1, 0.3], step_s=0.25), "b0", finished=False, **BASELINE), 200),
    ]


def printed(comparison: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show_comparison(console, comparison)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---- a group's numbers -----------------------------------------------------------------------------------


def test_a_summary_agrees_with_numbers_worked_by_hand(two_scenarios: list[Run]) -> None:
    linear, baseline = summarise(two_scenarios, threshold=0.5)
    assert (linear.label, linear.num_seeds, linear.is_ranked) == ("linear", 2, True)
    # (0.2 + 0.4) / 2 and the sample deviation |0.4 − 0.2| / √2
    assert linear.final_loss.mean == pytest.approx(0.3)
    assert linear.final_loss.sd == pytest.approx(0.2 / math.sqrt(2))
    assert linear.best_loss.mean == pytest.approx((0.2 + 0.35) / 2)
    assert linear.final.mean == pytest.approx(0.7)
    assert linear.best.mean == pytest.approx((0.8 + 0.65) / 2)
    # seed 0 reaches 0.5 at step 200 (100 s), seed 1 two fifths of the way from 200 to 300
    assert (linear.steps_to_threshold.mean, linear.steps_to_threshold.count) == (pytest.approx(220.0), 2)
    assert linear.steps_to_threshold.median == pytest.approx(220.0)
    assert linear.seconds_to_threshold.mean == pytest.approx(110.0)
    assert (linear.planned_steps, linear.done_steps, linear.saved_steps) == (800, 800, 0)
    assert linear.seconds_per_step.mean == pytest.approx(0.5)
    assert linear.training_seconds.mean == 200.0
    assert linear.best_run.endswith("l0")
    assert (baseline.label, baseline.num_seeds, baseline.is_ranked) == ("baseline", 1, False)
    assert math.isnan(baseline.final_loss.sd)
    assert (baseline.steps_to_threshold.count, baseline.steps_to_threshold.censored) == (0, (200.0,))
    assert (baseline.planned_steps, baseline.done_steps, baseline.saved_steps) == (400, 200, 200)
    assert baseline.num_stopped_early == 1


def test_seeds_that_never_reach_the_threshold_are_censored_where_they_end(two_scenarios: list[Run]) -> None:
    waited = summarise(two_scenarios, threshold=0.75)[0].steps_to_threshold
    assert (waited.mean, waited.count, waited.censored) == (350.0, 1, (400.0,))
    assert waited.median == 350.0  # half of them are there by then


def test_runs_that_have_not_finished_are_in_no_number_of_those_that_have(two_scenarios: list[Run]) -> None:
    more = [run for run in two_scenarios if run.name == "l1"]
    unfinished = [replace(run, finished=False, rows=run.rows[:2], environment={"total_steps": 400}) for run in more]
    linear = summarise([*two_scenarios[:1], *unfinished])[0]
    assert (linear.num_seeds, linear.num_interrupted, linear.saved_steps) == (1, 1, 0)
    assert linear.final_loss.mean == 0.2


def test_total_steps_come_from_the_environment_then_the_config_then_the_argument(make_run: MakeRun) -> None:
    def planned(name: str, **given: Any) -> int:
        run = make_run(evaluated([1.0], [0.0]), name, finished=False, **given)
        return summarise([run], total_steps=700)[0].planned_steps

    assert planned("environment", environment={"total_steps": 300}) == 300
    assert planned("config") == 400
    assert planned("argument", max_steps=None) == 700


def test_seconds_a_step_are_the_median_of_the_logs_or_else_the_mean_of_the_run(make_run: MakeRun) -> None:
    rates = [{"step": i, "wall_s": 99.0, "throughput/steps_per_s": rate} for i, rate in enumerate((2.0, 4.0, 0.1))]
    assert seconds_per_step(make_run(rates, "rates")) == 0.5
    assert seconds_per_step(make_run([{"step": 10, "wall_s": 4.0}], "wall")) == 0.4
    assert seconds_per_step(make_run([], "nothing")) is None


def test_a_series_reaches_a_threshold_between_two_evaluations(make_run: MakeRun) -> None:
    series = make_run(evaluated([1.0, 1.0], [0.2, 0.6])).series("eval/exact_accuracy")
    assert reach(series, EXACT, 0.5) == (175.0, 87.5)
    assert reach(series, EXACT, 0.7) is None


def deep(run: Run, *exact: Sequence[float]) -> Run:
    """A run with evaluations by depth at steps 100, 200, …"""
    shares = [np.array(one) for one in exact]
    found = tuple(DepthRow(100 * (i + 1), 10.0, 1 - one, one, one) for i, one in enumerate(shares))
    return replace(run, depths=found)


def test_depths_are_the_means_over_the_seeds_at_evaluations_that_all_have(make_run: MakeRun) -> None:
    rows = evaluated([1.0, 1.0], [0.1, 0.4])
    first, second = ([0.1, 0.2], [0.3, 0.4]), ([0.3, 0.4],)
    runs = [deep(make_run(rows, f"{i}", seed=i), *exact) for i, exact in enumerate((first, second))]
    found = summarise(runs)[0].depths
    assert found is not None
    assert found.steps == (100,)
    assert found.value[0] == pytest.approx((0.2, 0.3))
    assert found.loss[0] == pytest.approx((0.8, 0.7))
    assert summarise([make_run(rows, "old")])[0].depths is None


# ---- the ranking -----------------------------------------------------------------------------------------


def test_groups_rank_by_puzzles_solved_and_those_that_tell_nothing_come_last(make_run: MakeRun) -> None:
    runs = [
        make_run([{"step": 10, "wall_s": 1.0}], "silent", config_name="a_silent"),
        make_run(evaluated([0.1, None], [0.9, None]), "diverged", config_name="b_diverged"),
        make_run(evaluated([0.2], [0.1]), "worse", config_name="c_worse"),
        make_run(evaluated([0.8], [0.9]), "better", config_name="d_better"),
        make_run(evaluated([0.1], [0.1]), "lower", config_name="e_lower"),
    ]
    labels = [summary.label for summary in summarise(runs)]
    assert labels == ["d_better", "e_lower", "c_worse", "a_silent", "b_diverged"]


def test_groups_without_a_finished_run_stand_last(two_scenarios: list[Run], make_run: MakeRun) -> None:
    ahead = make_run(evaluated([0.1], [0.99]), "c0", finished=False, config_name="deep_supervision_constant")
    assert [summary.label for summary in summarise([ahead, *two_scenarios[:2]])] == ["linear", "constant"]


def test_groups_that_cannot_be_separated_share_a_rank() -> None:
    ranking = summarise(sweep(np.random.default_rng(0), 5, {"linear": 3.0, "constant": 3.0, "curriculum": -3.0}))
    ranks = {summary.scenario: summary.rank for summary in ranking}
    assert ranks["linear"] == ranks["constant"] == 1
    assert ranks["baseline"] == ranks["exponential"] == 3
    assert ranks["curriculum"] == 5


def finals(make_run: MakeRun, **exact: Sequence[float]) -> list[Run]:
    """Scenarios by what each of their seeds solves in the end."""
    return [
        make_run(evaluated([1.0], [solved], 400), f"{name}{seed}", seed=seed, config_name=f"deep_supervision_{name}")
        for name, of_seeds in exact.items()
        for seed, solved in enumerate(of_seeds)
    ]


def test_a_rank_never_falls_from_a_row_to_the_next(make_run: MakeRun) -> None:
    """Linear beats constant at every seed; the baseline's mean is the lowest, its seeds are too far apart to tell."""
    constant, noisy = [0.5, 0.51, 0.52, 0.49, 0.5], [0.1, 0.9, 0.2, 0.8, 0.25]
    linear = [solved + 0.1 + 0.001 * seed for seed, solved in enumerate(constant)]
    comparison = compare_runs(finals(make_run, constant=constant, baseline=noisy, linear=linear))
    rows = [(summary.scenario, summary.rank) for summary in comparison.ranking]
    assert rows == [("linear", 1), ("baseline", 1), ("constant", 2)]
    assert sum("shares a rank" in note for note in notes(comparison)) == 1


def test_a_shared_rank_is_explained_only_where_there_is_one(make_run: MakeRun) -> None:
    seeds = np.arange(5) * 0.01
    comparison = compare_runs(finals(make_run, linear=0.7 + seeds, constant=0.5 + 1.1 * seeds, baseline=0.3 + seeds))
    assert [summary.rank for summary in comparison.ranking] == [1, 2, 3]
    assert not any("rank" in note for note in notes(comparison))


def test_fewer_than_three_seeds_have_no_rank() -> None:
    assert {summary.rank for summary in summarise(sweep(np.random.default_rng(0), 2))} == {None}


def test_groups_of_other_seeds_are_ranked_without_pairs() -> None:
    runs = sweep(np.random.default_rng(0), 4, {"linear": 4.0})
    moved = [
        replace(run, config={**run.config, "seed": run.seed + 10}) if "linear" in run.name else run for run in runs
    ]
    assert {summary.scenario: summary.rank for summary in summarise(moved)}["linear"] == 1
    assert {summary.rank for summary in summarise(moved)} != {1}


# ---- runs that have not finished -------------------------------------------------------------------------


def test_a_stopped_run_is_told_where_it_was_and_behind_whom_at_that_step(two_scenarios: list[Run]) -> None:
    (run,) = compare_runs(two_scenarios).unfinished
    assert (run.label, run.seed, run.state, run.step, run.planned_steps) == ("baseline", 0, "stopped early", 200, 400)
    assert (run.ahead, run.behind) == ("linear", pytest.approx(0.5 - 0.3))  # of seed 0, at step 200


def test_a_run_that_somebody_writes_is_running_and_another_was_interrupted(make_run: MakeRun) -> None:
    rows = evaluated([1.0, 0.5], [0.1, 0.4])
    runs = [make_run(rows, "l", finished=False), make_run(rows[:1], "b", finished=False, **BASELINE)]
    found = compare_runs(runs, is_written=lambda folder: folder.name == "l")
    states = {run.label: (run.state, run.step, run.ahead) for run in found.unfinished}
    assert states == {"linear": ("running", 200, None), "baseline": ("interrupted", 100, None)}
    assert notes(found) == ["1 run not finished: still running.", "1 run not finished: interrupted or failed."]
    assert {run.state for run in compare_runs(runs).unfinished} == {"interrupted"}


def test_a_run_that_has_not_been_evaluated_has_a_step_alone(make_run: MakeRun) -> None:
    (run,) = compare_runs([make_run([{"step": 10, "wall_s": 1.0}], "early", finished=False)]).unfinished
    assert (run.step, run.ahead) == (10, None)
    assert math.isnan(run.value)


# ---- words -----------------------------------------------------------------------------------------------


def test_the_words_say_both_verdicts_and_what_the_first_cycle_solves() -> None:
    """Linear is far ahead at equal steps; its steps take so long that at equal seconds it is far behind."""
    runs = sweep(np.random.default_rng(0), 5, {"linear": 1.5}, cost={"linear": 0.25})
    (line,) = [line for line in sentences(compare_runs(runs)) if line.startswith("linear")]
    assert "linear solves " in line
    assert "points more than baseline at equal steps (5 seeds, p " in line
    assert "points fewer at equal seconds (5 seeds, p " in line
    assert "Its first cycle already solves " in line
    assert "where baseline's solves " in line


def test_where_nothing_can_be_claimed_the_words_say_so_and_what_would_decide() -> None:
    lines = sentences(compare_runs(sweep(np.random.default_rng(5), 5)))
    assert [line for line in lines if "cannot be told apart (points: " in line]
    assert [
        line for line in lines if "To claim a difference of that size would take about so many more seeds: " in line
    ]


def test_two_seeds_get_differences_and_no_verdict() -> None:
    lines = sentences(compare_runs(sweep(np.random.default_rng(0), 2)))
    assert all("(2 seeds: no verdict)" in line and "±" not in line for line in lines)
    assert "Fewer than 3 seeds get no rank and no verdict" in " ".join(
        notes(compare_runs(sweep(np.random.default_rng(0), 2)))
    )


def test_seeds_that_are_in_no_pair_are_named() -> None:
    runs = sweep(np.random.default_rng(0), 4)
    kept = [run for run in runs if "linear" not in run.name or run.seed != 2]
    (line,) = [line for line in sentences(compare_runs(kept)) if line.startswith("linear")]
    assert line.endswith("In no pair, as only one side has them: seed 2.")


def test_answers_after_equally_many_cycles_are_told_side_by_side(make_run: MakeRun) -> None:
    rows = evaluated([1.0], [0.9])
    runs = [deep(make_run(rows, "l"), [0.3, 0.5, 0.9]), deep(make_run(rows, "b", **BASELINE), [0.1, 0.4, 0.8])]
    assert (
        "After 1 / 2 / 3 H-cycles it solves 30 / 50 / 90 %, baseline 10 / 40 / 80 %."
        in sentences(compare_runs(runs))[0]
    )


def test_runs_that_log_the_loss_alone_are_told_apart_by_it(make_run: MakeRun) -> None:
    def run(loss: float, name: str, **more: Any) -> Run:
        return make_run([{"step": 1, "wall_s": 1.0, "eval/loss": loss}], name, **more)

    runs = [run(0.25, "l"), run(0.5, "b", **BASELINE)]
    (line,) = sentences(compare_runs(runs))
    assert line == (
        "linear has a loss 0.250 lower than baseline at equal steps (1 seed: no verdict); "
        "has a loss 0.250 lower at equal seconds (1 seed: no verdict)."
    )


def test_loss_and_accuracy_that_disagree_are_explained(make_run: MakeRun) -> None:
    runs = [make_run(evaluated([0.3], [0.9]), "l"), make_run(evaluated([0.2], [0.8]), "b", **BASELINE)]
    words = (
        "By loss baseline comes first (0.200), by puzzles solved linear (loss 0.300): a wrong answer costs the more "
    )
    assert words + "loss the surer the model is of it." in notes(compare_runs(runs))
    agreeing = [runs[0], replace(runs[1], rows=tuple({**row, "eval/loss": 0.4} for row in runs[1].rows))]
    assert "By loss" not in " ".join(notes(compare_runs(agreeing)))


def test_a_costly_scenario_is_told_what_would_be_as_long() -> None:
    told = " ".join(notes(compare_runs(sweep(np.random.default_rng(0), 3, cost={"linear": 0.18}))))
    assert "linear takes 1.8 times the seconds of baseline" in told
    assert "A baseline of max_steps=1100 would be as long." in told  # 600 · 1.8, up to the speed of machines


def test_variants_that_people_have_named_are_found_by_their_folders(make_run: MakeRun) -> None:
    rows = evaluated([0.5], [0.4], 400)
    mine = [make_run(rows, "runs/fast", lr=2e-3), make_run(rows, "runs/slow", lr=1e-3)]
    more = make_run(rows, "runs/slow_again", lr=1e-3, seed=1)
    found = notes(compare_runs([*mine, more, make_run(rows, "runs/plain", **BASELINE, lr=1e-3)]))
    fast, slow = (run.folder for run in mine)
    assert set(found[-2:]) == {f"linear · lr=2e-3: {fast}", f"linear · lr=1e-3: {slow}, {more.folder}"}
    trials = [make_run(rows, f"sweep/deep_supervision_linear-seed0-lr={lr}", lr=lr) for lr in (0.1, 0.2)]
    assert not any("lr=" in note for note in notes(compare_runs(trials)))
    assert not any(str(fast) in note for note in notes(compare_runs(mine[:1])))


def test_no_baseline_is_told_with_the_way_out(make_run: MakeRun) -> None:
    runs = [make_run(evaluated([1.0], [0.5]), "a", lr=1e-3), make_run(evaluated([1.0], [0.5]), "b", lr=2e-3)]
    assert sentences(compare_runs(runs)) == [
        "No finished run is of baseline: `--baseline NAME` compares with another scenario."
    ]
    assert sentences(compare_runs(runs[:1])) == []


def test_many_scenarios_are_not_all_told() -> None:
    runs = sweep(np.random.default_rng(0), 3)
    others = [replace(run, config={**run.config, "config_name": f"x{i}"}) for i in range(10) for run in runs[3:6]]
    lines = sentences(compare_runs([*runs, *others]))
    assert len(lines) == 9
    assert lines[-1] == "6 more are in the JSON (--json FILE, report/summary.json)."


# ---- tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 50])
def test_a_narrow_terminal_keeps_rank_and_scenario(width: int) -> None:
    comparison = compare_runs(sweep(np.random.default_rng(0), 3))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(console, ranking_table(comparison), names=2)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert sorted(line.strip() for line in lines if line[:1].isdecimal()) == sorted(f"1 {name}" for name in SCENARIOS)
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_everything_fits_eighty_characters_without_cutting_a_number(seeds: int) -> None:
    runs = sweep(np.random.default_rng(0), seeds, {"linear": 1.5})
    runs[-1] = replace(runs[-1], finished=False, rows=runs[-1].rows[:4])
    text = printed(compare_runs(runs, threshold=0.9))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "Ranking by puzzles solved" in text
    assert "Not finished, each at its last evaluation" in text


def test_a_row_of_the_table_has_a_number_in_every_column(two_scenarios: list[Run]) -> None:
    lines = printed(compare_runs(two_scenarios, 0.75)).splitlines()
    row = next(line for line in lines if "±" in line and "linear" in line)
    assert row.split() == ["linear", "2", "70.0", "±", "14.1", "0.300", "350", "(1/2)", "175", "0.500"]


def test_a_threshold_that_most_seeds_never_reach_is_told_as_beyond_their_end(two_scenarios: list[Run]) -> None:
    text = printed(compare_runs(two_scenarios, 0.9))
    assert "> 400" in text
    assert "> 200" in text  # seconds
    assert "(k/n): k of n seeds got there" in " ".join(text.split())


def test_words_stand_before_the_table_and_runs_that_were_stopped_after_it(two_scenarios: list[Run]) -> None:
    text = printed(compare_runs([*sweep(np.random.default_rng(0), 3), *two_scenarios[2:]]))
    places = [text.index(words) for words in ("cannot be", "Ranking by", "Not finished", "Stopped early: 1 run")]
    assert places == sorted(places)


def test_a_stopped_run_s_row_says_all_of_it(two_scenarios: list[Run]) -> None:
    (table,) = [unfinished_table(compare_runs(two_scenarios))]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells == [["baseline"], ["0"], ["stopped early"], ["200 of 400"], ["30.0"], ["0.500"], ["linear by 20.0"]]


# ---- files -----------------------------------------------------------------------------------------------


def test_the_json_is_valid_and_has_null_for_numbers_that_do_not_exist(two_scenarios: list[Run]) -> None:
    text = comparison_json(compare_runs(two_scenarios, 0.75))
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert (content["format_version"], content["ranked_by"]) == (2, "exact_accuracy")
    assert [scenario["label"] for scenario in content["scenarios"]] == ["linear", "baseline"]
    assert content["scenarios"][1]["final_loss"] == {"mean": 0.5, "sd": None, "count": 1, "low": None, "high": None}
    assert content["scenarios"][0]["steps_to_threshold"]["censored"] == [400]
    assert content["unfinished"][0]["state"] == "stopped early"


def test_the_json_has_the_keys_of_the_first_version_still(two_scenarios: list[Run]) -> None:
    first = {
        *("label", "scenario", "num_seeds", "final_loss", "best_loss", "final_exact_accuracy", "best_exact_accuracy"),
        *("threshold", "steps_to_threshold", "seconds_to_threshold", "planned_steps", "done_steps", "saved_steps"),
        *("num_stopped_early", "seconds_per_step", "best_run"),
    }
    assert first <= comparison_content(compare_runs(two_scenarios))["scenarios"][0].keys()


def test_a_verdict_in_the_json_has_what_a_program_needs() -> None:
    content = json.loads(comparison_json(compare_runs(sweep(np.random.default_rng(0), 5, {"linear": 3.0}))))
    wanted = {"scenario", "number", "at", "difference", "low", "high", "p", "n", "claim"}
    assert all(wanted <= verdict.keys() for verdict in content["verdicts"])
    assert {verdict["at"] for verdict in content["verdicts"]} == {"steps", "seconds", "flops"}
    (found,) = [
        verdict
        for verdict in content["verdicts"]
        if (verdict["scenario"], verdict["number"], verdict["at"]) == ("linear", "exact_accuracy", "steps")
    ]
    assert (found["claim"], found["n"], found["baseline"]) == ("better", 5, "baseline")
    assert found["low"] < found["difference"] < found["high"]
    assert content["words"]


def test_the_markdown_tables_have_a_row_a_scenario_and_the_same_number_of_cells(two_scenarios: list[Run]) -> None:
    text = comparison_markdown(compare_runs([*two_scenarios, *sweep(np.random.default_rng(0), 3)]))
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(block) for block in blocks] == [8, 3]
    assert [{line.count("|") for line in block} for block in blocks] == [{11}, {8}]
    assert text.startswith("- ")
