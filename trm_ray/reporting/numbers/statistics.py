"""Few seeds judged: intervals, paired differences, Holm's correction, seeds to add, medians of censored times.

docs/sweep.md says how the tests were chosen; `tests/reporting/numbers/simulated.py` measures how often they err.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE, ALPHA = 0.95, 0.05
MIN_SEEDS = 3  # fewer give a difference, and no verdict
# A bootstrap of few values resamples too little of what could have come: its intervals would be too narrow.
BOOTSTRAP_FROM = 20
MOST_SEEDS = 100  # that are worth naming: nobody trains more

Claim = Literal["better", "worse", "none"]
Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `count` seeds, and the mean's 95 % interval from `low` to `high`.

    `sd`, `low` and `high` are NaN for one seed, `mean` too for none.
    """

    mean: float
    sd: float
    count: int
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Difference:
    """How far one group lies above another.

    low, high: 95 % interval of the mean difference; NaN with fewer than three seeds, as `p` is.
    sd: of the paired differences; NaN for groups without pairs.
    p: two-sided, of this one comparison.
    count: pairs; without pairs, the seeds of the smaller group.
    """

    mean: float
    low: float
    high: float
    sd: float
    p: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Take mean, sample standard deviation and interval; one value that is not finite makes all NaN, on purpose."""
    numbers = np.array(list(values), dtype=np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return Spread(math.nan, math.nan, len(numbers))
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return Spread(float(numbers.mean()), deviation, len(numbers), *interval(numbers))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Give the 95 % interval of the mean of (n,) finite values: by Student's t, from twenty on by a BCa bootstrap."""
    if len(values) < 2:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    if len(values) >= BOOTSTRAP_FROM:
        from scipy import stats

        found = stats.bootstrap((values,), np.mean, confidence_level=CONFIDENCE, method="BCa", rng=0)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)
    from scipy import special  # of many groups there are many pairs: scipy.stats takes 20 times as long for each

    half = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * _standard_error(values)
    return float(values.mean() - half), float(values.mean() + half)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_difference(ours: Numbers, theirs: Numbers) -> Difference:
    """Compare runs of the same seeds by a paired t test.

    Args:
        ours, theirs: (n,) a number of each seed, in the same order.
    """
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    found = spread(differences)
    if len(differences) < MIN_SEEDS or not np.isfinite(differences).all():
        return Difference(found.mean, math.nan, math.nan, found.sd, math.nan, found.count)
    return Difference(found.mean, found.low, found.high, found.sd, _paired_p(differences), found.count)


def _paired_p(differences: np.ndarray) -> float:
    """Test the mean difference; where all are equal Student's t would be sure of it, however few they are."""
    if np.ptp(differences) == 0:
        return sign_flip_p(differences)
    from scipy import special

    return float(2 * special.stdtr(len(differences) - 1, -abs(differences.mean()) / _standard_error(differences)))


def sign_flip_p(differences: Numbers) -> float:
    """Test (n,) paired differences without assuming their distribution: how many ways to swap sides give as much.

    With n pairs it cannot go below 2 / 2ⁿ: 0.06 for five.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < MIN_SEEDS or not np.isfinite(values).all():
        return math.nan
    from scipy import stats

    found = stats.permutation_test((values,), _mean, permutation_type="samples", vectorized=True, rng=0)
    return float(found.pvalue)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis=axis)


def unpaired_difference(ours: Numbers, theirs: Numbers) -> Difference:
    """Compare runs of different seeds by Welch's t test; the standard deviations may differ."""
    first, second = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    count, mean = min(len(first), len(second)), float(first.mean() - second.mean())
    usable = count >= MIN_SEEDS and math.isfinite(mean) and (np.ptp(first) > 0 or np.ptp(second) > 0)
    if not usable:
        return Difference(mean, math.nan, math.nan, math.nan, math.nan, count)
    from scipy import stats

    found = stats.ttest_ind(first, second, equal_var=False)
    low, high = found.confidence_interval(CONFIDENCE)
    return Difference(mean, float(low), float(high), math.nan, float(found.pvalue), count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, so that one false claim among all of them is as rare as one alone was.

    NaN stays NaN and counts as no test.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    corrected, so_far = [math.nan] * len(p_values), 0.0
    order = sorted((i for i, p in enumerate(p_values) if math.isfinite(p)), key=lambda i: p_values[i])
    for place, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - place) * p_values[i]))
        corrected[i] = so_far
    return corrected


def claim(difference: float, p: float, higher_is_better: bool) -> Claim:
    """Say what may be claimed of a difference whose corrected p value is `p`; NaN claims nothing."""
    if not p < ALPHA or difference == 0:
        return "none"
    return "better" if (difference > 0) == higher_is_better else "worse"


def seeds_needed(difference: float, sd: float, alpha: float = ALPHA, power: float = 0.8) -> int | None:
    """Count the pairs with which a two-sided paired t test finds a true difference of that size.

    Args:
        difference, sd: mean and standard deviation of the paired differences.
        alpha: how often the test may find one where there is none.
        power: how often it must find this one.

    Returns:
        At least 2; None for more than a hundred, or for no difference at all.

    Source: the noncentral t distribution.
    """
    if not math.isfinite(difference) or not sd > 0 or difference == 0:
        return None
    from scipy import stats

    counts = np.arange(2, MOST_SEEDS + 1)
    bound, shift = stats.t.ppf(1 - alpha / 2, counts - 1), abs(difference) / sd * np.sqrt(counts)
    enough = stats.nct.sf(bound, counts - 1, shift) + stats.nct.cdf(-bound, counts - 1, shift) >= power
    return int(counts[enough.argmax()]) if enough.any() else None


def censored_median(reached: Sequence[float], censored: Sequence[float]) -> float:
    """Estimate the median of times of which some are only known to be longer (Kaplan and Meier).

    Args:
        reached: times that were seen.
        censored: how long was waited for the others.

    Returns:
        NaN where fewer than half got there.
    """
    if not reached:
        return math.nan
    from scipy import stats

    survival = stats.ecdf(stats.CensoredData(uncensored=list(reached), right=list(censored))).sf
    times = survival.quantiles[np.isin(survival.quantiles, reached)]
    left = survival.evaluate(times)
    below, at = times[left < 0.5 - 1e-9], times[np.isclose(left, 0.5)]
    if not len(at):
        return float(below[0]) if len(below) else math.nan
    return float((at[0] + below[0]) / 2) if len(below) else float(at[0])
