"""Rules of the time: what it goes into beside steps."""

from __future__ import annotations

import math

from trm_ray.config.keys import flatten
from trm_ray.reporting.rules.seen import (
    Seen,
    counted,
    has_ended,
    percent,
    steady,
    times,
    word,
)
from trm_ray.reporting.run_log import Run

MAX_DATA_WAIT = 0.1
MAX_EXCHANGE = 0.25
MAX_EVALUATION, LEAST_EVALUATION_S = 0.25, 120.0  # of less than two minutes little can be saved


def data_starved(run: Run) -> Seen | None:
    """Look how long a step waits for data, without the first log: the loader starts in it."""
    waits = steady(run, "throughput/data_wait_fraction")
    if waits is None or waits < MAX_DATA_WAIT:
        return None
    told = f"{percent(waits)} of a step is waiting for data"
    what = "text in memory if it is" if run.is_plain_text else f"{run.material} in memory if they are"
    remedy = f"give each worker a CPU more, and hold the {what} read as it goes"
    changes = (*_plus_one(run, "ray.cpus_per_worker"), *times(run, "data_memory_gib", 4))
    return Seen("warn", told, run.last_step, remedy, changes)


def exchange_bound(run: Run) -> Seen | None:
    """Look how much of a step workers spend on exchanging gradients."""
    share, workers = steady(run, "throughput/exchange_fraction"), run.series("throughput/num_workers").values
    if share is None or share < MAX_EXCHANGE:
        return None
    told = (
        f"{percent(share)} of a step is exchange between {workers[-1]:.0f} workers" if len(workers) else percent(share)
    )
    fewer = (word("ray.num_workers", max(1, int(workers[-1]) // 2)),) if len(workers) else ()
    return Seen(
        "warn",
        told,
        run.last_step,
        "use fewer workers, or larger batches",
        (*fewer, *times(run, "global_batch_size", 2)),
    )


def evaluation_heavy(run: Run) -> Seen | None:
    """Look whether evaluations take more than a quarter of the run's CPU seconds, its start left out."""
    rows = [row for row in run.rows if "core_seconds/evaluation" in row]
    if not rows or (len(rows) < 3 and not has_ended(run)):
        return None
    parts = {
        tag: seconds
        for tag, seconds in rows[-1].items()
        if tag.startswith("core_seconds/") and tag != "core_seconds/start"
    }
    evaluation, whole = parts["core_seconds/evaluation"], sum(parts.values())
    if evaluation <= max(MAX_EVALUATION * whole, LEAST_EVALUATION_S):
        return None
    told = f"{counted(len(rows), 'evaluation')} took {evaluation:,.0f} of {whole:,.0f} CPU-s"
    told += f", {percent(evaluation / whole)}"
    rarer = math.ceil(4 * evaluation / max(whole - evaluation, 1e-9))  # leaves a fifth
    changes = times(run, "eval_interval", min(rarer, 100))
    fewer = "less text" if run.is_plain_text else f"fewer {run.material}"
    return Seen(
        "warn", told, int(rows[-1]["step"]), f"evaluate less often, or on {fewer} (eval_quick_puzzles)", changes
    )


def _plus_one(run: Run, key: str) -> tuple[str, ...]:
    value = flatten(run.config).get(key)
    return (word(key, value + 1),) if isinstance(value, int | float) else ()
