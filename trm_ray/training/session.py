"""The seam between the training loop and whoever launched it. The loop never asks which launcher that is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from trm_ray.model.trm import Batch
from trm_ray.training.text import TextMeasure

Depths = Mapping[str, Sequence[float]]


class LogRow(Protocol):
    """Writes one row of metrics; see `reporting.run_log.RunLog.write`."""

    def __call__(  # noqa: D102
        self, step: int, wall_s: float, metrics: Mapping[str, float], depths: Depths | None = None, /
    ) -> None: ...


def place() -> tuple[int, int]:
    """Return the number of this worker, from 0, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Tokens(Protocol):
    """A batch as numpy arrays (`trm_ray.data.stream.TokenBatch`)."""

    @property
    def inputs(self): ...  # type: ignore[no-untyped-def]  # noqa: D102
    @property
    def labels(self): ...  # type: ignore[no-untyped-def]  # noqa: D102
    @property
    def puzzle_identifiers(self): ...  # type: ignore[no-untyped-def]  # noqa: D102


@dataclass
class ExchangeTime:
    """Seconds for which exchanges with other workers held this one up, waiting for the slowest included.

    Stays 0 on a GPU, which goes on by itself: to know, the process would have to wait for it.
    """

    seconds: float = 0.0


@dataclass(frozen=True)
class Session:
    """What the loop needs, as a single process has it; Ray Train and Ray Tune extend `report`.

    Args:
        run_dir: the run's folder, on storage that every worker sees.
        train_tokens: gives this worker's training batches from number k on.
        test_tokens: gives this worker's share of the test split, whole or of the part for a quick look.
        log_row: writes one row of metrics; called on rank 0 alone.
        sync_log: makes sure that rows which were written are on the storage, as far as `log_row` has not.
        identifiers, tokenizer: the dataset's identifiers.json and tokenizer.json, which go into every checkpoint.
        text: how the test split is measured where it is a text.
        stop_requested: whether this worker was asked to save and stop; the loop asks once a step.
        latest: the checkpoint to go on from, the latest that is as it was written; rank 0's counts.
    """

    run_dir: Path
    device: torch.device
    train_tokens: Callable[[int], Iterator[Tokens]]
    test_tokens: Callable[[bool], Iterable[Tokens]]
    log_row: LogRow
    sync_log: Callable[[], None] = field(default=lambda: None, kw_only=True)
    identifiers: bytes | None = field(default=None, kw_only=True)
    tokenizer: bytes | None = field(default=None, kw_only=True)
    text: TextMeasure | None = field(default=None, kw_only=True)
    # Whether `report` must find its checkpoint on the storage, since the launcher may end the run there. It costs the
    # time to write one.
    awaits_checkpoints: ClassVar[bool] = False
    stop_requested: Callable[[], bool] = field(default=lambda: False, kw_only=True)
    latest: Path | None = field(default=None, kw_only=True)
    exchange_time: ExchangeTime = field(default_factory=ExchangeTime, init=False)

    @property
    def rank(self) -> int:
        """Number of this worker, from 0."""
        return place()[0]

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return place()[1]

    @property
    def whole_rows(self) -> bool:
        """Whether a row may be right as a whole."""
        return self.text is None or self.text.whole_rows

    def train_batches(self, start: int) -> Iterator[Batch]:
        """Yield this worker's batches from number `start` on, on the device."""
        tokens = self.train_tokens(start)
        return self._copied_ahead(tokens) if self.device.type == "cuda" else map(self._to_device, tokens)

    def train_steps(self, start: int, num_segments: int) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches of each step from number `start` on, of which a step takes so many."""
        batches = self.train_batches(start * num_segments)
        return zip(*[batches] * num_segments, strict=False)

    def test_batches(self, whole: bool = True) -> Iterator[Batch]:
        """Yield this worker's share of the test split once, or of its part for a quick look, on the device."""
        return (self._to_device(tokens) for tokens in self.test_tokens(whole))

    def log(self, step: int, wall_s: float, metrics: Mapping[str, float], depths: Depths | None = None) -> None:
        """Write one row of metrics, and an evaluation's numbers by depth if there are any, from rank 0 only."""
        if self.rank == 0:
            self.log_row(step, wall_s, metrics, depths)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the launcher of an evaluation; called by every rank."""

    def sum_over_ranks(self, *tensors: Tensor) -> None:
        """Add tensors over the workers, in place and in one message."""
        if self.world_size == 1:
            return
        assert len({tensor.dtype for tensor in tensors}) == 1, "one message holds one dtype"
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._exchanging():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any_rank(self, flag: bool) -> bool:
        """Tell every worker whether one of them says so. Every rank must call it; waits for them."""
        votes = torch.tensor(float(flag), device=self.device)
        self.sum_over_ranks(votes)
        return votes.item() > 0

    def gather_rows(self, tensor: Tensor, num_rows: int) -> Tensor:
        """Put the workers' shares of `num_rows` rows together in rank order, on every rank."""
        if self.world_size == 1:
            return tensor
        sizes = [len(part) for part in torch.empty(num_rows, 0).tensor_split(self.world_size)]
        # Everybody sends as many rows as the largest share has, since all must send equally many.
        sent = torch.cat([tensor, tensor.new_zeros(sizes[0] - len(tensor), *tensor.shape[1:])])
        parts = [torch.empty_like(sent) for _ in sizes]
        with self._exchanging():
            dist.all_gather(parts, sent)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def own_rows(self, tensor: Tensor) -> Tensor:
        """Take this worker's share of the rows of a global batch, the inverse of `gather_rows`.

        Where they cannot be equal, the first shares hold a row more.
        """
        return tensor.tensor_split(self.world_size)[self.rank]

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cpu":
            self.exchange_time.seconds += time.perf_counter() - began

    def _copied_ahead(self, batches: Iterable[Tokens]) -> Iterator[Batch]:
        """Copy batches to a GPU on a stream of their own, each while the step before it computes."""
        beside, here = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        ahead: deque[tuple[Batch, torch.cuda.Event]] = deque()
        for tokens in batches:
            with torch.cuda.stream(beside):
                ahead.append((self._to_device(tokens), beside.record_event()))
            if len(ahead) == 2:  # one is on its way while the other is computed on
                batch, copied = ahead.popleft()
                here.wait_event(copied)
                for tensor in (batch.inputs, batch.labels, batch.puzzle_identifiers):
                    tensor.record_stream(here)  # else the next copy could be given its memory while it is read
                yield batch

    def _to_device(self, tokens: Tokens) -> Batch:
        arrays = (tokens.inputs, tokens.labels, tokens.puzzle_identifiers)
        host = (torch.from_numpy(array) for array in arrays)
        if self.device.type == "cuda":
            host = (tensor.pin_memory() for tensor in host)
        return Batch(*host).to(self.device)
