"""Scenarios against their baseline at equal steps, seconds and operations, on runs whose numbers are made up."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated import FIVE_POINTS, SCENARIOS, claimed, sweep

from trm_ray.reporting.numbers.curves import curves_of
from trm_ray.reporting.numbers.summary import compare_runs
from trm_ray.reporting.numbers.verdicts import Verdict
from trm_ray.reporting.run_log import Run

MakeRun = Callable[..., Run]
BASELINE, LINEAR = "deep_supervision_baseline", "deep_supervision_linear"


def rows(exact: Sequence[float], step_s: float = 0.5, every: int = 100, **more: Any) -> list[dict[str, float]]:
    """Evaluations of a run, which take as long again as training; `more` are other columns by tag, / written __."""
    return [
        {
            "step": every * (i + 1),
            "wall_s": 2 * step_s * every * (i + 1),
            "throughput/steps_per_s": 1 / step_s,
            "eval/exact_accuracy": exact[i],
            **{tag.replace("__", "/"): values[i] for tag, values in more.items()},
        }
        for i in range(len(exact))
    ]


def found(runs: Sequence[Run], number: str = "exact_accuracy", at: str = "steps", **options: Any) -> Verdict:
    """The one verdict of a number at an axis."""
    (verdict,) = [v for v in compare_runs(runs, **options).verdicts if (v.number, v.at) == (number, at)]
    return verdict


@pytest.fixture
def pairs(make_run: MakeRun) -> Callable[..., list[Run]]:
    """Three seeds of linear and of the baseline, from their rows."""

    def make(ours: Sequence[list[dict]], theirs: Sequence[list[dict]]) -> list[Run]:
        sides = ((LINEAR, ours), (BASELINE, theirs))
        return [
            make_run(runs[seed], f"{name}{seed}", config_name=name, seed=seed)
            for name, runs in sides
            for seed in range(len(runs))
        ]

    return make


# ---- what a run has cost ---------------------------------------------------------------------------------


def test_seconds_are_those_in_steps_and_evaluations_are_in_none(make_run: MakeRun) -> None:
    curves = curves_of(make_run(rows([0.1, 0.2])))
    assert curves.cost("seconds", np.array([0, 100, 150, 200])).tolist() == [0, 50, 75, 100]
    assert curves.length("seconds") == 100


def test_a_log_without_rates_is_measured_by_the_clock(make_run: MakeRun) -> None:
    bare = [{key: value for key, value in row.items() if "throughput" not in key} for row in rows([0.1, 0.2])]
    assert curves_of(make_run(bare)).cost("seconds", np.array([100, 200])).tolist() == [100, 200]


def test_operations_are_those_that_the_log_counts_and_unknown_without(make_run: MakeRun) -> None:
    curves = curves_of(make_run(rows([0.1, 0.2], train__flops=[10.0, 20.0]), "counted"))
    assert curves.cost("flops", np.array([50, 200])).tolist() == [5, 20]
    assert "flops" not in curves_of(make_run(rows([0.1]), "uncounted")).costs


def test_a_number_is_read_between_evaluations_and_never_beyond_them(make_run: MakeRun) -> None:
    curves = curves_of(make_run(rows([0.2, 0.6])))
    assert curves.value("exact_accuracy", "steps", 150) == pytest.approx(0.4)
    assert curves.value("exact_accuracy", "seconds", 75) == pytest.approx(0.4)
    assert curves.value("exact_accuracy", "steps", 99) is None
    assert curves.value("exact_accuracy", "steps", 201) is None
    assert curves.value("loss", "steps", 150) is None


def test_a_threshold_is_crossed_on_the_line_between_two_evaluations(make_run: MakeRun) -> None:
    curves = curves_of(make_run(rows([0.2, 0.6, 0.5])))
    assert curves.crossing("exact_accuracy", "steps", 0.5) == (175.0, True)
    assert curves.crossing("exact_accuracy", "seconds", 0.5) == (87.5, True)
    assert curves.crossing("exact_accuracy", "steps", 0.1) == (100.0, True)
    assert curves.crossing("exact_accuracy", "steps", 0.7) == (300.0, False)


# ---- at equal cost ---------------------------------------------------------------------------------------


def test_the_pairs_agree_with_numbers_worked_by_hand_and_scipy(pairs: Callable[..., list[Run]]) -> None:
    ours, theirs = [[0.4, 0.9], [0.4, 0.86], [0.5, 0.93]], [[0.2, 0.85], [0.2, 0.84], [0.3, 0.86]]
    verdict = found(pairs([rows(one) for one in ours], [rows(one) for one in theirs]))
    assert (verdict.scenario, verdict.baseline, verdict.n) == ("linear", "baseline", 3)
    assert verdict.difference == pytest.approx((0.05 + 0.02 + 0.07) / 3)
    expected = stats.ttest_rel([0.9, 0.86, 0.93], [0.85, 0.84, 0.86])
    assert verdict.p == verdict.p_uncorrected == pytest.approx(expected.pvalue)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert verdict.p_permutation == 0.25
    assert verdict.claim == "none"
    assert verdict.more_seeds == 2  # five pairs of d = 0.0467 / 0.0252 = 1.85


def test_runs_of_other_lengths_are_read_where_the_shorter_one_ends(pairs: Callable[..., list[Run]]) -> None:
    short, long = [0.5, 0.6], [0.3, 0.4, 0.8, 0.9]
    verdict = found(pairs([rows(short)] * 3, [rows(long)] * 3))
    assert (verdict.ours, verdict.theirs) == pytest.approx((0.6, 0.4))


def test_a_step_that_takes_twice_as_long_is_read_earlier_at_equal_seconds(pairs: Callable[..., list[Run]]) -> None:
    """Linear has the baseline's 150 s at step 150, half way from 0.4 to 0.8."""
    runs = pairs([rows([0.4, 0.8, 0.9], 1.0)] * 3, [rows([0.2, 0.5, 0.7])] * 3)
    assert found(runs).difference == pytest.approx(0.2)
    verdict = found(runs, at="seconds")
    assert (verdict.ours, verdict.theirs) == pytest.approx((0.6, 0.7))


