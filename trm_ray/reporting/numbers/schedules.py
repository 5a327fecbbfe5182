"""What the schedules of configs come to, over H-cycles and steps: as data, as a table, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from trm_ray.reporting.numbers.json_text import json_text
from trm_ray.reporting.terminal import number_table

JSON_VERSION = 1


@dataclass(frozen=True)
class Phase:
    """Steps from `begin` to before `end` that are alike, but for weights that a curriculum lets grow.

    gradient: through which cycles it runs, in words. at: the steps at which weights are known, and `weights` at each:
    one a cycle, the last is 1. flops: of a step, None where the data are not there. cost: the same over the baseline's.
    """

    begin: int
    end: int
    H_cycles: int
    L_cycles: int
    gradient: str
    at: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    flops: float | None
    cost: float

    @property
    def is_ramp(self) -> bool:
        """Whether the weights change in it."""
        return len(set(self.weights)) > 1


@dataclass(frozen=True)
class ScheduleView:
    """One config's schedule over its `num_steps`. notes: what had to be assumed."""

    name: str
    num_steps: int
    phases: tuple[Phase, ...]
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """The operations of all steps over those of the baseline's."""
        return sum(phase.cost * (phase.end - phase.begin) for phase in self.phases) / self.num_steps


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """Divide weights by their sum: what each cycle has of the loss."""
    return tuple(weight / sum(weights) for weight in weights)


def schedule_table(views: Sequence[ScheduleView]) -> Table:
    """Lay schedules out, a row a phase and one for a whole run of several."""
    headings = ("steps", "H × L cycles", "weights", "% of the loss", "gradient", "FLOPs a step", "× baseline")
    table = number_table("config", headings)
    for view in views:
        for row in _rows(view):
            table.add_row(*row)
    return table


def _rows(view: ScheduleView) -> Iterator[tuple[str, ...]]:
    for phase in view.phases:
        name = view.name if phase is view.phases[0] else ""
        first, last = phase.weights[0], phase.weights[-1]
        before, after = ([100 * share for share in shares(weights)] for weights in (first, last))
        flops = "–" if phase.flops is None else f"{phase.flops:.3g}"
        yield (
            *(name, f"{phase.begin + 1:,}–{phase.end:,}", f"{phase.H_cycles} × {phase.L_cycles}"),
            *(_from_to(first, last, ".3g"), _from_to(before, after, ".0f"), phase.gradient, flops, f"{phase.cost:.2f}"),
        )
    if len(view.phases) > 1:
        yield "", f"all {view.num_steps:,}", "", "", "", "", "", f"{view.cost:.2f}"


def _from_to(first: Sequence[float], last: Sequence[float], form: str) -> str:
    pairs = [(f"{before:{form}}", f"{after:{form}}") for before, after in zip(first, last, strict=True)]
    return ", ".join(before if before == after else f"{before} → {after}" for before, after in pairs)


def schedule_json(views: Sequence[ScheduleView]) -> str:
    """Write schedules as JSON."""
    return json_text({"format_version": JSON_VERSION, "schedules": [*map(_content, views)]})


def _content(view: ScheduleView) -> dict[str, Any]:
    phases = [
        {
            **{"begin": phase.begin, "end": phase.end, "H_cycles": phase.H_cycles, "L_cycles": phase.L_cycles},
            "gradient": phase.gradient,
            "at": phase.at,
            "weights": phase.weights,
            "shares": [*map(shares, phase.weights)],
            **{"flops_of_step": phase.flops, "cost": phase.cost},
        }
        for phase in view.phases
    ]
    told = {"name": view.name, "num_steps": view.num_steps, "cost": view.cost, "notes": view.notes}
    return told | {"phases": phases}
