"""Everything that a run is at a step: what a checkpoint holds and a resume restores."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from trm_ray.config import ArchConfig, Config
from trm_ray.model.layers import AttentionMixer, MLPMixer, Rotary, swiglu_inner_size
from trm_ray.model.puzzle_embedding import PuzzleEmbedding, sign_sgd
from trm_ray.model.trm import Batch, Carry, TinyRecursiveModel
from trm_ray.training.clock import PARTS
from trm_ray.training.inference import Forward, forward_of
from trm_ray.training.losses import LOSSES, CellLoss
from trm_ray.training.metrics import MetricSums, train_metric_names
from trm_ray.training.optim import AveragedWeights, FiniteGuard, build_optimizer, learning_rate
from trm_ray.training.segment import Segment, SegmentResult, build_segment, compiled_graph, compiles
from trm_ray.training.session import Session
from trm_ray.training.stopping import StopVotes
from trm_ray.training.supervision import Stage, Supervision


@dataclass(frozen=True)
class TokenShape:
    """What a model needs to know of its data: cells a puzzle, tokens in the vocabulary, puzzles with a name.

    separator: the token that opens each document of a text; None where there are no documents.
    """

    seq_len: int
    vocab_size: int
    num_puzzle_identifiers: int = 1
    separator: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How to train: the parts of a config that a step needs, as functions of the step where they change."""

    supervision: Supervision
    cell_loss: CellLoss
    segment: Segment
    forward: Forward | None
    rate_at: Callable[[int], float]
    puzzle_rate_at: Callable[[int], float]
    puzzle_weight_decay: float
    grad_clip_norm: float
    global_batch_size: int
    segments_per_update: int
    exploration_prob: float
    total_steps: int

    @property
    def puzzles_per_step(self) -> int:
        """Rows that a step computes on, over all workers; a puzzle that goes on counts in each of its segments."""
        return self.global_batch_size * self.segments_per_update


def total_steps(config: Config, groups: int, mean_puzzle_examples: float) -> int:
    """Count optimizer steps: epochs · groups · mean examples a puzzle / (global batch · segments), up to `max_steps`.

    Source: the original's `create_dataloader` / `init_train_state`.
    """
    caps = [] if config.max_steps is None else [config.max_steps]
    if config.epochs is not None:
        taken = config.global_batch_size * config.segments_per_update
        caps.append(int(config.epochs * groups * mean_puzzle_examples / taken))
    if min(caps) < 1:
        several = "" if config.segments_per_update == 1 else f" · segments_per_update={config.segments_per_update}"
        raise ValueError(
            f"epochs={config.epochs} gives no step: {groups} puzzles in batches of global_batch_size="
            f"{config.global_batch_size}{several}; use more epochs or a smaller batch"
        )
    return min(caps)


def build_model(config: Config, shape: TokenShape) -> TinyRecursiveModel:
    """Build the network of a config with weights drawn from its seed.

    Raises:
        ValueError: the data are a text and the model is not causal; or attention is to stay within documents, and the
            data do not tell where these begin.
    """
    check_text(config.arch, shape)
    arch, generator = config.arch, torch.Generator().manual_seed(config.seed)
    scale = arch.residual_init_scale
    common: dict[str, Any] = {"eps": arch.rms_norm_eps, "generator": generator, "residual_init_scale": scale}
    mixer = _mixer_of(arch, arch.prefix_len + shape.seq_len)
    return TinyRecursiveModel(
        vocab_size=shape.vocab_size,
        seq_len=shape.seq_len,
        hidden_size=arch.hidden_size,
        mixers=[mixer(**common) for _ in range(arch.L_layers)],
        inner_size=swiglu_inner_size(arch.hidden_size, arch.expansion, arch.ffn_multiple_of),
        H_cycles=arch.H_cycles,
        L_cycles=arch.L_cycles,
        halt_max_steps=arch.halt_max_steps,
        puzzle_embedding=_puzzle_embedding(arch, shape),
        learned_positions=arch.pos_encodings == "learned",
        causal=arch.causal,
        separator=shape.separator if arch.causal and arch.document_mask else None,
        pre_norm=arch.norm == "pre",
        embedding_size=arch.embedding_size,
        freeze_embeddings=arch.freeze_embeddings,
        tied_embeddings=arch.tied_embeddings,
        checkpoint_cycles=config.checkpoint_cycles is True,  # `auto` waits until its device is known
        forward_dtype=getattr(torch, arch.forward_dtype),
        **common,
    )


def check_text(arch: ArchConfig, shape: TokenShape) -> None:
    """Refuse a model that sees what it is to predict, and documents that nobody can tell apart."""
    if shape.separator is not None and not arch.causal:
        rule = "must be true for text: each label is the next token, which a model that is not causal sees"
        way_out = "use arch.causal=true arch.mixer=attention arch.pos_encodings=rope"
        raise ValueError(f"arch.causal=false {rule}; {way_out}")
    if arch.causal and arch.document_mask and shape.separator is None:
        rule = "needs a dataset whose dataset.json names the separator of its documents"
        raise ValueError(f"arch.document_mask=true {rule}; train on one, or use arch.document_mask=false")


