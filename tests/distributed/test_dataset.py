"""Ray Data hands out the rows that the files hold, in their order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from helpers import sudoku
from run_helpers import write_puzzles

from trm_ray.data.format import DatasetInfo, read_split, read_splits
from trm_ray.data.rows import Rows
from trm_ray.distributed.dataset import iter_rows, load_split, read_rows

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
    return load_split(two_folders, "train", num_workers=2)


def lines(rows: Rows) -> np.ndarray:
    return np.column_stack([rows.inputs, rows.labels, rows.puzzle_identifiers, rows.puzzles, rows.groups])


def in_any_order(table: np.ndarray) -> np.ndarray:
    return table[np.lexsort(table.T)]


def test_a_split_in_several_files_is_read_whole(loaded: Any, puzzles: Path):
    assert len(DatasetInfo.load(puzzles).split("train").files) == 3
    rows, expected = read_rows(loaded), read_split(puzzles, "train")
    assert np.array_equal(in_any_order(lines(rows)), in_any_order(lines(expected)))
    assert {array.dtype for array in vars(rows).values()} == {np.dtype("int32")}


def test_an_epoch_can_be_read_again(loaded: Any):
    assert [sum(map(len, iter_rows(loaded))) for _ in range(2)] == [768, 768]


def test_several_folders_are_one_dataset(loaded_for_two: Any, two_folders: list[Path]):
    rows, expected = read_rows(loaded_for_two), read_splits(two_folders, "train")
    assert len(rows) == len(set(rows.puzzles)) == len(set(rows.groups)) == 768 + 11
    assert np.array_equal(in_any_order(lines(rows)), in_any_order(lines(expected)))


def test_rows_come_in_the_order_of_the_files(loaded: Any, puzzles: Path, loaded_for_two: Any, two_folders: list[Path]):
    """Workers get the same shards in every run, and evaluations sum the same batches, only if the order is the same."""
    assert np.array_equal(lines(read_rows(loaded)), lines(read_split(puzzles, "train")))
    assert np.array_equal(lines(read_rows(loaded_for_two)), lines(read_splits(two_folders, "train")))


def test_two_workers_get_equally_many_rows_and_none_twice(loaded_for_two: Any):
    @ray.remote(num_cpus=0.5)
    def read(shard: Any) -> list[bytes]:  # a puzzle's identifier tells it apart from its like
        rows = read_rows(shard)
        return [inputs.tobytes() + n.tobytes() for inputs, n in zip(rows.inputs, rows.puzzle_identifiers, strict=True)]

    first, second = ray.get([read.remote(shard) for shard in loaded_for_two.streaming_split(2, equal=True)])
    assert len(first) == len(second) == (768 + 11) // 2
    assert not set(first) & set(second)
