"""Train one run: check, make what data are missing, hold the folder, and train here or on Ray."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trm_ray.reporting.run_log import read_run
from trm_ray.runs.data import make_missing
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import is_finished, owned_run, step_of
from trm_ray.runs.plan import RunPlan, check_machine, plan_run

if TYPE_CHECKING:
    from trm_ray.config import Config


class Watch:
    """Shows a run while it trains; this one nothing, but it warns in the log of what the run waits for."""

    def planned(self, plan: RunPlan, first_step: int) -> None:
        """Show what will be trained, and after which step it goes on."""

    def starts_ray(self, plan: RunPlan) -> None:
        """Show that workers come up."""

    def tell(self, text: str) -> None:
        """Show what the run waits for."""
        logging.getLogger("trm_ray").warning(text)

    def following(self, plan: RunPlan, first_step: int) -> AbstractContextManager[object]:
        """Show its steps while this lasts."""
        return nullcontext()


@dataclass(frozen=True)
class Trained:
    """A run that has ended, its last evaluation by tag, and the step at which it had ended before, if it had."""

    plan: RunPlan
    metrics: dict[str, float]
    before: int | None = None


def train(config: Config, *, resume: bool = False, overwrite: bool = False, watch: Watch | None = None) -> Trained:
    """Train one run: in this process with `ray.num_workers=0`, else on Ray. Arguments and errors: `trm_ray.train`."""
    watch = watch or Watch()
    check_machine(config)
    make_missing(config)
    plan = plan_run(config)
    with owned_run(plan, resume=resume, overwrite=overwrite) as (begin, latest), ExitStack() as shown:
        first_step = step_of(latest)
        watch.planned(plan, first_step)
        if resume and is_finished(plan, first_step):
            return Trained(plan, _last_evaluation(plan.folder), before=first_step)

        def begin_and_show() -> None:
            begin()
            shown.enter_context(watch.following(plan, first_step))

        if config.ray.most_workers == 0:
            begin_and_show()
            metrics = train_in_process(plan, latest)
        else:
            from trm_ray.distributed.trainer import train_on_ray

            watch.starts_ray(plan)
            metrics = train_on_ray(plan, watch.tell, begin=begin_and_show)
    # Workers that were started anew after the last step have evaluated nothing.
    return Trained(plan, metrics or _last_evaluation(plan.folder))


def _last_evaluation(folder: Path) -> dict[str, float]:
    """Read the last evaluation that a run has logged."""
    evaluated = [row for row in read_run(folder).rows if "eval/loss" in row]
    return {tag: value for tag, value in evaluated[-1].items() if tag.startswith("eval/")} if evaluated else {}
