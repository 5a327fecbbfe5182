"""Tell what runs have come to in one HTML file: words, tables, figures, and a gallery of puzzles being solved."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trm_ray.config import ConfigError
from trm_ray.data.progress import progress
from trm_ray.programs.commands import best_command
from trm_ray.programs.compare import Compared, check_baseline, compare
from trm_ray.programs.stages import CORE_SECONDS_FILE, SWEEP_FILE
from trm_ray.reporting.aside import aside
from trm_ray.reporting.numbers.groups import Group, group_runs
from trm_ray.reporting.numbers.measure import goal_of
from trm_ray.reporting.numbers.spending import Spending
from trm_ray.reporting.numbers.verdicts import BASELINE
from trm_ray.reporting.page.page import Command, Report, baseline_of, render
from trm_ray.reporting.run_log import find_runs

if TYPE_CHECKING:
    from trm_ray.reporting.page.figures import Figures
    from trm_ray.reporting.page.gallery import Gallery

REPORT_FILE = "report.html"
# A sweep ends without a gallery that would take a processor minutes; `trm-ray report` has no such limit.
ASIDE_FLOPS = 1e12


def is_ours(file: Path) -> bool:
    """Tell by its content whether a file is a report that we wrote."""
    return b'name="generator" content="trm-ray' in file.read_bytes()[:2000]


@dataclass(frozen=True)
class Drawn:
    """What a report takes some seconds for: figures, None where they cannot be drawn, and galleries."""

    figures: Figures | None
    galleries: Sequence[Gallery]


def report(
    places: Sequence[Path],
    output: Path,
    *,
    threshold: float | None = None,
    baseline: str | None = None,
    gallery: bool = True,
) -> Path:
    """Write the report of the runs at or below some paths.

    Args:
        output: the file to write.
        threshold, baseline: as `compare`.
        gallery: let the models solve puzzles; without, nothing of torch is loaded.

    Raises:
        ValueError: the file's name ends as no page's does; a path does not exist, or there is no run; or none is
            of a baseline that was asked for.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"cannot write a report as {output}: its name must end with .html or .htm")
    compared = _with_spending(compare(places, threshold, baseline or BASELINE), places)
    if baseline is not None:
        check_baseline(compared.comparison, baseline)
    drawn = draw(compared) if gallery else Drawn(_figures(compared), ())
    return write_report(compared, drawn, output, places)


def _with_spending(compared: Compared, places: Sequence[Path]) -> Compared:
    """Add what all processes of a sweep have used, which its folder tells and its trials do not."""
    if len(places) != 1 or not (places[0] / CORE_SECONDS_FILE).is_file():
        return compared
    told: dict[str, Any] = json.loads((places[0] / CORE_SECONDS_FILE).read_text(encoding="utf-8"))
    spending = replace(Spending.of(find_runs(places)), total=told.get("total"), available=told.get("available"))
    return replace(compared, comparison=replace(compared.comparison, spending=spending))


def draw(compared: Compared, most_flops: float | None = None) -> Drawn:
    """Draw the figures, and let the models solve puzzles: the baseline's first, then those of the ranking.

    Args:
        most_flops: leave out a gallery that takes a processor more.
    """

    def shown() -> list[Gallery]:
        from trm_ray.programs.gallery import galleries

        groups = {group.label: group for group in group_runs(compared.runs)}
        first = baseline_of([*groups.values()], compared.comparison.baseline)
        order = [first, *(groups[one.label] for one in compared.comparison.ranking if one.label != first.label)]
        return galleries(order, most_flops)

    return Drawn(_figures(compared), aside("the report has no gallery", shown) or ())


def _figures(compared: Compared) -> Figures | None:
    def drawn() -> Figures:
        from trm_ray.reporting.page.figures import NUM_FIGURES, draw_figures  # here: matplotlib may be what fails

        with progress("figures", NUM_FIGURES) as advance:
            return draw_figures(compared.runs, compared.comparison.threshold, advance)

    return aside("the report has no figures", drawn)


def write_report(compared: Compared, drawn: Drawn, output: Path, places: Sequence[Path]) -> Path:
    """Write the page.

    Args:
        places: where the runs are, for the command that writes the report again.
    """
    baseline = baseline_of(group_runs(compared.runs), compared.comparison.baseline)
    content = Report.of(
        compared.runs,
        compared.comparison,
        figures=drawn.figures,
        galleries=drawn.galleries,
        config=yaml.safe_dump(baseline.runs[0].config, sort_keys=False, allow_unicode=True),
        commands=_commands(compared, output, places),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(content, datetime.date.today().isoformat()), encoding="utf-8")
    return output


# ---- the commands to do it again -------------------------------------------------------------------------


def _commands(compared: Compared, output: Path, places: Sequence[Path]) -> list[Command]:
    sweeps = [file for place in places if (file := place / SWEEP_FILE).is_file()]
    found = [
        Command("The sweep, in a folder of its own", _line("sweep", "--config-name", file, "log_dir=runs/again"))
        for file in sweeps
    ]
    found += [command for group in group_runs(compared.runs) if (command := _training(group)) is not None]
    goal, usual = compared.comparison.threshold, goal_of(compared.comparison.measure, compared.runs, None)
    given = [] if goal == usual else ["--threshold", goal]
    given += [] if compared.comparison.baseline == BASELINE else ["--baseline", compared.comparison.baseline]
    return [*found, Command("This report", _line("report", *places, "--output", output, *given))]


def _training(group: Group) -> Command | None:
    """Write the command of a group's first run; None where this release does not know its config."""
    run = group.runs[0]
    try:
        return Command(f"{group.label}, seed {run.seed}", best_command(run.config))
    except (ConfigError, ValueError, TypeError, OSError):  # of another release, or of another trainer
        return None


def _line(*words: object) -> str:
    return shlex.join(["trm-ray", *map(str, words)])