def _mixer_of(arch: ArchConfig, positions: int) -> Callable[..., nn.Module]:
    """Choose what each layer mixes its positions by; all attention layers share the tables of their rotation."""
    if arch.mixer == "mlp":
        inner_size = swiglu_inner_size(positions, arch.expansion, arch.ffn_multiple_of)
        return functools.partial(MLPMixer, positions, inner_size, norm=arch.mixer_norm)
    rope, head_size = arch.pos_encodings == "rope", arch.hidden_size // arch.num_heads
    rotary = Rotary(head_size, positions, arch.rope_theta) if rope else None
    return functools.partial(AttentionMixer, arch.hidden_size, arch.num_heads, rotary=rotary, causal=arch.causal)


def _puzzle_embedding(arch: ArchConfig, shape: TokenShape) -> PuzzleEmbedding | None:
    if arch.puzzle_emb_ndim == 0:
        return None
    return PuzzleEmbedding(
        shape.num_puzzle_identifiers, arch.puzzle_emb_ndim, prefix_len=arch.prefix_len, hidden_size=arch.hidden_size
    )


def build_supervision(config: Config, num_steps: int | None = None) -> Supervision:
    """Build the scenario of a config; the stages of a depth curriculum are shares of `num_steps`."""
    assert num_steps is not None or config.depth_curriculum is None
    ramp = (config.curriculum_start_step, config.curriculum_end_step)
    depth, num_cycles = config.recurrent_grad_depth, config.arch.H_cycles
    return Supervision(
        enabled=config.deep_supervision_enabled,
        schedule=config.deep_supervision_schedule,
        weight=config.deep_supervision_weight,
        curriculum=ramp if config.curriculum_enabled else None,
        num_cycles=num_cycles,
        grad_depth=num_cycles if depth == "all" else depth,
        detached=config.detach_cycles,
        own=None if config.deep_supervision_weights is None else tuple(config.deep_supervision_weights),
        stages=tuple(Stage(round(share * (num_steps or 0)), *cycles) for share, *cycles in config.depths),
    )


def build_recipe(config: Config, num_steps: int, device: torch.device | None = None) -> Recipe:
    """Build the recipe of a config for a run of `num_steps` steps, on a CPU if no device is given."""
    cell_loss, device = LOSSES[config.loss_type], device or torch.device("cpu")
    compiled, segments = compiles(config.compile, device), config.segments_per_update
    rate = functools.partial(
        learning_rate, warmup_steps=config.lr_warmup_steps, total_steps=num_steps, min_ratio=config.lr_min_ratio
    )
    return Recipe(
        supervision=build_supervision(config, num_steps),
        cell_loss=cell_loss,
        segment=build_segment(
            cell_loss,
            config.global_batch_size * segments,
            device,
            compiled=compiled,
            adds_up=segments > 1,
        ),
        forward=compiled_graph(forward_of) if compiled else None,
        rate_at=functools.partial(rate, lr=config.lr),
        puzzle_rate_at=functools.partial(rate, lr=config.puzzle_emb_lr),
        puzzle_weight_decay=config.puzzle_emb_weight_decay,
        grad_clip_norm=config.grad_clip_norm or math.inf,
        global_batch_size=config.global_batch_size,
        segments_per_update=segments,
        exploration_prob=config.arch.halt_exploration_prob,
        total_steps=num_steps,
    )


