"""What a training step costs: time, its split, memory, and how far it is from the least that this machine could take.

The steps are `train_step` on random tokens: what is measured is what trains. Time and memory of every case (a preset
under a scenario) are taken in processes of their own, so that neither its memory nor its threads touch another's.

Presets are tasks with overrides, so `trm-ray train task=… KEY=VALUE…` trains what was measured.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from trm_ray.config import Config, load_config, with_overrides
from trm_ray.config.errors import did_you_mean
from trm_ray.data.rows import TokenBatch
from trm_ray.measure.floor import machine_bandwidth, machine_rate, step_bytes, wait_for
from trm_ray.reporting.terminal import number_table
from trm_ray.training.flops import step_flops
from trm_ray.training.memory import kept_bytes
from trm_ray.training.segment import SegmentResult
from trm_ray.training.session import Session, place
from trm_ray.training.state import Recipe, TokenShape, TrainState, build_recipe
from trm_ray.training.step import train_step

# A scenario's file with overrides as on the command line. The last two make supervision cheaper: what is computed
# again is not kept, and gradients run through two cycles.
SCENARIOS: dict[str, tuple[str, ...]] = {
    **{name: (f"deep_supervision_{name}",) for name in ("baseline", "constant", "linear", "exponential", "curriculum")},
    **{name: (name,) for name in ("detached", "bptt_last")},
    "linear_checkpointed": ("deep_supervision_linear", "checkpoint_cycles=true"),
    "linear_depth_2": ("deep_supervision_linear", "recurrent_grad_depth=2"),
}
TIME_BUDGET_S = 5.0
_FEWEST_STEPS, _MOST_STEPS = 2, 50
_MIB = 2**20

_T = TypeVar("_T")


@dataclass(frozen=True)
class Preset:
    """A task with overrides as on the command line; `scenarios` are those measured unless others are asked for.

    on_cpu: more overrides where there is no GPU: fewer puzzles and fewer turns through the same matrices, so that a
        step takes seconds.
    """

    task: str
    tokens: TokenShape
    overrides: tuple[str, ...] = ()
    on_cpu: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ("baseline", "linear")

    def config(self, scenario: str, device: torch.device) -> Config:
        """Resolve the preset under a scenario."""
        scaled = self.on_cpu if device.type == "cpu" else ()
        words = {word.partition("=")[0]: word for word in (f"task={self.task}", *self.overrides, *scaled)}
        name, *own = SCENARIOS[scenario]
        return load_config(name, [*words.values(), *own])


# Cells, and tokens: PAD, blank and the digits; PAD and a maze's five; PAD, end and ARC's ten colours; PAD and bytes;
# bytes and a separator; a large vocabulary's.
_BOARD_6, _BOARD_9, _TEXT = TokenShape(36, 8), TokenShape(81, 11), TokenShape(128, 257)
_BYTES, _WORDS = TokenShape(128, 257, separator=256), TokenShape(128, 32_000, separator=1)
_MAZE, _ARC = TokenShape(900, 6), TokenShape(900, 12, num_puzzle_identifiers=1_000)
_TWO = ("global_batch_size=2", "arch.L_layers=1")
_ONE = ("global_batch_size=1", "arch.L_cycles=1", "arch.L_layers=1")
_QUARTER = ("global_batch_size=192",)  # a GPU's part of 768: the published runs had four
_WITH_EMBEDDING = ("arch.puzzle_emb_ndim=64", "arch.puzzle_emb_len=1")
# The recipes that were published, and two small ones; the table of ARC's 876,405 puzzles adds its 1.8 GB and no time.
RECIPES = {
    "sudoku6": Preset("sudoku6", _BOARD_6, scenarios=tuple(SCENARIOS)),
    "text_tiny": Preset(
        "sudoku6", _TEXT, ("arch.mixer=attention", "arch.pos_encodings=rope"), ("global_batch_size=8",)
    ),
    "text_bytes": Preset("text_bytes_tiny", _BYTES),
    "sudoku_mlp": Preset("sudoku_extreme_mlp", _BOARD_9, on_cpu=_TWO),
    "sudoku_att": Preset("sudoku_extreme", _BOARD_9, on_cpu=_TWO),
    "maze": Preset("maze_hard", _MAZE, _QUARTER, on_cpu=_ONE),
    "arc": Preset("arc1", _ARC, _QUARTER, on_cpu=_ONE),
}
PRESETS: dict[str, Preset] = {
    **RECIPES,
    "recursive_llm": Preset("recursive_llm", _WORDS, ("global_batch_size=96",), on_cpu=_ONE),  # of 768, on 8 GPUs
    # Those that older measurements were made with.
    "sudoku6_original": Preset("sudoku6", _BOARD_6, ("arch.expansion=4", "arch.ffn_multiple_of=256")),
    "sudoku9_original": Preset(
        "sudoku_extreme", _BOARD_9, ("arch.puzzle_emb_ndim=0", "optimizer=adamw", "ema=false", "global_batch_size=8")
    ),
    # What a million puzzle identifiers cost beyond their table, which is 244 MiB here.
    "identifiers_1k": Preset("sudoku6", replace(_BOARD_6, num_puzzle_identifiers=1_000), _WITH_EMBEDDING),
    "identifiers_1m": Preset("sudoku6", replace(_BOARD_6, num_puzzle_identifiers=1_000_000), _WITH_EMBEDDING),
}


@dataclass(frozen=True)
class BenchResult:
    """One case; times are medians over the steps after a first one.

    scaled: what of the preset was made smaller for a CPU.
    cpu_ms: processor time of a step, over all threads; robust when others use the machine. wall_ms: the same on the
    wall. forward_ms: the segment with its losses, where cycles are detached also with all but the last backward pass.
    backward_ms: its backward pass. optimizer_ms: clipping, update and metrics. The three are wall time on a GPU and
    processor time else. flops, bytes_moved: of a step, counted (`step_flops`, `step_bytes`). machine_rate,
    machine_bandwidth: FLOP/s of the matrix multiplication in this dtype and bytes/s of a copy, measured after the
    steps.
    peak_mib: weights, optimizer state, activations and temporaries at their highest, without the libraries. A long run
    may hold some more: freed memory that is in pieces too small to use.
    """

    preset: str
    scenario: str
    scaled: str
    device: str
    dtype: str
    threads: int
    batch_size: int
    parameters: int
    num_steps: int
    cpu_ms: float
    wall_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    flops: float
    bytes_moved: float
    machine_rate: float
    machine_bandwidth: float
    peak_mib: float

    @property
    def step_ms(self) -> float:
        """Time that a step has the device for itself: wall time on a GPU, processor time a thread else."""
        return self.wall_ms if self.device == "cuda" else self.cpu_ms / self.threads

    @property
    def puzzles_per_s(self) -> float:
        """Segments of puzzles trained in a second of the wall clock."""
        return 1e3 * self.batch_size / self.wall_ms

    @property
    def matrix_ms(self) -> float:
        """Least time for the step's operations, at the matrix multiplication's rate."""
        return 1e3 * self.flops / self.machine_rate

    @property
    def memory_ms(self) -> float:
        """Least time for the step's bytes, at the rate of a copy."""
        return 1e3 * self.bytes_moved / self.machine_bandwidth

    @property
    def floor_ms(self) -> float:
        """Least time for the step: both at once at best, so the longer of the two."""
        return max(self.matrix_ms, self.memory_ms)

    @property
    def over_floor(self) -> float:
        """The step's time over its floor."""
        return self.step_ms / self.floor_ms

    @property
    def machine_share(self) -> float:
        """Share of the matrix multiplication's rate that the whole step reaches."""
        return self.matrix_ms / self.step_ms


