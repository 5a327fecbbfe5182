"""What `trm-ray schedule` tells, worked by hand, without data, and its picture."""

import json
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.measure.schedule import schedule_views
from trm_ray.reporting.numbers.schedules import ScheduleView, shares
from trm_ray.reporting.pictures.schedules import draw_schedules


@pytest.fixture(autouse=True)
def _without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def view(name: str, *overrides: str) -> ScheduleView:
    (only,) = schedule_views([name], overrides)
    return only


def test_a_schedule_has_its_weights_its_shares_and_the_price_of_its_gradient():
    linear = view("deep_supervision_linear")
    (phase,) = linear.phases
    assert (phase.begin, phase.end, phase.H_cycles, phase.L_cycles, phase.gradient) == (0, 600, 3, 3, "all cycles")
    assert phase.weights == (pytest.approx((1 / 6, 1 / 3, 1)),)
    assert shares(phase.weights[0]) == pytest.approx((1 / 9, 2 / 9, 6 / 9))
    assert linear.cost == phase.cost == pytest.approx((3 + 2 * 3) / (3 + 2))
    assert view("deep_supervision_baseline").cost == 1
    assert view("deep_supervision_linear", "segments_per_update=2").cost == pytest.approx(2 * 1.8)


def test_a_ramp_is_a_phase_of_its_own_whose_weights_grow():
    curriculum = view("deep_supervision_curriculum")
    assert [(phase.begin, phase.end, phase.is_ramp) for phase in curriculum.phases] == [
        (0, 61, False),
        (61, 360, True),
        (360, 600, False),
    ]
    plain, ramp, full = curriculum.phases
    assert (plain.weights, full.weights) == (((0, 0, 1),), (pytest.approx((0.7 / 3, 1.4 / 3, 1)),))
    assert (ramp.at[0], ramp.at[-1]) == (61, 359)
    for step, weights in zip(ramp.at, ramp.weights, strict=True):
        assert weights == pytest.approx((0.7 / 3 * (step - 60) / 300, 1.4 / 3 * (step - 60) / 300, 1))
    assert curriculum.cost == pytest.approx((61 + 539 * 1.8) / 600)


def test_a_depth_curriculum_is_cheaper_by_its_cycles():
    stages = view("depth_curriculum", "max_steps=100").phases
    assert [(phase.begin, phase.H_cycles, phase.L_cycles) for phase in stages] == [(0, 1, 1), (30, 2, 2), (60, 3, 3)]
    # (H + 2) passes through a cycle of L + 1 updates each, over 5 of 4; the head is small beside them.
    costs = [(1 + 2) * 2 / (5 * 4), (2 + 2) * 3 / (5 * 4), 1]
    assert [phase.cost for phase in stages] == pytest.approx(costs, rel=0.02)


def test_a_sweep_stands_for_each_of_its_scenarios_and_variants_once():
    names = [one.name for one in schedule_views(["all_schedules"], [])]
    assert names[:5] == ["baseline", "constant", "linear", "exponential", "curriculum"]
    assert len(names) == len(set(names)) == 10
    space = "search_space.deep_supervision_weights=[[0.1,0.3,1],[1,0.7,0.49]]"
    variants = schedule_views(["all_schedules"], ["scenarios=[deep_supervision_linear]", space])
    assert [one.name for one in variants] == ["linear · weights=[0.1, 0.3, 1.0]", "linear · weights=[1.0, 0.7, 0.49]"]


def test_where_the_data_are_not_there_costs_are_relative_and_it_is_said():
    extreme = view("deep_supervision_linear", "task=sudoku_extreme")
    assert extreme.phases[0].flops is None
    assert extreme.cost == pytest.approx(1.8)
    (note,) = extreme.notes
    assert "the data of sudoku_extreme are not there" in note


def test_the_command_tells_draws_and_writes(tmp_path: Path):
    words = ["schedule", "deep_supervision_curriculum", "depth_curriculum", "max_steps=200", "--save", "w.png"]
    result = CliRunner().invoke(app, [*words, "--json", "w.json"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "62–200" in result.output
    assert (tmp_path / "w.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "w.json").read_text())
    assert [one["name"] for one in told["schedules"]] == ["curriculum", "depth_curriculum"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lr=1"], "lr=1 names no scenario"),
        (["deep_supervision_liner"], "must name a sweep or a scenario"),
        (["deep_supervision_linear", "lrr=1"], "lrr=1 has an unknown key"),
        (["deep_supervision_linear", "--save", "w.doc"], "its name must end with one of"),
    ],
)
def test_the_command_refuses_in_one_line(words: list[str], expected: str):
    result = CliRunner().invoke(app, ["schedule", *words], env={"COLUMNS": "500"})
    assert result.exit_code == 2
    assert expected in " ".join(result.output.split())


def test_the_picture_has_a_row_a_schedule_and_no_words_over_each_other():
    views = schedule_views(["deep_supervision_curriculum", "depth_curriculum", "detached"], [])
    figure = draw_schedules(views)
    assert [axes.get_title(loc="left") for axes in figure.axes[::3]] == ["curriculum", "depth_curriculum", "detached"]
    assert not list(overlaps(figure))


def overlaps(figure: Figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        texts = [text for text in axes.texts if text.get_text()]
        boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-1)) for text in texts]
        for i, (words, box) in enumerate(boxes):
            yield from ((words, others) for others, other in boxes[i + 1 :] if box.overlaps(other))
