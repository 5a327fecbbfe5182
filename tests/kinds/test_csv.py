"""CSV files of puzzles as spreadsheets, archives and other people write them."""

import csv
import gzip
import io
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.format import read_split
from trm_ray.data.rows import DatasetError
from trm_ray.kinds.maze.read import prepare_maze_from_csv
from trm_ray.kinds.sudoku import generate
from trm_ray.kinds.sudoku.read import prepare_sudoku_from_csv

HEADER = ["source", "question", "answer", "rating"]


def made(seed, count):
    """Rows of different puzzles with one solution each."""
    rng = np.random.default_rng(seed)
    grids = generate.random_grids(count, 9, rng)
    questions = generate.dig(grids, np.full(count, 40), "singles", rng)
    texts = (("".join(map(str, board)) for board in part) for part in (questions, grids))
    return [["made", q.replace("0", "."), a, str(n)] for n, (q, a) in enumerate(zip(*texts, strict=True))]


ROWS = made(0, 8)


def several(row):
    """The same puzzle without two rows of a band: their digits may change places column by column, or whole."""
    source, question, answer, rating = row
    return [source, f"{'.' * 18}{question[18:]}", answer, rating]


def written(header, rows, **dialect):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", **dialect).writerows([header, *rows])
    return file.getvalue()


PLAIN = written(HEADER, ROWS)
SAVED = {
    "a mark": PLAIN.encode("utf-8-sig"),
    "utf-16": PLAIN.replace("\n", "\r\n").encode("utf-16"),
    "utf-16, big-endian": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "crlf": PLAIN.replace("\n", "\r\n").encode(),
    "lone cr": PLAIN.replace("\n", "\r").encode(),
    "blank lines": ("\n\n" + PLAIN.replace("\n", "\n \n\n") + "\n\n").encode(),
    "rows of separators": (PLAIN.replace("\n", "\n,,,\n") + ",,,,,\n").encode(),
    "trailing blanks": PLAIN.replace("\n", " \t\n").encode(),
    "capitals": PLAIN.replace(",".join(HEADER), "Source,QUESTION,Answer,Rating").encode(),
    "blanks around": PLAIN.replace(",", " ,  ").encode(),
    "another order": written(HEADER[::-1], [row[::-1] for row in ROWS]).encode(),
    "more columns": written(["id", *HEADER, "größe"], [["1", *row, "zäh"] for row in ROWS]).encode("latin-1"),
    "empty columns": written([*HEADER, "", ""], [[*row, "", ""] for row in ROWS]).encode(),
    "other names": written(["Puzzle", "Solution"], [row[1:3] for row in ROWS]).encode(),
    "quizzes": written(["quizzes", "solutions"], [row[1:3] for row in ROWS]).encode(),
    "words for difficulty": written(
        ["puzzle", "solution", "difficulty"], [[*row[1:3], "hard"] for row in ROWS]
    ).encode(),
    "no ratings": written(HEADER, [[*row[:3], ""] for row in ROWS]).encode(),
    "semicolons": written(HEADER, ROWS, delimiter=";").encode("utf-8-sig"),
    "tabs": written(HEADER, ROWS, delimiter="\t").encode(),
    "sep=": ("sep=|\r\n" + written(HEADER, ROWS, delimiter="|")).encode(),
    "quoted": written(HEADER, [["a, b\nc", *row[1:]] for row in ROWS], quoting=csv.QUOTE_ALL).encode(),
    "packed": gzip.compress(PLAIN.encode("utf-8-sig")),
}


def prepared(folder, content, name="all.csv", **changes):
    (folder / name).write_bytes(content)
    prepare_sudoku_from_csv(folder / name, folder / "set", **{"test": 2, "overwrite": True, **changes})
    return read_split(folder / "set", "train"), read_split(folder / "set", "test")


def recorded(folder):
    return json.loads((folder / "set" / "chosen_rows.json").read_text())


def questions(rows):
    return {"".join(map(str, board)).replace("0", ".") for board in rows.inputs - 1}


@pytest.mark.parametrize("name", SAVED)
def test_the_puzzles_are_the_same_however_a_file_was_saved(tmp_path, name):
    train, test = prepared(tmp_path, SAVED[name], "all.csv.gz" if name == "packed" else "all.csv")
    assert (len(train), len(test)) == (6, 2)
    assert questions(train) | questions(test) == {row[1] for row in ROWS}
    by_question = {row[1]: row[2] for row in ROWS}
    for rows in (train, test):
        for asked, answered in zip(rows.inputs - 1, rows.labels - 1, strict=True):
            assert by_question["".join(map(str, asked)).replace("0", ".")] == "".join(map(str, answered))


