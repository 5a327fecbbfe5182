"""Ray Data hands out the rows that the files hold, in their order."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from helpers import sudoku
from run_helpers import write_puzzles

from trm_ray.data.format import DatasetInfo, read_split, read_splits
from trm_ray.data.rows import Rows, TokenBatch
from trm_ray.data.stored import StoredSplit
from trm_ray.data.stream import RowStream
from trm_ray.distributed.dataset import load_split, read_in_order, read_rows, reader_options

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def loaded(puzzles: Path) -> Any:
    return load_split([puzzles], "train")


@pytest.fixture(scope="module")
def two_folders(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    other = tmp_path_factory.mktemp("data") / "other"
    folders = [puzzles, write_puzzles(other, sudoku(11, seed=5), sudoku(4, seed=6))]
    (other / "train" / "._part-00000.parquet").write_bytes(b"what a Mac's archive leaves")
    return folders


@pytest.fixture(scope="module")
def loaded_for_two(two_folders: list[Path]) -> Any:
    return load_split(two_folders, "train")


def lines(rows: Rows) -> np.ndarray:
    return np.column_stack([rows.inputs, rows.labels, rows.puzzle_identifiers, rows.puzzles, rows.groups])


def in_any_order(table: np.ndarray) -> np.ndarray:
    return table[np.lexsort(table.T)]


def test_a_split_in_several_files_is_read_whole(loaded: Any, puzzles: Path):
    assert len(DatasetInfo.load(puzzles).split("train").files) == 3
    rows, expected = read_rows(loaded), read_split(puzzles, "train")
    assert np.array_equal(in_any_order(lines(rows)), in_any_order(lines(expected)))
    assert {array.dtype for array in vars(rows).values()} == {np.dtype("int32")}


def test_readers_that_are_lost_fail_their_worker_where_ray_can_be_told_so(monkeypatch: pytest.MonkeyPatch):
    told = reader_options()["ray_remote_args_fn"]
    assert told() == {"max_restarts": 0, "max_task_retries": 0}
    monkeypatch.setattr(ray.data.Dataset, "map_batches", lambda self, fn, *, compute=None: self)  # as 2.64's is to be
    assert reader_options() == {}


def test_a_split_can_be_read_again(loaded: Any):
    assert [len(read_rows(loaded)) for _ in range(2)] == [768, 768]


def test_several_folders_are_one_dataset(loaded_for_two: Any, two_folders: list[Path]):
    rows, expected = read_rows(loaded_for_two), read_splits(two_folders, "train")
    assert len(rows) == len(set(rows.puzzles)) == len(set(rows.groups)) == 768 + 11
    assert np.array_equal(in_any_order(lines(rows)), in_any_order(lines(expected)))


def test_rows_come_in_the_order_of_the_files(loaded: Any, puzzles: Path, loaded_for_two: Any, two_folders: list[Path]):
    """Workers get the same shards in every run, and evaluations sum the same batches, only if the order is the same."""
    assert np.array_equal(lines(read_rows(loaded)), lines(read_split(puzzles, "train")))
    assert np.array_equal(lines(read_rows(loaded_for_two)), lines(read_splits(two_folders, "train")))


def test_chunks_that_ray_data_reads_give_the_batches_that_are_read_without_ray(two_folders: list[Path]):
    """While somebody else holds every CPU, as training workers may."""
    alone, streamed = (
        StoredSplit.of(two_folders, "train", memory_gib=8 * 8 * 16 * 256 / 2**30, in_order=in_order)
        for in_order in (map, read_in_order)
    )
    assert alone.num_chunks > 2
    for rank, start in ((0, 0), (1, 50)):
        place: dict[str, Any] = {"batch_size": 48, "seed": 3, "symmetry": None, "rank": rank, "world_size": 2}
        with holding_every_cpu():
            found = list(islice(RowStream(streamed, **place).batches(start), 40))
        for one, two in zip(found, RowStream(alone, **place).batches(start), strict=False):
            for of in fields(TokenBatch):
                assert np.array_equal(getattr(one, of.name), getattr(two, of.name))


@contextmanager
def holding_every_cpu() -> Iterator[None]:
    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Holder:
        def holds(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.holds.remote())
    assert ray.available_resources().get("CPU", 0) == 0
    yield
    ray.kill(holder)
