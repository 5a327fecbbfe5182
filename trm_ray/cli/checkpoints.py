"""`trm-ray import-checkpoint` and `export-checkpoint`: other programs' files in and out."""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from trm_ray.cli.common import Overwrite, app, reported
from trm_ray.reporting.terminal import say


class TableChoice(str, Enum):
    """What becomes of the puzzle embedding."""

    keep = "keep"
    drop = "drop"
    mean = "mean"


class FormatChoice(str, Enum):
    """The layout of a file."""

    original = "original"
    safetensors = "safetensors"


@app.command("import-checkpoint")
@reported
def import_command(
    file: Annotated[Path, typer.Argument(help="The original's `step_N` file, or a .safetensors file.")],
    output: Annotated[Path, typer.Option(help="Folder of the run to make.")],
    config: Annotated[Path | None, typer.Option(help="The original's all_config.yaml.")] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="What no file says, such as `L_cycles=6`; may be repeated."),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Dataset to evaluate on, instead of the original's own; may be repeated.")
    ] = None,
    identifiers: Annotated[Path | None, typer.Option(help="The identifiers.json of the training data.")] = None,
    puzzle_embedding: Annotated[
        TableChoice, typer.Option(help="Keep the puzzles' vectors; or, for other puzzles, zeros or their mean.")
    ] = TableChoice.keep,
    num_puzzle_identifiers: Annotated[
        int | None, typer.Option(min=1, help="With drop or mean: rows of the new table.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a run of a checkpoint of the original TRM code.

    Example: `trm-ray import-checkpoint sudoku/step_65100 --config sudoku/all_config.yaml --output runs/original`
    """
    from trm_ray.interop.checkpoints import import_checkpoint

    done = import_checkpoint(
        file,
        output,
        config_file=config,
        arch=_pairs(arch or []),
        data_paths=data or [],
        identifiers_file=identifiers,
        puzzle_embedding=puzzle_embedding.value,
        num_puzzle_identifiers=num_puzzle_identifiers,
        overwrite=overwrite,
    )
    console = Console()
    for note in done.notes:
        say(console, ("note:", "yellow"), f" {note}")
    shape, step = done.shape, f"step {done.step}" if done.step else "step unknown"
    counts = f"{shape.seq_len} cells, {shape.vocab_size} tokens, {shape.num_puzzle_identifiers} puzzle identifiers"
    say(console, f"Wrote {output} ({step}; {counts})")


def _pairs(given: list[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` words, several in one text too, as the words of `train` are read."""
    from trm_ray.config import read_value

    values = {}
    for word in " ".join(given).split():
        key, equals, text = word.partition("=")
        if not equals or not key or not text:
            raise ValueError(f"--arch {word} must be KEY=VALUE, such as --arch L_cycles=6")
        name = key.removeprefix("arch.")
        values[name] = read_value(f"arch.{name}", text, label=f"--arch {key}")
    return values


@app.command("export-checkpoint")
@reported
def export_command(
    run: Annotated[Path, typer.Argument(help="A run's or a checkpoint's folder, or a .safetensors file.")],
    output: Annotated[Path, typer.Option(help="File to write.")],
    file_format: Annotated[FormatChoice, typer.Option("--format", help="The file's layout.")] = FormatChoice.original,
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Write the weights, not their average.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write a run's weights as the original saves them, or as safetensors.

    Example: `trm-ray export-checkpoint runs/original --format safetensors --output trm.safetensors`
    """
    from trm_ray.interop.checkpoints import export_checkpoint

    console, options = Console(), {"averaged_weights": not raw_weights, "overwrite": overwrite}
    with console.status(Text(f"Writing {output}")) if console.is_terminal else nullcontext():
        notes = export_checkpoint(run, output, file_format=file_format.value, **options)
    say(console, f"Wrote {output}")
    for note in notes:
        say(console, ("note:", "yellow"), f" {note}")
