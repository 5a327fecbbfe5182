from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from trm_ray.programs.compare import Compared
from trm_ray.reporting.pictures.comparison import draw_comparison, save_comparison
from trm_ray.reporting.pictures.dashboard import draw_dashboard, save_dashboard
from trm_ray.reporting.pictures.style import SCENARIO_COLOURS, group_looks
from trm_ray.reporting.run_log import Run

MakeRun = Callable[..., Run]
Rows = Callable[..., list[dict[str, float]]]

TITLES = [
    "Training loss",
    "Loss of each H-cycle, first segment",
    "Refinement: solved by each H-cycle",
    "Supervision weight",
    "Gradient norm",
    "Gradient norm of each H-cycle",
    "Learning rate",
    "Mean ACT steps",
    "Solved by depth and step",
    "Solved by depth",
    "Latest loss of each H-cycle",
    "Summary",
]


def boxes(figure: Figure) -> list[tuple[str, Any]]:
    """Every text that is drawn, with the box that it covers, one pixel smaller on each side."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found = []
    for text in drawn_texts(figure):
        box = text.get_window_extent(renderer)
        if box.width > 2 and box.height > 2:
            found.append((text.get_text(), box.padded(-1)))
    return found


def drawn_texts(figure: Figure) -> Iterator[Text]:
    hidden = set()
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high or not axes.axison:
                    hidden.update({tick.label1, tick.label2})
            if not axes.axison:
                hidden.update({axis.label, axis.offsetText})
    yield from (
        text for text in figure.findobj(Text) if text not in hidden and text.get_visible() and text.get_text().strip()
    )


def check_text(figure: Figure) -> None:
    """No text meets another, none leaves the figure, none is smaller than 9 points."""
    found = boxes(figure)
    assert len(found) > 12
    for (one, box), (other, other_box) in combinations(found, 2):
        assert not box.overlaps(other_box), f"{one!r} overlaps {other!r}"
    width, height = figure.bbox.width, figure.bbox.height
    for one, box in found:
        is_inside = min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height
        assert is_inside, f"{one!r} leaves the figure"
    assert min(text.get_fontsize() for text in drawn_texts(figure)) >= 9


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def words(axes: Axes) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in axes.texts)


# ---- dashboard


def test_the_dashboard_has_its_twelve_panels_in_order(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_dashboard(make_run(healthy_rows()))
    assert [axes.get_title(loc="left") for axes in figure.axes] == TITLES
    check_text(figure)


@pytest.mark.parametrize("kind", ["baseline", "one row", "no rows", "six cycles", "diverged", "ill"])
def test_no_text_overlaps_in_unusual_dashboards(make_run: MakeRun, healthy_rows: Rows, kind: str) -> None:
    rows = healthy_rows(supervised=kind != "baseline", num_cycles=6 if kind == "six cycles" else 3)
    options: dict[str, Any] = {}
    if kind == "baseline":
        options = {"config_name": "deep_supervision_baseline", "deep_supervision_enabled": False}
    if kind == "one row":
        rows = rows[:1]
    if kind == "no rows":
        rows = []
    if kind == "diverged":
        rows = [*rows[:20], {**rows[20], "train/total_loss": None, "train/grad_norm": None}]  # type: ignore[dict-item]
    if kind == "ill":  # every health check has something to say
        for row in rows:
            row.update({"train/grad_norm": 50.0, "train/lm_loss": row["step"], "throughput/data_wait_fraction": 0.3})
            if "eval/loss" in row:
                row.update({"eval/loss": row["step"], "eval/exact_accuracy": 1 - row["step"] / 900})
                row.update(
                    {
                        "eval/step_2_loss": 9.0,
                        "eval/exact_accuracy_halting": 0.1,
                        "eval/exact_accuracy_first": 1.0,
                    }
                )
    check_text(draw_dashboard(make_run(rows, **options)))


def test_panels_without_data_say_why(make_run: MakeRun, healthy_rows: Rows) -> None:
    rows = [{tag: value for tag, value in row.items() if "step_" not in tag} for row in healthy_rows(with_eval=False)]
    off = {"log_per_step_losses": False, "compute_gradient_stats": False}
    figure = draw_dashboard(make_run(rows, **off))
    for title in ("Loss of each", "Latest loss"):
        assert "log_per_step_losses is off" in words(panel(figure, title))
    assert "compute_gradient_stats is off" in words(panel(figure, "Gradient norm of each"))
    for title in ("Refinement", "Solved by depth and step", "Solved by depth"):
        assert "the first is due at step 100" in words(panel(figure, title))
    assert "no evaluation yet: the first is due at step 100" in words(panel(figure, "Summary"))


def test_a_run_of_a_release_without_depths_says_how_to_measure_them(make_run: MakeRun, healthy_rows: Rows) -> None:
    rows = [{tag: value for tag, value in row.items() if "first_segment" not in tag} for row in healthy_rows()]
    figure = draw_dashboard(make_run(rows))
    for title in ("Refinement", "Solved by depth"):
        assert "trm-ray evaluate" in words(panel(figure, title))
    assert "all segments together" in panel(figure, "Loss of each").get_ylabel()
    check_text(figure)
    assert "measured no depth" in words(panel(draw_comparison([make_run(rows, "old")]), "Exact accuracy over depth"))


def test_a_single_cycle_has_nothing_to_refine(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_dashboard(make_run(healthy_rows(num_cycles=1), arch={"H_cycles": 1}))
    assert len(panel(figure, "Refinement").lines) == 1


def test_gradient_statistics_that_are_not_due_yet_say_when(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_dashboard(make_run(healthy_rows(last_step=40, with_eval=False)))
    assert "due at step 50, the run is at step 40" in words(panel(figure, "Gradient norm of each"))


def test_refinement_is_drawn_where_it_is_to_be_seen_in_the_first_segment(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_dashboard(make_run(healthy_rows()))
    first, second, last = panel(figure, "Refinement").lines
    assert list(first.get_xdata()) == [100, 200, 300, 400]
    assert [line.get_ydata()[-1] for line in (first, second, last)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_depth_panels_show_every_depth_and_evaluation(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_dashboard(make_run(healthy_rows()))
    (image,) = panel(figure, "Solved by depth and step").child_axes[0].images
    shares = image.get_array()
    assert shares.shape == (24, 4)
    assert (shares[0, 0], shares[23, 3]) == pytest.approx((100 / 400 / 3, 1.0))
    curves = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Solved by depth")
    assert [len(line.get_xdata()) for line in curves.lines] == [24] * 4
    assert curves.lines[-1].get_ydata()[[0, -1]] == pytest.approx([1 / 3, 1])


def test_the_dashboard_of_a_text_draws_bits_per_byte_beside_unigram_and_xz(text_run: Run) -> None:
    figure = draw_dashboard(text_run)
    changed = {
        "Refinement: solved by each H-cycle": "Refinement: bits per byte by each H-cycle",
        "Mean ACT steps": "Bits per byte",
        "Solved by depth and step": "Bits per byte by depth and step",
        "Solved by depth": "Bits per byte by depth",
    }
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [changed.get(title, title) for title in TITLES]
    check_text(figure)
    bits = dict(zip(titles, figure.axes, strict=True))
    lines = {line.get_label(): list(line.get_ydata()) for line in bits["Bits per byte"].lines}
    last = 1.1 * 1.8 * 0.993**400 + 2
    assert lines["held out"][-1] == pytest.approx(last)
    assert (lines["unigram 4.80"], lines["xz 2.71"]) == ([4.8, 4.8], [2.71, 2.71])
    by_cycle = [line.get_ydata()[-1] for line in bits["Refinement: bits per byte by each H-cycle"].lines]
    assert by_cycle == pytest.approx([1.1 * last, 1.05 * last, last])
    (image,) = bits["Bits per byte by depth and step"].child_axes[0].images
    assert list(image.get_array()[:, -1]) == pytest.approx(by_cycle)
    assert list(bits["Bits per byte by depth"].lines[-1].get_ydata()) == pytest.approx(by_cycle)
    summary = words(bits["Summary"])
    assert "(unigram 4.80, xz 2.71)" in summary
    assert "exact accuracy" not in summary


def test_the_dashboard_of_prompts_draws_answers_solved_and_bits_per_byte(make_run: MakeRun, healthy_rows: Rows) -> None:
    rows = [row | ({"eval/bits_per_byte": 1.5} if "eval/loss" in row else {}) for row in healthy_rows()]
    figure = draw_dashboard(make_run(rows, arch={"H_cycles": 3, "causal": True}))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [title.replace("Mean ACT steps", "Bits per byte") for title in TITLES]
    assert panel(figure, "Refinement").get_ylabel() == "held-out prompts solved"


def test_the_clip_line_stands_at_the_configured_norm(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_dashboard(make_run(healthy_rows(), grad_clip_norm=0.7))
    lines = {line.get_label(): line.get_ydata() for line in panel(figure, "Gradient norm").lines}
    assert list(lines["clip at 0.7"]) == [0.7, 0.7]


def test_a_dashboard_is_saved_in_the_format_of_its_name(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run([])
    assert save_dashboard(run, tmp_path / "new" / "d.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"d.xyz: its name must end with one of .*\.png"):
        save_dashboard(run, tmp_path / "d.xyz")


# ---- comparison


@pytest.fixture
def five(make_run: MakeRun, healthy_rows: Rows) -> list[Run]:
    """Five scenarios of two seeds; one of the constant's stops early, the baseline never reaches 50 %."""
    runs = []
    for index, name in enumerate(SCENARIO_COLOURS):
        for seed in (0, 1):
            is_stopped = (name, seed) == ("constant", 1)
            rows = healthy_rows(last_step=100 if is_stopped else 400, scale=1 + 0.1 * index + 0.05 * seed)
            if name == "baseline":
                rows = [{k: v for k, v in row.items() if k != "eval/exact_accuracy"} | _low(row) for row in rows]
            options = {"config_name": f"deep_supervision_{name}", "seed": seed, "finished": not is_stopped}
            runs.append(make_run(rows, f"{name}{seed}", **options))
    return runs


