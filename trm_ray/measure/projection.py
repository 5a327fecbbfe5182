"""How the cost of a run grows with the number of GPUs, by formulas: what to expect, and what gives out first.

Nothing here has been measured on that many GPUs. Every number that goes in says where it comes from: *published*,
*counted* (in this code), *measured* (on two CPU cores) or *assumed*. Whoever has better ones puts them in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from rich.table import Table

from trm_ray.reporting.terminal import number_table

_GB = 1e9


@dataclass(frozen=True)
class Work:
    """What a run asks for, and how fast one GPU does it.

    batch_size: of all GPUs together.
    puzzles_per_s: segments of puzzles that one GPU trains in a second when it has enough of them at a time.
    operations: kernels of a step, which take their launch however few puzzles there are.
    forward_share: part of a step's work that a forward pass is: H / (H + 2 · cycles with gradient).
    embedding_rows, embedding_size: of the puzzle embedding; 0 where there is none.
    carry_bytes: answer and latent of one puzzle: 2 · positions · hidden size · bytes a number.
    test_rows: that an evaluation looks at, `segments` forward passes each.
    """

    batch_size: int
    num_steps: int
    eval_interval: int
    puzzles_per_s: float
    operations: int
    forward_share: float
    parameters: int
    embedding_rows: int
    embedding_size: int
    carry_bytes: int
    test_rows: int
    segments: int

    @property
    def gradient_bytes(self) -> int:
        """The message that all GPUs add up at every step."""
        return 4 * self.parameters

    @property
    def state_bytes(self) -> int:
        """A checkpoint without the carry: weights, two moments, average, and the embedding's table."""
        return 4 * (4 * self.parameters + self.embedding_rows * self.embedding_size)


@dataclass(frozen=True)
class Cluster:
    """GPUs and what is around them; bandwidths in bytes a second.

    node_*, network_*: of the link of each GPU, inside a node and between nodes. launch_s: of a kernel. host_bandwidth:
    from GPU to host. storage_bandwidth: of one writer, and of all together. data_rows_per_s: that a process augments.
    start_s: until the first step. poll_s: of Ray Train's controller for a worker. driver_results_per_s: Tune's.
    """

    gpus_per_node: int = 8
    node_latency_s: float = 5e-6
    node_bandwidth: float = 300 * _GB
    network_latency_s: float = 20e-6
    network_bandwidth: float = 12.5 * _GB
    launch_s: float = 5e-6
    host_bandwidth: float = 20 * _GB
    gpu_memory: float = 80 * _GB
    storage_bandwidth: float = 1 * _GB
    data_rows_per_s: float = 48_000
    start_s: float = 15.0
    poll_s: float = 1e-3
    poll_interval_s: float = 0.25
    driver_results_per_s: float = 100.0

    def link(self, gpus: int) -> tuple[float, float]:
        """Latency and bandwidth of the slowest link between so many GPUs."""
        if gpus <= self.gpus_per_node:
            return self.node_latency_s, self.node_bandwidth
        return self.network_latency_s, self.network_bandwidth


# Where each number comes from; whatever is not here is assumed.
_CONFIG, _COUNTED = "config", "counted in a step of this code"
SOURCES = {
    **dict.fromkeys(("batch_size", "num_steps", "eval_interval", "embedding_size", "segments"), _CONFIG),
    **dict.fromkeys(("forward_share", "carry_bytes"), "follows from the config"),
    **dict.fromkeys(("test_rows", "embedding_rows"), "counted in the dataset"),
    **dict.fromkeys(("operations", "parameters"), _COUNTED),
    "puzzles_per_s": "published: time of the whole run, README of the original code",
    "data_rows_per_s": "measured: ARC with augmentation, one slow core",
    "start_s": "measured: two workers on one machine; assumed to stay so",
    "poll_interval_s": "set by this package",
}
ASSUMED = "assumed"

# 519,270 steps of 768 in about 3 days on four H100; configs/task/arc1.yaml, baseline.
_ARC1 = Work(
    batch_size=768,
    num_steps=519_270,
    eval_interval=51_927,
    puzzles_per_s=385.0,
    operations=2_052,
    forward_share=3 / 5,
    parameters=6_829_058,
    embedding_rows=876_405,
    embedding_size=512,
    carry_bytes=2 * 916 * 512 * 2,
    test_rows=419,
    segments=16,
)
# 65,104 steps of 768 in under 20 hours on one L40S; configs/task/sudoku_extreme.yaml, baseline.
_SUDOKU_EXTREME = replace(
    _ARC1,
    num_steps=65_104,
    eval_interval=6_510,
    puzzles_per_s=694.0,
    operations=2_652,
    parameters=6_828_034,
    embedding_rows=1,
    carry_bytes=2 * 97 * 512 * 2,
    test_rows=4_096,
)
RECIPES = {"arc1": _ARC1, "sudoku_extreme": _SUDOKU_EXTREME}


