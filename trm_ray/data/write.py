"""Writing a dataset folder, whole or not at all."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from trm_ray.data.check import RowHashes, check_filled, check_puzzles, check_tokens, puzzle_counts
from trm_ray.data.format import (
    COLUMNS,
    FORMAT_VERSION,
    IDENTIFIERS_NAME,
    INFO_NAME,
    ROWS_PER_ROW_GROUP,
    DatasetInfo,
    SplitInfo,
    TextInfo,
    is_dataset,
)
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.progress import progress
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID, DatasetError, Rows
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
from trm_ray.storage import as_path, check_is_folder, is_remote, move, resolved, retried, sha256

if TYPE_CHECKING:
    import pyarrow as pa

# Several files, so that several tasks read them and that small splits too have row groups to shuffle.
MAX_PARTS, MIN_ROWS_PER_PART = 8, 256


def write_dataset(
    folder: str | Path,
    splits: Mapping[str, Rows],
    *,
    vocab_size: int,
    generator: str,
    arguments: Mapping[str, Any],
    seed: int | None,
    symmetry: Mapping[str, Any] | None,
    kind: str = "tokens",
    identifiers: PuzzleIdentifiers | None = None,
    side_files: Mapping[str, bytes] = MappingProxyType({}),
    text: TextInfo | None = None,
    overwrite: bool = False,
) -> DatasetInfo:
    """Write a dataset folder, whole or not at all: it appears under its name when it is finished.

    The same rows and arguments give the same bytes (with the same pyarrow). Test rows that are training rows too are
    told of in a warning.

    Args:
        arguments: what the generator was called with, as JSON.
        symmetry: what `kinds.registry.symmetry_from` makes the augmentation of, or None.
        kind: what the tokens spell, a name of `kinds.registry.KINDS`: for boards, rules and symmetry.
        identifiers: what the puzzle identifiers stand for; None where all are 0.
        side_files: further files by name, for whoever evaluates.
        text: what the tokens spell, where they are those of a text.
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
            kind=kind,
            text=text,
        )
        hashes = RowHashes()
        for name, rows in splits.items():
            info.splits[name] = _write_split(partial, name, rows, info, hashes)
        finish_dataset(partial, folder, info, {**side_files, IDENTIFIERS_NAME: identifiers.to_bytes()})
    hashes.tell_shared(str(folder))
    return info


def finish_dataset(partial: Path, folder: Path, info: DatasetInfo, side_files: Mapping[str, bytes]) -> None:
    """Write what lies beside the splits, which are in the folder `partial`, and put all of it in place."""
    for name, content in side_files.items():
        (partial / name).write_bytes(content)
        info.files[name] = sha256(partial / name)
    told = {key: value for key, value in asdict(info).items() if key != "text" or value is not None}
    (partial / INFO_NAME).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    _put_in_place(partial, folder)


_LOG = logging.getLogger("trm_ray")
_OWNED: ContextVar[frozenset[Path]] = ContextVar("owned targets", default=frozenset())


@contextmanager
def owned_target(folder: str | Path, *, overwrite: bool) -> Iterator[Path]:
    """Hold the folder of a new dataset while this lasts, before any work is done for it; yield it, links followed.

    Who holds it already may ask again.

    Raises:
        DatasetError: as `check_target`.
        FolderInUse: another process is making a dataset there.
    """
    given = as_path(folder)
    folder = resolved(given)
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


@contextmanager
def lasting_place(folder: Path) -> Iterator[Path]:
    """Give a folder to work in for a new dataset that a process which is killed or stopped leaves to the next.

    It lies inside the dataset's folder; where that is on object storage, on this machine, and the next begins anew.
    After an error it is left only if something finished is in it, which is what has no dot before its name.
    """
    if is_remote(folder):
        with _place_for(folder) as partial:
            yield partial
        return
    partial = folder / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    except Exception:
        if all(path.name.startswith(".") for path in partial.iterdir()):
            shutil.rmtree(partial, ignore_errors=True)
        else:
            _LOG.warning("what was finished stays in %s for the same command; remove it if there will be none", partial)
        raise
    shutil.rmtree(partial, ignore_errors=True)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that must not be written.

    Raises:
        DatasetError: it holds a dataset and `overwrite` is false, or it holds something else.
    """
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


def _common_length(splits: Mapping[str, Rows]) -> int:
    lengths = {name: rows.inputs.shape[1] for name, rows in splits.items()}
    if len(set(lengths.values())) != 1:
        raise DatasetError(f"the splits must have one sequence length; got {lengths or 'no split'}")
    return next(iter(lengths.values()))


def _write_split(partial: Path, name: str, rows: Rows, info: DatasetInfo, hashes: RowHashes) -> SplitInfo:
    check_filled(name, len(rows))
    for first in range(0, len(rows), ROWS_PER_ROW_GROUP):
        check_tokens(name, first, rows[first : first + ROWS_PER_ROW_GROUP], info)
        if not info.is_running_text:
            hashes.add(name, rows[first : first + ROWS_PER_ROW_GROUP])
    check_puzzles(name, rows.puzzles, rows.groups)
    (partial / name).mkdir(parents=True)
    num_parts = min(MAX_PARTS, max(1, len(rows) // MIN_ROWS_PER_PART))
    files = {}
    for part, chosen in enumerate(np.array_split(np.arange(len(rows)), num_parts)):
        file = f"{name}/part-{part:05d}.parquet"
        write_part(partial / file, rows[chosen[0] : chosen[-1] + 1])
        files[file] = sha256(partial / file)
    return SplitInfo(len(rows), *puzzle_counts(rows.puzzles, rows.groups), files)


def write_part(path: Path, rows: Rows, **packing: Any) -> None:
    """Write a file of rows, a row group at a time: they may be mapped from a file larger than the memory.

    Args:
        packing: options of pyarrow's writer beside zstd.
    """
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _table(rows[:0]).schema, compression="zstd", **packing) as writer:
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
