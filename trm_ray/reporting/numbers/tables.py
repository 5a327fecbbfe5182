"""A comparison laid out: tables for a terminal, Markdown, JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trm_ray.reporting.numbers.json_text import json_text
from trm_ray.reporting.numbers.measure import LOSS, SHARE, Number
from trm_ray.reporting.numbers.statistics import Spread
from trm_ray.reporting.numbers.summary import Comparison, ScenarioSummary, Waited
from trm_ray.reporting.numbers.unfinished import Unfinished
from trm_ray.reporting.numbers.words import notes, sentences
from trm_ray.reporting.terminal import as_it_is, say, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT_VERSION = 2
Cells = tuple[list[str], list[list[str]]]  # headings and rows
BEHIND, BELOW = "Behind", "Below"  # how headings begin whose cells are words
_WIDEST = 110  # of a line of words


@dataclass(frozen=True)
class _Column:
    """A column of the ranking; a `|` in the heading is where a narrow table breaks it."""

    heading: str
    cell: Callable[[ScenarioSummary], str]
    is_there: Callable[[ScenarioSummary], bool] = lambda summary: True


def _columns(comparison: Comparison) -> list[_Column]:
    """Choose the columns: what no run has measured has none."""
    measure, ranked = comparison.measure, _ranked(comparison)
    columns = [
        _Column("#", lambda one: "–" if one.rank is None else str(one.rank), lambda one: one.rank is not None),
        _Column("Scenario", lambda one: one.label),
        _Column("n", lambda one: str(one.num_seeds)),
        _Column(measure.final.heading, lambda one: _number(one.final, measure.final)),
        _Column(
            measure.anytime.heading,
            # Of bits per byte, which have more digits, a line has no room for a second deviation.
            lambda one: _number(one.final_anytime, measure.anytime, with_sd=measure.unit is SHARE),
            lambda one: one.final_anytime.count > 0,
        ),
        _Column(
            measure.first_cycle.heading,
            lambda one: _number(one.final_first_cycle, measure.first_cycle, with_sd=False),
            lambda one: one.final_first_cycle.count > 0,
        ),
        _Column(LOSS.heading, lambda one: _number(one.final_loss, LOSS, False), lambda one: LOSS in measure.numbers),
        *_yardstick_columns(comparison.yardsticks),
        *_goal_columns(comparison),
        _Column("s per|step", lambda one: _written(one.seconds_per_step, "{:.3f}", with_sd=False)),
    ]
    return [column for column in columns if any(map(column.is_there, ranked))]


def _yardstick_columns(yardsticks: Mapping[str, float]) -> list[_Column]:
    """Say who is better than the hardest yardstick."""
    if not yardsticks:
        return []
    name, value = min(yardsticks.items(), key=lambda item: item[1])
    return [_Column(f"{BELOW}|{name}|{value:.2f}", lambda one: "yes" if one.final.mean < value else "no")]


def _goal_columns(comparison: Comparison) -> list[_Column]:
    goal = comparison.threshold
    if goal is None:
        return []
    words = comparison.measure.goal_words(goal)
    return [
        _Column(f"Steps to|{words}", lambda one: _waited(one.steps_to_threshold)),
        _Column(f"s to|{words}", lambda one: _waited(one.seconds_to_threshold, with_count=False)),
    ]


def _ranked(comparison: Comparison) -> list[ScenarioSummary]:
    return [summary for summary in comparison.ranking if summary.is_ranked]


def _number(numbers: Spread, number: Number, with_sd: bool = True) -> str:
    return _written(numbers, f"{{:.{number.unit.digits}f}}", number.unit.scale, with_sd)


def _written(numbers: Spread, pattern: str, scale: float = 1, with_sd: bool = True) -> str:
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
        show(console, unfinished_table(comparison), names=2)
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
    table.title, table.title_style, table.title_justify = ranking_title(comparison), "bold", "left"
    columns = _columns(comparison)
    for column in columns:
        is_name, heading = column.heading == "Scenario", column.heading.replace("|", "\n")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for summary in _ranked(comparison):
        table.add_row(*(Text(as_it_is(column.cell(summary))) for column in columns))
    return table


def ranking_title(comparison: Comparison) -> str:
    """Name the ranking."""
    return f"Ranking by {comparison.measure.by}"


def unfinished_table(comparison: Comparison) -> Table:
    """Lay out where the runs stand that have not finished."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_style, table.title_justify = "Not finished, each at its last evaluation", "bold", "left"
    headings, rows = unfinished_cells(comparison)
    for heading in headings:
        is_text = _is_text(heading)
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        table.add_row(*(Text(as_it_is(cell)) for cell in row))
    return table


def _is_text(heading: str) -> bool:
    return heading == "Scenario" or heading.startswith(BEHIND)


def _unfinished_cells(run: Unfinished, number: Number) -> list[str]:
    unit = number.unit
    behind = "–" if run.ahead is None else f"{run.ahead} by {unit.scale * run.behind:.{unit.digits}f}"
    step = f"{run.step:,}" if run.planned_steps is None else f"{run.step:,} of {run.planned_steps:,}"
    numbers = [
        _number(Spread(value, math.nan, 1), one) if math.isfinite(value) else "–"
        for value, one in ((run.value, number), (run.loss, LOSS))
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
    number = comparison.measure.final
    heading, behind = number.heading.replace("|", " "), f"{BEHIND} ({number.unit.difference})"
    headings = ["Scenario", "Seed", "State", "Step", heading, LOSS.heading, behind]
    return headings, [_unfinished_cells(run, number) for run in comparison.unfinished]


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = [":--" if _is_text(heading) else "--:" for heading in headings]
    cells = [[as_it_is(cell).replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (headings, rule, *cells)]


def comparison_json(comparison: Comparison) -> str:
    """Write a comparison as JSON; a number that does not exist is null."""
    return json_text(comparison_content(comparison))


def comparison_content(comparison: Comparison) -> dict[str, Any]:
    """Give what the JSON of a comparison holds; its fields are those of the classes that it is made of."""
    names = comparison.measure.field_names
    return {
        "format_version": FORMAT_VERSION,
        "ranked_by": comparison.measure.final.name,
        "threshold": comparison.threshold,
        "baseline": comparison.baseline,
        "words": sentences(comparison),
        "notes": notes(comparison),
        "verdicts": [asdict(verdict) for verdict in comparison.verdicts],
        "scenarios": [_named(asdict(summary), names) for summary in comparison.ranking],
        "unfinished": [_named(asdict(run), names) for run in comparison.unfinished],
        **({"yardsticks": dict(comparison.yardsticks)} if comparison.yardsticks else {}),
        "core_seconds": comparison.spending.content(),
    }


def _named(content: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Call what is measured by its own name, here and in the parts."""
    return {
        names.get(key, key): _named(value, names) if isinstance(value, dict) else value
        for key, value in content.items()
    }
