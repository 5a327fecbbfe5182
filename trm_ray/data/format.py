"""The dataset folder: Parquet parts for each split, the puzzles' names, and a dataset.json that says what they hold.

    <dataset>/dataset.json, identifiers.json, train/part-00000.parquet …, test/part-00000.parquet …

A row is an example, a question with its answer: `inputs` and `labels` (FixedSizeList<int32>[L]), `puzzle_identifier`,
`puzzle` and `group` (int32). Rows with one `puzzle` are the examples of one puzzle; a `group` is a set of puzzles of
which an epoch visits one, with all its examples. Where puzzles have one example and stand for themselves, as in Sudoku,
both number the rows. Where a row stands does not matter: shuffling and augmentation are seeded by what it holds
(`chunk.row_keys`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from trm_ray.config.keys import NAME
from trm_ray.config.text import read_text
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID, DatasetError, Rows, concatenate, shifted
from trm_ray.replacement import is_unfinished
from trm_ray.storage import arrow_filesystem, drop_copy, is_remote, local_file, sha256, storage_key

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT_VERSION = 3
READABLE = (2, 3)  # format 2 does not say what kind of puzzle it holds
INFO_NAME = "dataset.json"
IDENTIFIERS_NAME = "identifiers.json"
TOKEN_BYTES_NAME = "token_bytes.json"  # beside a text: how many bytes each token stands for, a list
TOKENIZER_NAME = "tokenizer.json"  # beside a text, unless its tokens are bytes

COLUMNS = ("inputs", "labels", "puzzle_identifier", "puzzle", "group")
# The unit that validation holds in memory: 59 MiB of tokens for ARC's 30×30 boards.
ROWS_PER_ROW_GROUP = 8192

_EXACTLY = ConfigDict(extra="forbid")
_Number = Annotated[int, Field(strict=True, gt=-(2**63), lt=2**63)]
_Count = Annotated[_Number, Field(ge=0)]
_Positive = Annotated[_Number, Field(ge=1)]


@dataclass(frozen=True)
class SplitInfo:
    """Describe one split.

    Args:
        rows: examples, those of stored augmentations counted.
        groups: distinct values of `group`.
        mean_puzzle_examples: rows / distinct values of `puzzle`; `epochs` counts with it.
        files: SHA-256 of each file, by its name relative to the dataset folder, in row order.
    """

    __pydantic_config__ = _EXACTLY

    rows: _Count
    groups: _Count
    mean_puzzle_examples: Annotated[float, Field(strict=True, ge=0, lt=2**63)]
    files: dict[str, str]


@dataclass(frozen=True)
class TextInfo:
    """Describe tokens that spell text.

    Args:
        separator: the token that stands before every document, and that is the last label of the one before.
        tokenizer: `bytes`, or what the file was called that is beside dataset.json as tokenizer.json.
        tokenizer_sha256: of all that decides what tokens mean.
        packing: `running`, rows cut from documents that stand one after the other; `prompt`, a row a document, with
            labels for what comes after its prompt.
        documents, tokens, bytes: of each split, by its name; bytes are those of the text that is predicted, in UTF-8.
        left_out: how many documents, by the reason.
        sources: name and SHA-256 of each file that was read, in their order.
        unigram_bits_per_byte, xz_bits_per_byte: what the test split costs by how often tokens are in the training
            split, and packed with xz; None of prompts, and where nobody has measured it.
    """

    __pydantic_config__ = _EXACTLY

    separator: _Count
    tokenizer: str
    tokenizer_sha256: str
    packing: Literal["running", "prompt"]
    documents: dict[str, _Count]
    tokens: dict[str, _Count]
    bytes: dict[str, _Count]
    left_out: dict[str, _Count]
    sources: list[dict[str, str]]
    unigram_bits_per_byte: Annotated[float, Field(ge=0)] | None = None
    xz_bits_per_byte: Annotated[float, Field(ge=0)] | None = None

    @property
    def num_documents(self) -> int:
        """Count the documents of all splits."""
        return sum(self.documents.values())

    @property
    def total_bytes(self) -> int:
        """Count the bytes of text of all splits."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class DatasetInfo:
    """Hold the fields of dataset.json.

    Args:
        files: SHA-256 of each file beside the splits, by its name; identifiers.json is always there.
        kind: what the tokens spell, a name of `kinds.registry`; None in format 2, where it is guessed from the shape.
        text: how, where they spell text.
    """

    __pydantic_config__ = _EXACTLY

    format_version: _Number
    seq_len: _Positive
    vocab_size: _Positive
    pad_id: _Number
    ignored_label: _Number
    num_puzzle_identifiers: _Positive
    splits: dict[str, SplitInfo]
    generator: str
    arguments: dict[str, Any]
    seed: _Number | None
    symmetry: dict[str, Any] | None
    files: dict[str, str]
    kind: str | None = None
    text: TextInfo | None = None

    @classmethod
    def load(cls, folder: Path) -> DatasetInfo:
        """Read dataset.json without looking at the data.

        Raises:
            DatasetError: it is missing, unreadable, of another version, or a key is missing or wrong.
        """
        path = folder / INFO_NAME
        raw = read_json(path)
        version = raw.get("format_version")
        if version not in READABLE:
            raise DatasetError(
                f"{path}: format_version={version!r} is unknown, this release reads "
                f"{' and '.join(map(str, READABLE))}; make the dataset again with `trm-ray prepare`"
            )
        info = _checked(path, raw)
        for files in (info.files, *(split.files for split in info.splits.values())):
            _check_files(folder, files)
        return info

    @property
    def is_running_text(self) -> bool:
        """Tell whether rows are cut from documents wherever they end, rather than questions with answers."""
        return self.text is not None and self.text.packing == "running"

    def split(self, name: str) -> SplitInfo:
        """Look a split up.

        Raises:
            DatasetError: there is no such split.
        """
        if name not in self.splits:
            raise DatasetError(f"the dataset has no {name} split; it holds {', '.join(self.splits)}")
        return self.splits[name]


