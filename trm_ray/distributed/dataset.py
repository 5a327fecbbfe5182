"""Token datasets as Ray Data: Parquet files to tensor blocks in the object store, and back to rows in a worker."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray.data

from trm_ray.data.chunk import NamedRows
from trm_ray.data.format import COLUMNS, DatasetInfo, number_shifts
from trm_ray.data.rows import Rows, shifted
from trm_ray.distributed import VERBOSE
from trm_ray.storage import arrow_filesystem, storage_key

# Chunks of one execution of Ray Data, each of which takes a second or two to start.
_CHUNKS_AT_ONCE = 256
_READERS = 2  # of a worker: one holds the chunk that it trains on, one the next
_PIECE_BYTES = 2**23  # of a chunk, in the object store


def load_split(folders: Sequence[Path], split: str) -> Any:
    """Read a split with Ray Data and hold it in the object store, as one tensor column a field.

    Held, because a lazy dataset costs seconds at every epoch and its tasks compete for CPUs with the training workers,
    to the point of deadlock.
    """
    parts = zip(folders, number_shifts(folders, split), strict=True)
    first, *others = [_load_folder(folder, split, shift) for folder, shift in parts]
    dataset = first.union(*others) if others else first
    dataset.context.execution_options.preserve_order = True  # evaluations sum the same batches in every run
    return dataset.materialize()


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


def read_rows(source: Any) -> Rows:
    """Read a whole dataset into memory."""
    blocks = list(source.iter_batches(batch_size=None, batch_format="numpy"))
    return Rows(*(np.concatenate([block[name] for block in blocks]) for name in COLUMNS))


def read_in_order(read: Callable[[int], NamedRows], numbers: Iterator[int]) -> Iterator[NamedRows]:
    """Read chunks by two actors of Ray Data; yield each in pieces, in the order of `numbers`.

    The actors ask for no CPU: workers may hold all of them, and would wait for rows that nobody could read. While a
    worker trains on the chunk of one the other reads the next, and both wait once the object store holds some pieces.
    Tasks would do too, but Ray ends processes that idle for a second where training workers take the CPUs, and a new
    one costs more time than to read a chunk.
    """
    while some := list(itertools.islice(numbers, _CHUNKS_AT_ONCE)):
        with ray.data.DataContext.current(_streaming_context()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the option of `reader_options`, which is to go
            dataset = ray.data.from_items(some, override_num_blocks=len(some)).map_batches(
                _Reader,
                fn_constructor_args=(read,),
                batch_size=None,
                num_cpus=0,
                compute=ray.data.ActorPoolStrategy(size=_READERS, max_tasks_in_flight_per_actor=1),
                **reader_options(),
            )
        for piece in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            yield NamedRows(**piece)


def reader_options() -> dict[str, Any]:
    """Have a reader that is lost fail its worker, which `ray.max_failures` replaces, where Ray can be told so.

    Ray would start it anew, and say so at the end of every run, when it ends the readers itself. The option is to go
    with Ray 2.64, and up to 2.60 no other takes its place: without it a run streams as well, and ends with that word.
    """
    known = inspect.signature(ray.data.Dataset.map_batches).parameters
    return {"ray_remote_args_fn": _lost_for_good} if "ray_remote_args_fn" in known else {}


def _lost_for_good() -> dict[str, int]:
    return {"max_restarts": 0, "max_task_retries": 0}


class _Reader:
    """What Ray Data makes an actor of."""

    def __init__(self, read: Callable[[int], NamedRows]):
        self._read = read

    def __call__(self, numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (number,) = numbers["item"]
        return vars(self._read(int(number)))


def _streaming_context() -> Any:
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = _PIECE_BYTES
    context.enable_progress_bars = VERBOSE
    return context