def _low(row: dict[str, float]) -> dict[str, float]:
    return {"eval/exact_accuracy": 0.1} if "eval/loss" in row else {}


def test_the_comparison_has_its_eight_panels_and_no_text_overlaps(five: list[Run]) -> None:
    figure = draw_comparison(five, 0.5)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Held-out loss over steps",
        "Exact accuracy over steps",
        "First H-cycle's accuracy over steps",
        "Exact accuracy over depth",
        "Held-out loss over time",
        "Exact accuracy over time",
        "First H-cycle's accuracy over time",
        "Steps to 50 % exact accuracy",
    ]
    assert figure.bbox.size.tolist() == [2000, 1000]
    check_text(figure)


def test_text_is_drawn_by_its_bits_with_unigrams_and_xz_beside_them(make_text_run: MakeRun) -> None:
    """The worst run ends above xz's 2.71, of which only the line is in sight."""
    runs = [
        make_text_run(scale, f"{name}{seed}", seed=seed, config_name=f"deep_supervision_{name}")
        for name, scale in (("linear", 0.9), ("baseline", 8.0))
        for seed in (0, 1)
    ]
    figure = draw_comparison(runs)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Anytime bits per byte over steps",
        "Bits per byte over steps",
        "First H-cycle's bits per byte over steps",
        "Bits per byte over depth",
        "Anytime bits per byte over time",
        "Bits per byte over time",
        "First H-cycle's bits per byte over time",
        "Steps to 2.71 bits per byte (xz)",
    ]
    curves = panel(figure, "Bits per byte over steps")
    assert "xz 2.71" in words(curves)
    assert "Held-out text only." in " ".join(text.get_text() for text in figure.texts)
    told = words(panel(figure, "Steps to"))
    assert "baseline not in 400 steps (best " in told
    check_text(figure)


