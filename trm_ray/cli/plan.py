"""`trm-ray plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, check_place, reported, write_text
from trm_ray.reporting.terminal import say, show

if TYPE_CHECKING:
    from trm_ray.config import Config


@app.command()
@reported
def plan(
    name: Annotated[str, typer.Argument(metavar="SWEEP|SCENARIO", help="A sweep of `configs/sweep/`, or a scenario.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys, as `sweep` and `train` do.")
    ] = None,
    measure: Annotated[int, typer.Option(min=1, help="Steps to take of every distinct network.")] = 5,
    step_ms: Annotated[
        float | None, typer.Option(min=1e-3, help="Take this time a step instead of measuring it here.")
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Take the median step time of this run's log.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="TRAIN,TEST,TOKENS,VOCABULARY", help="Rows of data that are not here, such as 10000,100,128,32000."
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="What a GPU costs an hour; a CPU where no GPU is asked for.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the plan as JSON too.")] = None,
) -> None:
    """Tell what a sweep or a run will ask for: machines, hours, memory, disk. Starts nothing and makes no data.

    Example: `trm-ray plan five_scenarios 'seeds=[0,1,2]' ray.use_gpu=true ray.gpus_per_trial=0.2 --step-ms 12`
    """
    from rich.progress import track

    from trm_ray.measure import budget

    if step_ms is not None and from_run is not None:
        raise ValueError(f"--step-ms {step_ms:g} and --from-run {from_run} exclude each other; choose one")
    check_place(save, "--save")
    console, asked = Console(), budget.planned(name, overrides or [])
    hold = None if data is None else budget.told_data(data)

    def shown(configs: Sequence[Config]) -> Iterator[Config]:
        label = f"taking {measure} steps of {len(configs)} networks"
        return iter(track(configs, label, console=console, transient=True, disable=not console.is_terminal))

    if step_ms is not None:
        found = budget.plan_cost(asked, budget.told_ms(step_ms), f"{step_ms:g} ms, as told", told=hold)
    elif from_run is not None:
        median_ms = budget.run_step_ms(from_run)
        source = f"{median_ms:.3g} ms, the median of {from_run}, taken for all trials"
        found = budget.plan_cost(asked, budget.told_ms(median_ms), source, told=hold)
    else:
        found = budget.plan_cost(asked, budget.measured_here(measure), budget.how_measured(measure), shown, hold)
    for line in budget.plan_lines(found, price_per_hour):
        say(console, line)
    show(console, budget.plan_table(found))
    write_text(console, save, budget.plan_json(found, price_per_hour))
