"""A comparison laid out: tables for a terminal, Markdown, JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trm_ray.reporting.numbers.json_text import json_text
from trm_ray.reporting.numbers.statistics import Spread
from trm_ray.reporting.numbers.summary import Comparison, ScenarioSummary, Waited
from trm_ray.reporting.numbers.unfinished import Unfinished
from trm_ray.reporting.numbers.words import notes, sentences
from trm_ray.reporting.terminal import as_it_is, say, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT_VERSION = 2
RANKED_BY = "exact_accuracy"
Cells = tuple[list[str], list[list[str]]]  # headings and rows
_WIDEST = 110  # of a line of words


@dataclass(frozen=True)
class _Column:
    """A column of the ranking; a `|` in the heading is where a narrow table breaks it."""

    heading: str
    cell: Callable[[ScenarioSummary], str]
    is_there: Callable[[ScenarioSummary], bool] = lambda summary: True


def _columns(comparison: Comparison) -> list[_Column]:
    """Choose the columns: what no run has measured has none."""
    goal, ranked = f"{100 * comparison.threshold:g} %", _ranked(comparison)
    columns = [
        _Column("#", lambda one: "–" if one.rank is None else str(one.rank), lambda one: one.rank is not None),
        _Column("Scenario", lambda one: one.label),
        _Column("n", lambda one: str(one.num_seeds)),
        _Column("Exact|%", lambda one: _number(one.final_exact_accuracy, "{:.1f}", 100)),
        _Column(
            "Anytime|%",
            lambda one: _number(one.final_anytime_accuracy, "{:.1f}", 100),
            lambda one: one.final_anytime_accuracy.count > 0,
        ),
        _Column(
            "1st|cycle|%",
            lambda one: _number(one.final_first_cycle_exact_accuracy, "{:.1f}", 100, with_sd=False),
            lambda one: one.final_first_cycle_exact_accuracy.count > 0,
        ),
        _Column("Loss", lambda one: _number(one.final_loss, "{:.3f}", with_sd=False)),
        _Column(f"Steps to|{goal}", lambda one: _waited(one.steps_to_threshold)),
        _Column(f"s to|{goal}", lambda one: _waited(one.seconds_to_threshold, with_count=False)),
        _Column("s per|step", lambda one: _number(one.seconds_per_step, "{:.3f}", with_sd=False)),
    ]
    return [column for column in columns if any(map(column.is_there, ranked))]


def _ranked(comparison: Comparison) -> list[ScenarioSummary]:
    return [summary for summary in comparison.ranking if summary.is_ranked]


def _number(numbers: Spread, pattern: str, scale: float = 1, with_sd: bool = True) -> str:
    if numbers.count == 0:
        return "–"
    if not math.isfinite(numbers.mean):
        return "diverged"
    deviation = " ± " + pattern.format(scale * numbers.sd) if with_sd and math.isfinite(numbers.sd) else ""
    return pattern.format(scale * numbers.mean) + deviation


def _waited(waited: Waited, with_count: bool = True) -> str:
    """Write a median; where half of the seeds or more never got there, how far they were followed."""
    num_seeds = waited.count + len(waited.censored)
    if not num_seeds:
        return "–"
    some = f" ({waited.count}/{num_seeds})" if with_count and waited.count and waited.censored else ""
    return (f"{waited.median:,.0f}" if math.isfinite(waited.median) else f"> {max(waited.censored):,.0f}") + some


# ---- on a terminal ---------------------------------------------------------------------------------------


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print what may be said of some runs: words first, then the ranking, then the runs that have not finished."""
    for sentence in sentences(comparison):
        for line in _wrapped(sentence, console.width):
            say(console, line)
    if _ranked(comparison):
        table = ranking_table(comparison)
        show(console, table, names=2 if str(table.columns[0].header) == "#" else 1)
    if comparison.unfinished:
        show(console, unfinished_table(comparison.unfinished), names=2)
    for note in notes(comparison):
        for line in textwrap.wrap(note, min(console.width, _WIDEST)):
            say(console, line)


