"""Early stopping: the scheduler that a sweep's trials ask at each evaluation whether they may go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from trm_ray.config import AshaConfig, SweepConfig, flat
from trm_ray.runs.plan import RunPlan

# Which of the sweep's plans a trial follows; its other parameters are sampled run keys.
PLAN = "plan"
# What a trial reports: its step, and in a resumed sweep by whom it had been stopped before.
STEP, STOPPED_BY = "step", "stopped_by"
ASHA = "ASHA"


@dataclass(frozen=True)
class Contender:
    """Tell whom a trial competes with.

    league: trials compete only with those of their league.
    kept: it is never stopped; the others are still measured against it.
    team, team_size: the scenario or variant that it is a seed of, and how many seeds that has.
    """

    league: str
    kept: bool
    team: str = ""
    team_size: int = 1


def build_scheduler(sweep: SweepConfig, plans: list[RunPlan]) -> TrialScheduler:
    """Build the sweep's early stopping: one ASHA a value of `group_by`, and none for the scenarios to keep."""

    def contender(trial: Trial) -> Contender:
        config = plans[trial.config[PLAN]].config
        values = {**flat(config), **trial.config}
        league = str(values[sweep.group_by]) if sweep.group_by else ""
        team = repr((config.config_name, [values[key] for key in sweep.search_space]))
        return Contender(league, config.config_name in sweep.keep, team, len(sweep.seeds))

    return early_stopping(sweep.asha, max(plan.num_steps for plan in plans), contender)


def early_stopping(asha: AshaConfig, longest: int, contender: Callable[[Trial], Contender]) -> TrialScheduler:
    """Build early stopping for trials of which only their contenders are known.

    Args:
        longest: most steps that a trial plans.
    """
    if not asha.enabled:
        return FIFOScheduler()
    # One beyond the last: ASHA would kill a trial that reaches `max_t` while it is closing its files.
    end = max(asha.max_t or longest, asha.grace_period) + 1

    def judge() -> TrialScheduler:
        one = ASHAScheduler(
            time_attr=STEP, max_t=end, grace_period=asha.grace_period, reduction_factor=asha.reduction_factor
        )
        return TeamScheduler(one, contender, end) if asha.unit == "group" else one

    return GroupedScheduler(judge, lambda trial: contender(trial).league, lambda trial: contender(trial).kept)


@dataclass
class _Team:
    """The seeds of a scenario or variant, a single trial to the scheduler that judges them.

    values: of the metric, by step and trial. Trials that are `gone` are not waited for.
    """

    trial_id: str
    size: int
    kept: bool
    values: dict[float, dict[str, float]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    judged_at: float = 0
    stopped: bool = False

    def complete_steps(self) -> list[float]:
        """List the steps to be judged: every seed has come there, or will not come any more."""
        later = [step for step in sorted(self.values) if step > self.judged_at]
        return [step for step in later if len(self.values[step].keys() | self.gone) >= self.size]

    def mean(self, step: float) -> float:
        """Take the mean over the seeds that are there; one that is not finite does not count."""
        finite = [value for value in self.values[step].values() if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan


class TeamScheduler(FIFOScheduler):
    """Judge scenarios or variants by their means over the seeds, so that one unlucky seed does not end one.

    To the scheduler inside a team is one trial, which reports at a step when the last of its seeds has come there. A
    seed that is ahead goes on meanwhile: nothing waits for anything, so that no number of slots can lock it. Once the
    team is stopped each of its seeds ends at its next report. A seed that failed for good, or that ended by itself, is
    not waited for; the others are judged without it.

    Args:
        judge: the scheduler inside.
        end: step at which any trial is stopped.
    """

    def __init__(self, judge: TrialScheduler, contender: Callable[[Trial], Contender], end: int):
        super().__init__()
        self._judge, self._contender, self._end = judge, contender, end
        self._metric: str | None = None
        self._teams: dict[str, _Team] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Remember what teams are judged by."""
        self._metric = metric
        done: bool = self._judge.set_search_properties(metric, mode, **spec)
        return done

    def _team(self, trial: Trial) -> _Team:
        told = self._contender(trial)
        if told.team not in self._teams:
            self._teams[told.team] = _Team(told.team, told.team_size, told.kept)
            self._judge.on_trial_add(None, self._teams[told.team])
        return self._teams[told.team]

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Note the team."""
        self._team(trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Add a seed's result to its team's, and stop it if the team is stopped."""
        team = self._team(trial)
        team.gone.discard(trial.trial_id)  # started again after a fault
        if STEP in result and self._metric in result:
            team.values.setdefault(result[STEP], {})[trial.trial_id] = result[self._metric]
        team.stopped |= result.get(STOPPED_BY) == ASHA
        self._judge_team(team)
        over = team.stopped or result.get(STEP, 0) >= self._end
        return TrialScheduler.STOP if over else TrialScheduler.CONTINUE

    def _judge_team(self, team: _Team) -> None:
        for step in team.complete_steps():
            if team.kept or not team.stopped:  # others are still measured against what is kept
                told = {STEP: step, self._metric: team.mean(step)}
                team.stopped = self._judge.on_trial_result(None, team, told) == TrialScheduler.STOP
            team.judged_at = step

    def _leave(self, trial: Trial) -> None:
        team = self._team(trial)
        team.gone.add(trial.trial_id)
        self._judge_team(team)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Go on without the seed, unless it is started again."""
        if not trial.should_recover():
            self._leave(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Wait no longer for the seed; what it has reported counts."""
        self._leave(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Wait no longer for the seed."""
        self._leave(trial)

    def debug_string(self) -> str:
        """Describe the scheduler inside."""
        described: str = self._judge.debug_string()
        return described


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
