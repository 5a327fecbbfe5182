"""ARC datasets: reading, tokens, the augmentations that are named, and those that are made."""

import json
from collections import Counter

import numpy as np
import pytest
from arc_helpers import (
    ARC_AGI_1,
    augmented,
    canvas,
    cropped,
    needs_arc,
    public_tasks,
    random_grid,
    random_task,
    turned,
    write_subset,
)
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.check import open_dataset
from trm_ray.data.format import read_identifiers, read_split
from trm_ray.data.identifiers import PuzzleIdentifiers, draw_transforms
from trm_ray.data.rows import DatasetError, TokenBatch
from trm_ray.kinds.arc import read
from trm_ray.kinds.arc.read import Pair, Puzzle, find_augmentations, prepare_arc
from trm_ray.kinds.arc.symmetry import ArcSymmetry

RNG = np.random.default_rng(0)
TASKS = {
    "training": {name: random_task(RNG) for name in ("a", "b", "c")},
    "evaluation": {name: random_task(RNG, train=2, test=1) for name in ("d", "e")},
}


@pytest.fixture
def prefix(tmp_path):
    for subset, tasks in TASKS.items():
        write_subset(tmp_path / "arc", subset, tasks)
    return tmp_path / "arc"


def prepared(prefix, folder="data", **changes):
    arguments = {"subsets": ["training", "evaluation"], "test_set": "evaluation", "augmentations": 20, **changes}
    prepare_arc(prefix.parent / folder, prefix=prefix, **arguments)
    return prefix.parent / folder


def puzzle_of(name, task):
    def pairs(kind):
        return tuple(Pair(*(np.array(pair[side], np.uint8) for side in ("input", "output"))) for pair in task[kind])

    return Puzzle(name, pairs("train"), pairs("test"))


def as_batch(rows):
    return TokenBatch(rows.inputs, rows.labels, rows.puzzle_identifiers)


# ---- tokens ----------------------------------------------------------------------------------------------


