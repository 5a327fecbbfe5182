"""Ray Data hands out the rows that the files hold."""

from pathlib import Path

import numpy as np
import pytest
from helpers import sudoku
from run_helpers import some_puzzles, write_puzzles

from trm_ray.data.schema import DatasetInfo, Rows, read_split, read_splits
from trm_ray.distributed.dataset import iter_rows, load_split, read_rows

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def as_table(rows: Rows) -> np.ndarray:
    """One line a row, in an order that does not depend on theirs."""
    table = np.column_stack([rows.inputs, rows.labels, rows.puzzle_identifiers, rows.groups])
    return table[np.lexsort(table.T)]


def test_a_split_in_several_files_is_read_whole(puzzles: Path):
    assert len(DatasetInfo.load(puzzles).split("train").files) == 3
    rows = read_rows(load_split([puzzles], "train"))
    expected = read_split(puzzles, "train")
    assert np.array_equal(as_table(rows), as_table(expected))
    assert {array.dtype for array in vars(rows).values()} == {np.dtype("int32")}


def test_rows_come_in_the_order_of_the_files_every_time(puzzles: Path):
    expected = read_split(puzzles, "train").inputs
    for num_workers in (1, 2, 1):
        assert np.array_equal(read_rows(load_split([puzzles], "train", num_workers)).inputs, expected)


def test_an_epoch_can_be_read_again(puzzles: Path):
    dataset = load_split([puzzles], "test")
    epochs = [sum(map(len, iter_rows(dataset))) for _ in range(2)]
    assert epochs == [65, 65]


def test_several_folders_are_one_dataset(tmp_path: Path, puzzles: Path):
    other = write_puzzles(tmp_path / "other", sudoku(10, seed=5), sudoku(4, seed=6))
    rows = read_rows(load_split([puzzles, other], "train"))
    expected = read_splits([puzzles, other], "train")
    assert len(rows) == 768 + 10
    assert sorted(rows.inputs.tolist()) == sorted(expected.inputs.tolist())


def test_two_workers_get_equally_many_rows_and_none_twice(tmp_path: Path):
    folder = some_puzzles(tmp_path / "data", train=41, test=4)
    whole = load_split([folder], "train", 2)
    shards = whole.streaming_split(2, equal=True)
    import ray

    @ray.remote(num_cpus=0.5)
    def read(shard: object) -> list[list[int]]:
        rows = read_rows(shard)
        return np.column_stack([rows.inputs, rows.groups]).tolist()

    first, second = ray.get([read.remote(shard) for shard in shards])
    assert len(first) == len(second) == 20
    groups = [row[-1] for row in first + second]
    assert len(set(groups)) == 40
