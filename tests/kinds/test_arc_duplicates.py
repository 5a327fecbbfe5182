"""ARC's duplicates: what is held out is in no training row, under whatever name, turned or in other colours."""

import copy
import json

import numpy as np
import pytest
from arc_helpers import ARC_AGI_1, augmented, needs_arc, random_task, write_subset
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.check import open_dataset
from trm_ray.data.format import read_identifiers, read_split
from trm_ray.data.rows import DatasetError
from trm_ray.kinds.arc.duplicates import find_duplicates
from trm_ray.kinds.arc.read import pair_sums, prepare_arc

RNG = np.random.default_rng(7)
EVALUATION = {name: random_task(RNG, train=2, test=1) for name in ("d", "e")}
TRAINING = {name: random_task(RNG) for name in ("a", "b")}


def turned(pair, dihedral, colours):
    """The same pair, turned as the original numbers it, in other colours."""
    return {side: augmented(np.array(grid, np.uint8), dihedral, colours).tolist() for side, grid in pair.items()}


def prepared(folder, training, evaluation=EVALUATION, solutions=True, **changes):
    write_subset(folder / "arc", "training", training)
    write_subset(folder / "arc", "evaluation", evaluation, solutions=solutions)
    arguments = {"subsets": ["training", "evaluation"], "test_set": "evaluation", "augmentations": 3, **changes}
    info = prepare_arc(folder / "set", prefix=folder / "arc", overwrite=True, **arguments)
    assert open_dataset(folder / "set") == info
    return info


def num_rows(tasks, *sides):
    return sum(len(task[side]) for task in tasks.values() for side in sides)


def everything(training):
    return num_rows(training, "train", "test") + num_rows(EVALUATION, "train")


def test_a_task_under_another_name_loses_the_rows_that_are_asked(tmp_path, capsys):
    training = {**TRAINING, "twin": EVALUATION["e"]}
    info = prepared(tmp_path, training)
    assert info.splits["train"].rows == everything(training) - 1
    assert info.arguments["duplicates_left_out"] == {"twin": ["e"]}
    asked = read_split(tmp_path / "set", "test")
    shown = read_split(tmp_path / "set", "train")
    assert not (shown.inputs[:, None] == asked.inputs).all(2).any()
    told = capsys.readouterr().out
    assert "another puzzle, up to turns and colours: 1, left out (--keep-duplicates keeps them" in told
    assert "twin of e" in told
    assert "training pairs in common, which are kept: e and twin (2)" in told


@pytest.mark.parametrize("dihedral", range(8))
def test_a_pair_is_found_however_it_is_turned_and_coloured(tmp_path, dihedral):
    colours = np.random.default_rng(dihedral).permutation(10)
    assert colours[0] != 0, "black too"
    held_out = turned(EVALUATION["d"]["test"][0], dihedral, colours)
    for side in ("train", "test"):
        training = copy.deepcopy(TRAINING)
        training["b"][side][0] = held_out
        info = prepared(tmp_path, training)
        assert info.splits["train"].rows == everything(training) - 1
        assert info.arguments["duplicates_left_out"] == {"b": ["d"]}


def test_the_same_input_with_another_answer_is_another_pair(tmp_path, capsys):
    training = copy.deepcopy(TRAINING)
    training["b"]["train"][0]["input"] = EVALUATION["d"]["test"][0]["input"]
    # Colours that input and output take apart are no permutation of all.
    training["b"]["train"][1] = turned(EVALUATION["d"]["test"][0], 0, np.arange(10))
    training["b"]["train"][1]["output"] = turned(EVALUATION["d"]["test"][0], 0, np.roll(np.arange(10), 1))["output"]
    info = prepared(tmp_path, training)
    assert info.splits["train"].rows == everything(training)
    assert "duplicates_left_out" not in info.arguments
    assert "turns and colours" not in capsys.readouterr().out


def test_what_a_puzzle_shows_itself_stays(tmp_path):
    evaluation = copy.deepcopy(EVALUATION)
    evaluation["d"]["train"] = [turned(evaluation["d"]["test"][0], 3, np.arange(10)[::-1])]
    info = prepared(tmp_path, TRAINING, evaluation)
    assert info.splits["train"].rows == num_rows(TRAINING, "train", "test") + num_rows(evaluation, "train")


def test_a_hidden_answer_is_held_out_where_the_puzzles_have_another_pair_in_common(tmp_path):
    colours = np.array([3, 1, 2, 0, 5, 4, 6, 7, 8, 9])
    twin = {side: [turned(pair, 5, colours) for pair in EVALUATION["e"][side]] for side in ("train", "test")}
    other = copy.deepcopy(TRAINING["a"])
    other["test"][0]["input"] = EVALUATION["e"]["test"][0]["input"]  # another question about the same grid
    training = {"a": other, "twin": twin}
    info = prepared(tmp_path, training, solutions=False)
    assert info.arguments["duplicates_left_out"] == {"twin": ["e"]}
    assert info.splits["train"].rows == everything(training) - 1


def test_duplicates_are_kept_where_that_is_asked_for_and_a_set_without_any_has_the_same_bytes(tmp_path, capsys):
    training = {**TRAINING, "twin": EVALUATION["e"]}
    info = prepared(tmp_path, training, keep_duplicates=True)
    assert info.splits["train"].rows == everything(training)
    assert set(info.arguments) == {"subsets", "test_set", "augmentations", "sources"}
    assert "colours: 1, kept: twin of e" in capsys.readouterr().out
    assert prepared(tmp_path, TRAINING) == prepared(tmp_path, TRAINING, keep_duplicates=True)


