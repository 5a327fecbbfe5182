"""`trm-ray generate`: let a trained model go on with a text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, reported
from trm_ray.reporting.terminal import as_it_is, say

if TYPE_CHECKING:
    from trm_ray.programs.generate import Generated


@app.command()
@reported
def generate(
    run: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint's, or an exported .safetensors file.")],
    prompt: Annotated[str | None, typer.Option(help="What to go on with; without one a document is begun.")] = None,
    file: Annotated[str | None, typer.Option(help="A file with it, or - for the standard input.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where to end, if the model does not before.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; 0.8 is usual for stories.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of so much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws: the same seed gives the same text.")] = 0,
    segments: Annotated[int | None, typer.Option(help="How many; by default as many as in training.")] = None,
    cycles: Annotated[int | None, typer.Option(help="H-cycles a segment; by default those of training.")] = None,
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Use the weights, not their average.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, and no text.")] = False,
) -> None:
    """Go on with a text, token by token, until the model ends the document or the limit is reached.

    What the model adds, and nothing else, goes to the standard output. A line end at the end of a file is not taken
    for a part of the prompt.

    Example: `trm-ray generate runs/shakespeare --prompt "ROMEO:" --temperature 0.8 --top-p 0.95 --seed 1`
    """
    from trm_ray.programs.generate import Settings, generate, read_prompt

    settings = Settings(max_new_tokens, temperature, top_p, seed, segments, cycles)
    text = read_prompt(prompt, file)  # before torch is imported, which takes seconds
    from trm_ray.programs.predict import load

    loaded = load(run, averaged=not raw_weights)
    generated = generate(loaded, text, settings, each=lambda piece: None if as_json else _tell(piece))
    if as_json:
        told = {"model": str(loaded.path), "step": loaded.step, **generated.as_json()}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    if sys.stdout.isatty():
        typer.echo()
    _remark(generated, loaded.shape.seq_len)


def _tell(piece: str) -> None:
    """Print a piece of text at once: to a terminal without what it would obey, else as it is."""
    sys.stdout.write(as_it_is(piece) if sys.stdout.isatty() else piece)
    sys.stdout.flush()


def _remark(generated: Generated, window: int) -> None:
    """Say what the text does not show, beside it."""
    if generated.left_out:
        rule = f"is longer than the model's window of {window}: its first {generated.left_out} tokens were not seen"
        say(Console(stderr=True), (f"The prompt {rule}", "yellow"))
