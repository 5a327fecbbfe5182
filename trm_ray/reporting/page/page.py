"""The report put together and written: a template, and nothing in it that is not text until the template says so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trm_ray import __version__
from trm_ray.reporting.numbers.groups import Group, group_runs
from trm_ray.reporting.numbers.measure import Measure
from trm_ray.reporting.numbers.summary import Comparison
from trm_ray.reporting.numbers.words import notes, sentences
from trm_ray.reporting.page import sheets
from trm_ray.reporting.page.figures import Figures
from trm_ray.reporting.page.gallery import Gallery
from trm_ray.reporting.page.passage import legend
from trm_ray.reporting.page.sheets import Diagnosis, Sheet
from trm_ray.reporting.run_log import Run

_FOLDER = Path(__file__).parent
_TEMPLATE, _SCRIPT = "report.html", "script.js"


@dataclass(frozen=True)
class Command:
    """A command line, and what it does."""

    what: str
    line: str


@dataclass(frozen=True)
class Report:
    """All that the page tells, in its order. What was not measured is None or empty, and has no place in it."""

    title: str
    subtitle: str
    words: list[str]
    notes: list[str]
    ranking: Sheet | None
    unfinished: Sheet | None
    verdicts: Sheet | None
    figures: Figures | None
    galleries: Sequence[Gallery]
    spending: str
    costs: Sheet | None
    diagnosis: Diagnosis
    baseline: str
    differences: Sheet | None
    config: str
    environment: Sheet | None
    commands: Sequence[Command]
    measure: Measure

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        comparison: Comparison,
        *,
        figures: Figures | None,
        galleries: Sequence[Gallery],
        config: str,
        commands: Sequence[Command],
    ) -> Report:
        """Put together what runs tell.

        Args:
            figures: None where they could not be drawn.
            config: the baseline's, as YAML.
        """
        groups = group_runs(runs)
        baseline = baseline_of(groups, comparison.baseline)
        return cls(
            title=_title(runs),
            subtitle=_subtitle(groups, comparison),
            words=sentences(comparison),
            notes=notes(comparison),
            ranking=sheets.ranking_sheet(comparison),
            unfinished=sheets.unfinished_sheet(comparison),
            verdicts=sheets.verdict_sheet(comparison),
            figures=figures,
            galleries=galleries,
            spending=comparison.spending.told(),
            costs=sheets.cost_sheet(comparison.spending),
            diagnosis=sheets.diagnosis(groups, comparison.verdicts),
            baseline=baseline.label,
            differences=sheets.difference_sheet(groups, baseline),
            config=config,
            environment=sheets.environment_sheet(groups),
            commands=commands,
            measure=comparison.measure,
        )


def baseline_of(groups: Sequence[Group], named: str) -> Group:
    """Find the group that the others are set against; the first one where none has that name."""
    return next((group for group in groups if named in (group.scenario, group.label)), groups[0])


def _title(runs: Sequence[Run]) -> str:
    tasks = sorted({str(run.config.get("task") or "") for run in runs} - {""})
    return ", ".join(tasks) or "Runs compared"


def _subtitle(groups: Sequence[Group], comparison: Comparison) -> str:
    runs = sum(len(group.runs) for group in groups)
    seeds = len({run.seed for group in groups for run in group.runs})
    finished = runs - len(comparison.unfinished)
    counts = ((len(groups), "scenario"), (seeds, "seed"), (runs, "run"))
    words = [f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts]
    return " · ".join([*words, *([f"{finished} finished"] if finished < runs else [])])


def render(report: Report, date: str) -> str:
    """Write the page.

    Args:
        date: on which it is written.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FOLDER / _SCRIPT).read_text(encoding="utf-8")
    # The one script that a browser may run here: whatever a run is called, its name stays text.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template(_TEMPLATE)
    return template.render(
        report=report, date=date, version=__version__, script=Markup(script), digest=digest, legend=legend()
    )
