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
    tried_again: bool = False

    def __post_init__(self) -> None:
        self.trial_id = str(id(self))

    def should_recover(self) -> bool:
        return self.tried_again


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


# ---- groups that compete by their means over the seeds ---------------------------------------------------------


STEADY, MIXED, BAD = BASELINE, LINEAR, "deep_supervision_constant"


def of_groups(**changes: Any) -> tuple[TrialScheduler, dict[tuple[str, int], Trial]]:
    """A scheduler of three scenarios with two seeds each, and the trials by scenario and seed."""
    of = sweep(scenarios=[STEADY, MIXED, BAD], seeds=[0, 1], asha={"unit": "group"}, **changes)
    return scheduler_of(of), {
        (plan.config.config_name, plan.config.seed): Trial({PLAN: number}) for number, plan in enumerate(plans(of))
    }


def told(scheduler: TrialScheduler, trial: Trial, step: int, loss: float, **more: Any) -> str:
    return str(scheduler.on_trial_result(None, trial, {"step": step, "eval/loss": loss, **more}))


def test_seeds_of_a_group_begin_together():
    _, trials = of_groups()
    assert list(trials)[:3] == [(STEADY, 0), (STEADY, 1), (MIXED, 0)]


def test_an_unlucky_seed_does_not_end_its_scenario_and_a_bad_scenario_ends_whole():
    """Means at the rung: 2, then 1.75, which is better, then 3, which is above the median of those two, 1.875."""
    scheduler, trials = of_groups()
    asked = [(STEADY, 0, 2.0), (STEADY, 1, 2.0), (MIXED, 0, 1.0), (MIXED, 1, 2.5), (BAD, 0, 1.5)]
    results = [(trials[name, seed], 2, loss) for name, seed, loss in asked]
    assert decisions(scheduler, results) == [CONTINUE] * 5
    assert decisions(scheduler, [(trials[BAD, 0], 3, 0.1)]) == [CONTINUE]  # it goes on until its sibling is there
    assert decisions(scheduler, [(trials[BAD, 1], 2, 4.5)]) == [STOP]
    assert decisions(scheduler, [(trials[BAD, 0], 4, 0.1)]) == [STOP]
    assert decisions(scheduler, [(trials[MIXED, 1], 3, 9.0)]) == [CONTINUE]


def stand(scheduler: TrialScheduler, trials: dict[tuple[str, int], Trial]) -> None:
    """Bring one group to the rung, with a mean of 2, and the first seed of another that is behind."""
    asked = [(STEADY, 0, 2.0), (STEADY, 1, 2.0), (BAD, 0, 3.0)]
    decisions(scheduler, [(trials[name, seed], 2, loss) for name, seed, loss in asked])


def test_a_seed_that_fails_for_good_is_not_waited_for():
    scheduler, trials = of_groups()
    stand(scheduler, trials)
    scheduler.on_trial_error(None, trials[BAD, 1])
    assert told(scheduler, trials[BAD, 0], 3, 3.0) == STOP


def test_a_seed_that_is_tried_again_is_waited_for():
    scheduler, trials = of_groups()
    stand(scheduler, trials)
    trials[BAD, 1].tried_again = True
    scheduler.on_trial_error(None, trials[BAD, 1])
    assert told(scheduler, trials[BAD, 0], 3, 3.0) == CONTINUE
    assert told(scheduler, trials[BAD, 1], 2, 0.5) == CONTINUE  # the mean is 1.75
    assert told(scheduler, trials[BAD, 0], 4, 3.0) == CONTINUE


def test_a_trial_that_ends_by_itself_is_not_waited_for_and_what_it_reported_counts():
    scheduler, trials = of_groups()
    stand(scheduler, trials)
    assert told(scheduler, trials[BAD, 1], 1, 9.0) == CONTINUE
    scheduler.on_trial_complete(None, trials[BAD, 1], {"step": 1, "eval/loss": 9.0})
    assert told(scheduler, trials[BAD, 0], 3, 3.0) == STOP


def test_a_seed_whose_loss_is_not_finite_does_not_count():
    scheduler, trials = of_groups()
    stand(scheduler, trials)
    assert told(scheduler, trials[BAD, 1], 2, float("nan")) == STOP  # the mean is 3, that of the other


def test_reports_that_come_again_change_nothing():
    """As after a fault, and in a sweep that is resumed."""
    scheduler, trials = of_groups()
    stand(scheduler, trials)
    again = [told(scheduler, trials[STEADY, 0], step, 50.0) for step in (1, 2)]
    assert [*again, told(scheduler, trials[BAD, 1], 2, 3.0)] == [CONTINUE, CONTINUE, STOP]


def test_a_group_that_had_been_stopped_before_a_resume_stays_stopped():
    scheduler, trials = of_groups()
    decisions(scheduler, [(trials[BAD, 0], 1, 1.0)])
    assert told(scheduler, trials[BAD, 1], 2, 1.0, stopped_by="ASHA") == STOP
    assert told(scheduler, trials[BAD, 0], 2, 1.0) == STOP


def test_a_kept_group_goes_on_and_others_are_measured_against_it_at_every_rung():
    scheduler, trials = of_groups(keep=[BAD])
    stand(scheduler, trials)
    assert told(scheduler, trials[BAD, 1], 2, 3.0) == CONTINUE
    for seed in (0, 1):
        assert told(scheduler, trials[BAD, seed], 4, 1.0) == CONTINUE
    asked = [(trials[STEADY, seed], 4, 1.5) for seed in (0, 1)]
    assert decisions(scheduler, asked) == [CONTINUE, STOP]


def test_groups_of_different_leagues_do_not_compete():
    scheduler, trials = of_groups(group_by="config_name")
    stand(scheduler, trials)
    assert told(scheduler, trials[BAD, 1], 2, 30.0) == CONTINUE


def test_no_trial_of_a_group_goes_beyond_the_most_steps():
    scheduler, trials = of_groups()
    assert decisions(scheduler, [(trials[STEADY, 0], 9, 1.0)]) == [STOP]
