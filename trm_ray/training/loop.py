"""The training loop: batch → step → (due?) log → (due?) evaluate → (due?) save."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from trm_ray.config import Config
from trm_ray.model.trm import Batch, Carry
from trm_ray.storage import retried
from trm_ray.training.checkpoint import (
    FINAL_MODEL,
    checkpoint_name,
    final_step,
    load_checkpoint,
    name_number,
    remove_leftovers,
)
from trm_ray.training.evaluation import evaluate
from trm_ray.training.losses import puzzle_loss
from trm_ray.training.metrics import gpu_row, train_row, train_sums
from trm_ray.training.session import ExchangeTime, Session
from trm_ray.training.state import Recipe, TokenShape, TrainState, build_recipe
from trm_ray.training.stopping import stopped_after
from trm_ray.training.store import CheckpointStore
from trm_ray.training.supervision import segment_losses, supervision_weights


def run_training(
    config: Config,
    shape: TokenShape,
    num_steps: int,
    session: Session,
    initial_weights: Callable[[], dict[str, Tensor]] | None = None,
) -> dict[str, float]:
    """Train to `num_steps`, going on from the session's latest checkpoint if there is one.

    Args:
        initial_weights: what a run that has no checkpoint begins with, instead of weights drawn from the seed.

    Returns:
        The last evaluation, keyed by tag; empty if there was nothing left to train.

    Raises:
        Interrupted: a worker was asked to stop; a checkpoint of the last step is there.
        NonFiniteError: a loss or gradient norm became NaN or infinite.
        StorageError: a checkpoint could not be written.
    """
    recipe, state = build_recipe(config, num_steps), TrainState(config, shape, session.device)
    _begin(state, session, initial_weights)
    clock, evaluation = Clock(state.wall_s, session.exchange_time), {}
    with _open_store(config, session) as store:
        if state.step == num_steps and state.unlogged is None and final_step(session.run_dir) != num_steps:
            _save(state, config, session, store, FINAL_MODEL)  # killed before this, or it ends earlier than it did
        for row in training_steps(state, recipe, session, clock, stats_interval=_stats_interval(config)):
            last = state.step == num_steps
            log_due = last or state.step % config.log_interval == 0
            eval_due = last or state.step % config.eval_interval == 0
            # Looking at the guard is free on a CPU; on a GPU it waits for the device.
            if log_due or eval_due or session.device.type == "cpu":
                state.guard.check()
            stopping = state.stop_votes.carried()
            with clock.paused():
                measured = evaluate_state(state, recipe, session) if eval_due and not stopping else {}
            if stopping or measured is None:
                _save_and_stop(state, config, session, store, clock)
            if log_due:
                row |= _window_row(state, recipe, session, clock, per_cycle=config.log_per_step_losses)
                row |= store.numbers()
            with clock.paused():
                if eval_due:
                    evaluation = measured
                    row |= evaluation
                state.wall_s, state.unlogged = clock.wall_s(), None
                if row:
                    session.log(state.step, state.wall_s, row)
                if eval_due and (last or config.checkpoint_every_eval):
                    _save(state, config, session, store, checkpoint_name(state.step), evaluation["eval/loss"])
                if last:
                    _save(state, config, session, store, FINAL_MODEL)
                if eval_due:
                    if session.awaits_checkpoints:
                        store.wait()
                        retried(session.sync_log, session.run_dir)  # not every evaluation saves
                    session.report(state.step, row)
    return evaluation


def _begin(state: TrainState, session: Session, initial_weights: Callable[[], dict[str, Tensor]] | None) -> None:
    latest = _resume_point(session)
    if latest is not None:
        state.load_state_dict(load_checkpoint(latest), session)
    elif initial_weights is not None:
        state.begin_with(initial_weights())


def _resume_point(session: Session) -> Path | None:
    """Let rank 0 choose the checkpoint to go on from: other machines may see the storage a moment later."""
    latest = session.latest_checkpoint() if session.rank == 0 else None
    none = -1.0 if session.rank == 0 else 0.0
    number = torch.tensor(none if latest is None else name_number(latest), dtype=torch.float64, device=session.device)
    session.sum_over_ranks(number)
    return session.run_dir / checkpoint_name(int(number)) if number >= 0 else None


def _open_store(config: Config, session: Session) -> CheckpointStore:
    if session.rank == 0:
        remove_leftovers(session.run_dir)
    return CheckpointStore(
        session.run_dir, keep_last=config.keep_last, keep_best=config.keep_best, log_first=session.sync_log
    )


def training_steps(
    state: TrainState, recipe: Recipe, session: Session, clock: Clock, stats_interval: int | None = None
) -> Iterator[dict[str, float]]:
    """Take one optimizer step after the other; yield what was measured aside, mostly nothing.

    A run that was stopped before it did what is due at its step begins with that step's yield.
    """
    if state.unlogged is not None:
        yield state.unlogged
    batches = session.train_batches(state.step)
    while state.step < recipe.total_steps:
        with clock.waiting():
            batch = next(batches)
        stats_due = stats_interval is not None and (state.step + 1) % stats_interval == 0
        state.unlogged = gradient_stats(state, recipe, batch, session) if stats_due else {}
        train_step(state, recipe, batch, session)
        yield state.unlogged


def train_step(state: TrainState, recipe: Recipe, batch: Batch, session: Session) -> None:
    """Run one segment and update the weights; nothing here waits for the device."""
    model, weights = state.model, cycle_weights(state, recipe)
    min_steps = session.own_rows(_exploration(state, recipe)).to(session.device, non_blocking=True)
    output = model(_carry(state, batch), batch, supervises(weights), min_steps)
    losses = segment_losses(output, weights, recipe.cell_loss, recipe.global_batch_size)
    losses.total.backward()
    # Losses and gradients are shares of the global batch, so their sums over the workers are those of one large batch.
    total = losses.total.detach().to(torch.float32, copy=True)
    stop_votes = torch.full_like(total, session.stop_requested())
    session.sum_over_ranks(total, stop_votes, *(p.grad for p in model.parameters() if p.grad is not None))
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip_norm)
    rate = recipe.rate_at(state.step)
    state.guard.watch(
        {
            "step": torch.full_like(total, state.step + 1),
            "total_loss": total,
            "act_loss": losses.act,
            "supervised_loss": losses.supervised,
            "lm_loss": losses.lm,
            "grad_norm": grad_norm,
            "lr": torch.full_like(total, rate),
        }
    )
    state.stop_votes.add(stop_votes)
    state.update_weights(rate)
    state.update_puzzle_embedding(output, recipe.puzzle_rate_at(state.step), recipe.puzzle_weight_decay, session)
    state.sums.add(train_sums(output, losses, grad_norm, session.world_size))
    state.carry, state.step = output.carry, state.step + 1


def cycle_weights(state: TrainState, recipe: Recipe) -> tuple[float, ...]:
    """Weigh the H-cycles at the step to come."""
    base = recipe.supervision.base_weight(state.step)
    return supervision_weights(recipe.supervision.schedule, state.model.H_cycles, base)


def supervises(weights: tuple[float, ...]) -> bool:
    """Tell whether any cycle before the last weighs something; if not, the step is the baseline's."""
    return any(weights[:-1])


