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
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.config import Config
from trm_ray.measure import floor, step_cost
from trm_ray.measure.floor import machine_bandwidth, machine_rate, step_bytes
from trm_ray.measure.step_cost import (
    PRESETS,
    RECIPES,
    SCENARIOS,
    BenchResult,
    bench_json,
    bench_table,
    planned_cases,
    read_bench,
    run_benchmark,
    summary_rows,
)
from trm_ray.model.gradient_path import GradientPath
from trm_ray.training.flops import affordable_steps, step_flops, train_flops
from trm_ray.training.session import Session
from trm_ray.training.state import TokenShape, TrainState, build_recipe, build_supervision
from trm_ray.training.step import train_step

CPU = torch.device("cpu")
TOKENS = TokenShape(seq_len=16, vocab_size=6)
LAST, FULL = GradientPath.last(3), GradientPath.full(3)

RESULT = BenchResult(
    preset="sudoku6",
    scenario="baseline",
    scaled="",
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
    bytes_moved=1e8,
    machine_rate=80e9,
    machine_bandwidth=10e9,
    peak_mib=64.0,
)
LINEAR = replace(RESULT, scenario="linear", cpu_ms=190.0, wall_ms=190.0, peak_mib=192.0)


def plain_steps(config: Config, num_steps: int) -> TrainState:
    """Train on the benchmark's batches with nothing attached."""
    state, recipe = TrainState(config, TOKENS, CPU), build_recipe(config, config.max_steps or 1)
    tokens = step_cost._random_tokens(TOKENS, config)
    session = Session(Path(), CPU, tokens, lambda whole: (), lambda *_: None)
    for batch in itertools.islice(session.train_batches(0), num_steps):
        train_step(state, recipe, [batch], session)
    return state


# -- shapes ----------------------------------------------------------------------------------------------------------


def test_the_original_presets_are_those_that_the_reference_times_were_taken_with():
    small, large = (PRESETS[name].config("baseline", CPU) for name in ("sudoku6_original", "sudoku9_original"))
    keys = ("hidden_size", "mixer", "H_cycles", "L_cycles", "L_layers", "expansion", "ffn_multiple_of", "forward_dtype")
    assert [getattr(small.arch, key) for key in keys] == [64, "mlp", 3, 3, 2, 4, 256, "float32"]
    assert [getattr(large.arch, key) for key in keys] == [512, "attention", 3, 6, 2, 4, 256, "bfloat16"]
    assert (large.arch.num_heads, large.arch.pos_encodings) == (8, "rope")
    assert (small.global_batch_size, large.global_batch_size) == (32, 8)
    assert PRESETS["sudoku6_original"].tokens == TokenShape(seq_len=36, vocab_size=8)
    assert PRESETS["sudoku9_original"].tokens == TokenShape(seq_len=81, vocab_size=11)


def test_every_preset_can_be_measured_under_every_scenario_beginning_with_its_baseline():
    for preset in PRESETS.values():
        assert preset.scenarios[0] == "baseline"
        for scenario in SCENARIOS:
            enabled = scenario not in ("baseline", "bptt_last")
            assert preset.config(scenario, CPU).deep_supervision_enabled == enabled


