"""The training loop: batches → step → (due?) log → (due?) evaluate → (due?) save."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from trm_ray.config import Config
from trm_ray.model.trm import Batch
from trm_ray.storage import retried
from trm_ray.training.checkpoint import (
    FINAL_MODEL,
    checkpoint_name,
    final_step,
    load_checkpoint,
    name_number,
    remove_leftovers,
)
from trm_ray.training.clock import Clock, CoreSeconds
from trm_ray.training.evaluation import HeldOut, evaluate
from trm_ray.training.flops import train_flops
from trm_ray.training.memory import needs_checkpoints
from trm_ray.training.metrics import gpu_row, train_row
from trm_ray.training.optim import NonFiniteError
from trm_ray.training.session import Depths, Session
from trm_ray.training.state import Recipe, TokenShape, TrainState, build_recipe
from trm_ray.training.step import gradient_stats, train_step
from trm_ray.training.stopping import stopped_after
from trm_ray.training.store import CheckpointStore


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
    recipe, state = build_recipe(config, num_steps, session.device), TrainState(config, shape, session.device)
    if config.checkpoint_cycles == "auto":
        state.model.checkpoint_cycles = needs_checkpoints(state, recipe, session)
    _begin(state, session, initial_weights)
    evaluation: dict[str, float] = {}
    with _open_store(config, session) as store:
        clock = Clock(state.wall_s, session.exchange_time, CoreSeconds(state.core_seconds, store.core_seconds))
        run = _Run(config, state, recipe, session, store, clock)
        run.mend_end()
        for due, row in run.steps():  # raises on NaN; a request to stop saves, then raises
            held_out = run.evaluate() if due.evaluate else None  # first: a stop leaves the window to the resume
            measured = held_out.row if held_out else {}
            if due.log:
                row |= run.window_row()
            if due.evaluate:
                row |= run.core_seconds_row()
            row |= measured
            with run.clock.paused("checkpoints"):
                run.log(row, held_out.depths if held_out else None)
                if due.save:
                    run.save(checkpoint_name(state.step), measured["eval/loss"])
                if due.last:
                    run.save(FINAL_MODEL)
                if due.evaluate:
                    run.report(row)
            evaluation = measured or evaluation
    return evaluation


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    log: bool
    evaluate: bool
    save: bool
    last: bool

    @classmethod
    def after(cls, step: int, num_steps: int, config: Config) -> Due:
        """Say so; at the last step everything is."""
        last = step == num_steps
        log, evaluate = (last or step % every == 0 for every in (config.log_interval, config.eval_interval))
        return cls(log, evaluate, save=evaluate and (last or config.checkpoint_every_eval), last=last)


@dataclass(frozen=True)
class _Run:
    """What a run's steps have in common."""

    config: Config
    state: TrainState
    recipe: Recipe
    session: Session
    store: CheckpointStore
    clock: Clock

    def steps(self) -> Iterator[tuple[Due, dict[str, float]]]:
        """Take step after step; yield what is due after each, and what was measured aside, if anything.

        A run that was stopped before it did what is due at its step begins with that step's yield.

        Raises:
            NonFiniteError: seen whenever something is due; on a CPU at once, where looking costs nothing.
            Interrupted: a worker was asked to stop; the step is saved.
        """
        state, config = self.state, self.config
        if state.unlogged is not None:
            yield self._due(), state.unlogged
        steps = self.session.train_steps(state.step, config.segments_per_update)
        while state.step < self.recipe.total_steps:
            with self.clock.waiting():
                batches = next(steps)
            measure = config.compute_gradient_stats and (state.step + 1) % config.gradient_stats_interval == 0
            state.unlogged = self._gradient_stats(batches[0]) if measure else {}
            train_step(state, self.recipe, batches, self.session)
            yield self._due(), state.unlogged

    def _gradient_stats(self, batch: Batch) -> dict[str, float]:
        with self.clock.on("gradient_stats"):
            return gradient_stats(self.state, self.recipe, batch, self.session)

    def _due(self) -> Due:
        due = Due.after(self.state.step, self.recipe.total_steps, self.config)
        if due.log or due.evaluate or self.session.device.type == "cpu":  # a GPU would be waited for
            self._check_finite()
        if self.state.stop_votes.carried():
            self._save_and_stop()
        return due

    def _check_finite(self) -> None:
        """Raise if a step was not finite; its row is the last of the log."""
        try:
            self.state.guard.check()
        except NonFiniteError as error:
            tags = {"total_loss": "train/total_loss", "grad_norm": "train/grad_norm", "lr": "train/learning_rate"}
            row = {tag: error.values[name] for name, tag in tags.items()}
            self.session.log(int(error.values["step"]), self.state.wall_s, row, None)
            raise

    def evaluate(self) -> HeldOut:
        """Measure the run on held-out puzzles; save and stop if a worker is asked to meanwhile."""
        with self.clock.paused("evaluation"):
            held_out = evaluate_state(self.state, self.recipe, self.session)
        return self._save_and_stop() if held_out is None else held_out

    def core_seconds_row(self) -> dict[str, float]:
        """Tell what the workers' CPU seconds went into so far."""
        self._count_time()
        return {f"core_seconds/{part}": used for part, used in self.state.core_seconds_of_all(self.session).items()}

    def window_row(self) -> dict[str, float]:
        """Average the logging window that ends here. Synchronises with the device."""
        state, done = self.state, self.state.step - 1
        row = train_row(
            state.sums.drain(self.session),
            per_cycle=self.config.log_per_step_losses,
            whole_rows=self.session.whole_rows,
        )
        row["train/learning_rate"] = self.recipe.rate_at(done)
        supervision = self.recipe.supervision
        row["train/curriculum_weight"] = supervision.base_weight(done)
        if supervision.stages:
            _, H_cycles, L_cycles = supervision.stage(done)
            row |= {"train/H_cycles": H_cycles, "train/L_cycles": L_cycles or self.config.arch.L_cycles}
        row["train/flops"] = train_flops(self.config, state.shape, supervision.paths(state.step))
        row["throughput/num_workers"] = self.session.world_size
        row |= self.clock.throughput(self.recipe.puzzles_per_step)
        return row | gpu_row(self.session.device) | self.store.numbers()

    def log(self, row: dict[str, float], depths: Depths | None = None) -> None:
        """Write a line, if there is something to write; what was due at this step is done."""
        self._count_time()
        self.state.unlogged = None
        if row:
            self.session.log(self.state.step, self.state.wall_s, row, depths)

    def save(self, name: str, score: float | None = None) -> None:
        """Begin to write a checkpoint from rank 0; every rank takes part, since the carry's rows are gathered."""
        tensors = self.state.state_dict(self.session)
        if self.session.rank == 0:
            content = {**tensors, "config": self.config.model_dump(mode="json")}
            self.store.save(name, content, self.session.identifiers, score, self.session.tokenizer)

    def report(self, row: dict[str, float]) -> None:
        """Tell whoever launched the run, once what it may copy is there."""
        if self.session.awaits_checkpoints:
            self.store.wait()
            retried(self.session.sync_log, self.session.run_dir)  # not every evaluation saves
        self.session.report(self.state.step, row)

    def _count_time(self) -> None:
        self.state.wall_s, self.state.core_seconds = self.clock.wall_s(), self.clock.core_seconds()

    def mend_end(self) -> None:
        """Write the final model of a run that was killed before it did, or that is to end earlier than it did."""
        step, done = self.state.step, self.state.unlogged is None
        if step == self.recipe.total_steps and done and final_step(self.session.run_dir) != step:
            self.save(FINAL_MODEL)

    def _save_and_stop(self) -> NoReturn:
        """Save a step before anything that is due at it is done; a resume does it first."""
        self._check_finite()
        self._count_time()
        self.save(checkpoint_name(self.state.step))
        self.store.wait()
        raise stopped_after(self.state.step)