def test_a_grid_lies_in_the_corner_with_eos_along_its_lower_and_right_border():
    tokens = read.input_tokens(np.array([[0, 9], [1, 2], [3, 4]], np.uint8)).reshape(30, 30)
    assert tokens[:5, :4].tolist() == [[2, 11, 1, 0], [3, 4, 1, 0], [5, 6, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert tokens.sum() == 2 + 11 + 3 + 4 + 5 + 6 + 5


def test_a_grid_of_thirty_cells_has_no_room_for_eos_and_labels_ignore_padding():
    grid = np.full((30, 2), 7, np.uint8)
    assert read.input_tokens(grid).reshape(30, 30)[:, :4].tolist() == [[9, 9, 1, 0]] * 30
    assert read.label_tokens(grid).reshape(30, 30)[:, :4].tolist() == [[9, 9, 1, -100]] * 30
    assert (read.label_tokens(None) == -100).all()


def test_the_transforms_are_those_of_the_original_and_can_be_undone():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        grid, colours = random_grid(rng), np.append(0, rng.permutation(9) + 1).astype(np.uint8)
        made = read.transformed(grid, seed % 8, colours)
        np.testing.assert_array_equal(made, augmented(grid, seed % 8, colours))
        np.testing.assert_array_equal(read.restored(made, seed % 8, colours), grid)


def test_the_grid_that_is_cut_out_is_the_largest_rectangle_of_colours_in_the_corner():
    rng = np.random.default_rng(1)
    noisy = rng.integers(0, 14, (40, 900))
    mostly_colours = np.where(rng.random((40, 900)) < 0.01, rng.choice([0, 1, 12, -100], (40, 900)), 5)
    ties = np.zeros((1, 30, 30), int)
    ties[0, 0, :2], ties[0, 1, 0] = 2, 2  # 1 × 2 and 2 × 1
    tokens = np.concatenate([noisy, mostly_colours, np.full((1, 900), 3), np.zeros((1, 900), int), ties.reshape(1, -1)])
    for found, row in zip(read.grids_of(tokens), tokens, strict=True):
        np.testing.assert_array_equal(found, cropped(row))
    assert [grid.shape for grid in read.grids_of(tokens)[-3:]] == [(30, 30), (0, 0), (1, 2)]


# ---- the dataset -----------------------------------------------------------------------------------------


def test_shown_pairs_and_the_other_subsets_test_pairs_are_trained_on_and_the_test_sets_are_held_out(prefix):
    folder = prepared(prefix)
    identifiers, train, test = read_identifiers(folder), read_split(folder, "train"), read_split(folder, "test")

    def expected(wanted):
        return [
            (name, canvas(np.array(pair["input"])).tolist(), canvas(np.array(pair["output"]), outside=-100).tolist())
            for subset, tasks in TASKS.items()
            for name, task in tasks.items()
            for kind in ("train", "test")
            for pair in task[kind]
            if (subset == "evaluation" and kind == "test") == wanted
        ]

    for rows, held_out in ((train, False), (test, True)):
        names = [identifiers.name(number) for number in rows.puzzle_identifiers]
        assert list(zip(names, rows.inputs.tolist(), rows.labels.tolist(), strict=True)) == expected(held_out)
        np.testing.assert_array_equal(rows.puzzles, identifiers.puzzle_of(rows.puzzle_identifiers))
        np.testing.assert_array_equal(rows.groups, rows.puzzles)


def test_the_dataset_is_valid_and_the_same_arguments_give_the_same_bytes(prefix):
    one, two = prepared(prefix, "one"), prepared(prefix, "two")
    info = open_dataset(one, require=("train", "test"))
    assert (info.seq_len, info.vocab_size, info.seed, info.symmetry) == (900, 12, 42, {"name": "arc"})
    assert info.num_puzzle_identifiers == 1 + 5 * 21
    assert (info.splits["train"].groups, info.splits["train"].mean_puzzle_examples) == (5, (3 * 5 + 2 * 2) / 5)
    for path in sorted(path for path in one.rglob("*") if path.is_file()):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_the_test_puzzles_lie_beside_the_rows_in_the_public_form(prefix):
    folder = prepared(prefix)
    assert json.loads((folder / "test_puzzles.json").read_text()) == TASKS["evaluation"]


def test_one_file_a_task_gives_the_same_rows(prefix, tmp_path):
    for subset, tasks in TASKS.items():
        (tmp_path / "folders" / subset).mkdir(parents=True)
        for name, task in tasks.items():
            (tmp_path / "folders" / subset / f"{name}.json").write_text(json.dumps(task))
    one, two = prepared(prefix, "one"), prepared(tmp_path / "folders", "two")
    assert read_identifiers(one).digest() == read_identifiers(two).digest()
    for split in ("train", "test"):
        np.testing.assert_array_equal(read_split(one, split).labels, read_split(two, split).labels)
    single = prepared(tmp_path / "folders" / "evaluation", "../single", subsets=["evaluation"])
    assert len(read_split(single, "test")) == 2


def test_hidden_outputs_are_test_rows_without_labels_and_no_training_rows(prefix, capsys):
    for subset, tasks in TASKS.items():
        prefix.with_name(f"arc_{subset}_solutions.json").unlink()
        write_subset(prefix, subset, tasks, solutions=False)
    folder = prepared(prefix)
    train, test = read_split(folder, "train"), read_split(folder, "test")
    assert (test.labels == -100).all()
    assert (train.labels != -100).any(1).all()
    assert len(train) == 3 * 3 + 2 * 2
    assert "output" not in json.loads((folder / "test_puzzles.json").read_text())["d"]["test"][0]
    assert "Subset evaluation: 2 test outputs are not known" in capsys.readouterr().out


def test_no_augmentations_leave_each_puzzle_with_its_own_identifier(prefix):
    assert read_identifiers(prepared(prefix, augmentations=0)).all_names() == ["<blank>", *"abcde"]


def test_a_puzzle_that_is_in_two_subsets_is_one_puzzle_and_held_out_if_one_of_them_is(prefix):
    write_subset(prefix, "training", {**TASKS["training"], "d": TASKS["evaluation"]["d"]})
    write_subset(prefix, "evaluation", TASKS["evaluation"], solutions=False)
    prefix.with_name("arc_evaluation_solutions.json").unlink()
    folder = prepared(prefix)
    assert read_identifiers(folder).names == ("a", "b", "c", "d", "e")
    assert len(read_split(folder, "train")) == 3 * 5 + 2 * 2
    # Its output, hidden in one subset, is known from the other.
    assert (read_split(folder, "test").labels != -100).any(1).tolist() == [True, False]


def test_a_name_that_two_subsets_give_to_different_puzzles_is_refused(prefix):
    write_subset(prefix, "evaluation", {"a": TASKS["evaluation"]["d"]})
    with pytest.raises(DatasetError, match="puzzle a: subsets training and evaluation both have it, and differ"):
        prepared(prefix)


GRID = [[1]]
BAD_GRIDS = [
    ([[1, 2], [3]], "a grid is a list of rows of the same length, at least 1"),
    ([], "at least 1"),
    ([[]], "at least 1"),
    (3, "a list of rows"),
    ([[0] * 31], "the grid is 1 × 31; it may be 30 × 30 at most"),
    ([[10]], "10 is no colour; use 0 to 9"),
    ([[-1]], "-1 is no colour"),
    ([["1"]], "'1' is no colour"),
    ([[True]], "True is no colour"),
    ([[1.0]], r"1\.0 is no colour"),
]


@pytest.mark.parametrize(("grid", "told"), BAD_GRIDS)
def test_a_bad_grid_is_told_with_file_puzzle_and_pair(grid, told, tmp_path):
    bad = {"train": [{"input": GRID, "output": GRID}, {"input": GRID, "output": grid}], "test": [{"input": GRID}]}
    (tmp_path / "arc_training_challenges.json").write_text(
        json.dumps({"fine": {**bad, "train": [bad["train"][0]]}, "x": bad})
    )
    with pytest.raises(DatasetError, match=told) as error:
        prepared(tmp_path / "arc", subsets=["training"], test_set="training")
    assert "arc_training_challenges.json: puzzle x, train pair 1, output" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"train": [], "test": [{"input": GRID}]}, "at least one pair under 'train'"),
        ({"train": [{"input": GRID, "output": GRID}]}, "at least one pair under 'test'"),
        ([], "at least one pair under 'train'"),
        ({"train": [{"input": GRID}], "test": [{"input": GRID}]}, "train pair 0: it must have an input and an output"),
        ({"train": [{"input": GRID, "output": GRID}], "test": [[]]}, "test pair 0: it must have an input"),
    ],
)
def test_a_malformed_task_is_told(task, told, tmp_path):
    (tmp_path / "arc_training_challenges.json").write_text(json.dumps({"x": task}))
    with pytest.raises(DatasetError, match=f"puzzle x.*{told}"):
        prepared(tmp_path / "arc", subsets=["training"], test_set="training")


