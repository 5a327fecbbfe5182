"""`trm-ray prepare …`: make or convert a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from trm_ray.cli.common import Overwrite, is_given, prepare_app, reported


def _refuse(ctx: typer.Context, options: Sequence[str], why: str) -> None:
    """Refuse options, rather than pass over them, that a command has no use for beside its other ones."""
    for option in options:
        if is_given(ctx, option):
            raise ValueError(f"--{option.replace('_', '-')} {why}")


_GENERATED = "is for puzzles that are generated, not for those of --from-csv; leave one of the two out"
_AMBIGUOUS = "--keep-ambiguous"
_CHOSEN = "chooses among the rows of a file; name it with --from-csv FILE"


@prepare_app.command("sudoku")
@reported
def prepare_sudoku_command(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    size: Annotated[int, typer.Option(help="4, 6 or 9 cells a side.")] = 6,
    train: Annotated[int, typer.Option(help="Training puzzles to generate.")] = 2000,
    test: Annotated[
        int, typer.Option(help="Held-out puzzles, none symmetric to a training puzzle; of a test.csv all.")
    ] = 512,
    clues: Annotated[tuple[int, int] | None, typer.Option(metavar="MIN MAX", help="Fewest and most clues.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    difficulty: Annotated[str, typer.Option(help="`singles`: no guessing needed; `any`.")] = "singles",
    from_csv: Annotated[
        Path | None,
        typer.Option(
            help="Read 9×9 puzzles (columns `question,answer`) instead: a .csv or .csv.gz, or a folder of two."
        ),
    ] = None,
    subsample: Annotated[
        int | None,
        typer.Option(help="With --from-csv: training puzzles to draw with --seed; chosen_rows.json names them."),
    ] = None,
    min_difficulty: Annotated[float | None, typer.Option(help="With --from-csv: least rating to keep.")] = None,
    keep_ambiguous: Annotated[
        bool, typer.Option(_AMBIGUOUS, help="With --from-csv: take puzzles with more than one solution too.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Generate Sudoku puzzles with one solution each, or read them from CSV.

    Example: `trm-ray prepare sudoku --size 6 --train 2000 --test 512 --seed 0 --output data/sudoku6`
    """
    from trm_ray.kinds.sudoku import generate, read

    if from_csv is not None:
        _refuse(ctx, ("size", "train", "clues", "difficulty"), _GENERATED)
        read.prepare_sudoku_from_csv(
            from_csv,
            output,
            test=test if from_csv.is_file() or is_given(ctx, "test") else None,
            subsample=subsample,
            min_difficulty=min_difficulty,
            seed=seed,
            keep_ambiguous=keep_ambiguous,
            overwrite=overwrite,
        )
        return
    _refuse(ctx, ("subsample", "min_difficulty", "keep_ambiguous"), _CHOSEN)
    generate.prepare_sudoku(
        output,
        size=size,
        train=train,
        test=test,
        clues=clues,
        seed=seed,
        difficulty=difficulty,  # type: ignore[arg-type]  # checked there
        overwrite=overwrite,
    )


