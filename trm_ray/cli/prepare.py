"""`trm-ray prepare …`: make or convert a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_ray.cli.common import Overwrite, prepare_app, reported


@prepare_app.command("sudoku")
@reported
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
