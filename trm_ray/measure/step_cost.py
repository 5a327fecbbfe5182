"""What a training step costs: time, its split, memory, and its share of what this machine can multiply.

The steps are `train_step` on random tokens: what is measured is what trains. Time and memory of every case (a shape
under a scenario) are taken in processes of their own, so that neither its memory nor its threads touch another's.

Shapes are tasks with overrides, so `trm-ray train task=… KEY=VALUE…` trains what was measured.
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

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from trm_ray.config import Config, load_config, with_overrides
from trm_ray.data.rows import TokenBatch
from trm_ray.model.layers import Linear
from trm_ray.reporting.terminal import number_table
from trm_ray.training.flops import step_flops
from trm_ray.training.segment import SegmentResult
from trm_ray.training.session import Session
from trm_ray.training.state import Recipe, TokenShape, TrainState, build_recipe
from trm_ray.training.step import train_step

SCENARIOS = ("baseline", "constant", "linear", "exponential", "curriculum")
TIME_BUDGET_S = 10.0
_FEWEST_STEPS, _MOST_STEPS = 2, 50
_MIB = 2**20

_T = TypeVar("_T")


@dataclass(frozen=True)
class BenchShape:
    """A task with overrides as on the command line; `scenarios` are those measured unless others are asked for."""

    task: str
    tokens: TokenShape
    overrides: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ("baseline", "linear")

    def config(self, scenario: str) -> Config:
        """Resolve the shape under a scenario."""
        return load_config(f"deep_supervision_{scenario}", [f"task={self.task}", *self.overrides])


# Cells of a board; PAD, blank and the digits.
_BOARD_6, _BOARD_9 = TokenShape(36, 8), TokenShape(81, 11)
_WITH_EMBEDDING = ("arch.puzzle_emb_ndim=64", "arch.puzzle_emb_len=1")
SHAPES: dict[str, BenchShape] = {
    "sudoku6": BenchShape("sudoku6", _BOARD_6, scenarios=SCENARIOS),
    "sudoku6_original": BenchShape("sudoku6", _BOARD_6, ("arch.expansion=4", "arch.ffn_multiple_of=256")),
    "sudoku9_original": BenchShape(
        "sudoku_extreme", _BOARD_9, ("arch.puzzle_emb_ndim=0", "optimizer=adamw", "ema=false", "global_batch_size=8")
    ),
    # What a million puzzle identifiers cost beyond their table, which is 244 MiB here.
    "identifiers_1k": BenchShape("sudoku6", replace(_BOARD_6, num_puzzle_identifiers=1_000), _WITH_EMBEDDING),
    "identifiers_1m": BenchShape("sudoku6", replace(_BOARD_6, num_puzzle_identifiers=1_000_000), _WITH_EMBEDDING),
}


@dataclass(frozen=True)
class BenchResult:
    """One case; times are medians over the steps after a first one.

    cpu_ms: processor time of a step, over all threads; robust when others use the machine. wall_ms: the same on the
    wall. forward_ms: the segment with its losses. backward_ms: its backward pass. optimizer_ms: clipping, update and
    metrics. The three are wall time on a GPU and processor time else. flops: operations of the matrix multiplications
    of a step. machine_rate: FLOP/s of the matrix multiplication in this dtype, measured after the steps.
    peak_mib: weights, optimizer state, activations and temporaries at their highest, without the libraries. A long run
    may hold some more: freed memory that is in pieces too small to use.
    """

    shape: str
    scenario: str
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
    machine_rate: float
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
    def machine_share(self) -> float:
        """Share of the matrix multiplication's rate that the whole step reaches."""
        return self.flops / (1e-3 * self.step_ms) / self.machine_rate


