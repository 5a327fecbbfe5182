"""What making and reading data tells while it goes on: lines, and a bar for what takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Advance = Callable[[int], None]  # tells that so much more is done
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Tell nothing while this lasts, as the Python API does."""
    before = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(before)


def tell(text: str) -> None:
    """Print a line at once."""
    if not _SILENT.get():
        print(text, flush=True)


@contextmanager
def progress(unit: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = Console()
    shown = console.is_terminal and not _SILENT.get()
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda amount: bar.advance(task, amount)
