"""What all commands share: the app, options that several take, and errors told in one line."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
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


def reported(command: _Command) -> _Command:
    """Turn errors that a user can mend into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            if os.environ.get("TRM_RAY_VERBOSE") == "1":
                raise
            complain(str(error))
            raise typer.Exit(USAGE_ERROR) from error
        except KeyboardInterrupt as error:
            way_on = "; the same command with --resume goes on from the last checkpoint" if "resume" in kwargs else ""
            complain(f"interrupted{way_on}")
            raise typer.Exit(INTERRUPTED) from error

    return wrapped  # type: ignore[return-value]


def complain(text: str) -> None:
    """Tell an error in one line."""
    from rich.console import Console

    Console(stderr=True).print(f"[bold red]error:[/] {escaped(text)}", highlight=False, soft_wrap=True)


def escaped(text: str) -> str:
    """Keep rich from reading markup into a text."""
    from rich.markup import escape

    return escape(text)


def quiet_unless(verbose: bool) -> None:
    """Show what the libraries print only where that was asked for; workers inherit it."""
    if verbose:
        os.environ["TRM_RAY_VERBOSE"] = "1"


@app.callback()
def main() -> None:
    """Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison."""
