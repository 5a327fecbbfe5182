"""Where CPU seconds went, added up over runs and told."""

from collections.abc import Callable

import pytest

from trm_ray.reporting.numbers.spending import Spending
from trm_ray.reporting.run_log import Run


def spent(step: int, **parts: float) -> dict[str, float]:
    return {"step": step, "wall_s": step, **{f"core_seconds/{name}": seconds for name, seconds in parts.items()}}


@pytest.fixture
def two_runs(make_run: Callable[..., Run]) -> list[Run]:
    first = [spent(10, steps=4.0, evaluation=1.0), spent(20, steps=50.0, evaluation=15.0), {"step": 21, "wall_s": 21}]
    return [make_run(first, "a"), make_run([spent(20, steps=25.0, evaluation=5.0)], "b", seed=1)]


def test_the_last_numbers_of_each_run_are_added_and_the_rest_is_other(two_runs: list[Run]) -> None:
    spending = Spending.of(two_runs, total=100.0, available=200.0)
    expected = {"steps": 75.0, "evaluation": 20.0, "other": 5.0, "total": 100.0, "available": 200.0}
    assert spending.content() == expected
    assert spending.told() == "100 core-seconds of 200 at hand: steps 75.0 %, evaluation 20.0 %, other 5.0 %."


def test_of_runs_alone_only_their_own_parts_are_known(two_runs: list[Run]) -> None:
    spending = Spending.of(two_runs)
    assert spending.content() == {"steps": 75.0, "evaluation": 20.0, "other": None, "total": None, "available": None}
    assert spending.told() == "95 core-seconds: steps 78.9 %, evaluation 21.1 %."


def test_runs_of_an_older_release_tell_nothing(make_run: Callable[..., Run]) -> None:
    assert Spending.of([make_run([{"step": 1, "wall_s": 1}], "old")]).told() == ""
