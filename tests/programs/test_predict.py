"""Puzzles from text through a model to boards, JSON and a film."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from prediction_helpers import checkpoint
from typer.testing import CliRunner, Result

from trm_ray.cli import app
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.interop.loading import load_model
from trm_ray.kinds.registry import kind_of
from trm_ray.kinds.sudoku.kind import Sudoku
from trm_ray.programs.predict import identify, kind_for, predict, remark
from trm_ray.training.inference import solve
from trm_ray.training.state import TokenShape

SOLVED = "1234341221434321"
PUZZLE = "1..4.41..1..4..1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a final model and nothing else: no data, no config."""
    checkpoint(tmp_path / "run" / "final_model")
    return tmp_path / "run"


def call(*words: str | Path, stdin: str | bytes = "") -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["predict", *map(str, words)], input=stdin)


# ---- the prediction itself -------------------------------------------------------------------------------


def test_each_segment_holds_the_likeliest_tokens_and_the_halt_probability(run: Path):
    loaded, kind = load_model(run), Sudoku(4)
    questions = kind.read(f"{PUZZLE}\n{SOLVED}", "", "")
    expected = solve(loaded, torch.from_numpy(np.stack([q.inputs for q in questions])), segments=5)
    predictions = list(predict(loaded, kind, questions, num_segments=5))
    for row, prediction in enumerate(predictions):
        assert [segment.number for segment in prediction.segments] == [1, 2, 3, 4, 5]
        found = np.stack([segment.tokens for segment in prediction.segments])
        assert found.tolist() == expected.logits[:, row].argmax(-1).tolist()
        halts = [segment.halt_probability for segment in prediction.segments]
        assert halts == pytest.approx(expected.halt_logits[:, row].sigmoid().tolist())


def test_changes_are_counted_from_the_segment_before_and_at_first_from_the_puzzle(run: Path):
    kind = Sudoku(4)
    [prediction] = predict(load_model(run), kind, kind.read(PUZZLE, "", ""), num_segments=4)
    boards = [prediction.question.inputs, *(segment.tokens for segment in prediction.segments)]
    for before, after, segment in zip(boards, boards[1:], prediction.segments, strict=False):
        assert segment.changed.tolist() == (before != after).tolist()


def test_as_many_segments_as_in_training_are_run_unless_others_are_asked_for(run: Path):
    loaded, kind = load_model(run), Sudoku(4)
    [prediction] = predict(loaded, kind, kind.read(PUZZLE, "", ""))
    assert len(prediction.segments) == loaded.halt_max_steps == 3


@pytest.mark.parametrize(("bias", "halting"), [(-5.0, None), (0.5, 1)])
def test_the_halting_segment_is_the_first_whose_probability_exceeds_one_half(tmp_path: Path, bias, halting):
    loaded, kind = load_model(checkpoint(tmp_path / "model", halt_bias=bias)), Sudoku(4)
    [prediction] = predict(loaded, kind, kind.read(PUZZLE, "", ""))
    assert prediction.halting_segment == halting
    assert [frame.halts for frame in prediction.frames()] == [halting == 1, False, False]


def test_progress_counts_every_puzzle_in_every_segment(run: Path):
    kind, told = Sudoku(4), []
    questions = kind.read(f"{PUZZLE}\n" * 600, "", "")  # more than one batch of 512
    assert len(list(predict(load_model(run), kind, questions, num_segments=2, advance=told.append))) == 600
    assert told == [512, 512, 88, 88]


def test_a_4x4_board_is_a_maze_where_the_task_says_so(run: Path):
    loaded = load_model(run)
    assert kind_for(loaded) == Sudoku(4)
    object.__setattr__(loaded.config, "data_paths", ["data/maze"])
    assert kind_for(loaded) == kind_of(16, 6, "maze")


# ---- ARC tasks and identifiers ---------------------------------------------------------------------------

TASK = json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1, 2]]}, {"input": [[3]]}]})


