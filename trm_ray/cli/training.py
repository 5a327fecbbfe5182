"""`trm-ray train` and `trm-ray sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from trm_ray.cli.common import FAILED, Overrides, Overwrite, Resume, app, complain, reported
from trm_ray.reporting.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from trm_ray.config import Config
    from trm_ray.reporting.console import RunDisplay
    from trm_ray.runs.plan import RunPlan


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

    from trm_ray.config import load_config
    from trm_ray.programs.train import train as train_run
    from trm_ray.training.optim import NonFiniteError

    config = load_config(config_name, overrides or [], options={} if init_from is None else {"init_from": init_from})
    console = Console()
    try:
        trained = train_run(config, resume=resume, overwrite=overwrite, watch=_Shown(console, resume))
    except NonFiniteError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    if not trained.before:
        where = config.log_dir if config.ray.storage_path is None else trained.plan.folder
        command = f"trm-ray dashboard {quote(str(where))} --save dashboard.png"
        say(console, f"Finished {trained.plan.num_steps} steps. See it: {command}")


@dataclass(frozen=True)
class _Shown:
    """Shows a run on the console."""

    console: Console
    resume: bool

    def planned(self, plan: RunPlan, first_step: int) -> None:
        from trm_ray.config import banner
        from trm_ray.runs.execute import beginning

        if plan.config.init_from is not None and first_step == 0:
            self.tell(beginning(plan).told)
        self.tell(banner(plan.config))
        if self.resume:
            none = f"No checkpoint in {plan.config.log_dir}: starting anew"
            self.tell(f"Going on after step {first_step} of {plan.num_steps}" if first_step else none)

    def finished_before(self, plan: RunPlan, first_step: int) -> None:
        self.tell(f"{plan.config.log_dir} has been trained to step {first_step} of {plan.num_steps}; nothing to do")

    def starts_ray(self, plan: RunPlan, first_step: int) -> None:
        self.tell(f"Starting Ray with {_told_workers(plan.config)} …")

    def tell(self, text: str) -> None:
        say(self.console, text)

    def following(self, plan: RunPlan, first_step: int) -> RunDisplay:
        from trm_ray.reporting.console import RunDisplay

        return RunDisplay(
            plan.folder,
            self.console,
            num_cycles=plan.config.arch.H_cycles,
            schedule=plan.config.deep_supervision_schedule,
            first_step=first_step,
            num_steps=plan.num_steps,
        )


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
    from trm_ray.programs.sweep import sweep as run_sweep

    swept = run_sweep(load_sweep(config_name, overrides or []), Console(), resume=resume, overwrite=overwrite)
    if swept.outcome.failed:
        raise typer.Exit(FAILED)
