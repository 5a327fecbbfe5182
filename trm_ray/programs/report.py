"""Tell what runs have come to in one HTML file: words, tables, figures, and a gallery of puzzles being solved."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trm_ray.config import ConfigError
from trm_ray.data.progress import progress
from trm_ray.programs.commands import best_command
from trm_ray.programs.compare import Compared, compare
from trm_ray.reporting.aside import aside
from trm_ray.reporting.numbers.groups import Group, group_runs
from trm_ray.reporting.numbers.spending import Spending
from trm_ray.reporting.numbers.summary import DEFAULT_THRESHOLD
from trm_ray.reporting.numbers.verdicts import BASELINE
from trm_ray.reporting.page.page import Command, Report, baseline_of, render
from trm_ray.reporting.run_log import find_runs

if TYPE_CHECKING:
    from trm_ray.reporting.page.figures import Figures
    from trm_ray.reporting.page.gallery import Gallery

REPORT_FILE = "report.html"
SWEEP_FILE = "sweep.yaml"


def report(
    places: Sequence[Path],
    output: Path,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    baseline: str = BASELINE,
    gallery: bool = True,
) -> Compared:
    """Write the report of the runs at or below some paths.

    Args:
        output: the file to write.
        threshold, baseline: as `compare`.
        gallery: let the models solve puzzles; without, nothing of torch is loaded.

    Raises:
        ValueError: a path does not exist, or there is no run.
    """
    compared = with_spending(compare(places, threshold, baseline), places)
    shown = galleries(compared) if gallery else []
    write_report(compared, output, shown, places)
    return compared


def with_spending(compared: Compared, places: Sequence[Path]) -> Compared:
    """Add what all processes of a sweep have used, which its folder tells and its trials do not."""
    if len(places) != 1 or not (places[0] / "core_seconds.json").is_file():
        return compared
    told: dict[str, Any] = json.loads((places[0] / "core_seconds.json").read_text(encoding="utf-8"))
    spending = replace(Spending.of(find_runs(places)), total=told.get("total"), available=told.get("available"))
    return replace(compared, comparison=replace(compared.comparison, spending=spending))


def galleries(compared: Compared, most_flops: float | None = None) -> list[Gallery]:
    """Let the models solve puzzles, the baseline's first and then those of the ranking; none where that fails."""
    from trm_ray.programs.gallery import galleries as drawn

    groups = {group.label: group for group in group_runs(compared.runs)}
    first = baseline_of([*groups.values()], compared.comparison.baseline)
    order = [first, *(groups[one.label] for one in compared.comparison.ranking if one.label != first.label)]
    return aside("the report has no gallery", lambda: drawn(order, most_flops)) or []


def write_report(compared: Compared, output: Path, shown: Sequence[Gallery], places: Sequence[Path]) -> Path:
    """Draw the figures and write the page, whose other parts are there already."""
    figures = aside("the report has no figures", lambda: _figures(compared))
    baseline = baseline_of(group_runs(compared.runs), compared.comparison.baseline)
    content = Report.of(
        compared.runs,
        compared.comparison,
        figures=figures,
        galleries=shown,
        config=yaml.safe_dump(baseline.runs[0].config, sort_keys=False, allow_unicode=True),
        commands=_commands(compared, output, places),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(content, datetime.date.today().isoformat()), encoding="utf-8")
    return output


def _figures(compared: Compared) -> Figures:
    from trm_ray.reporting.page.figures import NUM_FIGURES, draw_figures  # here: matplotlib may be what fails

    with progress("figures", NUM_FIGURES) as advance:
        return draw_figures(compared.runs, compared.comparison.threshold, advance)


# ---- the commands to do it again -------------------------------------------------------------------------


def _commands(compared: Compared, output: Path, places: Sequence[Path]) -> list[Command]:
    sweeps = [place for place in places if (place / SWEEP_FILE).is_file()]
    found = [
        Command(f"The sweep in {place}, into a folder of its own", _line("sweep", "--config-name", place / SWEEP_FILE, "log_dir=runs/again"))
        for place in sweeps
    ]
    found += [command for group in group_runs(compared.runs) if (command := _training(group)) is not None]
    given = [] if compared.comparison.threshold == DEFAULT_THRESHOLD else ["--threshold", compared.comparison.threshold]
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
