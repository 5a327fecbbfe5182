"""Datasets held to the rules of their format: every file, every row and every token, before anything is trained on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.config.errors import printable
from trm_ray.data.counters import counter_draws, mixed
from trm_ray.data.format import (
    IDENTIFIERS_NAME,
    INFO_NAME,
    DatasetInfo,
    SplitInfo,
    check_checksum,
    load_identifiers,
    row_groups,
    rows_of_table,
)
from trm_ray.data.progress import progress
from trm_ray.data.rows import DatasetError, Rows
from trm_ray.storage import as_path

_LOG = logging.getLogger("trm_ray")


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
            what = f"{int(shared.sum()):,} of {len(test):,} test rows are also training rows"
            first = f"the first is test row {int(shared.argmax())}"
            _warn_once(f"{where}: {what} ({first}): accuracy counts what was learnt by heart; take them out of a split")


@functools.cache
def _warn_once(text: str) -> None:
    _LOG.warning("%s", printable(text))


def _row_hashes(rows: Rows) -> np.ndarray:
    """Name each row by what makes it one with another, see `RowHashes`: (N,) uint64."""
    weights = counter_draws(0, 0, np.arange(2 * rows.inputs.shape[1]), 1)[:, 0]
    asked, answered = np.split(weights, 2)
    hashes = mixed(rows.inputs.astype(np.uint64) @ asked)
    named = rows.puzzle_identifiers > 0
    if named.any():
        hashes[named] += mixed(rows.labels[named].astype(np.uint64) @ answered)
    return hashes


def open_dataset(
    folder: Path,
    *,
    command_hint: str | None = None,
    require: Sequence[str] = (),
    hashes: RowHashes | None = None,
    also: Callable[[DatasetInfo], None] = lambda info: None,
) -> DatasetInfo:
    """Validate a dataset folder, every file and every token of it, before it is trained on.

    Args:
        command_hint: the command that makes this dataset, for the error when it is missing.
        require: splits that must be there.
        hashes: is given all rows.
        also: raises a DatasetError for what else must hold, such as `kinds.registry.check_kind`.

    Raises:
        DatasetError: one line that names the file, the row, the value, the rule and the way out.
    """
    if not folder.is_dir():
        way_out = f"make it with `{command_hint}`" if command_hint else "`trm-ray prepare --help` tells how to make one"
        raise DatasetError(f"the dataset folder {folder} does not exist; {way_out}")
    if not (folder / INFO_NAME).is_file() and (folder / "train" / INFO_NAME).is_file():
        command = f"trm-ray prepare import-original {folder} --output NEW"
        raise DatasetError(f"{folder} is a dataset of the original TRM code; run `{command}` and name NEW instead")
    try:
        info = DatasetInfo.load(folder)
        for name in require:
            info.split(name)
        also(info)
        _check_side_files(folder, info)
        for name, split in info.splits.items():
            _check_split(folder, name, split, info, hashes)
    except DatasetError as error:
        made = f", made with `{command_hint}`" if command_hint else ""
        raise DatasetError(f"{error} (dataset {folder}{made})") from error
    return info


def open_datasets(
    named: Sequence[str | Path],
    *,
    command_hint: str | None = None,
    require: Sequence[str] = (),
    hashes: RowHashes | None = None,
    also: Callable[[DatasetInfo], None] = lambda info: None,
) -> DatasetInfo:
    """Validate several datasets and describe them as one.

    The names in `SplitInfo.files` start with their dataset's folder, and rows and groups are summed. Identifiers mean
    the same puzzle in all of them, so at most one set of them may be there besides datasets that use none.

    Raises:
        DatasetError: one is bad, or they differ in what one model and one stream must share.
    """
    folders = [as_path(name) for name in named]
    if not folders:
        raise DatasetError("data_paths is empty; name at least one dataset folder")
    options: dict[str, Any] = {"command_hint": command_hint, "require": require, "hashes": hashes, "also": also}
    infos = [open_dataset(folder, **options) for folder in folders]
    for key in ("seq_len", "vocab_size", "symmetry"):
        for folder, info in zip(folders, infos, strict=True):
            _check_agreement(key, getattr(info, key), getattr(infos[0], key), folder, folders[0])
    for folder, info in zip(folders, infos, strict=True):
        _check_agreement("text", _spelt(info), _spelt(infos[0]), folder, folders[0])
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


def check_filled(name: str, rows: int) -> None:
    """Refuse a split without rows."""
    if rows == 0:
        raise DatasetError(f"the {name} split is empty; it must hold at least one puzzle")


def _check_side_files(folder: Path, info: DatasetInfo) -> None:
    for file, expected in info.files.items():
        check_checksum(folder / file, expected)
    found = len(load_identifiers(folder / IDENTIFIERS_NAME))
    if found != info.num_puzzle_identifiers:
        raise DatasetError(
            f"{folder / IDENTIFIERS_NAME} names {found} identifiers; dataset.json says "
            f"num_puzzle_identifiers={info.num_puzzle_identifiers}"
        )


def _check_split(folder: Path, name: str, split: SplitInfo, info: DatasetInfo, hashes: RowHashes | None) -> None:
    seen, numbers = 0, _Numbers()
    with progress(f"{name} rows checked", split.rows) as advance:
        for file, table in row_groups(folder, split, checked=True):
            rows = rows_of_table(folder, file, table, info.seq_len)
            check_tokens(name, seen, rows, info)
            if hashes is not None and not info.is_running_text:  # of which whole documents were compared
                hashes.add(name, rows)
            seen += len(rows)
            numbers.add(rows)
            advance(len(rows))
    check_filled(name, seen)
    found = (seen, *numbers.checked(name))
    for key, value in zip(("rows", "groups", "mean_puzzle_examples"), found, strict=True):
        if not np.isclose(value, getattr(split, key), rtol=1e-9, atol=0):
            raise DatasetError(f"the {name} split has {key}={value}; dataset.json says {getattr(split, key)}")


class _Numbers:
    """Collect the puzzles and groups of rows, which may be many: nothing is kept while both number the rows."""

    def __init__(self) -> None:
        self._numbered = 0  # rows, from the first on
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        own = np.arange(self._numbered, self._numbered + len(rows))
        if not self._parts and np.array_equal(rows.puzzles, own) and np.array_equal(rows.groups, own):
            self._numbered += len(rows)
        else:
            self._parts.append((rows.puzzles, rows.groups))

    def checked(self, name: str) -> tuple[int, float]:
        """Check them as `check_puzzles` does, and count them as `puzzle_counts` does."""
        if not self._parts:
            return self._numbered, 1.0
        own = np.arange(self._numbered, dtype=np.int32)
        puzzles, groups = (np.concatenate([own, *column]) for column in zip(*self._parts, strict=True))
        check_puzzles(name, puzzles, groups)
        return puzzle_counts(puzzles, groups)


def check_tokens(name: str, first_row: int, rows: Rows, info: DatasetInfo) -> None:
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
        f"{name} puzzle_identifier", first_row, rows.puzzle_identifiers, info.num_puzzle_identifiers, identifiers
    )
    _check_range(f"{name} puzzle", first_row, rows.puzzles, 2**31, "2^31")
    _check_range(f"{name} group", first_row, rows.groups, 2**31, "2^31")


def check_puzzles(name: str, puzzles: np.ndarray, groups: np.ndarray) -> None:
    """Check that a puzzle is in one group and, in the train split, that the puzzles of a group have equally many rows.

    Without the second, an epoch would have more rows or fewer as chance picks the puzzles, and no step would know where
    in the stream it stands.
    """
    pairs, rows = np.unique(groups.astype(np.int64) << 32 | puzzles, return_counts=True)
    group, puzzle = pairs >> 32, pairs & 0xFFFFFFFF
    again = np.flatnonzero(np.diff(np.sort(puzzle)) == 0)
    if len(again):
        number = np.sort(puzzle)[again[0]]
        groups_of_it = " and ".join(map(str, group[puzzle == number][:2]))
        rule = "it must be in one: number it anew in the other"
        raise DatasetError(f"{name}: puzzle {number} is in groups {groups_of_it}; {rule}")
    uneven = np.flatnonzero((np.diff(group) == 0) & (np.diff(rows) != 0))
    if name == "train" and len(uneven):
        first = uneven[0]
        raise DatasetError(
            f"{name}: puzzle {puzzle[first]} of group {group[first]} has {rows[first]} rows and puzzle "
            f"{puzzle[first + 1]} has {rows[first + 1]}; the puzzles of one group must have equally many: put these "
            "into groups of their own"
        )


def _check_range(
    what: str, first_row: int, values: np.ndarray, limit: int, below: str, ignored: int | None = None
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
            f"{what}, row {first_row + place[0]}{cell}: {values[place]} must be at least 0 and below {below}{allowed}"
        )


def _spelt(info: DatasetInfo) -> str | None:
    """Say what the tokens of a text mean; None of other tokens."""
    if info.text is None:
        return None
    return f"tokens of {info.text.tokenizer} ({info.text.tokenizer_sha256[:12]}…), {info.text.packing}"


def _check_agreement(key: str, here: Any, there: Any, folder: Path, first: Path) -> None:
    if here != there:
        raise DatasetError(
            f"datasets that are used together must agree: {key}={here} in {folder}, {there} in {first}; "
            "use datasets of one kind and size"
        )


def _merged(folders: Sequence[Path], infos: Sequence[DatasetInfo]) -> DatasetInfo:
    names = [name for name in infos[0].splits if all(name in info.splits for info in infos)]
    named = max(infos, key=lambda info: info.num_puzzle_identifiers)
    splits = {name: _merged_split(name, folders, infos) for name in names}
    counted = named.num_puzzle_identifiers
    return replace(infos[0], num_puzzle_identifiers=counted, files=named.files, splits=splits)


def _merged_split(name: str, folders: Sequence[Path], infos: Sequence[DatasetInfo]) -> SplitInfo:
    splits = [info.splits[name] for info in infos]
    rows = sum(split.rows for split in splits)
    return SplitInfo(
        rows=rows,
        groups=sum(split.groups for split in splits),
        mean_puzzle_examples=rows / sum(split.rows / split.mean_puzzle_examples for split in splits),
        files={
            str(folder / file): digest
            for folder, split in zip(folders, splits, strict=True)
            for file, digest in split.files.items()
        },
    )


def puzzle_counts(puzzles: np.ndarray, groups: np.ndarray) -> tuple[int, float]:
    """Count groups, and the examples of a puzzle on average."""
    return len(np.unique(groups)), len(puzzles) / len(np.unique(puzzles))