@pytest.mark.parametrize(
    ("preset", "positions", "mixer", "L_cycles", "batch_size"),
    [
        ("sudoku_mlp", 16 + 81, "mlp", 6, 768),
        ("sudoku_att", 16 + 81, "attention", 6, 768),
        ("maze", 16 + 900, "attention", 4, 768 // 4),
        ("arc", 16 + 900, "attention", 4, 768 // 4),
    ],
)
def test_the_presets_of_published_recipes_have_their_sizes_on_a_gpu_and_their_widths_on_a_cpu(
    preset: str, positions: int, mixer: str, L_cycles: int, batch_size: int
):
    """The paper's: 512 wide, 2 layers, 3 H-cycles, batches of 768, for mazes and ARC over four GPUs."""
    chosen = RECIPES[preset]
    whole, small = (chosen.config("baseline", torch.device(device)) for device in ("cuda", "cpu"))
    assert (whole.arch.H_cycles, whole.arch.L_cycles, whole.arch.L_layers) == (3, L_cycles, 2)
    assert whole.global_batch_size == batch_size
    for config in (whole, small):
        assert config.arch.prefix_len + chosen.tokens.seq_len == positions
        assert (config.arch.mixer, config.arch.hidden_size, config.arch.forward_dtype) == (mixer, 512, "bfloat16")


def test_a_curriculum_is_measured_at_its_full_weight():
    config = tiny_config(**supervised(), curriculum_enabled=True, curriculum_start_step=3, curriculum_end_step=5)
    state = step_cost._state_at_full_supervision(config, TOKENS, CPU)
    assert build_recipe(config, 8).supervision.base_weight(state.step) == 0.5


PATHS = {
    "baseline": {},
    "supervised": supervised(),
    "bptt_last": {"recurrent_grad_depth": "all"},
    "k=2": supervised(recurrent_grad_depth=2),
    "detached": supervised(detach_cycles=True),
}

# -- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("arch", [{"mixer": "mlp"}, {"mixer": "attention", "pos_encodings": "rope"}])
def test_the_counted_operations_are_those_that_pytorch_counts_in_a_step(arch, scenario):
    config = tiny_config(arch={"L_layers": 2, **arch}, **scenario)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        plain_steps(config, 1)
    # The halt head's D·2 products a row, and what the first application need not pass back, are left out.
    counted = step_flops(config, TOKENS, build_supervision(config).path(0))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_step_of_several_segments_is_as_many_times_the_work_of_one():
    one, three = (step_flops(tiny_config(segments_per_update=k), TOKENS, FULL) for k in (1, 3))
    assert three == 3 * one
    assert step_cost.measure_config(tiny_config(segments_per_update=2), TOKENS, 1).forward_ms is not None


@pytest.mark.parametrize(
    "changes",
    [
        supervised(),
        {**supervised(), "curriculum_enabled": True, "curriculum_start_step": 3, "curriculum_end_step": 5},
        {"depth_curriculum": [[0, 1, 1], [0.5, None, None]]},
    ],
    ids=["supervised", "curriculum", "depth_curriculum"],
)
def test_as_many_steps_are_taken_as_the_operations_pay_for(changes):
    def flops(num_steps: int) -> float:
        return train_flops(config, TOKENS, build_supervision(config, num_steps).paths(num_steps))

    config = tiny_config(**changes)
    for bound in (flops(7), flops(7) + 1.0, flops(8) - 1.0):
        assert affordable_steps(config.model_copy(update={"max_flops": bound}), TOKENS, 100) == 7
    assert affordable_steps(config.model_copy(update={"max_flops": flops(7)}), TOKENS, 5) == 5
    with pytest.raises(ValueError, match=r"max_flops=1 must be at least the \S+ of a step; use more"):
        affordable_steps(config.model_copy(update={"max_flops": 1.0}), TOKENS, 5)


def test_supervision_triples_the_backward_pass_of_three_cycles():
    plain, full = (step_flops(tiny_config(), TOKENS, path) for path in (LAST, FULL))
    assert full / plain == pytest.approx((3 + 2 * 3) / (3 + 2 * 1))
    # Through all cycles from the last loss alone: as much but for the two other cycles' heads.
    control, head = GradientPath.along((0, 0, 1), 3), 2.0 * 8 * 16 * 16 * 6
    assert step_flops(tiny_config(), TOKENS, control) == full - 2 * 2 * head
    detached = GradientPath.along((0.5, 0.5, 1), detached=True)
    assert step_flops(tiny_config(), TOKENS, detached) == full
    assert train_flops(tiny_config(), TOKENS, {LAST: 6, FULL: 4}) == pytest.approx(6 * plain + 4 * full)


def test_the_bytes_of_a_step_are_those_counted_by_hand():
    # A cycle is a latent and an answer update. One layer, 2 rows of 3 cells of 4 features, 5 tokens, inner width 6.
    arch = {"H_cycles": 2, "L_cycles": 1, "hidden_size": 4, "expansion": 2, "ffn_multiple_of": 2}
    config, tokens = tiny_config(global_batch_size=2, arch=arch), TokenShape(3, 5)
    features = (6 * 4 + 4 * 12 + 6 * 12) + (6 * 6 + 6 * 4 + 6 * 4)  # 2·3 cells: 4 → 2·6, then 6 → 4
    cells = (8 * 3 + 3 * 8 + 8 * 8) + (8 * 4 + 4 * 3 + 8 * 3)  # 2·4 columns: 3 → 2·4, then 4 → 3
    cycle = 2 * (features + cells) + (6 * 4 + 4 * 5 + 6 * 5)
    # Forward twice; backward twice as many for the last cycle alone, or for both; 100 weights, 8 floats each.
    paths = (GradientPath.last(2), GradientPath.full(2))
    counted = [step_bytes(config, tokens, path, num_weights=100) for path in paths]
    assert counted == [4 * (cycle * passes + 8 * 100) for passes in (2 + 2, 2 + 4)]


def test_attention_moves_its_projections_and_its_operands_but_never_the_scores():
    arch = {"H_cycles": 1, "L_cycles": 1, "hidden_size": 4, "num_heads": 1, "expansion": 2, "ffn_multiple_of": 2}
    config = tiny_config(global_batch_size=2, arch={**arch, "mixer": "attention"})
    mixer = (6 * 4 + 4 * 12 + 6 * 12) + 4 * (6 * 4) + (6 * 4 + 4 * 4 + 6 * 4)
    features = (6 * 4 + 4 * 12 + 6 * 12) + (6 * 6 + 6 * 4 + 6 * 4)
    head = 6 * 4 + 4 * 5 + 6 * 5
    counted = step_bytes(config, TokenShape(3, 5), GradientPath.last(1), num_weights=0)
    assert counted == 4 * 3 * (2 * (mixer + features) + head)


def test_a_copy_moves_what_it_reads_and_what_it_writes():
    source, target = torch.ones(2**25), torch.empty(2**25)
    copy_s = min(floor._seconds_a_call(lambda: target.copy_(source), CPU, 1, 0.05) for _ in range(3))
    assert machine_bandwidth(CPU, 1, min_s=0.2) == pytest.approx(2 * 4 * 2**25 / copy_s, rel=0.6)


def test_the_machine_multiplies_at_the_rate_of_torch_mm():
    x = torch.ones(1024, 1024)
    timer_s = min(floor._seconds_a_call(lambda: x @ x, CPU, 1, 0.05) for _ in range(3))
    # Others may use the machine meanwhile.
    assert machine_rate(CPU, torch.float32, 1, min_s=0.2) == pytest.approx(2 * 1024**3 / timer_s, rel=0.6)


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


@pytest.mark.parametrize(("step_s", "num_steps"), [(0.001, 50), (0.5, 10), (60.0, 2)])
def test_steps_are_as_many_as_fit_five_seconds_within_limits(step_s, num_steps):
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


def test_each_preset_brings_its_scenarios_unless_others_are_asked_for():
    assert planned_cases(["sudoku6"]) == [("sudoku6", scenario) for scenario in SCENARIOS]
    assert planned_cases(["sudoku9_original"]) == [("sudoku9_original", "baseline"), ("sudoku9_original", "linear")]
    assert planned_cases(["sudoku6"], ["constant"]) == [("sudoku6", "constant")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"presets": ["sudoku7"]}, "preset=sudoku7 is unknown; did you mean `sudoku6`\\? All are sudoku6, text_tiny"),
        ({"scenarios": ["linea"]}, "scenarios=linea is unknown; did you mean `linear`\\? All are baseline, constant"),
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


def test_the_floor_is_the_longer_of_multiplying_and_moving():
    # 2 GFLOP at 80 GFLOP/s are 25 ms, 0.1 GB at 10 GB/s are 10 ms.
    assert (RESULT.matrix_ms, RESULT.memory_ms, RESULT.floor_ms) == pytest.approx((25, 10, 25))
    assert RESULT.over_floor == pytest.approx(4)
    assert replace(RESULT, bytes_moved=1e9).over_floor == pytest.approx(1)


def test_ratios_are_to_the_baseline_of_the_same_preset():
    other = replace(LINEAR, preset="sudoku9_original")
    rows = summary_rows([RESULT, LINEAR, other])
    assert [row["time_ratio"] for row in rows] == [pytest.approx(1), pytest.approx(1.9), None]
    assert [row["memory_ratio"] for row in rows] == [pytest.approx(1), pytest.approx(3), None]
    assert [rows[0][f"{part}_share"] for part in ("forward", "backward", "optimizer")] == [0.5, 0.4, 0.1]


def test_json_holds_the_rows():
    assert json.loads(bench_json([RESULT, LINEAR])) == summary_rows([RESULT, LINEAR])


def test_the_table_shows_every_case_under_its_preset_in_120_columns():
    results = [RESULT, LINEAR, replace(RESULT, preset="sudoku9_original", cpu_ms=12345.6)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(bench_table(results))
    text = console.export_text()
    lines = [line.split() for line in text.splitlines()]
    cells = [
        "125.0",
        "1.00",
        "25.0",
        "10.0",
        "4.00",
        "256.0",
        "50.0",
        "50%",
        "40.0",
        "40%",
        "10.0",
        "10%",
        "64",
        "1.00",
    ]
    assert ["baseline", "100.0", *cells] in lines
    assert [line[0] for line in lines if line and line[0] in (*PRESETS, *SCENARIOS)] == [
        "sudoku6",
        "baseline",
        "linear",
        "sudoku9_original",
        "baseline",
    ]
    assert "…" not in text
    assert "sudoku6: 1,000 parameters, batch 32, float32, cpu, threads 1, mm 80 GFLOP/s, copy 10 GB/s" in text


def test_what_was_made_smaller_for_a_cpu_is_told():
    table = bench_table([replace(RESULT, scaled="global_batch_size=2")])
    assert "made smaller for a CPU, at the same widths: global_batch_size=2" in str(table.caption)


def compared(folder: Path, before: list[BenchResult], after: list[BenchResult]) -> str:
    """What the command prints of two files."""
    names = [folder / name for name in ("before.json", "after.json")]
    for name, results in zip(names, (before, after), strict=True):
        name.write_text(bench_json(results))
    told = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["bench", "--compare", *map(str, names)])
    return told.stdout if told.exit_code == 0 else f"{told.exit_code} {told.stderr}"


def test_two_files_are_compared_case_by_case(tmp_path: Path):
    # 100 ms became 50 ms, on a machine that multiplies twice as fast: as far from its floor as before.
    faster = replace(RESULT, cpu_ms=50.0, machine_rate=160e9, peak_mib=32.0)
    text = compared(tmp_path, [RESULT, LINEAR], [faster])
    lines = [line.split() for line in text.splitlines()]
    assert ["sudoku6", "baseline", "100.0", "50.0", "0.50", "4.00", "4.00", "0.50"] in lines
    assert not any(line[:2] == ["sudoku6", "linear"] for line in lines)
    assert "matrix rate, after ÷ before: 2.00" in text


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ([replace(RESULT, preset="maze")], "have no preset and scenario in common"),
        ([replace(RESULT, flops=4e9, batch_size=64)], "(global_batch_size=32 and global_batch_size=64)"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, after: list[BenchResult], message: str):
    told = compared(tmp_path, [RESULT], after)
    assert told.startswith("2 error:")
    assert message in told


def test_a_file_of_something_else_is_no_benchmark(tmp_path: Path):
    (tmp_path / "other.json").write_text('{"format_version": 1}')
    with pytest.raises(ValueError, match=r"other\.json was not written by `trm-ray bench --json`"):
        read_bench(tmp_path / "other.json")
