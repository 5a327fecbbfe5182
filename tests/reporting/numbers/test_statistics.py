"""Statistics of few seeds, against numbers worked by hand and against scipy.stats asked another way."""

import math

import numpy as np
import pytest
from scipy import stats

from trm_ray.reporting.numbers.statistics import (
    ALPHA,
    BOOTSTRAP_FROM,
    censored_median,
    claim,
    holm,
    interval,
    paired_difference,
    seeds_needed,
    sign_flip_p,
    spread,
    unpaired_difference,
)

OURS, THEIRS = [0.91, 0.87, 0.865, 0.90, 0.88], [0.88, 0.85, 0.78, 0.86, 0.85]  # differences 3, 2, 8.5, 4, 3 points


def draws(size: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size)


# ---- intervals -------------------------------------------------------------------------------------------


def test_an_interval_of_three_values_is_student_s_t_worked_by_hand() -> None:
    found = spread([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t(0.975, 2 degrees) · sd 1 / √3
    assert (found.mean, found.sd, found.count) == (2.0, 1.0, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf, 2.0]])
def test_too_few_values_or_bad_ones_have_no_interval(values: list[float]) -> None:
    found = spread(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(found.sd) or len(values) > 1


def test_equal_values_have_an_interval_without_width() -> None:
    assert interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)


def test_many_values_get_a_bootstrap_and_few_do_not() -> None:
    values = np.exp(draws((BOOTSTRAP_FROM,)))
    expected = stats.bootstrap((values,), np.mean, method="BCa", rng=0).confidence_interval
    assert interval(values) == pytest.approx((expected.low, expected.high))
    few = values[:-1]
    assert interval(few) == pytest.approx(stats.t.interval(0.95, len(few) - 1, few.mean(), stats.sem(few)))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_student_s_interval_holds_what_it_promises_for_few_values_and_a_bootstrap_would_not(count: int) -> None:
    values = draws((400, count))
    held = [low <= 0 <= high for low, high in map(interval, values)]
    assert 0.92 < np.mean(held) < 0.98
    bootstrap = stats.bootstrap((values,), np.mean, axis=1, n_resamples=999, method="BCa", rng=0).confidence_interval
    assert np.mean((bootstrap.low <= 0) & (bootstrap.high >= 0)) < 0.9


# ---- differences -----------------------------------------------------------------------------------------


