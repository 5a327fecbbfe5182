"""Building blocks of the TRM: linear maps, norms, rotary positions, attention, SwiGLU and the two mixers.

Weights may be swapped for low-precision copies during a segment (see `TinyRecursiveModel`), so a layer never casts its
own weights; it computes in the dtype of its input.

Element-wise work is written twice. Eagerly it runs in hand-written functions with gradients of their own, in few passes
over memory; a compiler cannot look into those, so it is given composed operations, which it fuses by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trm_ray.model.cache import Past

MixerNorm = Literal["positions", "features"]
# Whom each position looks at, (B, 1, L, L), or what was seen before these positions; None leaves it to the layer.
Mask = Tensor | Past | None

# A normal truncated at ±2 has this standard deviation; dividing by it restores the one asked for.
_TRUNCATED_STD = 0.87962566103423978


def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Fill `tensor` from a normal truncated at two sigmas whose standard deviation after truncation is `std`.

    Source: the initialiser of JAX and Flax, which the original TRM uses; PyTorch's own leaves `std` uncorrected.
    """
    sigma = std / _TRUNCATED_STD
    return nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma, generator=generator)


class Linear(nn.Module):
    """A linear map with LeCun truncated-normal weights, scaled by `init_scale`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator,
        bias: bool = False,
        init_scale: float = 1.0,
    ):
        super().__init__()
        weight = torch.empty(out_features, in_features)
        self.weight = nn.Parameter(truncated_normal_(weight, init_scale / math.sqrt(in_features), generator))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        return linear(x, self.weight, self.bias)

    def over_positions(self, x: Tensor) -> Tensor:
        """Map (B, in_features, D) to (B, out_features, D): the same map over the middle axis, without transposing."""
        assert self.bias is None, "biases are added over the last axis"
        return _multiplied(torch.bmm, self.weight.expand(len(x), -1, -1), x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map (…, in) to (…, out) by a weight (out, in)."""
    return _multiplied(F.linear, x, weight, bias)


def _multiplied(product: Callable[..., Tensor], *operands: Tensor | None) -> Tensor:
    """Multiply in the operands' dtype, or in float32 where this CPU is slow at bfloat16."""
    dtype, device = operands[0].dtype, operands[0].device  # type: ignore[union-attr]
    if dtype == torch.bfloat16 and device.type == "cpu" and not _BFLOAT16_UNITS:
        return product(*(None if operand is None else operand.float() for operand in operands)).to(dtype)
    return product(*operands)


def _cpu_multiplies_bfloat16() -> bool:
    """Tell whether this CPU has bfloat16 units.

    Without them PyTorch's bfloat16 products are tens of times slower than its float32 ones, and going through float32
    gives the same: products of bfloat16 values, summed in float32.
    """
    description = Path("/proc/cpuinfo")
    if not description.exists():  # not Linux; Apple's processors have them
        return True
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(description.read_text().split())


# Read once, and not while a step is compiled, which would look into the function.
_BFLOAT16_UNITS = _cpu_multiplies_bfloat16()