# ---- formulas --------------------------------------------------------------------------------------------


def all_reduce_s(num_bytes: float, gpus: int, latency_s: float, bandwidth: float) -> float:
    """Time to add up a message over the GPUs: a ring or a tree, whichever is faster.

    ring: 2·(n−1)·latency + 2·bytes·(n−1)/n / bandwidth        tree: 2·⌈log₂ n⌉·latency + 2·bytes / bandwidth
    """
    if gpus == 1:
        return 0.0
    ring = 2 * (gpus - 1) * latency_s + 2 * num_bytes * (gpus - 1) / gpus / bandwidth
    tree = 2 * math.ceil(math.log2(gpus)) * latency_s + 2 * num_bytes / bandwidth
    return min(ring, tree)


def all_gather_s(num_bytes: float, gpus: int, latency_s: float, bandwidth: float) -> float:
    """Time until every GPU has the parts of all: (n−1)·(latency + bytes of one part / bandwidth)."""
    return (gpus - 1) * (latency_s + num_bytes / bandwidth)


@dataclass(frozen=True)
class Projection:
    """What a run on so many GPUs is made of, in seconds.

    compute_s: what a GPU computes in a step. host_s: what its process does meanwhile: launch kernels, make a batch.
    """

    gpus: int
    batch_size: int
    compute_s: float
    host_s: float
    all_reduce_s: float
    gather_s: float
    evaluation_s: float
    stall_s: float
    write_s: float
    start_s: float
    num_steps: float
    eval_interval: float

    @property
    def step_s(self) -> float:
        """Wall time of a step: the GPU or its host, whichever is slower, then the exchange, which overlaps nothing."""
        return max(self.compute_s, self.host_s) + self.all_reduce_s + self.gather_s

    @property
    def exchange_share(self) -> float:
        """Part of a step that is exchange."""
        return (self.all_reduce_s + self.gather_s) / self.step_s

    @property
    def puzzles_per_s(self) -> float:
        """Segments of puzzles a second on all GPUs."""
        return self.batch_size / self.step_s

    @property
    def total_s(self) -> float:
        """The whole run: start, steps, evaluations, and what saving holds up."""
        saves = self.num_steps / self.eval_interval
        interval_s = self.eval_interval * self.step_s
        waiting_s = self.stall_s + max(0.0, self.write_s - interval_s)
        return self.start_s + self.num_steps * self.step_s + saves * (self.evaluation_s + waiting_s)

    @property
    def gpu_hours(self) -> float:
        """What is paid for."""
        return self.gpus * self.total_s / 3600


def project(work: Work, cluster: Cluster, gpus: int) -> Projection:
    """Work out one run on `gpus` GPUs that share its batch."""
    latency, bandwidth = cluster.link(gpus)
    rows = work.batch_size / gpus
    part = 4 * rows * (work.embedding_size + 1)  # gradients and identifiers
    carry, passes = work.batch_size * work.carry_bytes, work.test_rows * work.segments
    return Projection(
        gpus=gpus,
        batch_size=work.batch_size,
        compute_s=rows / work.puzzles_per_s,
        host_s=work.operations * cluster.launch_s + rows / cluster.data_rows_per_s,
        all_reduce_s=all_reduce_s(work.gradient_bytes, gpus, latency, bandwidth),
        gather_s=2 * (gpus - 1) * latency + (gpus - 1) * part / bandwidth if work.embedding_size else 0.0,
        evaluation_s=passes * work.forward_share / work.puzzles_per_s / gpus,
        # Every GPU gathers the carry of all; then rank 0 copies it and the state into the host's memory.
        stall_s=all_gather_s(carry / gpus, gpus, latency, bandwidth)
        + (work.state_bytes + carry) / cluster.host_bandwidth,
        write_s=(work.state_bytes + carry) / cluster.storage_bandwidth,
        start_s=cluster.start_s,
        num_steps=work.num_steps,
        eval_interval=work.eval_interval,
    )


def with_larger_batch(work: Work, gpus: int, base_gpus: int) -> Work:
    """Let the batch grow with the GPUs beyond `base_gpus`: as many puzzles, in fewer steps."""
    factor = max(1.0, gpus / base_gpus)
    steps, interval = (max(1, round(count / factor)) for count in (work.num_steps, work.eval_interval))
    return replace(work, batch_size=round(work.batch_size * factor), num_steps=steps, eval_interval=interval)


# ---- what gives out first --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limit:
    """Something that gives out: `load(work, cluster, projection)` beyond 1."""

    what: str
    load: Callable[[Work, Cluster, Projection], float]


