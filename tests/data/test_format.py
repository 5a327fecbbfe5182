import hashlib
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import tiny_config

from trm_ray.data import check, format, write
from trm_ray.data.format import DatasetInfo
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError, Rows
from trm_ray.kinds.sudoku.generate import prepare_sudoku
from trm_ray.runs.data import open_data


def some_rows(count=10, length=4, seed=0):
    """Puzzles of two examples, two puzzles a group."""
    rng = np.random.default_rng(seed)
    puzzles = np.arange(count, dtype=np.int32) // 2
    return Rows(
        inputs=rng.integers(0, 6, (count, length), dtype=np.int32),
        labels=np.where(rng.random((count, length)) < 0.2, -100, 5).astype(np.int32),
        puzzle_identifiers=puzzles % 3,
        puzzles=puzzles,
        groups=puzzles // 2,
    )


def named(*names):
    return PuzzleIdentifiers.plain(names)


def write_set(folder, splits=None, **changes):
    values = {
        "vocab_size": 6,
        "generator": "made",
        "arguments": {"size": 2},
        "seed": 0,
        "symmetry": None,
        "identifiers": named("a", "b"),
        **changes,
    }
    splits = {"train": some_rows(), "test": some_rows(4)} if splits is None else splits
    return write.write_dataset(folder, splits, **values)


@pytest.fixture
def dataset(tmp_path):
    write_set(tmp_path / "set")
    return tmp_path / "set"


def edit_info(folder, change):
    path = folder / "dataset.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def replace_part(folder, columns, file="train/part-00000.parquet"):
    """Put other columns into a file and its new checksum into dataset.json, as a faulty generator would."""
    pq.write_table(pa.table(columns), folder / file)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    edit_info(folder, lambda raw: raw["splits"]["train"]["files"].update({file: digest}))


def columns(rows=None, **changes):
    rows = some_rows() if rows is None else rows
    made = {
        "inputs": board_column(rows.inputs),
        "labels": board_column(rows.labels),
        "puzzle_identifier": pa.array(rows.puzzle_identifiers),
        "puzzle": pa.array(rows.puzzles),
        "group": pa.array(rows.groups),
    }
    return {name: column for name, column in {**made, **changes}.items() if column is not None}


def board_column(tokens, kind=np.int32):
    return pa.FixedSizeListArray.from_arrays(pa.array(tokens.astype(kind).ravel()), tokens.shape[1])


def test_rows_come_back_as_they_were_written(dataset):
    rows, expected = format.read_split(dataset, "train"), some_rows()
    for name in ("inputs", "labels", "puzzle_identifiers", "puzzles", "groups"):
        found = getattr(rows, name)
        np.testing.assert_array_equal(found, getattr(expected, name))
        assert found.dtype == np.int32
        assert found.flags["C_CONTIGUOUS"]


def test_any_parquet_reader_sees_lists_of_int32(dataset):
    table = pq.read_table(dataset / "train")
    assert table.schema.field("inputs").type == pa.list_(pa.int32(), 4)
    assert table.column("labels").to_pylist() == some_rows().labels.tolist()


def test_groups_and_mean_puzzle_examples_are_counted_as_worked_by_hand(dataset):
    # puzzles 0011 2233 44, groups 0000 1111 22: 10 rows / 5 puzzles.
    split = DatasetInfo.load(dataset).splits["train"]
    assert (split.rows, split.groups, split.mean_puzzle_examples) == (10, 3, 2.0)


def test_a_larger_split_is_spread_over_files_in_row_order(tmp_path):
    rows = some_rows(3000)
    info = write_set(tmp_path / "set", {"train": rows})
    assert list(info.splits["train"].files) == [f"train/part-{n:05d}.parquet" for n in range(8)]
    np.testing.assert_array_equal(format.read_split(tmp_path / "set", "train").inputs, rows.inputs)
    assert check.open_dataset(tmp_path / "set") == info


