"""Logits that are computed where they are read, a chunk of tokens at a time: a large vocabulary's fit no memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trm_ray.model.layers import linear

# Logits at once, over all tokens of a chunk: 32 MiB in float32, of which a loss and its gradient take a few.
CHUNK = 2**23
# A compiler writes every chunk out: more than so many of them take minutes to compile, so there they are larger.
GRAPH_CHUNKS = 16


class _Recomputed(torch.autograd.Function):
    """A function of states and head whose backward pass applies it once more, so that only its inputs are kept.

    `checkpoint` does the same, and loads torch's compiler for it: 2 s and 70 MB of every process that trains.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], states: Tensor, head: Tensor, *others: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(states, head, *others)
        return function(states, head, *others)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *_, needs_states, needs_head = ctx.needs_input_grad[:3]
        states, head, *others = ctx.saved_tensors
        inputs = states.detach().requires_grad_(needs_states), head.detach().requires_grad_(needs_head)
        with torch.enable_grad():
            total = (ctx.function(*inputs, *others) * grad).sum()  # a number, as for others torch imports sympy
        grads = iter(torch.autograd.grad(total, [one for one in inputs if one.requires_grad]))
        return None, *(next(grads) if one.requires_grad else None for one in inputs), *(None for _ in others)


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function to states, head and others and keep only these; a compiler gets what it can look into."""
    if torch.compiler.is_compiling():
        again: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return again
    return _Recomputed.apply(function, *inputs)


@dataclass(frozen=True)
class Unread:
    """The states of a text's tokens (B, L, D) and the head (V, D) that makes logits (B, L, V) of them."""

    states: Tensor
    head: Tensor

    def detach(self) -> Unread:
        """Leave the gradient behind."""
        return Unread(self.states.detach(), self.head.detach())

    def each(self, function: Callable[..., Tensor], *of_tokens: Tensor) -> Tensor:
        """Apply a function token by token: (B, L), or (B, L, …) if it has several numbers for each.

        A backward pass computes a chunk's logits anew, so that of all chunks and cycles one is in memory.

        Args:
            function: from logits (1, n, V), and what it is given of their tokens, (1, n) each, to (1, n) or (1, n, …).
            of_tokens: (B, L) each.
        """

        def of_chunk(states: Tensor, head: Tensor, *others: Tensor) -> Tensor:
            return function(linear(states, head), *others)

        rows = max(1, CHUNK // len(self.head))
        if torch.compiler.is_compiling():
            rows = max(rows, -(-self.states[..., 0].numel() // GRAPH_CHUNKS))
        split = (whole.flatten(0, 1).unsqueeze(0).split(rows, 1) for whole in (self.states, *of_tokens))
        chunks = zip(*split, strict=True)
        learns = torch.is_grad_enabled() and (self.states.requires_grad or self.head.requires_grad)
        run = functools.partial(_recomputed, of_chunk) if learns else of_chunk
        found = torch.cat([run(states, self.head, *others) for states, *others in chunks], 1)
        return found.view(*self.states.shape[:2], *found.shape[2:])

    def argmax(self, dim: int) -> Tensor:
        """Name each token's likeliest successor, (B, L); of the vocabulary, the last dimension, alone."""
        assert dim == -1, "the dimension of the vocabulary"
        with torch.no_grad():
            return self.each(lambda logits: logits.argmax(-1))

    def float(self) -> Tensor:
        """Compute all logits, in float32."""
        return linear(self.states, self.head).float()
