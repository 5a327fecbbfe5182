"""The dataset folder: Parquet parts for each split, the puzzles' names, and a dataset.json that says what they hold.

    <dataset>/dataset.json, identifiers.json, train/part-00000.parquet …, test/part-00000.parquet …

A row is an example, a question with its answer: `inputs` and `labels` (FixedSizeList<int32>[L]), `puzzle_identifier`,
`puzzle` and `group` (int32). Rows with one `puzzle` are the examples of one puzzle; a `group` is a set of puzzles of
which an epoch visits one, with all its examples. Where puzzles have one example and stand for themselves, as in Sudoku,
both number the rows. Where a row stands does not matter: shuffling and augmentation are seeded by what it holds
(`stream.row_keys`).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from trm_ray.config.errors import printable
from trm_ray.config.keys import NAME
from trm_ray.config.text import read_text
from trm_ray.data.counters import counter_draws, mixed
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.progress import progress
from trm_ray.ownership import Ownership
from trm_ray.replacement import (
    DATASET,
    PARTIAL,
    foreign_names,
    is_ours,
    is_unfinished,
    set_aside,
    settled,
    told_names,
    unfinished,
)
from trm_ray.storage import as_path, check_is_folder, drop_copy, is_remote, local_file, move, resolved, retried

if TYPE_CHECKING:
    import pyarrow as pa

_LOG = logging.getLogger("trm_ray")
FORMAT_VERSION = 2
PAD_ID = 0
IGNORED_LABEL = -100
INFO_NAME = "dataset.json"
IDENTIFIERS_NAME = "identifiers.json"

# Ray Data shuffles and shards whole blocks, one a file: one file would leave it nothing to distribute.
MAX_PARTS = 8
MIN_ROWS_PER_PART = 256
# The unit that validation holds in memory: 59 MiB of tokens for ARC's 30×30 boards.
ROWS_PER_ROW_GROUP = 8192

COLUMNS = ("inputs", "labels", "puzzle_identifier", "puzzle", "group")


class DatasetError(ValueError):
    """Say in one line what is wrong with a dataset folder and how to mend it."""

    def __init__(self, told: str) -> None:
        super().__init__(printable(told))


@dataclass(frozen=True)
class Rows:
    """Hold N examples of L tokens, all int32 and C-contiguous.

    Args:
        inputs: (N, L) token ids.
        labels: (N, L) token ids or `IGNORED_LABEL`; a row of nothing else has no known solution.
        puzzle_identifiers: (N,) rows of the embedding table.
        puzzles: (N,) which puzzle each is an example of; a puzzle belongs to one group.
        groups: (N,) sets of puzzles of which an epoch visits one.
    """

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzles: np.ndarray
    groups: np.ndarray

    @classmethod
    def of_single_puzzles(cls, inputs: np.ndarray, labels: np.ndarray) -> Rows:
        """Hold puzzles (N, L) that have no name, one example each and nothing to do with each other."""
        numbers = np.arange(len(inputs), dtype=np.int32)
        return cls(inputs, labels, np.zeros_like(numbers), numbers, numbers)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, chosen: slice | np.ndarray) -> Rows:
        return Rows(*(np.ascontiguousarray(getattr(self, f.name)[chosen]) for f in fields(self)))


class RowHashes:
    """Collect the hashes of rows, 8 bytes each, to find test rows that are training rows too.

    What makes two rows one: the inputs, whatever the answers, for a puzzle is asked by its inputs; of puzzles that have
    identifiers the labels too, for there the examples say what is asked (ARC asks different things of one grid).

    Args:
        splits: which are collected.
    """

    def __init__(self, splits: Sequence[str] = ("train", "test")) -> None:
        self._splits = splits
        self._parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}

    def add(self, split: str, rows: Rows) -> None:
        """Take rows of a split, those of other splits than the asked ones not."""
        if split in self._splits:
            self._parts[split].append(_row_hashes(rows))

    def join(self, other: RowHashes) -> RowHashes:
        """Take those that another one has collected."""
        for split, parts in other._parts.items():
            self._parts[split] += parts
        return self

    def tell_shared(self, where: str) -> None:
        """Warn of test rows that are training rows, once for the same data."""
        train, test = (np.concatenate([np.zeros(0, np.uint64), *self._parts[split]]) for split in ("train", "test"))
        train.sort()  # `np.isin` takes thirty times as long
        places = np.searchsorted(train, test)
        shared = places < len(train)
        shared[shared] = train[places[shared]] == test[shared]
        if shared.any():
            told = f"{int(shared.sum()):,} of {len(test):,} test rows are also training rows"
            first = f"the first is test row {int(shared.argmax())}"
            _warn_once(f"{where}: {told} ({first}): accuracy counts what was learnt by heart; take them out of a split")


@functools.cache
def _warn_once(told: str) -> None:
    _LOG.warning("%s", printable(told))


def _row_hashes(rows: Rows) -> np.ndarray:
    """Name each row by what makes it one with another, see `RowHashes`: (N,) uint64."""
    weights = counter_draws(0, 0, np.arange(2 * rows.inputs.shape[1]), 1)[:, 0]
    asked, answered = np.split(weights, 2)
    hashes = mixed(rows.inputs.astype(np.uint64) @ asked)
    named = rows.puzzle_identifiers > 0
    if named.any():
        hashes[named] += mixed(rows.labels[named].astype(np.uint64) @ answered)
    return hashes


@dataclass(frozen=True)
class TokenBatch:
    """Hold inputs, labels (B, L) and puzzle_identifiers (B,), all int32."""

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class SplitInfo:
    """Describe one split.

    Args:
        rows: examples, those of stored augmentations counted.
        groups: distinct values of `group`.
        mean_puzzle_examples: rows / distinct values of `puzzle`; `epochs` counts with it.
        files: SHA-256 of each file, by its name relative to the dataset folder, in row order.
    """

    rows: int
    groups: int
    mean_puzzle_examples: float
    files: dict[str, str]


@dataclass(frozen=True)
class DatasetInfo:
    """Hold the fields of dataset.json.

    Args:
        files: SHA-256 of each file beside the splits, by its name; identifiers.json is always there.
    """

    format_version: int
    seq_len: int
    vocab_size: int
    pad_id: int
    ignored_label: int
    num_puzzle_identifiers: int
    splits: dict[str, SplitInfo]
    generator: str
    arguments: dict[str, Any]
    seed: int | None
    symmetry: dict[str, Any] | None
    files: dict[str, str]

    @classmethod
    def load(cls, folder: str | Path) -> DatasetInfo:
        """Read dataset.json without looking at the data.

        Raises:
            DatasetError: it is missing, unreadable, of another version, or a key is missing or wrong.
        """
        path = as_path(folder) / INFO_NAME
        raw = read_json(path)
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path}: format_version={version!r} is unknown, this release reads {FORMAT_VERSION}; "
                "make the dataset again with `trm-ray prepare`"
            )
        _check_keys(path, raw)
        splits = {name: _split_info(path, name, split) for name, split in raw["splits"].items()}
        for files in (raw["files"], *(split.files for split in splits.values())):
            _check_files(as_path(folder), files)
        return cls(**{**raw, "splits": splits})

    def split(self, name: str) -> SplitInfo:
        """Look a split up.

        Raises:
            DatasetError: there is no such split.
        """
        if name not in self.splits:
            raise DatasetError(f"the dataset has no {name} split; it holds {', '.join(self.splits)}")
        return self.splits[name]


def write_dataset(
    folder: str | Path,
    splits: Mapping[str, Rows],
    *,
    vocab_size: int,
    generator: str,
    arguments: Mapping[str, Any],
    seed: int | None,
    symmetry: Mapping[str, Any] | None,
    identifiers: PuzzleIdentifiers | None = None,
    side_files: Mapping[str, bytes] = MappingProxyType({}),
    overwrite: bool = False,
) -> DatasetInfo:
    """Write a dataset folder, whole or not at all: it appears under its name when it is finished.

    The same rows and arguments give the same bytes (with the same pyarrow). Test rows that are training rows too are
    told of in a warning.

    Args:
        arguments: what the generator was called with, as JSON.
        symmetry: what `symmetries.symmetry_from` makes the augmentation of, or None.
        identifiers: what the puzzle identifiers stand for; None where all are 0.
        side_files: further files by name, for whoever evaluates.
        overwrite: replace the dataset that is there. A folder that is no dataset is never replaced.

    Raises:
        DatasetError: the folder exists, or a split is empty or breaks a rule of the format.
    """
    with owned_target(folder, overwrite=overwrite) as folder, _place_for(folder) as partial:
        identifiers = PuzzleIdentifiers.blank() if identifiers is None else identifiers
        info = DatasetInfo(
            format_version=FORMAT_VERSION,
            seq_len=_common_length(splits),
            vocab_size=vocab_size,
            pad_id=PAD_ID,
            ignored_label=IGNORED_LABEL,
            num_puzzle_identifiers=len(identifiers),
            splits={},
            generator=generator,
            arguments=dict(arguments),
            seed=seed,
            symmetry=dict(symmetry) if symmetry is not None else None,
            files={},
        )
        hashes = RowHashes()
        for name, rows in splits.items():
            info.splits[name] = _write_split(partial, name, rows, info, hashes)
        for name, content in {**side_files, IDENTIFIERS_NAME: identifiers.to_bytes()}.items():
            (partial / name).write_bytes(content)
            info.files[name] = sha256(partial / name)
        (partial / INFO_NAME).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
        _put_in_place(partial, folder)
    hashes.tell_shared(str(folder))
    return info


# ---- the folder that is written --------------------------------------------------------------------------

_OWNED: ContextVar[frozenset[Path]] = ContextVar("owned targets", default=frozenset())


@contextmanager
def owned_target(folder: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Hold the folder of a new dataset while this lasts, before any work is done for it; yield it, links followed.

    Who holds it already may ask again.

    Raises:
        DatasetError: as `check_target`.
        FolderInUse: another process is making a dataset there.
    """
    given, folder = folder, resolved(as_path(folder))
    if folder in _OWNED.get():
        yield folder
        return
    check_target(given, overwrite=overwrite)
    with Ownership(folder, f"--output {given}", "choose another --output"):
        before = _OWNED.set(_OWNED.get() | {folder})
        try:
            with settled(folder, DATASET, is_dataset):
                check_target(given, overwrite=overwrite)
                yield folder
        finally:
            _OWNED.reset(before)


