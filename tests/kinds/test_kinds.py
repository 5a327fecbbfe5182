"""Reading puzzles from text and judging answers by the rules; every board here is worked by hand."""

import json

import numpy as np
import pytest

from trm_ray.kinds.arc.kind import Arc
from trm_ray.kinds.kind import Kind, Question
from trm_ray.kinds.maze.kind import Maze
from trm_ray.kinds.registry import kind_of
from trm_ray.kinds.sudoku.kind import Sudoku
from trm_ray.kinds.tokens import Tokens

SOLVED = "1234341221434321"  # rows 1234 / 3412 / 2143 / 4321
PUZZLE = "1..4.41..1..4..1"


def tokens(digits: str) -> np.ndarray:
    return np.array([1 if c == "." else int(c) + 1 for c in digits], np.int32)


def maze(text: str) -> np.ndarray:
    return np.array(["# SGo".index(c) + 1 for c in text.replace("\n", "")], np.int32)


def read(kind: Kind, text: str) -> list[Question]:
    return kind.read(text, "puzzle.txt", "puzzle")


# ---- which kind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seq_len", "vocab_size", "told", "kind"),
    [
        (16, 6, "sudoku sudoku4 data/sudoku4", Sudoku(4)),
        (16, 6, "", Sudoku(4)),
        (16, 6, "maze data/small", Maze(4)),
        (36, 8, "", Sudoku(6)),
        (81, 11, "a maze of a name", Sudoku(9)),
        (900, 6, "", Maze(30)),
        (900, 12, "", Arc()),
        (900, 11, "", Tokens(900, 11)),
        (7, 6, "", Tokens(7, 6)),
    ],
)
def test_the_kind_follows_from_the_tokens_that_the_model_was_trained_on(seq_len, vocab_size, told, kind):
    assert kind_of(seq_len, vocab_size, told) == kind


# ---- Sudoku ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        PUZZLE,
        PUZZLE.replace(".", "0") + "\n",
        "1..4\n.41.\n.1..\n4..1\n",
        "\n\n 1 . . 4\n . 4 1 .\n . 1 . .\n 4 . . 1\n\n",
    ],
)
def test_a_sudoku_is_read_from_one_line_or_a_block_with_any_white_space(text):
    [question] = read(Sudoku(4), text)
    assert question.name == "puzzle"
    assert question.inputs.tolist() == tokens(PUZZLE).tolist()
    assert question.inputs.dtype == np.int32


def test_several_sudokus_are_read_from_lines_and_blocks_alike():
    questions = read(Sudoku(4), f"{PUZZLE}\n{SOLVED}\n\n1..4\n.41.\n.1..\n4..1\n")
    assert [question.name for question in questions] == ["puzzle #1", "puzzle #2", "puzzle #3"]
    assert [q.inputs.tolist() for q in questions] == [tokens(t).tolist() for t in (PUZZLE, SOLVED, PUZZLE)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PUZZLE.replace("4", "5"), r"puzzle.txt has the character '5'; use 1 to 4, and \. or 0 for a blank"),
        (PUZZLE[1:], r"puzzle.txt has a puzzle of 15 cells; this model solves 4×4 boards of 16"),
        ("1..4\n" * 8, "a puzzle of 32 cells; .* blank lines between them"),
    ],
)
def test_a_sudoku_of_another_size_or_alphabet_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read(Sudoku(4), text)


@pytest.mark.parametrize(
    ("answer", "words", "wrong"),
    [
        (SOLVED, "solved", []),
        # Cell 1 becomes 1: it clashes with cell 0 (row, box) and cell 9 (column).
        ("1134341221434321", "clashing: 3", [0, 1, 9]),
        # Blank in cell 1, which is nobody's clue.
        ("1.34341221434321", "blank: 1", []),
        # The digits 1 and 2 exchanged everywhere: a correct grid of another puzzle; its clues 1 stood in 0, 6, 9, 15.
        ("2134342112434312", "changed clues: 4", [0, 6, 9, 15]),
    ],
)
def test_a_sudoku_is_solved_when_nothing_clashes_nothing_is_blank_and_the_clues_stand(answer, words, wrong):
    [question] = read(Sudoku(4), PUZZLE)
    verdict = Sudoku(4).judge(question, tokens(answer))
    assert (verdict.valid, verdict.words) == (words == "solved", words)
    assert np.flatnonzero(verdict.wrong).tolist() == wrong


