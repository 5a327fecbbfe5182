"""Folders of the original code, written here by its published rules, and what becomes of them."""

import json

import numpy as np
import pytest

from trm_ray.data.check import open_dataset
from trm_ray.data.format import DatasetInfo, read_split
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.interop.datasets import import_original

# --- The original's builders, by their rules -----------------------------------------------------------------


def write_split(folder, split, groups, *, seq_len, vocab_size, identifiers, ignored=0, name="all", **changes):
    """Write groups of (identifier, [(inputs, labels), …]) puzzles as the original lays them out."""
    arrays = {"inputs": [], "labels": [], "puzzle_identifiers": [], "puzzle_indices": [0], "group_indices": [0]}
    for group in groups:
        for identifier, examples in group:
            for inputs, labels in examples:
                arrays["inputs"].append(inputs)
                arrays["labels"].append(labels)
            arrays["puzzle_indices"].append(len(arrays["inputs"]))
            arrays["puzzle_identifiers"].append(identifier)
        arrays["group_indices"].append(len(arrays["puzzle_identifiers"]))
    (folder / split).mkdir(parents=True, exist_ok=True)
    for key, values in arrays.items():
        kind = np.uint8 if key in ("inputs", "labels") else np.int32
        np.save(folder / split / f"{name}__{key}.npy", np.array(values, kind))
    num_puzzles = len(arrays["puzzle_identifiers"])
    metadata = {
        "seq_len": seq_len,
        "vocab_size": vocab_size,
        "pad_id": 0,
        "ignore_label_id": ignored,
        "blank_identifier_id": 0,
        "num_puzzle_identifiers": identifiers,
        "total_groups": len(groups),
        "mean_puzzle_examples": len(arrays["inputs"]) / num_puzzles,
        "total_puzzles": num_puzzles,
        "sets": [name],
    }
    (folder / split / "dataset.json").write_text(json.dumps({**metadata, **changes}))


def sudoku_folder(folder, *, augmentations=2, **changes):
    """As the Sudoku builder: an augmentation is a puzzle of one example in the group of its puzzle; no identifiers."""
    rng = np.random.default_rng(0)
    sizes = {"train": (3, 1 + augmentations), "test": (2, 1)}
    groups = {
        split: [
            [(0, [(rng.integers(1, 11, 81), rng.integers(2, 11, 81))]) for _ in range(puzzles)] for _ in range(count)
        ]
        for split, (count, puzzles) in sizes.items()
    }
    for split, written in groups.items():
        write_split(folder, split, written, seq_len=81, vocab_size=11, identifiers=1, **changes)
    (folder / "identifiers.json").write_text('["<blank>"]')
    return groups


DIHEDRAL = [
    lambda a: a,
    lambda a: np.rot90(a, 1),
    lambda a: np.rot90(a, 2),
    lambda a: np.rot90(a, 3),
    np.fliplr,
    np.flipud,
    lambda a: a.T,
    lambda a: np.fliplr(np.rot90(a, 1)),
]


def canvas(grid, row, column):
    """Colours from 2 on at an offset; 1 below and to the right of them where the canvas of 30 goes on."""
    tokens = np.zeros((30, 30), int)
    height, width = grid.shape
    tokens[row : row + height, column : column + width] = grid + 2
    if row + height < 30:
        tokens[row + height, column : column + width] = 1
    if column + width < 30:
        tokens[row : row + height, column + width] = 1
    return tokens.ravel()


def placed(pairs, rng, translate):
    """One example of a training puzzle stays in the corner, the others go anywhere, input and output alike."""
    stays = rng.integers(len(pairs))
    rows = []
    for number, (asked, answered) in enumerate(pairs):
        height, width = np.maximum(asked.shape, answered.shape)
        moves = translate and number != stays
        row, column = (rng.integers(31 - height), rng.integers(31 - width)) if moves else (0, 0)
        rows.append((canvas(asked, row, column), canvas(answered, row, column)))
    return rows


