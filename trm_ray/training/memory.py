"""What autograd keeps from a forward pass for its backward pass, and whether a device has room for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.training.segment import build_segment
from trm_ray.training.session import Session
from trm_ray.training.state import Recipe, TrainState
from trm_ray.training.supervision import CycleWeights

_LOG = logging.getLogger("trm_ray")

_MIB = 2**20
# Of the free memory, what activations may take; the rest is for what a backward pass computes on the way.
_ROOM = 0.8


class Kept:
    """Counts the bytes that autograd keeps, each storage once: `bytes` at the moment, `peak` at the most."""

    def __init__(self, owned: Iterable[Tensor]) -> None:
        self.bytes = self.peak = 0
        self._times = {tensor.untyped_storage().data_ptr(): 1 for tensor in owned}  # there anyway, so never counted

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that is kept from now on."""
        storage = tensor.untyped_storage()
        times = self._times.get(storage.data_ptr(), 0)
        self._times[storage.data_ptr()] = times + 1
        self.bytes += 0 if times else storage.nbytes()
        self.peak = max(self.peak, self.bytes)

    def drop(self, tensor: Tensor) -> None:
        """Count a tensor no longer that was kept."""
        storage = tensor.untyped_storage()
        self._times[storage.data_ptr()] -= 1
        self.bytes -= 0 if self._times[storage.data_ptr()] else storage.nbytes()


class _Saved:
    """A tensor that a graph keeps; it goes when the graph does."""

    def __init__(self, tensor: Tensor, kept: Kept) -> None:
        self.tensor, self._kept = tensor, kept
        kept.add(tensor)

    def __del__(self) -> None:
        self._kept.drop(self.tensor)


@contextmanager
def kept_by_autograd(model: TinyRecursiveModel) -> Iterator[Kept]:
    """Count what graphs keep that are made meanwhile, the model's own tensors left out."""
    kept = Kept((*model.parameters(), *model.buffers()))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, kept), lambda saved: saved.tensor):
        yield kept


def kept_bytes(state: TrainState, recipe: Recipe, num_rows: int) -> int:
    """Measure the most that a segment of so many rows keeps at once, along the deepest path that the run takes."""
    model, path, device = state.model, _deepest(recipe), state.model.embed_tokens.device
    cells = torch.ones(num_rows, model.seq_len, dtype=torch.int32, device=device)
    batch = Batch(cells, cells.clone(), torch.zeros_like(cells[:, 0]))
    weights = CycleWeights(torch.ones(model.H_cycles + 1, dtype=torch.float64, device=device), path)
    segment = build_segment(recipe.cell_loss, num_rows, device, compiled=False)
    with kept_by_autograd(model) as kept:
        segment(model, model.initial_carry(batch), batch, cells[:, 0], weights)
    model.zero_grad(set_to_none=True)  # of stretches, which have been passed back
    return kept.peak


def _deepest(recipe: Recipe) -> GradientPath:
    paths = recipe.supervision.paths(recipe.total_steps)
    return max(paths, key=lambda path: (path.depth, len(path.supervised), path.L_cycles or 0))


def needs_checkpoints(state: TrainState, recipe: Recipe, session: Session) -> bool:
    """Decide `checkpoint_cycles=auto`, for all workers alike, and say so.

    What a worker's rows keep follows from segments of one row and of two. It must fit into what is free beside the
    gradients and the optimizer's moments, which are yet to come; the numbers of the run are the same either way. A path
    through one cycle has nothing to save.
    """
    num_rows = len(session.own_rows(torch.empty(recipe.global_batch_size)))
    one, two = (kept_bytes(state, recipe, rows) for rows in (1, 2))
    kept, weights = one + (two - one) * (num_rows - 1), sum(weight.nbytes for weight in state.model.parameters())
    free = _free_bytes(session.device) - 3 * weights
    needed = session.any_rank(_deepest(recipe).depth > 1 and kept > _ROOM * free)
    if session.rank == 0:
        done = "computed again in the backward pass" if needed else "kept"
        room = f"they take {kept / _MIB:,.0f} MiB a worker, and {free / _MIB:,.0f} MiB are free"
        _LOG.warning("checkpoint_cycles=auto: H-cycles are %s (%s)", done, room)
    return needed


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(psutil.virtual_memory().available)