def test_boxes_of_a_6x6_sudoku_are_two_rows_by_three_columns():
    answer = np.ones(36, np.int32)
    answer[[2, 6]] = 5  # row 0, column 2 and row 1, column 0: one box
    answer[[3, 13]] = 3  # row 0, column 3 and row 2, column 1: no unit in common
    verdict = Sudoku(6).judge(Question("", np.ones(36, np.int32)), answer)
    assert np.flatnonzero(verdict.wrong).tolist() == [2, 6]


def test_padding_in_an_answer_is_wrong_and_drawn_as_a_question_mark():
    answer = tokens(SOLVED)
    answer[3] = 0
    [question] = read(Sudoku(4), ".2.." + "." * 12)
    assert np.flatnonzero(Sudoku(4).judge(question, answer).wrong).tolist() == [3]
    assert Sudoku(4).plain(answer)[0] == "123?"


def test_an_answer_in_plain_values_can_be_read_again():
    plain = "\n".join(Sudoku(4).plain(tokens(PUZZLE)))
    assert read(Sudoku(4), plain)[0].inputs.tolist() == tokens(PUZZLE).tolist()


# ---- mazes -----------------------------------------------------------------------------------------------

OPEN = "S   \n  # \n ## \n   G"  # both ways around the walls take six steps
LINE = "".join(line.ljust(4) for line in OPEN.split("\n"))


def test_a_maze_is_read_from_a_block_also_where_spaces_at_the_ends_of_lines_are_gone():
    assert read(Maze(4), OPEN)[0].inputs.tolist() == maze(LINE).tolist()
    free_row_last = "####\n####\nS  G\n\n"
    assert read(Maze(4), free_row_last)[0].inputs.tolist() == maze("########S  G    ").tolist()
    stripped = "\n".join(line.rstrip() for line in OPEN.split("\n"))
    assert read(Maze(4), stripped + "\n")[0].inputs.tolist() == maze(LINE).tolist()


def test_several_mazes_are_read_with_blank_lines_between_them_or_a_line_each():
    free_row = "S  G\n\n####\n####"
    assert len(read(Maze(4), f"{OPEN}\n\n{free_row}\n\n{OPEN}\n\n")) == 3
    assert read(Maze(4), f"{OPEN}\n\n{free_row}")[1].inputs.tolist() == maze("S  G    ########").tolist()
    assert [q.inputs.tolist() for q in read(Maze(4), f"{LINE}\n{LINE}\n")] == [maze(LINE).tolist()] * 2


@pytest.mark.parametrize("blank", ["", "  ", "          "])
def test_blank_lines_and_blanks_beyond_a_maze_do_not_matter(blank):
    block = "\n".join(f"{line.ljust(4)}{blank}" for line in OPEN.split("\n"))
    gap = f"\n{blank}" * 3 + "\n"
    for text in (f"{blank}\n{block}{gap}{block}{gap}", f"\n{LINE}{blank}\n{blank}\n{LINE}\n{blank}\n"):
        assert [q.inputs.tolist() for q in read(Maze(4), text)] == [maze(LINE).tolist()] * 2
    first_row_free = "    \n####\n####\nS  G\n"
    assert read(Maze(4), first_row_free)[0].inputs.tolist() == maze("    ########S  G").tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OPEN.replace("#", "x"), "puzzle.txt: 'x' is no character of a maze"),
        (OPEN.replace("G", " "), "puzzle.txt: a maze has exactly one G; got 0"),
        (OPEN + "\n####", "puzzle.txt has a block of .*; this model solves mazes of 4 rows of 4"),
        ("S  G", "puzzle.txt has a block of 1 row.*; this model solves mazes of 4 rows of 4"),
        (OPEN.replace("S   ", "Soo "), "puzzle.txt has a path already"),
    ],
)
def test_a_maze_of_another_size_or_alphabet_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read(Maze(4), text)


@pytest.mark.parametrize(
    ("answer", "valid", "words", "wrong"),
    [
        ("Sooo  #o ##o   G", True, "a path of 6 steps, the shortest", []),
        ("S   o # o## oooG", True, "a path of 6 steps, the shortest", []),
        ("Soo   #o ##o   G", False, "no single path from S to G", []),
        ("Sooo  #o ##o  oG", False, "no single path from S to G", []),
        ("Sooo  oo ##o   G", False, "changed cells of the maze: 1", [6]),
    ],
)
def test_a_maze_is_solved_by_one_path_from_start_to_goal(answer, valid, words, wrong):
    [question] = read(Maze(4), LINE)
    verdict = Maze(4).judge(question, maze(answer))
    assert verdict.valid == valid
    assert verdict.words.startswith(words)
    assert np.flatnonzero(verdict.wrong).tolist() == wrong


