"""Text compared by bits per byte: as puzzles are, only that less is better; and what runs are measured by."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from simulated import sweep

from trm_ray.reporting.numbers.measure import PUZZLES, TEXT, goal_of, measure_of, yardsticks_of
from trm_ray.reporting.numbers.summary import Comparison, compare_runs
from trm_ray.reporting.numbers.tables import comparison_json, ranking_cells, show_comparison, unfinished_cells
from trm_ray.reporting.numbers.words import notes, sentences
from trm_ray.reporting.run_log import Run

MakeRun = Callable[..., Run]
UNIGRAM, XZ = 4.9, 4.5
# What a puzzle run logs, by what a text logs in its place.
MIRRORED = {
    "eval/exact_accuracy": "eval/bits_per_byte",
    "eval/anytime_accuracy": "eval/anytime_bits_per_byte",
    "eval/first_segment/step_0_exact_accuracy": "eval/first_segment/step_0_bits_per_byte",
}
NAMES = {
    "exact_accuracy": "bits_per_byte",
    "anytime_accuracy": "anytime_bits_per_byte",
    "first_cycle_exact_accuracy": "first_cycle_bits_per_byte",
}


def as_text(run: Run) -> Run:
    """The same run, but that it logs 5 − x bits per byte where it logged a share of x."""
    rows = tuple(
        {MIRRORED.get(tag, tag): 5 - value if tag in MIRRORED else value for tag, value in row.items()}
        | {"eval/unigram_bits_per_byte": UNIGRAM, "eval/xz_bits_per_byte": XZ}
        for row in run.rows
    )
    return replace(run, rows=rows, config={**run.config, "task": "text", "arch": {"causal": True}})


@pytest.fixture
def puzzles() -> list[Run]:
    """Five seeds; linear and constant are far ahead, the curriculum is behind."""
    return sweep(np.random.default_rng(0), 5, {"linear": 3.0, "constant": 3.0, "curriculum": -3.0})


@pytest.fixture
def text(puzzles: list[Run]) -> list[Run]:
    return list(map(as_text, puzzles))


def printed(comparison: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show_comparison(console, comparison)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---- less is better --------------------------------------------------------------------------------------


def test_text_is_ranked_as_the_puzzles_that_it_mirrors(puzzles: list[Run], text: list[Run]) -> None:
    exact, bits = compare_runs(puzzles, 0.5).ranking, compare_runs(text, 4.5).ranking
    assert [(one.label, one.rank) for one in bits] == [(one.label, one.rank) for one in exact]
    assert {one.rank for one in bits} == {1, 3, 5}
    for ours, mirrored in zip(bits, exact, strict=True):
        assert ours.final.mean == pytest.approx(5 - mirrored.final.mean)
        assert ours.best.mean == pytest.approx(5 - mirrored.best.mean)
        assert ours.steps_to_threshold == pytest.approx(mirrored.steps_to_threshold, nan_ok=True)
        assert ours.best_run == mirrored.best_run


def test_verdicts_on_text_claim_what_they_claim_of_puzzles_with_the_sign_turned(
    puzzles: list[Run], text: list[Run]
) -> None:
    found = {(one.scenario, one.number, one.at): one for one in compare_runs(text, 4.5).verdicts}
    mirrored = [one for one in compare_runs(puzzles, 0.5).verdicts if one.number != "loss"]
    assert len(found) == len(mirrored)  # the loss of a text is the same number again
    for one in mirrored:
        ours = found[one.scenario, NAMES.get(one.number, one.number), one.at]
        assert (ours.claim, ours.p) == (one.claim, pytest.approx(one.p, nan_ok=True))
        turned = -one.difference if one.number in NAMES else one.difference
        assert ours.difference == pytest.approx(turned)


def test_a_run_that_was_stopped_is_behind_those_with_fewer_bits(text: list[Run]) -> None:
    stopped = [replace(run, finished=False, rows=run.rows[:4]) if "curriculum-seed0" in str(run.folder) else run
               for run in text]  # fmt: skip
    comparison = compare_runs(stopped)
    (run,) = comparison.unfinished
    ahead = min(one.rows[3]["eval/bits_per_byte"] for one in text if one.seed == 0)
    assert run.behind == pytest.approx(run.value - ahead)
    headings, [cells] = unfinished_cells(comparison)
    assert headings[-1] == "Behind (bits per byte)"
    assert cells[-1] == f"{run.ahead} by {run.behind:.3f}"


# ---- what runs are measured by ---------------------------------------------------------------------------


def test_exact_accuracy_measures_wherever_a_run_logs_it(puzzles: list[Run], text: list[Run]) -> None:
    assert measure_of(puzzles) is PUZZLES
    assert measure_of(text) is TEXT
    assert measure_of([*text, puzzles[0]]) is PUZZLES
    assert measure_of([]) is PUZZLES
    assert measure_of([replace(text[0], rows=())]) is TEXT  # not evaluated yet


def test_puzzles_and_text_are_told_to_be_no_comparison(puzzles: list[Run], text: list[Run]) -> None:
    comparison = compare_runs([*puzzles, *text])
    (note,) = [note for note in notes(comparison) if note.startswith("Not ranked here: ")]
    assert "linear · text" in note
    assert "linear · sudoku6" not in note
    assert {one.rank for one in comparison.ranking if one.label.endswith("text")} == {None}
    assert [one.label.endswith("text") for one in comparison.ranking] == [False] * 5 + [True] * 5
    assert not any("text" in note for note in notes(compare_runs(puzzles)))


@pytest.mark.parametrize(("final", "goal"), [(4.6, UNIGRAM), (4.4, XZ), (4.95, None)])
def test_steps_count_to_the_hardest_yardstick_that_some_run_has_reached(
    text: list[Run], final: float, goal: float | None
) -> None:
    runs = [replace(text[0], rows=tuple({**row, "eval/bits_per_byte": final} for row in text[0].rows))]
    assert yardsticks_of(TEXT, runs) == {"unigram": UNIGRAM, "xz": XZ}
    assert goal_of(TEXT, runs, None) == goal
    assert goal_of(TEXT, runs, 4.7) == 4.7
    comparison = compare_runs(runs)
    assert comparison.threshold == goal
    assert ("Steps to" in " ".join(ranking_cells(comparison)[0])) == (goal is not None)


def test_a_threshold_that_no_share_can_be_is_refused(puzzles: list[Run]) -> None:
    with pytest.raises(ValueError, match=r"--threshold 2\.5 must be from 0 to 1, .* use e\.g\. --threshold 0\.5"):
        compare_runs(puzzles, 2.5)


def test_yardsticks_that_differ_between_runs_are_none(text: list[Run]) -> None:
    other = replace(text[1], rows=tuple({**row, "eval/xz_bits_per_byte": 3.0} for row in text[1].rows))
    assert yardsticks_of(TEXT, [text[0], other]) == {"unigram": UNIGRAM}


# ---- words and tables ------------------------------------------------------------------------------------


def test_the_words_say_what_a_text_takes_and_how_much_less_that_is(text: list[Run]) -> None:
    comparison = compare_runs(text)
    (line,) = [line for line in sentences(comparison) if line.startswith("linear")]
    verdict = next(one for one in comparison.verdicts if one.scenario == "linear")
    half = (verdict.high - verdict.low) / 2
    size = f"{-verdict.difference:.3f} ± {half:.3f}"
    assert line.startswith(
        f"linear reaches {verdict.ours:.3f} bits per byte, {size} lower than baseline at equal steps ("
    )
    assert "Its first cycle already reaches " in line
    assert " bits per byte where baseline's reaches " in line
    assert "Anytime bits per byte: −" in line
    told = notes(comparison)
    below = ", ".join(one.label for one in comparison.ranking if one.label != "curriculum")
    yardsticks = "unigram 4.900, xz 4.500"
    assert f"Without a model the same text takes, in bits per byte: {yardsticks}. Below xz: {below}." in told
    assert "Steps and seconds count to what xz takes." in told
    assert not any("points" in note or "puzzles" in note for note in told)


def test_the_table_of_text_says_who_is_below_the_best_yardstick(text: list[Run]) -> None:
    comparison = compare_runs(text)
    headings, rows = ranking_cells(comparison)
    assert headings == [
        *("#", "Scenario", "n", "Bits per byte", "Anytime", "1st cycle", "Below xz 4.50"),
        *("Steps to 4.50", "s to 4.50", "s per step"),
    ]
    below = {row[1]: row[6] for row in rows}
    assert below == dict.fromkeys(below, "yes") | {"curriculum": "no"}
    lines = printed(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("Ranking by bits per byte" in line for line in lines)
    assert any(line.split()[:3] == ["1", rows[0][1], "5"] for line in lines)


def test_the_json_of_text_has_the_names_of_what_it_holds(text: list[Run]) -> None:
    content = json.loads(comparison_json(compare_runs(text)))
    assert (content["ranked_by"], content["threshold"]) == ("bits_per_byte", XZ)
    assert content["yardsticks"] == {"unigram": UNIGRAM, "xz": XZ}
    first = content["scenarios"][0]
    assert {"final_bits_per_byte", "best_bits_per_byte", "final_anytime_bits_per_byte"} < first.keys()
    assert not any("accuracy" in name for name in first)


def test_depths_of_text_are_told_side_by_side(make_text_run: MakeRun) -> None:
    runs = [
        make_text_run(scale, name, config_name=f"deep_supervision_{name}")
        for name, scale in (("linear", 0.5), ("baseline", 1.0))
    ]
    ends = [run.rows[-1]["eval/bits_per_byte"] for run in runs]

    def side(end: float) -> str:
        return " / ".join(f"{share * end:.2f}" for share in (1.1, 1.05, 1.0))

    told = f"After 1 / 2 / 3 H-cycles it reaches {side(ends[0])} bits per byte, baseline {side(ends[1])}."
    assert told in sentences(compare_runs(runs))[0]


def test_a_seed_without_a_number_at_equal_seconds_is_named(text: list[Run]) -> None:
    """The baseline of seed 3 is first evaluated after linear's whole run has cost less."""
    slow = [
        replace(run, rows=tuple({**row, "throughput/steps_per_s": 1.0} for row in run.rows[3:]))
        if run.name.endswith("baseline") and run.seed == 3
        else run
        for run in text
    ]
    (line,) = [line for line in sentences(compare_runs(slow)) if line.startswith("linear")]
    assert line.endswith("At equal seconds in no pair, as one side has no number there: seed 3.")
    verdict = next(v for v in compare_runs(slow).verdicts if (v.scenario, v.at) == ("linear", "seconds"))
    assert (verdict.n, verdict.unpaired_seeds) == (4, (3,))
    assert math.isfinite(verdict.p)
