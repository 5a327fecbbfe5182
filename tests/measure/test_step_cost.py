"""The benchmark: its counts against PyTorch's counter, its steps against the plain loop, and what it prints."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_same, supervised, tiny_config
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trm_ray.config import Config
from trm_ray.measure import step_cost
from trm_ray.measure.step_cost import (
    SCENARIOS,
    SHAPES,
    BenchResult,
    bench_json,
    bench_table,
    machine_rate,
    planned_cases,
    run_benchmark,
    summary_rows,
)
from trm_ray.training.flops import step_flops, train_flops
from trm_ray.training.session import Session
from trm_ray.training.state import TokenShape, TrainState, build_recipe
from trm_ray.training.step import train_step

CPU = torch.device("cpu")
TOKENS = TokenShape(seq_len=16, vocab_size=6)

RESULT = BenchResult(
    shape="sudoku6",
    scenario="baseline",
    device="cpu",
    dtype="float32",
    threads=1,
    batch_size=32,
    parameters=1000,
    num_steps=3,
    cpu_ms=100.0,
    wall_ms=125.0,
    forward_ms=50.0,
    backward_ms=40.0,
    optimizer_ms=10.0,
    flops=2e9,
    machine_rate=80e9,
    peak_mib=64.0,
)
LINEAR = replace(RESULT, scenario="linear", cpu_ms=190.0, wall_ms=190.0, peak_mib=192.0)


def plain_steps(config: Config, num_steps: int) -> TrainState:
    """Train on the benchmark's batches with nothing attached."""
    state, recipe = TrainState(config, TOKENS, CPU), build_recipe(config, config.max_steps or 1)
    tokens = step_cost._random_tokens(TOKENS, config)
    session = Session(Path(), CPU, tokens, lambda whole: (), lambda *_: None)
    for batch in itertools.islice(session.train_batches(0), num_steps):
        train_step(state, recipe, batch, session)
    return state


# -- shapes ----------------------------------------------------------------------------------------------------------


def test_the_original_shapes_are_those_that_the_reference_times_were_taken_with():
    small, large = (SHAPES[name].config("baseline") for name in ("sudoku6_original", "sudoku9_original"))
    keys = ("hidden_size", "mixer", "H_cycles", "L_cycles", "L_layers", "expansion", "ffn_multiple_of", "forward_dtype")
    assert [getattr(small.arch, key) for key in keys] == [64, "mlp", 3, 3, 2, 4, 256, "float32"]
    assert [getattr(large.arch, key) for key in keys] == [512, "attention", 3, 6, 2, 4, 256, "bfloat16"]
    assert (large.arch.num_heads, large.arch.pos_encodings) == (8, "rope")
    assert (small.global_batch_size, large.global_batch_size) == (32, 8)
    assert SHAPES["sudoku6_original"].tokens == TokenShape(seq_len=36, vocab_size=8)
    assert SHAPES["sudoku9_original"].tokens == TokenShape(seq_len=81, vocab_size=11)


def test_every_shape_can_be_measured_under_every_scenario_beginning_with_its_baseline():
    for shape in SHAPES.values():
        assert shape.scenarios[0] == "baseline"
        for scenario in SCENARIOS:
            assert shape.config(scenario).deep_supervision_enabled == (scenario != "baseline")


def test_a_curriculum_is_measured_at_its_full_weight():
    config = tiny_config(**supervised(), curriculum_enabled=True, curriculum_start_step=3, curriculum_end_step=5)
    state = step_cost._state_at_full_supervision(config, TOKENS, CPU)
    assert build_recipe(config, 8).supervision.base_weight(state.step) == 0.5


# -- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [{}, supervised()], ids=["baseline", "supervised"])
@pytest.mark.parametrize("arch", [{"mixer": "mlp"}, {"mixer": "attention", "pos_encodings": "rope"}])
def test_the_counted_operations_are_those_that_pytorch_counts_in_a_step(arch, scenario):
    config = tiny_config(arch={"L_layers": 2, **arch}, **scenario)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        plain_steps(config, 1)
    # The halt head's D·2 products a row, and what the first application need not pass back, are left out.
    counted = step_flops(config, TOKENS, supervised=bool(scenario))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_supervision_triples_the_backward_pass_of_three_cycles():
    plain, full = (step_flops(tiny_config(), TOKENS, supervised=every) for every in (False, True))
    assert full / plain == pytest.approx((3 + 2 * 3) / (3 + 2 * 1))
    assert train_flops(tiny_config(), TOKENS, 10, num_supervised=4) == pytest.approx(6 * plain + 4 * full)


def test_the_machine_multiplies_at_the_rate_of_torch_mm():
    x = torch.ones(1024, 1024)
    timer_s = min(step_cost._seconds_a_call(lambda: x @ x, CPU, 1, 0.05) for _ in range(3))
    # Others may use the machine meanwhile.
    assert machine_rate(torch.float32, 1, min_s=0.2) == pytest.approx(2 * 1024**3 / timer_s, rel=0.6)


