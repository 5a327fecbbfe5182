"""What more workers bring: the real loop under Ray Train, in turns with the same loop without Ray.

Every case (a number of workers, strong or weak scaling) is a pair of runs on one machine: the plain loop of one process
and a run of `train_on_ray`. They train a logging window each, in turns, so that what else the machine does hits both,
and what is told is the ratio of neighbouring windows.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from trm_ray.config import Config, with_overrides
from trm_ray.reporting.terminal import number_table
from trm_ray.runs.data import make_missing
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.runs.turns import ENDED, TurnSession, read_turns

STRONG, WEAK = "strong", "weak"


class ScalingError(RuntimeError):
    """One of the two runs failed, so that there is nothing to compare."""


class Case(NamedTuple):
    """A number of workers that share the batch (strong), or have as large a one each (weak)."""

    scaling: str
    workers: int


class MiddleHalf(NamedTuple):
    """The middle half of what was measured, and its median."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class ScalingResult:
    """One case, measured over `num_turns` pairs of windows.

    batch_size: of all workers together; plain_batch_size that of the plain loop.
    plain_ms, ray_ms: wall time of a step, medians.
    speed_up: puzzles a second, of the plain loop's.
    cpu_ratio: processor time a puzzle, all workers together, of the plain loop's: 1 where sharing adds no work.
    exchange: share of the time in exchange between workers, their mean; waiting for the slowest is in it.
    least_exchange: the same of the worker who waits least, so an upper bound of what moving the data takes.
    data_wait: share of the time that waits for data, the mean of the workers.
    report_ms: what the report of an evaluation to Ray took, median. It is in no step's time.
    """

    scaling: str
    workers: int
    batch_size: int
    plain_batch_size: int
    cpus: int
    num_turns: int
    steps_a_turn: int
    plain_ms: float
    ray_ms: float
    speed_up: MiddleHalf
    cpu_ratio: MiddleHalf
    exchange: MiddleHalf
    least_exchange: float
    data_wait: float
    report_ms: float

    @property
    def efficiency(self) -> float:
        """Share of a perfect speed-up."""
        return self.speed_up.median / self.workers


def planned_cases(workers: Sequence[int]) -> list[Case]:
    """List what is measured: one worker is the same both ways."""
    return [Case(kind, count) for kind in (STRONG, WEAK) for count in workers if kind == STRONG or count > 1]


def measure_scaling(
    config: Config, cases: Sequence[Case], *, num_turns: int = 12, steps: int = 10
) -> Iterator[ScalingResult]:
    """Measure one case after the other; yield each as soon as it is there.

    Args:
        config: what is trained; `global_batch_size` is that of one worker in weak scaling.
        num_turns: pairs of windows that count; one more warms up.
        steps: a window.

    Raises:
        ConfigError: a batch that the workers cannot share.
        ScalingError: the plain loop failed.
    """
    configured = [(case, *_configs(config, case, num_turns + 1, steps)) for case in cases]
    make_missing(config)
    return _measured(configured, plan_run(configured[0][1]))


def _configs(config: Config, case: Case, num_turns: int, steps: int) -> tuple[Config, Config]:
    """Configure the run on Ray and the plain loop that it is compared with."""
    batch = config.global_batch_size * (case.workers if case.scaling == WEAK else 1)
    windows: dict[str, Any] = {
        **{"max_steps": num_turns * steps, "log_interval": steps, "eval_interval": steps},
        **{"eval_max_puzzles": case.workers, "checkpoint_every_eval": False, "compute_gradient_stats": False},
        **{"ray.storage_path": None, "ray.max_failures": 0, "ray.address": "local"},
    }
    shared = {"global_batch_size": batch, "ray.num_workers": case.workers}
    return with_overrides(config, {**windows, **shared}), with_overrides(config, {**windows, "ray.num_workers": 0})


def _measured(cases: Sequence[tuple[Case, Config, Config]], data: RunPlan) -> Iterator[ScalingResult]:
    from trm_ray.distributed.cluster import ray_cluster
    from trm_ray.distributed.scaling import TurnTrainSession, sharing_cpus, worker_niceness
    from trm_ray.distributed.trainer import train_on_ray

    with tempfile.TemporaryDirectory(prefix="trm-ray-scaling-") as place, ray_cluster("local"):
        for number, (case, on_ray, plain) in enumerate(cases):
            folder = Path(place) / str(number)
            first, second = _claimed(data, sharing_cpus(on_ray), folder / "0"), _claimed(data, plain, folder / "1")
            with _beside(second, worker_niceness()):
                train_on_ray(first, session_type=TurnTrainSession)
            yield _result(case, first, second)


def _claimed(data: RunPlan, config: Config, folder: Path) -> RunPlan:
    plan = data.vary(with_overrides(config, {"log_dir": str(folder)}), folder)
    claim_folder(plan)
    return plan