def test_lines_are_counted_with_those_that_are_blank(tmp_path):
    text = "\r\n" + PLAIN.replace("\n", "\r\n\r\n")
    train, _ = prepared(tmp_path, text.encode())
    lines = text.split("\r\n")
    chosen = recorded(tmp_path)["train"]["lines"]
    assert {lines[line - 1].split(",")[1] for line in chosen} == questions(train)
    with pytest.raises(DatasetError, match=r"all.csv:21: question has 80 characters, '"):
        prepared(tmp_path, (text + f"\nx,{ROWS[0][1][1:]},{ROWS[0][2]},1\n").encode())


def test_a_puzzle_without_a_rating_is_less_than_any_difficulty(tmp_path):
    rows = [[*row[:3], "" if n % 2 else row[3]] for n, row in enumerate(ROWS)]
    train, test = prepared(tmp_path, written(HEADER, rows).encode(), min_difficulty=2, test=1)
    assert questions(train) | questions(test) == {ROWS[n][1] for n in (2, 4, 6)}
    with pytest.raises(DatasetError, match=r"has no column rating, which min_difficulty=2 asks for"):
        prepared(tmp_path, SAVED["other names"], min_difficulty=2)
    with pytest.raises(DatasetError, match=r":2: rating 'hard' must be a number"):
        prepared(tmp_path, SAVED["words for difficulty"], min_difficulty=2)


def test_a_folder_may_hold_packed_files_and_what_a_mac_leaves_there(tmp_path):
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(PLAIN.encode()))
    (tmp_path / "test.csv").write_text(written(HEADER, made(1, 3)))
    (tmp_path / "._train.csv").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "__MACOSX").mkdir()
    info = prepare_sudoku_from_csv(tmp_path, tmp_path / "set")
    assert (info.splits["train"].rows, info.splits["test"].rows) == (8, 3)
    assert list(info.arguments["files"]) == ["train.csv.gz", "test.csv"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.csv.zip", b"PK\x03\x04", r"x.csv.zip is not read; .csv and .csv.gz are: unpack it"),
        ("x.XLSX", b"PK\x03\x04", r"x.XLSX is not read; .csv and .csv.gz are"),
        ("x.csv", b"PK\x03\x04\x14\x00\x06\x00", r"x.csv:1: it is no text in UTF-8 or UTF-16; save it as CSV"),
        ("x.csv", PLAIN.encode("utf-16-le"), r"x.csv:1: it is no text in UTF-8 or UTF-16"),
        ("x.csv.gz", gzip.compress(PLAIN.encode())[:-20], r"x.csv.gz is cut short or damaged"),
        ("x.csv.gz", gzip.compress(PLAIN.encode())[:40] + b"?" * 400, r"x.csv.gz is cut short or damaged"),
        ("x.csv", b"", r"x.csv is empty; its first line must name the columns question and answer"),
        ("x.csv", b"\n\nquestion\n", r"x.csv:3: the header is 'question'; it must name the columns"),
        ("x.csv", PLAIN.encode()[:-1] + b"\nx,\xff\xfe,,\n", r"x.csv:10: question has 2 characters"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, name, content, told):
    with pytest.raises(DatasetError, match=told) as caught:
        prepared(tmp_path, content, name)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


# ---- puzzles with several answers ------------------------------------------------------------------------


def test_puzzles_with_several_solutions_are_counted_left_out_and_recorded(tmp_path, capsys):
    text = written(HEADER, [*ROWS[:3], several(ROWS[3]), *ROWS[4:7], several(ROWS[7])]).encode()
    train, test = prepared(tmp_path, text)
    assert (
        "2 of 8 puzzles have more than one solution (the first is all.csv:5) and are left out"
        in capsys.readouterr().out
    )
    assert questions(train) | questions(test) == {ROWS[n][1] for n in (0, 1, 2, 4, 5, 6)}
    assert recorded(tmp_path)["train"]["ambiguous_lines_left_out"] == [5, 9]
    kept, held_out = prepared(tmp_path, text, keep_ambiguous=True)
    assert "2 of 8 puzzles have more than one solution (the first is all.csv:5) and are kept" in capsys.readouterr().out
    assert len(kept) + len(held_out) == 8
    assert "ambiguous_lines_left_out" not in recorded(tmp_path)["train"]


def test_a_good_file_gives_the_same_bytes_whether_ambiguous_puzzles_are_kept_or_not(tmp_path, capsys):
    prepared(tmp_path, PLAIN.encode())
    before = (tmp_path / "set" / "chosen_rows.json").read_bytes()
    assert "more than one solution" not in capsys.readouterr().out
    prepared(tmp_path, PLAIN.encode(), keep_ambiguous=True)
    assert (tmp_path / "set" / "chosen_rows.json").read_bytes() == before


def test_a_test_file_is_judged_too_and_a_drawn_number_is_filled_up(tmp_path, capsys):
    (tmp_path / "train.csv").write_text(PLAIN)
    others = made(1, 4)
    (tmp_path / "test.csv").write_text(written(HEADER, [several(others[0]), *others[1:]]))
    for seed in range(4):
        prepare_sudoku_from_csv(tmp_path, tmp_path / "set", test=3, subsample=8, seed=seed, overwrite=True)
        assert recorded(tmp_path)["test"]["lines"] == [3, 4, 5]
    assert "have more than one solution (test.csv:2) and are left out" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="test=4 is more than the 3 puzzles"):
        prepare_sudoku_from_csv(tmp_path, tmp_path / "other", test=4)
    (tmp_path / "test.csv").write_text(written(HEADER, [several(row) for row in others]))
    with pytest.raises(DatasetError, match="no test puzzle is left: all have more than one solution"):
        prepare_sudoku_from_csv(tmp_path, tmp_path / "other")