@prepare_app.command("maze")
@reported
def prepare_maze_command(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    size: Annotated[int, typer.Option(help="Cells a side.")] = 30,
    min_length: Annotated[int, typer.Option(help="Fewest steps from S to G.")] = 110,
    train: Annotated[int, typer.Option(help="Training mazes to generate.")] = 1000,
    test: Annotated[
        int, typer.Option(help="Held-out mazes, none a rotation or mirror image of another; of a test.csv all.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    augment: Annotated[
        str,
        typer.Option(
            help="`none`, or `dihedral`: rotate and mirror while training. Off, for it is known to hurt mazes."
        ),
    ] = "none",
    from_csv: Annotated[
        Path | None,
        typer.Option(help="Read mazes (columns `question,answer`) instead: a .csv or .csv.gz, or a folder of two."),
    ] = None,
    subsample: Annotated[
        int | None,
        typer.Option(help="With --from-csv: training mazes to draw with --seed; chosen_rows.json names them."),
    ] = None,
    keep_ambiguous: Annotated[
        bool, typer.Option(_AMBIGUOUS, help="With --from-csv: take mazes with several shortest paths too.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Generate mazes, each with the one path from S to G, or read them from CSV.

    Example: `trm-ray prepare maze --size 30 --min-length 110 --train 1000 --test 1000 --seed 0 --output data/maze30`
    """
    from trm_ray.kinds.maze import generate, read

    if from_csv is not None:
        _refuse(ctx, ("size", "min_length", "train"), _GENERATED)
        read.prepare_maze_from_csv(
            from_csv,
            output,
            test=test if from_csv.is_file() or is_given(ctx, "test") else None,
            subsample=subsample,
            seed=seed,
            augment=augment,  # type: ignore[arg-type]  # checked there
            keep_ambiguous=keep_ambiguous,
            overwrite=overwrite,
        )
        return
    _refuse(ctx, ("subsample", "keep_ambiguous"), _CHOSEN)
    generate.prepare_maze(
        output,
        size=size,
        min_length=min_length,
        train=train,
        test=test,
        seed=seed,
        augment=augment,  # type: ignore[arg-type]  # checked there
        overwrite=overwrite,
    )


KeepDuplicates = Annotated[
    bool,
    typer.Option(
        "--keep-duplicates",
        help="Keep ARC training rows that are test pairs of another puzzle, as the original's published numbers do.",
    ),
]


class _SeveralWords(TyperCommand):
    """Let `--subsets a b c` take several words, as `--subsets a --subsets b --subsets c` does."""

    option = "--subsets"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option = ""
        for word in args:
            option = word if word.startswith("-") else option
            follows = option == self.option and spread[-2:-1] == [option] and word != option
            spread += [option, word] if follows else [word]
        return super().parse_args(ctx, spread)


@prepare_app.command("arc", cls=_SeveralWords)
@reported
def prepare_arc_command(
    input_prefix: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="PREFIX",
            help="What stands before `_SUBSET_challenges.json` and `_SUBSET_solutions.json`; or a folder that holds a "
            "folder for each subset, one JSON file a task.",
        ),
    ],
    subsets: Annotated[
        list[str],
        typer.Option(metavar="SUBSET...", help="What to read, in words or with commas: `training evaluation`."),
    ],
    test_set: Annotated[str, typer.Option(help="The subset whose test pairs are held out.")],
    augmentations: Annotated[
        int, typer.Option(help="Augmentations of each puzzle, each with an identifier of its own; 0: none.")
    ] = 1000,
    output: Annotated[Path, typer.Option(help="Folder of the new dataset.")] = Path("data/arc1"),
    seed: Annotated[int, typer.Option(help="Same seed, same augmentations.")] = 42,
    keep_duplicates: KeepDuplicates = False,
    overwrite: Overwrite = False,
) -> None:
    """Read the ARC puzzles; their augmentations take no disk, for training computes them.

    Example: `trm-ray prepare arc --input arc-agi --subsets training evaluation concept --test-set evaluation`
    """
    from trm_ray.kinds.arc.read import prepare_arc

    prepare_arc(
        output,
        prefix=input_prefix,
        subsets=[name for word in subsets for name in word.split(",") if name],
        test_set=test_set,
        augmentations=augmentations,
        seed=seed,
        keep_duplicates=keep_duplicates,
        overwrite=overwrite,
    )


class _SeveralInputs(_SeveralWords):
    """Do the same with `--input`, as a shell's `*.txt` needs it."""

    option = "--input"


_OF_FILES = ("inputs", "tokenizer", "separator", "train_tokenizer", "test_share", "document_bytes", "workers")


@prepare_app.command("text", cls=_SeveralInputs)
@reported
def prepare_text_command(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE...",
            help="Files, folders or URLs: .parquet, .jsonl and .txt (also .gz, .zst), and tokens in .bin.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="bytes|FILE.json", help="`bytes` by default; or a tokenizer.json.")
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="The tokenizer's token between documents; it is found or added by itself.")
    ] = None,
    train_tokenizer: Annotated[
        int | None, typer.Option(metavar="VOCAB", help="Make a tokenizer of so many tokens from a sample instead.")
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens a row.")] = 128,
    test_share: Annotated[float, typer.Option(help="Share of the documents to hold out, by what they hold.")] = 0.01,
    document_bytes: Annotated[int, typer.Option(help="Longer documents are cut, at ends of lines.")] = 1_000_000,
    format: Annotated[
        str, typer.Option(help="`text`, or `prompt`: columns `prompt` and `answer`, loss on the answer alone.")
    ] = "text",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes of Ray Data; 0: none but this one, also the default for little text."),
    ] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Make text instead: sums (`addition`) or words (`reverse`) as prompts with answers; or take the "
            "documentation of Python (`stdlib`).",
        ),
    ] = None,
    train: Annotated[int, typer.Option(help="With --synthetic: training rows.")] = 10_000,
    test: Annotated[int, typer.Option(help="With --synthetic: held-out rows.")] = 512,
    size: Annotated[int, typer.Option(help="With --synthetic: most digits of a number, most letters of a word.")] = 3,
    seed: Annotated[int, typer.Option(help="With --synthetic: same seed, same bytes.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Turn text into rows of tokens. A command that was stopped goes on where it was.

    Example: `trm-ray prepare text --input corpus/ --seq-len 128 --output data/corpus`
    """
    if synthetic is not None:
        from trm_ray.kinds.text.generate import generate_text

        _refuse(ctx, _OF_FILES, "is for text in files, not for that of --synthetic; leave one of the two out")
        rows: dict[str, Any] = {"source": synthetic, "train": train, "test": test, "size": size, "seed": seed}
        generate_text(output, seq_len=seq_len, overwrite=overwrite, **rows)
        return
    from trm_ray.programs.prepare_text import prepare_text

    _refuse(ctx, ("train", "test", "size", "seed"), "is for text that is made; name it with --synthetic SOURCE")
    prepare_text(
        output,
        inputs=inputs or [],
        tokenizer=tokenizer,
        separator=separator,
        train_vocab=train_tokenizer,
        seq_len=seq_len,
        test_share=test_share,
        document_bytes=document_bytes,
        format=format,
        overwrite=overwrite,
        workers=workers,
    )


@prepare_app.command("import-original")
@reported
def import_original_command(
    folder: Annotated[Path, typer.Argument(help="What a builder of the original TRM code wrote: train/, test/ …")],
    output: Annotated[Path, typer.Option(help="Folder of the new dataset.")],
    keep_augmentations: Annotated[
        bool, typer.Option("--keep-augmentations", help="Copy ARC's stored augmentations, rather than compute them.")
    ] = False,
    keep_duplicates: KeepDuplicates = False,
    overwrite: Overwrite = False,
) -> None:
    """Import a dataset of the original TRM code; puzzle identifiers keep their numbers, so its checkpoints fit.

    Example: `trm-ray prepare import-original data/arc1concept-aug-1000 --output data/arc1`
    """
    from trm_ray.interop.datasets import import_original

    import_original(
        folder, output, keep_augmentations=keep_augmentations, keep_duplicates=keep_duplicates, overwrite=overwrite
    )