def test_other_mistakes_are_told_in_one_line(prefix):
    with pytest.raises(ValueError, match="test_set=concept must be one of the subsets; got training, evaluation"):
        prepared(prefix, test_set="concept")
    with pytest.raises(ValueError, match="augmentations=-1 must be at least 0"):
        prepared(prefix, augmentations=-1)
    with pytest.raises(DatasetError, match=r"subset concept: there is neither .*arc_concept_challenges\.json nor"):
        prepared(prefix, subsets=["concept", "evaluation"])
    prefix.with_name("arc_evaluation_solutions.json").write_text('{"d": []}')
    with pytest.raises(DatasetError, match="puzzle d: it must have 1 solutions, one for each test pair"):
        prepared(prefix)
    prefix.with_name("arc_training_challenges.json").write_text("{")
    with pytest.raises(DatasetError, match=r"arc_training_challenges\.json is not valid JSON"):
        prepared(prefix)


@pytest.mark.parametrize(
    "subsets",
    [
        ["--subsets", "training", "evaluation"],
        ["--subsets", "training,evaluation"],
        ["--subsets", "training", "--subsets", "evaluation"],
    ],
)
def test_the_command_takes_its_subsets_as_several_words(prefix, subsets):
    words = ["--input", prefix, *subsets, "--test-set", "evaluation", "--augmentations", 3, "--seed", 7]
    output = prefix.parent / "data"
    result = CliRunner().invoke(app, [str(word) for word in ("prepare", "arc", *words, "--output", output)])
    assert result.exit_code == 0, result.output
    assert "19 train rows, 2 test rows, 5 puzzles, 21 identifiers" in " ".join(result.output.split())
    assert (
        read_identifiers(output).digest() == read_identifiers(prepared(prefix, "x", augmentations=3, seed=7)).digest()
    )


# ---- which augmentations there are -------------------------------------------------------------------------