@pytest.fixture
def arc_run(tmp_path: Path) -> Path:
    identifiers = PuzzleIdentifiers.plain(["aaaa0000", "bbbb1111"])
    shape = TokenShape(900, 12, num_puzzle_identifiers=len(identifiers))
    sizes = {"mixer": "attention", "puzzle_emb_ndim": 16, "puzzle_emb_len": 1, "H_cycles": 1, "L_cycles": 1}
    return checkpoint(tmp_path / "arc", shape, identifiers=identifiers, **sizes)


def test_a_task_that_the_model_was_trained_on_gets_its_own_embedding(arc_run: Path):
    loaded = load_model(arc_run)
    known = kind_for(loaded).read(TASK, "", "bbbb1111")
    unknown = kind_for(loaded).read(TASK, "", "cccc2222")
    assert identify(loaded, [*known, *unknown]).tolist() == [2, 2, 0, 0]
    assert remark(loaded, known) is None
    assert "has never seen cccc2222, so its embedding is blank" in str(remark(loaded, [*known, *unknown]))


def test_a_task_that_a_list_names_twice_gets_the_embedding_of_the_task_as_it_is(tmp_path: Path):
    names = ["<blank>", "a", "a|||t3|||0123456789", "b", "a|||t1|||0123456789", "c|||t1|||0123456789", "c"]
    identifiers = PuzzleIdentifiers.from_names(names)
    shape = TokenShape(900, 12, num_puzzle_identifiers=len(names))
    sizes = {"mixer": "attention", "puzzle_emb_ndim": 16}
    loaded = load_model(checkpoint(tmp_path / "arc", shape, identifiers=identifiers, **sizes))
    questions = [question for task in "abcd" for question in kind_for(loaded).read(TASK, "", task)[:1]]
    assert identify(loaded, questions).tolist() == [1, 3, 6, 0]


def test_every_test_input_of_a_task_is_predicted(arc_run: Path, tmp_path: Path):
    (tmp_path / "bbbb1111.json").write_text(TASK)
    result = call(arc_run, tmp_path / "bbbb1111.json", "--segments", "1", "--json")
    assert result.exit_code == 0, result.output
    names = [json.loads(line)["puzzle"] for line in result.stdout.splitlines()]
    assert names == ["bbbb1111 #1", "bbbb1111 #2"]


def test_an_unknown_task_is_remarked_in_one_line(arc_run: Path, tmp_path: Path):
    (tmp_path / "new.json").write_text(TASK)
    result = call(arc_run, tmp_path / "new.json", "--segments", "1")
    assert result.exit_code == 0, result.output
    assert sum("has never seen new" in line for line in result.stdout.splitlines()) == 1


# ---- the command -----------------------------------------------------------------------------------------


def test_the_boards_are_printed_segment_by_segment_with_a_conclusion(run: Path, tmp_path: Path):
    (tmp_path / "p.txt").write_text(PUZZLE)
    result = call(run, tmp_path / "p.txt", "--all")
    assert result.exit_code == 0, result.output
    for words in ("segment 1", "segment 2", "segment 3", "step 12", "The halt head stops nowhere in 3 segments."):
        assert words in result.stdout
    assert "┼" in result.stdout


def test_json_is_all_that_is_printed_and_holds_every_segment(run: Path):
    result = call(run, "-", "--json", "--segments", "4", stdin=f"{PUZZLE}\n{SOLVED}\n")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first.keys() == {"puzzle", "segments", "answer", "valid", "solved", "halting_segment"}
    assert [segment["segment"] for segment in first["segments"]] == [1, 2, 3, 4]
    assert first["segments"][0].keys() == {"segment", "board", "halt_probability", "valid", "changed"}
    assert first["segments"][-1]["board"] == first["answer"]
    assert [len(row) for row in first["answer"]] == [4] * 4
    assert (first["puzzle"], second["puzzle"], first["halting_segment"]) == ("stdin #1", "stdin #2", None)