@contextmanager
def _beside(plan: RunPlan, niceness: int) -> Iterator[None]:
    """Run the plain loop in a process of its own; whichever of the two ends, the other waits for it no longer."""
    ended = plan.folder.parent / ENDED
    process = multiprocessing.get_context("spawn").Process(target=_train_plain, args=(plan, niceness))
    process.start()

    def watch() -> None:
        process.join()
        ended.touch()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        ended.touch()
    except BaseException:
        process.kill()
        raise
    finally:
        watcher.join()
    if process.exitcode:
        raise ScalingError(f"the loop without Ray ended with exit code {process.exitcode}; its error is above")


def _train_plain(plan: RunPlan, niceness: int) -> None:
    """Train without Ray, stepping back for other processes as far as Ray's workers do: 15 unless Ray is told else."""
    os.nice(max(0, niceness - os.nice(0)))
    train_in_process(plan, session_type=TurnSession)


def _result(case: Case, on_ray: RunPlan, plain: RunPlan) -> ScalingResult:
    """Compare neighbouring windows of the two runs, without the first, which warms up."""
    workers = [rows[1:] for rows in read_turns(on_ray.folder)]
    (alone,) = (rows[1:] for rows in read_turns(plain.folder))
    together = list(zip(*workers, strict=True))  # a turn each: the rows of its workers

    def of_turns(measure: Callable[[Sequence[dict[str, float]], dict[str, float]], float]) -> list[float]:
        return [measure(rows, row) for rows, row in zip(together, alone, strict=True)]

    def mean(tag: str) -> list[float]:
        return of_turns(lambda rows, _: statistics.fmean(row.get(tag, 0.0) for row in rows))

    rate, larger = "throughput/puzzles_per_s", on_ray.config.global_batch_size / plain.config.global_batch_size
    exchange = "throughput/exchange_fraction"
    return ScalingResult(
        scaling=case.scaling,
        workers=case.workers,
        batch_size=on_ray.config.global_batch_size,
        plain_batch_size=plain.config.global_batch_size,
        cpus=os.cpu_count() or 1,
        num_turns=len(alone),
        steps_a_turn=plain.config.log_interval,
        plain_ms=statistics.median(1e3 / row["throughput/steps_per_s"] for row in alone),
        ray_ms=statistics.median(1e3 / rows[0]["throughput/steps_per_s"] for rows in together),
        speed_up=_middle_half(of_turns(lambda rows, row: rows[0][rate] / row[rate])),
        cpu_ratio=_middle_half(of_turns(lambda rows, row: sum(r["cpu_s"] for r in rows) / row["cpu_s"] / larger)),
        exchange=_middle_half(mean(exchange)),
        least_exchange=statistics.median(of_turns(lambda rows, _: min(row.get(exchange, 0.0) for row in rows))),
        data_wait=statistics.median(mean("throughput/data_wait_fraction")),
        report_ms=1e3 * statistics.median(mean("report_s")),
    )


def _middle_half(values: Sequence[float]) -> MiddleHalf:
    if len(values) == 1:
        return MiddleHalf(*values, *values, *values)
    return MiddleHalf(*statistics.quantiles(values, n=4, method="inclusive"))


# ---- telling ---------------------------------------------------------------------------------------------


def scaling_rows(results: Sequence[ScalingResult]) -> list[dict[str, Any]]:
    """Give each result as a plain dict."""
    return [{**asdict(result), "efficiency": result.efficiency} for result in results]


def scaling_json(results: Sequence[ScalingResult]) -> str:
    """Write `scaling_rows` as JSON; a spread is [lower quartile, median, upper quartile]."""
    return json.dumps(scaling_rows(results), indent=2) + "\n"


_COLUMNS: dict[str, Callable[[ScalingResult], str]] = {
    "batch": lambda r: f"{r.batch_size}",
    "plain\nms a step": lambda r: f"{r.plain_ms:.0f}",
    "Ray\nms a step": lambda r: f"{r.ray_ms:.0f}",
    "speed-up\n(middle half)": lambda r: str(r.speed_up),
    "of\nperfect": lambda r: f"{r.efficiency:.0%}",
    "CPU a puzzle\n× plain": lambda r: str(r.cpu_ratio),
    "in\nexchange": lambda r: f"{r.exchange.median:.0%}",
    "least": lambda r: f"{r.least_exchange:.0%}",
    "data\nwait": lambda r: f"{r.data_wait:.1%}",
    "report\nms": lambda r: f"{r.report_ms:.0f}",
}


def scaling_table(results: Sequence[ScalingResult]) -> Table:
    """Draw the results as a table; wants a console of about 110 columns."""
    table = number_table("\nworkers", _COLUMNS, caption="\n".join(_captions(results)), caption_justify="left")
    for result in results:
        cells = (cell(result) for cell in _COLUMNS.values())
        table.add_row(f"{result.workers} {result.scaling if result.workers > 1 else 'on Ray'}", *cells)
    return table


def _captions(results: Sequence[ScalingResult]) -> Iterator[str]:
    first = results[0]
    yield (
        f"Each run took turns with the plain loop (no Ray, one process, batch {first.plain_batch_size}): "
        f"{first.num_turns} turns of {first.steps_a_turn} steps each."
    )
    most = max(result.workers for result in results)
    if most > first.cpus:
        yield f"{most} workers share this machine's {first.cpus} CPUs, so that wall time cannot tell how they scale."
