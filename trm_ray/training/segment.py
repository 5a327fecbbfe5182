"""One segment with its losses, as a function of tensors: the part of a step that is one graph where it is compiled."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, Carry, TinyRecursiveModel
from trm_ray.training.losses import CellLoss
from trm_ray.training.metrics import segment_sums
from trm_ray.training.supervision import CycleWeights, StretchLosses, segment_losses, stretch_losses

# What torch compiles with; tests that count graphs and nothing else take one that is quicker.
BACKEND = "inductor"


@dataclass(frozen=True)
class SegmentResult:
    """What a step needs of its segment; only `loss`, a scalar, has a gradient: what has yet to be passed back.

    names, values: (K,) float64, the segment's sums. puzzle_leaf: as in `SegmentOutput`.
    """

    loss: Tensor
    carry: Carry
    puzzle_leaf: Tensor | None
    names: tuple[str, ...]
    values: Tensor

    @property
    def sums(self) -> dict[str, Tensor]:
        """`segment_sums` of it."""
        return dict(zip(self.names, self.values.unbind(), strict=True))


Segment = Callable[[TinyRecursiveModel, Carry, Batch, Tensor, CycleWeights], SegmentResult]
_Stretch = Callable[..., tuple[Carry, StretchLosses]]  # `_run_stretch` without its first two arguments
_Last = Callable[..., SegmentResult]  # `_run_last` without them


def build_segment(
    cell_loss: CellLoss, num_puzzles: int, device: torch.device, *, compiled: bool, adds_up: bool = False
) -> Segment:
    """Make what runs a segment: its model, carry, batch, fewest segments a row (B,) and the weights of the cycles.

    Where the path is cut, every stretch but the last is passed back at once: what it keeps for that is gone before the
    next one begins.

    Args:
        num_puzzles: puzzles in the global batches of a step, as in `segment_losses`.
        compiled: as a graph for each path of its steps. They are compiled when first needed and never again, since
            whatever changes between two steps is a tensor. On a GPU they run as CUDA graphs.
        adds_up: gradients of several segments are added. No CUDA graphs then: their gradients lie where the next one
            writes.
    """

    @functools.cache
    def graph_of(stretch: GradientPath) -> _Stretch:
        body: _Stretch = functools.partial(_run_stretch, cell_loss, num_puzzles)
        # No CUDA graph: its gradients lie where the next one writes, and these are still to be added to.
        return compiled_graph(body) if compiled else body

    @functools.cache
    def last_graph_of(path: GradientPath) -> _Last:
        body: _Last = functools.partial(_run_last, cell_loss, num_puzzles)
        return _compiled(body, device, adds_up) if compiled else body

    def segment(
        model: TinyRecursiveModel, carry: Carry, batch: Batch, min_steps: Tensor, weights: CycleWeights
    ) -> SegmentResult:
        leaf = model.puzzle_leaf(len(batch))  # out here, since no leaf can be made in a graph
        before: list[StretchLosses] = []
        *stretches, last = weights.stretches()
        for stretch in stretches:
            carry, losses = graph_of(stretch.path)(model, carry, batch, stretch, leaf)
            losses.total.backward()
            before.append(replace(losses, total=losses.total.detach()))
        return last_graph_of(weights.path)(model, carry, batch, min_steps, last, leaf, before)

    return segment


def _run_stretch(
    cell_loss: CellLoss,
    num_puzzles: int,
    model: TinyRecursiveModel,
    carry: Carry,
    batch: Batch,
    weights: CycleWeights,
    puzzle_leaf: Tensor | None,
) -> tuple[Carry, StretchLosses]:
    output = model(carry, batch, weights.path, puzzle_leaf=puzzle_leaf)
    return output.carry.within_segment(), stretch_losses(output, weights, cell_loss, num_puzzles)


def _run_last(
    cell_loss: CellLoss,
    num_puzzles: int,
    model: TinyRecursiveModel,
    carry: Carry,
    batch: Batch,
    min_steps: Tensor,
    weights: CycleWeights,
    puzzle_leaf: Tensor | None,
    before: Sequence[StretchLosses],
) -> SegmentResult:
    output = model(carry, batch, weights.path, min_steps, puzzle_leaf)
    losses = segment_losses(output, weights, cell_loss, num_puzzles, before)
    sums = segment_sums(output, losses)
    # In one tensor: of a loss that goes out under two names, as a baseline's does, inductor may lose the gradient.
    with torch.no_grad():
        values = torch.stack([value.double() for value in sums.values()])
    return SegmentResult(losses.total, output.carry, output.puzzle_leaf, tuple(sums), values)


def compiled_graph(function: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """Compile a function into one graph, or raise at its first call; other shapes of its tensors need another."""
    options = {"fullgraph": True, "dynamic": False, "backend": BACKEND, "mode": mode}
    # Isolated: a graph of its own, of however many runs there are in a process.
    return torch.compile(function, isolate_recompiles=True, **options)  # type: ignore[call-overload]


def _compiled(body: _Last, device: torch.device, adds_up: bool) -> _Last:
    if device.type != "cuda" or adds_up:
        return compiled_graph(body)
    graph = compiled_graph(body, "reduce-overhead")

    def replayed(*inputs: object) -> SegmentResult:
        torch.compiler.cudagraph_mark_step_begin()
        result = graph(*inputs)
        # A CUDA graph writes to the same memory at every step, and the carry outlives its own.
        return replace(result, carry=result.carry.each(torch.clone))

    return replayed


def compiles(setting: bool | str, device: torch.device) -> bool:
    """Decide whether a run's segments are compiled.

    Args:
        setting: `compile` of the config. `auto` compiles on a GPU that has what it takes; a CPU gains too little.

    Raises:
        ValueError: it is to compile, and there is nothing to compile with.
    """
    missing = _missing_for(device)
    if setting == "auto":
        return device.type == "cuda" and missing is None
    if setting and missing:
        raise ValueError(f"compile=true needs {missing}, which is not there; install it, or use compile=false")
    return bool(setting)


def _missing_for(device: torch.device) -> str | None:
    """Name what compiling for a device lacks: torch writes C++ for a CPU, and for a GPU Triton's launchers in C."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    language, variable, names = ("C", "CC", ("cc", "gcc", "clang"))
    if device.type != "cuda":
        language, variable, names = ("C++", "CXX", ("c++", "g++", "clang++"))
    found = any(map(shutil.which, (os.environ.get(variable, ""), *names)))
    return None if found else f"a {language} compiler"
