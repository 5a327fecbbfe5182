import hashlib
import json
from collections import deque

import numpy as np
import pytest
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.check import open_dataset
from trm_ray.data.format import read_split
from trm_ray.kinds.maze import generate, read, rules

# A loop: down and around takes 4 steps, up and around 6.
QUESTION = "\n".join(["     ", " ### ", " #S# ", "  G  ", "#####"])
LOOP = "\n".join(["S G#", " ## ", "    ", "####"])
SHORT = "\n".join(["SoG#", " ## ", "    ", "####"])
LONG = "\n".join(["S    ", " ### ", "     ", " ##G ", "#    "])
HEADER = "source,question,answer,rating"


def tokens(text):
    return rules.parse_maze(text)


def walk(question):
    """Breadth first by hand: the length of the shortest way from S to G and how many such ways there are."""
    lines = [question[at : at + int(len(question) ** 0.5)] for at in range(0, len(question), int(len(question) ** 0.5))]
    find = {c: (r, line.index(c)) for r, line in enumerate(lines) for c in "SG" if c in line}
    steps, ways, queue = {find["S"]: 0}, {find["S"]: 1}, deque([find["S"]])
    while queue:
        r, c = queue.popleft()
        for cell in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if not all(0 <= x < len(lines) for x in cell) or lines[cell[0]][cell[1]] == "#":
                continue
            if cell not in steps:
                steps[cell], ways[cell] = steps[(r, c)] + 1, 0
                queue.append(cell)
            if steps[cell] == steps[(r, c)] + 1:
                ways[cell] += ways[(r, c)]
    return steps.get(find["G"], -1), ways.get(find["G"], 0)


def text_of(row):
    return "".join("?# SGo"[token] for token in row)


def eight(text):
    size = int(len(text) ** 0.5)
    board = np.array(list(text)).reshape(size, size)
    return {"".join(np.rot90(b, k).ravel()) for b in (board, board.T) for k in range(4)}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mazes") / "set"
    return folder, generate.prepare_maze(folder, size=12, min_length=20, train=60, test=40, seed=3)


def test_a_maze_is_read_character_by_character():
    assert tokens("S G#").tolist() == [3, 2, 4, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("S G", "got 3"), ("SxG ", "'x' is no character"), ("S  #", "one G; got 0"), ("SSG ", "one S; got 2")],
)
def test_unreadable_mazes_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        tokens(text)


def test_every_answer_is_the_only_shortest_path_and_long_enough(generated):
    folder, info = generated
    assert (info.seq_len, info.vocab_size, info.symmetry) == (144, 6, None)
    for split in ("train", "test"):
        rows = read_split(folder, split)
        np.testing.assert_array_equal(rows.puzzles, rows.groups)
        for asked, answered in zip(map(text_of, rows.inputs), map(text_of, rows.labels), strict=True):
            length, ways = walk(asked)
            assert (ways, length >= 20, asked.count("S"), asked.count("G")) == (1, True, 1, 1)
            assert answered.replace("o", " ") == asked
            # With one shortest way, a way through the marked cells of that many steps is it.
            assert answered.count("o") == length - 1
            assert walk(answered.replace(" ", "#").replace("o", " ")) == (length, 1)


def test_mazes_have_no_loops_and_leave_no_cell_apart():
    free = generate.random_mazes(50, 9, np.random.default_rng(0))
    doors = (free[:, 1:] & free[:, :-1]).sum((1, 2)) + (free[:, :, 1:] & free[:, :, :-1]).sum((1, 2))
    np.testing.assert_array_equal(doors, free.sum((1, 2)) - 1)  # as many as a tree has
    boards = np.where(free, 2, 1).reshape(50, -1)
    for board in boards:
        ends = np.flatnonzero(board == 2)[[0, -1]]
        board[ends] = 3, 4
        assert walk(text_of(board))[0] > 0  # and a forest of so many doors would be in pieces


def test_no_test_maze_is_a_turned_or_mirrored_training_maze(generated):
    folder, _ = generated
    train, test = ([text_of(row) for row in read_split(folder, split).inputs] for split in ("train", "test"))
    turned = {form for text in train for form in eight(text)}
    assert not turned & set(test)
    assert len({min(eight(text)) for text in test}) == 40