def test_equal_operations_are_those_of_the_cheaper_run(pairs: Callable[..., list[Run]]) -> None:
    ours, theirs = rows([0.4, 0.8], train__flops=[20.0, 40.0]), rows([0.2, 0.7], train__flops=[10.0, 20.0])
    verdict = found(pairs([ours] * 3, [theirs] * 3), at="flops")
    assert (verdict.ours, verdict.theirs) == pytest.approx((0.4, 0.7))


def test_what_one_side_has_not_measured_gets_no_verdict(pairs: Callable[..., list[Run]]) -> None:
    more = {"train__flops": [1.0, 2.0], "eval__anytime_accuracy": [0.1, 0.2]}
    verdicts = compare_runs(pairs([rows([0.4, 0.8], **more)] * 3, [rows([0.2, 0.7])] * 3), 0.5).verdicts
    assert {(one.number, one.at) for one in verdicts} == {
        ("exact_accuracy", "steps"),
        ("exact_accuracy", "seconds"),
        ("steps_to_threshold", "steps"),
        ("seconds_to_threshold", "seconds"),
    }


def test_anytime_first_cycle_and_loss_are_compared_too(pairs: Callable[..., list[Run]]) -> None:
    def numbers(anytime: float, first: float, loss: float) -> dict[str, list[float]]:
        first_cycle = {"eval__first_segment__step_0_exact_accuracy": [0.0, first]}
        return {"eval__anytime_accuracy": [0.0, anytime], **first_cycle, "eval__loss": [2.0, loss]}

    ours = [rows([0.0, 0.8], **numbers(0.6 + 0.01 * i, 0.3 - 0.01 * i, 0.4 + 0.01 * i)) for i in range(3)]
    runs = pairs(ours, [rows([0.0, 0.8], **numbers(0.5, 0.1, 0.2))] * 3)
    assert found(runs, "anytime_accuracy").claim == "better"
    assert found(runs, "first_cycle_exact_accuracy").claim == "better"
    assert found(runs, "loss").claim == "worse"