def arc_folder(folder, *, augmentations=4, spoil=None):
    """As the ARC builder: each puzzle and its augmentations are a group, each with an identifier of its own."""
    rng = np.random.default_rng(1)
    names, puzzles = ["<blank>"], []
    for name, sizes in (
        ("0a", [(3, 3), (30, 4), (2, 7)]),
        ("1b", [(1, 1), (5, 30)]),
        ("2c", [(4, 6), (6, 4), (30, 30)]),
    ):
        pairs = [(rng.integers(0, 10, size), rng.integers(0, 10, (size[1], size[0]))) for size in sizes]
        forms = [(name, pairs)]
        for _ in range(augmentations):
            turn, colours = int(rng.integers(8)), np.concatenate([[0], rng.permutation(np.arange(1, 10))])
            spelled = f"{name}|||t{turn}|||{''.join(map(str, colours))}"
            forms.append((spelled, [tuple(DIHEDRAL[turn](colours[grid]) for grid in pair) for pair in pairs]))
        puzzles.append([(len(names) + at, pairs) for at, (_, pairs) in enumerate(forms)])
        names += [spelled for spelled, _ in forms]
    if spoil:
        spoil(puzzles, names)
    splits = {
        "train": [[(number, placed(pairs[:-1], rng, True)) for number, pairs in group] for group in puzzles],
        "test": [[(number, placed(pairs[-1:], rng, False)) for number, pairs in group] for group in puzzles[1:]],
    }
    for split, groups in splits.items():
        write_split(folder, split, groups, seq_len=900, vocab_size=12, identifiers=len(names))
    (folder / "identifiers.json").write_text(json.dumps(names))
    (folder / "test_puzzles.json").write_text(json.dumps({"1b": {"train": [], "test": []}}))
    return puzzles, names, splits


def flattened(groups):
    """List (inputs, labels, identifier, puzzle, group) of each row."""
    rows, puzzle = [], -1
    for number, group in enumerate(groups):
        for identifier, examples in group:
            puzzle += 1
            rows += [(inputs, labels, identifier, puzzle, number) for inputs, labels in examples]
    return [np.array(column) for column in zip(*rows, strict=True)]


def check_rows(rows, expected, *, ignored=0):
    inputs, labels, *columns = expected
    np.testing.assert_array_equal(rows.inputs, inputs)
    np.testing.assert_array_equal(rows.labels, np.where(labels == ignored, -100, labels))
    for found, column in zip((rows.puzzle_identifiers, rows.puzzles, rows.groups), columns, strict=True):
        np.testing.assert_array_equal(found, column)


# --- Sudoku and mazes ----------------------------------------------------------------------------------------


def test_sudoku_comes_over_with_its_groups_and_puzzles(tmp_path):
    groups = sudoku_folder(tmp_path / "original")
    info = import_original(tmp_path / "original", tmp_path / "set")
    assert open_dataset(tmp_path / "set") == info
    for split, written in groups.items():
        check_rows(read_split(tmp_path / "set", split), flattened(written))
    train = info.splits["train"]
    assert (train.rows, train.groups, train.mean_puzzle_examples) == (9, 3, 1.0)
    assert (info.seq_len, info.vocab_size, info.num_puzzle_identifiers, info.symmetry) == (81, 11, 1, None)


def test_without_an_ignored_label_every_label_counts(tmp_path):
    groups = sudoku_folder(tmp_path / "original", ignored=None)
    for split in groups:
        labels = np.load(tmp_path / "original" / split / "all__labels.npy")
        labels[0, 0] = 0
        np.save(tmp_path / "original" / split / "all__labels.npy", labels)
    import_original(tmp_path / "original", tmp_path / "set")
    assert read_split(tmp_path / "set", "train").labels[0, 0] == 0


def test_several_sets_keep_their_puzzles_and_groups_apart(tmp_path):
    groups = sudoku_folder(tmp_path / "original")
    one, other = groups["train"][:1], groups["train"][1:]
    shape = {"seq_len": 81, "vocab_size": 11, "identifiers": 1}
    write_split(tmp_path / "original", "train", one, name="easy", **shape)
    write_split(tmp_path / "original", "train", other, name="hard", sets=["easy", "hard"], total_groups=3, **shape)
    import_original(tmp_path / "original", tmp_path / "set")
    check_rows(read_split(tmp_path / "set", "train"), flattened(groups["train"]))


# --- ARC -----------------------------------------------------------------------------------------------------


def test_of_arc_the_puzzles_as_they_are_come_over_into_the_corner_and_identifiers_keep_their_numbers(tmp_path, capsys):
    puzzles, names, _ = arc_folder(tmp_path / "original")
    info = import_original(tmp_path / "original", tmp_path / "set")
    assert open_dataset(tmp_path / "set") == info
    for split, chosen, first in (("train", slice(-1), 0), ("test", slice(-1, None), 1)):
        corner = [
            (canvas(asked, 0, 0), canvas(answered, 0, 0), group[0][0], 5 * number, number)
            for number, group in enumerate(puzzles[first:])
            for asked, answered in group[0][1][chosen]
        ]
        check_rows(read_split(tmp_path / "set", split), [np.array(column) for column in zip(*corner, strict=True)])
    assert PuzzleIdentifiers.load(tmp_path / "set" / "identifiers.json").all_names() == names
    assert (info.symmetry, info.num_puzzle_identifiers) == ({"name": "arc"}, 16)
    # 4 augmentations of 2 + 1 + 2 training and of 2 test examples.
    assert "28 rows of stored augmentations were computed anew: all equal" in capsys.readouterr().out
    assert (tmp_path / "set" / "test_puzzles.json").read_bytes() == (
        tmp_path / "original" / "test_puzzles.json"
    ).read_bytes()