def is_dataset(folder: Path) -> bool:
    """Tell whether a folder holds a whole dataset."""
    return (folder / INFO_NAME).is_file() and not is_unfinished(folder)


def read_split(folder: Path, split: str) -> Rows:
    """Read a split into memory, rows in file order.

    Raises:
        DatasetError: the folder, the split or one of its files is missing or unreadable.
    """
    info = DatasetInfo.load(folder)
    parts = [rows_of_table(folder, name, table, info.seq_len) for name, table in row_groups(folder, info.split(split))]
    return concatenate(parts)


def read_splits(folders: Sequence[Path], split: str) -> Rows:
    """Read the same split of several datasets, one after the other, their puzzles and groups kept apart."""
    parts = [read_split(folder, split) for folder in folders]
    shifts = number_shifts(folders, split)
    return concatenate([shifted(rows, *shift) for rows, shift in zip(parts, shifts, strict=True)])


def number_shifts(folders: Sequence[Path], split: str) -> list[tuple[int, int]]:
    """Say what to add to the puzzles and groups of each dataset so that they differ from those before it."""
    import pyarrow.parquet as pq

    after, shifts = np.zeros(2, np.int64), []
    for folder in folders:
        shifts.append((int(after[0]), int(after[1])))
        if len(folders) > 1:
            files = DatasetInfo.load(folder).split(split).files
            tables = (pq.read_table(local_file(folder / file), columns=["puzzle", "group"]) for file in files)
            after += np.max([[column.to_numpy().max() for column in table.columns] for table in tables], axis=0) + 1
    return shifts


def read_identifiers(*folders: Path) -> PuzzleIdentifiers:
    """Read what the puzzle identifiers of a dataset stand for, or those of several that passed `open_datasets`.

    Raises:
        DatasetError: identifiers.json is missing or unreadable.
    """
    named = max(folders, key=lambda folder: DatasetInfo.load(folder).num_puzzle_identifiers)
    return load_identifiers(named / IDENTIFIERS_NAME)