def test_row_groups_are_put_together_and_rows_named_across_them(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "ROWS_PER_ROW_GROUP", 3)
    rows = some_rows(700)
    write_set(tmp_path / "set", {"train": rows})
    np.testing.assert_array_equal(format.read_split(tmp_path / "set", "train").groups, rows.groups)
    edit_info(tmp_path / "set", lambda raw: raw.update(vocab_size=5))
    first = np.argwhere(rows.inputs == 5)[0]
    with pytest.raises(DatasetError, match=rf"train inputs, row {first[0]}, token {first[1]}: 5 must"):
        check.open_dataset(tmp_path / "set")


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_set(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert [str(file) for file in files] == [
        "dataset.json",
        "identifiers.json",
        "test/part-00000.parquet",
        "train/part-00000.parquet",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "sha256", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_set(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_replaced_only_on_request(dataset):
    with pytest.raises(DatasetError, match=r"set already holds a dataset; pass --overwrite"):
        write_set(dataset)
    write_set(dataset, {"train": some_rows(8)}, overwrite=True)
    assert DatasetInfo.load(dataset).splits["train"].rows == 8
    assert [path.name for path in dataset.parent.iterdir()] == ["set"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"is no dataset \(notes\.txt\); choose another --output"):
        write_set(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    written = write_set(tmp_path / "set")
    assert check.open_dataset(tmp_path / "set") == written


def test_a_bad_row_is_not_even_written(tmp_path):
    with pytest.raises(
        DatasetError, match=r"train inputs, row \d+, token \d: 5 must be at least 0 and below vocab_size=5"
    ):
        write_set(tmp_path / "set", vocab_size=5)
    with pytest.raises(DatasetError, match="the test split is empty"):
        write_set(tmp_path / "set", {"train": some_rows(), "test": some_rows(0)})
    with pytest.raises(DatasetError, match="one sequence length"):
        write_set(tmp_path / "set", {"train": some_rows(), "test": some_rows(length=5)})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_answered_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere does not exist; make it with `trm-ray prepare sudoku --size 6`"):
        check.open_dataset(tmp_path / "nowhere", command_hint="trm-ray prepare sudoku --size 6")
    with pytest.raises(DatasetError, match=r"nowhere does not exist; `trm-ray prepare --help` tells"):
        check.open_dataset(tmp_path / "nowhere")


def test_a_dataset_of_the_original_is_answered_with_the_command_that_imports_it(tmp_path):
    (tmp_path / "arc1" / "train").mkdir(parents=True)
    (tmp_path / "arc1" / "train" / "dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"run `trm-ray prepare import-original /.*/arc1 --output NEW` and name NEW"):
        check.open_dataset(tmp_path / "arc1", command_hint="trm-ray prepare arc")


def test_a_dataset_of_format_2_does_not_say_its_kind(dataset):
    written = DatasetInfo.load(dataset)
    assert (written.format_version, written.kind) == (3, "tokens")
    edit_info(dataset, lambda raw: (raw.update(format_version=2), raw.pop("kind")))
    assert check.open_dataset(dataset) == replace(written, format_version=2, kind=None)
    edit_info(dataset, lambda raw: raw.update(format_version=3))
    with pytest.raises(DatasetError, match="kind must name what the tokens spell, or be tokens"):
        check.open_dataset(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format_version=99), "format_version=99 is unknown, this release reads 2"),
        (lambda raw: raw.update(format_version=1), "make the dataset again with `trm-ray prepare`"),
        (lambda raw: raw.pop("vocab_size"), "it lacks vocab_size"),
        (lambda raw: raw.update(vocab=3), "it has vocab"),
        (lambda raw: raw.update(seq_len="4"), "seq_len='4' has the wrong type"),
        (lambda raw: raw.update(vocab_size=0), "vocab_size=0 must be at least 1"),
        (lambda raw: raw.update(pad_id=1), "pad_id=1 must be 0"),
        (lambda raw: raw["splits"].update(train=3), r"splits\.train must be an object"),
        (lambda raw: raw["splits"]["train"].pop("rows"), r"lacks splits\.train\.rows"),
        (lambda raw: raw["splits"]["train"].update(rows=11), "train split has rows=10; dataset.json says 11"),
        (lambda raw: raw["splits"]["train"].update(groups=4), "groups=3; dataset.json says 4"),
        (lambda raw: raw["splits"]["train"].update(mean_puzzle_examples=1.0), "examples=2.0; .* says 1.0"),
        (lambda raw: raw.update(seq_len=5), "inputs have 4 tokens; dataset.json says seq_len=5"),
        (lambda raw: raw.update(num_puzzle_identifiers=2), "names 3 identifiers; .* num_puzzle_identifiers=2"),
        (lambda raw: raw.update(files={"notes.txt": ""}), "files must name identifiers.json; it names notes.txt"),
        (lambda raw: raw["splits"]["train"].update(files={}, rows=0), "the train split is empty"),
    ],
)
def test_a_wrong_dataset_json_is_named(dataset, change, message):
    edit_info(dataset, change)
    with pytest.raises(DatasetError, match=message):
        check.open_dataset(dataset)


def test_a_dataset_json_that_is_missing_or_no_json_is_named(dataset):
    for text, message in (("{", "not valid JSON"), ("[]", "must hold a JSON object, not list")):
        (dataset / "dataset.json").write_text(text)
        with pytest.raises(DatasetError, match=message):
            check.open_dataset(dataset)
    (dataset / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"dataset.json cannot be read: No such file"):
        check.open_dataset(dataset, command_hint="trm-ray prepare sudoku --size 6")


def test_a_changed_file_does_not_match_its_checksum(dataset):
    file = dataset / "train/part-00000.parquet"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    file.write_bytes(file.read_bytes() + b"!")
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    with pytest.raises(DatasetError, match=f"part-00000.parquet: the checksum .*{found}.*{expected}"):
        check.open_dataset(dataset)


def test_a_missing_file_is_named(dataset):
    (dataset / "test/part-00000.parquet").unlink()
    with pytest.raises(DatasetError, match=r"test/part-00000.parquet is missing"):
        check.open_dataset(dataset)
    with pytest.raises(DatasetError, match=r"test/part-00000.parquet is missing"):
        format.read_split(dataset, "test")


def test_corrupt_parquet_is_named(dataset):
    file = dataset / "train/part-00000.parquet"
    file.write_bytes(b"PAR1 and then nothing")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit_info(dataset, lambda raw: raw["splits"]["train"]["files"].update({"train/part-00000.parquet": digest}))
    for read in (check.open_dataset, lambda folder: format.read_split(folder, "train")):
        with pytest.raises(DatasetError, match=r"part-00000.parquet is not readable Parquet: "):
            read(dataset)


def with_token(name, row, cell, value):
    rows = some_rows()
    getattr(rows, name)[row, cell] = value
    return rows


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (columns(group=None), "its columns are inputs, labels, puzzle_identifier, puzzle; they must be"),
        (columns(labels=board_column(np.zeros((10, 3)))), "labels have 3 tokens and inputs 4; they must be equal"),
        (
            columns(inputs=board_column(np.zeros((10, 4)), np.int64)),
            "column inputs is .*int64.*; it must be a fixed-size list of int32",
        ),
        (columns(inputs=pa.array([[1, 2, 3, 4]] * 10)), "column inputs is list"),
        (columns(group=pa.array([0.5] * 10)), "column group is double; it must be int32"),
        (columns(group=pa.array([None] * 10, pa.int32())), "column group has empty values"),
        (columns(with_token("inputs", 7, 2, 6)), "train inputs, row 7, token 2: 6 must be .* below vocab_size=6"),
        (columns(with_token("inputs", 9, 0, -1)), "train inputs, row 9, token 0: -1 must be at least 0"),
        (columns(with_token("labels", 3, 1, -1)), "train labels, row 3, token 1: -1 .* or -100 where"),
        (columns(with_token("labels", 3, 1, 6)), "train labels, row 3, token 1: 6 must"),
        (columns(group=pa.array([-1] * 10, pa.int32())), "train group, row 0: -1"),
        (columns(puzzle=pa.array([-1] * 10, pa.int32())), "train puzzle, row 0: -1"),
        (
            columns(puzzle_identifier=pa.array([0] * 9 + [3], pa.int32())),
            "puzzle_identifier, row 9: 3 .* below num_puzzle_identifiers=3",
        ),
        (
            columns(puzzle=pa.array([0, 0, 1, 1, 1, 2, 2, 2, 3, 3], pa.int32())),
            "train: puzzle 1 is in groups 0 and 1; it must be in one",
        ),
        (
            columns(puzzle=pa.array([0, 0, 1, 1, 2, 2, 2, 3, 4, 4], pa.int32())),
            "train: puzzle 2 of group 1 has 3 rows and puzzle 3 has 1; the puzzles of one group must have equally many",
        ),
        (columns(some_rows(9)), "train split has rows=9; dataset.json says 10"),
        (columns(some_rows(0)), "the train split is empty"),
    ],
)
def test_bad_rows_are_named_before_training(dataset, table, message):
    replace_part(dataset, table)
    with pytest.raises(DatasetError, match=message):
        check.open_dataset(dataset)


