"""How fast the rows of a split that does not fit into memory reach the workers, and how much memory that takes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from trm_ray.config import Config, ConfigError
from trm_ray.reporting.terminal import number_table
from trm_ray.runs.data import make_missing
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.runs.readings import Moment, Pace, Readings

_MIB = 2**20
_WARM_UP_S = 5.0  # in which the first chunks are read


def measure_data(config: Config, seconds: int) -> dict[str, Any]:
    """Let the workers of a run read its train split as in training and do nothing else; tell what `told` tells.

    Raises:
        ConfigError: the run has no Ray workers, or holds its train split in memory.
    """
    if config.ray.most_workers == 0:
        raise ConfigError("ray.num_workers=0 has no workers to measure; use e.g. ray.num_workers=2")
    make_missing(config)
    plan = plan_run(config)
    if plan.holds_train:
        gib = _gib(plan)
        rule = f"data_memory_gib={config.data_memory_gib:g} holds the train split of {gib:.3g} GiB in memory"
        raise ConfigError(f"{rule}; use data_memory_gib={gib / 2:.3g} to measure how it is read from files")
    from trm_ray.distributed.data_rate import measure_readers

    return told(plan, measure_readers(plan, seconds))


def told(plan: RunPlan, found: Readings) -> dict[str, Any]:
    """Reckon up what the workers found.

    Returns:
        `rows`, `seq_len` and `gib` (as int32) of the split; of each worker `held_per_s` and `streamed_per_s`, rows
        a second from memory and, after the first seconds, from files, and `first_batch_s`; `held_per_core_s` and
        `streamed_per_core_s`, rows for a second of processor time, that of the tasks that read included; and `moments`.
    """
    streamed = _after_warm_up(found.moments)
    return {
        "workers": len(found.held),
        "rows": plan.info.split("train").rows,
        "seq_len": plan.info.seq_len,
        "gib": _gib(plan),
        "held_per_s": [_rate([pace]) for pace in found.held],
        "streamed_per_s": [_rate(paces) for paces in zip(*(moment.paces for moment in streamed), strict=True)],
        "first_batch_s": found.first_batch_s,
        "held_per_core_s": sum(p.rows for p in found.held) / sum(p.cpu_s for p in found.held),
        "streamed_per_core_s": _per_core(streamed),
        "store_limit_mib": found.store_limit / _MIB,
        "moments": [_told(moment) for moment in found.moments],
    }


def _gib(plan: RunPlan) -> float:
    return 2 * 4 * plan.info.seq_len * plan.info.split("train").rows / 2**30


def _after_warm_up(moments: Sequence[Moment]) -> Sequence[Moment]:
    return [moment for moment in moments if moment.seconds > _WARM_UP_S] or moments


def _rate(paces: Sequence[Pace]) -> float:
    return sum(pace.rows for pace in paces) / sum(pace.wall_s for pace in paces)


def _per_core(moments: Sequence[Moment]) -> float:
    """Rows for a second of processor time, whoever spent it; the first moment's rows came before its time was read."""
    rows = sum(pace.rows for moment in moments[1:] for pace in moment.paces)
    return rows / (moments[-1].cpu_s - moments[0].cpu_s) if len(moments) > 1 else float("nan")


def _told(moment: Moment) -> dict[str, Any]:
    held = {key.replace("_bytes", "_mib"): _mib(of) for key, of in asdict(moment).items() if key.endswith("_bytes")}
    return {"seconds": moment.seconds, "rows_per_s": [_rate([pace]) for pace in moment.paces], **held}


def _mib(value: int | list[int]) -> float | list[float]:
    return [one / _MIB for one in value] if isinstance(value, list) else value / _MIB


# ---- telling ---------------------------------------------------------------------------------------------


def data_json(measured: Mapping[str, Any]) -> str:
    """Write what was measured as JSON."""
    return json.dumps(measured, indent=2) + "\n"


def _most(measured: Mapping[str, Any], key: str) -> float:
    values = [moment[key] for moment in measured["moments"]]
    return max(max(value) if isinstance(value, list) else value for value in values)


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "rows/s a worker\nfrom memory": lambda m: f"{statistics.fmean(m['held_per_s']):,.0f}",
    "rows/s a worker\nfrom files": lambda m: f"{statistics.fmean(m['streamed_per_s']):,.0f}",
    "rows/s a core\nfrom memory": lambda m: f"{m['held_per_core_s']:,.0f}",
    "rows/s a core\nfrom files": lambda m: f"{m['streamed_per_core_s']:,.0f}",
    "MiB of a\nworker": lambda m: f"{_most(m, 'worker_mib'):,.0f}",
    "of all that\nread": lambda m: f"{_most(m, 'task_mib'):,.0f}",
    "in the\nobject store": lambda m: f"{_most(m, 'store_mib'):,.0f}",
    "spilled": lambda m: f"{_most(m, 'spilled_mib'):,.0f}",
}


def data_table(measured: Mapping[str, Any]) -> Table:
    """Draw what was measured as a table."""
    size = f"{measured['rows']:,} rows of {measured['seq_len']} tokens, {measured['gib']:.1f} GiB as int32"
    core = "a core is a second of processor time, whoever spends it"
    caption = f"{size}. All workers read at the same time; {core}. Memory is the most that was seen."
    table = number_table("\nworkers", _COLUMNS, caption=caption, caption_justify="left")
    table.add_row(f"{measured['workers']}", *(cell(measured) for cell in _COLUMNS.values()))
    return table