def test_turned_and_mirrored_mazes_share_their_form():
    boards = np.stack([tokens(text) for text in sorted(eight(QUESTION.replace("\n", "")))])
    assert len(boards) == 4  # this one is its own mirror image
    assert len(set(rules.canonical_forms(boards))) == 1
    assert rules.canonical_forms(boards)[:1] != rules.canonical_forms(np.stack([tokens(LONG)]))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_however_many_processes(tmp_path):
    arguments = {"size": 8, "min_length": 8, "train": 300, "test": 50}
    for name, more in (("one", {"processes": 1}), ("two", {"processes": 2}), ("other", {"seed": 1})):
        generate.prepare_maze(tmp_path / name, **arguments, **more)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_a_larger_training_split_leaves_the_test_split_as_it_is(tmp_path):
    for name, train in (("small", 10), ("large", 200)):
        generate.prepare_maze(tmp_path / name, size=8, min_length=8, train=train, test=20)
    small, large = (read_split(tmp_path / name, "test").inputs for name in ("small", "large"))
    np.testing.assert_array_equal(small, large)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_length": 90}, r"min_length=90 is too long for size=8: .* has \d+ steps; use at most \d+, which half"),
        ({"size": 3}, "size=3 must be at least 4"),
        ({"min_length": 0}, "min_length=0 must be at least 1"),
        ({"train": 0}, "train=0 must be at least 1"),
        ({"test": -1}, "test=-1 must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"augment": "yes"}, "augment='yes' must be none or dihedral"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        generate.prepare_maze(tmp_path / "set", **{"size": 8, "min_length": 8, "train": 5, "test": 5, **changes})
    assert not (tmp_path / "set").exists()


def test_a_chunk_without_a_long_enough_path_is_empty():
    assert generate._chunk(generate._Recipe(size=8, min_length=99, seed=0), 0).forms == []


def test_what_is_said_to_be_possible_is_possible(tmp_path):
    with pytest.raises(ValueError, match="use at most") as refused:
        generate.prepare_maze(tmp_path / "set", size=8, min_length=90, train=5, test=5)
    length = int(str(refused.value).split("use at most ")[1].split(",")[0])
    generate.prepare_maze(tmp_path / "set", size=8, min_length=length, train=5, test=5)


def test_dihedral_augmentation_is_named_where_it_is_asked_for(tmp_path):
    generate.prepare_maze(tmp_path / "set", size=8, min_length=8, train=5, test=5, augment="dihedral")
    assert open_dataset(tmp_path / "set").symmetry == {"name": "dihedral"}


@pytest.mark.parametrize(
    ("answer", "valid", "shortest"),
    [
        ("SoG#\n ## \n    \n####", True, True),
        ("S G#\n ## \n    \n####", False, False),  # nothing marked
        ("SoG#\no## \n    \n####", False, False),  # a dead end besides
        ("SoG#\n ## \n  oo\n####", False, False),  # marked cells apart
        ("SoGo\n ## \n    \n####", False, False),  # through a wall
        ("SoG \n ## \n    \n####", False, False),  # a wall taken away
        ("oSG#\n ## \n    \n####", False, False),  # the start moved
    ],
)
def test_an_answer_is_valid_when_the_marked_cells_are_a_path(answer, valid, shortest):
    predicted = np.array(["?# SGo".index(c) for c in answer if c != "\n"])
    assert bool(rules.is_valid_answer(tokens(LOOP), predicted)) is valid
    assert bool(rules.is_shortest_answer(tokens(LOOP), predicted)) is shortest


def test_a_longer_path_is_valid_but_not_the_shortest():
    question = tokens("S G \n ## \n    \n####")
    around = tokens("S G \no## \noooo\n####")
    assert not rules.is_valid_answer(question, around)  # does not reach G
    around = tokens("S Go\no##o\noooo\n####")
    assert (bool(rules.is_valid_answer(question, around)), bool(rules.is_shortest_answer(question, around))) == (
        True,
        False,
    )
    assert rules.shortest_lengths(question) == 2


def test_answers_are_judged_in_batches_as_they_are_one_by_one(generated):
    rows = read_split(generated[0], "test")
    spoiled = np.where(np.random.default_rng(0).random(rows.labels.shape) < 0.005, 0, rows.labels)
    together = rules.is_valid_answer(rows.inputs, spoiled)
    assert 0 < together.sum() < len(together)
    assert together.tolist() == [bool(rules.is_valid_answer(q, a)) for q, a in zip(rows.inputs, spoiled, strict=True)]
    np.testing.assert_array_equal(together, (spoiled == rows.labels).all(1))
    assert rules.is_shortest_answer(rows.inputs, rows.labels).all()


def test_start_beside_goal_needs_no_mark_and_a_walled_in_goal_has_no_way():
    assert rules.is_valid_answer(tokens("SG##"), tokens("SG##"))
    assert rules.shortest_lengths(tokens("S##G")) == -1
    assert not rules.is_shortest_answer(tokens("S##G"), tokens("S##G"))


# --- CSV -----------------------------------------------------------------------------------------------------


def csv_lines(generated, split):
    rows = read_split(generated[0], split)
    return [
        f"made,{text_of(q)},{text_of(a)},{n}" for n, (q, a) in enumerate(zip(rows.inputs, rows.labels, strict=True))
    ]


def write_csv(path, lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def turned(line):
    source, *texts, rating = line.split(",")
    return ",".join([source, *("".join(np.rot90(np.array(list(t)).reshape(12, 12)).ravel()) for t in texts), rating])


def test_a_folder_of_public_csv_files_becomes_the_dataset_without_leaks(generated, tmp_path):
    train, test = csv_lines(generated, "train"), csv_lines(generated, "test")
    write_csv(tmp_path / "train.csv", [*train, turned(test[4])])
    write_csv(tmp_path / "test.csv", test)
    info = read.prepare_maze_from_csv(tmp_path, tmp_path / "set")
    assert open_dataset(tmp_path / "set") == info
    for split in ("train", "test"):
        ours, theirs = read_split(generated[0], split), read_split(tmp_path / "set", split)
        np.testing.assert_array_equal(ours.inputs, theirs.inputs)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_a_subsample_of_mazes_is_seeded_and_recorded(generated, tmp_path):
    file = write_csv(tmp_path / "all.csv", csv_lines(generated, "train"))
    chosen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        read.prepare_maze_from_csv(file, tmp_path / name, test=5, subsample=7, seed=seed)
        chosen.append(json.loads((tmp_path / name / "chosen_rows.json").read_text()))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert chosen[0]["train"]["lines"] != chosen[2]["train"]["lines"]
    assert chosen[0]["train"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    lines = file.read_text().splitlines()
    asked = [lines[line - 1].split(",")[1] for line in chosen[0]["train"]["lines"]]
    assert [text_of(row) for row in read_split(tmp_path / "a", "train").inputs] == asked


@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("S G######", "SoG#####", r":3: answer has 8 characters"),
        ("SxG######", "SoG######", r":3: SxG######: the question must hold the characters `# SG`"),
        ("SoG######", "SoG######", r":3: SoG######: the question must hold"),
        ("S G######", "SxG######", r":3: SxG######: the answer must hold the characters `# SGo`"),
        ("S  ######", "So ######", r":3: S  ######: the question must have exactly one S and one G"),
        ("S GS#####", "SoGS#####", r":3: S GS#####: the question must have exactly one"),
        ("S G######", "SoG #####", r":3: SoG #####: the answer does not agree with the question outside o"),
        ("S G######", "S G######", r":3: S G######: the cells marked with o do not lead from S to G"),
    ],
)
def test_a_malformed_csv_line_is_named(tmp_path, question, answer, message):
    file = write_csv(tmp_path / "all.csv", ["made,SG       ,SG       ,1", f"made,{question},{answer},1"])
    with pytest.raises(ValueError, match=message):
        read.prepare_maze_from_csv(file, tmp_path / "set", test=1)
    assert not (tmp_path / "set").exists()


def test_a_question_that_is_no_square_is_refused(tmp_path):
    file = write_csv(tmp_path / "all.csv", ["made,SG   ,SG   ,1"])
    with pytest.raises(ValueError, match=r"all.csv:2: question has 5 characters, 'SG   '; a maze is a square"):
        read.prepare_maze_from_csv(file, tmp_path / "set", test=1)


def test_answers_that_take_a_detour_are_kept_and_told(tmp_path, capsys):
    detour = "made,S G #    ,S Go#oooo,1"
    file = write_csv(tmp_path / "all.csv", ["made,SG       ,SG       ,1", detour])
    read.prepare_maze_from_csv(file, tmp_path / "set", test=1)
    assert "1 answers are paths with a shorter way" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "6", "--min-length", "99"], "min_length=99 is too long for size=6"),
        (["--subsample", "9"], "name it with --from-csv FILE"),
        (["--from-csv", "nothing.csv"], "nothing.csv does not exist"),
        (["--augment", "x"], "augment='x' must be none or dihedral"),
    ],
)
def test_the_command_tells_what_is_impossible_in_one_line(tmp_path, arguments, message):
    told = CliRunner().invoke(app, ["prepare", "maze", "--output", str(tmp_path / "set"), *arguments])
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
    assert message in told.stderr


def test_the_command_makes_what_it_was_asked_for(tmp_path):
    arguments = ["--size", "7", "--min-length", "6", "--train", "9", "--test", "4", "--augment", "dihedral"]
    told = CliRunner().invoke(app, ["prepare", "maze", "--output", str(tmp_path / "set"), *arguments])
    info = open_dataset(tmp_path / "set")
    assert (told.exit_code, info.splits["train"].rows, info.splits["test"].rows, info.seq_len) == (0, 9, 4, 49)
    assert info.symmetry == {"name": "dihedral"}
