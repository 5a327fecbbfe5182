"""Early stopping by groups, without a cluster: trials are told from each other by their parameters alone."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from run_helpers import TINY_RUN

from trm_ray.config import SweepConfig, trial_configs
from trm_ray.data.format import DatasetInfo
from trm_ray.distributed.scheduler import PLAN, GroupedScheduler, build_scheduler
from trm_ray.runs.plan import RunPlan

BASELINE, LINEAR = "deep_supervision_baseline", "deep_supervision_linear"
CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


@dataclass
class Trial:
    """What a scheduler looks at."""

    config: dict[str, Any]
    trial_id: str = field(default="")
    status: str = "RUNNING"

    def __post_init__(self) -> None:
        self.trial_id = str(id(self))


def sweep(**changes: Any) -> SweepConfig:
    asha = {"grace_period": 2, **changes.pop("asha", {})}
    values = {"scenarios": [BASELINE, LINEAR], "overrides": {**TINY_RUN, "data_paths": ["d"], "max_steps": 8}}
    return SweepConfig.model_validate({**values, "asha": asha, **changes})


def plans(of: SweepConfig) -> list[RunPlan]:
    info = DatasetInfo(2, 16, 6, 0, -100, 1, {}, "test", {}, 0, None, {})
    return [RunPlan(config, Path(), (), (), info, 8) for config in trial_configs(of)]


def scheduler_of(of: SweepConfig) -> TrialScheduler:
    scheduler = build_scheduler(of, plans(of))
    assert scheduler.set_search_properties(of.asha.metric, of.asha.mode)
    return scheduler


def decisions(scheduler: TrialScheduler, results: list[tuple[Trial, int, float]]) -> list[str]:
    """Report losses in this order; every trial is added when it first reports."""
    added: set[str] = set()
    made = []
    for trial, step, loss in results:
        if trial.trial_id not in added:
            scheduler.on_trial_add(None, trial)
            added.add(trial.trial_id)
        made.append(scheduler.on_trial_result(None, trial, {"step": step, "eval/loss": loss}))
    return made


def test_a_trial_behind_the_others_is_stopped_at_the_grace_period():
    good, bad = Trial({PLAN: 0}), Trial({PLAN: 1})
    asked = [(good, 1, 0.9), (bad, 1, 9.0), (good, 2, 0.5), (bad, 2, 5.0)]
    assert decisions(scheduler_of(sweep()), asked) == [CONTINUE, CONTINUE, CONTINUE, STOP]


def test_groups_do_not_compete():
    """The second group is far behind the first; inside it, the worse trial goes."""
    two = sweep(group_by="weight_decay", search_space={"weight_decay": [0.1, 0.2]})
    easy, hard, hard_and_worse = Trial({PLAN: 0}), Trial({PLAN: 2}), Trial({PLAN: 3})
    asked = [(easy, 2, 0.1), (hard, 2, 5.0), (hard_and_worse, 2, 6.0)]
    assert decisions(scheduler_of(two), asked) == [CONTINUE, CONTINUE, STOP]


def test_a_sampled_key_groups_by_the_value_that_was_sampled():
    sampled = sweep(group_by="weight_decay", search_space={"weight_decay": {"choice": [0.1, 0.2]}})
    first, other, same = (Trial({PLAN: 0, "weight_decay": value}) for value in (0.1, 0.2, 0.1))
    asked = [(first, 2, 0.1), (other, 2, 5.0), (same, 2, 5.0)]
    assert decisions(scheduler_of(sampled), asked) == [CONTINUE, CONTINUE, STOP]


def test_a_kept_trial_goes_on_and_is_still_what_others_are_measured_by():
    scheduler = scheduler_of(sweep(keep=[BASELINE]))
    kept, good, bad = Trial({PLAN: 0}), Trial({PLAN: 1}), Trial({PLAN: 1})
    assert decisions(scheduler, [(good, 2, 0.5), (kept, 2, 5.0), (kept, 4, 5.0)]) == [CONTINUE] * 3
    assert decisions(scheduler, [(bad, 2, 6.0)]) == [STOP]


def test_the_last_evaluation_does_not_stop_a_trial_that_is_at_its_end():
    """It is closing its files; a stop would kill it there."""
    lone = Trial({PLAN: 0})
    assert decisions(scheduler_of(sweep()), [(lone, step, 1.0) for step in (2, 4, 8)]) == [CONTINUE] * 3


ACCURACIES = ["eval/accuracy", "eval/anytime_accuracy", "eval/first_segment/step_0_exact_accuracy"]


@pytest.mark.parametrize("metric", ACCURACIES)
def test_accuracy_is_better_when_it_is_higher(metric: str):
    scheduler = scheduler_of(sweep(asha={"metric": metric, "mode": "max"}))
    good, bad = Trial({PLAN: 0}), Trial({PLAN: 1})
    for trial in (good, bad):
        scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, good, {"step": 2, metric: 0.9}) == CONTINUE
    assert scheduler.on_trial_result(None, bad, {"step": 2, metric: 0.1}) == STOP


def test_without_asha_nothing_is_stopped():
    scheduler = build_scheduler(off := sweep(asha={"enabled": False}), plans(off))
    assert isinstance(scheduler, FIFOScheduler)
    assert not isinstance(scheduler, GroupedScheduler)


def test_the_end_of_a_trial_reaches_its_group():
    scheduler = scheduler_of(sweep())
    trial = Trial({PLAN: 0})
    decisions(scheduler, [(trial, 2, 1.0)])
    scheduler.on_trial_complete(None, trial, {"step": 4, "eval/loss": 0.5})
    late = Trial({PLAN: 1})
    assert decisions(scheduler, [(late, 2, 2.0)]) == [STOP]
    scheduler.on_trial_remove(None, late)
    scheduler.on_trial_error(None, late)
    assert "Rung" in scheduler.debug_string() or "Bracket" in scheduler.debug_string()
