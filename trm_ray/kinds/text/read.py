"""Documents out of files: Parquet, JSON lines, plain text, and tokens that others have made.

A document is bytes in UTF-8. One that is longer than asked for comes in pieces, which are documents from then on, so a
file of plain text may be larger than the memory.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from trm_ray.data.rows import DatasetError
from trm_ray.kinds.text.tokenizer import Tokenizer
from trm_ray.storage import arrow_filesystem, local_file, storage_key

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TOKENS = ".bin"
PACKED = (".gz", ".zst")
ENDINGS = (".parquet", *(f"{kind}{packed}" for kind in (".jsonl", ".txt") for packed in ("", *PACKED)), TOKENS)
TEXT_COLUMNS = ("text", "content")
PROMPT_COLUMNS = ("prompt", "answer")
LEAST_DOCUMENT_BYTES = 64
_LONGEST_LINE = 1 << 28
_ROWS_AT_ONCE = 1024
_READ_AT_ONCE = 1 << 22  # bytes
_TOKENS_AT_ONCE = 1 << 22
_HEADER, _MAGIC = 256, 20240520  # int32s before the tokens, and the first of them
_MARK = b"\xef\xbb\xbf"  # that some editors put before UTF-8


@dataclass(frozen=True)
class Document:
    """A text, and what stands before it that is given and not to be learnt."""

    text: bytes
    prompt: bytes = b""


def is_tokens(path: Path) -> bool:
    """Tell a file of tokens by its name."""
    return path.name.lower().endswith(TOKENS)


def _kind(path: Path) -> str:
    """Tell by its name what a file holds, packed or not."""
    name = path.name.lower()
    return Path(next((name.removesuffix(packed) for packed in PACKED if name.endswith(packed)), name)).suffix


def text_files(inputs: Sequence[Path]) -> list[Path]:
    """List the files that are meant: those named, and of folders all that can be read, by their names.

    Raises:
        DatasetError: one is missing, is read by nobody, or there are none.
    """
    if not inputs:
        raise DatasetError("there is no input; name files or folders with --input")
    found: list[Path] = []
    for place in inputs:
        if place.is_dir():
            inside = _inside(place)
            if not inside:
                raise DatasetError(f"{place} holds no {', '.join(ENDINGS)}; name a folder that does")
            found += inside
        elif not place.is_file():
            raise DatasetError(f"{place} does not exist; name files or folders of {', '.join(ENDINGS)}")
        elif not place.name.lower().endswith(ENDINGS):
            raise DatasetError(f"{place} is not read; {', '.join(ENDINGS)} are: convert it")
        else:
            found.append(place)
    twice = {str(path) for path in found if found.count(path) > 1} if len(set(found)) < len(found) else ()
    if twice:
        raise DatasetError(f"{min(twice)} is named twice; name it once")
    return found


def _inside(folder: Path) -> list[Path]:
    """List what can be read below a folder, without what is hidden."""
    inner = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    below = [found for path in inner if path.is_dir() for found in _inside(path)]
    return [path for path in inner if path.name.lower().endswith(ENDINGS) and path.is_file()] + below


def read_documents(path: Path, limit: int, *, prompts: bool = False) -> Iterator[Document]:
    """Yield the documents of a file that holds text; empty ones too.

    Args:
        limit: bytes of the longest; longer ones are cut, at the end of a line where there is one.
        prompts: read prompts and their answers, which are never cut.

    Raises:
        DatasetError: one line that names the file, the place in it, the rule and the way out.
    """
    kind = _kind(path)
    if prompts and kind == ".txt":
        raise DatasetError(
            f"{path} has no prompts; --format prompt reads .parquet and .jsonl with `prompt` and `answer`"
        )
    if kind == ".txt":
        with _opened(path) as file:
            yield from map(Document, _pieces(file, limit, str(path)))
        return
    records = _parquet_records if kind == ".parquet" else _json_records
    for where, record in records(path, PROMPT_COLUMNS if prompts else None):
        if prompts:
            _check_text(b"".join(record), where)
            yield Document(record[1], record[0])
        elif record[0]:
            yield from map(Document, _pieces(io.BytesIO(record[0]), limit, where))
        else:
            yield Document(b"")


def read_token_documents(path: Path, limit: int, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yield the documents of a file of tokens, without their separators.

    Args:
        limit: tokens of the longest; longer ones are cut.

    Raises:
        DatasetError: it is cut off, or its tokens are not the tokenizer's.
    """
    tokens = _mapped(path)
    begin = 0
    for first in range(0, len(tokens), _TOKENS_AT_ONCE):
        block = tokens[first : first + _TOKENS_AT_ONCE]
        if block.max() >= tokenizer.vocab_size:
            place = int(block.argmax())
            rule = f"{tokenizer.name} has tokens below {tokenizer.vocab_size}"
            way_out = "name the tokenizer that made the file with --tokenizer"
            raise DatasetError(f"{path}, token {first + place}: {block[place]}, and {rule}; {way_out}")
        for end in first + np.flatnonzero(block == tokenizer.separator):
            if end > 0:
                yield from _cut_tokens(tokens[begin:end], limit)
            begin = int(end) + 1
    if begin < len(tokens):
        yield from _cut_tokens(tokens[begin:], limit)