def _carry(state: TrainState, batch: Batch) -> Carry:
    return state.carry or state.model.initial_carry(batch)


def _exploration(state: TrainState, recipe: Recipe) -> Tensor:
    """Draw the fewest segments of each row of the global batch: mostly 0, now and then 2 to `halt_max_steps`.

    Source: the original's `min_halt_steps`.
    """
    rows, most = recipe.global_batch_size, state.model.halt_max_steps
    explores = torch.rand(rows, generator=state.generator) < recipe.exploration_prob
    return explores * torch.randint(min(2, most), most + 1, (rows,), generator=state.generator)


def gradient_stats(state: TrainState, recipe: Recipe, batch: Batch, session: Session) -> dict[str, float]:
    """Measure the gradient norms that each H-cycle's loss gives: mean, max and min over the parameter tensors.

    One more forward pass and one backward pass a cycle, on the step's own batch; neither weights, gradients nor
    generators change. Without supervision only the last cycle has a gradient. Synchronises with the device.
    """
    weights, model = cycle_weights(state, recipe), state.model
    output = model(_carry(state, batch), batch, supervises(weights))
    parameters = [parameter for name, parameter in model.named_parameters() if not name.startswith("q_head")]
    row: dict[str, float] = {}
    for cycle, (logits, weight) in enumerate(zip(output.cycle_logits, weights, strict=True)):
        if weight == 0:
            continue
        loss = puzzle_loss(recipe.cell_loss, logits, output.carry.puzzles.labels).sum() / recipe.global_batch_size
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        session.sum_over_ranks(*gradients)
        norms = torch.stack([torch.linalg.vector_norm(gradient.float()) for gradient in gradients])
        for name, value in (("mean", norms.mean()), ("max", norms.max()), ("min", norms.min())):
            row[f"train/gradients/step_{cycle}_grad_norm_{name}"] = value.item()
    return row


