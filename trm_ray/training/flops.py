"""What training computes, counted: the operations of a step's matrix multiplications."""

from __future__ import annotations

from trm_ray.config import Config
from trm_ray.model.layers import swiglu_inner_size
from trm_ray.training.state import TokenShape


def train_flops(config: Config, tokens: TokenShape, steps: int, num_supervised: int) -> float:
    """Count the operations of `steps` steps over all workers, of which so many supervise every H-cycle.

    Evaluations and gradient statistics are left out.
    """
    plain, full = (step_flops(config, tokens, supervised=every) for every in (False, True))
    return (steps - num_supervised) * plain + num_supervised * full


def step_flops(config: Config, tokens: TokenShape, *, supervised: bool) -> float:
    """Count the multiplications and additions of a step's matrix multiplications; everything else is left out.

    With M = multiply-adds a row of the batch in one pass through the stack and the head's D·V a cell once a cycle,
    and B the rows of all its segments,

        forward  = 2·B·H·((L + 1)·M + cells·D·V)
        backward = 2 × the forward of the cycles that carry gradient: all if `supervised`, else the last.
    """
    arch, positions = config.arch, config.arch.prefix_len + tokens.seq_len
    stack = arch.L_layers * (_mixer_macs(config, positions) + positions * _swiglu_macs(config, arch.hidden_size))
    cycle = (arch.L_cycles + 1) * stack + tokens.seq_len * arch.hidden_size * tokens.vocab_size
    with_gradient = arch.H_cycles if supervised else 1
    return 2.0 * config.global_batch_size * config.segments_per_update * cycle * (arch.H_cycles + 2 * with_gradient)


def _mixer_macs(config: Config, positions: int) -> int:
    """Count a mixer's multiply-adds: SwiGLU over positions, or four projections, the scores and their weighted sum."""
    hidden = config.arch.hidden_size
    if config.arch.mixer == "mlp":
        return hidden * _swiglu_macs(config, positions)
    return positions * (4 * hidden * hidden + 2 * positions * hidden)


def _swiglu_macs(config: Config, size: int) -> int:
    """Count a vector's multiply-adds in its three maps: gate, up and down."""
    return 3 * size * swiglu_inner_size(size, config.arch.expansion, config.arch.ffn_multiple_of)
