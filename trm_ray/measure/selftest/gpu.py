"""What only a GPU can tell, asked with one command. Every check takes the device, so that a CPU can try all of them.

A check yields what it finds, case by case; whether that is as it must be is told where there is a rule to tell it by.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from trm_ray.config import Config, with_overrides
from trm_ray.measure.floor import wait_for
from trm_ray.measure.selftest.ground import raw_rows, train
from trm_ray.measure.step_cost import PRESETS, in_own_process, peak_bytes, run_benchmark, taken_steps
from trm_ray.reporting.numbers.json_text import json_text
from trm_ray.runs.data import make_missing
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.training.state import TokenShape

# Dense bfloat16 FLOP/s by the maker's data sheets; the first whose words are all in the GPU's name.
_DATA_SHEET = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12,
    "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12,
}  # fmt: skip
# How far losses may differ, as a share of the loss: products are added up in another order, in this precision.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
_MOST_COMPARED = 10  # steps; training itself makes small differences grow
_GIB = 2**30


@dataclass(frozen=True)
class Bench:
    """Where and on what is measured.

    presets: whose steps are timed. preset: what the other checks train. num_steps: of a window that is timed.
    """

    device: torch.device
    presets: tuple[str, ...] = ("sudoku_mlp", "sudoku_att", "maze", "arc")
    preset: str = "sudoku_mlp"
    num_steps: int = 20

    def config(self, scenario: str = "linear", **changes: Any) -> Config:
        """Resolve the preset; `changes` are keys, a dot written as two underscores."""
        overrides = {key.replace("__", "."): value for key, value in changes.items()}
        return with_overrides(PRESETS[self.preset].config(scenario, self.device), overrides)

    @property
    def tokens(self) -> TokenShape:
        """What the preset reads and writes."""
        return PRESETS[self.preset].tokens


@dataclass(frozen=True)
class Finding:
    """What a check found in a case: numbers by their names with units, and whether they are as they must be.

    passed: None where there is no rule to tell it by. note: what the numbers do not say.
    """

    case: str
    numbers: dict[str, float] = field(default_factory=dict)
    passed: bool | None = None
    note: str = ""
    check: str = ""

    @property
    def told(self) -> str:
        """The numbers and the note, in a line."""
        numbers = [f"{name} {value:.4g}" for name, value in self.numbers.items() if not math.isnan(value)]
        return ", ".join([*numbers, *([self.note] if self.note else [])])


Check = Callable[[Bench], Iterator[Finding]]


# ---- the same numbers --------------------------------------------------------------------------------------


def check_losses(bench: Bench) -> Iterator[Finding]:
    """Hold the losses of steps on the device against those of the CPU, step by step."""
    cpu = torch.device("cpu")
    for dtype, scenario in itertools.product(TOLERANCE, ("baseline", "linear")):
        config = PRESETS["sudoku6"].config(scenario, cpu)
        config = with_overrides(config, {"arch.forward_dtype": dtype, "compile": False})
        work, num_steps = (config, PRESETS["sudoku6"].tokens), min(bench.num_steps, _MOST_COMPARED)
        first, second = (_losses(*work, device, num_steps) for device in (cpu, bench.device))
        yield _agreement(f"{scenario}, {dtype}", first, second, TOLERANCE[dtype])


def check_compiled(bench: Bench) -> Iterator[Finding]:
    """Hold compiled steps against eager ones: losses, and steps a second."""
    for scenario in ("baseline", "linear"):
        eager, compiled = (bench.config(scenario, compile=compile) for compile in (False, True))
        num_steps = min(bench.num_steps, _MOST_COMPARED)
        first, second = (_losses(config, bench.tokens, bench.device, num_steps) for config in (eager, compiled))
        yield _agreement(f"{scenario}, losses", first, second, TOLERANCE[eager.arch.forward_dtype])
        rates = [_steps_per_s(config, bench.tokens, bench.device, bench.num_steps) for config in (eager, compiled)]
        numbers = {"eager steps/s": rates[0], "compiled steps/s": rates[1], "ratio": rates[1] / rates[0]}
        yield Finding(f"{scenario}, speed", numbers)


def check_graphs(bench: Bench) -> Iterator[Finding]:
    """Count what the host launches in a step: kernels one by one, or whole CUDA graphs."""
    for compile in (False, True):
        launches = _launches(bench.config(compile=compile), bench.tokens, bench.device)
        passed = launches["graph launches a step"] >= 1 if compile and bench.device.type == "cuda" else None
        yield Finding("compiled" if compile else "eager", launches, passed)


def _losses(config: Config, tokens: TokenShape, device: torch.device, num_steps: int) -> list[float]:
    steps = itertools.islice(taken_steps(config, tokens, device), num_steps)
    sums = [(state.sums.sums.clone(), state.sums.names.index("total_loss")) for state in steps]
    totals = [row[place].item() for row, place in sums]
    return [after - before for before, after in itertools.pairwise([0.0, *totals])]


def _agreement(case: str, first: Sequence[float], second: Sequence[float], tolerance: float) -> Finding:
    """Compare losses of the same steps; one that is not a number is as far as can be."""
    pairs = zip(first, second, strict=True)
    apart = [abs(a - b) / abs(a) if math.isfinite(a - b) and a else math.inf for a, b in pairs]
    numbers = {"steps": len(first), "largest relative difference": max(apart), "allowed": tolerance}
    return Finding(case, numbers, max(apart) <= tolerance)


def _launches(config: Config, tokens: TokenShape, device: torch.device) -> dict[str, float]:
    steps, num_steps = taken_steps(config, tokens, device), 3
    for _ in range(num_steps):  # compile, capture
        next(steps)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as seen:
        for _ in range(num_steps):
            next(steps)
        wait_for(device)
    counts = {event.key: event.count / num_steps for event in seen.key_averages()}

    def launched(word: str) -> float:
        return sum(count for name, count in counts.items() if name.startswith(("cuda", "cu")) and word in name)

    graphs = launched("GraphLaunch")
    return {"kernel launches a step": launched("LaunchKernel"), "graph launches a step": graphs}


# ---- speed and memory --------------------------------------------------------------------------------------


def check_preset(bench: Bench, preset: str) -> Iterator[Finding]:
    """Measure a preset's steps under the baseline and with supervision: rate, use of the device, memory."""
    for result in run_benchmark([preset], ["baseline", "linear"], bench.num_steps, device=bench.device):
        rate = 1e3 / result.step_ms
        numbers = {
            "batch": result.batch_size,
            "steps/s": rate,
            "MFU": rate * result.flops / _data_sheet_rate(bench.device),
            "of the measured matrix rate": result.machine_share,
            "× floor": result.over_floor,
            "peak GiB": result.peak_mib / 1024,
        }
        yield Finding(f"{preset} {result.scenario}", numbers, note=result.scaled)


