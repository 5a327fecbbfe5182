"""`trm-ray evaluate`, `dashboard` and `compare`: what runs have come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trm_ray.cli.common import app, escaped, reported


@app.command()
@reported
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Use the weights, not their average.")] = False,
) -> None:
    """Measure a trained run on held-out puzzles.

    Example: `trm-ray evaluate runs/deep_supervision_linear`
    """
    from rich.console import Console

    from trm_ray.run import evaluate_run

    console = Console()
    console.print(f"Evaluating {run} on its {split} split", highlight=False, markup=False, soft_wrap=True)
    with console.status("a few seconds") if console.is_terminal else _nothing():
        row, path = evaluate_run(run, split=split, averaged=not raw_weights)
    console.print(f"{run}, step {row['step']:.0f}", highlight=False, markup=False, soft_wrap=True)
    console.print(_evaluation_table(row))
    console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _evaluation_table(row: dict[str, float]) -> Any:
    from rich.table import Table

    table = Table("metric", "value", box=None, pad_edge=False)
    for tag, value in row.items():
        if tag.startswith("eval/"):
            table.add_row(tag, f"{value:.4f}")
    return table


@app.command()
@reported
def dashboard(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    save: Annotated[Path | None, typer.Option(help="Picture to write; by default into the run's `report/`.")] = None,
) -> None:
    """Draw one run: losses, cycles, gradients, refinement, health.

    Example: `trm-ray dashboard runs/deep_supervision_linear --save dashboard.png`
    """
    from rich.console import Console

    from trm_ray.reporting.dashboard import save_dashboard
    from trm_ray.reporting.health import health_marks
    from trm_ray.reporting.run_log import read_run

    found, console = read_run(run), Console()
    for mark in health_marks(found):
        console.print(f"[{_MARK_COLOURS[mark.mark]}]{mark.mark:>4}[/]  {escaped(mark.text)}", highlight=False)
    picture = save_dashboard(found, save or run / "report" / "dashboard.png")
    console.print(f"Wrote {picture}", highlight=False, soft_wrap=True)


_MARK_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


@app.command()
@reported
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs, such as a sweep's.")],
    save: Annotated[Path, typer.Option(help="Picture to write.")] = Path("comparison.png"),
    threshold: Annotated[float, typer.Option(help="Held-out exact accuracy that steps and seconds count to.")] = 0.5,
) -> None:
    """Rank runs on held-out puzzles and draw them beside each other; seeds become a mean with a band.

    Example: `trm-ray compare runs/five_scenarios --save comparison.png`
    """
    from rich.console import Console

    from trm_ray.reporting.comparison import save_comparison, summarise, summary_table
    from trm_ray.reporting.run_log import find_runs

    found, console = find_runs(runs), Console()
    console.print(summary_table(summarise(found, threshold=threshold)))
    console.print(f"Wrote {save_comparison(found, save, threshold)}", highlight=False, soft_wrap=True)
