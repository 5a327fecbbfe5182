"""Which runs have finished; of the others, where they stand and who was ahead of them there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trm_ray.reporting.numbers.curves import Curves, curves_of
from trm_ray.reporting.numbers.groups import Group
from trm_ray.reporting.numbers.measure import LOSS, Number
from trm_ray.reporting.numbers.verdicts import Finished, finished_of
from trm_ray.reporting.run_log import Run

STOPPED_MARK = "stopped_early.json"  # in the folder of a trial that a sweep has stopped

State = Literal["finished", "stopped early", "running", "interrupted"]
IsWritten = Callable[[Path], bool]  # of a run's folder: whether a process goes on with it


def nobody_writes(folder: Path) -> bool:
    """Take all runs for ended."""
    return False


@dataclass(frozen=True)
class Unfinished:
    """A run that has not finished, at its last evaluation, and the run that was furthest ahead of it there.

    value: of the number that ranks.
    ahead: label of that run's group; None where no other run got there, or none was better.
    behind: by how much it was better at that step.
    """

    run: str
    label: str
    seed: int
    state: State
    step: int
    planned_steps: int | None
    value: float
    loss: float
    ahead: str | None = None
    behind: float = math.nan


@dataclass(frozen=True, eq=False)
class ReadGroup:
    """A group's runs, read once: those that are finished, and the others; `planned` steps and states by folder."""

    finished: Finished
    unfinished: tuple[Curves, ...]
    planned: dict[Path, int]
    states: dict[Path, State]

    @classmethod
    def of(cls, group: Group, total_steps: int | None, is_written: IsWritten = nobody_writes) -> ReadGroup:
        """Read a group; `total_steps` are those planned of a run whose folder does not tell."""
        all_curves = [curves_of(run) for run in group.runs]
        planned = {run.folder: _planned(run, total_steps) for run in group.runs}
        states = {run.folder: _state(run, planned[run.folder], is_written) for run in group.runs}
        done = finished_of(group, (one for one in all_curves if states[one.run.folder] == "finished"))
        others = tuple(one for one in all_curves if states[one.run.folder] != "finished")
        return cls(done, others, planned, states)

    def count(self, state: State) -> int:
        """Count the runs of a state."""
        return sum(one == state for one in self.states.values())

    @property
    def all(self) -> tuple[Curves, ...]:
        """All runs."""
        return (*self.finished.curves, *self.unfinished)


def _state(run: Run, planned_steps: int, is_written: IsWritten) -> State:
    """Tell whether a run has ended, was stopped by its sweep, runs, or was left as it is."""
    if run.finished or (planned_steps and run.last_step >= planned_steps):
        return "finished"
    if (run.folder / STOPPED_MARK).is_file():
        return "stopped early"
    return "running" if is_written(run.folder) else "interrupted"


def _planned(run: Run, total_steps: int | None) -> int:
    """Tell the planned steps; a finished run did what it planned, and nothing saves less than no step."""
    if run.finished:
        return run.last_step
    return max(run.last_step, run.planned_steps or total_steps or 0)


def placed(curves: Curves, group: ReadGroup, groups: Sequence[ReadGroup], number: Number) -> Unfinished:
    """Say where a run stands, and who was ahead of it at that step: of the same seed where there is one."""
    run, better = curves.run, number.unit.better
    step = curves.end(number.name, "steps") or curves.end(LOSS.name, "steps") or run.last_step
    own, loss = known(curves.final(number.name)), known(curves.final(LOSS.name))
    planned = group.planned[run.folder] or None
    label, state = group.finished.label, group.states[run.folder]
    told = Unfinished(str(run.folder), label, run.seed, state, int(step), planned, own, loss)
    others = [(other.finished.label, one) for other in groups if other is not group for one in other.all]
    same_seed = [entry for entry in others if entry[1].run.seed == run.seed]
    found = _values(same_seed, number, step) or _values(others, number, step)
    best, ahead = max(found, key=lambda entry: better(entry[0]), default=(math.nan, None))
    return replace(told, ahead=ahead, behind=abs(best - own)) if better(best) > better(own) else told


def _values(runs: Sequence[tuple[str, Curves]], number: Number, step: float) -> list[tuple[float, str]]:
    """Read a number of runs at a step, of those that got there."""
    return [(value, label) for label, one in runs if (value := one.value(number.name, "steps", step)) is not None]


def known(value: float | None) -> float:
    """Write NaN for a number that is not there."""
    return math.nan if value is None else value