def _data_sheet_rate(device: torch.device) -> float:
    """Return the dense bfloat16 FLOP/s of a GPU's data sheet; NaN for one that is not known."""
    name = torch.cuda.get_device_name(device).split() if device.type == "cuda" else []
    return next((rate for words, rate in _DATA_SHEET.items() if set(words.split()) <= set(name)), math.nan)


def check_checkpointing(bench: Bench) -> Iterator[Finding]:
    """Measure what it saves and costs to compute cycles anew in the backward pass."""
    for again in (False, True):
        config = bench.config(checkpoint_cycles=again)
        peak = in_own_process(peak_bytes, config, bench.tokens, 1, bench.device)
        rate = _steps_per_s(config, bench.tokens, bench.device, bench.num_steps)
        yield Finding(f"checkpoint_cycles={again}".lower(), {"peak GiB": peak / _GIB, "steps/s": rate})


def _steps_per_s(config: Config, tokens: TokenShape, device: torch.device, num_steps: int) -> float:
    """Time a window of steps that nothing waits in, in this process."""
    return _window(config, tokens, device, num_steps, ready=lambda: None)


def _window(
    config: Config, tokens: TokenShape, device: torch.device, num_steps: int, ready: Callable[[], object]
) -> float:
    steps = taken_steps(config, tokens, device)
    for _ in range(3):  # compile, capture
        next(steps)
    wait_for(device)
    ready()
    began = time.perf_counter()
    for _ in range(num_steps):
        next(steps)
    wait_for(device)
    return num_steps / (time.perf_counter() - began)