_Prepare = TypeVar("_Prepare", bound=Callable[..., DatasetInfo])


def owns_output(prepare: _Prepare) -> _Prepare:
    """Have a function hold the folder that it makes a dataset in, its argument `output`, from its beginning on."""
    signature = inspect.signature(prepare)

    @functools.wraps(prepare)
    def owning(*args: Any, **named: Any) -> DatasetInfo:
        given = signature.bind(*args, **named)
        given.apply_defaults()
        with owned_target(given.arguments["output"], overwrite=given.arguments["overwrite"]):
            return prepare(*args, **named)

    return cast(_Prepare, owning)


@contextmanager
def _place_for(folder: Path) -> Iterator[Path]:
    """Give a folder to write a dataset into before it is put in its place: inside that, where a rename can reach it."""
    partial = Path(tempfile.mkdtemp(prefix="trm-ray-dataset-")) if is_remote(folder) else folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # a killed process's
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_dataset(folder: Path) -> bool:
    """Tell whether a folder holds a whole dataset."""
    return (folder / INFO_NAME).is_file() and not is_unfinished(folder)


def check_target(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written.

    Raises:
        DatasetError: it holds a dataset and `overwrite` is false, or it holds something else.
    """
    folder = as_path(folder)
    check_is_folder(folder, f"--output {folder}", "choose another --output")
    names = foreign_names(folder)
    if not names or is_unfinished(folder):
        return
    if not is_ours(folder, DATASET):
        way_out = "choose another --output or move it away"
        raise DatasetError(f"{folder} exists and is no dataset ({told_names(names)}); {way_out}")
    if not overwrite:
        raise DatasetError(f"{folder} already holds a dataset; pass --overwrite or choose another --output")


def _put_in_place(partial: Path, folder: Path) -> None:
    """Put the files of a dataset where they belong, dataset.json last, which makes a dataset of them."""
    set_aside(folder, DATASET)
    files = sorted((path for path in partial.rglob("*") if path.is_file()), key=lambda path: path.name == INFO_NAME)
    names = [str(file.relative_to(partial)) for file in files]
    put = _upload if is_remote(folder) else move
    with unfinished(folder, names), progress("files in place", len(files)) as advance:
        for file, name in zip(files, names, strict=True):
            put(file, folder / name)
            advance(1)


def _upload(file: Path, target: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    retried(functools.partial(target.upload, file), target)


def read_split(folder: str | Path, split: str) -> Rows:
    """Read a split into memory, rows in file order.

    Raises:
        DatasetError: the folder, the split or one of its files is missing or unreadable.
    """
    folder = as_path(folder)
    info = DatasetInfo.load(folder)
    parts = [_rows(folder, name, table, info.seq_len) for name, table in _tables(folder, info.split(split))]
    return _concatenate(parts)


def read_splits(folders: Sequence[str | Path], split: str) -> Rows:
    """Read the same split of several datasets, one after the other, their puzzles and groups kept apart."""
    parts = [read_split(folder, split) for folder in folders]
    shifts = number_shifts(folders, split)
    return _concatenate([shifted(rows, *shift) for rows, shift in zip(parts, shifts, strict=True)])


def first_puzzles(rows: Rows, count: int | None) -> Rows:
    """Keep the first puzzles, with all their rows; None keeps all."""
    puzzles, first = np.unique(rows.puzzles, return_index=True)
    if count is None or count >= len(puzzles):
        return rows
    return rows[np.flatnonzero(np.isin(rows.puzzles, puzzles[np.argsort(first)[:count]]))]


def number_shifts(folders: Sequence[str | Path], split: str) -> list[tuple[int, int]]:
    """Say what to add to the puzzles and groups of each dataset so that they differ from those before it."""
    import pyarrow.parquet as pq

    after, shifts = np.zeros(2, np.int64), []
    for folder in map(as_path, folders):
        shifts.append((int(after[0]), int(after[1])))
        if len(folders) > 1:
            files = DatasetInfo.load(folder).split(split).files
            numbers = [pq.read_table(local_file(folder / file), columns=["puzzle", "group"]) for file in files]
            after += np.max([[column.to_numpy().max() for column in table.columns] for table in numbers], axis=0) + 1
    return shifts


def shifted(rows: Rows, puzzle: int, group: int) -> Rows:
    """Add to the numbers of puzzles and groups."""
    return replace(rows, puzzles=rows.puzzles + np.int32(puzzle), groups=rows.groups + np.int32(group))


def read_identifiers(*folders: str | Path) -> PuzzleIdentifiers:
    """Read what the puzzle identifiers of a dataset stand for, or those of several that passed `open_datasets`.

    Raises:
        DatasetError: identifiers.json is missing or unreadable.
    """
    named = max(folders, key=lambda folder: DatasetInfo.load(folder).num_puzzle_identifiers)
    return _load_identifiers(as_path(named) / IDENTIFIERS_NAME)


def open_dataset(
    folder: str | Path,
    *,
    command_hint: str | None = None,
    require: Sequence[str] = (),
    hashes: RowHashes | None = None,
) -> DatasetInfo:
    """Validate a dataset folder, every file and every token of it, before it is trained on.

    Args:
        command_hint: the command that makes this dataset, for the error when it is missing.
        require: splits that must be there.
        hashes: is given all rows.

    Raises:
        DatasetError: one line that names the file, the row, the value, the rule and the way out.
    """
    folder = as_path(folder)
    if not folder.is_dir():
        told = f"make it with `{command_hint}`" if command_hint else "`trm-ray prepare --help` tells how to make one"
        raise DatasetError(f"the dataset folder {folder} does not exist; {told}")
    if not (folder / INFO_NAME).is_file() and (folder / "train" / INFO_NAME).is_file():
        command = f"trm-ray prepare import-original {folder} --output NEW"
        raise DatasetError(f"{folder} is a dataset of the original TRM code; run `{command}` and name NEW instead")
    try:
        info = DatasetInfo.load(folder)
        for name in require:
            info.split(name)
        _check_symmetry(info.symmetry, info.seq_len, info.vocab_size)
        _check_side_files(folder, info)
        for name, split in info.splits.items():
            _check_split(folder, name, split, info, hashes)
    except DatasetError as error:
        made = f", made with `{command_hint}`" if command_hint else ""
        raise DatasetError(f"{error} (dataset {folder}{made})") from error
    return info


def open_datasets(
    folders: Sequence[str | Path],
    *,
    command_hint: str | None = None,
    require: Sequence[str] = (),
    hashes: RowHashes | None = None,
) -> DatasetInfo:
    """Validate several datasets and describe them as one.

    The names in `SplitInfo.files` start with their dataset's folder, and rows and groups are summed. Identifiers mean
    the same puzzle in all of them, so at most one set of them may be there besides datasets that use none.

    Raises:
        DatasetError: one is bad, or they differ in what one model and one stream must share.
    """
    if not folders:
        raise DatasetError("data_paths is empty; name at least one dataset folder")
    infos = [open_dataset(folder, command_hint=command_hint, require=require, hashes=hashes) for folder in folders]
    for key in ("seq_len", "vocab_size", "symmetry"):
        for folder, info in zip(folders, infos, strict=True):
            _check_agreement(key, folders[0], infos[0], folder, info)
    check_same_identifiers(dict(zip(map(str, folders), infos, strict=True)))
    return _merged(folders, infos)


def check_same_identifiers(infos: Mapping[str, DatasetInfo]) -> None:
    """Refuse datasets, by name, whose identifiers mean different puzzles; those that use none go with all.

    Raises:
        DatasetError: two of them name different puzzles.
    """
    named = {name: info for name, info in infos.items() if info.num_puzzle_identifiers > 1}
    for name, info in named.items():
        first = next(iter(named))
        if info.files[IDENTIFIERS_NAME] != named[first].files[IDENTIFIERS_NAME]:
            raise DatasetError(
                f"the puzzle identifiers of {name} and {first} differ, and a model has one table of them; "
                "prepare them together as one dataset, or train on one of them"
            )


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


_INFO_TYPES: dict[str, type | tuple[type, ...]] = {
    "format_version": int,
    "seq_len": int,
    "vocab_size": int,
    "pad_id": int,
    "ignored_label": int,
    "num_puzzle_identifiers": int,
    "splits": dict,
    "generator": str,
    "arguments": dict,
    "seed": (int, type(None)),
    "symmetry": (dict, type(None)),
    "files": dict,
}
_SPLIT_TYPES: dict[str, type | tuple[type, ...]] = {
    "rows": int,
    "groups": int,
    "mean_puzzle_examples": (float, int),
    "files": dict,
}


def _check_keys(path: Path, raw: Mapping[str, Any]) -> None:
    _check_types(str(path), raw, _INFO_TYPES)
    for key in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
        if raw[key] < 1:
            raise DatasetError(f"{path}: {key}={raw[key]} must be at least 1")
    for key, value in (("pad_id", PAD_ID), ("ignored_label", IGNORED_LABEL)):
        if raw[key] != value:
            raise DatasetError(f"{path}: {key}={raw[key]} must be {value} in format {FORMAT_VERSION}")
    if IDENTIFIERS_NAME not in raw["files"]:
        raise DatasetError(f"{path}: files must name {IDENTIFIERS_NAME}; it names {', '.join(raw['files']) or 'none'}")


def _check_types(where: str, raw: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]) -> None:
    missing, surplus = sorted(types.keys() - raw.keys()), sorted(raw.keys() - types.keys())
    if missing or surplus:
        told = [f"{what} {', '.join(keys)}" for what, keys in (("lacks", missing), ("has", surplus)) if keys]
        raise DatasetError(f"{where}: not the keys of format {FORMAT_VERSION}: it {' and '.join(told)}")
    for key, kind in types.items():
        if not isinstance(raw[key], kind) or isinstance(raw[key], bool):
            raise DatasetError(f"{where}: {key}={raw[key]!r} has the wrong type")
        if isinstance(raw[key], int | float) and not abs(raw[key]) < 2**63:
            raise DatasetError(f"{where}: {key} must be a number of less than 64 bits")


# Parts of a path: none begins with a dot, so none leads up.
_FILE = re.compile(rf"{NAME}(/{NAME})*")


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Check that names stay inside the folder, links followed, and that each has a checksum."""
    for name, digest in files.items():
        if not _FILE.fullmatch(name) or not isinstance(digest, str):
            raise DatasetError(f"{folder / INFO_NAME}: files holds {name!r}: {digest!r}; it must be FILE: SHA-256")
        if not is_remote(folder) and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise DatasetError(f"{folder / name} is a link that leads out of the dataset; copy the file to its place")


def _split_info(path: Path, name: str, raw: Any) -> SplitInfo:
    if not isinstance(raw, dict):
        raise DatasetError(f"{path}: split {name} must be an object")
    _check_types(f"{path}: split {name}", raw, _SPLIT_TYPES)
    return SplitInfo(**raw)


def _common_length(splits: Mapping[str, Rows]) -> int:
    lengths = {name: rows.inputs.shape[1] for name, rows in splits.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"the splits must have one sequence length; got {lengths or 'no split'}")
    return next(iter(lengths.values()))


def _write_split(partial: Path, name: str, rows: Rows, info: DatasetInfo, hashes: RowHashes) -> SplitInfo:
    _check_filled(name, len(rows))
    for first in range(0, len(rows), ROWS_PER_ROW_GROUP):
        _check_tokens(name, first, rows[first : first + ROWS_PER_ROW_GROUP], info)
        hashes.add(name, rows[first : first + ROWS_PER_ROW_GROUP])
    _check_puzzles(name, rows.puzzles, rows.groups)
    (partial / name).mkdir(parents=True)
    num_parts = min(MAX_PARTS, max(1, len(rows) // MIN_ROWS_PER_PART))
    files = {}
    for part, chosen in enumerate(np.array_split(np.arange(len(rows)), num_parts)):
        file = f"{name}/part-{part:05d}.parquet"
        _write_part(partial / file, rows[chosen[0] : chosen[-1] + 1])
        files[file] = sha256(partial / file)
    return SplitInfo(len(rows), *_puzzle_counts(rows.puzzles, rows.groups), files)


def _write_part(path: Path, rows: Rows) -> None:
    """Write rows, a row group at a time: they may be mapped from a file larger than the memory."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _table(rows[:0]).schema, compression="zstd") as writer:
        for first in range(0, len(rows), ROWS_PER_ROW_GROUP):
            writer.write_table(_table(rows[first : first + ROWS_PER_ROW_GROUP]))


def _table(rows: Rows) -> pa.Table:
    import pyarrow as pa

    def boards(tokens: np.ndarray) -> pa.FixedSizeListArray:
        flat = pa.array(np.ascontiguousarray(tokens, np.int32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, tokens.shape[1])

    columns = (
        boards(rows.inputs),
        boards(rows.labels),
        *(pa.array(numbers, pa.int32()) for numbers in (rows.puzzle_identifiers, rows.puzzles, rows.groups)),
    )
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))


def sha256(path: Path) -> str:
    """Hash a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _puzzle_counts(puzzles: np.ndarray, groups: np.ndarray) -> tuple[int, float]:
    return len(np.unique(groups)), len(puzzles) / len(np.unique(puzzles))


def _load_identifiers(path: Path) -> PuzzleIdentifiers:
    try:
        return PuzzleIdentifiers.load(path)
    except ValueError as error:
        raise DatasetError(str(error)) from error


def _concatenate(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Rows)))


def _tables(folder: Path, split: SplitInfo, *, checked: bool = False) -> Iterator[tuple[str, pa.Table]]:
    """Yield (file name, a row group of it): a file may be larger than the memory.

    Args:
        checked: compare the checksum of each file before it is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, expected in split.files.items():
        if checked:
            _check_checksum(folder / name, expected)
        readable = local_file(folder / name)
        try:
            with pq.ParquetFile(readable) as file:
                for group in range(file.num_row_groups):
                    yield name, file.read_row_group(group)
        except FileNotFoundError as error:
            raise DatasetError(f"{folder / name} is missing") from error
        except (pa.ArrowException, OSError) as error:
            line = str(error).splitlines()[0]
            raise DatasetError(f"{folder / name} is not readable Parquet: {line}") from error
    drop_copy()


def _rows(folder: Path, name: str, table: pa.Table, seq_len: int) -> Rows:
    _check_columns(folder / name, table, seq_len)
    columns = [table.column(column).combine_chunks() for column in COLUMNS]
    # `.values` would ignore the offset of a slice; `.flatten()` respects it.
    boards = [column.flatten().to_numpy().reshape(-1, seq_len) for column in columns[:2]]
    return Rows(*boards, *(column.to_numpy() for column in columns[2:]))


def _check_columns(path: Path, table: pa.Table, seq_len: int) -> None:
    import pyarrow as pa

    if sorted(table.column_names) != sorted(COLUMNS):
        raise DatasetError(
            f"{path}: its columns are {', '.join(table.column_names)}; they must be {', '.join(COLUMNS)}"
        )
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


def _check_symmetry(symmetry: Mapping[str, Any] | None, seq_len: int, vocab_size: int) -> None:
    """Check what dataset.json names against the boards that it is for."""
    if symmetry is None:
        return
    name, box, side = symmetry.get("name"), symmetry.get("box"), math.isqrt(seq_len)
    if name not in ("sudoku", "dihedral", "arc"):
        raise DatasetError(f"symmetry={dict(symmetry)} is unknown; this release knows sudoku, dihedral and arc")
    boxes = {4: [2, 2], 6: [2, 3], 9: [3, 3]}
    fitting = {
        "sudoku": vocab_size == side + 2 and box is not None and box == boxes.get(side),
        "dihedral": True,
        "arc": (seq_len, vocab_size) == (900, 12),
    }
    if side * side != seq_len or not fitting[name]:
        told = f"seq_len={seq_len} and vocab_size={vocab_size}"
        raise DatasetError(f"symmetry={dict(symmetry)} is not for boards of {told}; make the dataset again")


def _check_filled(name: str, rows: int) -> None:
    if rows == 0:
        raise DatasetError(f"the {name} split is empty; it must hold at least one puzzle")


def _check_side_files(folder: Path, info: DatasetInfo) -> None:
    for file, expected in info.files.items():
        _check_checksum(folder / file, expected)
    found = len(_load_identifiers(folder / IDENTIFIERS_NAME))
    if found != info.num_puzzle_identifiers:
        raise DatasetError(
            f"{folder / IDENTIFIERS_NAME} names {found} identifiers; dataset.json says "
            f"num_puzzle_identifiers={info.num_puzzle_identifiers}"
        )


def _check_split(folder: Path, name: str, split: SplitInfo, info: DatasetInfo, hashes: RowHashes | None) -> None:
    seen, keys = 0, []
    with progress(f"{name} rows checked", split.rows) as advance:
        for file, table in _tables(folder, split, checked=True):
            rows = _rows(folder, file, table, info.seq_len)
            _check_tokens(name, seen, rows, info)
            if hashes is not None:
                hashes.add(name, rows)
            seen += len(rows)
            keys.append((rows.puzzles, rows.groups))
            advance(len(rows))
    _check_filled(name, seen)
    puzzles, groups = (np.concatenate(column) for column in zip(*keys, strict=True))
    _check_puzzles(name, puzzles, groups)
    found = (seen, *_puzzle_counts(puzzles, groups))
    for key, value in zip(("rows", "groups", "mean_puzzle_examples"), found, strict=True):
        if not np.isclose(value, getattr(split, key), rtol=1e-9, atol=0):
            raise DatasetError(f"the {name} split has {key}={value}; dataset.json says {getattr(split, key)}")


def _check_checksum(path: Path, expected: str) -> None:
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    found = sha256(local_file(path))
    if found != expected:
        raise DatasetError(
            f"{path}: the checksum does not match: SHA-256 {found[:12]}…, "
            f"dataset.json says {expected[:12]}…; the file was changed or damaged"
        )


def _check_tokens(name: str, first_row: int, rows: Rows, info: DatasetInfo) -> None:
    """Check every value of some rows, the first of which is row `first_row` of split `name`."""
    if rows.labels.shape != rows.inputs.shape:
        raise DatasetError(
            f"{name}: labels have {rows.labels.shape[1]} tokens and inputs {rows.inputs.shape[1]}; they must be equal"
        )
    vocab = f"vocab_size={info.vocab_size}"
    identifiers = f"num_puzzle_identifiers={info.num_puzzle_identifiers}"
    _check_range(f"{name} inputs", first_row, rows.inputs, info.vocab_size, vocab)
    _check_range(f"{name} labels", first_row, rows.labels, info.vocab_size, vocab, info.ignored_label)
    _check_range(
        f"{name} puzzle_identifier",
        first_row,
        rows.puzzle_identifiers,
        info.num_puzzle_identifiers,
        identifiers,
    )
    _check_range(f"{name} puzzle", first_row, rows.puzzles, 2**31, "2^31")
    _check_range(f"{name} group", first_row, rows.groups, 2**31, "2^31")


def _check_puzzles(name: str, puzzles: np.ndarray, groups: np.ndarray) -> None:
    """Check that a puzzle is in one group and, in the train split, that the puzzles of a group have equally many rows.

    Without the second, an epoch would have more rows or fewer as chance picks the puzzles, and no step would know where
    in the stream it stands.
    """
    pairs, rows = np.unique(groups.astype(np.int64) << 32 | puzzles, return_counts=True)
    group, puzzle = pairs >> 32, pairs & 0xFFFFFFFF
    again = np.flatnonzero(np.diff(np.sort(puzzle)) == 0)
    if len(again):
        number = np.sort(puzzle)[again[0]]
        told = " and ".join(map(str, group[puzzle == number][:2]))
        raise DatasetError(
            f"{name}: puzzle {number} is in groups {told}; it must be in one: number it anew in the other"
        )
    uneven = np.flatnonzero((np.diff(group) == 0) & (np.diff(rows) != 0))
    if name == "train" and len(uneven):
        first = uneven[0]
        raise DatasetError(
            f"{name}: puzzle {puzzle[first]} of group {group[first]} has {rows[first]} rows and puzzle "
            f"{puzzle[first + 1]} has {rows[first + 1]}; the puzzles of one group must have equally many: put these "
            "into groups of their own"
        )


def _check_range(
    what: str, first_row: int, values: np.ndarray, limit: int, told: str, ignored: int | None = None
) -> None:
    # One look at the extremes is all that good data costs; the exact place is searched for only in bad data.
    if values.size and values.min() >= 0 and values.max() < limit:
        return
    bad = (values < 0) | (values >= limit)
    if ignored is not None:
        bad &= values != ignored
    if bad.any():
        place = tuple(np.argwhere(bad)[0])
        cell = f", token {place[1]}" if values.ndim == 2 else ""
        allowed = f", or {ignored} where the loss must not look" if ignored is not None else ""
        raise DatasetError(
            f"{what}, row {first_row + place[0]}{cell}: {values[place]} must be at least 0 and below {told}{allowed}"
        )


def _check_agreement(key: str, first: str | Path, expected: DatasetInfo, folder: str | Path, info: DatasetInfo) -> None:
    here, there = getattr(info, key), getattr(expected, key)
    if here != there:
        raise DatasetError(
            f"datasets that are used together must agree: {key}={here} in {folder}, {there} in {first}; "
            "use datasets of one kind and size"
        )


def _merged(folders: Sequence[str | Path], infos: Sequence[DatasetInfo]) -> DatasetInfo:
    names = [name for name in infos[0].splits if all(name in info.splits for info in infos)]
    named = max(infos, key=lambda info: info.num_puzzle_identifiers)
    merged = {
        **{f.name: getattr(infos[0], f.name) for f in fields(DatasetInfo)},
        "num_puzzle_identifiers": named.num_puzzle_identifiers,
        "files": named.files,
        "splits": {name: _merged_split(name, folders, infos) for name in names},
    }
    return DatasetInfo(**merged)


def _merged_split(name: str, folders: Sequence[str | Path], infos: Sequence[DatasetInfo]) -> SplitInfo:
    splits = [info.splits[name] for info in infos]
    rows = sum(split.rows for split in splits)
    return SplitInfo(
        rows=rows,
        groups=sum(split.groups for split in splits),
        mean_puzzle_examples=rows / sum(split.rows / split.mean_puzzle_examples for split in splits),
        files={
            str(as_path(folder) / file): digest
            for folder, split in zip(folders, splits, strict=True)
            for file, digest in split.files.items()
        },
    )
