"""`trm-ray selftest`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import FAILED, app, check_place, complain, reported, write_text
from trm_ray.reporting.terminal import say, show
from trm_ray.storage import is_remote


@app.command()
@reported
def selftest(
    only: Annotated[str | None, typer.Option(help="Comma-separated faults, such as `driver,cut`.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers to hit too; 0 leaves Ray out.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where the runs lie: storage that all nodes see. By default a temporary one.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the outcomes as JSON too.")] = None,
) -> None:
    """Disturb tiny runs on purpose, and show that each arrives at the bytes of one that was left alone.

    Processes are killed, checkpoints damaged, storage and data taken away; nothing outside the runs' folder is touched.

    Example: `trm-ray selftest --workers 2 --save faults.json`
    """
    from trm_ray.measure.selftest import chosen_faults, fault_table, faults_json, make_faults
    from trm_ray.measure.selftest.ground import Ground

    check_place(save, "--save")
    if folder is not None and (is_remote(folder) or not folder.is_dir()):
        raise ValueError(f"--folder {folder} is no folder; make it first")
    names, console, outcomes = chosen_faults(only.split(",") if only else [], workers), Console(), []
    with tempfile.TemporaryDirectory(prefix="trm-ray-selftest-", dir=folder) as place:
        for outcome in make_faults(names, Ground(Path(place).resolve(), workers)):
            outcomes.append(outcome)
            say(console, f"{'passed' if outcome.passed else 'FAILED'}  {outcome.fault}")
    show(console, fault_table(outcomes))
    write_text(console, save, faults_json(outcomes))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        complain(f"{outcome.fault}: {outcome.problem or 'the run differs from the undisturbed one'}")
    if failed:
        raise typer.Exit(FAILED)
