"""Boards as text and as pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from trm_ray.reporting.pictures.boards import FILLS, Board, Frame, board_text, frame_text, worth_showing
from trm_ray.reporting.pictures.film import CHANGED_FILL, HALT_FILL, check_gif, draw_frame, save_gif


def board(
    rows: list[str],
    *,
    kind: str = "sudoku",
    given: tuple[int, ...] = (),
    changed: tuple[int, ...] = (),
    wrong: tuple[int, ...] = (),
    box: tuple[int, int] | None = None,
) -> Board:
    """A board of one character a cell; the masks list cells, counted row by row."""
    symbols = np.array([list(row) for row in rows])

    def mask(cells: tuple[int, ...]) -> np.ndarray:
        return np.isin(np.arange(symbols.size), cells).reshape(symbols.shape)

    return Board(kind, symbols, mask(given), mask(changed), mask(wrong), box)


FOUR = board(["1234", "3412", "2143", "4321"], given=(0, 5), changed=(1, 2), wrong=(2, 15), box=(2, 2))


def frame(number: int, shown: Board = FOUR, *, changed: int = 0, halt: float = 0.25, halts: bool = False) -> Frame:
    return Frame(number, shown, halt, changed, "solved", True, halts)


def test_a_board_shows_boxes_and_marks_what_changed_and_what_is_wrong():
    drawn = board_text(FOUR).plain.split("\n")
    assert drawn == ["1 2*│ 3!4 ", "3 4 │ 1 2 ", "────┼─────", "2 1 │ 4 3 ", "4 3 │ 2 1!"]


def test_boxes_of_six_by_six_are_two_rows_high_and_three_columns_wide():
    drawn = board_text(board(["......"] * 6, box=(2, 3))).plain.split("\n")
    assert drawn[0] == ". . . │ . . . "
    assert [row for row, line in enumerate(drawn) if "┼" in line] == [2, 5]
    assert len({len(line) for line in drawn}) == 1


def test_wide_tokens_stand_in_columns():
    numbers = Board("tokens", np.array([["7", "11"], ["300", "0"]]), *(np.zeros((2, 2), bool),) * 3)
    assert board_text(numbers).plain.split("\n") == ["  7  11 ", "300   0 "]


def test_colours_of_arc_are_backgrounds():
    spans = board_text(board(["05"], kind="arc")).spans
    assert [str(span.style).rpartition(" on ")[2] for span in spans] == [FILLS["arc"]["0"], FILLS["arc"]["5"]]


def test_an_empty_board_says_so():
    empty = Board("arc", np.empty((0, 0), "<U1"), *(np.empty((0, 0), bool),) * 3)
    assert board_text(empty).plain == "(no grid)"
    assert draw_frame(frame(1, empty), 1, "empty").shape == draw_frame(frame(1), 1, "four").shape


def test_a_segment_tells_its_number_the_halt_probability_the_changes_and_the_verdict():
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(frame_text(frame(3, changed=2, halt=0.9, halts=True)))
    assert [line.rstrip() for line in console.export_text().split("\n")[:3]] == [
        "segment 3  ■ halts",
        "halt 0.900  changed 2",
        "solved",
    ]


def test_segments_that_changed_nothing_are_left_out_but_not_the_ends_and_the_halting_one():
    changed = {1: 0, 2: 3, 3: 0, 4: 0, 5: 1, 6: 0, 7: 0}
    frames = [frame(number, changed=count, halts=number == 4) for number, count in changed.items()]
    assert [shown.segment for shown in worth_showing(frames)] == [1, 2, 4, 5, 7]


# ---- pictures --------------------------------------------------------------------------------------------


def count_pixels(picture: np.ndarray, colour: str) -> int:
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return int((picture == wanted).all(-1).sum())


def test_changed_cells_are_highlighted():
    none, two = (board(["1234"] * 4, changed=cells) for cells in ((), (4, 9)))
    assert count_pixels(draw_frame(frame(1, none), 1, ""), CHANGED_FILL) == 0
    one_cell = count_pixels(draw_frame(frame(1, board(["1234"] * 4, changed=(4,))), 1, ""), CHANGED_FILL)
    assert one_cell > 1000
    assert count_pixels(draw_frame(frame(1, two), 1, ""), CHANGED_FILL) == pytest.approx(2 * one_cell, rel=0.05)


def test_the_bar_is_as_long_as_the_halt_probability():
    bare = board(["    "] * 4, kind="maze")

    def length(halt: float) -> int:
        return count_pixels(draw_frame(frame(1, bare, halt=halt), 1, ""), HALT_FILL)

    assert length(0.0) == 0
    assert length(0.4) == pytest.approx(0.4 * length(1.0), rel=0.02)


def test_a_gif_has_one_frame_a_segment_and_holds_the_last(tmp_path: Path):
    path = save_gif([frame(1, changed=3), frame(2, changed=1), frame(3, halts=True)], tmp_path / "a/b.gif", "four", 300)
    with Image.open(path) as film:
        durations = []
        for number in range(film.n_frames):
            film.seek(number)
            durations.append(film.info["duration"])
    assert durations == [300, 300, 1200]


@pytest.mark.parametrize(
    ("name", "delay", "message"),
    [("a.png", 500, r"--gif a\.png must end with \.gif"), ("a.gif", 5, "--delay 5 must be at least 20")],
)
def test_what_cannot_be_a_gif_is_refused(name, delay, message):
    with pytest.raises(ValueError, match=message):
        check_gif(Path(name), delay)
