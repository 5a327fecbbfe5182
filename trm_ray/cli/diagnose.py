"""`trm-ray diagnose`: what is wrong with runs, and what to try."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, reported
from trm_ray.reporting.terminal import say, show

if TYPE_CHECKING:
    from trm_ray.programs.diagnose import Diagnosed


@app.command()
@reported
def diagnose(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs, such as a sweep's.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Tell all of every run, what is well too.")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="Scenario that the others are compared with; if not given, the baseline.")
    ] = None,
) -> None:
    """Say what is wrong with runs, why it is thought so, and what to try.

    Example: `trm-ray diagnose runs/deep_supervision_linear`
    """
    from trm_ray.programs.diagnose import diagnose as diagnose_runs
    from trm_ray.reporting.numbers.json_text import json_text

    diagnosed = diagnose_runs(runs, baseline)
    if as_json:
        typer.echo(json_text(diagnosed.content()), nl=False)
    else:
        _show(Console(), diagnosed, every=every)


def _show(console: Console, diagnosed: Diagnosed, *, every: bool) -> None:
    """Print a table of several runs, all that was found of a single one, and what was found of scenarios."""
    from trm_ray.reporting.marks import marks_table, show_findings
    from trm_ray.reporting.numbers.diagnosis import troubles

    several = len(diagnosed.runs) > 1
    if several:
        show(console, marks_table(diagnosed.runs))
    for run, found in diagnosed.runs if every or not several else ():
        wrong = troubles(found)
        say(console, (f"{run.folder}, step {run.last_step:,}", "bold"))
        show_findings(console, found if every else wrong)
        if not every:
            nothing = "Nothing else" if wrong else "Nothing"
            say(console, f"{nothing} to look at; {len(found) - len(wrong)} things are as they should be (--all)")
    for label, found in diagnosed.groups.items():
        say(console, (label, "bold"))
        show_findings(console, found)
