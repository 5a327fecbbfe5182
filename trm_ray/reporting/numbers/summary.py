"""Scenarios compared: what each group of runs came to, ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from trm_ray.reporting.numbers.groups import Group, group_runs
from trm_ray.reporting.numbers.json_text import json_text
from trm_ray.reporting.run_log import Run, Series
from trm_ray.reporting.terminal import as_it_is

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `count` seeds; `sd` is NaN for one, `mean` too for none."""

    mean: float
    sd: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Take mean and sample standard deviation; one value that is not finite makes both NaN, on purpose."""
    numbers = np.array(list(values), dtype=np.float64)
    mean = float(numbers.mean()) if len(numbers) else math.nan
    deviation = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return Spread(mean, deviation, len(numbers))


@dataclass(frozen=True)
class ScenarioSummary:
    """What a group reached, over its seeds.

    final_*, best_*: held-out numbers at the last evaluation, and the best of all evaluations.
    steps_to_threshold, seconds_to_threshold: over the seeds that reached it, which `count` numbers.
    planned_steps, done_steps, saved_steps: sums over the seeds; a run that ends short saves the rest.
    seconds_per_step: over the seeds, of each one's median.
    best_run: folder of the seed with the lowest final held-out loss.
    """

    label: str
    scenario: str
    num_seeds: int
    final_loss: Spread
    best_loss: Spread
    final_exact_accuracy: Spread
    best_exact_accuracy: Spread
    threshold: float
    steps_to_threshold: Spread
    seconds_to_threshold: Spread
    planned_steps: int
    done_steps: int
    saved_steps: int
    num_stopped_early: int
    seconds_per_step: Spread
    best_run: str


def summarise(
    runs: Iterable[Run],
    threshold_tag: str = "eval/exact_accuracy",
    threshold: float = DEFAULT_THRESHOLD,
    total_steps: int | None = None,
) -> list[ScenarioSummary]:
    """Summarise each group of runs and rank the groups by the mean of their final held-out loss.

    The held-out loss (cross-entropy of the last H-cycle) is also what a sweep's scheduler judges by; it tells
    runs apart long before puzzles get solved. Groups without an evaluation, or with a seed whose loss is not
    finite, come last.

    Args:
        threshold_tag: tag that has to rise to `threshold`.
        total_steps: planned steps of each run, where its folder does not tell.
    """
    summaries = [_summarise_group(group, threshold_tag, threshold, total_steps) for group in group_runs(runs)]
    return sorted(summaries, key=_ranking_key)


def _ranking_key(summary: ScenarioSummary) -> float:
    return summary.final_loss.mean if math.isfinite(summary.final_loss.mean) else math.inf


def _summarise_group(group: Group, tag: str, threshold: float, total_steps: int | None) -> ScenarioSummary:
    reached = [found for run in group.runs if (found := reach(run.series(tag), threshold)) is not None]
    planned = sum(_planned(run, total_steps) for run in group.runs)
    done = sum(run.last_step for run in group.runs)
    return ScenarioSummary(
        label=group.label,
        scenario=group.scenario,
        num_seeds=len(group.runs),
        final_loss=_over_seeds(group, "eval/loss", _final),
        best_loss=_over_seeds(group, "eval/loss", np.nanmin),
        final_exact_accuracy=_over_seeds(group, "eval/exact_accuracy", _final),
        best_exact_accuracy=_over_seeds(group, "eval/exact_accuracy", np.nanmax),
        threshold=threshold,
        steps_to_threshold=spread(step for step, _ in reached),
        seconds_to_threshold=spread(seconds for _, seconds in reached),
        planned_steps=planned,
        done_steps=done,
        saved_steps=planned - done,
        num_stopped_early=sum(_planned(run, total_steps) > run.last_step for run in group.runs),
        seconds_per_step=spread(rate for run in group.runs if (rate := seconds_per_step(run)) is not None),
        best_run=str(min(group.runs, key=_final_loss).folder),
    )


def _over_seeds(group: Group, tag: str, choose: Any) -> Spread:
    """Spread one number of each seed that has the tag."""
    columns = [run.series(tag).values for run in group.runs]
    return spread(float(choose(values)) if np.isfinite(values).any() else math.nan for values in columns if len(values))


def _final(values: np.ndarray) -> float:
    return float(values[-1])


def _final_loss(run: Run) -> float:
    values = run.series("eval/loss").values
    return float(values[-1]) if len(values) and math.isfinite(values[-1]) else math.inf


def _planned(run: Run, total_steps: int | None) -> int:
    """Tell the planned steps; a finished run did what it planned, and nothing saves less than no step."""
    if run.finished:
        return run.last_step
    return max(run.last_step, run.planned_steps or total_steps or 0)


def reach(series: Series, threshold: float) -> tuple[int, float] | None:
    """Find step and seconds of the first evaluation at or above `threshold`."""
    above = np.flatnonzero(series.values >= threshold)
    return (int(series.steps[above[0]]), float(series.wall_s[above[0]])) if len(above) else None


def seconds_per_step(run: Run) -> float | None:
    """Take the median over the logs, which one slow moment of the machine does not move."""
    rates = run.series("throughput/steps_per_s").values
    rates = rates[np.isfinite(rates) & (rates > 0)]
    if len(rates):
        return float(np.median(1 / rates))
    return run.wall_s / run.last_step if run.last_step else None


def summary_table(summaries: Sequence[ScenarioSummary]) -> Table:
    """Lay the ranking out as a table of about 80 characters, with what it takes to read it underneath."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_style, table.title_justify = "Ranking by final held-out loss", "bold", "left"
    table.caption, table.caption_justify = "\n".join(summary_notes(summaries)), "left"
    for heading in _headings(summaries):
        is_name = heading == "Scenario"
        table.add_column(
            heading.replace("|", "\n"), justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold"
        )
    for rank, summary in enumerate(summaries, start=1):
        table.add_row(*(Text(as_it_is(cell)) for cell in _cells(rank, summary)))
    return table


