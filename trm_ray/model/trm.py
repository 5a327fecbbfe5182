"""The Tiny Recursive Model: one small network that refines its answer by recursion (arXiv 2510.04871)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from trm_ray.model.cache import Past
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.layers import Block, Linear, Mask, PreNormBlock, Stack, SwiGLU, linear, truncated_normal_
from trm_ray.model.puzzle_embedding import PuzzleEmbedding
from trm_ray.model.unread import Unread


@dataclass(frozen=True)
class Batch:
    """Puzzles: inputs and labels (B, L) token ids, puzzle_identifiers (B,); labels of −100 do not count."""

    inputs: Tensor
    labels: Tensor
    puzzle_identifiers: Tensor

    def to(self, device: torch.device) -> Batch:
        """Copy to a device without waiting for the copy."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, function: Callable[..., Tensor], *others: Batch) -> Batch:
        """Apply a function to each tensor, together with that of the other batches."""
        parts = ([getattr(batch, field.name) for field in fields(self)] for batch in (self, *others))
        return Batch(*map(function, *parts))

    def __len__(self) -> int:
        return self.inputs.shape[0]


@dataclass(frozen=True)
class Carry:
    """What passes from one segment to the next: detached states and the puzzles they belong to.

    answer, latent: (B, P + L, D), P positions of the puzzle embedding. steps: (B,) segments spent on the puzzle.
    halted: (B,) rows to be replaced at the next segment. puzzles: what each row is working on, which differs from the
    batch of the step.
    """

    answer: Tensor
    latent: Tensor
    steps: Tensor
    halted: Tensor
    puzzles: Batch

    def each(self, function: Callable[[Tensor], Tensor]) -> Carry:
        """Apply a function to each tensor."""
        answer, latent, steps, halted = map(function, (self.answer, self.latent, self.steps, self.halted))
        return Carry(answer, latent, steps, halted, self.puzzles.each(function))

    def within_segment(self) -> Carry:
        """Go on with more cycles of the same segment: no row is replaced, and nothing is counted twice."""
        return replace(self, steps=self.steps - 1, halted=torch.zeros_like(self.halted))


@dataclass(frozen=True)
class SegmentOutput:
    """One segment: logits (B, L, V) of every H-cycle, halt logits (B,) in float32, and the carry for the next.

    The logits have a gradient where their cycle is supervised; those of a text are yet to be computed.

    puzzle_leaf: (B, ndim) whose gradient, filled in by a backward pass, is that of the puzzles' rows of the embedding.
    """

    cycle_logits: tuple[Tensor | Unread, ...]
    halt_logits: Tensor
    carry: Carry
    puzzle_leaf: Tensor | None = None


# Logits of every cycle, halt logits, the answer and the latent after the last cycle.
_Recursed = tuple[tuple[Tensor | Unread, ...], Tensor, Tensor, Tensor]