# -- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [{}, supervised()], ids=["baseline", "supervised"])
def test_the_measured_steps_are_bitwise_those_of_the_loop(scenario):
    config = tiny_config(**scenario)
    measured = TrainState(config, TOKENS, CPU)
    times = step_cost._time_steps(measured, config, num_steps=2)
    assert len(times) == 2
    assert measured.step == 3  # one to warm up
    assert_same(measured.model.state_dict(), plain_steps(config, 3).model.state_dict())


def test_the_parts_of_a_step_add_up_to_the_step():
    times = step_cost._time_steps(TrainState(tiny_config(), TOKENS, CPU), tiny_config(), num_steps=2)
    for step in times:
        parts = [step[f"{part}_ms"] for part in ("forward", "backward", "optimizer")]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(step["cpu_ms"])


@pytest.mark.parametrize(("step_s", "num_steps"), [(0.001, 50), (0.5, 20), (60.0, 2)])
def test_steps_are_as_many_as_fit_ten_seconds_within_limits(step_s, num_steps):
    assert step_cost._steps_within_budget(step_s) == num_steps


@pytest.mark.slow
def test_a_case_is_measured_in_a_process_of_its_own():
    held = torch.ones(2**27)  # 512 MiB in this process, which the case must not count
    (result,) = run_benchmark(["sudoku6"], ["baseline"], num_steps=2, threads=1)
    # At least what the last cycle keeps for its backward pass: one (rows, cells, features) array a layer's product.
    applications, state_mib = 4 * 2, 32 * 36 * 64 * 4 / 2**20
    assert applications * 6 * state_mib < result.peak_mib < 100
    # Two layers of (36·2·48 + 48·36) over the cells and (64·2·96 + 96·64) over the features, two tables of 8 tokens,
    # the halt head of 2·64 + 2.
    assert result.parameters == 2 * (3 * 36 * 48 + 3 * 64 * 96) + 2 * 8 * 64 + 2 * 64 + 2
    assert (result.num_steps, result.threads, result.batch_size) == (2, 1, 32)
    assert 0 < result.machine_share < 1
    assert held[-1] == 1


# -- asking ----------------------------------------------------------------------------------------------------------


def test_each_shape_brings_its_scenarios_unless_others_are_asked_for():
    assert planned_cases(["sudoku6"]) == [("sudoku6", scenario) for scenario in SCENARIOS]
    assert planned_cases(["sudoku9_original"]) == [("sudoku9_original", "baseline"), ("sudoku9_original", "linear")]
    assert planned_cases(["sudoku6"], ["constant"]) == [("sudoku6", "constant")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ["sudoku7"]}, "shapes=sudoku7 is unknown; use one of sudoku6, sudoku6_original, sudoku9_original"),
        ({"scenarios": ["linea"]}, "scenarios=linea is unknown; use one of baseline, constant"),
        ({"num_steps": 0}, "steps=0 must be at least 1"),
        ({"threads": 0}, "threads=0 must be at least 1"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_is_measured(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark(**arguments)


# -- reporting -------------------------------------------------------------------------------------------------------


def test_a_result_gives_rates_by_hand():
    # 2 GFLOP in 0.1 CPU-s are 20 GFLOP/s of 80; 32 puzzles in 0.125 s on the wall.
    assert RESULT.machine_share == pytest.approx(0.25)
    assert RESULT.puzzles_per_s == pytest.approx(256)
    # Two threads that were busy for 100 ms together had 50 ms each, at the rate of two.
    assert replace(RESULT, threads=2).machine_share == pytest.approx(0.5)
    # A GPU works while the processor does not.
    assert replace(RESULT, device="cuda").machine_share == pytest.approx(2e9 / 0.125 / 80e9)


def test_ratios_are_to_the_baseline_of_the_same_shape():
    other = replace(LINEAR, shape="sudoku9_original")
    rows = summary_rows([RESULT, LINEAR, other])
    assert [row["time_ratio"] for row in rows] == [pytest.approx(1), pytest.approx(1.9), None]
    assert [row["memory_ratio"] for row in rows] == [pytest.approx(1), pytest.approx(3), None]
    assert [rows[0][f"{part}_share"] for part in ("forward", "backward", "optimizer")] == [0.5, 0.4, 0.1]


def test_json_holds_the_rows():
    assert json.loads(bench_json([RESULT, LINEAR])) == summary_rows([RESULT, LINEAR])


def test_the_table_shows_every_case_under_its_shape_in_110_columns():
    results = [RESULT, LINEAR, replace(RESULT, shape="sudoku9_original", cpu_ms=12345.6)]
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(bench_table(results))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    cells = ["125.0", "1.00", "256.0", "2.00", "25%", "50.0", "50%", "40.0", "40%", "10.0", "10%", "64", "1.00"]
    assert ["baseline", "100.0", *cells] in lines
    assert [line[0] for line in lines if line and line[0] in (*SHAPES, *SCENARIOS)] == [
        "sudoku6",
        "baseline",
        "linear",
        "sudoku9_original",
        "baseline",
    ]
    assert "…" not in text
    assert "sudoku6: 1,000 parameters, batch 32, float32, cpu, threads 1, mm rate 80 GFLOP/s" in text
