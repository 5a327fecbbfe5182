"""The Ray half of `trm-ray bench data`: workers that only read, and what the machine's memory holds meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from trm_ray.data.rows import TokenBatch, concatenate
from trm_ray.data.stream import HeldSplit, RowStream
from trm_ray.distributed.cluster import check_resources, ray_cluster, worker_resources
from trm_ray.distributed.dataset import read_in_order
from trm_ray.distributed.ray_internals import store_bytes
from trm_ray.kinds.registry import symmetry_from
from trm_ray.runs.execute import stored_train
from trm_ray.runs.plan import RunPlan
from trm_ray.runs.readings import Moment, Pace, Readings

_TICK = os.sysconf("SC_CLK_TCK")


class Reader:
    """A worker of a run that reads as it does in training, and does nothing else."""

    def __init__(self, plan: RunPlan, rank: int):
        self._plan, self._rank = plan, rank
        self._split = stored_train(plan, read_in_order)
        self._batches: Iterator[TokenBatch] | None = None

    def place(self) -> tuple[int, int]:
        """Name this process and the one that started it."""
        return os.getpid(), os.getppid()

    def hold(self) -> int:
        """Hold a chunk's worth of rows in memory and read those; return how many."""
        count = max(1, len(self._split.row_groups) // self._split.num_chunks)
        rows = concatenate([group.read(self._split.seq_len) for group in self._split.row_groups[:count]])
        self._batches = self._stream(HeldSplit.of(rows)).batches(0)
        next(self._batches)
        return len(rows)

    def stream(self) -> float:
        """Read from the files from now on; return the seconds to the first batch."""
        began = time.perf_counter()
        self._batches = self._stream(self._split).batches(0)
        next(self._batches)
        return time.perf_counter() - began

    def pull(self, seconds: float) -> Pace:
        """Take batches for some time."""
        assert self._batches is not None
        wall, cpu, rows = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < wall + seconds:
            rows += len(next(self._batches))
        return Pace(rows, time.perf_counter() - wall, time.process_time() - cpu)

    def _stream(self, split: Any) -> RowStream:
        config = self._plan.config
        symmetry = symmetry_from(self._plan.info.symmetry, self._plan.identifiers()) if config.augment else None
        place = {"rank": self._rank, "world_size": config.ray.most_workers}
        return RowStream(split, batch_size=config.global_batch_size, seed=config.seed, symmetry=symmetry, **place)


def measure_readers(plan: RunPlan, seconds: int) -> Readings:
    """Let all workers of a run read at the same time: for so long from files, then a sixth of it from memory."""
    with ray_cluster(plan.config.ray.address):
        check_resources(plan.config)
        cpus = worker_resources(plan.config)["CPU"]
        actor = ray.remote(Reader).options(num_cpus=cpus)
        readers = [actor.remote(plan, rank) for rank in range(plan.config.ray.most_workers)]
        places = ray.get([reader.place.remote() for reader in readers])
        first = ray.get([reader.stream.remote() for reader in readers])
        moments = list(_moments(readers, places, seconds))
        ray.get([reader.hold.remote() for reader in readers])  # afterwards, for it takes memory that is to be measured
        held = ray.get([reader.pull.remote(max(1.0, seconds / 6)) for reader in readers])
        return Readings(held, first, moments, int(ray.cluster_resources()["object_store_memory"]))


def _moments(readers: list[Any], places: list[tuple[int, int]], seconds: int) -> Iterator[Moment]:
    own, raylet = [pid for pid, _ in places], places[0][1]
    began, cpu_s = time.perf_counter(), dict[int, float]()  # with that of processes that have ended
    while (now := time.perf_counter() - began) < seconds:
        paces = ray.get([reader.pull.remote(1.0) for reader in readers])
        processes = {pid: _process(pid) for pid in _children(raylet)}
        cpu_s |= {pid: cpu for pid, (cpu, _) in processes.items()}
        used, spilled = store_bytes()
        yield Moment(
            seconds=now,
            paces=paces,
            cpu_s=sum(cpu_s.values()),
            worker_bytes=[processes[pid][1] for pid in own],
            task_bytes=sum(held for pid, (_, held) in processes.items() if pid not in own),
            store_bytes=used,
            spilled_bytes=spilled,
        )


def _children(parent: int) -> list[int]:
    """List the processes of Ray's workers and tasks, which their raylet has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rpartition(")")[::2]
        except OSError:  # it has ended
            continue
        if int(fields.split()[1]) == parent and "(ray::" in name:
            found.append(int(stat.parent.name))
    return found


def _process(pid: int) -> tuple[float, int]:
    """Tell the processor seconds of a process and the bytes that it holds, those of shared memory left out."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return 0.0, 0
    held = sum(1024 * int(status[kind].split()[0]) for kind in ("RssAnon", "RssFile"))
    return (int(fields[11]) + int(fields[12])) / _TICK, held