def run_benchmark(
    shapes: Sequence[str] = tuple(SHAPES),
    scenarios: Sequence[str] | None = None,
    num_steps: int | None = None,
    threads: int = 1,
) -> Iterator[BenchResult]:
    """Measure cases one after the other; yield each as soon as it is there.

    Args:
        scenarios: names of `SCENARIOS`; None takes each shape's own.
        num_steps: timed steps a case; None takes as many as fit `TIME_BUDGET_S`, at least 2.

    Raises:
        ValueError: an unknown shape or scenario, or a number below 1.
    """
    cases = planned_cases(shapes, scenarios)
    for key, value in (("steps", num_steps), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{key}={value} must be at least 1; use e.g. {key}=1")
    return (_in_own_process(*case, num_steps, threads) for case in cases)


def planned_cases(shapes: Sequence[str], scenarios: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """List the (shape, scenario) that `run_benchmark` measures, and check their names."""
    _check_names("shapes", shapes, tuple(SHAPES))
    _check_names("scenarios", scenarios or (), SCENARIOS)
    return [(shape, scenario) for shape in shapes for scenario in scenarios or SHAPES[shape].scenarios]


def _check_names(key: str, names: Sequence[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key}={name} is unknown; use one of {', '.join(known)}")


def _in_own_process(shape: str, scenario: str, num_steps: int | None, threads: int) -> BenchResult:
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's memory and threads

    def run(measure: Callable[..., _T], *arguments: Any) -> _T:
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            return executor.submit(measure, *arguments).result()

    peak = run(peak_bytes, shape, scenario, threads)
    return replace(run(measure_case, shape, scenario, num_steps, threads), peak_mib=peak / _MIB)


def measure_case(shape: str, scenario: str, num_steps: int | None, threads: int) -> BenchResult:
    """Measure one case in this process, all but its memory. Sets this process's number of threads."""
    config, tokens = SHAPES[shape].config(scenario), SHAPES[shape].tokens
    state, num_timed, median = _measured(config, tokens, threads, num_steps)
    dtype = getattr(torch, config.arch.forward_dtype)
    return BenchResult(
        shape=shape,
        scenario=scenario,
        device=_device().type,
        dtype=config.arch.forward_dtype,
        threads=threads,
        batch_size=config.global_batch_size,
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        num_steps=num_timed,
        **median,
        flops=step_flops(config, tokens, supervised=config.deep_supervision_enabled),
        machine_rate=machine_rate(dtype, threads),
        peak_mib=math.nan,
    )


@dataclass(frozen=True)
class StepCost:
    """What a step of a config costs.

    step_ms, forward_ms: as in `BenchResult`, medians. activation_bytes: what autograd keeps from the forward to the
    backward pass. None where nothing was measured.
    """

    step_ms: float
    forward_ms: float | None
    activation_bytes: int | None


def measure_config(config: Config, tokens: TokenShape, num_steps: int) -> StepCost:
    """Measure the steps of any config in this process, on one device. Sets this process's number of threads."""
    threads = max(1, int(config.ray.cpus_per_worker))
    state, _, median = _measured(config, tokens, threads, num_steps)
    kept = activation_bytes(state, config)
    if _device().type == "cuda":
        return StepCost(median["wall_ms"], median["forward_ms"], kept)
    return StepCost(median["cpu_ms"] / threads, median["forward_ms"] / threads, kept)


def _measured(
    config: Config, tokens: TokenShape, threads: int, num_steps: int | None
) -> tuple[TrainState, int, dict[str, float]]:
    """Take steps in this process; return the state, how many steps were timed, and their medians."""
    torch.set_num_threads(threads)
    state = _state_at_full_supervision(config, tokens, _device())
    times = _time_steps(state, config, num_steps)
    return state, len(times), {name: statistics.median(step[name] for step in times) for name in times[0]}


def activation_bytes(state: TrainState, config: Config) -> int:
    """Count the bytes that autograd keeps of a forward pass for its backward pass, without the weights."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*state.model.parameters(), *state.model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device, tokens = next(state.model.parameters()).device, _random_tokens(state.shape, config)
    session = Session(Path(), device, tokens, lambda: (), lambda *_: None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train_step(state, _recipe(config, device), next(session.train_batches(state.step)), session)
    return sum(kept.values())


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
    session = _MarkingSession(Path(), device, tokens, lambda: (), lambda *_: None, mark)
    batches = session.train_batches(state.step)

    def timed_step() -> dict[str, float]:
        batch = next(batches)
        _wait_for(device)
        marks[:] = [_Mark(device)]
        train_step(state, recipe, batch, session)
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
        rows = config.global_batch_size
        while True:
            inputs, labels = (draw(tokens.vocab_size, rows, tokens.seq_len) for _ in range(2))
            yield TokenBatch(inputs, labels, draw(tokens.num_puzzle_identifiers + 1, rows) - 1)

    return batches


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
    begin, forward, backward, end = marks
    _wait_for(torch.device("cpu" if end.event is None else "cuda"))
    return {
        "cpu_ms": 1e3 * (end.cpu_s - begin.cpu_s),
        "wall_ms": 1e3 * (end.wall_s - begin.wall_s),
        "forward_ms": begin.ms_until(forward),
        "backward_ms": forward.ms_until(backward),
        "optimizer_ms": backward.ms_until(end),
    }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(shape: str, scenario: str, threads: int) -> int:
    """Measure the memory of a case in this process, which must be fresh and is of no use for timing afterwards."""
    device, config, tokens = _device(), SHAPES[shape].config(scenario), SHAPES[shape].tokens
    _return_freed_memory_at_once()
    # A step of next to no size loads what a step needs of the libraries.
    least = {"global_batch_size": 1, "arch.hidden_size": 2 * config.arch.num_heads, "arch.puzzle_emb_ndim": 0}
    small = with_overrides(config, least)
    _measured(small, tokens, threads, num_steps=1)
    before = _highest_bytes(device)
    _measured(config, tokens, threads, num_steps=1)
    return _highest_bytes(device) - before


def _return_freed_memory_at_once() -> None:
    """Make glibc give every tensor pages of its own; else what is freed in pieces counts too, differently in every run.

    Elsewhere (musl, macOS) nothing happens and the measured peak is a little higher.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**16)  # M_MMAP_THRESHOLD


def _device() -> torch.device:
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


@torch.no_grad()
def machine_rate(dtype: torch.dtype, threads: int, min_s: float = 0.5) -> float:
    """Measure the FLOP/s of a large matrix multiplication as the model's layers do it in this dtype.

    Takes the best of several rounds: on the wall on a GPU, else in processor time, as if each thread had a core.
    Sets this process's number of threads.
    """
    torch.set_num_threads(threads)
    device = _device()
    size, rounds = (8192, 10) if device.type == "cuda" else (1024, 5)
    linear = Linear(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    x = torch.ones(size, size, device=device, dtype=dtype)
    linear(x)
    best = min(_seconds_a_call(lambda: linear(x), device, threads, min_s / rounds) for _ in range(rounds))
    return 2.0 * size**3 / best


def _seconds_a_call(function: Callable[[], Any], device: torch.device, threads: int, min_s: float) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    calls, began = 0, clock()
    while clock() - began < min_s or calls == 0:
        function()
        _wait_for(device)
        calls += 1
    return (clock() - began) / calls / (1 if device.type == "cuda" else threads)


def summary_rows(results: Sequence[BenchResult]) -> list[dict[str, Any]]:
    """Give each result as a plain dict, with its shares and its ratios to the baseline of the same shape.

    The ratios are None where the baseline of the shape was not measured.
    """
    baselines = {result.shape: result for result in results if result.scenario == "baseline"}
    return [_summary_row(result, baselines.get(result.shape)) for result in results]


def _summary_row(result: BenchResult, baseline: BenchResult | None) -> dict[str, Any]:
    parts = {name: getattr(result, f"{name}_ms") for name in ("forward", "backward", "optimizer")}
    return {
        **asdict(result),
        **{f"{name}_share": ms / sum(parts.values()) for name, ms in parts.items()},
        "puzzles_per_s": result.puzzles_per_s,
        "machine_share": result.machine_share,
        "time_ratio": baseline and result.step_ms / baseline.step_ms,
        "memory_ratio": baseline and result.peak_mib / baseline.peak_mib,
    }


def bench_json(results: Sequence[BenchResult]) -> str:
    """Write `summary_rows` as JSON."""
    return json.dumps(summary_rows(results), indent=2) + "\n"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "CPU ms\na step": lambda row: f"{row['cpu_ms']:.1f}",
    "wall ms\na step": lambda row: f"{row['wall_ms']:.1f}",
    "×\nbase": lambda row: _ratio(row["time_ratio"]),
    "puzzles\n/s": lambda row: f"{row['puzzles_per_s']:.1f}",
    "GFLOP\na step": lambda row: f"{1e-9 * row['flops']:.2f}",
    "of mm\nrate": lambda row: f"{row['machine_share']:.0%}",
    "forward\nms": lambda row: _part(row, "forward"),
    "backward\nms": lambda row: _part(row, "backward"),
    "optimizer\nms": lambda row: _part(row, "optimizer"),
    "peak\nMiB": lambda row: f"{row['peak_mib']:.0f}",
    "×\nbase ": lambda row: _ratio(row["memory_ratio"]),
}


def bench_table(results: Sequence[BenchResult]) -> Table:
    """Draw the results as a table, a section a shape; wants a console of about 110 columns."""
    table = number_table("\nscenario", _COLUMNS, caption="\n".join(_captions(results)), caption_justify="left")
    shape = None
    for row in summary_rows(results):
        if row["shape"] != shape:
            shape = row["shape"]
            table.add_row(Text(shape, "bold"))
        table.add_row(f"  {row['scenario']}", *(cell(row) for cell in _COLUMNS.values()))
    return table


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _part(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_ms']:.1f} {row[f'{name}_share']:>4.0%}"


def _captions(results: Sequence[BenchResult]) -> Iterator[str]:
    """Say once a shape what its rows have in common."""
    for shape, result in {result.shape: result for result in results}.items():
        rates = [1e-9 * other.machine_rate for other in results if other.shape == shape]
        yield (
            f"{shape}: {result.parameters:,} parameters, batch {result.batch_size}, {result.dtype}, {result.device}, "
            f"threads {result.threads}, mm rate {statistics.median(rates):,.0f} GFLOP/s"
        )