def _choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Select whole rows by a mask (B,)."""
    return torch.where(mask.view(-1, *(1,) * (no.dim() - 1)), yes, no)


class TinyRecursiveModel(nn.Module):
    """A TRM with a stack of `L_layers` blocks that updates both the latent and the answer.

    Args:
        mixers: one mixer a layer, each mapping (B, L, D) to (B, L, D) under a mask or none.
        inner_size: width of the SwiGLU over the features.
        puzzle_embedding: what lies before the board; the mixers must know its positions.
        learned_positions: add a learned vector a position to the question.
        causal: the mixers are, and the rows are texts: their logits are left to whoever reads them, and every row gets
            `halt_max_steps` segments, as no answer is ever right as a whole.
        separator: the token that opens a document of a text; attention then stays within each document.
        pre_norm: norms before the parts of a block and at the end of the stack, instead of after each part.
        embedding_size: width of the token embedding, projected to `hidden_size` where it differs.
        freeze_embeddings: leave the token embedding as it is.
        tied_embeddings: read the answer by the token embedding, without a head of its own.
        residual_init_scale: scales the initial weights of the output projections; 1 is the original.
        checkpoint_cycles: keep of each H-cycle only what it begins with, and compute it again in the backward pass;
            where the gradient runs through one cycle alone there is nothing to save.
        forward_dtype: dtype of the recursion; weights of another are cast once a segment, also after `half()`.

    Source: the original's `TinyRecursiveReasoningModel_ACTV1`, whose state it can hold.
    """

    answer_init: Tensor
    latent_init: Tensor

    def __init__(
        self,
        *,
        vocab_size: int,
        seq_len: int,
        hidden_size: int,
        mixers: list[nn.Module],
        inner_size: int,
        H_cycles: int,
        L_cycles: int,
        halt_max_steps: int,
        puzzle_embedding: PuzzleEmbedding | None = None,
        learned_positions: bool = False,
        causal: bool = False,
        separator: int | None = None,
        pre_norm: bool = False,
        embedding_size: int | None = None,
        freeze_embeddings: bool = False,
        tied_embeddings: bool = False,
        eps: float = 1e-5,
        residual_init_scale: float = 1.0,
        checkpoint_cycles: bool = False,
        forward_dtype: torch.dtype = torch.float32,
        generator: torch.Generator,
    ):
        super().__init__()
        self.seq_len, self.hidden_size = seq_len, hidden_size
        self.H_cycles, self.L_cycles, self.halt_max_steps = H_cycles, L_cycles, halt_max_steps
        self.checkpoint_cycles = checkpoint_cycles
        self.forward_dtype = forward_dtype
        self.causal, self.separator = causal, separator
        width = embedding_size or hidden_size
        self.embed_scale = math.sqrt(width)

        def embedding(rows: int, size: int) -> nn.Parameter:
            return nn.Parameter(truncated_normal_(torch.empty(rows, size), 1 / self.embed_scale, generator))

        self.embed_tokens = embedding(vocab_size, width).requires_grad_(not freeze_embeddings)
        self.embed_proj = None if width == hidden_size else Linear(width, hidden_size, generator=generator)
        self.puzzle_embedding = puzzle_embedding
        self.prefix_len = 0 if puzzle_embedding is None else puzzle_embedding.prefix_len
        self.embed_positions = embedding(self.prefix_len + seq_len, hidden_size) if learned_positions else None
        self.blocks = Stack(eps if pre_norm else None)
        for mixer in mixers:
            mlp = SwiGLU(hidden_size, inner_size, generator=generator, residual_init_scale=residual_init_scale)
            self.blocks.append((PreNormBlock if pre_norm else Block)(mixer, mlp, eps))
        self.lm_head = None if tied_embeddings else Linear(hidden_size, vocab_size, generator=generator)
        # Two outputs, as the original's halt and continue; only the first is trained. It begins at "never halt".
        self.q_head = Linear(hidden_size, 2, bias=True, generator=generator)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.get_parameter("bias"), -5.0)
        self.register_buffer("answer_init", truncated_normal_(torch.empty(hidden_size), 1.0, generator))
        self.register_buffer("latent_init", truncated_normal_(torch.empty(hidden_size), 1.0, generator))
        # In a tuple, since as a submodule it would name every weight twice.
        self._recursion = (_Recursion(self),)

    def initial_carry(self, batch: Batch) -> Carry:
        """Begin with every row halted, so that the first segment takes the batch's puzzles.

        No two of its tensors are one, which a compiled graph would take for a property of every carry.
        """
        rows, length, device = len(batch), self.prefix_len + self.seq_len, batch.inputs.device
        state = torch.zeros(rows, length, self.hidden_size, dtype=self.forward_dtype, device=device)
        steps = torch.zeros(rows, dtype=torch.int32, device=device)
        halted = torch.ones_like(steps, dtype=torch.bool)
        return Carry(state, state.clone(), steps, halted, batch.each(torch.clone))

    @property
    def head(self) -> Tensor:
        """The weight (V, D) that reads an answer."""
        return self.embed_tokens if self.lm_head is None else self.lm_head.weight

    def puzzle_leaf(self, num_rows: int) -> Tensor | None:
        """Make the leaf of the puzzle embedding for a segment; None without one."""
        return None if self.puzzle_embedding is None else self.puzzle_embedding.leaf(num_rows)

    def forward(
        self,
        carry: Carry,
        batch: Batch,
        path: GradientPath | None = None,
        min_steps: Tensor | None = None,
        puzzle_leaf: Tensor | None = None,
    ) -> SegmentOutput:
        """Run one segment, or a stretch of one.

        Args:
            batch: puzzles for the rows that have halted; the others go on with their own.
            path: how many cycles there are and which have a gradient; without it all of the model's, and only the
                last has one. Of a detached one its stretches are run, one after the other.
            min_steps: (B,) fewest segments before the halt head may stop a row; without it (evaluation) every row
                goes on to `halt_max_steps`.
            puzzle_leaf: made by `puzzle_leaf` if not given; a graph must be given it, since it cannot make leaves.
        """
        path = path or GradientPath.last(self.H_cycles)
        assert not path.detached, "its stretches are run"
        carry = self._refill(carry, batch)
        leaf, rows = self.puzzle_leaf(len(batch)) if puzzle_leaf is None else puzzle_leaf, None
        if self.puzzle_embedding is not None and leaf is not None:
            rows = self.puzzle_embedding.rows(carry.puzzles.puzzle_identifiers, leaf)
        inputs = carry.puzzles.inputs
        cycle_logits, halt_logits, answer, latent = self._recur(inputs, rows, carry.answer, carry.latent, path)
        steps = carry.steps + 1
        halted = steps >= self.halt_max_steps
        if min_steps is not None and not self.causal:
            halted = halted | ((halt_logits.detach() > 0) & (steps >= min_steps))
        after = replace(carry, answer=answer.detach(), latent=latent.detach(), steps=steps, halted=halted)
        return SegmentOutput(cycle_logits, halt_logits, after, leaf)

    def extend(self, past: Past, tokens: Tensor, num_cycles: int) -> Unread:
        """Read the tokens (B, n) of texts that come after a past, to which they are added.

        Args:
            num_cycles: H-cycles, of all segments: where one ends and the next begins nothing changes.

        Returns:
            What is to be read of them after the last cycle.
        """
        assert self.causal, "what comes later must not matter"
        past.begin(tokens)
        begin = (self.answer_init.to(self.forward_dtype), self.latent_init.to(self.forward_dtype))
        answer, latent = (state.expand(*tokens.shape, -1) for state in begin)
        read, *_ = self._recur(tokens, None, answer, latent, GradientPath.last(num_cycles), past)
        assert isinstance(read[-1], Unread)
        return read[-1]

    def _refill(self, carry: Carry, batch: Batch) -> Carry:
        """Give halted rows the batch's puzzle and the initial state."""
        return replace(
            carry,
            answer=_choose(carry.halted, self.answer_init.to(self.forward_dtype), carry.answer),
            latent=_choose(carry.halted, self.latent_init.to(self.forward_dtype), carry.latent),
            steps=carry.steps.masked_fill(carry.halted, 0),
            puzzles=batch.each(lambda new, old: _choose(carry.halted, new, old), carry.puzzles),
        )

    def _recur(
        self,
        inputs: Tensor,
        rows: Tensor | None,
        answer: Tensor,
        latent: Tensor,
        path: GradientPath,
        past: Past | None = None,
    ) -> _Recursed:
        (recursion,) = self._recursion
        arguments = (inputs, rows, answer, latent, path, past)
        if self.embed_tokens.dtype == self.forward_dtype:
            return recursion(*arguments)
        # One cast a weight and segment; the recursion uses each weight H_cycles·(L_cycles + 1) times.
        weights = {name: weight.to(self.forward_dtype) for name, weight in recursion.named_parameters()}
        return functional_call(recursion, weights, arguments)