def slowly_found(puzzle, augmentations, seed):
    """The original's search: keep a trial if the sorted pairs of its puzzle were never seen."""

    def content(dihedral, colours):
        pairs = [
            tuple(
                (made.shape, made.tobytes()) for made in (augmented(g, dihedral, colours) for g in (p.input, p.output))
            )
            for p in (*puzzle.train, *puzzle.test)
        ]
        return tuple(sorted(pairs))

    seen, found = {content(0, np.arange(10))}, []
    for trial in range(5 * augmentations):
        dihedral, colours = (drawn[0] for drawn in draw_transforms(seed, puzzle.name, np.array([trial])))
        made = content(dihedral, colours)
        if made not in seen:
            seen.add(made)
            found.append(trial)
        if len(found) == augmentations:
            break
    return found


def symmetric_tasks():
    """Puzzles of which some transforms are the puzzle itself or each other."""
    plain, cross = [[1]], [[0, 2, 0], [2, 2, 2], [0, 2, 0]]
    stripe, corner = [[3, 0], [3, 0]], [[4, 0], [0, 0]]
    four = [{"input": turned(np.array(corner), t).tolist(), "output": plain} for t in (0, 1, 2, 3)]
    return {
        "one colour": {"train": [{"input": plain, "output": plain}], "test": [{"input": plain, "output": plain}]},
        "all alike": {"train": [{"input": cross, "output": plain}], "test": [{"input": plain, "output": cross}]},
        "half alike": {"train": [{"input": stripe, "output": plain}], "test": [{"input": corner, "output": cross}]},
        "a set of turns": {"train": four[:3], "test": four[3:]},
    }


@pytest.mark.parametrize("name", symmetric_tasks())
def test_symmetric_puzzles_have_the_augmentations_that_a_literal_search_finds(name):
    puzzle = puzzle_of(name, symmetric_tasks()[name])
    assert find_augmentations(puzzle, 40, 42).tolist() == slowly_found(puzzle, 40, 42)


@needs_arc
def test_real_puzzles_have_the_augmentations_that_a_literal_search_finds():
    tasks = {**public_tasks("training"), **public_tasks("evaluation")}
    few_colours = ["332efdb3", "3c9b0459", "67a3c6ac", "a85d4709", "25ff71a9"]
    for name in [*few_colours, *list(tasks)[::160]]:
        puzzle = puzzle_of(name, tasks[name])
        assert find_augmentations(puzzle, 30, 42).tolist() == slowly_found(puzzle, 30, 42), name


def test_a_plain_square_of_one_colour_has_the_eight_other_colours_and_no_turns():
    puzzle = puzzle_of("square", symmetric_tasks()["one colour"])
    found = find_augmentations(puzzle, 1000, 42)
    colours = draw_transforms(42, "square", found)[1]
    assert sorted(colours[:, 1].tolist()) == [2, 3, 4, 5, 6, 7, 8, 9]


def test_the_kth_augmentation_depends_on_seed_puzzle_and_k_alone(prefix):
    def names(folder, puzzle, k):
        identifiers = read_identifiers(folder)
        first = identifiers.first[identifiers.names.index(puzzle)]
        return [identifiers.name(int(first + number)) for number in range(k)]

    reference = prepared(prefix, "reference")
    reordered = {subset: dict(reversed(tasks.items())) for subset, tasks in TASKS.items()}
    more = prepared(prefix, "more", augmentations=50)
    other_order = prepared(prefix, "order", subsets=["evaluation", "training"])
    other_test_set = prepared(prefix, "test", test_set="training")
    fewer_subsets = prepared(prefix, "fewer", subsets=["evaluation"])
    for subset, tasks in reordered.items():
        write_subset(prefix, subset, tasks)
    reversed_files = prepared(prefix, "reversed")
    for folder in (more, other_order, other_test_set, fewer_subsets, reversed_files):
        assert names(folder, "d", 21) == names(reference, "d", 21)
    for folder in (more, other_order, other_test_set, reversed_files):
        assert names(folder, "b", 21) == names(reference, "b", 21)
    assert names(prepared(prefix, "seed", seed=43), "d", 21) != names(reference, "d", 21)


# ---- making them -------------------------------------------------------------------------------------------


@pytest.fixture
def streamed(prefix):
    """Rows of a dataset, its identifiers, and what names each row and puzzle."""
    folder = prepared(prefix)
    rows = read_split(folder, "train")
    keys = {"puzzle_keys": rows.puzzles.astype(np.uint64) + 7, "row_keys": np.arange(len(rows), dtype=np.uint64) * 11}
    return rows, read_identifiers(folder), keys


