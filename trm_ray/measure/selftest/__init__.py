"""Faults on purpose: tiny runs are disturbed for real and must arrive at the bytes of one that was left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

from rich.table import Table

from trm_ray.measure.selftest import process_faults, ray_faults
from trm_ray.measure.selftest.ground import Ground, Outcome

Fault = Callable[[Ground], Outcome]

LOCAL_FAULTS: Mapping[str, tuple[str, Fault]] = {
    "driver": ("kill -9 of a run's process, --resume", process_faults.kill_driver),
    "elsewhere": ("kill -9 of a run's process, --resume on another machine", process_faults.move_elsewhere),
    "cut": ("newest checkpoint cut short, --resume", process_faults.cut_checkpoint),
    "bit": ("a bit of the newest checkpoint flipped, --resume", process_faults.flip_bit),
    "disk": ("disk full; --resume once there is room", process_faults.fill_disk),
    "storage": (f"storage gone for {process_faults.STORAGE_GONE_S:g} s", process_faults.unplug_storage),
    "storage_lost": ("storage gone for good; --resume from the copy kept here", process_faults.lose_storage),
    "data": ("a Parquet file removed during training", process_faults.remove_data),
    "changed_data": ("a Parquet file changed during training", process_faults.change_data),
    "clock": ("clock turned back by a day", process_faults.turn_clock_back),
}
RAY_FAULTS: Mapping[str, tuple[str, Fault]] = {
    "worker": ("kill -9 of a Ray Train worker", ray_faults.kill_worker),
    "trial": ("kill -9 of a Tune trial's process", ray_faults.kill_trial),
    "driver_on_ray": ("kill -9 of the driver of a run on Ray, its notes torn, --resume", ray_faults.kill_driver_on_ray),
    "node": ("loss of the node that holds a run's only worker", ray_faults.lose_node),
    "notice": ("notice of a preemption, then loss of that node", ray_faults.preempt_node),
    "sweep": ("kill -9 of a sweep's driver, --resume", ray_faults.kill_sweep_driver),
    "leaks": (f"{ray_faults.NUM_TRIALS} short trials in a row: nothing left behind", ray_faults.leave_nothing),
}


def chosen_faults(only: Sequence[str], workers: int) -> list[str]:
    """Name the faults to make: those asked for, else all that the workers allow.

    Raises:
        ValueError: one is unknown, or needs workers.
    """
    for name in only:
        if name not in (*LOCAL_FAULTS, *RAY_FAULTS):
            raise ValueError(f"--only {name} is unknown; use one of {', '.join((*LOCAL_FAULTS, *RAY_FAULTS))}")
        if name in RAY_FAULTS and workers == 0:
            raise ValueError(f"--only {name} needs Ray workers and --workers is 0; use --workers 2")
    return list(only) or [*LOCAL_FAULTS, *(RAY_FAULTS if workers else ())]


def make_faults(names: Sequence[str], ground: Ground) -> Iterator[Outcome]:
    """Make one fault after the other; one that goes wrong does not keep the others from being made."""
    for name in names:
        title, make = {**LOCAL_FAULTS, **RAY_FAULTS}[name]
        try:
            yield replace(make(ground), fault=title)
        except Exception as error:  # whatever it is, it is what the table has to say
            yield Outcome(title, problem=f"{type(error).__name__}: {error}")


def fault_table(outcomes: Sequence[Outcome]) -> Table:
    """Lay outcomes out as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Fault")
    for title in ("Steps lost", "Seconds until training again", "Metrics equal", "Weights equal"):
        table.add_column(title, justify="right")
    for one in outcomes:
        lost, pause = ("–" if value is None else f"{value:.3g}" for value in (one.steps_lost, one.pause_s))
        table.add_row(one.fault, lost, pause, *("yes" if ok else "NO" for ok in (one.metrics_equal, one.weights_equal)))
    return table


def faults_json(outcomes: Sequence[Outcome]) -> str:
    """Write outcomes as JSON."""
    faults = [{**asdict(one), "passed": one.passed} for one in outcomes]
    return json.dumps({"format_version": 1, "faults": faults}, indent=2, ensure_ascii=False) + "\n"
