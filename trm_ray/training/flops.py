"""What training computes, counted: the operations of a step's matrix multiplications."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

from trm_ray.config import Config
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.layers import swiglu_inner_size
from trm_ray.training.state import TokenShape, build_supervision


def train_flops(config: Config, tokens: TokenShape, paths: Mapping[GradientPath, int]) -> float:
    """Count the operations of steps over all workers, so many of each path; evaluations and statistics are left out."""
    return sum(num_steps * step_flops(config, tokens, path) for path, num_steps in paths.items())


def affordable_steps(config: Config, tokens: TokenShape, most: int) -> int:
    """Count the steps, up to so many, whose operations come to `max_flops` at the most.

    Raises:
        ValueError: not one does.
    """

    def flops(num_steps: int) -> float:
        return train_flops(config, tokens, build_supervision(config, num_steps).paths(num_steps))

    assert config.max_flops is not None, "the operations are bounded"
    if (paid := bisect.bisect_right(range(1, most + 1), config.max_flops, key=flops)) == 0:
        raise ValueError(f"max_flops={config.max_flops:g} must be at least the {flops(1):.4g} of a step; use more")
    return paid


def step_flops(config: Config, tokens: TokenShape, path: GradientPath) -> float:
    """Count the multiplications and additions of a step's matrix multiplications; everything else is left out.

    With M = multiply-adds a row of the batch in one pass through the stack and the head's D·V a cell once a cycle,
    and B the rows of all its segments,

        forward  = 2·B·H·((L + 1)·M + cells·D·V)
        backward = 2 × the forward of the stack in the cycles with gradient, and of the head in the supervised ones.

    Cycles computed again are the same work: what a step is for, not how it is done. With L = 0 each cycle is one pass.
    """
    arch, positions = config.arch, config.arch.prefix_len + tokens.seq_len
    stack = arch.L_layers * (_mixer_macs(config, positions) + positions * _swiglu_macs(config, arch.hidden_size))
    head = tokens.seq_len * arch.hidden_size * tokens.vocab_size
    width = arch.embedding_size or arch.hidden_size
    projection = 0 if width == arch.hidden_size else positions * width * arch.hidden_size
    num_cycles, rows = len(path.supervised), config.global_batch_size * config.segments_per_update
    passes = (num_cycles + 2 * sum(path.with_gradient)) * ((path.L_cycles or arch.L_cycles) + 1) * stack
    return 2.0 * rows * (passes + (num_cycles + 2 * sum(path.supervised)) * head + 3 * projection)


def _mixer_macs(config: Config, positions: int) -> int:
    """Count a mixer's multiply-adds: SwiGLU over positions, or four projections, the scores and their weighted sum.

    A causal one has half as many scores, (L + 1) / 2 a position, also where a kernel computes all and masks some.
    """
    hidden = config.arch.hidden_size
    if config.arch.mixer == "mlp":
        return hidden * _swiglu_macs(config, positions)
    pairs = positions * (positions + 1) // 2 if config.arch.causal else positions * positions
    return positions * 4 * hidden * hidden + 2 * pairs * hidden


def _swiglu_macs(config: Config, size: int) -> int:
    """Count a vector's multiply-adds in its three maps: gate, up and down."""
    return 3 * size * swiglu_inner_size(size, config.arch.expansion, config.arch.ffn_multiple_of)
