from collections.abc import Callable
from typing import Any

import pytest

from trm_ray.reporting.numbers.diagnosis import (
    cycles_refine,
    data_keeps_up,
    generalises,
    gradient_fits_clip,
    halting_is_useful,
    health_marks,
    loss_falls,
    puzzles_get_solved,
    segments_help,
)
from trm_ray.reporting.run_log import Run

MakeRun = Callable[..., Run]


def rows_of(**columns: list[float]) -> list[dict[str, Any]]:
    """One row a value: `rows_of(**{"train/lm_loss": [3, 2, 1]})` at steps 10, 20, 30."""
    length = max(len(values) for values in columns.values())
    return [
        {
            "step": 10 * (i + 1),
            "wall_s": i,
            **{tag: values[i] for tag, values in columns.items() if i < len(values)},
        }
        for i in range(length)
    ]


def test_a_healthy_run_has_only_good_marks(make_run: MakeRun, healthy_rows: Callable[..., Any]) -> None:
    marks = health_marks(make_run(healthy_rows()))
    assert [mark for mark, _ in marks] == ["ok"] * 7


def test_a_run_without_rows_says_when_the_first_is_due(make_run: MakeRun) -> None:
    assert health_marks(make_run([])) == [("warn", "nothing logged yet: log_interval=10")]


def test_a_loss_that_is_not_finite_is_bad_and_says_where(make_run: MakeRun) -> None:
    mark, text = loss_falls(make_run(rows_of(**{"train/total_loss": [2.0, None, 1.0]})))  # type: ignore[misc]
    assert mark == "bad"
    assert text == "train/total_loss not finite at step 20: lower lr or warm up longer"


@pytest.mark.parametrize(
    ("losses", "mark"),
    [
        ([2.0, 1.5, 1.0, 0.5], "ok"),
        ([2.0, 2.01, 1.99, 2.0], "warn"),
        ([2.0, 2.2, 2.4, 2.6], "bad"),
        ([2.0], "warn"),
    ],
)
def test_the_training_loss_has_to_fall(make_run: MakeRun, losses: list[float], mark: str) -> None:
    found = loss_falls(make_run(rows_of(**{"train/lm_loss": losses})))
    assert found is not None
    assert found.mark == mark


def test_the_last_cycle_has_to_beat_the_first(make_run: MakeRun) -> None:
    first, second = ("eval/first_segment/step_0_loss", "eval/first_segment/step_1_loss")
    good = make_run(rows_of(**{first: [0.25], second: [0.07]}), "good")
    bad = make_run(rows_of(**{first: [0.25], second: [0.3]}), "bad")
    single = make_run(rows_of(**{first: [0.25]}), "single")
    assert cycles_refine(good) == ("ok", "later H-cycles refine: loss 0.25 → 0.07 in the first segment")
    assert cycles_refine(bad) == (
        "warn",
        "later cycles do not help (0.25 → 0.3): raise arch.L_cycles",
    )
    assert cycles_refine(single) is None
    # At the last segment all cycles agree, so nothing can be judged there.
    last_segment = make_run(rows_of(**{"eval/step_0_loss": [0.145], "eval/step_1_loss": [0.146]}), "last")
    assert cycles_refine(last_segment) is None


def test_the_share_of_clipped_steps_is_told(make_run: MakeRun) -> None:
    def clipped(name: str, last: float) -> Any:
        losses = [1.0] * 12 + [last] * 13
        return make_run(rows_of(**{"train/grad_norm": [2.0] * 24 + [0.5], "train/lm_loss": losses}), name)

    low = make_run(rows_of(**{"train/grad_norm": [2.0, 0.5, 0.5, 0.5]}), "low")
    unclipped = make_run(rows_of(**{"train/grad_norm": [2.0]}), "unclipped", grad_clip_norm=0)
    told = "gradient norm above clip at 96 % of logs, and the loss"
    assert gradient_fits_clip(clipped("stuck", 1.0)) == ("warn", f"{told} does not fall: lower lr")
    assert gradient_fits_clip(clipped("learns", 0.5)) == ("ok", f"{told} falls")
    assert gradient_fits_clip(low) == ("ok", "gradient norm above clip at 25 % of logs")
    assert gradient_fits_clip(unclipped) is None


def test_held_out_progress_is_told(make_run: MakeRun) -> None:
    def mark(name: str, exact: list[float]) -> Any:
        return puzzles_get_solved(make_run(rows_of(**{"eval/exact_accuracy": exact, "x": [0.0]}), name))

    assert mark("good", [0.1, 0.6]) == ("ok", "held-out puzzles solved: 60.0 %")
    assert mark("zero", [0.0, 0.0]).mark == "warn"
    assert mark("none", []) == ("warn", "no evaluation yet: eval_interval=100, at step 10")
    worse = mark("worse", [0.9, 0.6])
    assert worse == ("warn", "held-out puzzles solved: 60.0 %, but 90.0 % at step 10: use that checkpoint")


def test_a_held_out_loss_that_rises_again_is_told(make_run: MakeRun) -> None:
    def mark(name: str, losses: list[float]) -> Any:
        return generalises(make_run(rows_of(**{"eval/loss": losses}), name))

    assert mark("good", [0.3, 0.2, 0.21]).mark == "ok"
    assert mark("rises", [0.3, 0.2, 0.25]).mark == "warn"
    text = "held-out loss rose from 0.2 (step 20) to 0.4: stop there, or more puzzles"
    assert mark("doubles", [0.3, 0.2, 0.4]) == ("bad", text)
    assert mark("one", [0.3]) is None


def test_data_wait_leaves_out_the_first_log_and_must_stay_under_five_percent(make_run: MakeRun) -> None:
    fast = make_run(rows_of(**{"throughput/data_wait_fraction": [0.9, 0.01, 0.03]}), "fast")
    slow = make_run(rows_of(**{"throughput/data_wait_fraction": [0.0, 0.1, 0.2]}), "slow")
    assert data_keeps_up(fast) == ("ok", "data wait 2.0 % of a step")
    assert data_keeps_up(slow) == ("warn", "data wait 15.0 % of a step: give the loader a CPU")


def test_halting_has_to_save_segments_without_losing_puzzles(make_run: MakeRun) -> None:
    def mark(name: str, exact: float, halting: float, steps: float) -> Any:
        tags = {
            "eval/exact_accuracy": [exact],
            "eval/exact_accuracy_halting": [halting],
            "eval/act_steps": [steps],
        }
        return halting_is_useful(make_run(rows_of(**tags), name))

    assert mark("good", 0.9, 0.89, 2.0) == ("ok", "halts after 2.0 of 8 segments at 89.0 % exact")
    assert mark("pays", 0.9, 0.86, 2.0).mark == "ok"
    assert mark("loses", 0.9, 0.8, 2.0) == (
        "warn",
        "halts after 2.0 of 8 segments and loses 10.0 points: train longer",
    )
    assert mark("never", 0.9, 0.9, 8.0) == (
        "warn",
        "halts after 8.0 of 8 segments: the halting head saves nothing yet",
    )
    assert mark("early", 0.1, 0.1, 8.0) is None


def test_segments_that_hurt_are_told(make_run: MakeRun) -> None:
    tags = {"eval/exact_accuracy": [0.945], "eval/exact_accuracy_first": [0.998]}
    found = segments_help(make_run(rows_of(**tags)))
    assert found == ("warn", "more segments hurt (99.8 % → 94.5 %): raise arch.halt_exploration_prob")