class _Cycle(nn.Module):
    """One H-cycle: from answer, latent and question to the next answer and latent and what is to be read.

    That are the logits, or of a text the states of its tokens.
    """

    def __init__(self, model: TinyRecursiveModel):
        super().__init__()
        self.model = model

    def forward(
        self, answer: Tensor, latent: Tensor, question: Tensor, mask: Mask, L_cycles: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update the latent `L_cycles` times and the answer once; without a latent update, by the question itself."""
        model = self.model
        injected = answer + question
        for _ in range(L_cycles):
            latent = model.blocks(latent + injected, mask)
        answer = model.blocks(answer + latent if L_cycles else injected, mask)
        states = answer.narrow(1, model.prefix_len, answer.shape[1] - model.prefix_len)
        return answer, latent, states if model.causal else linear(states, model.head)


class _Recursion(nn.Module):
    """The recursion itself, as a module of its own so that its weights can be swapped for a segment."""

    def __init__(self, model: TinyRecursiveModel):
        super().__init__()
        self.model = model
        self._cycle = (_Cycle(model),)  # in a tuple: swapped under two names, no weight would come back

    def forward(
        self,
        inputs: Tensor,
        rows: Tensor | None,
        answer: Tensor,
        latent: Tensor,
        path: GradientPath,
        past: Past | None = None,
    ) -> _Recursed:
        """Run the H-cycles, on tokens that come after a `past` if there is one."""
        model = self.model
        question, mask = self._embed(inputs, rows), self._mask(inputs) if past is None else past
        again, read = model.checkpoint_cycles and path.depth > 1, []
        L_cycles = path.L_cycles or model.L_cycles
        for supervised, with_gradient in zip(path.supervised, path.with_gradient, strict=True):
            with torch.set_grad_enabled(torch.is_grad_enabled() and with_gradient):
                run = self._checkpointed if again and torch.is_grad_enabled() else self._cycle[0]
                answer, latent, seen = run(answer, latent, question, mask, L_cycles)
                read.append(seen if supervised else seen.detach())
        halt_logits = model.q_head(answer.select(1, 0)).select(1, 0).float()
        if model.causal:
            return tuple(Unread(states, model.head) for states in read), halt_logits, answer, latent
        return tuple(read), halt_logits, answer, latent

    def _checkpointed(
        self, answer: Tensor, latent: Tensor, question: Tensor, mask: Mask, L_cycles: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        # As they are now: swapped weights are the old ones again when the backward pass runs the cycle once more.
        (cycle,) = self._cycle
        weights: dict[str, Tensor] = dict(cycle.named_parameters())

        def run(*states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            updated: tuple[Tensor, Tensor, Tensor] = functional_call(cycle, weights, (*states, mask, L_cycles))
            return updated

        again: tuple[Tensor, Tensor, Tensor] = checkpoint(
            run, answer, latent, question, use_reentrant=False, preserve_rng_state=False
        )
        return again

    def _embed(self, inputs: Tensor, rows: Tensor | None) -> Tensor:
        model = self.model
        question = nn.functional.embedding(inputs, model.embed_tokens)
        if model.embed_proj is not None:
            question = model.embed_proj(question)
        if rows is not None and model.puzzle_embedding is not None:
            question = torch.cat((model.puzzle_embedding.prefix(rows.to(question.dtype)), question), dim=1)
        if model.embed_positions is not None:
            question = math.sqrt(0.5) * (question + model.embed_positions)
        return model.embed_scale * question

    def _mask(self, inputs: Tensor) -> Tensor | None:
        """Say whom each position looks at, (B, 1, L, L): itself and those before it in its own document."""
        if self.model.separator is None:
            return None
        document = (inputs == self.model.separator).cumsum(1)
        return (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1)