def read_token_bytes(folder: Path, info: DatasetInfo) -> np.ndarray:
    """Read how many bytes of a text each token (V,) stands for, the separator for none.

    Raises:
        DatasetError: it is not there, or other than the vocabulary.
    """
    path = folder / TOKEN_BYTES_NAME
    found = read_json(path, list)
    if len(found) != info.vocab_size or not all(type(size) is int and size >= 0 for size in found):
        raise DatasetError(
            f"{path} must hold vocab_size={info.vocab_size} numbers of bytes; it holds {len(found)} values"
        )
    return np.array(found, np.int64)


def read_tokenizer(folder: Path) -> bytes | None:
    """Read the tokenizer.json of a text; None where tokens are bytes, and where the data is no text.

    Raises:
        DatasetError: it is missing, or not what dataset.json says.
    """
    expected = DatasetInfo.load(folder).files.get(TOKENIZER_NAME)
    if expected is None:
        return None
    check_checksum(folder / TOKENIZER_NAME, expected)
    return local_file(folder / TOKENIZER_NAME).read_bytes()


def read_json(path: Path, kind: type = dict, hint: str = "") -> Any:
    """Read a JSON file that holds a `kind`, whatever editor has saved it.

    Args:
        hint: what to add where it is not there.

    Raises:
        DatasetError: it cannot be read, is no text or no JSON, or holds something else.
    """
    try:
        raw = json.loads(read_text(path))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, kind):
        name = "object" if kind is dict else "list"
        raise DatasetError(f"{path} must hold a JSON {name}, not {type(raw).__name__}")
    return raw


@functools.cache
def _reader() -> TypeAdapter[DatasetInfo]:
    return TypeAdapter(DatasetInfo)


def _checked(path: Path, raw: Mapping[str, Any]) -> DatasetInfo:
    try:
        info = _reader().validate_python(raw)
    except ValidationError as error:
        raise DatasetError(f"{path}: {_what_is_wrong(error.errors())}") from error
    for key, value in (("pad_id", PAD_ID), ("ignored_label", IGNORED_LABEL)):
        if getattr(info, key) != value:
            raise DatasetError(f"{path}: {key}={getattr(info, key)} must be {value} in format {FORMAT_VERSION}")
    if IDENTIFIERS_NAME not in info.files:
        raise DatasetError(f"{path}: files must name {IDENTIFIERS_NAME}; it names {', '.join(info.files) or 'none'}")
    if info.text is not None and info.text.separator >= info.vocab_size:
        raise DatasetError(f"{path}: text.separator={info.text.separator} must be below vocab_size={info.vocab_size}")
    if info.format_version > 2 and info.kind is None:
        raise DatasetError(f"{path}: kind must name what the tokens spell, or be tokens")
    return info


def _what_is_wrong(errors: Sequence[Any]) -> str:
    keys = {"missing": "lacks", "unexpected_keyword_argument": "has"}
    surplus = [f"{keys[one['type']]} {'.'.join(map(str, one['loc']))}" for one in errors if one["type"] in keys]
    if surplus:
        return f"not the keys of format {FORMAT_VERSION}: it {' and '.join(sorted(surplus))}"
    first, key = errors[0], ".".join(map(str, errors[0]["loc"]))
    rules = {
        "less_than": f"{key} must be a number of less than 64 bits",
        "greater_than": f"{key} must be a number of less than 64 bits",
        "greater_than_equal": f"{key}={first['input']!r} must be at least {first.get('ctx', {}).get('ge')}",
        "dataclass_type": f"{key} must be an object",
    }
    return rules.get(first["type"], f"{key}={first['input']!r} has the wrong type")