def test_a_required_split_must_be_there(tmp_path):
    info = write_set(tmp_path / "set", {"train": some_rows()})
    assert check.open_dataset(tmp_path / "set", require=["train"]) == info
    with pytest.raises(DatasetError, match="has no test split; it holds train"):
        check.open_dataset(tmp_path / "set", require=["train", "test"])


def test_the_test_split_may_hold_uneven_puzzles(tmp_path):
    write_set(tmp_path / "set", {"train": some_rows(8), "test": some_rows(7)})
    assert check.open_dataset(tmp_path / "set").splits["test"].mean_puzzle_examples == 7 / 4


@pytest.mark.parametrize(("last", "puzzles"), [(range(300, 600), 600), ([299, 299, *range(302, 600)], 598)])
def test_puzzles_that_number_the_rows_are_counted_as_others_are(tmp_path, last, puzzles):
    tokens = np.zeros((600, 1), np.int32)
    rows = replace(Rows.of_single_puzzles(tokens, tokens), puzzles=np.array([*range(300), *last], np.int32))
    rows = replace(rows, groups=rows.puzzles)  # two files, of which the first is numbered in both
    write_set(tmp_path / "set", {"train": rows}, identifiers=None)
    split = check.open_dataset(tmp_path / "set").splits["train"]
    assert (len(split.files), split.rows, split.groups) == (2, 600, puzzles)
    assert split.mean_puzzle_examples == 600 / puzzles