def check_sharing(bench: Bench) -> Iterator[Finding]:
    """Let two processes train on one device at once, and hold their rates together against that of one alone."""
    for preset in dict.fromkeys((bench.preset, "sudoku6")):
        work = PRESETS[preset].config("linear", bench.device), PRESETS[preset].tokens, bench.device, bench.num_steps
        (alone,), pair = (_at_once(count, *work) for count in (1, 2))
        numbers = {"one alone, steps/s": alone, "two together, steps/s": sum(pair), "gain": sum(pair) / alone}
        yield Finding(preset, numbers)


_barrier: Barrier | None = None  # of a process of `_at_once`


def _at_once(count: int, *work: Any) -> list[float]:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count)
    with ProcessPoolExecutor(count, context, initializer=_meet_at, initargs=(barrier,)) as executor:
        return [result.result() for result in [executor.submit(_window_together, *work) for _ in range(count)]]


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _window_together(config: Config, tokens: TokenShape, device: torch.device, num_steps: int) -> float:
    assert _barrier is not None, "set when the process starts"
    torch.set_num_threads(1)
    return _window(config, tokens, device, num_steps, ready=_barrier.wait)


# ---- several GPUs ------------------------------------------------------------------------------------------


def check_exchange(bench: Bench) -> Iterator[Finding]:
    """Train on two workers, each with a GPU of its own, and hold losses and rate against one worker's."""
    cuda = bench.device.type == "cuda"
    if cuda and torch.cuda.device_count() < 2:
        yield Finding("two workers", note="this machine has one GPU")
        return
    config = bench.config()
    alone = in_own_process(_losses, config, bench.tokens, bench.device, bench.num_steps)
    with tempfile.TemporaryDirectory() as folder:
        work = (f"file://{folder}/meeting", config, bench.tokens, bench.device, bench.num_steps)
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
            workers = [executor.submit(_worker, rank, *work) for rank in range(2)]
            (losses, exchange_s), _ = (worker.result() for worker in workers)
    yield _agreement("losses", alone, losses, TOLERANCE[config.arch.forward_dtype])
    yield Finding("all gradients, NCCL" if cuda else "all gradients, gloo", {"all_reduce ms": 1e3 * exchange_s})


def _worker(
    rank: int, meeting: str, config: Config, tokens: TokenShape, device: torch.device, num_steps: int
) -> tuple[list[float], float]:
    """Take steps as one of two workers; return the losses, and the seconds to add up all gradients once."""
    own = torch.device("cuda", rank) if device.type == "cuda" else device
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=2)
    try:
        steps, losses = taken_steps(config, tokens, own), []
        for state in itertools.islice(steps, num_steps):
            total = state.sums.sums.clone()
            dist.all_reduce(total)
            losses.append(total[state.sums.names.index("total_loss")].item())
        gradients = torch.ones(sum(weight.numel() for weight in state.model.parameters()), device=own)
        return [b - a for a, b in itertools.pairwise([0.0, *losses])], _all_reduce_s(gradients, own, num_steps)
    finally:
        dist.destroy_process_group()


def _all_reduce_s(message: torch.Tensor, device: torch.device, times: int) -> float:
    dist.all_reduce(message)
    wait_for(device)
    began = time.perf_counter()
    for _ in range(times):
        dist.all_reduce(message)
    wait_for(device)
    return (time.perf_counter() - began) / times


# ---- the loop at full rate ---------------------------------------------------------------------------------


def check_loop(bench: Bench, folder: Path, num_workers: int = 0) -> Iterator[Finding]:
    """Train on boards from files at full rate: steps a second, what waits for data, how busy the device is.

    Args:
        num_workers: 0 trains without Ray, 1 on it.
    """
    for scenario in ("baseline", "linear"):
        rows = raw_rows(_trained(bench, folder, scenario, num_workers))[1:]  # without the first, which warms up
        names = {
            "steps/s": "throughput/steps_per_s",
            "data wait": "throughput/data_wait_fraction",
            "utilisation": "gpu/utilization",
            "reserved GiB": "gpu/memory_gib",
        }
        medians = {name: _median(row[tag] for row in rows if tag in row) for name, tag in names.items()}
        yield Finding(f"{bench.preset} {scenario}, {'on Ray' if num_workers else 'without Ray'}", medians)


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan


def _trained(bench: Bench, folder: Path, scenario: str, num_workers: int) -> Path:
    """Train for a few windows; return the run's folder."""
    size, num_steps = math.isqrt(bench.tokens.seq_len), 5 * bench.num_steps
    boards = {"name": "sudoku", "size": size, "train": 1024, "test": 16, "clues": [size * size // 2] * 2, "seed": 0}
    config = bench.config(
        scenario,
        generator=boards,
        data_paths=[str(folder / "boards")],
        log_dir=str(folder / f"{scenario}-{num_workers}"),
        **{"epochs": None, "max_steps": num_steps, "log_interval": bench.num_steps, "eval_interval": num_steps},
        **{"compute_gradient_stats": False, "curriculum_enabled": False, "device": bench.device.type},
        **{"ray__num_workers": num_workers, "ray__use_gpu": bool(num_workers) and bench.device.type == "cuda"},
    )
    make_missing(config)
    plan = plan_run(config)
    claim_folder(plan)
    train(plan)
    return plan.folder


# ---- asking and telling ------------------------------------------------------------------------------------


def gpu_checks(bench: Bench, folder: Path) -> dict[str, tuple[str, Check]]:
    """List the checks by name, each with what it answers; those on Ray only where it is installed."""
    on_ray = partial(check_loop, folder=folder, num_workers=1)
    return {
        "losses": ("losses on the GPU are those of the CPU", check_losses),
        "compiled": ("compiled steps are the eager ones, and faster", check_compiled),
        "graphs": ("compiled steps run as CUDA graphs", check_graphs),
        **{name: ("steps/s, MFU and memory", partial(check_preset, preset=name)) for name in bench.presets},
        "checkpointing": ("memory and speed of cycles computed anew", check_checkpointing),
        "sharing": ("two processes on one GPU", check_sharing),
        "exchange": ("two GPUs train as one", check_exchange),
        "loop": ("the loop at full rate", partial(check_loop, folder=folder)),
        **({"ray": ("the loop at full rate, on Ray", on_ray)} if find_spec("ray") else {}),
    }


def run_checks(bench: Bench, folder: Path, only: Sequence[str] = ()) -> Iterator[Finding]:
    """Make one check after the other; one that goes wrong does not keep the others from being made.

    Raises:
        ValueError: `only` names one that there is not.
    """
    checks = gpu_checks(bench, folder)
    for name in only:
        if name not in checks:
            raise ValueError(f"--only {name} is unknown; use one of {', '.join(checks)}")
    return (finding for name in only or checks for finding in _attempted(name, *checks[name], bench))


def _attempted(name: str, title: str, check: Check, bench: Bench) -> Iterator[Finding]:
    """Make a check in a process of its own, which leaves no memory of the GPU to the next."""
    try:
        yield from (replace(finding, check=title) for finding in in_own_process(_all_found, name, check, bench))
    except BrokenProcessPool as error:
        yield Finding(name, passed=False, note=f"its process died: {error}", check=title)


def _all_found(name: str, check: Check, bench: Bench) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check(bench))  # those before an error stay
    except Exception as error:  # whatever it is, it is what the table has to say
        found.append(Finding(name, passed=False, note=f"{type(error).__name__}: {error}"))
    return found


def machine_line(device: torch.device) -> str:
    """Say on what was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return f"{count} × {name}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def gpu_markdown(findings: Sequence[Finding], machine: str) -> str:
    """Write findings as a table for docs/scaling.md."""
    answers = {True: "yes", False: "NO", None: "–"}
    rows = [(one.check, one.case, " ".join(one.told.split()), answers[one.passed]) for one in findings]
    head = [("question", "case", "measured", "as it must be"), ("---",) * 4]
    lines = [f"| {' | '.join(row)} |" for row in (*head, *rows)]
    return "\n".join([f"`trm-ray selftest --gpu` on {machine}:", "", *lines, ""])


def gpu_json(findings: Sequence[Finding], machine: str) -> str:
    """Write findings as JSON."""
    return json_text({"format_version": 1, "machine": machine, "findings": [asdict(one) for one in findings]})