def test_a_variant_is_the_augmented_grids_in_the_corner(streamed):
    rows, identifiers, _ = streamed
    number = np.arange(len(rows)) % 21
    made = ArcSymmetry(identifiers).variant(as_batch(rows), number)
    np.testing.assert_array_equal(made.puzzle_identifiers, rows.puzzle_identifiers + number)
    for row, identifier in enumerate(made.puzzle_identifiers):
        transform = identifiers.dihedral[identifier], identifiers.colours[identifier]
        asked, answer = cropped(rows.inputs[row]), cropped(rows.labels[row])
        np.testing.assert_array_equal(made.inputs[row], canvas(augmented(asked, *transform)))
        np.testing.assert_array_equal(made.labels[row], canvas(augmented(answer, *transform), outside=-100))
    assert {part.dtype for part in (made.inputs, made.labels, made.puzzle_identifiers)} == {np.dtype(np.int32)}


def test_variant_zero_is_the_row_as_it_is(streamed):
    rows, identifiers, _ = streamed
    made = ArcSymmetry(identifiers).variant(as_batch(rows), np.zeros(len(rows), int))
    for name in ("inputs", "labels", "puzzle_identifiers"):
        np.testing.assert_array_equal(getattr(made, name), getattr(rows, name))


def test_there_is_a_variant_for_each_identifier_of_the_puzzle():
    identifiers = PuzzleIdentifiers.drawn(0, ["a", "b"], [np.arange(5), np.arange(0)])
    assert ArcSymmetry(identifiers).num_variants(np.array([0, 1, 3, 7])).tolist() == [1, 6, 6, 1]


def placed(tokens):
    """Where the colours on a canvas begin, and the grid there."""
    rows, columns = np.nonzero(tokens.reshape(30, 30) >= 2)
    board = tokens.reshape(30, 30)[rows.min() :, columns.min() :]
    whole = np.zeros((30, 30), int)
    whole[: board.shape[0], : board.shape[1]] = board
    return (int(rows.min()), int(columns.min())), cropped(whole)


def test_streamed_rows_are_augmentations_that_were_moved_with_their_answers(streamed):
    rows, identifiers, keys = streamed
    offsets = []
    for epoch in range(8):
        made = ArcSymmetry(identifiers).augment(as_batch(rows), seed=3, epoch=epoch, **keys)
        for row, identifier in enumerate(made.puzzle_identifiers):
            transform = identifiers.dihedral[identifier], identifiers.colours[identifier]
            offset, grid = placed(made.inputs[row])
            answer = augmented(cropped(rows.labels[row]), *transform)
            np.testing.assert_array_equal(grid, augmented(cropped(rows.inputs[row]), *transform))
            np.testing.assert_array_equal(made.inputs[row], canvas(grid, *offset))
            np.testing.assert_array_equal(made.labels[row], canvas(answer, *offset, outside=-100))
            offsets.append(offset)
    assert 0.1 < np.mean([offset == (0, 0) for offset in offsets]) < 0.45
    assert max(row for row, _ in offsets) > 24


def test_a_puzzles_rows_share_their_augmentation_and_epochs_visit_all_of_them(streamed):
    rows, identifiers, keys = streamed
    symmetry, visits = ArcSymmetry(identifiers), Counter()
    for epoch in range(400):
        made = symmetry.augment(as_batch(rows), seed=3, epoch=epoch, **keys)
        picked = {(puzzle, number) for puzzle, number in zip(rows.puzzles, made.puzzle_identifiers, strict=True)}
        assert len(picked) == 5
        visits.update(picked)
    assert {number for _, number in visits} == set(range(1, len(identifiers)))
    # Binomial: 400 / 21 = 19 visits each, and 6 standard deviations of 4.3.
    assert max(visits.values()) < 45


def test_a_row_becomes_the_same_in_whatever_batch_it_is(streamed):
    rows, identifiers, keys = streamed
    symmetry = ArcSymmetry(identifiers)
    epochs = np.arange(len(rows)) % 3
    whole = symmetry.augment(as_batch(rows), seed=3, epoch=epochs, **keys)
    for row in (0, 5, 18):
        one = {name: key[[row]] for name, key in keys.items()}
        alone = symmetry.augment(as_batch(rows[np.array([row])]), seed=3, epoch=int(epochs[row]), **one)
        np.testing.assert_array_equal(alone.inputs[0], whole.inputs[row])
        np.testing.assert_array_equal(alone.labels[0], whole.labels[row])


