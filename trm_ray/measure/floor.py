"""The least time that a step takes on a machine: its multiplications, and the bytes that they must move.

Both rates are measured, on the wall on a GPU, else in processor time, as if each thread had a core of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from trm_ray.config import Config
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.layers import Linear, swiglu_inner_size
from trm_ray.training.state import TokenShape

_ROUNDS = 5


# ---- rates -----------------------------------------------------------------------------------------------


@torch.no_grad()
def machine_rate(device: torch.device, dtype: torch.dtype, threads: int, min_s: float = 0.5) -> float:
    """Measure the FLOP/s of a large matrix multiplication as the model's layers do it in this dtype.

    Takes the best of several rounds. Sets this process's number of threads.
    """
    size = 8192 if device.type == "cuda" else 1024
    linear = Linear(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    x = torch.ones(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / _best_s(lambda: linear(x), device, threads, min_s)


def machine_bandwidth(device: torch.device, threads: int, min_s: float = 0.5) -> float:
    """Measure the bytes a second that a copy reads and writes together, too large for any cache.

    Takes the best of several rounds. Sets this process's number of threads.
    """
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _best_s(lambda: target.copy_(source), device, threads, min_s)


def _best_s(function: Callable[[], Any], device: torch.device, threads: int, min_s: float) -> float:
    torch.set_num_threads(threads)
    function()
    return min(_seconds_a_call(function, device, threads, min_s / _ROUNDS) for _ in range(_ROUNDS))


def _seconds_a_call(function: Callable[[], Any], device: torch.device, threads: int, min_s: float) -> float:
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    calls, began = 0, clock()
    while clock() - began < min_s or calls == 0:
        function()
        wait_for(device)
        calls += 1
    return (clock() - began) / calls / (1 if device.type == "cuda" else threads)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- bytes -----------------------------------------------------------------------------------------------


def step_bytes(config: Config, tokens: TokenShape, path: GradientPath, num_weights: int) -> float:
    """Count the bytes that a step's matrix multiplications and its update move; `step_flops` counts the operations.

    A product of (r, n) by (n, m) moves r·n + n·m + r·m numbers once, and in the backward pass twice as many; attention
    moves query, key, value and result, never the scores. Whatever stands between products moves nothing: it can be
    done along with them. The update reads and writes weights, gradients, two moments and the average.
    """
    arch, rows = config.arch, config.global_batch_size
    positions, width = arch.prefix_len + tokens.seq_len, arch.hidden_size
    block = _mixer_numbers(config, positions) + _swiglu_numbers(config, rows * positions, width)
    stack, num_cycles = ((path.L_cycles or arch.L_cycles) + 1) * arch.L_layers * block, len(path.supervised)
    head = _product(rows * tokens.seq_len, width, tokens.vocab_size)
    numbers = (num_cycles + 2 * sum(path.with_gradient)) * stack + (num_cycles + 2 * sum(path.supervised)) * head
    number = config.segments_per_update * getattr(torch, arch.forward_dtype).itemsize
    return float(number * numbers + 4 * (10 if config.ema else 8) * num_weights)


def _product(rows: int, inputs: int, outputs: int) -> int:
    return rows * inputs + inputs * outputs + rows * outputs


def _mixer_numbers(config: Config, positions: int) -> int:
    rows, width = config.global_batch_size, config.arch.hidden_size
    if config.arch.mixer == "mlp":
        return _swiglu_numbers(config, rows * width, positions)
    cells = rows * positions
    return _product(cells, width, 3 * width) + 4 * cells * width + _product(cells, width, width)


def _swiglu_numbers(config: Config, rows: int, size: int) -> int:
    inner = swiglu_inner_size(size, config.arch.expansion, config.arch.ffn_multiple_of)
    return _product(rows, size, 2 * inner) + _product(rows, inner, size)