def run_benchmark(
    presets: Sequence[str] = tuple(RECIPES),
    scenarios: Sequence[str] | None = None,
    num_steps: int | None = None,
    threads: int = 1,
    device: torch.device | None = None,
) -> Iterator[BenchResult]:
    """Measure cases one after the other; yield each as soon as it is there.

    Args:
        scenarios: names of `SCENARIOS`; None takes each preset's own.
        num_steps: timed steps a case; None takes as many as fit `TIME_BUDGET_S`, at least 2.
        device: None takes a GPU if there is one.

    Raises:
        ValueError: an unknown preset or scenario, or a number below 1.
    """
    cases = planned_cases(presets, scenarios)
    for key, value in (("steps", num_steps), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{key}={value} must be at least 1; use e.g. {key}=1")
    where = device or any_device()
    return (_in_own_process(*case, num_steps, threads, where) for case in cases)


def planned_cases(presets: Sequence[str], scenarios: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """List the (preset, scenario) that `run_benchmark` measures, and check their names."""
    _check_names("preset", presets, tuple(PRESETS))
    _check_names("scenarios", scenarios or (), tuple(SCENARIOS))
    return [(preset, scenario) for preset in presets for scenario in scenarios or PRESETS[preset].scenarios]


def _check_names(key: str, names: Sequence[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}={name} is unknown; {did_you_mean(name, known)} All are {', '.join(known)}")


def _in_own_process(
    preset: str, scenario: str, num_steps: int | None, threads: int, device: torch.device
) -> BenchResult:
    result = in_own_process(measure_case, preset, scenario, num_steps, threads, device)
    if device.type == "cuda":
        return result
    peak = in_own_process(peak_bytes, PRESETS[preset].config(scenario, device), PRESETS[preset].tokens, threads, device)
    return replace(result, peak_mib=peak / _MIB)


def in_own_process(measure: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function in a fresh process; a fork would inherit this one's memory and threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(measure, *arguments).result()


def measure_case(preset: str, scenario: str, num_steps: int | None, threads: int, device: torch.device) -> BenchResult:
    """Measure one case in this process, all but the RAM that it takes. Sets this process's number of threads."""
    chosen = PRESETS[preset]
    config, tokens = chosen.config(scenario, device), chosen.tokens
    state, num_timed, median = measured_steps(config, tokens, threads, num_steps, device)
    peak = _highest_bytes(device) / _MIB if device.type == "cuda" else math.nan
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    path = _recipe(config, device).supervision.path(state.step)
    return BenchResult(
        preset=preset,
        scenario=scenario,
        scaled=" ".join(chosen.on_cpu if device.type == "cpu" else ()),
        device=device.type,
        dtype=config.arch.forward_dtype,
        threads=threads,
        batch_size=config.global_batch_size,
        parameters=parameters,
        num_steps=num_timed,
        **median,
        flops=step_flops(config, tokens, path),
        bytes_moved=step_bytes(config, tokens, path, parameters),
        machine_rate=machine_rate(device, getattr(torch, config.arch.forward_dtype), threads),
        machine_bandwidth=machine_bandwidth(device, threads),
        peak_mib=peak,
    )


@dataclass(frozen=True)
class StepCost:
    """What a step of a config costs.

    step_ms, forward_ms: medians, the latter of the forward pass alone. activation_bytes: the most that autograd keeps
    at once for a backward pass. None where nothing was measured.
    """

    step_ms: float
    forward_ms: float | None
    activation_bytes: int | None


def measure_config(config: Config, tokens: TokenShape, num_steps: int) -> StepCost:
    """Measure the steps of any config in this process, on one device. Sets this process's number of threads."""
    threads, device = max(1, int(config.ray.cpus_per_worker)), any_device()
    state, _, median = measured_steps(config, tokens, threads, num_steps, device)
    recipe = _recipe(config, device)
    kept = kept_bytes(state, recipe, config.global_batch_size)
    # Up to its last backward pass a detached segment has run the others, each worth two forward passes of its cycle.
    path, num_cycles = recipe.supervision.path(state.step), config.arch.H_cycles
    forward_ms = median["forward_ms"] / (1 + 2 * (len(path.stretches) - 1) / num_cycles)
    if device.type == "cuda":
        return StepCost(median["wall_ms"], forward_ms, kept)
    return StepCost(median["cpu_ms"] / threads, forward_ms / threads, kept)


def measured_steps(
    config: Config, tokens: TokenShape, threads: int, num_steps: int | None, device: torch.device
) -> tuple[TrainState, int, dict[str, float]]:
    """Take steps in this process; return the state, how many steps were timed, and their medians."""
    torch.set_num_threads(threads)
    state = _state_at_full_supervision(config, tokens, device)
    times = _time_steps(state, config, num_steps)
    return state, len(times), {name: statistics.median(step[name] for step in times) for name in times[0]}


def _state_at_full_supervision(config: Config, tokens: TokenShape, device: torch.device) -> TrainState:
    """Begin where a curriculum has its full weight; before its start step a step is the baseline's."""
    state = TrainState(config, tokens, device)
    state.step = config.curriculum_end_step if config.curriculum_enabled else 0
    return state


def _recipe(config: Config, device: torch.device) -> Recipe:
    return build_recipe(config, num_steps=config.max_steps or 2 * config.curriculum_end_step, device=device)


def _time_steps(state: TrainState, config: Config, num_steps: int | None) -> list[dict[str, float]]:
    """Take a step to warm up, then the timed ones."""
    device, tokens = next(state.model.parameters()).device, _random_tokens(state.shape, config)
    plain, marks = _recipe(config, device), list[_Mark]()

    def mark(*_: object) -> None:
        marks.append(_Mark(device))

    def marked_segment(*inputs: Any) -> SegmentResult:
        result = plain.segment(*inputs)
        mark()
        return result

    recipe = replace(plain, segment=marked_segment)  # no hook of the model's, which may be compiled
    session = _MarkingSession(Path(), device, tokens, lambda whole: (), lambda *_: None, mark)
    steps = session.train_steps(state.step, config.segments_per_update)

    def timed_step() -> dict[str, float]:
        batches = next(steps)
        wait_for(device)
        marks[:] = [_Mark(device)]
        train_step(state, recipe, batches, session)
        state.guard.check()  # waits for the device
        mark()
        return _intervals(marks)

    warm_up = timed_step()
    return [timed_step() for _ in range(num_steps or _steps_within_budget(1e-3 * warm_up["wall_ms"]))]


def _steps_within_budget(step_s: float) -> int:
    return min(_MOST_STEPS, max(_FEWEST_STEPS, int(TIME_BUDGET_S / step_s)))


def _random_tokens(tokens: TokenShape, config: Config) -> Callable[[int], Iterator[TokenBatch]]:
    generator = torch.Generator().manual_seed(config.seed)

    def draw(most: int, *size: int) -> Any:
        return torch.randint(1, most, size, generator=generator, dtype=torch.int32).numpy()  # no PAD

    def batches(start: int) -> Iterator[TokenBatch]:
        rows, (rank, world_size) = config.global_batch_size, place()
        while True:
            inputs, labels = (draw(tokens.vocab_size, rows, tokens.seq_len) for _ in range(2))
            whole = (inputs, labels, draw(tokens.num_puzzle_identifiers + 1, rows) - 1)
            yield TokenBatch(*(np.array_split(array, world_size)[rank] for array in whole))

    return batches


def taken_steps(config: Config, tokens: TokenShape, device: torch.device) -> Iterator[TrainState]:
    """Take steps on random tokens without end, this worker's part of each; yield the state after each, as it is."""
    state, stream = TrainState(config, tokens, device), _random_tokens(tokens, config)
    session, recipe = Session(Path(), device, stream, lambda whole: (), lambda *_: None), _recipe(config, device)
    for batches in session.train_steps(0, config.segments_per_update):
        train_step(state, recipe, batches, session)
        yield state


@dataclass(frozen=True)
class _MarkingSession(Session):
    """Marks the end of the backward pass, where the loop adds gradients over the workers."""

    mark: Callable[[], None]

    def sum_over_ranks(self, *tensors: Tensor) -> None:
        """Mark, then add."""
        self.mark()
        super().sum_over_ranks(*tensors)


class _Mark:
    """A moment: on the wall, in processor time, and in the GPU's queue (which no mark waits for)."""

    def __init__(self, device: torch.device):
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record()

    def ms_until(self, later: _Mark) -> float:
        """Measure an interval of the device's own time; both moments must have passed on it."""
        if self.event is not None and later.event is not None:
            return self.event.elapsed_time(later.event)
        return 1e3 * (later.cpu_s - self.cpu_s)


def _intervals(marks: Sequence[_Mark]) -> dict[str, float]:
    begin, forward, *_, backward, end = marks  # of several segments the first one's forward pass
    wait_for(torch.device("cpu" if end.event is None else "cuda"))
    return {
        "cpu_ms": 1e3 * (end.cpu_s - begin.cpu_s),
        "wall_ms": 1e3 * (end.wall_s - begin.wall_s),
        "forward_ms": begin.ms_until(forward),
        "backward_ms": forward.ms_until(backward),
        "optimizer_ms": backward.ms_until(end),
    }


def peak_bytes(config: Config, tokens: TokenShape, threads: int, device: torch.device) -> int:
    """Measure a config's memory in this process, which must be fresh and is of no use for timing afterwards."""
    _return_freed_memory_at_once()
    # A step of next to no size loads what a step needs of the libraries.
    least = {"global_batch_size": 1, "arch.hidden_size": 2 * config.arch.num_heads, "arch.puzzle_emb_ndim": 0}
    small = with_overrides(config, least)
    measured_steps(small, tokens, threads, 1, device)
    before = _highest_bytes(device)
    measured_steps(config, tokens, threads, 1, device)
    return _highest_bytes(device) - before


def _return_freed_memory_at_once() -> None:
    """Make glibc give every tensor pages of its own; else what is freed in pieces counts too, differently in every run.

    Elsewhere (musl, macOS) nothing happens and the measured peak is a little higher.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**16)  # M_MMAP_THRESHOLD


def any_device() -> torch.device:
    """Take a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _highest_bytes(device: torch.device) -> int:
    """Highest memory of this process so far: of the GPU's tensors, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` would count what the parent held when it started this process
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return 1024 * int(fields["VmHWM"].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# ---- telling ---------------------------------------------------------------------------------------------


def summary_rows(results: Sequence[BenchResult]) -> list[dict[str, Any]]:
    """Give each result as a plain dict, with its floor, its shares and its ratios to the baseline of the same preset.

    The ratios are None where the baseline of the preset was not measured.
    """
    baselines = {result.preset: result for result in results if result.scenario == "baseline"}
    return [_summary_row(result, baselines.get(result.preset)) for result in results]


def _summary_row(result: BenchResult, baseline: BenchResult | None) -> dict[str, Any]:
    parts = {name: getattr(result, f"{name}_ms") for name in ("forward", "backward", "optimizer")}
    derived = ("step_ms", "matrix_ms", "memory_ms", "floor_ms", "over_floor", "puzzles_per_s", "machine_share")
    return {
        **asdict(result),
        **{f"{name}_share": ms / sum(parts.values()) for name, ms in parts.items()},
        **{name: getattr(result, name) for name in derived},
        "time_ratio": baseline and result.step_ms / baseline.step_ms,
        "memory_ratio": baseline and result.peak_mib / baseline.peak_mib,
    }


def bench_json(results: Sequence[BenchResult]) -> str:
    """Write `summary_rows` as JSON."""
    return json.dumps(summary_rows(results), indent=2) + "\n"


def case_line(result: BenchResult) -> str:
    """Tell a result in a line, while others are still to come."""
    times = f"{result.step_ms:.1f} ms a step, {result.over_floor:.2f} × the floor of {result.floor_ms:.1f} ms"
    return f"{result.preset} {result.scenario}: {times}"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "CPU ms\na step": lambda row: f"{row['cpu_ms']:.1f}",
    "wall ms\na step": lambda row: f"{row['wall_ms']:.1f}",
    "×\nbase": lambda row: _ratio(row["time_ratio"]),
    "floor:\nmatrix": lambda row: f"{row['matrix_ms']:.1f}",
    "ms\nmemory": lambda row: f"{row['memory_ms']:.1f}",
    "×\nfloor": lambda row: f"{row['over_floor']:.2f}",
    "puzzles\n/s": lambda row: f"{row['puzzles_per_s']:.1f}",
    "forward\nms": lambda row: _part(row, "forward"),
    "backward\nms": lambda row: _part(row, "backward"),
    "optimizer\nms": lambda row: _part(row, "optimizer"),
    "peak\nMiB": lambda row: f"{row['peak_mib']:.0f}",
    "×\nbase ": lambda row: _ratio(row["memory_ratio"]),
}


def bench_table(results: Sequence[BenchResult]) -> Table:
    """Draw the results as a table, a section a preset; wants a console of about 120 columns."""
    table = number_table("\nscenario", _COLUMNS, caption="\n".join(_captions(results)), caption_justify="left")
    preset = None
    for row in summary_rows(results):
        if row["preset"] != preset:
            preset = row["preset"]
            table.add_row(Text(preset, "bold"))
        table.add_row(f"  {row['scenario']}", *(cell(row) for cell in _COLUMNS.values()))
    return table


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _part(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_ms']:.1f} {row[f'{name}_share']:>4.0%}"


def _captions(results: Sequence[BenchResult]) -> Iterator[str]:
    """Say once a preset what its rows have in common."""
    for preset, result in {result.preset: result for result in results}.items():
        own = [other for other in results if other.preset == preset]
        rate, bandwidth = (statistics.median(getattr(one, f"machine_{name}") for one in own) for name in _RATES)
        yield (
            f"{preset}: {result.parameters:,} parameters, batch {result.batch_size}, {result.dtype}, {result.device}, "
            f"threads {result.threads}, mm {1e-9 * rate:,.0f} GFLOP/s, copy {1e-9 * bandwidth:,.0f} GB/s"
        )
        if result.scaled:
            yield f"  made smaller for a CPU, at the same widths: {result.scaled}"


_RATES = ("rate", "bandwidth")


# ---- comparing -------------------------------------------------------------------------------------------


def read_bench(path: Path) -> list[dict[str, Any]]:
    """Read what `bench_json` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        {(row["preset"], row["scenario"], row["flops"], row["step_ms"], row["over_floor"]) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} was not written by `trm-ray bench --json`; write it anew") from error
    return list(rows)


def comparison_table(before: Path, after: Path) -> Table:
    """Hold two measurements against each other: each case that both have, as time after ÷ time before.

    Raises:
        ValueError: a file is none of ours, they have no case in common, or a case's steps compute different things.
    """
    first, second = ({(row["preset"], row["scenario"]): row for row in read_bench(path)} for path in (before, after))
    both = [case for case in first if case in second]
    if not both:
        raise ValueError(f"{before} and {after} have no preset and scenario in common; measure the same --preset")
    table = number_table("\ncase", _COMPARED, caption=_unlike(first, second, both), caption_justify="left")
    for case in both:
        _check_alike(case, first[case], second[case])
        table.add_row(" ".join(case), *(cell(first[case], second[case]) for cell in _COMPARED.values()))
    return table


_COMPARED: dict[str, Callable[[dict[str, Any], dict[str, Any]], str]] = {
    "before\nms a step": lambda a, b: f"{a['step_ms']:.1f}",
    "after\nms a step": lambda a, b: f"{b['step_ms']:.1f}",
    "after ÷\nbefore": lambda a, b: f"{b['step_ms'] / a['step_ms']:.2f}",
    "before\n× floor": lambda a, b: f"{a['over_floor']:.2f}",
    "after\n× floor": lambda a, b: f"{b['over_floor']:.2f}",
    "peak MiB\nafter ÷ before": lambda a, b: f"{b['peak_mib'] / a['peak_mib']:.2f}",
}


def _check_alike(case: tuple[str, str], first: dict[str, Any], second: dict[str, Any]) -> None:
    if first["flops"] != second["flops"]:
        sizes = " and ".join(
            f"global_batch_size={row['batch_size']} {row['scaled']}".strip() for row in (first, second)
        )
        raise ValueError(
            f"{' '.join(case)} was measured on different work ({sizes}); measure both on one kind of device"
        )


def _unlike(first: dict[Any, dict[str, Any]], second: dict[Any, dict[str, Any]], cases: Sequence[Any]) -> str:
    """Say how the machines differed, whose doing the ratios then are too."""
    rates = statistics.median(second[case]["machine_rate"] / first[case]["machine_rate"] for case in cases)
    return f"matrix rate, after ÷ before: {rates:.2f}; × floor is what does not depend on it"