def test_what_breaks_the_stream_is_not_even_written(tmp_path):
    with pytest.raises(DatasetError, match="puzzle 2 of group 1 has 2 rows and puzzle 3 has 1"):
        write_set(tmp_path / "set", {"train": some_rows(7)})
    with pytest.raises(DatasetError, match=r"puzzle_identifier, row 4: 2 .* below num_puzzle_identifiers=2"):
        write_set(tmp_path / "set", identifiers=named("a"))
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_the_identifiers_are_kept(dataset, tmp_path):
    assert format.read_identifiers(dataset).all_names() == ["<blank>", "a", "b"]
    numbers = np.zeros((3, 4), np.int32)
    write_set(tmp_path / "plain", {"train": Rows.of_single_puzzles(numbers, numbers)}, identifiers=None)
    assert format.read_identifiers(tmp_path / "plain").all_names() == ["<blank>"]
    assert format.read_identifiers(tmp_path / "plain", dataset).all_names() == ["<blank>", "a", "b"]


def test_side_files_are_kept_and_watched(tmp_path):
    info = write_set(tmp_path / "set", side_files={"test_puzzles.json": b"{}"})
    assert check.open_dataset(tmp_path / "set") == info
    assert info.files["test_puzzles.json"] == hashlib.sha256(b"{}").hexdigest()
    assert (tmp_path / "set/test_puzzles.json").read_bytes() == b"{}"
    (tmp_path / "set/test_puzzles.json").write_bytes(b"[]")
    with pytest.raises(DatasetError, match=r"test_puzzles.json: the checksum does not match"):
        check.open_dataset(tmp_path / "set")


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), (b"{", "identifiers.json is no map")])
def test_identifiers_that_are_missing_or_damaged_are_named(dataset, content, message):
    path = dataset / "identifiers.json"
    path.unlink() if content is None else path.write_bytes(content)
    digest = hashlib.sha256(content or b"").hexdigest()
    edit_info(dataset, lambda raw: raw["files"].update({path.name: digest}))
    with pytest.raises(DatasetError, match=message):
        check.open_dataset(dataset)


def test_several_datasets_are_described_as_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_set(one)
    write_set(two, {"train": some_rows(20, seed=1)})
    merged = check.open_datasets([one, two], require=["train"])
    train = merged.splits["train"]
    # 10 rows of 5 puzzles and 20 rows of 10 puzzles; 3 and 5 groups.
    assert (train.rows, train.groups, train.mean_puzzle_examples) == (30, 8, 2.0)
    assert (list(merged.splits), merged.num_puzzle_identifiers) == (["train"], 3)
    assert str(two / "train/part-00000.parquet") in train.files
    rows = format.read_splits([one, two], "train")
    assert (len(rows), len(np.unique(rows.groups)), len(np.unique(rows.puzzles))) == (30, 8, 15)
    assert (rows.puzzles.dtype, rows.groups.dtype) == (np.int32, np.int32)


def test_datasets_without_names_go_with_a_named_one_and_two_sets_of_names_do_not(tmp_path):
    plain = Rows.of_single_puzzles(*(np.ones((3, 4), np.int32) for _ in range(2)))
    write_set(tmp_path / "plain", {"train": plain}, identifiers=None)
    for name, names in (("one", "ab"), ("same", "ab"), ("other", "ac")):
        write_set(tmp_path / name, identifiers=named(*names))
    paths = {path.name: path for path in tmp_path.iterdir()}
    merged = check.open_datasets([paths["plain"], paths["one"], paths["same"]], require=["train"])
    assert merged.num_puzzle_identifiers == 3
    assert merged.files["identifiers.json"] == named("a", "b").digest()
    with pytest.raises(DatasetError, match=r"identifiers of .*other and .*one differ, .* prepare them together"):
        check.open_datasets([paths["plain"], paths["one"], paths["other"]])


