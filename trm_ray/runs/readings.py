"""What workers that only read have found (`trm-ray bench data`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Rows that a worker was given within some time, and its own processor time meanwhile."""

    rows: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Moment:
    """What a second of reading brought, and what was held at its end.

    Args:
        seconds: since the workers began to read from files.
        paces: of each worker.
        cpu_s: processor time of all of Ray's workers and tasks since they started.
        worker_bytes: memory of each worker's process, without the object store's.
        task_bytes: the same of all processes that read for them, idle ones included.
        store_bytes: in Ray's object store; and what it has spilled so far.
    """

    seconds: float
    paces: list[Pace]
    cpu_s: float
    worker_bytes: list[int]
    task_bytes: int
    store_bytes: int
    spilled_bytes: int


@dataclass(frozen=True)
class Readings:
    """What was measured: the paces of the workers from memory, the wait for their first batch from files, and then."""

    held: list[Pace]
    first_batch_s: list[float]
    moments: list[Moment]
    store_limit: int