def test_augmentations_are_kept_where_that_is_asked_for(tmp_path):
    _, names, splits = arc_folder(tmp_path / "original")
    info = import_original(tmp_path / "original", tmp_path / "set", keep_augmentations=True)
    for split, groups in splits.items():
        check_rows(read_split(tmp_path / "set", split), flattened(groups))
    assert info.symmetry is None
    assert PuzzleIdentifiers.load(tmp_path / "set" / "identifiers.json").all_names() == names


def one_is_missing(puzzles, names):
    del puzzles[0][3]


def one_is_twice(puzzles, names):
    puzzles[0][3] = puzzles[0][2]


def none_is_plain(puzzles, names):
    names[1] = "0a|||t1|||0123456789"


def a_name_is_in_two_groups(puzzles, names):
    puzzles[2] = [(number, pairs[:1] + pairs[-1:]) for number, pairs in puzzles[0][:2]]


def one_has_fewer_examples(puzzles, names):
    puzzles[0][2] = (puzzles[0][2][0], puzzles[0][2][1][1:])


def one_has_another_grid(puzzles, names):
    puzzles[1][2][1][0] = (np.full((2, 2), 7), np.full((2, 2), 7))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (one_is_missing, r"puzzle 0a\S*: its group does not hold each augmentation of it once"),
        (one_is_twice, r"puzzle 0a\S*: its group does not hold each augmentation of it once"),
        (none_is_plain, r"puzzle 0a\S*: its group does not hold exactly one puzzle without augmentation"),
        (a_name_is_in_two_groups, r"puzzle 0a: its group does not hold each augmentation of it once"),
        (one_has_another_grid, r"puzzle 7, 1b\|\|\|t\d\|\|\|\d{10}, is not what its name says"),
    ],
)
def test_augmentations_that_are_not_what_their_names_say_come_over_only_where_that_is_asked_for(tmp_path, spoil, told):
    _, _, splits = arc_folder(tmp_path / "original", spoil=spoil)
    rows = sum(len(flattened(groups)[0]) for groups in splits.values())
    cost = rf"--keep-augmentations copies all {rows} rows as they are, {rows * 7200 / 2**20:.1f} MiB of tokens"
    with pytest.raises(DatasetError, match=f"train/all: {told}; mend it, or {cost}"):
        import_original(tmp_path / "original", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]
    info = import_original(tmp_path / "original", tmp_path / "set", keep_augmentations=True)
    assert info.symmetry is None
    check_rows(read_split(tmp_path / "set", "train"), flattened(splits["train"]))


def test_an_augmentation_of_fewer_examples_than_its_puzzle_is_named(tmp_path):
    arc_folder(tmp_path / "original", spoil=one_has_fewer_examples)
    with pytest.raises(DatasetError, match=r"puzzle 0a\|\|\|\S*: it has more or fewer examples than without"):
        import_original(tmp_path / "original", tmp_path / "set")


# --- What can be wrong ---------------------------------------------------------------------------------------


def rewritten(name, change):
    def spoil(folder):
        path = folder / "train" / f"all__{name}.npy"
        np.save(path, change(np.load(path)))

    return spoil


