"""Intervals against tables and hand-worked numbers, calibration by hand, and what the picture shows."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from trm_ray.reporting.numbers.evaluation import (
    RowResults,
    calibrate,
    estimate,
    evaluation_json,
    evaluation_lines,
    evaluation_table,
    summarise_evaluation,
    wilson,
)
from trm_ray.reporting.pictures.evaluation import draw_evaluation, save_evaluation


@pytest.mark.parametrize(
    ("solved", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),  # by symmetry z² / (n + z²) = 3.8415 / 32.8415 from the end
    ],
)
def test_wilson_s_interval_equals_the_published_one(solved: int, count: int, low: float, high: float):
    assert wilson(solved / count, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_s_interval_by_hand():
    # p = 1/2, n = 4, z² = 3.841459: centre (0.5 + 0.480182) / 1.960365 = 0.5,
    # half √(0.25·0.960365 + 0.230575) / 1.960365 = √0.470666 / 1.960365 = 0.349961
    assert wilson(0.5, 4) == pytest.approx((0.150039, 0.849961), abs=1e-6)
    assert all(math.isnan(end) for end in wilson(0.5, 0))


def test_rows_that_are_a_unit_each_have_the_plain_interval():
    solved = np.array([True] * 15 + [False] * 133)
    found = estimate(solved, np.arange(148))
    assert (found.low, found.high) == pytest.approx(wilson(15 / 148, 148))


def test_copies_of_a_puzzle_do_not_narrow_the_interval():
    solved, units = np.array([True, False, False] * 4), np.arange(12)
    one, many = estimate(solved, units), estimate(np.repeat(solved, 100), np.repeat(units, 100))
    assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high))


def test_the_interval_of_a_share_comes_from_how_far_units_lie_apart():
    # Mean 0.5, variance of the mean 10·0.01 / (10·9) = 1/900, so n = 0.25·900 = 225
    values, units = np.array([0.4, 0.6] * 5), np.arange(10)
    assert interval(values, units, 1000) == pytest.approx(wilson(0.5, 225))
    assert interval(values, units, 100) == pytest.approx(wilson(0.5, 100))
    assert interval(values, units) == pytest.approx(wilson(0.5, 10))


def test_units_that_agree_are_as_many_cases_as_there_can_be_and_no_jump_from_those_that_almost_do():
    equal, units = np.full(10, 0.5), np.arange(10)
    almost = np.array([0.501, *equal[1:]])
    assert interval(equal, units, 810) == pytest.approx(wilson(0.5, 810))
    assert interval(almost, units, 810) == pytest.approx(interval(equal, units, 810), abs=2e-4)


@pytest.mark.parametrize(("num_units", "value"), [(2, 0.8), (9, 0.5), (9, 1.0), (10, 1.0), (10, 0.0)])
def test_few_units_and_values_at_an_end_count_once_each(num_units: int, value: float):
    values = np.full(num_units, value)
    assert interval(values, np.arange(num_units), 1000) == pytest.approx(wilson(value, num_units))


def test_two_puzzles_with_near_shares_have_a_wide_interval():
    assert interval(np.array([0.80, 0.81]), np.arange(2), 162) == pytest.approx(wilson(0.805, 2))


def interval(values: np.ndarray, units: np.ndarray, most: int | None = None) -> tuple[float, float]:
    found = estimate(values, units, most)
    return found.low, found.high


def test_nothing_has_no_share():
    found = estimate(np.zeros(0), np.zeros(0, int))
    assert all(math.isnan(value) for value in (found.value, found.low, found.high))


def test_calibration_by_hand():
    # Probabilities 0.5, 0.5, 0.7311, 0.2689; the first two fall into the bin from 0.5 to 0.6
    found = calibrate(np.array([0.0, 0.0, 1.0, -1.0]), np.array([True, False, True, True]))
    assert found.count == [0, 0, 1, 0, 0, 2, 0, 1, 0, 0]
    assert found.probability[5] == 0.5
    assert found.solved[5] == 0.5
    assert found.probability[7] == pytest.approx(0.731059, abs=1e-6)
    assert found.error == pytest.approx((0 + (1 - 0.731059) + (1 - 0.268941)) / 4, abs=1e-6)
    sure = calibrate(np.array([1e4, -1e4]), np.array([True, False]))
    assert (sure.count[9], sure.count[0], sure.error) == (1, 1, pytest.approx(0, abs=1e-12))


def results(num_rows: int = 4) -> RowResults:
    """Three segments of two cycles; rows are solved at segment 1, 2, 3 and never, and the halt head is late by 1."""
    when = np.resize([0, 1, 2, 9], num_rows)
    segment = np.arange(3)[:, None]
    solved = np.stack([segment > when, segment >= when], axis=1)
    halt = np.where(segment > when, 2.0, -2.0)
    cells, losses = np.where(solved, 1.0, 0.5), np.where(solved[:, 1], 0.1, 1.0)
    return RowResults(solved, cells, losses, halt, np.full(num_rows, 3), np.arange(num_rows), np.full(num_rows, 16))


def test_numbers_of_an_evaluation_by_hand():
    found = summarise_evaluation(results(), segments=[1, 3], trained_segments=3)
    assert [one.exact_accuracy.value for one in found.by_segment] == [0.25, 0.5, 0.75]
    assert [one.accuracy.value for one in found.by_segment] == [0.625, 0.75, 0.875]
    assert [one.cycle_exact_accuracy for one in found.by_segment] == [[0, 0.25], [0.25, 0.5], [0.5, 0.75]]
    assert [one.loss for one in found.by_segment] == pytest.approx([3.1 / 4, 2.2 / 4, 1.3 / 4])
    assert [one.segments for one in found.requested] == [1, 3]
    halting = found.halting
    assert halting.histogram == [0, 1, 3]  # segments 2, 3, 3, 3
    assert (halting.never_stopped, halting.mean_segment) == (2, 11 / 4)
    assert halting.exact_accuracy.value == 0.75
    assert halting.share_saved == pytest.approx(1 - 11 / 12)
    assert sum(found.calibration.count) == 4
    assert sum(found.calibration_all_segments.count) == 12


def test_cells_bound_the_interval_of_the_cell_accuracy_and_rows_that_of_the_exact_one():
    halves = replace(results(12), cells=np.full((3, 2, 12), 0.5))
    found = summarise_evaluation(halves, segments=[3], trained_segments=3)
    for one in (found.by_segment[2], found.halting):
        assert (one.exact_accuracy.low, one.exact_accuracy.high) == pytest.approx(wilson(0.75, 12))
        assert (one.accuracy.low, one.accuracy.high) == pytest.approx(wilson(0.5, 12 * 16))


def test_segments_that_were_not_run_count_in_no_calibration():
    rows = results()
    rows.num_run[:] = [2, 3, 3, 3]
    found = summarise_evaluation(rows, segments=[3], trained_segments=3)
    assert sum(found.calibration_all_segments.count) == 11


COMPUTE = {"halt": False, "boards": 4, "segments": 12, "share_saved": 0.0, "seconds": 1.5}


def test_json_holds_no_number_that_is_none():
    found = summarise_evaluation(results(0), segments=[3], trained_segments=3)
    written = json.loads(evaluation_json(found, {"step": 7}, COMPUTE, {}))
    assert (written["format_version"], written["provenance"], written["voting"]) == (1, {"step": 7}, None)
    assert written["by_segment"][2]["loss"] is None
    full = summarise_evaluation(results(), segments=[3], trained_segments=3)
    written = json.loads(evaluation_json(full, {}, COMPUTE, {"voting": {"pass_at": {1: 0.5}}, "letters": 3}))
    assert written["by_segment"][2]["exact_accuracy"]["value"] == 0.75
    assert (written["voting"]["pass_at"]["1"], written["letters"]) == (0.5, 3)


def printed(found: object) -> str:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(found)
    return capture.get()


def test_the_table_fits_into_80_columns():
    found = summarise_evaluation(results(), segments=[1, 3], trained_segments=3)
    text = printed(evaluation_table(found))
    assert "…" not in text
    assert "as trained: 3    75.00    30.06–95.44" in text
    assert "halting: mean 2.75" in text
    empty = printed(evaluation_table(summarise_evaluation(results(0), segments=[3], trained_segments=3)))
    assert "nan" not in empty


def test_the_lines_tell_halting():
    found = summarise_evaluation(results(), segments=[1, 3], trained_segments=3)
    assert "--halt would leave out 8.3 % of the segments" in evaluation_lines(found, COMPUTE)
    assert "halting left out 25.0 % of the segments" in evaluation_lines(
        found, {**COMPUTE, "halt": True, "share_saved": 0.25}
    )
    limits = "halting: after at most 3 segments here, 2 in training"
    assert limits not in evaluation_lines(found, COMPUTE)
    further = summarise_evaluation(results(), segments=[1, 3], trained_segments=2)
    assert limits in evaluation_lines(further, COMPUTE)


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def test_the_picture_shows_the_numbers(tmp_path: Path):
    found = summarise_evaluation(results(), segments=[3], trained_segments=2)
    figure = draw_evaluation(found, "a run")
    cells, exact, halting, trained = panel(figure, "Accuracy by number of segments").lines
    assert list(exact.get_ydata()) == [0.25, 0.5, 0.75]
    assert list(cells.get_ydata()) == [0.625, 0.75, 0.875]
    assert (list(halting.get_xdata()), list(halting.get_ydata())) == ([2.75], [0.75])
    assert list(trained.get_xdata()) == [2, 2]
    by_depth, *_, trained = panel(figure, "Accuracy by depth").lines  # three segments, of which two were trained
    assert list(by_depth.get_xdata()) == [1, 2, 3, 4, 5, 6]
    assert list(by_depth.get_ydata()) == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    assert list(trained.get_xdata()) == [4, 4]
    bars = panel(figure, "Where the halt head stops").patches
    assert [bar.get_height() for bar in bars] == [0, 1, 1, 2]
    assert save_evaluation(found, tmp_path / "new" / "one.svg", "a run").is_file()


def test_a_picture_of_nothing_says_so():
    figure = draw_evaluation(summarise_evaluation(results(0), segments=[3], trained_segments=3), "a run")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["No row has labels."] * 4
