"""What is hopeless, on series of held-out losses; a uniform guess over 8 tokens loses ln 8 = 2.08."""

import math

import pytest

from trm_ray.config.keys import Reasons
from trm_ray.config.sweep import SweepConfig
from trm_ray.runs.hopeless import REASONS, is_diverging, past_hope

NAN, INF = math.nan, math.inf
GOOD = {
    "falls": [1.9, 1.2, 0.6, 0.3, 0.1],
    "stands still where it knows nothing": [2.08, 2.09, 2.08, 2.10, 2.09],
    "begins far above a uniform guess, and takes long": [30.0, 25.0, 9.0, 5.0, 2.5, 1.0],
    "rises from a bad begin, not to twice of it": [2.5, 4.0, 4.5, 4.0, 1.0],
    "overfits to ten times its best loss": [1.5, 0.1, 0.3, 0.7, 1.0, 1.5],
    "jumps once, and comes back": [1.5, 0.5, 40.0, 0.6, 0.4],
    "jumps at its end": [1.5, 0.5, 0.4, 40.0],
    "is evaluated once": [9.0],
    "is evaluated twice": [9.0, 99.0],
    "is not evaluated": [],
}
BAD = {
    "explodes": [1.5, 0.5, 9.0, 12.0],
    "explodes after having learned nothing": [2.0, 2.0, 4.5, 6.0],
    "is infinite": [1.5, INF, INF],
    "is not a number before it explodes": [1.0, NAN, 5.0, 5.0],
}


@pytest.mark.parametrize("losses", GOOD.values(), ids=GOOD)
def test_a_run_that_may_still_learn_is_never_diverging(losses: list[float]):
    assert not any(is_diverging(losses[:number], num_tokens=8) for number in range(len(losses) + 1))


@pytest.mark.parametrize("losses", BAD.values(), ids=BAD)
def test_a_run_that_has_lost_what_it_had_is_diverging(losses: list[float]):
    assert is_diverging(losses, num_tokens=8)
    assert past_hope(losses, 8, ["diverging"]) == "diverging"
    assert past_hope(losses, 8, []) is None


@pytest.mark.parametrize("last", [NAN, INF])
def test_a_loss_that_is_not_finite_is_past_hope_at_once_if_that_is_asked_for(last: float):
    assert past_hope([1.0, last], 8, ["non_finite", "diverging"]) == "non_finite"
    assert past_hope([1.0, last], 8, ["diverging"]) is None


def test_the_key_takes_what_there_is():
    assert SweepConfig.model_validate({"scenarios": ["a"], "stop_on": list(REASONS)}).stop_on == list(REASONS)
    assert all(reason in str(Reasons) for reason in REASONS)