def test_a_row_of_an_augmentation_lies_in_one_place_in_every_epoch(streamed):
    rows, identifiers, keys = streamed
    places = {}
    for epoch in range(100):
        made = ArcSymmetry(identifiers).augment(as_batch(rows), seed=3, epoch=epoch, **keys)
        for row, identifier in enumerate(made.puzzle_identifiers.tolist()):
            places.setdefault((row, identifier), set()).add(int((made.inputs[row] >= 2).argmax()))
    assert {len(found) for found in places.values()} == {1}


def test_places_are_uniform_over_what_fits_both_grids_and_a_quarter_stays():
    grids = np.ones((4, 27), np.uint8), np.ones((28, 3), np.uint8)
    identifiers = PuzzleIdentifiers.plain(["a"])
    size = 12_000
    batch = TokenBatch(
        *(
            np.tile(tokens(grid), (size, 1))
            for tokens, grid in zip((read.input_tokens, read.label_tokens), grids, strict=True)
        ),
        np.ones(size, np.int32),
    )
    keys = {"puzzle_keys": np.zeros(size, np.uint64), "row_keys": np.arange(size, dtype=np.uint64)}
    made = ArcSymmetry(identifiers).augment(batch, seed=0, epoch=0, **keys)
    first = (made.inputs >= 2).argmax(1)
    counts = Counter(zip((first // 30).tolist(), (first % 30).tolist(), strict=True))
    assert set(counts) == {(row, column) for row in range(3) for column in range(4)}
    # A twelfth of three quarters each, and a quarter more in the corner; 5 standard deviations of 26 and 45.
    assert abs(counts.pop((0, 0)) - (3000 + 750)) < 230
    assert max(abs(count - 750) for count in counts.values()) < 130


def test_a_row_without_a_known_answer_is_moved_as_its_input_allows_and_still_has_none(streamed):
    rows, identifiers, keys = streamed
    hidden = TokenBatch(rows.inputs, np.full_like(rows.labels, -100), rows.puzzle_identifiers)
    made = ArcSymmetry(identifiers).augment(hidden, seed=3, epoch=0, **keys)
    assert (made.labels == -100).all()
    for row, identifier in enumerate(made.puzzle_identifiers):
        transform = identifiers.dihedral[identifier], identifiers.colours[identifier]
        offset, grid = placed(made.inputs[row])
        np.testing.assert_array_equal(grid, augmented(cropped(rows.inputs[row]), *transform))
        np.testing.assert_array_equal(made.inputs[row], canvas(grid, *offset))


def test_padding_rows_stay_padding():
    blank = TokenBatch(np.zeros((2, 900), np.int32), np.full((2, 900), -100, np.int32), np.zeros(2, np.int32))
    keys = {"puzzle_keys": np.zeros(2, np.uint64), "row_keys": np.zeros(2, np.uint64)}
    for identifiers in (PuzzleIdentifiers.blank(), PuzzleIdentifiers.plain(["a"])):
        made = ArcSymmetry(identifiers).augment(blank, seed=0, epoch=0, **keys)
        for name in ("inputs", "labels", "puzzle_identifiers"):
            np.testing.assert_array_equal(getattr(made, name), getattr(blank, name))


# ---- the real thing ----------------------------------------------------------------------------------------


@needs_arc
def test_the_real_benchmark_has_the_rows_that_the_public_files_have(tmp_path, capsys):
    prepare_arc(
        tmp_path / "arc1",
        prefix=ARC_AGI_1,
        subsets=["training", "evaluation", "concept"],
        test_set="evaluation",
        augmentations=10,
    )
    tasks = {subset: public_tasks(subset).values() for subset in ("training", "evaluation", "concept")}
    shown = sum(len(task["train"]) for subset in tasks.values() for task in subset)
    others = sum(len(task["test"]) for subset in ("training", "concept") for task in tasks[subset])
    info = open_dataset(tmp_path / "arc1", require=("train", "test"))
    # Two pairs of the training set are test pairs of the evaluation set.
    assert info.splits["train"].rows + 2 == shown + others == 3988
    assert info.arguments["duplicates_left_out"] == {"40853293": ["070dd51e"], "caa06a1f": ["50a16a69"]}
    told = capsys.readouterr().out
    assert "another puzzle, up to turns and colours: 2, left out" in told
    assert "MoveToBoundary10 and MoveToBoundary9 (2)" in told
    assert info.splits["test"].rows == sum(len(task["test"]) for task in tasks["evaluation"]) == 419
    assert info.splits["train"].groups == 960
