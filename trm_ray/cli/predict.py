"""`trm-ray predict`: see a trained model solve a puzzle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, reported
from trm_ray.reporting.terminal import as_it_is, say

if TYPE_CHECKING:
    from trm_ray.interop.loading import LoadedModel
    from trm_ray.programs.predict import Prediction


@app.command()
@reported
def predict(
    run: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint's, or an imported run.")],
    puzzle: Annotated[str, typer.Argument(help="Text with puzzles, an ARC task's JSON, or - for the standard input.")],
    segments: Annotated[int | None, typer.Option(min=1, help="How many; by default as many as in training.")] = None,
    raw_weights: Annotated[bool, typer.Option("--raw-weights", help="Use the weights, not their average.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a puzzle, and nothing else.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Print segments that changed nothing, too.")] = False,
    gif: Annotated[Path | None, typer.Option(help="Draw the refinement of the first puzzle into this file.")] = None,
    delay: Annotated[int, typer.Option(help="Milliseconds a segment in the GIF.")] = 600,
) -> None:
    """Solve puzzles, and show the board after each segment, its halt probability, and whether it is valid.

    A Sudoku is digits with `.` or `0` for a blank, a maze lines of `# SG`, an ARC puzzle its task's JSON; any other
    model reads token ids, a line a puzzle. Several boards have blank lines between them. The answer is that of the
    last segment.

    Example: `trm-ray predict runs/deep_supervision_linear puzzle.txt --gif puzzle.gif`
    """
    from trm_ray.data.progress import progress
    from trm_ray.programs.predict import kind_for, load, predict, read_source

    if gif is not None:  # refused before anything is computed
        from trm_ray.reporting.pictures.film import check_gif

        check_gif(gif, delay)
    text = read_source(puzzle)  # before torch is imported, which takes seconds
    loaded = load(run, averaged=not raw_weights)
    kind, console = kind_for(loaded), Console(quiet=as_json)
    questions = kind.read(*text)
    with progress("segments", len(questions) * (segments or loaded.halt_max_steps)) as advance:
        predictions = list(predict(loaded, kind, questions, num_segments=segments, advance=advance))
    if as_json:
        for prediction in predictions:
            typer.echo(json.dumps(prediction.as_json(), ensure_ascii=False))
    else:
        _show_all(console, loaded, predictions, every=every)
    if gif is not None:
        _film(console, predictions, gif, delay)


def _show_all(console: Console, loaded: LoadedModel, predictions: Sequence[Prediction], *, every: bool) -> None:
    """Name the model, say what the marks on the boards mean, and print every puzzle."""
    from trm_ray.programs.predict import remark
    from trm_ray.reporting.pictures.boards import LEGEND

    weights = "averaged weights" if loaded.averaged else "weights as they are"
    say(console, f"{loaded.path}, step {loaded.step}, {weights}")
    if warning := remark(loaded, [prediction.question for prediction in predictions]):
        say(console, (warning, "yellow"))
    say(console, (LEGEND, "dim"))
    for prediction in predictions:
        _show(console, prediction, every=every)
    if len(predictions) > 1:
        say(console, _summary(predictions))


def _show(console: Console, prediction: Prediction, *, every: bool) -> None:
    """Print the boards of a puzzle beside each other, as many as fit."""
    from rich.columns import Columns
    from rich.rule import Rule
    from rich.text import Text

    from trm_ray.reporting.pictures.boards import frame_text, worth_showing

    frames = prediction.frames()
    shown = frames if every else worth_showing(frames)
    console.print(Rule(Text(as_it_is(prediction.question.name)), align="left", style="dim"))
    console.print(Columns([frame_text(frame) for frame in shown], padding=(1, 4)))
    if len(shown) < len(frames):
        say(console, (f"Left out, since nothing changed: {len(frames) - len(shown)} (--all shows them)", "dim"))
    say(console, _conclusion(prediction))


def _conclusion(prediction: Prediction) -> str:
    """Tell in one line what has come of a puzzle."""
    known = {True: ", the known solution", False: ", not the known solution", None: ""}[prediction.solved]
    halting, last = prediction.halting_segment, len(prediction.segments)
    stop = f"after segment {halting} of {last}" if halting else f"nowhere in {last} segments"
    return f"Answer: {prediction.verdict.words}{known}. The halt head stops {stop}."


def _summary(predictions: Sequence[Prediction]) -> str:
    """Count the puzzles by what has come of them."""
    counts = [f"{len(predictions)} puzzles"]
    if predictions[0].verdict.valid is not None:
        counts.append(f"valid: {sum(bool(prediction.verdict.valid) for prediction in predictions)}")
    if known := [prediction for prediction in predictions if prediction.solved is not None]:
        counts.append(f"solved: {sum(bool(prediction.solved) for prediction in known)} of {len(known)}")
    stops = sum(prediction.halting_segment or len(prediction.segments) for prediction in predictions)
    return ", ".join([*counts, f"{stops / len(predictions):.1f} segments until the halt head stops"])


def _film(console: Console, predictions: Sequence[Prediction], gif: Path, delay: int) -> None:
    """Write the GIF of the first puzzle."""
    from trm_ray.data.progress import progress
    from trm_ray.reporting.pictures.film import save_gif

    first = predictions[0]
    with progress("frames", len(first.segments)) as advance:
        save_gif(first.frames(), gif, first.question.name, delay, advance)
    which = f" of the first puzzle, {first.question.name}" if len(predictions) > 1 else ""
    say(console, f"Wrote {gif}{which}")