class TrainState:
    """The owner of all that changes during a run.

    Weights, puzzle embedding, averaged weights, the optimizer's state, the step, the generator of the halting
    exploration, the carry with its puzzles, the sums of the current logging window and the seconds spent. The position
    in the data stream follows from the step, since batch k is a pure function of the seed and k. A run that was asked
    to stop saves before it does what is due at its step (log, evaluate); a resume does that first.

    The carry is saved for the global batch, in rank order. With another number of workers the rows are dealt out anew
    and the run goes on from the same state, with the same batches, so that only the rounding of sums differs.
    """

    def __init__(self, config: Config, shape: TokenShape, device: torch.device):
        self.shape, self.num_rows = shape, config.global_batch_size
        self.model = build_model(config, shape).to(device)
        betas = (config.beta1, config.beta2)
        self.optimizer = build_optimizer(
            config.optimizer, self.model, lr=config.lr, betas=betas, weight_decay=config.weight_decay
        )
        self.average = AveragedWeights(self.model, config.ema_rate) if config.ema else None
        self.guard = FiniteGuard(device)
        self.frozen = config.freeze_weights
        # A generator of the CPU draws for the whole global batch, so that the number of workers does not matter.
        self.generator = torch.Generator().manual_seed(config.seed)
        names = train_metric_names(config.arch.H_cycles, staged=bool(config.depths), text=config.arch.causal)
        self.sums = MetricSums(names, device)
        self.carry: Carry | None = None
        self.step = 0
        self.wall_s = 0.0
        self.core_seconds = dict.fromkeys(PARTS, 0.0)  # this worker's
        self.stop_votes = StopVotes(device)
        # What was measured aside at this step, until the row of the step has been logged.
        self.unlogged: dict[str, float] | None = None

    def begin_with(self, weights: dict[str, Tensor]) -> None:
        """Take over another model's weights (its whole state dict) before the first step."""
        self.model.load_state_dict(weights)
        if self.average:
            self.average = AveragedWeights(self.model, self.average.rate)

    def update_weights(self, rate: float) -> None:
        """Take the optimizer's step with the gradients at hand, unless the guard has found them not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Both optimizers read this and leave the weights alone where it is true, without asking the device.
        self.optimizer.found_inf = self.guard.found_inf  # type: ignore[attr-defined]
        if not self.frozen:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model)

    def update_puzzle_embedding(
        self, segments: Sequence[SegmentResult], rate: float, weight_decay: float, session: Session
    ) -> None:
        """Move the rows of the puzzle embedding that took part on any worker; every rank writes the same.

        A row moves once a step, by its gradients of all segments together: what averaging them means where only the
        sign counts.
        """
        embedding = self.model.puzzle_embedding
        if embedding is None:
            return
        leaves = [segment.puzzle_leaf for segment in segments]
        gradients = [leaf.grad for leaf in leaves if leaf is not None and leaf.grad is not None]
        assert len(gradients) == len(segments), "the model looks rows up where it has an embedding"
        identifiers = [segment.carry.puzzles.puzzle_identifiers for segment in segments]
        sign_sgd(
            embedding.table,
            session.gather_rows(torch.stack(identifiers, dim=1), self.num_rows).flatten(0, 1),
            session.gather_rows(torch.stack(gradients, dim=1), self.num_rows).flatten(0, 1),
            lr=rate,
            weight_decay=weight_decay,
            found_inf=self.guard.found_inf,
        )

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights, if there are any, into the model for as long as this lasts."""
        if self.average:
            self.average.swap(self.model)
        try:
            yield
        finally:
            if self.average:
                self.average.swap(self.model)

    def state_dict(self, session: Session) -> dict[str, Any]:
        """Collect the state as tensors and plain containers; every rank must call it, since rows are gathered."""
        sums = self.sums.sums.clone()
        session.sum_over_ranks(sums)
        return {
            "step": self.step,
            "shape": asdict(self.shape),
            "wall_s": self.wall_s,
            "core_seconds": self.core_seconds_of_all(session),
            "unlogged": self.unlogged,
            "model": self.model.state_dict(),
            "ema": self.average.weights if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "sums": sums,
            "carry": self._carry_tensors(session),
        }

    def load_state_dict(self, state: dict[str, Any], session: Session) -> None:
        """Restore what `state_dict` collected.

        Raises:
            ValueError: it holds weights alone, as those of an imported checkpoint.
        """
        if "optimizer" not in state:
            raise ValueError("the checkpoint holds weights only, so no training can go on from it; use --init-from")
        self.step, self.wall_s, self.unlogged = state["step"], state["wall_s"], state.get("unlogged")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.weights = {name: w.to(session.device) for name, w in state["ema"].items()}
        self.generator.set_state(state["generator"].cpu())
        if session.rank == 0:  # already sums over the workers
            self.core_seconds |= state.get("core_seconds", {})
            self.sums.sums[: len(state["sums"])] = state["sums"]  # an older release kept fewer of them
        own = {name: session.own_rows(rows).to(session.device) for name, rows in state["carry"].items()}
        puzzles = Batch(*(own.pop(field.name) for field in fields(Batch)))
        self.carry = Carry(**own, puzzles=puzzles)

    def core_seconds_of_all(self, session: Session) -> dict[str, float]:
        """Add the CPU seconds by part over the workers; every rank must call it."""
        totals = torch.tensor([*self.core_seconds.values()], dtype=torch.float64, device=session.device)
        session.sum_over_ranks(totals)
        return dict(zip(self.core_seconds, totals.tolist(), strict=True))

    def _carry_tensors(self, session: Session) -> dict[str, Tensor]:
        assert self.carry is not None, "a checkpoint is taken after a step"
        puzzles = self.carry.puzzles
        tensors = {name: getattr(self.carry, name) for name in ("answer", "latent", "steps", "halted")}
        tensors |= {field.name: getattr(puzzles, field.name) for field in fields(Batch)}
        return {name: session.gather_rows(tensor, self.num_rows) for name, tensor in tensors.items()}
