"""What all commands share: the app, options that several take, and errors told in one line."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from rich.console import Console
from typer.core import TyperGroup

from trm_ray import __version__
from trm_ray.reporting.terminal import any_terminal, go_on_without_reader, say
from trm_ray.storage import as_path, is_remote
from trm_ray.training.stopping import stops_at_once

# Typer reads the annotations at run time, so what they name must be there.
_ORDER: tuple[str, ...] = ("prepare", "train", "schedule", "plan", "sweep", "dashboard", "diagnose", "compare")
_ORDER += ("report", "replay", "evaluate", "predict", "generate", "submit", "jobs")


class _InOrderOfUse(TyperGroup):
    """List commands in the order in which people come to need them, the others after them."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command on whatever terminal there is."""
        with any_terminal():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; where somebody writes a key as an option, say how keys are written."""
        try:
            return super().invoke(ctx)
        except _Misuse as error:
            if type(error).__name__ == "NoSuchOption":
                _tell_key(error)
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


HELP: dict[str, Any] = {"help_option_names": ["--help", "-h"]}
app = typer.Typer(
    name="trm-ray",
    cls=_InOrderOfUse,
    help="Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=HELP,
)
prepare_app = typer.Typer(no_args_is_help=True, help="Make or convert a dataset.")
app.add_typer(prepare_app, name="prepare")
jobs_app = typer.Typer(no_args_is_help=True, help="See, stop and fetch what runs on a cluster.")
app.add_typer(jobs_app, name="jobs")

USAGE_ERROR, FAILED, INTERRUPTED = 2, 1, 130
_Misuse: type[Exception] = typer.BadParameter.__bases__[0]  # what Typer tells itself: no such option, no such command


def _tell_key(error: Any) -> None:
    """Add to an unknown option the key that it names, for a command that takes keys."""
    if "overrides" not in {parameter.name for parameter in error.ctx.command.params}:
        return
    from trm_ray.config.errors import plain_name
    from trm_ray.config.run import known_keys
    from trm_ray.config.sweep import SweepConfig

    name = plain_name(error.option_name)
    known = {key.lower(): key for key in (*known_keys(), *known_keys(SweepConfig))}
    keys = [known[name]] if name in known else [key for low, key in known.items() if low.endswith(f".{name}")]
    if keys:
        written = " or ".join(f"{key}=VALUE" for key in keys)
        error.message, error.possibilities = f"{error.message}; it is a key: write {written}", None


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys: `lr=5e-5 arch.hidden_size=128`.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show tracebacks, and what Ray prints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what trm-ray has written there, once the new one stands.")
]

_Command = TypeVar("_Command", bound=Callable[..., None])
_PATHS = (Path, Path | None, list[Path], list[Path] | None)


def reported(command: _Command) -> _Command:
    """Turn errors into one line and an exit code, let paths be URLs, and add `--verbose` for tracebacks."""

    @functools.wraps(command)
    def wrapped(*args: Any, verbose: bool, **kwargs: Any) -> None:
        if verbose:
            os.environ["TRM_RAY_VERBOSE"] = "1"  # workers inherit it
        else:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps its fonts, for who has no home
        # Processes that are started here look for no modules in the working directory (Python 3.11 and newer).
        os.environ.setdefault("PYTHONSAFEPATH", "1")
        if "resume" in kwargs:  # it writes what lasts
            go_on_without_reader()
        try:
            with stops_at_once():
                command(*args, **kwargs)
        except KeyboardInterrupt as error:
            state = str(error) or "ended at once; the last checkpoint stands"
            instead = " in place of --overwrite" if kwargs.get("overwrite") else ""
            way_on = f": {state}; the same command with --resume{instead} goes on" if "resume" in kwargs else ""
            with suppress(OSError):  # a closed terminal is one that nothing can be told
                complain(f"interrupted{way_on}")
            raise typer.Exit(getattr(error, "exit_code", INTERRUPTED)) from error
        except (typer.Exit, typer.Abort, _Misuse):
            raise
        except Exception as error:
            code, message = told_error(error)
            if os.environ.get("TRM_RAY_VERBOSE") == "1":
                traceback.print_exc()
            complain(message)
            raise typer.Exit(code) from error

    _describe(wrapped, command)
    return wrapped  # type: ignore[return-value]


def _describe(wrapped: Any, command: Callable[..., None]) -> None:
    """Give a command's wrapper the signature that Typer reads: the command's with URLs for paths, and `--verbose`."""
    signature = inspect.signature(command, eval_str=True)
    for parameter in signature.parameters.values():
        if (get_args(parameter.annotation) or [None])[0] in _PATHS:
            parameter.annotation.__metadata__[0].parser = _path
    option = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])
    wrapped.__annotations__ = {**command.__annotations__, "verbose": Verbose}


def _path(text: str) -> Path:
    try:
        return as_path(text)
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(USAGE_ERROR) from None


def is_given(ctx: typer.Context, option: str) -> bool:
    """Tell an option that somebody has given from one that has its default."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def check_place(path: Path | None, option: str) -> None:
    """Refuse a file that could not be written before anything else is done.

    Raises:
        ValueError: its folder is missing, or it is a folder itself.
    """
    if path is None or is_remote(path):
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: there is no folder {path.parent}; make it first")


def write_text(console: Console, path: Path | None, text: str) -> None:
    """Write the file that an option names, if one does, and say so."""
    if path is not None:
        path.write_text(text, encoding="utf-8")
        say(console, f"Wrote {path}")


def told_error(error: Exception) -> tuple[int, str]:
    """Say with which code a command ends, and why: the user's mistake, a failure, or a bug of ours."""
    if isinstance(error, ValueError):
        return USAGE_ERROR, str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return FAILED, f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) or type(error).__module__.startswith("trm_ray."):
        return FAILED, str(error) or type(error).__name__
    way_out = "run with --verbose for the traceback, and report it"
    return FAILED, f"internal error: {type(error).__name__}: {error} ({way_out})"


def complain(text: str) -> None:
    """Tell an error in one line."""
    from trm_ray.config.errors import printable

    say(Console(stderr=True), ("error:", "bold red"), f" {printable(text)}")


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"trm-ray {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    """Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison."""
