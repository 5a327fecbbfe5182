"""`trm-ray schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, check_place, reported, write_text
from trm_ray.reporting.terminal import say, show


@app.command()
@reported
def schedule(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENARIO|SWEEP... [KEY=VALUE]...", help="Scenarios, or sweeps for all they compare; keys for all."
        ),
    ],
    save: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="File for all weights and costs.")
    ] = None,
) -> None:
    """Tell and draw how much each H-cycle's loss weighs over the steps, and what a step costs. Trains nothing.

    Example: `trm-ray schedule deep_supervision_linear deep_supervision_curriculum task=sudoku6 --save weights.png`
    """
    from trm_ray.measure.schedule import schedule_views
    from trm_ray.reporting.numbers.schedules import schedule_json, schedule_table

    names = [word for word in words if "=" not in word]
    if not names:
        raise ValueError(f"{words[0]} names no scenario; write one before it, such as deep_supervision_linear")
    if save is not None:
        from trm_ray.reporting.pictures.style import format_of

        format_of(save)
    check_place(save, "--save")
    check_place(json_file, "--json")
    views, console = schedule_views(names, [word for word in words if "=" in word]), Console()
    show(console, schedule_table(views))
    for note in dict.fromkeys(note for view in views for note in view.notes):
        say(console, f"Note: {note}")
    write_text(console, json_file, schedule_json(views))
    if save is not None:
        from trm_ray.reporting.pictures.schedules import draw_schedules
        from trm_ray.reporting.pictures.style import save as save_figure

        say(console, f"Wrote {save_figure(draw_schedules(views), save)}")
