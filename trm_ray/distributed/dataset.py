"""Token datasets as Ray Data: Parquet files to tensor blocks in the object store, and back to rows in a worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray.data

from trm_ray.data.format import COLUMNS, DatasetInfo, number_shifts
from trm_ray.data.rows import Rows, shifted
from trm_ray.data.stream import SHUFFLE_ROWS
from trm_ray.storage import arrow_filesystem, storage_key

# Blocks a worker: what `streaming_split` can deal out.
_BLOCKS_PER_WORKER = 8


def load_split(folders: Sequence[Path], split: str, num_workers: int = 1) -> Any:
    """Read a split with Ray Data and hold it in the object store, as one tensor column a field.

    Held, because a lazy dataset costs seconds at every epoch and its tasks compete for CPUs with the training workers,
    to the point of deadlock.
    """
    parts = zip(folders, number_shifts(folders, split), strict=True)
    first, *others = [_load_folder(folder, split, shift) for folder, shift in parts]
    dataset = first.union(*others) if others else first
    dataset.context.execution_options.preserve_order = True  # the same blocks, so the same shards, in every run
    return dataset.repartition(_BLOCKS_PER_WORKER * num_workers).materialize()


def _load_folder(folder: Path, split: str, shift: tuple[int, int]) -> Any:
    # Those of dataset.json, which were checked: the folder may hold others, such as a Mac's `._part-00000.parquet`.
    files = sorted(folder / file for file in DatasetInfo.load(folder).split(split).files)
    dataset = ray.data.read_parquet([storage_key(file) for file in files], filesystem=arrow_filesystem(folder))
    return dataset.map_batches(_to_tensors, batch_format="pyarrow", fn_args=shift)


def _to_tensors(table: pa.Table, puzzle_shift: int, group_shift: int) -> dict[str, np.ndarray]:
    """Cast fixed-size lists to matrices once; Ray Data would give them as arrays of objects."""

    def column(name: str) -> np.ndarray:
        array = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(array.type):
            return array.flatten().to_numpy().reshape(len(table), -1)
        return array.to_numpy()

    rows = shifted(Rows(*map(column, COLUMNS)), puzzle_shift, group_shift)
    return {name: getattr(rows, field.name) for name, field in zip(COLUMNS, fields(rows), strict=True)}


def ray_storage(folder: Path) -> dict[str, Any]:
    """Say where Ray Train or Tune keeps its notes, as its `RunConfig` takes it."""
    filesystem = arrow_filesystem(folder)
    arrow = None if filesystem is None else pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem))
    return {"storage_path": storage_key(folder), "storage_filesystem": arrow}


def iter_rows(source: Any) -> Iterator[Rows]:
    """Read a dataset, or a worker's shard of it, in pieces that are shuffled as a whole."""
    batches: Iterable[dict[str, np.ndarray]] = source.iter_batches(batch_size=SHUFFLE_ROWS, batch_format="numpy")
    for batch in batches:
        yield Rows(*(np.ascontiguousarray(batch[name]) for name in COLUMNS))


def read_rows(source: Any) -> Rows:
    """Read a whole dataset into memory."""
    pieces = list(iter_rows(source))
    return Rows(*(np.concatenate([getattr(p, name) for p in pieces]) for name in Rows.__dataclass_fields__))
