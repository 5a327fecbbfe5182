"""Findings on a terminal: a line each, all that is known of one, a table of many runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trm_ray.reporting.numbers.diagnosis import Finding, findings, troubles
from trm_ray.reporting.run_log import Run
from trm_ray.reporting.terminal import as_it_is, number_table, say

MARK_STYLES = {"ok": "green", "warn": "yellow", "bad": "red"}
HEADING = "to look at"


def show_marks(console: Console, found: Iterable[Finding], *, indent: int = 0, with_docs: bool = False) -> None:
    """Print a line a finding."""
    for finding in found:
        place = f" ({finding.docs})" if with_docs else ""
        say(console, " " * indent, (f"{finding.mark:>4}", MARK_STYLES[finding.mark]), f"  {finding.line}{place}")


def show_findings(console: Console, found: Iterable[Finding]) -> None:
    """Print all that is known of each finding; of what is well its evidence is enough."""
    for finding in found:
        say(console, (f"{finding.mark:>4}", MARK_STYLES[finding.mark]), f"  {finding.id}: {finding.evidence}")
        if finding.is_trouble:
            for line in (finding.meaning, f"Try: {finding.advice}", finding.docs):
                say(console, f"      {line}")


def told_marks(runs: Sequence[Run]) -> str:
    """Say in a line what is wrong with how many runs; empty where nothing is."""
    by_id: dict[str, list[str]] = {}
    for run in runs:
        for finding in troubles(findings(run)):
            by_id.setdefault(finding.id, []).append(run.name)
    told = (f"{name} in {', '.join(of_it) if len(of_it) <= 2 else len(of_it)}" for name, of_it in by_id.items())
    return f"To look at: {'; '.join(told)}" if by_id else ""


def marks_table(runs: Sequence[tuple[Run, Sequence[Finding]]]) -> Table:
    """Lay out a row a run: where it stands, and what is wrong with it."""
    table, names = number_table("run", ("step",)), [run.name for run, _ in runs]
    table.add_column(HEADING, overflow="fold")
    for run, found in runs:
        name = run.name if names.count(run.name) == 1 else str(run.folder)
        marks = Text(", ").join(Text(one.id, style=MARK_STYLES[one.mark]) for one in troubles(found))
        table.add_row(Text(as_it_is(name)), f"{run.last_step:,}", marks or Text("–"))
    return table
