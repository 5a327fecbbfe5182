"""Text that a user brings, read one way everywhere: whatever his editor, spreadsheet or machine makes of it.

UTF-8 is read, with a byte order mark or without one, and what begins with the mark of UTF-16 or UTF-32. A line ends
with a line feed, a carriage return or both.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_GZIP = b"\x1f\x8b"


class NotTextError(ValueError):
    """Say in words, without its name, which line of something is no text."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"it is no text (line {line}: {what}); save it as UTF-8")


def read_text(path: Path) -> str:
    """Read a file whole, with `\n` at the ends of lines.

    Raises:
        NotTextError: it is no text.
        OSError: it cannot be read.
    """
    return decoded(path.read_bytes())


def read_standard_input() -> str:
    """Read the standard input to its end, as `read_text` reads a file."""
    return decoded(sys.stdin.buffer.read())


def decoded(content: bytes) -> str:
    """Turn bytes into text as `read_text` does.

    Raises:
        NotTextError: they are no text.
    """
    mark, encoding = _marked(content)
    body = content[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        name = re.sub("-[lb]e$", "", encoding).upper()
        line = _last_line(body[: error.start].decode(encoding, errors="replace"))
        raise NotTextError(line, f"byte {body[error.start]:#04x} is none of {name}") from None
    if "\0" in text:
        raise NotTextError(_last_line(text[: text.index("\0")]), "a zero byte")
    return _plain_lines(text)


@contextmanager
def opened_text(path: Path) -> Iterator[tuple[TextIO, BinaryIO]]:
    """Open a file, packed by gzip or not, to read it line by line, the ends of lines as they are.

    What is no character becomes U+FFFD: a column that nobody reads may hold what it likes.

    Returns:
        The text, and the file itself, whose position tells how far reading has come.
    """
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        raw = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
        mark, encoding = _marked(raw.read(4))
        raw.seek(len(mark))
        yield io.TextIOWrapper(raw, encoding, errors="replace", newline=""), file


def _marked(start: bytes) -> tuple[bytes, str]:
    """Tell the byte order mark that bytes begin with, and the encoding that it stands for."""
    return next(((mark, name) for mark, name in _MARKS.items() if start.startswith(mark)), (b"", "utf-8"))


def _plain_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _last_line(text: str) -> int:
    return _plain_lines(text).count("\n") + 1
