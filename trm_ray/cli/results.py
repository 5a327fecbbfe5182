"""`trm-ray evaluate`, `dashboard`, `compare` and `report`: what runs have come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, check_place, is_given, reported, write_text
from trm_ray.reporting.terminal import say, show

_THRESHOLD = (
    "Exact accuracy that steps count to, by default 0.5; of text bits per byte, by default those of xz or unigrams."
)


@app.command()
@reported
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run or a checkpoint, or a .safetensors file.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "test",
    segments: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Numbers of segments, also more than trained with.")
    ] = None,
    halt: Annotated[bool, typer.Option("--halt", help="Stop each puzzle where the halt head says so.")] = False,
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Use the weights, not their average.")] = False,
    data: Annotated[list[Path] | None, typer.Option(help="Dataset instead of the run's own; repeatable.")] = None,
    augmentations: Annotated[
        str, typer.Option(metavar="N|all", help="ARC: augmentations of each puzzle to vote over.")
    ] = "all",
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0 = this process.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Puzzles at a time; by default as in the run.")] = None,
    max_puzzles: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many puzzles, or rows of text.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write into; by default the run's `report/`, beside a file FILE_report."),
    ] = None,
) -> None:
    """Measure a trained model on held-out puzzles or text: accuracy, halt head, ARC votes; bits per byte by depth.

    Example: `trm-ray evaluate runs/deep_supervision_linear --segments 8,16,32`
    """
    asked, votes = _whole_numbers("--segments", segments), _augmentations(augmentations)

    from trm_ray.programs.evaluate import evaluate_run

    console = Console()
    report = evaluate_run(
        run,
        split=split,
        segments=asked,
        halt=halt,
        averaged=not raw_weights,
        data=data or (),
        augmentations=votes,
        num_workers=workers,
        batch_size=batch_size,
        max_puzzles=max_puzzles,
        output=output,
    )
    say(console, report.headline)
    show(console, report.table)
    for line in (*report.lines, *(f"Wrote {path}" for path in report.files)):
        say(console, line)


def _whole_numbers(option: str, words: str | None) -> list[int] | None:
    """Read numbers of at least 1 with commas between them."""
    if words is None:
        return None
    numbers = [int(word) for word in words.split(",") if word.strip().isdecimal() and int(word) >= 1]
    if len(numbers) != len(words.split(",")):
        raise ValueError(f"{option}={words} must be whole numbers of at least 1, such as {option} 8,16,32")
    return numbers


def _augmentations(words: str) -> int | None:
    if words == "all":
        return None
    if not words.isdecimal():
        raise ValueError(f"--augmentations={words} must be a whole number of at least 0, or all")
    return int(words)


@app.command()
@reported
def dashboard(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    save: Annotated[Path | None, typer.Option(help="Picture to write; by default into the run's `report/`.")] = None,
) -> None:
    """Draw one run: losses, cycles, gradients, refinement, health.

    Example: `trm-ray dashboard runs/deep_supervision_linear --save dashboard.png`
    """
    from trm_ray.reporting.marks import show_marks
    from trm_ray.reporting.numbers.diagnosis import findings
    from trm_ray.reporting.pictures.dashboard import save_dashboard
    from trm_ray.reporting.pictures.style import format_of
    from trm_ray.reporting.run_log import read_run

    picture = save or run / "report" / "dashboard.png"
    format_of(picture)
    found, console = read_run(run), Console()
    show_marks(console, findings(found))
    say(console, f"Wrote {save_dashboard(found, picture)}")


@app.command()
@reported
def compare(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs, such as a sweep's.")],
    save: Annotated[Path, typer.Option(help="Picture to write.")] = Path("comparison.png"),
    threshold: Annotated[float | None, typer.Option(min=0, help=_THRESHOLD)] = None,
    baseline: Annotated[str, typer.Option(help="Scenario that the others are compared with.")] = "baseline",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="File for all numbers and verdicts.")
    ] = None,
) -> None:
    """Say what runs tell about each other on held-out puzzles or text, rank them, and draw them beside each other.

    Example: `trm-ray compare runs/five_scenarios --save comparison.png`
    """
    from trm_ray.programs.compare import check_baseline
    from trm_ray.programs.compare import compare as compare_runs
    from trm_ray.reporting.numbers.tables import comparison_json, show_comparison
    from trm_ray.reporting.pictures.style import format_of, is_drawn_by_us

    format_of(save)
    if not is_given(ctx, "save") and save.exists() and not is_drawn_by_us(save):
        raise ValueError(f"{save} was not drawn by trm-ray; to replace it all the same use --save {save}")
    check_place(json_file, "--json")
    compared, console = compare_runs(runs, threshold, baseline), Console()
    if is_given(ctx, "baseline"):
        check_baseline(compared.comparison, baseline)
    show_comparison(console, compared.comparison)
    write_text(console, json_file, comparison_json(compared.comparison))
    say(console, f"Wrote {compared.draw(save)}")


@app.command()
@reported
def report(
    ctx: typer.Context,
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold runs, such as a sweep's.")],
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    threshold: Annotated[float | None, typer.Option(min=0, help=_THRESHOLD)] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Scenario that the others are compared with; by default `baseline`.")
    ] = None,
    gallery: Annotated[bool, typer.Option(help="Let the models solve some held-out puzzles.")] = True,
) -> None:
    """Tell what runs have come to in one HTML file that opens from disk: words, tables, curves, puzzles being solved.

    Example: `trm-ray report runs/five_scenarios --output report.html`
    """
    from trm_ray.programs.report import is_ours
    from trm_ray.programs.report import report as write

    check_place(output, "--output")
    if not is_given(ctx, "output") and output.exists() and not is_ours(output):
        raise ValueError(f"{output} was not written by trm-ray; to replace it all the same use --output {output}")
    page = write(runs, output, threshold=threshold, baseline=baseline, gallery=gallery)
    say(Console(), f"Wrote {page}")
