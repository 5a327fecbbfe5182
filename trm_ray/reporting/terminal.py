"""How text and tables reach whoever reads them: as they are, in any encoding and width, and until he goes away."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

READER_GONE = 141  # the exit code of a program that SIGPIPE has ended: 128 + 13
_LEAST_NAME = 12  # columns that a name needs before a table is worth its lines
_ERRORS = "trm_ray.plain"
# What we print beyond ASCII, where a terminal has no such character; other text gets a question mark.
_PLAIN = {
    "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "±": "+-", "½": "1/2", "≈": "~", "≥": ">=", "≤": "<=",
    "→": "->", "■": "#", "│": "|", "─": "-", "┼": "+", "━": "-", "╸": "-", "╺": "-", "•": "*", "’": "'", "‘": "'",
    "“": '"', "”": '"', "\xa0": " ", "²": "^2", "³": "^3", "µ": "u", "Σ": "sum ", "ᵢ": "i",
}  # fmt: skip


# ---- text and tables -------------------------------------------------------------------------------------


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print text as it is: nothing in it is markup, an emoji's name, a number to colour or a place to break a line.

    Args:
        parts: of the text; a pair has a style such as `bold red`.
    """
    styled = [(as_it_is(part), "") if isinstance(part, str) else (as_it_is(part[0]), part[1]) for part in parts]
    console.print(Text.assemble(*styled), soft_wrap=True)


def as_it_is(text: str) -> str:
    """Take out what a terminal would obey, line by line."""
    from trm_ray.config.errors import printable  # late: help needs none of the config

    return "\n".join(map(printable, text.split("\n")))


def show(console: Console, table: Table, names: int = 1) -> None:
    """Print a table as wide as it is where nobody's terminal limits it, else so that it fits.

    Args:
        names: how many of the first columns say what a row is about.
    """
    if console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        console.print(fitted(console, table, names))
        return
    widest = console.measure(table, options=console.options.update_width(10_000)).maximum
    Console(file=console.file, width=max(console.width, widest), quiet=console.quiet).print(table)


def number_table(name: str, headings: Iterable[str], **options: Any) -> Table:
    """Begin a table without lines: what a row is about, then columns of numbers, none of them ever folded.

    Args:
        options: of the table: `title`, `caption`, …
    """
    table = Table(box=None, pad_edge=False, **options)
    table.add_column(name, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def fitted(console: Console, table: Table, names: int = 1) -> RenderableType:
    """Return a table, or lines of its cells where it would be cut: the names of a row, and below them all the rest."""
    widest = console.measure(table, options=console.options.update_width(10_000)).maximum
    needed = widest - sum(_spare(column) for column in table.columns)
    return table if needed <= console.width else Group(*_lines(table, names, console.width))


def _spare(column: Column) -> int:
    """Say how much narrower a column may be than its longest line; names can be folded, numbers cannot."""
    if column.no_wrap:
        return 0
    cells = [str(cell) for cell in (column.header, *column.cells)]
    longest_line = max(cell_len(line) for cell in cells for line in cell.splitlines() or [""])
    longest_word = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
    return max(0, longest_line - min(longest_word, _LEAST_NAME))


def _lines(table: Table, names: int, width: int) -> Iterator[Text]:
    headings = [" ".join(str(column.header).replace("-\n", "").split()) for column in table.columns]
    yield from [Text(str(table.title), style="bold")] if table.title else []
    for row in zip(*(map(str, column.cells) for column in table.columns), strict=True):
        yield Text(" ".join(cell for cell in row[:names] if cell), style="bold", overflow="fold")
        named = [f"{heading} {cell}".strip() for heading, cell in zip(headings, row, strict=True) if cell][names:]
        yield from _filled(named, width)
    yield from [Text(str(table.caption))] if table.caption else []


def _filled(words: Sequence[str], width: int) -> Iterator[Text]:
    """Lay words out in lines, a comma between them and none of them broken that fits."""
    line = ""
    for number, word in enumerate(words, start=1):
        word += "," if number < len(words) else ""
        if line and cell_len(f"  {line} {word}") > width:
            yield Text(f"  {line}", overflow="fold")
            line = ""
        line = f"{line} {word}".strip()
    if line:
        yield Text(f"  {line}", overflow="fold")


# ---- the standard streams --------------------------------------------------------------------------------


class _Outlet(io.TextIOWrapper):
    """A standard stream whose reader may go away: `| head`, a terminal that is closed, a disk that is full.

    Whatever is written then is dropped. A command that only tells something ends with it; one that trains goes on.
    """

    goes_on = False

    def write(self, text: str) -> int:
        """Write text while somebody takes it."""
        try:
            return super().write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written while somebody takes it."""
        try:
            super().flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()
        gone = error.errno == errno.EPIPE
        if not self.goes_on:
            raise SystemExit(READER_GONE) if gone else error
        if not gone and self.fileno() == 1:
            print(f"warning: cannot print ({error.strerror}); going on without", file=sys.stderr, flush=True)


@contextmanager
def any_terminal() -> Iterator[None]:
    """Let all that is printed meanwhile reach a terminal of any encoding, and end quietly when its reader goes away."""
    codecs.register_error(_ERRORS, _replaced)
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _outlet(sys.stdout), _outlet(sys.stderr)
    if isinstance(sys.stderr, _Outlet):
        sys.stderr.goes_on = True  # errors are told by the exit code too
    try:
        yield
    finally:
        try:
            for stream in (sys.stderr, sys.stdout):
                if isinstance(stream, _Outlet):
                    stream.flush()
        finally:
            sys.stdout, sys.stderr = kept


def go_on_without_reader() -> None:
    """Let a command run to its end when nobody reads any longer what it prints."""
    if isinstance(sys.stdout, _Outlet):
        sys.stdout.goes_on = True


def _outlet(stream: TextIO) -> TextIO:
    """Return a stream that does all this in place of the process's own; another's learns to replace characters."""
    if stream is None or not isinstance(stream, io.TextIOWrapper):
        return stream
    number = next((number for number, own in ((1, sys.__stdout__), (2, sys.__stderr__)) if stream is own), None)
    if number is None:
        stream.reconfigure(errors=_ERRORS)
        return stream
    with suppress(OSError):
        stream.flush()
    return _Outlet(
        io.BufferedWriter(io.FileIO(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace one character that an encoding lacks; a byte that is no text is told as such."""
    assert isinstance(error, UnicodeEncodeError)
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}", after
    return _PLAIN.get(character, "*" if "⠀" <= character <= "⣿" else "?"), after
