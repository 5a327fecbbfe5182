"""Early stopping: the scheduler that a sweep's trials ask at each evaluation whether they may go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from trm_ray.config import AshaConfig, SweepConfig, flat
from trm_ray.runs.plan import RunPlan

# Which of the sweep's plans a trial follows; its other parameters are sampled run keys.
PLAN = "plan"


@dataclass(frozen=True)
class Contender:
    """Tell whom a trial competes with.

    league: trials compete only with those of their league.
    kept: it is never stopped; the others are still measured against it.
    """

    league: str
    kept: bool


def build_scheduler(sweep: SweepConfig, plans: list[RunPlan]) -> TrialScheduler:
    """Build the sweep's early stopping: one ASHA a value of `group_by`, and none for the scenarios to keep."""

    def contender(trial: Trial) -> Contender:
        config = plans[trial.config[PLAN]].config
        values = {**flat(config), **trial.config}
        return Contender(str(values[sweep.group_by]) if sweep.group_by else "", config.config_name in sweep.keep)

    return early_stopping(sweep.asha, max(plan.num_steps for plan in plans), contender)


def early_stopping(asha: AshaConfig, longest: int, contender: Callable[[Trial], Contender]) -> TrialScheduler:
    """Build early stopping for trials of which only their contenders are known.

    Args:
        longest: most steps that a trial plans.
    """
    if not asha.enabled:
        return FIFOScheduler()

    def judge() -> TrialScheduler:
        return ASHAScheduler(
            time_attr="step",
            # One beyond the last: ASHA would kill a trial that reaches `max_t` while it is closing its files.
            max_t=max(asha.max_t or longest, asha.grace_period) + 1,
            grace_period=asha.grace_period,
            reduction_factor=asha.reduction_factor,
        )

    return GroupedScheduler(judge, lambda trial: contender(trial).league, lambda trial: contender(trial).kept)


class GroupedScheduler(FIFOScheduler):
    """One early-stopping scheduler a group of trials, so that a hard scenario is never judged against an easy one.

    Args:
        make: builds the scheduler of a group.
        group: names the group of a trial.
        kept: tells which trials are never stopped; the others are still measured against them.
    """

    def __init__(
        self, make: Callable[[], TrialScheduler], group: Callable[[Trial], str], kept: Callable[[Trial], bool]
    ):
        super().__init__()
        self._make, self._group, self._kept = make, group, kept
        self._groups: dict[str, TrialScheduler] = {}
        self._properties: tuple[Any, Any, dict[str, Any]] | None = None

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Remember what to optimise for the groups to come."""
        self._properties = (metric, mode, spec)
        return True

    def _scheduler(self, trial: Trial) -> TrialScheduler:
        name = self._group(trial)
        if name not in self._groups:
            scheduler = self._make()
            if self._properties is not None:
                metric, mode, spec = self._properties
                scheduler.set_search_properties(metric, mode, **spec)
            self._groups[name] = scheduler
        return self._groups[name]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Add a trial to its group."""
        self._scheduler(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the trial's group."""
        self._scheduler(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ask the trial's group whether it may go on."""
        decision = self._scheduler(trial).on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if self._kept(trial) else decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Tell the trial's group."""
        self._scheduler(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the trial's group."""
        self._scheduler(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """Describe the groups."""
        return " | ".join(f"{name}: {scheduler.debug_string()}" for name, scheduler in self._groups.items())
