"""The `trm-ray` command: parse, call one function, tell errors in one line. Heavy modules are imported late."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

# Typer reads the annotations at run time, so what they name must be there.
app = typer.Typer(
    name="trm-ray",
    help="Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
prepare_app = typer.Typer(no_args_is_help=True, help="Make or convert a dataset.")
app.add_typer(prepare_app, name="prepare")

USAGE_ERROR, FAILED, INTERRUPTED = 2, 1, 130

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys: `lr=5e-5 arch.hidden_size=128`.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show Ray's own output too.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove what the folder holds and start over.")]

_Command = TypeVar("_Command", bound=Callable[..., None])


def _reported(command: _Command) -> _Command:
    """Turn errors that a user can mend into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            if os.environ.get("TRM_RAY_VERBOSE") == "1":
                raise
            _complain(str(error))
            raise typer.Exit(USAGE_ERROR) from error
        except KeyboardInterrupt as error:
            way_on = "; the same command with --resume goes on from the last checkpoint" if "resume" in kwargs else ""
            _complain(f"interrupted{way_on}")
            raise typer.Exit(INTERRUPTED) from error

    return wrapped  # type: ignore[return-value]


def _complain(text: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]error:[/] {_escaped(text)}", highlight=False, soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _quiet_unless(verbose: bool) -> None:
    if verbose:
        os.environ["TRM_RAY_VERBOSE"] = "1"


@app.callback()
def main() -> None:
    """Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison."""


