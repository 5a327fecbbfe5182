"""A split that does not fit into memory: the same batches for whoever reads it, in an order that the seed decides."""

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from stream_helpers import Marked, assert_same, batches, joined, numbers, rows_of, sudoku_rows

from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.data.stored import StoredSplit
from trm_ray.data.stream import RowStream
from trm_ray.data.write import write_dataset
from trm_ray.kinds.sudoku.symmetry import SudokuSymmetry

OF_A_FILE = 262
ROWS = 8 * OF_A_FILE  # in eight files, each a row group


def gib_for(chunk_rows, seq_len):
    """How much memory makes chunks of so many rows: they are an eighth of it, as int32 inputs and labels."""
    return 8 * chunk_rows * 2 * 4 * seq_len / 2**30


def written(folder, rows, vocab_size=3000):
    told = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": None}
    names = PuzzleIdentifiers.plain([str(number) for number in range(1, 3000)])
    write_dataset(folder, {"train": rows, "test": rows[:1]}, vocab_size=vocab_size, identifiers=names, **told)
    return folder


def stored(folder, chunk_rows, split="train"):
    folders = folder if isinstance(folder, list) else [folder]
    return StoredSplit.of(folders, split, memory_gib=gib_for(chunk_rows, 4))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    return written(tmp_path_factory.mktemp("data") / "numbered", rows_of(range(ROWS), range(ROWS)))


@pytest.fixture(scope="module")
def split(numbered):
    return stored(numbered, 600)


# ---- the order ------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_row_once(split):
    assert (split.num_rows, split.num_chunks, len(split.row_groups)) == (ROWS, 4, 8)
    found = numbers(batches(split, OF_A_FILE, 3 * 8))
    assert [sorted(found[i : i + ROWS]) for i in range(0, 3 * ROWS, ROWS)] == [list(range(ROWS))] * 3


def test_epochs_and_seeds_have_orders_of_their_own(split):
    orders = {tuple(numbers([batch])) for seed in (0, 1) for batch in batches(split, ROWS, 3, seed=seed)}
    assert len(orders) == 6