_POLL = Limit(
    "Ray Train's controller asks each worker in turn and needs longer than its interval",
    lambda work, cluster, run: run.gpus * cluster.poll_s / cluster.poll_interval_s,
)
_EXCHANGE = Limit("a fifth of a step is exchange", lambda work, cluster, run: run.exchange_share / 0.2)
_WRITE = Limit(
    "rank 0 still writes a checkpoint when the next is due",
    lambda work, cluster, run: run.write_s / (run.eval_interval * run.step_s),
)
SHARED, GROWING, SWEEP = "one run that shares its batch", "one run whose batch grows", "a sweep of runs on a GPU each"
LIMITS = {
    SHARED: (
        Limit(
            "a GPU has too few puzzles to be busy: its host is slower",
            lambda work, cluster, run: run.host_s / run.compute_s,
        ),
        Limit("there are more GPUs than puzzles in a batch", lambda work, cluster, run: run.gpus / work.batch_size),
        _EXCHANGE,
        _POLL,
        _WRITE,
    ),
    GROWING: (
        Limit(
            "the batch is larger than any that is known to learn as well (768)",
            lambda work, cluster, run: run.batch_size / 768,
        ),
        Limit(
            "a checkpoint gathers the carry of all puzzles on every GPU, and half of a GPU's memory does not hold it",
            lambda work, cluster, run: run.batch_size * work.carry_bytes / (cluster.gpu_memory / 2),
        ),
        _EXCHANGE,
        _POLL,
        _WRITE,
    ),
    SWEEP: (
        Limit(
            "the driver takes fewer results a second than the trials report",
            lambda work, cluster, run: run.gpus / (run.eval_interval * run.step_s) / cluster.driver_results_per_s,
        ),
        Limit(
            "the storage takes fewer bytes a second than the trials save",
            lambda work, cluster, run: run.gpus * run.write_s / (run.eval_interval * run.step_s),
        ),
    ),
}


def gives_out_at(work: Work, cluster: Cluster, mode: str, limit: Limit, most: int = 2**16) -> int | None:
    """Find the smallest power of two of GPUs at which a limit is passed; None if there is none up to `most`."""
    powers = (2**exponent for exponent in range(1, int(math.log2(most)) + 1))
    return next((gpus for gpus in powers if _load(work, cluster, mode, limit, gpus) > 1), None)


def _load(work: Work, cluster: Cluster, mode: str, limit: Limit, gpus: int) -> float:
    if mode == GROWING:
        work = with_larger_batch(work, gpus, base_gpus=cluster.gpus_per_node)
    run = project(work, cluster, 1 if mode == SWEEP else gpus)
    return limit.load(work, cluster, replace(run, gpus=gpus))


# ---- telling ---------------------------------------------------------------------------------------------

_COLUMNS: dict[str, Callable[[Projection], str]] = {
    "batch": lambda p: f"{p.batch_size:,}",
    "a GPU": lambda p: f"{p.batch_size / p.gpus:,.1f}",
    "compute\nms": lambda p: f"{1e3 * p.compute_s:.1f}",
    "host\nms": lambda p: f"{1e3 * p.host_s:.1f}",
    "all_reduce\nms": lambda p: f"{1e3 * p.all_reduce_s:.2f}",
    "gather\nms": lambda p: f"{1e3 * p.gather_s:.2f}",
    "step\nms": lambda p: f"{1e3 * p.step_s:.1f}",
    "puzzles\n/s": lambda p: f"{p.puzzles_per_s:,.0f}",
    "evaluation\ns": lambda p: f"{p.evaluation_s:.1f}",
    "save: stall\ns": lambda p: f"{p.stall_s:.2f}",
    "write\ns": lambda p: f"{p.write_s:.1f}",
    "run\nhours": lambda p: f"{p.total_s / 3600:,.1f}",
    "GPU\nhours": lambda p: f"{p.gpu_hours:,.0f}",
}


def projection_table(work: Work, cluster: Cluster, mode: str, gpus: Sequence[int]) -> Table:
    """Draw what a run costs on so many GPUs; wants a console of about 110 columns."""
    table = number_table("\nGPUs", _COLUMNS, title=mode, title_justify="left", title_style="bold")
    table.columns[0].justify = "right"
    for count in gpus:
        own = with_larger_batch(work, count, cluster.gpus_per_node) if mode == GROWING else work
        table.add_row(f"{count}", *(cell(project(own, cluster, count)) for cell in _COLUMNS.values()))
    return table


def limit_lines(work: Work, cluster: Cluster) -> Iterator[str]:
    """Say what gives out and at how many GPUs, first things first."""
    for mode, limits in LIMITS.items():
        yield f"{mode}:"
        found = [(gives_out_at(work, cluster, mode, limit) or math.inf, limit.what) for limit in limits]
        for count, what in sorted(found):
            yield f"  {'beyond 65,536' if math.isinf(count) else f'at {count:,.0f}'} GPUs: {what}"


def source_lines(work: Work, cluster: Cluster) -> Iterator[str]:
    """Give every number that went in, and where it comes from."""
    for part in (work, cluster):
        for field in fields(part):
            yield f"  {field.name} = {getattr(part, field.name):,g}  ({SOURCES.get(field.name, ASSUMED)})"
