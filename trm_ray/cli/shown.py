"""What `trm-ray train` shows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from trm_ray.config import banner
from trm_ray.programs.train import Watch
from trm_ray.reporting.console import RunDisplay
from trm_ray.reporting.terminal import say
from trm_ray.runs.execute import beginning
from trm_ray.runs.plan import RunPlan


@dataclass(frozen=True)
class Shown(Watch):
    """Shows a run on the console."""

    console: Console
    resume: bool
    overrides: Sequence[str]

    def planned(self, plan: RunPlan, first_step: int) -> None:
        """Print what the config is about, where all of it is, and where the run begins."""
        if plan.config.init_from is not None and first_step == 0:
            self.tell(beginning(plan).note)
        self.tell(banner(plan.config, self.overrides))
        where = plan.config.log_dir if plan.config.ray.storage_path is None else plan.folder
        self.tell(f"All keys: {where}/config.yaml")
        if plan.config.compile is True:
            self.tell("The first step of each sort waits for its graph to be compiled, half a minute or more")
        if self.resume:
            none = f"No checkpoint in {plan.config.log_dir}: starting anew"
            self.tell(f"Going on after step {first_step} of {plan.num_steps}" if first_step else none)

    def starts_ray(self, plan: RunPlan) -> None:
        """Print how many workers come up."""
        fewest, most = plan.config.ray.fewest_workers, plan.config.ray.most_workers
        workers = f"{fewest} to {most} workers" if fewest < most else f"{most} worker{'s' if most > 1 else ''}"
        self.tell(f"Starting Ray with {workers} …")

    def tell(self, text: str) -> None:
        """Print a line."""
        say(self.console, text)

    def following(self, plan: RunPlan, first_step: int) -> RunDisplay:
        """Print steps and evaluations as they come."""
        config = plan.config.model_dump(mode="json")
        cycles, schedule = plan.config.arch.H_cycles, plan.config.deep_supervision_schedule
        steps = {"first_step": first_step, "num_steps": plan.num_steps}
        return RunDisplay(plan.folder, self.console, config=config, num_cycles=cycles, schedule=schedule, **steps)
