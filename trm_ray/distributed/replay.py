"""Early stopping replayed on finished runs: a sweep's scheduler, fed from their logs, without a cluster."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import TrialScheduler

from trm_ray.config import AshaConfig
from trm_ray.distributed.scheduler import Contender, early_stopping


@dataclass(frozen=True)
class Entrant:
    """A run to replay: whom it competes with, and the rows of its evaluations in their order."""

    contender: Contender
    evaluations: Sequence[Mapping[str, float]]


@dataclass
class _Trial:
    """What a scheduler looks at."""

    trial_id: str
    entrant: Entrant
    began_s: float = 0.0
    status: str = "RUNNING"

    def arrival_s(self, number: int) -> float:
        return self.began_s + self.entrant.evaluations[number]["wall_s"]

    def should_recover(self) -> bool:
        return False


def last_steps(asha: AshaConfig, entrants: Sequence[Entrant], slots: int) -> list[int]:
    """Tell how far early stopping would have let each run go.

    `slots` trials train at a time. They begin in the order given, the next one whenever one ends, and a trial's
    evaluations come as long after its begin as they did when it was trained; the start of a trial takes no time.

    Returns:
        The step of each run's last report before it was stopped, or of its end.
    """
    trials = [_Trial(str(number), entrant) for number, entrant in enumerate(entrants)]
    longest = max(int(entrant.evaluations[-1]["step"]) for entrant in entrants)
    return _Replay(trials, _scheduler(asha, longest)).run(slots)


def _scheduler(asha: AshaConfig, longest: int) -> TrialScheduler:
    scheduler = early_stopping(asha, longest, lambda trial: trial.entrant.contender)
    scheduler.set_search_properties(asha.metric, asha.mode)
    return scheduler


class _Replay:
    """Trials that wait, and the evaluations to come as (seconds, number of the trial, number of its evaluation)."""

    def __init__(self, trials: Sequence[_Trial], scheduler: Any):
        self._trials, self._scheduler = trials, scheduler
        self._waiting = deque(range(len(trials)))
        self._coming: list[tuple[float, int, int]] = []

    def run(self, slots: int) -> list[int]:
        last = [0] * len(self._trials)
        for _ in range(slots):
            self._begin_next(0.0)
        while self._coming:
            now_s, number, evaluation = heapq.heappop(self._coming)
            last[number] = int(self._trials[number].entrant.evaluations[evaluation]["step"])
            if self._goes_on(number, evaluation):
                self._expect(number, evaluation + 1)
            else:
                self._begin_next(now_s)
        return last

    def _begin_next(self, now_s: float) -> None:
        if self._waiting:
            number = self._waiting.popleft()
            self._trials[number].began_s = now_s
            self._scheduler.on_trial_add(None, self._trials[number])
            self._expect(number, 0)

    def _expect(self, number: int, evaluation: int) -> None:
        heapq.heappush(self._coming, (self._trials[number].arrival_s(evaluation), number, evaluation))

    def _goes_on(self, number: int, evaluation: int) -> bool:
        """Report an evaluation as Tune does, which tells of the end of a trial that it has stopped, too."""
        trial = self._trials[number]
        rows = trial.entrant.evaluations
        decision = self._scheduler.on_trial_result(None, trial, dict(rows[evaluation]))
        goes_on: bool = decision != TrialScheduler.STOP and evaluation + 1 < len(rows)
        if not goes_on:
            self._scheduler.on_trial_complete(None, trial, dict(rows[evaluation]))
        return goes_on
