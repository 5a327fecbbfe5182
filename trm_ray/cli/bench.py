"""`trm-ray bench`: what a step costs, and what more workers bring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import Overrides, app, check_place, reported, write_text
from trm_ray.reporting.terminal import say, show

bench_app = typer.Typer()
app.add_typer(bench_app, name="bench")

Save = Annotated[Path | None, typer.Option("--json", "--save", help="Write the numbers as JSON too.")]


@bench_app.callback(invoke_without_command=True)
@reported
def bench(
    context: typer.Context,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,…", help="Such as `sudoku_mlp,maze`; all recipes by default.")
    ] = None,
    scenarios: Annotated[
        str | None, typer.Option(help="Such as `baseline,linear`; by default each preset's own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Timed steps a case; about five seconds' worth by default.")] = None,
    threads: Annotated[int, typer.Option(help="Threads a process.")] = 1,
    save: Save = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="BEFORE AFTER", help="Two files of --json; measure nothing.")
    ] = None,
) -> None:
    """Measure a training step on known presets: time, memory, and how far it is from the least this machine could take.

    Example: `trm-ray bench --preset sudoku6 --steps 20`
    """
    if context.invoked_subcommand is not None:
        return
    check_place(save, "--json")

    from trm_ray.measure.step_cost import (
        RECIPES,
        bench_json,
        bench_table,
        case_line,
        comparison_table,
        planned_cases,
        run_benchmark,
    )

    console = Console()
    if compare is not None:
        return show(console, comparison_table(*compare))
    asked = (preset.split(",") if preset else list(RECIPES), scenarios.split(",") if scenarios else None)
    cases, measured, results = planned_cases(*asked), run_benchmark(*asked, steps, threads), []
    say(console, f"Measuring {len(cases)} cases, one after the other")
    with console.status(" ".join(cases[0])) as status:
        for number, result in enumerate(measured, start=1):
            results.append(result)
            say(console, f"{number} of {len(cases)}  {case_line(result)}")
            status.update(" ".join((*cases, ("done", ""))[number]))
    show(console, bench_table(results))
    write_text(console, save, bench_json(results))


@bench_app.command()
@reported
def scaling(
    overrides: Overrides = None,
    config_name: Annotated[str, typer.Option(help="A scenario of `configs/`.")] = "deep_supervision_linear",
    workers: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of Ray workers.")] = "1,2,4",
    turns: Annotated[int, typer.Option(min=1, help="Pairs of windows a case, after one that warms up.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Steps a window.")] = 10,
    save: Save = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them, such as `scaling.png`.")] = None,
) -> None:
    """Measure the training loop under Ray Train, in turns with the same loop without Ray: speed-up, overhead, exchange.

    All of it runs on this machine. `global_batch_size` is what the workers share in strong scaling, and what each has
    in weak scaling.

    Example: `trm-ray bench scaling --workers 1,2,4 --save scaling.json --plot scaling.png`
    """
    from trm_ray.config import load_config
    from trm_ray.runs.data import complete

    check_place(save, "--json")
    check_place(plot, "--plot")
    counts = _counts(workers, "--workers")
    # What is wrong with the config is said before torch is imported, which takes seconds.
    config = complete(load_config(config_name, overrides or []))

    from trm_ray.measure.scaling import measure_scaling, planned_cases, scaling_json, scaling_rows, scaling_table
    from trm_ray.reporting.pictures.scaling import draw_scaling
    from trm_ray.reporting.pictures.style import format_of
    from trm_ray.reporting.pictures.style import save as save_figure

    if plot is not None:
        format_of(plot)

    cases, console, results = planned_cases(counts), Console(), []
    for result in measure_scaling(config, cases, num_turns=turns, steps=steps):
        results.append(result)
        say(console, f"{result.workers} workers, {result.scaling}: {result.speed_up} × the plain loop")
    show(console, scaling_table(results))
    write_text(console, save, scaling_json(results))
    if plot is not None:
        say(console, f"Wrote {save_figure(draw_scaling(scaling_rows(results)), plot)}")


@bench_app.command()
@reported
def data(
    overrides: Overrides = None,
    config_name: Annotated[str, typer.Option(help="A scenario of `configs/`.")] = "deep_supervision_linear",
    seconds: Annotated[int, typer.Option(min=2, help="How long to read from the files.")] = 60,
    save: Save = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them, such as `streaming.png`.")] = None,
) -> None:
    """Measure how fast a train split beyond `data_memory_gib` reaches a run's workers, and the memory that takes.

    The workers read as they do in training, and nothing else is done with the rows. Memory is looked up once a second,
    on Linux.

    Example: `trm-ray bench data task=sudoku9 ray.num_workers=2 data_memory_gib=0.005 --seconds 20`
    """
    from trm_ray.config import load_config
    from trm_ray.measure.data_rate import data_json, data_table, measure_data
    from trm_ray.reporting.pictures.data_rate import draw_data
    from trm_ray.reporting.pictures.style import save as save_figure

    check_place(save, "--save")
    check_place(plot, "--plot")
    console, measured = Console(), measure_data(load_config(config_name, overrides or []), seconds)
    show(console, data_table(measured))
    write_text(console, save, data_json(measured))
    if plot is not None:
        say(console, f"Wrote {save_figure(draw_data(measured), plot)}")


@bench_app.command()
@reported
def projection(
    recipe: Annotated[str, typer.Option(help="`arc1` or `sudoku_extreme`, as the paper trains them.")] = "arc1",
    gpus: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of GPUs.")] = "1,4,8,64,512",
    puzzles_per_s: Annotated[
        float | None, typer.Option(min=1e-6, help="Of one GPU, as `trm-ray bench` measures it; else the published.")
    ] = None,
    bandwidth: Annotated[float, typer.Option(min=1e-6, help="GB/s between nodes, for each GPU.")] = 12.5,
    latency: Annotated[float, typer.Option(min=0, help="Microseconds between nodes.")] = 20.0,
) -> None:
    """Work out, by formulas, what a run costs on more GPUs than anybody has measured, and what gives out first.

    Example: `trm-ray bench projection --recipe arc1 --gpus 8,64,512 --bandwidth 50`
    """
    from dataclasses import replace

    from trm_ray.measure import projection as formulas

    if recipe not in formulas.RECIPES:
        raise ValueError(f"--recipe {recipe} is unknown; use one of {', '.join(formulas.RECIPES)}")
    work = formulas.RECIPES[recipe]
    cluster = formulas.Cluster(network_latency_s=1e-6 * latency, network_bandwidth=1e9 * bandwidth)
    if puzzles_per_s is not None:
        work = replace(work, puzzles_per_s=puzzles_per_s)
    console = Console()
    for mode in (formulas.SHARED, formulas.GROWING):
        show(console, formulas.projection_table(work, cluster, mode, _counts(gpus, "--gpus")))
        say(console, "")
    limits, sources = formulas.limit_lines(work, cluster), formulas.source_lines(work, cluster)
    for line in ("What gives out:", *limits, "What went in:", *sources):
        say(console, line)


def _counts(text: str, option: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"{option} {text} must be numbers of at least 1; use e.g. 1,2,4")
    return [int(word) for word in words]
