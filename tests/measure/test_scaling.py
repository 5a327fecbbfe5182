"""What the scaling bench measures and how it reckons, without Ray; the real thing is in tests/distributed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from run_helpers import run_config, some_puzzles

from trm_ray.data.format import DatasetInfo
from trm_ray.measure.scaling import (
    STRONG,
    WEAK,
    Case,
    MiddleHalf,
    ScalingResult,
    _configs,
    _result,
    measure_scaling,
    planned_cases,
    scaling_json,
    scaling_rows,
    scaling_table,
)
from trm_ray.reporting.pictures.scaling import draw_scaling
from trm_ray.runs.plan import RunPlan, plan_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    folder = tmp_path_factory.mktemp("data")
    return plan_run(run_config(some_puzzles(folder / "puzzles", 64, 8), folder / "run"))


def test_one_worker_is_measured_once_since_it_is_both():
    assert planned_cases([1, 2, 4]) == [
        *(Case(STRONG, 1), Case(STRONG, 2), Case(STRONG, 4)),
        *(Case(WEAK, 2), Case(WEAK, 4)),
    ]


def test_workers_share_a_batch_or_have_one_each_and_the_plain_loop_has_one(data: RunPlan):
    for kind, batch in ((STRONG, 8), (WEAK, 32)):
        on_ray, plain = _configs(data.config, Case(kind, 4), 3, 5)
        assert (on_ray.global_batch_size, on_ray.ray.num_workers) == (batch, 4)
        assert (plain.global_batch_size, plain.ray.num_workers) == (8, 0)
        for config in (on_ray, plain):
            assert (config.max_steps, config.log_interval, config.eval_interval) == (15, 5, 5)


def turns(run: Path, rank: int, rows: list[tuple[float, float, float]]) -> None:
    """Write turns of (steps a second, processor seconds, share of exchange); a step has 8 puzzles a worker."""
    run.mkdir(parents=True, exist_ok=True)
    told = [
        {
            "cpu_s": cpu,
            "report_s": 0.004,
            "throughput/steps_per_s": rate,
            "throughput/puzzles_per_s": rate * (16 if run.name == "0" else 8),
            "throughput/data_wait_fraction": 0.01,
            "throughput/exchange_fraction": exchange,
        }
        for rate, cpu, exchange in rows
    ]
    (run / f"turns_{rank}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))


@pytest.fixture
def result(data: RunPlan, tmp_path: Path) -> ScalingResult:
    """Two workers of 8 puzzles each against the plain loop: a turn that does not count, and three that do."""
    first, second = (tmp_path / name for name in ("0", "1"))
    turns(first, 0, [(0.1, 9, 0.9), (10, 1.0, 0.2), (8, 1.0, 0.3), (5, 1.0, 0.4)])
    turns(first, 1, [(0.1, 9, 0.9), (10, 1.2, 0.1), (8, 1.4, 0.1), (5, 1.6, 0.2)])
    turns(second, 0, [(0.1, 9, 0), (10, 1.0, 0), (10, 1.0, 0), (10, 1.0, 0)])
    on_ray, plain = _configs(data.config, Case(WEAK, 2), 4, 5)
    return _result(Case(WEAK, 2), data.vary(on_ray, first), data.vary(plain, second))


def test_neighbouring_turns_are_compared_and_the_first_does_not_count(result: ScalingResult):
    # Twice the puzzles a step at 10, 8 and 5 steps a second against 10: 2, 1.6 and 1 times the plain loop.
    assert result.num_turns == 3
    assert result.speed_up == pytest.approx(MiddleHalf(1.3, 1.6, 1.8))
    assert result.efficiency == pytest.approx(0.8)
    assert (result.plain_ms, result.ray_ms) == (100, 125)


def test_processor_time_counts_all_workers_and_all_puzzles(result: ScalingResult):
    # 2.2, 2.4 and 2.6 s for twice the puzzles that take the plain loop 1 s.
    assert result.cpu_ratio == pytest.approx(MiddleHalf(1.15, 1.2, 1.25))


def test_exchange_is_the_mean_of_the_workers_and_the_least_that_one_has(result: ScalingResult):
    assert result.exchange == pytest.approx(MiddleHalf(0.175, 0.2, 0.25))
    assert result.least_exchange == pytest.approx(0.1)
    assert (result.data_wait, result.report_ms) == pytest.approx((0.01, 4))


def test_the_table_and_the_file_tell_the_numbers(result: ScalingResult):
    console = Console(file=io.StringIO(), width=116)
    console.print(scaling_table([result]))
    row = next(line for line in console.file.getvalue().splitlines() if line.startswith("2 weak"))
    for cell in ("16", "100", "125", "1.60 (1.30–1.80)", "80%", "1.20 (1.15–1.25)", "20%", "10%", "1.0%", "4"):
        assert cell in row.split() or cell in row
    (told,) = json.loads(scaling_json([result]))
    assert told["speed_up"] == pytest.approx([1.3, 1.6, 1.8])
    assert told["efficiency"] == pytest.approx(0.8)


def test_the_figure_shows_where_the_time_goes(result: ScalingResult):
    figure = draw_scaling(scaling_rows([result]))
    speed, _, time = figure.axes
    shares = {bars.get_label(): bars.patches[0].get_width() for bars in time.containers}
    assert shares == pytest.approx({"computing": 79, "exchange": 10, "waiting": 10, "data": 1})
    weak = next(line for line in speed.containers if line.get_label() == WEAK)
    assert weak.lines[0].get_ydata().tolist() == pytest.approx([1.6])


def test_the_data_of_a_task_are_made_before_anything_is_measured(tmp_path: Path):
    words = ["generator.size=4", "generator.train=64", "generator.test=8"]
    measure_scaling(run_config(tmp_path / "made", tmp_path / "unused", *words), [Case(WEAK, 2)], num_turns=1, steps=1)
    assert DatasetInfo.load(tmp_path / "made").split("train").rows == 64
