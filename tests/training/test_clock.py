import time

import pytest

from trm_ray.training import clock
from trm_ray.training.clock import PARTS, CoreSeconds
from trm_ray.training.session import ExchangeTime


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """CPU seconds of this process, as it will say."""
    now = [10.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    monkeypatch.setattr(clock, "_used_before_s", 4.0)
    return now


def test_every_cpu_second_belongs_to_one_part(used: list[float]) -> None:
    aside = [0.5]
    core = CoreSeconds({"steps": 100.0, "start": 1.0}, lambda: aside[0])
    watch = clock.Clock(0.0, ExchangeTime(), core)
    with watch.waiting():
        used[0] += 2
    used[0] += 8  # steps
    with watch.paused("evaluation"):
        used[0] += 3
        aside[0] += 1  # of those three, in the thread that writes checkpoints
    expected = {"start": 7.0, "data": 2.0, "steps": 108.0, "gradient_stats": 0.0, "evaluation": 2.0, "checkpoints": 1.0}
    assert watch.core_seconds() == expected
    assert sum(expected.values()) - 101 == used[0] - 4


def test_the_next_run_of_a_process_starts_where_the_last_one_ended(used: list[float]) -> None:
    CoreSeconds({}, lambda: 0.0).up_to_now("steps")
    used[0] += 5
    again = CoreSeconds({}, lambda: 0.0)
    assert again.spent == {**dict.fromkeys(PARTS, 0.0), "start": 5.0}


def test_what_a_program_did_before_belongs_to_no_run(used: list[float]) -> None:
    clock.leave_out_earlier()
    used[0] += 1
    assert CoreSeconds({}, lambda: 0.0).spent["start"] == 1.0