@pytest.mark.parametrize(
    ("shape", "text", "size"),
    [
        (TokenShape(36, 8), "." * 36, (6, 6)),
        (TokenShape(81, 11), "." * 81, (9, 9)),
        (TokenShape(25, 6), "S   G\n" + "#    \n" * 4, (5, 5)),
        (TokenShape(4, 9), "1 2 3 8", (4, 1)),
    ],
)
def test_every_kind_of_puzzle_is_read_and_answered_in_its_own_form(tmp_path: Path, shape, text, size):
    result = call(checkpoint(tmp_path / "model", shape), "-", "--json", stdin=text)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)["answer"]
    assert (len(answer), *{len(str(row)) for row in answer}) == size
    assert call(tmp_path / "model", "-", stdin=text).exit_code == 0


def test_several_puzzles_end_with_a_summary(run: Path):
    result = call(run, "-", stdin=f"{PUZZLE}\n{SOLVED}\n")
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(r"2 puzzles, valid: \d, 3\.0 segments until the halt head stops", last)


def test_the_film_has_a_frame_a_segment_and_is_of_the_first_puzzle(run: Path, tmp_path: Path):
    result = call(run, "-", "--gif", tmp_path / "x.gif", "--delay", "100", stdin=f"{PUZZLE}\n{SOLVED}\n")
    assert result.exit_code == 0, result.output
    assert "of the first puzzle, stdin #1" in result.stdout
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 3


def test_averaged_weights_are_used_unless_the_raw_ones_are_asked_for(tmp_path: Path):
    checkpoint(tmp_path / "run" / "final_model", average_seed=5)
    averaged, raw = (call(tmp_path / "run", "-", *words, stdin=PUZZLE).stdout for words in ((), ("--raw-weights",)))
    assert "averaged weights" in averaged
    assert "averaged weights" not in raw
    assert averaged.splitlines()[2:] != raw.splitlines()[2:]


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["-"], "", "the standard input is empty; give it a puzzle"),
        (["-"], PUZZLE.replace("4", "7"), "the standard input has the character '7'"),
        (["-"], "." * 81, "a puzzle of 81 cells; this model solves 4×4 boards of 16"),
        (["nowhere.txt"], "", "nowhere.txt cannot be read"),
        (["-", "--gif", "film.mp4"], PUZZLE, "--gif film.mp4 must end with .gif"),
    ],
)
def test_mistakes_are_told_in_one_line(run: Path, words, stdin, message):
    result = call(run, *words, stdin=stdin)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path):
    result = call(tmp_path, "-", stdin=PUZZLE)
    assert result.exit_code == 2
    assert "holds no checkpoint" in result.stderr


def test_json_that_cannot_be_read_is_refused(arc_run: Path):
    result = call(arc_run, "-", stdin='{"train": [')
    assert result.exit_code == 2
    assert "the standard input is not valid JSON" in result.stderr


@pytest.mark.parametrize(
    "content",
    [
        f"{PUZZLE}\r\n\r\n".encode("utf-8-sig"),
        f"\r\n\r\n{PUZZLE} \r\n".encode("utf-16"),
        f"{PUZZLE[:4]}\r{PUZZLE[4:8]}\r{PUZZLE[8:12]}\r{PUZZLE[12:]}\r".encode(),
    ],
)
def test_a_puzzle_is_read_however_it_was_saved_from_a_file_and_the_standard_input(run: Path, tmp_path: Path, content):
    (tmp_path / "x.txt").write_bytes(content)
    plain, from_file, piped = (
        call(run, source, "--json", stdin=stdin)
        for source, stdin in (("-", PUZZLE), (tmp_path / "x.txt", ""), ("-", content))
    )
    assert (plain.exit_code, from_file.exit_code, piped.exit_code) == (0, 0, 0)
    answers = [json.loads(result.stdout)["segments"] for result in (plain, from_file, piped)]
    assert answers[0] == answers[1] == answers[2]


def test_what_is_no_text_is_told_with_its_line(run: Path, tmp_path: Path):
    (tmp_path / "x.txt").write_bytes(PUZZLE.encode() + b"\r\n\xff")
    for source, name in ((tmp_path / "x.txt", "x.txt"), ("-", "the standard input")):
        result = call(run, source, stdin=PUZZLE.encode() + b"\r\n\xff")
        assert result.exit_code == 2
        assert f"{name} cannot be read: it is no text (line 2: byte 0xff is none of UTF-8)" in result.stderr