def summary_markdown(summaries: Sequence[ScenarioSummary]) -> str:
    """Lay the ranking out as a Markdown table with its notes."""
    headings = [heading.replace("|", " ") for heading in _headings(summaries)]
    rule = [":--" if heading == "Scenario" else "--:" for heading in headings]
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, rule)]
    rows = ([as_it_is(cell).replace("|", "\\|") for cell in _cells(rank, one)] for rank, one in enumerate(summaries, 1))
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in summary_notes(summaries)), ""])


def summary_json(summaries: Sequence[ScenarioSummary]) -> str:
    """Write the ranking as JSON; a number that does not exist is null."""
    scenarios = [asdict(summary) for summary in summaries]
    return json_text({"format_version": 1, "ranked_by": "final_loss", "scenarios": scenarios})


def summary_notes(summaries: Sequence[ScenarioSummary]) -> list[str]:
    """Say in words what a reader of the ranking has to know."""
    notes = ["Held-out numbers of the last H-cycle, at the last evaluation; mean ± sd over seeds."]
    if any(summary.num_seeds == 1 for summary in summaries):
        notes.append("One seed: differences under 3 to 5 points of exact accuracy are noise.")
    if any(summary.num_stopped_early for summary in summaries):
        notes.append("Runs stopped early count with their last evaluation, and save the steps they did not take.")
    if any(summary.steps_to_threshold.count not in (0, summary.num_seeds) for summary in summaries):
        notes.append("(k/n): only k of the n seeds got there; the mean is over those.")
    return notes


def _headings(summaries: Sequence[ScenarioSummary]) -> list[str]:
    """Name the columns; a `|` is where a narrow table breaks the name."""
    goal = f"{100 * summaries[0].threshold:g} %" if summaries else "goal"
    return [
        *("#", "Scenario", "n", "Held-out|loss", "Exact|%"),
        *(f"Steps to|{goal}", f"s to|{goal}", "Steps|saved", "s per|step"),
    ]


def _cells(rank: int, summary: ScenarioSummary) -> list[str]:
    reached = summary.steps_to_threshold.count
    some = f" ({reached}/{summary.num_seeds})" if 0 < reached < summary.num_seeds else ""
    nothing = "never" if summary.final_exact_accuracy.count else "–"
    return [
        str(rank),
        summary.label,
        str(summary.num_seeds),
        _number(summary.final_loss, "{:.3f}"),
        _number(summary.final_exact_accuracy, "{:.1f}", scale=100),
        _number(summary.steps_to_threshold, "{:,.0f}", none=nothing, with_sd=False) + some,
        _number(summary.seconds_to_threshold, "{:,.0f}", with_sd=False),
        f"{summary.saved_steps:,}",
        _number(summary.seconds_per_step, "{:.3f}", with_sd=False),
    ]


def _number(numbers: Spread, pattern: str, scale: float = 1, none: str = "–", with_sd: bool = True) -> str:
    if numbers.count == 0:
        return none
    if not math.isfinite(numbers.mean):
        return "diverged"
    deviation = " ± " + pattern.format(scale * numbers.sd) if with_sd and math.isfinite(numbers.sd) else ""
    return pattern.format(scale * numbers.mean) + deviation