def test_swapping_the_sides_mirrors_every_verdict(pairs: Callable[..., list[Run]]) -> None:
    rng = np.random.default_rng(0)
    runs = sweep(rng, 5, {"linear": 2.0}, cost={"linear": 0.18})
    two = [run for run in runs if run.config_name in (BASELINE, LINEAR)]
    forth, back = (compare_runs(two, baseline=name).verdicts for name in ("baseline", "linear"))
    swapped = {"better": "worse", "worse": "better", "none": "none"}
    assert len(forth) == len(back) == 14
    for one, other in zip(forth, back, strict=True):
        assert (one.number, one.at, one.n, one.claim) == (other.number, other.at, other.n, swapped[other.claim])
        assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
        assert one.p == pytest.approx(other.p)


# ---- which runs are paired -------------------------------------------------------------------------------


def test_seeds_that_one_side_lacks_are_in_no_pair_and_told(make_run: MakeRun) -> None:
    runs = [make_run(rows([0.1, 0.5 + 0.1 * seed]), f"b{seed}", config_name=BASELINE, seed=seed) for seed in (0, 1, 2)]
    runs += [make_run(rows([0.1, 0.7 + 0.1 * seed]), f"l{seed}", seed=seed) for seed in (1, 2, 3)]
    verdict = found(runs)
    assert (verdict.n, verdict.unpaired_seeds) == (2, (0, 3))
    assert verdict.difference == pytest.approx(0.2)
    assert (verdict.claim, verdict.more_seeds) == ("none", None)
    assert math.isnan(verdict.p)


def test_several_runs_of_a_seed_count_as_one(make_run: MakeRun) -> None:
    """A copy of a run is no further evidence."""
    runs = [make_run(rows([0.1, 0.5]), f"b{i}", config_name=BASELINE) for i in range(4)]
    runs += [make_run(rows([0.1, value]), f"l{i}") for i, value in enumerate((0.7, 0.8))]
    verdict = found(runs)
    assert (verdict.n, verdict.ours, verdict.claim) == (1, pytest.approx(0.75), "none")
    assert [one.num_seeds for one in compare_runs(runs).ranking] == [1, 1]


def test_a_variant_is_compared_with_its_own_baseline(make_run: MakeRun) -> None:
    runs = [
        make_run(rows([0.1, exact]), f"{name}{rate}", config_name=name, lr=rate)
        for rate, exacts in ((1e-3, (0.5, 0.6)), (2e-3, (0.2, 0.4)))
        for name, exact in zip((BASELINE, LINEAR), exacts, strict=True)
    ]
    verdicts = [one for one in compare_runs(runs).verdicts if (one.number, one.at) == ("exact_accuracy", "steps")]
    told = {one.scenario: (one.baseline, round(one.difference, 6)) for one in verdicts}
    assert told["linear · lr=1e-3"] == ("baseline · lr=1e-3", 0.1)
    assert told["linear · lr=2e-3"] == ("baseline · lr=2e-3", 0.2)


def test_of_baselines_of_several_lengths_the_one_that_cost_as_much_is_taken(make_run: MakeRun) -> None:
    """A baseline of 400 steps takes the seconds of linear's 200, one of 200 its steps."""
    runs = [make_run(rows([0.4, 0.8], 1.0), "linear", max_steps=200)]
    runs += [make_run(rows([0.2, 0.7]), "short", config_name=BASELINE, max_steps=200)]
    runs += [make_run(rows([0.1, 0.3, 0.6, 0.9]), "long", config_name=BASELINE, max_steps=400)]
    assert found(runs).difference == pytest.approx(0.1)
    verdict = found(runs, at="seconds")
    assert "max_steps=400" in verdict.baseline
    assert verdict.difference == pytest.approx(-0.1)


def test_another_task_is_no_baseline(make_run: MakeRun) -> None:
    runs = [make_run(rows([0.4]), "linear"), make_run(rows([0.2]), "b", config_name=BASELINE, task="sudoku4")]
    assert compare_runs(runs).verdicts == []


def test_only_finished_runs_are_judged(make_run: MakeRun) -> None:
    runs = [make_run(rows([0.4]), "linear", finished=False), make_run(rows([0.2]), "b", config_name=BASELINE)]
    assert compare_runs(runs).verdicts == []