def test_all_subsets_are_searched_and_so_is_the_test_set_itself(tmp_path):
    write_subset(tmp_path / "arc", "concept", {"c": {**TRAINING["a"], "train": EVALUATION["d"]["test"]}})
    evaluation = {**EVALUATION, "f": {**EVALUATION["e"], "train": EVALUATION["d"]["test"]}}
    info = prepared(tmp_path, TRAINING, evaluation, subsets=["training", "evaluation", "concept"])
    assert info.arguments["duplicates_left_out"] == {"c": ["d"], "f": ["d"]}


def test_a_large_set_is_searched_among_the_rows_whose_colours_are_as_many(tmp_path, monkeypatch):
    prepared(tmp_path, {**TRAINING, "twin": EVALUATION["e"]}, keep_duplicates=True)
    train, test = (read_split(tmp_path / "set", split) for split in ("train", "test"))
    identifiers = read_identifiers(tmp_path / "set")
    all_compared = find_duplicates(train, test, identifiers, pair_sums)
    monkeypatch.setattr("trm_ray.kinds.arc.duplicates._MANY_ROWS", 0)
    some_compared = find_duplicates(train, test, identifiers, pair_sums)
    np.testing.assert_array_equal(all_compared.leaking, some_compared.leaking)
    assert all_compared.tested == some_compared.tested == {"twin": ["e"]}


def test_the_command_takes_the_option(tmp_path):
    prepared(tmp_path, {**TRAINING, "twin": EVALUATION["e"]})
    words = ["prepare", "arc", "--input", str(tmp_path / "arc"), "--subsets", "training,evaluation"]
    words += ["--test-set", "evaluation", "--augmentations", "2", "--output", str(tmp_path / "kept")]
    told = CliRunner().invoke(app, [*words, "--keep-duplicates"])
    assert told.exit_code == 0, told.output
    assert open_dataset(tmp_path / "kept").splits["train"].rows == everything(TRAINING) + 3


@needs_arc
def test_the_public_twins_are_found_by_a_literal_comparison_too():
    """070dd51e and 40853293 are the same, pair by pair."""

    def pairs(subset, name):
        tasks, answers = (
            json.loads(ARC_AGI_1.with_name(f"arc-agi_{subset}_{kind}.json").read_text())[name]
            for kind in ("challenges", "solutions")
        )
        shown = [(pair["input"], pair["output"]) for pair in tasks["train"]]
        return shown + [(pair["input"], output) for pair, output in zip(tasks["test"], answers, strict=True)]

    assert pairs("evaluation", "070dd51e") == pairs("training", "40853293")


# ---- what lies about beside the tasks, and how they were saved ---------------------------------------------


def one_file_a_task(folder, tasks, encode=lambda text: text.encode()):
    folder.mkdir(parents=True)
    for name, task in tasks.items():
        (folder / f"{name}.json").write_bytes(encode(json.dumps(task, indent=1)))


def test_stray_files_are_no_tasks(tmp_path):
    one_file_a_task(tmp_path / "arc" / "training", TRAINING)
    folder = tmp_path / "arc" / "training"
    for name in ("._a.json", ".DS_Store", "Thumbs.db", "a.json~", ".a.json.swp", "#a.json#", ".hidden.json"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07\xb0")
    (folder / "__MACOSX").mkdir()
    (folder / "more.json").mkdir()
    (folder / ".#b.json").symlink_to("somebody@host.1234")
    (folder / "gone.json").symlink_to(tmp_path / "nowhere.json")
    info = prepare_arc(tmp_path / "set", prefix=tmp_path / "arc", subsets=["training"], test_set="training")
    assert info.num_puzzle_identifiers == 2 * 1001 + 1
    assert list(info.arguments["sources"]) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace("\n", "\r").encode() + b"\r\r",
    ],
)
def test_tasks_are_read_however_they_were_saved(tmp_path, encode):
    one_file_a_task(tmp_path / "arc" / "training", TRAINING, encode)
    write_subset(tmp_path / "arc", "evaluation", EVALUATION)
    for path in tmp_path.glob("arc_*.json"):
        path.write_bytes(encode(path.read_text()))
    one = prepare_arc(tmp_path / "one", prefix=tmp_path / "arc", subsets=["training"], test_set="training")
    assert one.splits["train"].rows == num_rows(TRAINING, "train")
    two = prepare_arc(tmp_path / "two", prefix=tmp_path / "arc", subsets=["evaluation"], test_set="evaluation")
    assert two.splits["train"].rows == num_rows(EVALUATION, "train")


def test_a_task_that_is_no_text_is_named_with_its_line(tmp_path):
    one_file_a_task(tmp_path / "arc" / "training", TRAINING)
    (tmp_path / "arc" / "training" / "c.json").write_bytes(b"{\n\xff")
    with pytest.raises(
        DatasetError,
        match=r"^\S*training/c.json is not valid JSON: it is no text \(line 2: byte 0xff is none of UTF-8\)",
    ):
        prepare_arc(tmp_path / "set", prefix=tmp_path / "arc", subsets=["training"], test_set="training")