def test_a_path_that_is_not_the_shortest_is_valid_and_told():
    detour = "S G \n    \n####\n####"
    [question] = read(Maze(4), detour)
    assert Maze(4).judge(question, maze("SoG     ########")).words == "a path of 2 steps, the shortest"
    longer = Maze(4).judge(question, maze("S G ooo ########"))
    assert (longer.valid, longer.words) == (True, "a path of 4 steps, the shortest takes 2")


# ---- ARC -------------------------------------------------------------------------------------------------

TASK = {
    "train": [{"input": [[1]], "output": [[2]]}],
    "test": [{"input": [[0, 3], [9, 0]], "output": [[5, 5, 5]]}, {"input": [[7]]}],
}


def canvas(grid: list[list[int]], eos: bool = True) -> np.ndarray:
    """The original's layout: colours + 2 in the upper left, 1 below and beside, 0 elsewhere."""
    board = np.zeros((30, 30), np.int32)
    height, width = len(grid), len(grid[0])
    board[:height, :width] = np.array(grid) + 2
    if eos:
        board[height, :width] = board[:height, width] = 1
    return board.ravel()


def test_every_test_input_of_a_task_is_read_with_its_output_if_that_is_there():
    first, second = read(Arc(), json.dumps(TASK))
    assert [first.name, second.name] == ["puzzle #1", "puzzle #2"]
    assert first.task == second.task == "puzzle"
    assert first.inputs.tolist() == canvas([[0, 3], [9, 0]]).tolist()
    assert first.labels is not None
    assert first.labels[first.labels >= 0].tolist() == [7, 7, 7, 1, 1, 1, 1]
    assert second.labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "puzzle.txt is not valid JSON"),
        ("[]", "puzzle.txt: it must have a list of at least one pair under 'train'"),
        (json.dumps({**TASK, "test": [{"input": [[10]]}]}), "puzzle.txt, test pair 0, input: 10 is no colour"),
    ],
)
def test_what_is_no_task_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read(Arc(), text)


def test_a_grid_is_valid_when_its_end_is_marked_all_along_the_border():
    question = read(Arc(), json.dumps(TASK))[0]
    answer = canvas([[5, 5, 5], [1, 2, 3]])
    assert Arc().judge(question, answer).words == "a grid of 2×3"
    assert Arc().plain(answer) == [[5, 5, 5], [1, 2, 3]]
    assert Arc().layout(answer).tolist() == [[0, 1, 2], [30, 31, 32]]
    verdict = Arc().judge(question, canvas([[5, 5, 5], [1, 2, 3]], eos=False))
    assert (verdict.valid, verdict.words) == (False, "2×3 grid not closed: 5 cells lack EOS")
    assert Arc().judge(question, np.zeros(900, np.int32)).words == "no grid"
    full = np.full(900, 2, np.int32)
    assert Arc().judge(question, full).valid, "30×30 leaves no room for an end"


# ---- token ids -------------------------------------------------------------------------------------------


def test_any_other_model_reads_lines_of_token_ids():
    kind = Tokens(seq_len=5, vocab_size=12)
    questions = read(kind, "1 2 3 4 11\n\n0,0,1, 1,2\n")
    assert [q.inputs.tolist() for q in questions] == [[1, 2, 3, 4, 11], [0, 0, 1, 1, 2]]
    assert kind.layout(questions[0].inputs).shape == (1, 5)
    assert kind.plain(questions[0].inputs) == [1, 2, 3, 4, 11]
    assert kind.judge(questions[0], questions[0].inputs).valid is None
    assert Tokens(9, 12).layout(np.zeros(9, np.int32)).shape == (3, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4 12", "'12'; this model reads token ids from 0 to 11"),
        ("1 2 3 4 -1", "'-1'"),
        ("1 2 3 4", "a line of 4 tokens; this model reads 5"),
    ],
)
def test_token_ids_that_the_model_does_not_have_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read(Tokens(5, 12), text)