def _cut_tokens(tokens: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    for first in range(0, max(1, len(tokens)), limit):
        yield tokens[first : first + limit]


def _mapped(path: Path) -> np.ndarray:
    """Map a file of 16-bit tokens, with modded-nanogpt's header or, as nanoGPT writes it, without one."""
    readable = local_file(path)
    size = readable.stat().st_size
    if size == 0 or size % 2:
        raise DatasetError(f"{path} has {size} bytes; a file of 16-bit tokens has an even number of them, and some")
    header = np.fromfile(readable, "<i4", min(_HEADER, size // 4))
    if not _is_header(header, size - 4 * _HEADER):
        return np.memmap(readable, "<u2", "r")
    first, version, told = header[:3].tolist()
    found = size // 2 - 2 * _HEADER
    if (first, version, told) != (_MAGIC, 1, found):
        what = f"{first}, version {version} and {told} tokens, and there are {found} of 16 bits"
        rule = f"{_MAGIC}, version 1 is read, whole"
        raise DatasetError(f"{path}: its header says {what}; {rule}: convert it, or fetch it again")
    return np.memmap(readable, "<u2", "r", offset=4 * _HEADER)


def _is_header(header: np.ndarray, rest: int) -> bool:
    """Tell a header from tokens: by its first number, or since it says how many tokens follow, and nothing else."""
    if len(header) < _HEADER:
        return False
    return bool(header[0] == _MAGIC or (header[2] in (rest // 2, rest // 4) and rest and not header[3:].any()))


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read what is packed in it.

    Raises:
        DatasetError: it cannot be read, or is damaged.
    """
    name = path.name.lower()
    try:
        with path.open("rb") as file:
            if name.endswith(".gz"):
                yield cast(IO[bytes], gzip.GzipFile(fileobj=file))
            elif name.endswith(".zst"):
                import pyarrow as pa

                yield cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(file, "zstd")))
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is cut off or damaged ({error}); fetch or pack it again") from error
    except OSError as error:
        packed = name.endswith(".zst") and error.errno is None
        what = (
            f"is cut off or damaged ({error}); fetch or pack it again"
            if packed
            else f"cannot be read: {error.strerror}"
        )
        raise DatasetError(f"{path} {what}") from error


def _pieces(file: IO[bytes], limit: int, where: str) -> Iterator[bytes]:
    """Cut what a file holds into pieces of at most `limit` bytes, each of whole characters."""
    rest, offset = b"", 0
    while True:
        rest += file.read(limit + 1 - len(rest))
        if offset == 0 and rest.startswith(_MARK):
            rest, offset = rest[len(_MARK) :], len(_MARK)
            continue
        if len(rest) <= limit:
            break
        end = _end_of_piece(rest, limit)
        _check_text(rest[:end], where, offset)
        yield rest[:end]
        rest, offset = rest[end:], offset + end
    _check_text(rest, where, offset)
    if rest or offset in (0, len(_MARK)):
        yield rest


def _end_of_piece(text: bytes, limit: int) -> int:
    """Find where to cut: after the last end of a line in the second half, else before a character."""
    if end := text.rfind(b"\n", limit // 2, limit) + 1:
        return end
    starts = (at for at in range(limit, limit - 4, -1) if text[at] & 0xC0 != 0x80)
    return next(starts, limit)


def _check_text(text: bytes, where: str, offset: int = 0) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        what = f"byte {text[error.start]:#04x} after {offset + error.start} bytes"
        raise DatasetError(f"{where} is not UTF-8 ({what}); save it as UTF-8, or leave it out") from error


# ---- records ---------------------------------------------------------------------------------------------


def _json_records(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[str, list[bytes]]]:
    """Yield where each line stands, and its values; which columns they are in, the first line decides."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            where = f"{path}, line {number},"
            if len(line) == _LONGEST_LINE:
                raise DatasetError(
                    f"{where} is longer than {_LONGEST_LINE >> 20} MiB; part it, or use .txt or .parquet"
                )
            if not line.strip():
                continue
            record = _json_object(line.removeprefix(_MARK) if number == 1 else line, where)
            columns = columns or _columns(record.keys(), where)
            yield where, [_json_text(record, column, where) for column in columns]


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    _check_text(line, where)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise DatasetError(f"{where} holds a {type(record).__name__}; it must be an object with `text` or `content`")
    return record


def _json_text(record: dict[str, Any], column: str, where: str) -> bytes:
    value = record.get(column)
    if column not in record or not isinstance(value, str | None):
        what = f"a {type(value).__name__}" if column in record else f"none, but {', '.join(record) or 'nothing'}"
        raise DatasetError(f"{where} must have text under `{column}`, as the lines before; it has {what}")
    try:
        return (value or "").encode()
    except UnicodeEncodeError as error:
        raise DatasetError(
            f"{where} has half a character ({(value or '')[error.start]!a}); mend or remove it"
        ) from error


def _columns(there: Any, where: str) -> tuple[str, ...]:
    column = next((name for name in TEXT_COLUMNS if name in there), None)
    if column is None:
        raise DatasetError(f"{where} has no `text` and no `content`; it has {', '.join(there) or 'nothing'}")
    return (column,)


def _parquet_batches(file: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read so many rows at once as are a few MB, by what a row of theirs takes on average."""
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        fitting = group.num_rows * _READ_AT_ONCE // max(1, group.total_byte_size)
        some = min(max(fitting, 1), _ROWS_AT_ONCE)
        yield from file.iter_batches(some, row_groups=[number], columns=columns, use_threads=False)


def _parquet_records(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[str, list[bytes]]]:
    """Yield where each row stands, and its values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without a buffer it would read a whole column of a row group, and there may be one.
        options = {"filesystem": arrow_filesystem(path), "buffer_size": _READ_AT_ONCE, "pre_buffer": False}
        with pq.ParquetFile(storage_key(path), **options) as file:
            there = file.schema_arrow
            columns = columns or _columns(there.names, str(path))
            for column in columns:
                kind = there.field(column).type if column in there.names else None
                if kind not in (pa.string(), pa.large_string(), pa.string_view()):
                    told = f"is {kind}" if kind else f"is not there, but {', '.join(there.names)}"
                    raise DatasetError(f"{path}: column `{column}` {told}; it must be text")
            number = 0
            for batch in _parquet_batches(file, list(columns)):
                values = [batch.column(name).cast(pa.large_binary()).to_pylist() for name in columns]
                for record in zip(*values, strict=True):
                    number += 1
                    yield f"{path}, row {number},", [value or b"" for value in record]
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not readable Parquet: {str(error).splitlines()[0]}") from error