def test_where_too_few_training_puzzles_are_left_it_says_what_became_of_them(tmp_path):
    rows = [*ROWS[:2], several(ROWS[2])]
    (tmp_path / "train.csv").write_text(written(HEADER, rows))
    (tmp_path / "test.csv").write_text(written(HEADER, ROWS[:2]))
    why = "1 with more than one solution (--keep-ambiguous takes them), 2 symmetric to a test puzzle"
    with pytest.raises(DatasetError) as caught:
        prepare_sudoku_from_csv(tmp_path, tmp_path / "set")
    told = f"no training puzzle is left of the 3 in {tmp_path / 'train.csv'}: {why}; take fewer test puzzles (--test)"
    assert str(caught.value) == told
    with pytest.raises(
        DatasetError, match=r"no training .* 2 held out for the test split, 1 with more .*s \(--test\)$"
    ):
        prepare_sudoku_from_csv(tmp_path / "train.csv", tmp_path / "set", test=2)
    with pytest.raises(DatasetError, match=r"subsample=3 is more than the 1 puzzles that are left of .*: 1 held out"):
        prepare_sudoku_from_csv(tmp_path / "train.csv", tmp_path / "set", test=1, subsample=3)


def test_mazes_with_several_shortest_paths_are_treated_alike(tmp_path, capsys):
    around = ("S   #   G", "Soo #o  G")  # two ways around the wall, both of four steps
    mazes = [("S## ## G ", "S##o##oG "), ("SG       ", "SG       "), around]
    rows = [["made", *maze, "1"] for maze in mazes]
    (tmp_path / "all.csv").write_text(written(HEADER, rows))
    info = prepare_maze_from_csv(tmp_path / "all.csv", tmp_path / "set", test=1)
    assert sum(split.rows for split in info.splits.values()) == 2
    assert "1 of 3 puzzles have several shortest paths (all.csv:4) and are left out" in capsys.readouterr().out
    info = prepare_maze_from_csv(tmp_path / "all.csv", tmp_path / "kept", test=1, keep_ambiguous=True)
    assert sum(split.rows for split in info.splits.values()) == 3


def test_the_commands_keep_ambiguous_puzzles_where_that_is_asked_for(tmp_path):
    (tmp_path / "all.csv").write_text(written(HEADER, [*ROWS[:4], several(ROWS[4])]))
    words = ["prepare", "sudoku", "--from-csv", str(tmp_path / "all.csv"), "--test", "1", "--output"]
    told = CliRunner().invoke(app, [*words, str(tmp_path / "set")])
    assert "1 of 5 puzzles have more than one solution (all.csv:6) and are left out; --keep-ambiguous" in told.stdout
    assert "4 train, 1 test" in CliRunner().invoke(app, [*words, str(tmp_path / "kept"), "--keep-ambiguous"]).stdout
    refused = CliRunner().invoke(app, ["prepare", "sudoku", "--keep-ambiguous", "--output", str(tmp_path / "none")])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
