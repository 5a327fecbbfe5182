"""`trm-ray train` and `trm-ray sweep`."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import FAILED, Overrides, Overwrite, Resume, app, complain, reported
from trm_ray.reporting.terminal import say


@app.command()
@reported
def train(
    overrides: Overrides = None,
    config_name: Annotated[str, typer.Option(help="A scenario of `configs/`.")] = "deep_supervision_linear",
    init_from: Annotated[
        str | None,
        typer.Option(metavar="RUN|FILE", help="Begin with the weights of a run, a checkpoint or the original's file."),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train one run.

    Example: `trm-ray train --config-name deep_supervision_linear task=sudoku6 deep_supervision_weight=0.7`
    """
    from trm_ray.config import load_config
    from trm_ray.runs.data import complete

    # What is wrong with the config is said before torch is imported, which takes seconds.
    options = {} if init_from is None else {"init_from": init_from}
    config = complete(load_config(config_name, overrides or [], options=options))

    from trm_ray.cli.shown import Shown
    from trm_ray.programs.train import train as train_run
    from trm_ray.training.optim import NonFiniteError

    console = Console()
    try:
        trained = train_run(config, resume=resume, overwrite=overwrite, watch=Shown(console, overrides or []))
    except NonFiniteError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    num_steps = trained.plan.num_steps
    if trained.before is not None:
        say(console, f"{config.log_dir} has been trained to step {trained.before} of {num_steps}; nothing to do")
    else:
        where = config.log_dir if config.ray.storage_path is None else trained.plan.folder
        command = f"trm-ray dashboard {quote(str(where))} --save dashboard.png"
        say(console, f"Finished {num_steps} steps. See it: {command}")


@app.command()
@reported
def sweep(
    overrides: Overrides = None,
    config_name: Annotated[str, typer.Option(help="A sweep of `configs/sweep/`.")] = "five_scenarios",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Run scenarios and variants as concurrent trials, stop the bad ones early, compare the rest.

    Example: `trm-ray sweep --config-name five_scenarios 'seeds=[0,1,2]' lr=1e-3`
    """
    from trm_ray.config import load_sweep
    from trm_ray.programs.sweep import sweep as run_sweep

    swept = run_sweep(load_sweep(config_name, overrides or []), Console(), resume=resume, overwrite=overwrite)
    if swept.outcome.failed:
        raise typer.Exit(FAILED)
