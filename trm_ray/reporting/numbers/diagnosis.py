"""Diagnosis: what is right or wrong with a run or with a scenario, why it is thought so, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trm_ray.reporting.numbers.measure import LOGGED, MEASURES, NUMBERS
from trm_ray.reporting.numbers.statistics import MIN_SEEDS
from trm_ray.reporting.numbers.verdicts import Verdict
from trm_ray.reporting.rules.seen import Mark
from trm_ray.reporting.rules.table import RULES
from trm_ray.reporting.run_log import Row, Run

NO_DIFFERENCE = "no-difference"
_ORDER: dict[Mark, int] = {"bad": 0, "warn": 1, "ok": 2}


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    id: of the rule; it stays what it is from release to release.
    evidence: the numbers and steps that it rests on.
    step: where they were seen last; None for a comparison.
    remedy: what to try, in words; `changes` are the `key=value` words of it, computed from the run's own config.
    docs: page and section that explain it.
    """

    id: str
    mark: Mark
    evidence: str
    meaning: str
    step: int | None = None
    remedy: str = ""
    changes: tuple[str, ...] = ()

    @property
    def docs(self) -> str:
        """Page and section that explain it."""
        return f"docs/diagnosis.md#{self.id}"

    @property
    def is_trouble(self) -> bool:
        """Whether something is to be done."""
        return self.mark != "ok"

    @property
    def advice(self) -> str:
        """What to do, with keys and values; empty where all is well."""
        return f"{self.remedy}: {' '.join(self.changes)}" if self.changes else self.remedy

    @property
    def line(self) -> str:
        """All of it in a line, without the mark."""
        return f"{self.id}: {self.evidence}" + (f"; {self.advice}" if self.advice else "")

    def content(self) -> dict[str, Any]:
        """Give what its JSON holds."""
        return {**asdict(self), "docs": self.docs}


def findings(run: Run) -> list[Finding]:
    """Judge a run by every rule that has the numbers it needs, what is bad first."""
    seen = [(rule, found) for rule in RULES if (found := rule.see(run)) is not None]
    made = [
        Finding(rule.id, found.mark, found.evidence, rule.meaning_of(run), found.step, found.remedy, found.changes)
        for rule, found in seen
    ]
    return sorted(made, key=lambda finding: _ORDER[finding.mark])


def troubles(found: Iterable[Finding]) -> list[Finding]:
    """Leave out what is well."""
    return [finding for finding in found if finding.is_trouble]


class Onlooker:
    """Follows a run row by row, and tells what is wrong with it once, when it first appears.

    What it tells depends on the rows alone, not on when they are read: whoever gives it a run's earlier rows first is
    told nothing twice.

    Attributes:
        found: what is wrong now.
    """

    def __init__(self, config: Mapping[str, Any], num_steps: int):
        self.found: list[Finding] = []
        self._config, self._planned, self._told = dict(config), {"total_steps": num_steps}, set[str]()
        self._rows: list[Row] = []

    def see(self, row: Row) -> list[Finding]:
        """Take the next row; one of an earlier step is that of a run that went back to a checkpoint."""
        while self._rows and self._rows[-1]["step"] >= row["step"]:
            self._rows.pop()
        self._rows.append(row)
        if not self._is_worth_a_look(row):
            return []
        run = Run(Path(), "", self._config, tuple(self._rows), finished=False, environment=self._planned)
        self.found = troubles(findings(run))
        new = [finding for finding in self.found if finding.id not in self._told]
        self._told |= {finding.id for finding in new}
        return new

    def _is_worth_a_look(self, row: Row) -> bool:
        """Choose rows so that looking does not cost more and more: each evaluation, and every fiftieth part more."""
        number = len(self._rows)
        return number % max(1, number // 50) == 0 or "eval/loss" in row or not all(map(math.isfinite, row.values()))


def group_findings(verdicts: Sequence[Verdict]) -> dict[str, list[Finding]]:
    """Judge scenarios by the verdicts of a comparison: those that differ from the baseline in no number at equal steps.

    Returns:
        Findings by the label of the scenario; only scenarios that have one.
    """
    names, final = {number.name for number in LOGGED}, {measure.final.name for measure in MEASURES}
    found: dict[str, list[Finding]] = {}
    for scenario in dict.fromkeys(verdict.scenario for verdict in verdicts):
        of_it = [one for one in verdicts if one.scenario == scenario and one.at == "steps" and one.number in names]
        tested = [one for one in of_it if one.n >= MIN_SEEDS and math.isfinite(one.p)]
        if tested and tested[0].number in final and all(one.claim == "none" for one in tested):
            found[scenario] = [_no_difference(tested)]
    return found


def _no_difference(tested: Sequence[Verdict]) -> Finding:
    first = tested[0]
    unit = NUMBERS[first.number].unit
    size, of = (
        f"{unit.scale * first.difference:+.{unit.digits}f}",
        next(one.loses for one in MEASURES if one.final.name == first.number),
    )
    evidence = f"{size} {of} at equal steps ({first.n} seeds, p = {first.p:.2g})"
    evidence = evidence.replace("-", "−", 1) if first.difference < 0 else evidence
    others = ", ".join(one.number.replace("_", " ") for one in tested[1:])
    evidence += f" against {first.baseline}, and no difference in {others}" if others else f" against {first.baseline}"
    remedy = "take the cheaper of the two"
    if first.more_seeds is not None:
        remedy = f"{first.more_seeds} more seeds would show a difference of this size; without them, {remedy}"
    meaning = "What this scenario changes has not been shown to change anything at equal steps."
    return Finding(NO_DIFFERENCE, "warn", evidence, meaning, None, remedy)