def test_a_chunk_gathers_row_groups_from_all_files_and_others_in_the_next_epoch(split):
    epochs = [numbers([batch]) for batch in batches(split, ROWS, 60)]
    together = [
        frozenset(np.array(epoch[: 2 * OF_A_FILE]) // OF_A_FILE) for epoch in epochs
    ]  # in the first chunk of each epoch
    assert {len(files) for files in together} == {2}
    assert len(set(together)) > 20  # of 28 pairs, of which 60 draws leave out 3 on average


def test_a_row_s_place_says_nothing_of_its_number_or_of_its_place_in_the_next_epoch(split):
    places = np.stack([np.argsort(numbers([batch])) for batch in batches(split, ROWS, 60)])
    assert abs(places.mean(0) - (ROWS - 1) / 2).max() < 5.5 * ROWS / np.sqrt(12 * 60)
    for name, others in (("the number", np.arange(ROWS)[None]), ("the next epoch", places[1:])):
        of_all = [np.corrcoef(one, two)[0, 1] for one, two in zip(places[:-1], itertools.cycle(others), strict=False)]
        assert abs(np.mean(of_all)) < 5 * np.std(of_all) / np.sqrt(59), name  # row groups move together: it varies


def test_rows_of_a_row_group_are_spread_over_their_chunk(split):
    (epoch,) = batches(split, ROWS, 1)
    places = np.argsort(epoch.inputs[:, 0])[:OF_A_FILE]  # of the first file's rows
    assert 500 < places.max() - places.min() < 2 * OF_A_FILE
    assert abs(np.corrcoef(places, np.arange(OF_A_FILE))[0, 1]) < 5 / np.sqrt(OF_A_FILE)
    # Half of them are followed by another of their file.
    assert abs(np.count_nonzero(np.diff(np.sort(places)) == 1) - OF_A_FILE / 2) < 5 * np.sqrt(OF_A_FILE / 4)


def test_a_split_of_one_chunk_gives_what_it_gives_from_memory(tmp_path):
    rows, symmetry = sudoku_rows((2, 2), 600), SudokuSymmetry((2, 2))
    one = StoredSplit.of([written(tmp_path / "one", rows, 6)], "train", memory_gib=gib_for(600, 16))
    assert one.num_chunks == 1
    assert_same(batches(one, 64, 30, symmetry=symmetry), batches(rows, 64, 30, symmetry=symmetry))


def test_examples_of_a_puzzle_come_one_after_the_other_unless_files_part_them(tmp_path):
    puzzles = np.arange(1200) // 3
    found = numbers(batches(stored(written(tmp_path / "threes", rows_of(puzzles, puzzles)), 400), 1200, 1))
    neighbours = np.count_nonzero(np.diff(np.array(found) // 3) == 0)
    assert 2 * 400 - 4 <= neighbours <= 2 * 400  # four files, and three places between them
    assert sorted(found) == list(range(1200))


def test_several_folders_are_one_split(numbered, tmp_path):
    other = written(tmp_path / "other", rows_of(range(100), range(100)))
    found = numbers(batches(stored([numbered, other], 300), ROWS + 100, 1))
    assert sorted(found) == sorted([*range(ROWS), *range(100)])


# ---- who reads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3, 5, 7])
@pytest.mark.parametrize("start", [0, 50])
def test_workers_see_together_what_one_sees_alone(split, world_size, start):
    places = [{"rank": rank, "world_size": world_size} for rank in range(world_size)]
    slices = [batches(split, 48, 60, start, symmetry=Marked(), **place) for place in places]
    assert_same(
        [joined(parts) for parts in zip(*slices, strict=True)], batches(split, 48, 60, start, symmetry=Marked())
    )


@pytest.mark.parametrize("batch_size", [1, 37, 100, 2 * ROWS + 1])
def test_a_stream_goes_on_from_any_batch(split, batch_size):
    count = min(60, -(-3 * ROWS // batch_size))
    whole = batches(split, batch_size, count, symmetry=Marked())
    for start in {1, count // 3, count - 1}:
        assert_same(batches(split, batch_size, count - start, start, symmetry=Marked()), whole[start:])


def test_what_comes_before_is_not_read(split):
    read = []

    def recording(of, chunk_numbers):
        return map(of, (read.append(number) or number for number in chunk_numbers))

    late = StoredSplit(split.row_groups, split.seq_len, split.vocab_size, split.chunk_rows, recording)
    next(RowStream(late, batch_size=100, seed=3, symmetry=None).batches(10**6))
    assert read == [10**8 // (2 * OF_A_FILE)]


# ---- memory ---------------------------------------------------------------------------------------------------------


def most_held(folder, rows):
    """The most bytes that numpy and pyarrow hold while an epoch goes by in chunks of one full row group."""
    numbers = np.arange(rows)
    split = stored(
        written(folder, replace(rows_of(numbers, numbers), puzzle_identifiers=np.zeros(rows, np.int32)), 2**20), 8192
    )
    tracemalloc.start()
    arrow = [
        pa.total_allocated_bytes()
        for _ in itertools.islice(RowStream(split, batch_size=8192, seed=0, symmetry=None).batches(0), rows // 8192)
    ]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held + max(arrow)


def test_memory_is_bounded_by_chunks_however_many_there_are(tmp_path):
    few, many = most_held(tmp_path / "few", 8 * 8192), most_held(tmp_path / "many", 4 * 8 * 8192)
    assert many < 1.1 * few


def test_a_file_that_changed_meanwhile_is_named(tmp_path):
    split = stored(written(tmp_path / "data", rows_of(range(300), range(300))), 600)
    written(tmp_path / "other", rows_of(range(299), range(299)))
    (tmp_path / "other" / "train" / "part-00000.parquet").replace(tmp_path / "data" / "train" / "part-00000.parquet")
    with pytest.raises(DatasetError, match=r"part-00000.parquet was changed while it was in use: 299 rows, not 300"):
        batches(split, 10, 1)
    (tmp_path / "data" / "train" / "part-00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"part-00000.parquet is missing"):
        batches(split, 10, 1)