class _ResidualNorm(torch.autograd.Function):
    """RMS norm of x + update over an axis, without gain, in fewer passes over memory than composed operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, dim: int, eps: float) -> Tensor:
        total = (x + update).float()
        scale = total.square().mean(dim, keepdim=True).add_(eps).rsqrt_()
        normed = total.mul_(scale).to(x.dtype)
        ctx.save_for_backward(normed, scale)
        ctx.dim = dim
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        normed, scale = ctx.saved_tensors  # read once: a checkpointed cycle gives them once
        dtype = normed.dtype
        grad, normed = grad.float(), normed.float()
        along = (grad * normed).mean(ctx.dim, keepdim=True)
        grad = torch.addcmul(grad, normed, along, value=-1).mul_(scale).to(dtype)
        return grad, grad, None, None


def residual_norm(x: Tensor, update: Tensor, eps: float, dim: int = -1) -> Tensor:
    """Add an update and divide by the root mean square over an axis, in float32; no gain."""
    if torch.compiler.is_compiling():
        return _composed_residual_norm(x, update, eps, dim)
    return _ResidualNorm.apply(x, update, dim, eps)


def _composed_residual_norm(x: Tensor, update: Tensor, eps: float, dim: int) -> Tensor:
    total = (x + update).float()
    return (total * (total.square().mean(dim, keepdim=True) + eps).rsqrt()).to(x.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the features, in float32; no gain."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


class Rotary(nn.Module):
    """Rotary position tables (Su et al., arXiv 2104.09864), shared by all attention layers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, num_positions: int, theta: float):
        super().__init__()
        # Written as the original writes it: a negative power rounds otherwise, 1e-5 in the cosines of far positions.
        frequencies = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, begin: int = 0) -> Tensor:
        """Rotate (B, heads, L, head_size) by position, the first of which is `begin`, in float32."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        cos, sin = (table.narrow(0, begin, x.shape[2]) for table in (self.cos, self.sin))
        return (x * cos + turned * sin).to(x.dtype)


class _SiLUGate(torch.autograd.Function):
    """silu(gate) · up, both halves of an axis; the backward fills one buffer instead of concatenating two halves."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.dim = dim
        gate, up = gate_up.chunk(2, dim)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, ctx.dim)
        grads = torch.empty_like(gate_up)
        grad_gate, grad_up = grads.chunk(2, ctx.dim)
        torch.mul(F.silu(gate), grad, out=grad_up)
        torch.mul(grad, up, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grads, None


def silu_gate(gate_up: Tensor, dim: int) -> Tensor:
    """Multiply one half of an axis by the SiLU of the other: silu(gate) · up."""
    return _composed_silu_gate(gate_up, dim) if torch.compiler.is_compiling() else _SiLUGate.apply(gate_up, dim)


def _composed_silu_gate(gate_up: Tensor, dim: int) -> Tensor:
    gate, up = gate_up.chunk(2, dim)
    return F.silu(gate) * up


class SwiGLU(nn.Module):
    """Gated feed-forward: down(silu(gate(x)) · up(x)), over the features or over the positions."""

    def __init__(self, size: int, inner_size: int, *, generator: torch.Generator, residual_init_scale: float = 1.0):
        super().__init__()
        self.gate_up_proj = Linear(size, 2 * inner_size, generator=generator)
        self.down_proj = Linear(inner_size, size, generator=generator, init_scale=residual_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, size) to (…, size)."""
        return self.down_proj(silu_gate(self.gate_up_proj(x), -1))

    def over_positions(self, x: Tensor) -> Tensor:
        """Map (B, size, D) to (B, size, D), the same map over the middle axis."""
        return self.down_proj.over_positions(silu_gate(self.gate_up_proj.over_positions(x), 1))


def swiglu_inner_size(size: int, expansion: float, multiple_of: int) -> int:
    """Round expansion·size·2/3 up to a multiple, as the original does with 256."""
    return -(-round(expansion * size * 2 / 3) // multiple_of) * multiple_of


class AttentionMixer(nn.Module):
    """Post-norm residual of multi-head attention over the positions.

    Args:
        causal: no position looks at a later one.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        rotary: Rotary | None,
        eps: float,
        generator: torch.Generator,
        residual_init_scale: float = 1.0,
        causal: bool = False,
    ):
        super().__init__()
        self.num_heads, self.rotary, self.eps, self.causal = num_heads, rotary, eps, causal
        self.qkv_proj = Linear(hidden_size, 3 * hidden_size, generator=generator)
        self.o_proj = Linear(hidden_size, hidden_size, generator=generator, init_scale=residual_init_scale)

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Mix (B, L, D) over L; arguments as those of `update`."""
        return residual_norm(x, self.update(x, mask), self.eps)

    def update(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Compute what the residual adds.

        Args:
            mask: (B, 1, L, L) whom each position looks at, in place of `causal`'s own, which needs none in memory; or
                the past that these positions come after.
        """
        batch, length, size = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.num_heads, size // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        begin = mask.first if isinstance(mask, Past) else 0
        if self.rotary is not None:
            query, key = self.rotary(query, begin), self.rotary(key, begin)
        if isinstance(mask, Past):
            (key, value), mask = mask.extended(key, value), mask.mask
        whole = self.causal and mask is None
        attention = functools.partial(F.scaled_dot_product_attention, attn_mask=mask, is_causal=whole)
        mixed = _multiplied(attention, query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, size))


class MLPMixer(nn.Module):
    """Post-norm residual of a SwiGLU over the positions.

    Args:
        norm: the axis that the norm runs over; the original's are the `positions`.
    """

    def __init__(
        self,
        num_positions: int,
        inner_size: int,
        *,
        eps: float,
        generator: torch.Generator,
        norm: MixerNorm = "positions",
        residual_init_scale: float = 1.0,
    ):
        super().__init__()
        self.eps, self.norm_dim = eps, {"positions": 1, "features": 2}[norm]
        self.mlp = SwiGLU(num_positions, inner_size, generator=generator, residual_init_scale=residual_init_scale)

    def forward(self, x: Tensor, mask: None = None) -> Tensor:
        """Mix (B, L, D) over L, all positions with all."""
        return residual_norm(x, self.mlp.over_positions(x), self.eps, dim=self.norm_dim)


class Block(nn.Module):
    """One layer: a mixer over the positions, then a SwiGLU over the features, both post-norm."""

    mixer: nn.Module

    def __init__(self, mixer: nn.Module, mlp: SwiGLU, eps: float):
        super().__init__()
        self.mixer, self.mlp, self.eps = mixer, mlp, eps

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Map (B, L, D) to (B, L, D), where a mask (B, 1, L, L) says whom a position looks at."""
        x = self.mixer(x, mask)
        return residual_norm(x, self.mlp(x), self.eps)


class PreNormBlock(Block):
    """The same with a norm before each part and none after, so that what goes in comes out with something added."""

    mixer: AttentionMixer

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        x = x + self.mixer.update(rms_norm(x, self.eps), mask)
        return x + self.mlp(rms_norm(x, self.eps))


class Stack(nn.Sequential):
    """Blocks one after the other.

    Args:
        exit_eps: of a norm at the end, which pre-norm blocks need: without it a recursion's states grow at every turn.
    """

    def __init__(self, exit_eps: float | None = None):
        super().__init__()
        self.exit_eps = exit_eps

    def forward(self, x: Tensor, mask: Mask = None) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        for block in self:
            x = block(x, mask)
        return x if self.exit_eps is None else rms_norm(x, self.exit_eps)