# Parts of a path: none begins with a dot, so none leads up.
_FILE = re.compile(rf"{NAME}(/{NAME})*")


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Check that names stay inside the folder, links followed, and that each has a checksum."""
    for name, digest in files.items():
        if not _FILE.fullmatch(name) or not isinstance(digest, str):
            raise DatasetError(f"{folder / INFO_NAME}: files holds {name!r}: {digest!r}; it must be FILE: SHA-256")
        if not is_remote(folder) and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise DatasetError(f"{folder / name} is a link that leads out of the dataset; copy the file to its place")


def load_identifiers(path: Path) -> PuzzleIdentifiers:
    """Read identifiers.json; a DatasetError says what is wrong with it."""
    try:
        return PuzzleIdentifiers.load(path)
    except ValueError as error:
        raise DatasetError(str(error)) from error


def row_groups(folder: Path, split: SplitInfo, *, checked: bool = False) -> Iterator[tuple[str, pa.Table]]:
    """Yield (file name, a row group of it): a file may be larger than the memory.

    Args:
        checked: compare the checksum of each file before it is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, expected in split.files.items():
        if checked:
            check_checksum(folder / name, expected)
        readable = local_file(folder / name)
        try:
            with pq.ParquetFile(readable) as file:
                for group in range(file.num_row_groups):
                    yield name, file.read_row_group(group)
        except FileNotFoundError as error:
            raise DatasetError(f"{folder / name} is missing") from error
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{folder / name} is not readable Parquet: {str(error).splitlines()[0]}") from error
    drop_copy()


def row_group_sizes(folder: Path, file: str) -> list[int]:
    """Count the rows of each row group of a file, of which only the end is read."""
    with _opened(folder / file) as parquet:
        return [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]


def read_row_group(folder: Path, file: str, number: int, seq_len: int, num_rows: int) -> Rows:
    """Read one row group of a file and nothing else of it.

    Raises:
        DatasetError: it is not there any more, or holds other than `num_rows` rows.
    """
    with _opened(folder / file) as parquet:
        table = parquet.read_row_group(number, use_threads=False)
    if len(table) != num_rows:
        raise DatasetError(f"{folder / file} was changed while it was in use: {len(table)} rows, not {num_rows}")
    return rows_of_table(folder, file, table, seq_len)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file where it lies: of one on object storage only what is asked for is fetched."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(storage_key(path), filesystem=arrow_filesystem(path)) as parquet:
            yield parquet
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not readable Parquet: {str(error).splitlines()[0]}") from error


def rows_of_table(folder: Path, name: str, table: pa.Table, seq_len: int) -> Rows:
    """Take the arrays out of a file's row group, its columns checked."""
    _check_columns(folder / name, table, seq_len)
    columns = [table.column(column).combine_chunks() for column in COLUMNS]
    # `.values` would ignore the offset of a slice; `.flatten()` respects it.
    boards = [column.flatten().to_numpy().reshape(-1, seq_len) for column in columns[:2]]
    return Rows(*boards, *(column.to_numpy() for column in columns[2:]))


def _check_columns(path: Path, table: pa.Table, seq_len: int) -> None:
    import pyarrow as pa

    if sorted(table.column_names) != sorted(COLUMNS):
        rule = f"they must be {', '.join(COLUMNS)}"
        raise DatasetError(f"{path}: its columns are {', '.join(table.column_names)}; {rule}")
    lengths = {}
    for column in COLUMNS:
        kind = table.schema.field(column).type
        is_board = column in COLUMNS[:2]
        if pa.types.is_fixed_size_list(kind) != is_board or (kind.value_type if is_board else kind) != pa.int32():
            rule = "a fixed-size list of int32" if is_board else "int32"
            raise DatasetError(f"{path}: column {column} is {kind}; it must be {rule}")
        if table.column(column).null_count:
            raise DatasetError(f"{path}: column {column} has empty values")
        lengths[column] = kind.list_size if is_board else seq_len
    if lengths["labels"] != lengths["inputs"]:
        raise DatasetError(
            f"{path}: labels have {lengths['labels']} tokens and inputs {lengths['inputs']}; they must be equal"
        )
    if lengths["inputs"] != seq_len:
        raise DatasetError(f"{path}: inputs have {lengths['inputs']} tokens; dataset.json says seq_len={seq_len}")


def check_checksum(path: Path, expected: str) -> None:
    """Refuse a file that is missing or not what dataset.json says."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    found = sha256(local_file(path))
    if found != expected:
        raise DatasetError(
            f"{path}: the checksum does not match: SHA-256 {found[:12]}…, "
            f"dataset.json says {expected[:12]}…; the file was changed or damaged"
        )