def _wrapped(sentence: str, width: int) -> list[str]:
    return textwrap.wrap(sentence, min(width, _WIDEST), subsequent_indent="  ", break_on_hyphens=False)


def ranking_table(comparison: Comparison) -> Table:
    """Lay the ranking out as a table of about 80 characters."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_style, table.title_justify = "Ranking by puzzles solved", "bold", "left"
    columns = _columns(comparison)
    for column in columns:
        is_name, heading = column.heading == "Scenario", column.heading.replace("|", "\n")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for summary in _ranked(comparison):
        table.add_row(*(Text(as_it_is(column.cell(summary))) for column in columns))
    return table


def unfinished_table(runs: Sequence[Unfinished]) -> Table:
    """Lay out where the runs stand that have not finished."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_style, table.title_justify = "Not finished, each at its last evaluation", "bold", "left"
    for heading in _UNFINISHED:
        is_text = heading in ("Scenario", "Behind (points)")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for run in runs:
        table.add_row(*(Text(as_it_is(cell)) for cell in _unfinished_cells(run)))
    return table


_UNFINISHED = ("Scenario", "Seed", "State", "Step", "Exact %", "Loss", "Behind (points)")


def _unfinished_cells(run: Unfinished) -> list[str]:
    behind = "–" if run.ahead is None else f"{run.ahead} by {100 * run.behind:.1f}"
    step = f"{run.step:,}" if run.planned_steps is None else f"{run.step:,} of {run.planned_steps:,}"
    numbers = [
        _number(Spread(value, math.nan, 1), pattern, scale) if math.isfinite(value) else "–"
        for value, pattern, scale in ((run.exact_accuracy, "{:.1f}", 100.0), (run.loss, "{:.3f}", 1.0))
    ]
    return [run.label, str(run.seed), run.state, step, *numbers, behind]


# ---- in files --------------------------------------------------------------------------------------------


def comparison_markdown(comparison: Comparison) -> str:
    """Write words, ranking, unfinished runs and notes as Markdown."""
    headings, ranking = ranking_cells(comparison)
    blocks = [[f"- {as_it_is(line)}" for line in sentences(comparison)]]
    blocks += [_markdown_table(headings, ranking)] if ranking else []
    headings, unfinished = unfinished_cells(comparison)
    blocks += [_markdown_table(headings, unfinished)] if unfinished else []
    blocks += [[f"- {as_it_is(note)}" for note in notes(comparison)]]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def ranking_cells(comparison: Comparison) -> Cells:
    """Write the ranking of the finished runs as headings and rows of text."""
    columns = _columns(comparison)
    rows = [[column.cell(summary) for column in columns] for summary in _ranked(comparison)]
    return [column.heading.replace("|", " ") for column in columns], rows


def unfinished_cells(comparison: Comparison) -> Cells:
    """Write where the runs stand that have not finished, as headings and rows of text."""
    return [*_UNFINISHED], [_unfinished_cells(run) for run in comparison.unfinished]


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = [":--" if heading in ("Scenario", "Behind (points)") else "--:" for heading in headings]
    cells = [[as_it_is(cell).replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (headings, rule, *cells)]


def comparison_json(comparison: Comparison) -> str:
    """Write a comparison as JSON; a number that does not exist is null."""
    return json_text(comparison_content(comparison))


def comparison_content(comparison: Comparison) -> dict[str, Any]:
    """Give what the JSON of a comparison holds; its fields are those of the classes that it is made of."""
    return {
        "format_version": FORMAT_VERSION,
        "ranked_by": RANKED_BY,
        "threshold": comparison.threshold,
        "baseline": comparison.baseline,
        "words": sentences(comparison),
        "notes": notes(comparison),
        "verdicts": [asdict(verdict) for verdict in comparison.verdicts],
        "scenarios": [asdict(summary) for summary in comparison.ranking],
        "unfinished": [asdict(run) for run in comparison.unfinished],
        "core_seconds": comparison.spending.content(),
    }
