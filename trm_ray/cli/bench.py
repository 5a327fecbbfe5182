"""`trm-ray bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_ray.cli.common import app, reported
from trm_ray.storage import is_remote


@app.command()
@reported
def bench(
    shapes: Annotated[str | None, typer.Option(help="Comma-separated shapes; all by default.")] = None,
    scenarios: Annotated[
        str | None, typer.Option(help="Such as `baseline,linear`; by default each shape's own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Timed steps a case; about ten seconds' worth by default.")] = None,
    threads: Annotated[int, typer.Option(help="Threads a process.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Write the numbers as JSON too.")] = None,
) -> None:
    """Measure a training step on known shapes: time and its split, memory, share of the machine's matrix rate.

    Example: `trm-ray bench --shapes sudoku6 --steps 20`
    """
    from rich.console import Console
    from rich.progress import track

    from trm_ray.training.benchmark import SHAPES, bench_json, bench_table, planned_cases, run_benchmark

    if save is not None and not (is_remote(save) or save.parent.is_dir()):
        raise ValueError(f"--save {save}: there is no folder {save.parent}; make it first")
    names = shapes.split(",") if shapes else list(SHAPES)
    arguments = (names, scenarios.split(",") if scenarios else None, steps, threads)
    console, cases = Console(), planned_cases(*arguments)
    console.print(f"Measuring {len(cases)} cases, one after the other", highlight=False)
    results = list(
        track(
            run_benchmark(*arguments),
            total=len(cases),
            description="measuring",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    )
    Console(width=max(console.width, 116)).print(bench_table(results))
    if save is not None:
        save.write_text(bench_json(results), encoding="utf-8")
        console.print(f"Wrote {save}", highlight=False, soft_wrap=True)