def test_any_scenario_or_group_can_be_the_baseline(make_run: MakeRun) -> None:
    runs = [make_run(rows([0.4]), "one", lr=1e-3), make_run(rows([0.5]), "two", lr=2e-3)]
    assert compare_runs(runs).verdicts == []
    assert found(runs, baseline="linear · lr=1e-3").scenario == "linear · lr=2e-3"


# ---- what is claimed -------------------------------------------------------------------------------------


def test_p_is_corrected_for_all_scenarios_of_one_number_and_axis() -> None:
    verdicts = compare_runs(sweep(np.random.default_rng(1), 5)).verdicts
    family = [one for one in verdicts if (one.number, one.at) == ("loss", "steps")]
    smallest = min(family, key=lambda one: one.p_uncorrected)
    assert len(family) == 4
    assert smallest.p == pytest.approx(min(1, 4 * smallest.p_uncorrected))


def test_equal_runs_are_called_equal(pairs: Callable[..., list[Run]]) -> None:
    same = [rows([0.1, 0.6 + 0.1 * seed], eval__loss=[2.0, 1.0]) for seed in range(3)]
    for verdict in compare_runs(pairs(same, same)).verdicts:
        assert (verdict.difference, verdict.p, verdict.claim) == (0, 1, "none")


def test_a_run_that_never_got_to_the_threshold_is_in_no_difference_and_forbids_a_claim(
    pairs: Callable[..., list[Run]],
) -> None:
    ours = [rows([0.2, 0.6, 0.7]), rows([0.3, 0.7, 0.8]), rows([0.4, 0.6, 0.7]), rows([0.4, 0.7, 0.7])]
    theirs = [rows([0.1, 0.2, 0.6]), rows([0.1, 0.2, 0.8]), rows([0.1, 0.2, 0.5]), rows([0.1, 0.2, 0.3])]
    runs = pairs(ours, theirs)
    verdict = found(runs, "steps_to_threshold")
    assert (verdict.n, verdict.num_censored, verdict.claim) == (3, 1, "none")
    assert verdict.difference < 0
    all_there = found([run for run in runs if run.seed < 3], "steps_to_threshold")
    assert (all_there.n, all_there.num_censored, all_there.claim) == (3, 0, "better")


def test_a_diverged_run_is_not_left_out_in_silence(pairs: Callable[..., list[Run]]) -> None:
    ours = [rows([0.2, 0.8], eval__loss=[1.0, 0.1 + 0.01 * i]) for i in range(3)]
    theirs = [rows([0.2, 0.5], eval__loss=[1.0, value]) for value in (0.5, None, 0.52)]
    verdict = found(pairs(ours, theirs), "loss")
    assert math.isnan(verdict.difference)
    assert (verdict.n, verdict.claim) == (3, "none")


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    assert claimed(compare_runs(sweep(np.random.default_rng(0), 5, {"linear": 2.0})).verdicts) == {"linear"}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_two_hundred_sweeps_of_equal_scenarios_raise_no_more_alarms_than_promised(seeds: int) -> None:
    """5 % of them may: ten; more than sixteen would come by chance once in fifty times."""
    rng = np.random.default_rng(0)
    alarms = {
        (number, at): 0 for number in ("exact_accuracy", "loss", "anytime_accuracy") for at in ("steps", "seconds")
    }
    for _ in range(200):
        verdicts = compare_runs(sweep(rng, seeds)).verdicts
        for family in alarms:
            alarms[family] += bool(claimed(verdicts, *family))
    assert max(alarms.values()) <= 16
    assert sum(alarms.values()) / len(alarms) <= 10


@pytest.mark.slow
def test_five_points_are_found_by_eight_seeds_more_often_than_not() -> None:
    rng = np.random.default_rng(0)
    found = [claimed(compare_runs(sweep(rng, 8, {"linear": FIVE_POINTS})).verdicts) for _ in range(50)]
    assert sum("linear" in names for names in found) >= 30


def test_five_seeds_that_all_agree_decide() -> None:
    verdicts = compare_runs(sweep(np.random.default_rng(0), 5, dict.fromkeys(SCENARIOS[1:], 3.0))).verdicts
    assert claimed(verdicts) == set(SCENARIOS[1:])
    assert json.dumps([one.claim for one in verdicts if one.at == "steps"]).count("better") >= 16
