"""The tables of the report, as text; the page lets its reader sort them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trm_ray.reporting.numbers.diagnosis import findings, group_findings
from trm_ray.reporting.numbers.groups import Group, differences
from trm_ray.reporting.numbers.measure import NUMBERS
from trm_ray.reporting.numbers.spending import PART_WORDS, Spending
from trm_ray.reporting.numbers.summary import Comparison
from trm_ray.reporting.numbers.tables import BEHIND, BELOW, Cells, ranking_cells, ranking_title, unfinished_cells
from trm_ray.reporting.numbers.verdicts import Verdict

# Columns that are sorted as words; all others are numbers.
_WORDS = {"Scenario", "State", "Number", "At equal", "Claim", "Key", "Part", "Value"}
_WORDS |= {"Mark", "Runs", "Here", "Baseline", "Finding", "Evidence", "Evidence of the first", "Try"}
_SIGNS: dict[str, str] = {"bad": "✗ bad", "warn": "! warn", "ok": "✓ ok"}


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are numbers: those are sorted as such and stand to the right."""

    heading: str
    is_number: bool


@dataclass(frozen=True)
class Sheet:
    """A table of text."""

    caption: str
    columns: list[Column]
    rows: list[list[str]]

    @classmethod
    def of(cls, caption: str, cells: Cells) -> Sheet | None:
        """Lay cells out; nothing where there are none."""
        headings, rows = cells
        columns = [Column(name, name not in _WORDS and not name.startswith((BEHIND, BELOW))) for name in headings]
        return cls(caption, columns, rows) if rows else None


def ranking_sheet(comparison: Comparison) -> Sheet | None:
    """Rank the scenarios whose runs are finished."""
    return Sheet.of(ranking_title(comparison), ranking_cells(comparison))


def unfinished_sheet(comparison: Comparison) -> Sheet | None:
    """Tell where the runs stand that have not finished."""
    return Sheet.of("Not finished, each at its last evaluation", unfinished_cells(comparison))


# ---- verdicts --------------------------------------------------------------------------------------------


def verdict_sheet(comparison: Comparison) -> Sheet | None:
    """Write every difference from the baseline with its interval."""
    headings = ["Scenario", "Number", "At equal", "Difference", "95 % from", "to", "p (Holm)", "Pairs", "Claim"]
    rows = [_verdict_cells(verdict) for verdict in comparison.verdicts]
    return Sheet.of(f"Every difference from {comparison.baseline}, paired by seed", (headings, rows))


def _verdict_cells(verdict: Verdict) -> list[str]:
    number = NUMBERS[verdict.number]
    sizes = (
        _signed(number.unit.scale * value, number.unit.digits)
        for value in (verdict.difference, verdict.low, verdict.high)
    )
    p = "–" if math.isnan(verdict.p) else f"{verdict.p:.3f}"
    return [verdict.scenario, number.label, verdict.at, *sizes, p, str(verdict.n), verdict.claim]


def _signed(value: float, digits: int) -> str:
    return f"{value:+,.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


# ---- what it cost ----------------------------------------------------------------------------------------


def cost_sheet(spending: Spending) -> Sheet | None:
    """Tell where the core-seconds of all went, as shares of those used; below, those that nothing used, if known."""
    if not spending.parts:
        return None
    parts = {PART_WORDS.get(part, part): seconds for part, seconds in spending.parts.items()}
    if spending.other is not None:
        parts["other"] = spending.other
    used = spending.total or sum(parts.values())  # as the sentence of `Spending.told` counts
    rows = [[part, f"{seconds:,.1f}", f"{100 * seconds / used:.1f}"] for part, seconds in parts.items()]
    if spending.total is not None and spending.available is not None:
        waiting = max(0.0, spending.available - spending.total)
        rows.append(["not used: cores with nothing to do, or at other work", f"{waiting:,.1f}", "–"])
    return Sheet.of("Where the core-seconds went", (["Part", "Core-seconds", "% of those used"], rows))


# ---- the runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagnosis:
    """What is to be looked at, what it means by the id of each finding, and what is well."""

    words: str
    troubles: Sheet | None
    meanings: dict[str, str]
    well: Sheet | None


def diagnosis(groups: Sequence[Group], verdicts: Sequence[Verdict]) -> Diagnosis:
    """Judge every run, and the scenarios against the baseline."""
    of_groups = group_findings(verdicts)
    found = [(group.label, "all", one) for group in groups for one in of_groups.get(group.label, ())]
    runs = [(group.label, run) for group in groups for run in group.runs]
    found += [(label, str(run.seed), one) for label, run in runs for one in findings(run)]
    bad_first = sorted(found, key=lambda entry: list(_SIGNS).index(entry[2].mark))
    troubled = [entry for entry in bad_first if entry[2].is_trouble]
    named = {(label, seed) for label, seed, _ in troubled if seed != "all"}
    words = (
        f"{len(named)} of {len(runs)} runs have something to look at." if named else "Nothing is wrong with any run."
    )
    headings = ["Scenario", "Seed", "Mark", "Finding", "Evidence", "Try"]
    rows = [[label, seed, _SIGNS[one.mark], one.id, one.evidence, one.advice] for label, seed, one in troubled]
    well: dict[tuple[str, str], list[str]] = {}
    for label, _, one in found:
        if not one.is_trouble:
            well.setdefault((label, one.id), []).append(one.evidence)
    counted = [[label, id, str(len(seen)), seen[0]] for (label, id), seen in well.items()]
    return Diagnosis(
        words,
        Sheet.of("What to look at" if named else "What holds for whole scenarios", (headings, rows)),
        {one.id: one.meaning for _, _, one in troubled},
        Sheet.of("What is well", (["Scenario", "Finding", "Number of runs", "Evidence of the first"], counted)),
    )


def difference_sheet(groups: Sequence[Group], baseline: Group) -> Sheet | None:
    """Write the keys in which each scenario's config is not the baseline's."""
    rows = [
        [group.label, key, _value(own), _value(theirs)]
        for group in groups
        for key, (own, theirs) in differences(group.runs[0], baseline.runs[0]).items()
    ]
    caption = f"Configs, where they differ from {baseline.label}"
    return Sheet.of(caption, (["Scenario", "Key", "Here", "Baseline"], rows))


def environment_sheet(groups: Iterable[Group]) -> Sheet | None:
    """Write what the runs were trained with; where they differ, every value with the number of its runs."""
    found: dict[str, dict[str, int]] = {}
    environments = [run.environment for group in groups for run in group.runs]
    for environment in environments:
        for key, value in environment.items():
            counts = found.setdefault(key, {})
            counts[_value(value)] = counts.get(_value(value), 0) + 1
    rows = [
        [key, value, "all" if count == len(environments) else f"{count} of {len(environments)}"]
        for key, counts in found.items()
        for value, count in counts.items()
    ]
    return Sheet.of("Environment of the runs", (["Key", "Value", "Runs"], rows))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