def test_a_paired_difference_agrees_with_numbers_worked_by_hand() -> None:
    # 3, 2, 4: mean 3, sd 1, t = 3·√3 = 5.196 with 2 degrees, p = 1 − t/√(t² + 2) = 0.0351
    found = paired_difference([5.0, 4.0, 7.0], [2.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.count) == (3.0, 1.0, 3)
    assert found.p == pytest.approx(1 - math.sqrt(27 / 29))
    assert (found.low, found.high) == pytest.approx(
        (3 - 4.302653 / math.sqrt(3), 3 + 4.302653 / math.sqrt(3)), abs=1e-5
    )


def test_a_paired_difference_agrees_with_scipy() -> None:
    found, expected = paired_difference(OURS, THEIRS), stats.ttest_rel(OURS, THEIRS)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_an_unpaired_difference_agrees_with_scipy() -> None:
    found, expected = unpaired_difference(OURS, THEIRS[:4]), stats.ttest_ind(OURS, THEIRS[:4], equal_var=False)
    assert (found.p, found.count) == (pytest.approx(expected.pvalue), 4)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("compare", [paired_difference, unpaired_difference])
def test_swapping_the_sides_mirrors_a_difference(compare) -> None:
    one, other = compare(OURS, THEIRS), compare(THEIRS, OURS)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("compare", [paired_difference, unpaired_difference])
def test_fewer_than_three_seeds_give_a_difference_and_no_test(compare) -> None:
    found = compare([0.9, 0.8], [0.7, 0.7])
    assert (found.mean, found.count) == (pytest.approx(0.15), 2)
    assert all(map(math.isnan, (found.low, found.high, found.p)))


def test_a_value_that_diverged_makes_the_difference_unknown() -> None:
    found = paired_difference([0.9, math.nan, 0.8], [0.7, 0.7, 0.7])
    assert math.isnan(found.mean)
    assert math.isnan(found.p)


def test_equal_differences_are_not_taken_for_certain() -> None:
    """Three seeds that solve one puzzle of 512 more, each, are no proof; Student's t would say p = 0."""
    assert paired_difference([3 / 512] * 3, [2 / 512] * 3).p == 0.25
    assert paired_difference([0.5] * 3, [0.5] * 3).p == 1.0


@pytest.mark.parametrize(("count", "least"), [(3, 2 / 8), (5, 2 / 32), (8, 2 / 256)])
def test_swapping_sides_cannot_be_surer_than_the_pairs_allow(count: int, least: float) -> None:
    assert sign_flip_p(np.arange(1.0, count + 1)) == pytest.approx(least)
    assert sign_flip_p(-np.arange(1.0, count + 1)) == pytest.approx(least)


def test_swapping_sides_agrees_with_a_count_by_hand() -> None:
    # ±1 ±2 −4 …: of the 8 sums |±1 ±2 ±4| those of at least |1 + 2 − 4| = 1 are all
    assert sign_flip_p([1.0, 2.0, -4.0]) == 1.0
    # |1 + 2 + 4| = 7 is reached by two, |−1 + 2 + 4| = 5 by four
    assert sign_flip_p([-1.0, 2.0, 4.0]) == 0.5


# ---- several scenarios -----------------------------------------------------------------------------------


def test_holm_s_correction_agrees_with_numbers_worked_by_hand() -> None:
    # sorted 0.01·4, 0.02·3, 0.03·2, 0.04·1, never falling
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_missing_test_is_none_of_those_that_are_corrected_for() -> None:
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(corrected[1])


@pytest.mark.parametrize(
    ("difference", "p", "higher", "expected"),
    [
        (0.1, 0.049, True, "better"),
        (-0.1, 0.049, True, "worse"),
        (-0.1, 0.049, False, "better"),
        (0.1, 0.05, True, "none"),
        (0.1, math.nan, True, "none"),
        (0.0, 0.0, True, "none"),
    ],
)
def test_a_claim_is_decided_by_the_corrected_p(difference: float, p: float, higher: bool, expected: str) -> None:
    assert claim(difference, p, higher) == expected


@pytest.mark.parametrize("count", [3, 5])
def test_four_scenarios_like_their_baseline_are_called_so_in_nineteen_of_twenty_sweeps(count: int) -> None:
    """Each shares the baseline's runs, and every seed moves all of them; 1,000 sweeps tell 5 % up to ± 1.4."""
    alarms, sweeps = 0, 1000
    rng = np.random.default_rng(count)
    for _ in range(sweeps):
        values = rng.normal(size=(5, count)) + rng.normal(size=count)
        p_values = holm([paired_difference(scenario, values[0]).p for scenario in values[1:]])
        alarms += min(p_values) < ALPHA
    assert alarms / sweeps <= 0.064


# ---- seeds to add ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("effect", "pairs"), [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_the_seeds_needed_are_those_of_the_tables(effect: float, pairs: int) -> None:
    """Cohen's d of pairs, two-sided 0.05, power 0.8: as G*Power gives them."""
    assert seeds_needed(effect, 1.0) == pairs
    assert seeds_needed(-5 * effect, 5.0) == pairs


def test_so_many_seeds_find_the_difference_in_four_of_five_experiments() -> None:
    count = seeds_needed(5.0, 3.0, alpha=0.05 / 4)
    assert count is not None
    found = stats.ttest_1samp(5 + 3 * draws((4000, count)), 0, axis=1).pvalue < 0.05 / 4
    fewer = stats.ttest_1samp(5 + 3 * draws((4000, count - 1)), 0, axis=1).pvalue < 0.05 / 4
    assert found.mean() > 0.78
    assert fewer.mean() < 0.8


@pytest.mark.parametrize(("difference", "sd"), [(0.0, 1.0), (1.0, 0.0), (0.01, 1.0), (math.nan, 1.0)])
def test_no_number_of_seeds_is_named_where_none_would_do(difference: float, sd: float) -> None:
    assert seeds_needed(difference, sd) is None


# ---- medians of censored times ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "censored", "median"),
    [
        ([3.0, 1.0, 2.0], [], 2.0),
        ([1.0, 2.0, 3.0, 4.0], [], 2.5),  # survival is 1/2 from 2 to 3
        ([100.0, 200.0, 300.0], [600.0], 250.0),
        ([100.0, 300.0, 350.0], [600.0, 600.0], 350.0),
        ([1.0, 2.0, 4.0], [3.0], 3.0),  # 3/4, then 1/2 until the only one left gets there at 4
        ([5.0], [2.0, 3.0], 5.0),  # nobody else was followed as long
        ([100.0], [600.0], 100.0),
    ],
)
def test_a_median_of_censored_times_agrees_with_survival_worked_by_hand(
    reached: list[float], censored: list[float], median: float
) -> None:
    assert censored_median(reached, censored) == median


@pytest.mark.parametrize(("reached", "censored"), [([], [600.0]), ([], []), ([100.0, 200.0], [600.0] * 3)])
def test_there_is_no_median_where_fewer_than_half_got_there(reached: list[float], censored: list[float]) -> None:
    assert math.isnan(censored_median(reached, censored))