def changed(split, **values):
    def spoil(folder):
        path = folder / split / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def pickled(folder):
    np.save(folder / "train" / "all__labels.npy", np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "test" / "dataset.json").unlink(), r"test/dataset.json cannot be read: No such file"),
        (lambda folder: (folder / "train" / "all__labels.npy").unlink(), r"train/all__labels.npy is missing"),
        (lambda folder: (folder / "identifiers.json").unlink(), r"identifiers.json cannot be read"),
        (lambda folder: (folder / "identifiers.json").write_text("{}"), r"identifiers.json must hold a JSON list"),
        (lambda folder: (folder / "identifiers.json").write_text('["a", "b"]'), r"identifiers.json: 2 names; .*=1"),
        (
            lambda folder: (folder / "identifiers.json").write_text('["a"]'),
            r"identifier 0 is 'a'; it must be '<blank>'",
        ),
        (lambda folder: (folder / "train" / "dataset.json").write_text("{"), r"dataset.json is not valid JSON"),
        (lambda folder: (folder / "train" / "all__inputs.npy").write_bytes(b"x"), r"all__inputs.npy is no NumPy array"),
        (pickled, r"all__labels.npy is no NumPy array that can be mapped"),
        (changed("train", seq_len=None), r"train/dataset.json: seq_len=None must be a whole number"),
        (changed("train", pad_id=3), r"train/dataset.json: pad_id=3 must be 0"),
        (changed("train", sets=[]), r"train/dataset.json: sets=\[\] must name at least one set"),
        (changed("train", sets=["none"]), r"none__inputs.npy is missing"),
        (changed("train", total_groups=9), r"total_groups=9, but the sets hold 3"),
        (changed("train", ignore_label_id=None), r"ignore_label_id is None in train and 0 in test"),
        (changed("train", seq_len=9), r"both must be \(rows, seq_len=9\)"),
        (changed("train", vocab_size=8), r"vocab_size is 8 in train and 11 in test"),
        (rewritten("labels", lambda a: a[1:]), r"inputs are \(9, 81\) and labels \(8, 81\)"),
        (rewritten("inputs", lambda a: a.astype(float)), r"all__inputs.npy is float64 \(9, 81\); it must be whole"),
        (rewritten("inputs", lambda a: a + 7), r"train/all__inputs.npy, row 0: a token is not below vocab_size=11"),
        (rewritten("puzzle_indices", lambda a: a[:-1]), r"puzzle_indices.npy: the numbers must rise from 0 to 9"),
        (rewritten("group_indices", lambda a: a[::-1]), r"group_indices.npy: the numbers must rise from 0 to 9"),
        (rewritten("puzzle_identifiers", lambda a: a + 1), r"puzzle_identifiers.npy: .* at least 0 and below 1"),
        (lambda folder: (folder / "test_puzzles.json").write_text("no"), r"test_puzzles.json is not valid JSON"),
    ],
)
def test_what_is_missing_or_does_not_agree_is_named_in_one_line(tmp_path, spoil, message):
    sudoku_folder(tmp_path / "original")
    spoil(tmp_path / "original")
    with pytest.raises(ValueError, match=message) as refused:
        import_original(tmp_path / "original", tmp_path / "set")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_a_dataset_that_is_there_is_not_replaced_unasked(tmp_path):
    sudoku_folder(tmp_path / "original")
    info = import_original(tmp_path / "original", tmp_path / "set")
    with pytest.raises(ValueError, match="already holds a dataset"):
        import_original(tmp_path / "original", tmp_path / "set")
    assert import_original(tmp_path / "original", tmp_path / "set", overwrite=True) == info
    assert DatasetInfo.load(tmp_path / "set") == info


# --- Duplicates and text -------------------------------------------------------------------------------------


def a_twin(puzzles, names):
    """Let the first example of 0a, which is trained on, be what 2c asks, turned and in other colours."""
    colours = np.array([4, 1, 2, 3, 0, 5, 6, 7, 8, 9])
    for at, (number, pairs) in enumerate(puzzles[0]):
        asked, answered = puzzles[2][0][1][-1]
        twin = tuple(DIHEDRAL[2](colours[grid]) for grid in (asked, answered))
        if at:
            turn, digits = names[number].split("|||")[1:]
            twin = tuple(DIHEDRAL[int(turn[1])](np.array([*map(int, digits)])[grid]) for grid in twin)
        pairs[0] = twin


@pytest.mark.parametrize("kept", [False, True], ids=["computed", "copied"])
def test_rows_that_another_puzzle_asks_are_left_out_with_all_their_augmentations(tmp_path, capsys, kept):
    arc_folder(tmp_path / "original", spoil=a_twin)
    info = import_original(tmp_path / "original", tmp_path / "set", keep_augmentations=kept)
    assert open_dataset(tmp_path / "set") == info
    assert "turns and colours: " + ("5" if kept else "1") + ", left out" in capsys.readouterr().out
    assert info.arguments["duplicates_left_out"] == {"0a": ["2c"]}
    whole = import_original(
        tmp_path / "original", tmp_path / "whole", keep_augmentations=kept, keep_duplicates=True
    ).splits["train"]
    train = info.splits["train"]
    assert (whole.rows - train.rows, train.groups) == (5 if kept else 1, 3)
    rows, before = read_split(tmp_path / "set", "train"), read_split(tmp_path / "whole", "train")
    # Each form of 0a has two examples, of which the first goes.
    stay = [row for row in range(len(before)) if before.groups[row] > 0 or row % 2 == 1]
    for name in ("inputs", "labels", "puzzle_identifiers", "puzzles", "groups"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(before, name)[stay])


def test_a_folder_whose_text_an_editor_has_saved_is_read(tmp_path):
    arc_folder(tmp_path / "original")
    plain = (tmp_path / "original" / "test_puzzles.json").read_text()
    for path in [*(tmp_path / "original").rglob("*.json")]:
        path.write_bytes(path.read_text().encode("utf-8-sig"))
    import_original(tmp_path / "original", tmp_path / "set")
    assert json.loads((tmp_path / "set" / "test_puzzles.json").read_bytes()) == json.loads(plain)
    assert (tmp_path / "set" / "test_puzzles.json").read_text() == plain