@prepare_app.command("sudoku")
@_reported
def prepare_sudoku_command(
    output: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    size: Annotated[int, typer.Option(help="4, 6 or 9 cells a side.")] = 6,
    train: Annotated[int, typer.Option(help="Training puzzles to generate.")] = 2000,
    test: Annotated[int, typer.Option(help="Held-out puzzles, none symmetric to a training puzzle.")] = 512,
    clues: Annotated[tuple[int, int] | None, typer.Option(metavar="MIN MAX", help="Fewest and most clues.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    difficulty: Annotated[str, typer.Option(help="`singles`: no guessing needed; `any`.")] = "singles",
    from_csv: Annotated[
        Path | None,
        typer.Option(help="Read 9×9 puzzles (`source,question,answer,rating`) instead: a file, or a folder of two."),
    ] = None,
    subsample: Annotated[int | None, typer.Option(help="With --from-csv: training puzzles to draw.")] = None,
    min_difficulty: Annotated[float | None, typer.Option(help="With --from-csv: least rating to keep.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate Sudoku puzzles with one solution each, or read them from CSV.

    Example: `trm-ray prepare sudoku --size 6 --train 2000 --test 512 --seed 0 --output data/sudoku6`
    """
    from trm_ray.data import sudoku

    if from_csv is not None:
        single_file = from_csv.is_file()
        sudoku.prepare_sudoku_from_csv(
            from_csv,
            output,
            test=test if single_file else None,
            subsample=subsample,
            min_difficulty=min_difficulty,
            seed=seed,
            overwrite=overwrite,
        )
        return
    if subsample is not None or min_difficulty is not None:
        raise ValueError(
            "--subsample and --min-difficulty choose among the rows of a file; name it with --from-csv FILE"
        )
    sudoku.prepare_sudoku(
        output,
        size=size,
        train=train,
        test=test,
        clues=clues,
        seed=seed,
        difficulty=difficulty,  # type: ignore[arg-type]  # checked there
        overwrite=overwrite,
    )


@app.command()
@_reported
def train(
    overrides: Overrides = None,
    config_name: Annotated[str, typer.Option(help="A scenario of `configs/`.")] = "deep_supervision_linear",
    resume: Resume = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Train one run.

    Example: `trm-ray train --config-name deep_supervision_linear task=sudoku6 deep_supervision_weight=0.7`
    """
    _quiet_unless(verbose)
    from rich.console import Console

    from trm_ray.config import banner, load_config
    from trm_ray.reporting.console import RunDisplay
    from trm_ray.run import claim_folder, plan_run, start_step, train_in_process
    from trm_ray.training.optim import NonFiniteError

    config = load_config(config_name, overrides or [])
    console = Console()
    plan = plan_run(config)
    claim_folder(plan, resume=resume, overwrite=overwrite)
    console.print(banner(config), highlight=False, markup=False)
    first_step = start_step(plan)
    if resume and first_step == 0:
        console.print(f"No checkpoint in {config.log_dir}: starting anew", highlight=False, markup=False)
    if first_step >= plan.num_steps:
        console.print(f"{config.log_dir} has been trained to step {first_step} of {plan.num_steps}; nothing to do")
        return
    display = RunDisplay(
        plan.folder,
        console,
        num_cycles=config.arch.H_cycles,
        schedule=config.deep_supervision_schedule,
        first_step=first_step,
        num_steps=plan.num_steps,
    )
    try:
        with display:
            if config.ray.num_workers == 0:
                train_in_process(plan)
            else:
                from trm_ray.distributed.trainer import train_on_ray

                console.print(f"Starting Ray with {config.ray.num_workers} workers …", highlight=False)
                train_on_ray(plan)
    except NonFiniteError as error:
        _complain(str(error))
        raise typer.Exit(FAILED) from error
    told = f"Finished {plan.num_steps} steps. See it: trm-ray dashboard {config.log_dir} --save dashboard.png"
    console.print(told, highlight=False, markup=False, soft_wrap=True)


@app.command()
@_reported
def sweep(
    overrides: Overrides = None,
    config_name: Annotated[str, typer.Option(help="A sweep of `configs/sweep/`.")] = "five_scenarios",
    resume: Resume = False,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
) -> None:
    """Run scenarios and variants as concurrent trials, stop the bad ones early, compare the rest.

    Example: `trm-ray sweep --config-name five_scenarios seeds=[0,1,2] lr=1e-3`
    """
    _quiet_unless(verbose)
    from rich.console import Console

    from trm_ray.config import load_sweep
    from trm_ray.sweep import compare_trials, plan_sweep, start_sweep

    console = Console()
    plan = plan_sweep(load_sweep(config_name, overrides or []))
    outcome = start_sweep(plan, console, resume=resume, overwrite=overwrite)
    if outcome.unfinished:
        _complain(f"{outcome.unfinished} trials did not finish; the same command with --resume goes on with them")
        raise typer.Exit(INTERRUPTED)
    compare_trials(plan, outcome, console)
    if outcome.failed:
        raise typer.Exit(FAILED)


@app.command()
@_reported
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Use the weights, not their average.")] = False,
) -> None:
    """Measure a trained run on held-out puzzles.

    Example: `trm-ray evaluate runs/deep_supervision_linear`
    """
    from rich.console import Console

    from trm_ray.run import evaluate_run

    console = Console()
    console.print(f"Evaluating {run} on its {split} split", highlight=False, markup=False, soft_wrap=True)
    with console.status("a few seconds") if console.is_terminal else _nothing():
        row, path = evaluate_run(run, split=split, averaged=not raw_weights)
    console.print(f"{run}, step {row['step']:.0f}", highlight=False, markup=False, soft_wrap=True)
    console.print(_evaluation_table(row))
    console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _evaluation_table(row: dict[str, float]) -> Any:
    from rich.table import Table

    table = Table("metric", "value", box=None, pad_edge=False)
    for tag, value in row.items():
        if tag.startswith("eval/"):
            table.add_row(tag, f"{value:.4f}")
    return table


@app.command()
@_reported
def dashboard(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    save: Annotated[Path | None, typer.Option(help="Picture to write; by default into the run's `report/`.")] = None,
) -> None:
    """Draw one run: losses, cycles, gradients, refinement, health.

    Example: `trm-ray dashboard runs/deep_supervision_linear --save dashboard.png`
    """
    from rich.console import Console

    from trm_ray.reporting.dashboard import save_dashboard
    from trm_ray.reporting.health import health_marks
    from trm_ray.reporting.run_log import read_run

    found, console = read_run(run), Console()
    for mark in health_marks(found):
        console.print(f"[{_MARK_COLOURS[mark.mark]}]{mark.mark:>4}[/]  {_escaped(mark.text)}", highlight=False)
    picture = save_dashboard(found, save or run / "report" / "dashboard.png")
    console.print(f"Wrote {picture}", highlight=False, soft_wrap=True)


_MARK_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


@app.command()
@_reported
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs, such as a sweep's.")],
    save: Annotated[Path, typer.Option(help="Picture to write.")] = Path("comparison.png"),
    threshold: Annotated[float, typer.Option(help="Held-out exact accuracy that steps and seconds count to.")] = 0.5,
) -> None:
    """Rank runs on held-out puzzles and draw them beside each other; seeds become a mean with a band.

    Example: `trm-ray compare runs/five_scenarios --save comparison.png`
    """
    from rich.console import Console

    from trm_ray.reporting.comparison import save_comparison, summarise, summary_table
    from trm_ray.reporting.run_log import find_runs

    found, console = find_runs(runs), Console()
    console.print(summary_table(summarise(found, threshold=threshold)))
    console.print(f"Wrote {save_comparison(found, save, threshold)}", highlight=False, soft_wrap=True)


@app.command()
@_reported
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


if __name__ == "__main__":
    app()