def _begin(state: TrainState, session: Session, initial_weights: Callable[[], dict[str, Tensor]] | None) -> None:
    latest = _resume_point(session)
    if latest is not None:
        state.load_state_dict(load_checkpoint(latest), session)
    elif initial_weights is not None:
        state.begin_with(initial_weights())


def _resume_point(session: Session) -> Path | None:
    """Take what rank 0 goes on from, on all ranks: other machines may see the storage a moment later."""
    chosen = 0 if session.rank != 0 else -1 if session.latest is None else name_number(session.latest)
    number = torch.tensor(chosen, dtype=torch.float64, device=session.device)
    session.sum_over_ranks(number)
    return session.run_dir / checkpoint_name(int(number)) if number >= 0 else None


def _open_store(config: Config, session: Session) -> CheckpointStore:
    if session.rank == 0:
        remove_leftovers(session.run_dir)
    return CheckpointStore(
        session.run_dir, keep_last=config.keep_last, keep_best=config.keep_best, log_first=session.sync_log
    )


def evaluate_state(state: TrainState, recipe: Recipe, session: Session) -> HeldOut | None:
    """Evaluate the averaged weights if there are any, else the weights; None if a worker is asked to stop meanwhile."""
    puzzles = session.test_batches(whole=state.step == recipe.total_steps)
    batches = itertools.takewhile(lambda _: not session.stop_requested(), puzzles)
    with state.averaged_weights():
        held_out = evaluate(state.model, batches, recipe.cell_loss, session, recipe.forward)
    return None if session.any_rank(session.stop_requested()) else held_out