def evaluate_state(state: TrainState, recipe: Recipe, session: Session) -> dict[str, float] | None:
    """Evaluate the averaged weights if there are any, else the weights; None if a worker is asked to stop meanwhile."""
    batches = itertools.takewhile(lambda _: not session.stop_requested(), session.test_batches())
    with state.averaged_weights():
        row = evaluate(state.model, batches, recipe.cell_loss, session)
    return None if session.any_rank(session.stop_requested()) else row


def _window_row(
    state: TrainState, recipe: Recipe, session: Session, clock: Clock, *, per_cycle: bool
) -> dict[str, float]:
    """Average the logging window that ends here. Synchronises with the device."""
    row = train_row(state.sums.drain(session), per_cycle=per_cycle)
    done = state.step - 1
    row["train/learning_rate"] = recipe.rate_at(done)
    row["train/curriculum_weight"] = recipe.supervision.base_weight(done)
    row["throughput/num_workers"] = session.world_size
    return row | clock.throughput(recipe.global_batch_size) | gpu_row(session.device)


def _stats_interval(config: Config) -> int | None:
    return config.gradient_stats_interval if config.compute_gradient_stats else None


def _save(
    state: TrainState, config: Config, session: Session, store: CheckpointStore, name: str, score: float | None = None
) -> None:
    """Begin to write a checkpoint from rank 0; every rank takes part, since the carry's rows are gathered."""
    tensors = state.state_dict(session)
    if session.rank == 0:
        store.save(name, {**tensors, "config": config.model_dump(mode="json")}, session.identifiers, score)


def _save_and_stop(
    state: TrainState, config: Config, session: Session, store: CheckpointStore, clock: Clock
) -> NoReturn:
    """Save a step before anything that is due at it is done; a resume does it first."""
    state.guard.check()
    state.wall_s = clock.wall_s()
    _save(state, config, session, store, checkpoint_name(state.step))
    store.wait()
    raise stopped_after(state.step)


class Clock:
    """Wall-clock seconds of a run, and of the current logging window: busy, waiting for data, exchanging gradients."""

    def __init__(self, wall_s: float, exchange: ExchangeTime):
        self._began, self._exchange = time.perf_counter() - wall_s, exchange
        self._restart_window()

    def _restart_window(self) -> None:
        self._window_began, self._steps, self._waited_s, self._paused_s = time.perf_counter(), 0, 0.0, 0.0
        self._exchange.seconds = 0.0

    def wall_s(self) -> float:
        """Seconds since the run began: evaluations count, the time between an interruption and its resume does not."""
        return time.perf_counter() - self._began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a step, and what happens inside as waiting for its data."""
        began = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - began
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (evaluation, checkpoints) out of the throughput."""
        began, exchanged_s = time.perf_counter(), self._exchange.seconds
        yield
        self._paused_s += time.perf_counter() - began
        self._exchange.seconds = exchanged_s

    def throughput(self, global_batch_size: int) -> dict[str, float]:
        """Give the rates of the window and begin a new one; nothing if a resume began after its last step."""
        if not self._steps:
            return {}
        busy_s = time.perf_counter() - self._window_began - self._paused_s
        row = {
            "throughput/steps_per_s": self._steps / busy_s,
            "throughput/puzzles_per_s": self._steps * global_batch_size / busy_s,
            "throughput/data_wait_fraction": self._waited_s / busy_s,
        }
        if self._exchange.seconds:
            row["throughput/exchange_fraction"] = self._exchange.seconds / busy_s
        self._restart_window()
        return row
