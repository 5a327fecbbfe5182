"""`trm-ray train` and `trm-ray sweep`."""

from __future__ import annotations

from contextlib import ExitStack
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from trm_ray.cli.common import (
    FAILED,
    Overrides,
    Overwrite,
    Resume,
    app,
    complain,
    reported,
)

if TYPE_CHECKING:
    from trm_ray.config import Config


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
    from rich.console import Console

    from trm_ray.config import banner, load_config
    from trm_ray.reporting.console import RunDisplay
    from trm_ray.reporting.terminal import say
    from trm_ray.runs.run import beginning, is_finished, owned_run, plan_run, start_step, train_in_process
    from trm_ray.training.optim import NonFiniteError

    begin_from = {} if init_from is None else {"init_from": init_from}
    config = load_config(config_name, overrides or [], options=begin_from)
    console = Console()

    def tell(text: str) -> None:
        say(console, text)

    plan = plan_run(config)
    with owned_run(plan, resume=resume, overwrite=overwrite) as begin, ExitStack() as shown:
        first_step = 0 if overwrite else start_step(plan)
        if config.init_from is not None and first_step == 0:
            tell(beginning(plan).told)
        tell(banner(config))
        if resume:
            none = f"No checkpoint in {config.log_dir}: starting anew"
            tell(f"Going on after step {first_step} of {plan.num_steps}" if first_step else none)
        if resume and is_finished(plan):
            tell(f"{config.log_dir} has been trained to step {first_step} of {plan.num_steps}; nothing to do")
            return

        display = RunDisplay(
            plan.folder,
            console,
            num_cycles=config.arch.H_cycles,
            schedule=config.deep_supervision_schedule,
            first_step=first_step,
            num_steps=plan.num_steps,
        )

        def begin_and_show() -> None:
            begin()
            shown.enter_context(display)

        try:
            if config.ray.most_workers == 0:
                begin_and_show()
                train_in_process(plan)
            else:
                from trm_ray.distributed.trainer import train_on_ray

                tell(f"Starting Ray with {_told_workers(config)} …")
                train_on_ray(plan, tell, begin=begin_and_show)
        except NonFiniteError as error:
            shown.close()
            complain(str(error))
            raise typer.Exit(FAILED) from error
    where = config.log_dir if config.ray.storage_path is None else plan.folder
    told = f"Finished {plan.num_steps} steps. See it: trm-ray dashboard {quote(str(where))} --save dashboard.png"
    tell(told)


def _told_workers(config: Config) -> str:
    fewest, most = config.ray.fewest_workers, config.ray.most_workers
    return f"{fewest} to {most} workers" if fewest < most else f"{most} worker{'s' if most > 1 else ''}"


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
    from rich.console import Console

    from trm_ray.config import load_sweep
    from trm_ray.programs.sweep import plan_sweep, start_sweep

    plan = plan_sweep(load_sweep(config_name, overrides or []))
    outcome = start_sweep(plan, Console(), resume=resume, overwrite=overwrite)
    if outcome.failed:
        raise typer.Exit(FAILED)