def test_datasets_that_cannot_be_used_together_are_refused(tmp_path):
    write_set(tmp_path / "one")
    others = {
        "vocab_size=7": {"vocab_size": 7},
        "symmetry=.*dihedral": {"symmetry": {"name": "dihedral"}},
        "seq_len=5": {"splits": {"train": some_rows(length=5)}},
    }
    for number, (message, changes) in enumerate(others.items()):
        write_set(tmp_path / str(number), **changes)
        with pytest.raises(DatasetError, match=f"must agree: {message}"):
            check.open_datasets([tmp_path / "one", tmp_path / str(number)])
    with pytest.raises(DatasetError, match="data_paths is empty"):
        check.open_datasets([])


# ---- test rows that are training rows ----------------------------------------------------------------------


def single(*boards):
    tokens = np.array(boards, np.int32)
    return Rows.of_single_puzzles(tokens, tokens)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "trm_ray"]


def test_test_rows_that_are_training_rows_are_told_of_once(tmp_path, caplog):
    splits = {"train": single([1, 2, 3, 4], [2, 2, 2, 2], [3, 3, 3, 3]), "test": single([5, 5, 5, 5], [3, 3, 3, 3])}
    for overwrite in (False, True):
        write_set(tmp_path / "set", splits, identifiers=None, overwrite=overwrite)
    told = f"{tmp_path}/set: 1 of 2 test rows are also training rows (the first is test row 1): accuracy counts"
    assert [line[: len(told)] for line in warnings(caplog)] == [told]


def test_the_same_question_counts_whatever_its_answer_unless_puzzles_have_names(tmp_path, caplog):
    """A question with two answers cannot be judged; of a named puzzle the examples say what is asked."""
    asked = np.ones((1, 4), np.int32)
    for name, number in (("plain", 0), ("named", 1)):
        numbers = np.zeros(1, np.int32)
        owners = np.full(1, number, np.int32)
        one, other, same = (Rows(asked, asked * answer, owners, numbers, numbers) for answer in (2, 3, 2))
        write_set(tmp_path / name, {"train": one, "test": other})
        write_set(tmp_path / f"{name}, same", {"train": one, "test": same})
    assert [line.partition(":")[0].rpartition("/")[2] for line in warnings(caplog)] == [
        "plain",
        "plain, same",
        "named, same",
    ]


def test_good_data_is_not_warned_of(tmp_path, caplog):
    write_set(
        tmp_path / "set", {"train": single([1, 1, 1, 1], [2, 1, 1, 1]), "test": single([1, 2, 1, 1])}, identifiers=None
    )
    write_set(tmp_path / "train alone", {"train": single([1, 1, 1, 1])}, identifiers=None)
    prepare_sudoku(tmp_path / "sudoku", size=4, train=2000, test=40)  # so many that training puzzles repeat
    assert warnings(caplog) == []


def test_the_data_of_a_run_are_compared_across_folders(tmp_path, caplog):
    write_set(tmp_path / "one", {"train": single([1, 1, 1, 1]), "test": single([2, 2, 2, 2])}, identifiers=None)
    write_set(tmp_path / "two", {"train": single([4, 4, 4, 4], [3, 3, 3, 3])}, identifiers=None)
    write_set(tmp_path / "asked", {"test": single([1, 1, 1, 1], [3, 3, 3, 3], [2, 2, 2, 2])}, identifiers=None)
    config = tiny_config(data_paths=[str(tmp_path / name) for name in ("one", "two")], data_paths_test=[])
    caplog.clear()
    with pytest.raises(DatasetError, match="has no test split"):
        open_data(config)
    config = config.model_copy(update={"data_paths_test": [str(tmp_path / "asked")]})
    for _ in range(2):
        open_data(config)
    told = "2 of 3 test rows are also training rows (the first is test row 0)"
    assert [told in line for line in warnings(caplog)] == [True]


def test_dataset_json_may_have_gone_through_an_editor(dataset):
    path = dataset / "dataset.json"
    info = DatasetInfo.load(dataset)
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    assert DatasetInfo.load(dataset) == info
    path.write_bytes(b"{\n\n\xff")
    with pytest.raises(DatasetError, match=r"dataset.json is not valid JSON: it is no text .line 3"):
        DatasetInfo.load(dataset)
