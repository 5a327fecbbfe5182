"""A progress bar for what takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Tell that so much more is done."""

    def __call__(self, amount: int) -> None:
        """Advance the bar by `amount`."""


@contextmanager
def progress(unit: str, total: int) -> Iterator[Advance]:
    """Show a bar with the time left on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = Console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=total)

        def advance(amount: int) -> None:
            bar.advance(task, amount)

        yield advance