def test_a_scenario_has_one_colour_in_all_panels_and_in_the_legend(five: list[Run]) -> None:
    figure = draw_comparison(five, 0.5)
    expected = {colour.lower() for colour in SCENARIO_COLOURS.values()}
    for axes in figure.axes[:7]:
        drawn = {to_hex(line.get_color()) for line in axes.lines if line.get_marker() not in ("None", "")}
        assert drawn == expected
    legend = figure.legends[0]
    named = {
        text.get_text(): to_hex(line.get_color())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert named == {f"{name} (2 seeds)": colour.lower() for name, colour in SCENARIO_COLOURS.items()}


def test_a_line_is_the_mean_of_the_seeds(five: list[Run]) -> None:
    figure = draw_comparison([run for run in five if run.config_name.endswith("linear")], 0.5)
    (line,) = (line for line in panel(figure, "Held-out loss over steps").lines if len(line.get_xdata()) == 4)
    first = [1.1 * 1.8 * 0.993**100 * scale for scale in (1.2, 1.25)]
    assert line.get_ydata()[0] == pytest.approx(sum(first) / 2)
    assert list(line.get_xdata()) == [100, 200, 300, 400]


def test_a_threshold_never_reached_is_told_in_words(five: list[Run]) -> None:
    runs = [
        replace(run, rows=tuple(row | _low(row) for row in run.rows)) if run.name == "linear1" else run for run in five
    ]
    told = words(panel(draw_comparison(runs, 0.5), "Steps to"))
    assert "not in 400 steps (best 10.0 %)" in told
    assert "linear 200 steps · 20 s (1/2 seeds)" in told
    assert len(panel(draw_comparison(runs, 0.5), "Steps to").patches) == 4


def test_runs_that_were_stopped_count_in_no_panel_of_what_was_reached(five: list[Run]) -> None:
    """Both seeds of constant would make it (1/2 seeds), and its depths those of two runs, in a band."""
    figure = draw_comparison([run for run in five if run.config_name.endswith("constant")], 0.5)
    assert "constant 200 steps · 20 s" in words(panel(figure, "Steps to"))
    assert "seeds" not in words(panel(figure, "Steps to"))
    assert not panel(figure, "Exact accuracy over depth").collections


def test_steps_are_told_without_seconds_where_the_last_were_not_logged(make_run: MakeRun, healthy_rows: Rows) -> None:
    """As of a run that was stopped in its last evaluation; 30 % at step 300 and 70 % at step 400 is 50 % at 350."""
    rows = [
        row | ({"eval/exact_accuracy": row["step"] / 250 - 0.9} if "eval/loss" in row else {}) for row in healthy_rows()
    ]
    rows[-1] = {tag: value for tag, value in rows[-1].items() if not tag.startswith("throughput/")}
    assert "350 steps" in words(panel(draw_comparison([make_run(rows)], 0.5), "Steps to"))


def test_runs_without_an_evaluation_say_why(make_run: MakeRun, healthy_rows: Rows) -> None:
    figure = draw_comparison([make_run(healthy_rows(last_step=90, with_eval=False))], 0.5)
    for title in ("Held-out loss", "Exact accuracy over depth", "First H-cycle", "Exact accuracy", "Steps to"):
        assert "first is due at step 100; the furthest run is at step 90" in words(panel(figure, title))
    check_text(figure)


def test_many_variants_stay_readable(make_run: MakeRun, healthy_rows: Rows) -> None:
    runs = [
        make_run(healthy_rows(scale=1 + 0.1 * i), f"{i}", lr=1e-3 * (i + 1), deep_supervision_weight=0.05 * i)
        for i in range(12)
    ]
    figure = draw_comparison(runs, 0.5)
    assert figure.legends[0].get_texts()[-1].get_text() == "2 others"
    check_text(figure)


def test_variants_of_several_scenarios_share_its_colour_and_differ_in_dashes() -> None:
    looks = group_looks(["baseline", "linear", "linear"])
    assert [look.colour for look in looks] == ["#4D4D4D", "#0072B2", "#0072B2"]
    assert len({(look.line_style, look.marker) for look in looks[1:]}) == 2


def test_a_report_holds_picture_json_and_markdown(five: list[Run], tmp_path: Path) -> None:
    paths = Compared.of(five, 0.5).write(tmp_path / "report")
    assert [path.name for path in paths] == ["comparison.png", "summary.md", "summary.json"]
    assert all(path.stat().st_size > 0 for path in paths)


def test_a_report_without_its_picture_has_its_tables_and_says_so(
    five: list[Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "comparison.png").mkdir()
    assert [path.name for path in Compared.of(five, 0.5).write(tmp_path)] == ["summary.md", "summary.json"]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"no picture of the comparison was drawn; the tables are in {tmp_path} (Is")
    assert "\n" not in caplog.messages[0]


def test_names_with_signs_of_mathematics_and_tables_are_names(make_run: MakeRun, tmp_path: Path) -> None:
    rows = [{"step": step, "wall_s": 1.0 * step, "eval/loss": 1 / step, "eval/exact_accuracy": 0.1} for step in (1, 2)]
    odd = ["a$x_$b", "c^$_{$", "|[/x]|"]
    runs = [make_run(rows, f"r{i} $x_$", data_paths=[name]) for i, name in enumerate(odd)]
    Compared.of(runs, 0.5).write(tmp_path / "report")
    lines = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8").splitlines()
    cells = [line.replace("\\|", "/").count("|") for line in lines if line.startswith("|")]
    assert len(cells) == 5
    assert set(cells) == {cells[0]}


def test_a_comparison_is_saved_as_svg_too(five: list[Run], tmp_path: Path) -> None:
    assert "<svg" in save_comparison(five, tmp_path / "c.svg").read_text()
