"""The loop: a step against a transcription, what is due when, resuming, learning, and stopping in time."""

import copy
import itertools
import json
import math
import shutil
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    SHAPE,
    TEXT_ARCH,
    RunDiedError,
    assert_same,
    begun,
    local_session,
    metric_rows,
    shape_of,
    sudoku,
    supervised,
    tiny_config,
)
from torch.utils._python_dispatch import TorchDispatchMode

from trm_ray.config import Config
from trm_ray.config.schedules import SCHEDULES
from trm_ray.model.gradient_path import GradientPath
from trm_ray.training import store
from trm_ray.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from trm_ray.training.clock import PARTS, Clock, CoreSeconds
from trm_ray.training.evaluation import evaluate
from trm_ray.training.flops import step_flops
from trm_ray.training.loop import run_training
from trm_ray.training.losses import softmax_cross_entropy
from trm_ray.training.metrics import train_row
from trm_ray.training.optim import NonFiniteError
from trm_ray.training.session import ExchangeTime, Session
from trm_ray.training.state import TrainState, build_model, build_recipe, total_steps
from trm_ray.training.step import _exploration, gradient_stats, train_step

# Of 8 steps the first 3 have 1 cycle of 1, the next 3 have 2, the last 2 have all: 3 of 2.
STAGED: dict[str, Any] = {"depth_curriculum": [[0, 1, 1], [0.4, 2, 1], [0.7, 3, 2]]}
CURRICULUM = supervised(curriculum_enabled=True, curriculum_start_step=3, curriculum_end_step=6)


def trained(run_dir: Path, *, steps: int = 8, **changes: Any) -> dict[str, Any]:
    """Run to the end and return the final state."""
    config = tiny_config(**changes)
    run_training(config, SHAPE, steps, local_session(run_dir, config))
    return load_checkpoint(run_dir / "final_model")


def set_up(run_dir: Path, *, steps: int = 100, **changes: Any):
    config = tiny_config(**changes)
    session = local_session(run_dir, config)
    return TrainState(config, SHAPE, session.device), build_recipe(config, steps), session


def difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    return max((first["model"][n] - second["model"][n]).abs().max().item() for n in first["model"])


# -- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, (1 / 6, 1 / 3)], ids=["baseline", "supervised"])
def test_steps_equal_a_transcription_with_torchs_own_parts(tmp_path, weights):
    """Segments, loss, clipping, AdamW and the carry of four steps, written down plainly."""
    changes = supervised(weight=0.5) if weights else {}
    state, recipe, session = set_up(tmp_path, grad_clip_norm=0.3, arch={"halt_exploration_prob": 0.0}, **changes)
    model = copy.deepcopy(state.model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    batches = session.train_batches(0)
    carry = None
    for rate in (1.5e-3, 3e-3, 3e-3, 3e-3):
        batch = next(batches)
        train_step(state, recipe, [batch], session)
        output = model(
            carry or model.initial_carry(batch), batch, GradientPath.full(3) if weights else None, torch.zeros(8)
        )
        labels = output.carry.puzzles.labels
        ces = [F.cross_entropy(c.flatten(0, 1), labels.flatten().long()) for c in output.cycle_logits]
        solved = (output.cycle_logits[-1].argmax(-1) == labels).all(-1).float()
        halt = F.binary_cross_entropy_with_logits(output.halt_logits, solved)
        if weights:
            loss = (weights[0] * ces[0] + weights[1] * ces[1] + ces[2]) / 1.5 + 0.5 * halt
        else:
            loss = ces[2] + 0.5 * halt
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        carry = output.carry
        for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
        assert torch.equal(state.carry.puzzles.inputs, carry.puzzles.inputs)
    assert state.step == 4


def test_an_update_takes_the_mean_gradient_of_its_segments_which_follow_each_other(tmp_path):
    """Two updates of two segments each, written down plainly, puzzle embedding included."""
    arch = {"halt_exploration_prob": 0.0, "puzzle_emb_ndim": 16, "puzzle_emb_len": 2}
    changes = supervised(segments_per_update=2, grad_clip_norm=0.3, puzzle_emb_lr=3e-3, arch=arch)
    state, recipe, session = set_up(tmp_path, **changes)
    model = copy.deepcopy(state.model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    batches, carry = session.train_batches(0), None
    for rate in (1.5e-3, 3e-3):
        taken, losses, rows = [next(batches), next(batches)], [], []
        train_step(state, recipe, taken, session)
        for batch in taken:
            leaf = model.puzzle_leaf(8)
            output = model(carry or model.initial_carry(batch), batch, GradientPath.full(3), torch.zeros(8), leaf)
            rows.append((output.carry.puzzles.puzzle_identifiers, leaf))
            labels = output.carry.puzzles.labels
            ces = [F.cross_entropy(c.flatten(0, 1), labels.flatten().long()) for c in output.cycle_logits]
            solved = (output.cycle_logits[-1].argmax(-1) == labels).all(-1).float()
            halt = F.binary_cross_entropy_with_logits(output.halt_logits, solved)
            losses.append((ces[0] / 6 + ces[1] / 3 + ces[2]) / 1.5 + 0.5 * halt)
            carry = output.carry
        optimizer.zero_grad()
        (sum(losses) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        table = model.puzzle_embedding.table
        gradient = torch.zeros_like(table)
        for identifiers, leaf in rows:
            gradient.index_add_(0, identifiers, leaf.grad)
        touched = torch.cat([identifiers for identifiers, _ in rows]).unique().long()
        table[touched] -= rate * (0.1 * table[touched] + gradient[touched].sign())  # each row once
        for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
        torch.testing.assert_close(state.model.puzzle_embedding.table, table)
        assert torch.equal(state.carry.puzzles.inputs, carry.puzzles.inputs)
        logged = train_row(state.sums.drain(session), per_cycle=True)
        assert logged["train/total_loss"] == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-5)
    assert state.step == 2


def test_exploration_draws_nothing_mostly_and_else_two_to_the_most_steps_alike(tmp_path):
    state, recipe, _ = set_up(tmp_path, arch={"halt_max_steps": 5, "halt_exploration_prob": 0.2})
    drawn = Counter(_exploration(state, replace(recipe, global_batch_size=20_000)).tolist())
    assert set(drawn) == {0, 2, 3, 4, 5}
    assert drawn[0] / 20_000 == pytest.approx(0.8, abs=0.01)  # 0.2 ± 0.003
    for steps in (2, 3, 4, 5):
        assert drawn[steps] / 20_000 == pytest.approx(0.05, abs=0.008)


@pytest.mark.parametrize(("most", "probability", "expected"), [(1, 1.0, {1}), (2, 1.0, {2}), (5, 0.0, {0})])
def test_exploration_at_its_edges(tmp_path, most, probability, expected):
    arch = {"halt_max_steps": most, "halt_exploration_prob": probability}
    state, recipe, _ = set_up(tmp_path, arch=arch)
    assert set(_exploration(state, recipe).tolist()) == expected


@pytest.mark.parametrize(("probability", "going_on"), [(0.0, 0), (1.0, 8)])
def test_in_training_a_row_halts_by_its_logit_unless_it_explores(tmp_path, probability, going_on):
    state, recipe, session = set_up(tmp_path, arch={"halt_exploration_prob": probability})
    state.model.q_head.get_parameter("bias").data.fill_(3.0)
    train_step(state, recipe, [next(session.train_batches(0))], session)
    assert (~state.carry.halted).sum().item() == going_on


def graph_nodes(tensor: torch.Tensor) -> int:
    """Count what autograd remembers behind a tensor."""
    seen, ahead = set(), [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [edge for edge, _ in node.next_functions]
    return len(seen)


def test_nothing_that_outlives_a_step_remembers_its_graph(tmp_path):
    state, recipe, session = set_up(tmp_path, ema=True, **supervised())
    for batch, _ in zip(session.train_batches(0), range(3), strict=False):
        train_step(state, recipe, [batch], session)
    kept = {
        "sums": state.sums.sums,
        "answer": state.carry.answer,
        "latent": state.carry.latent,
        "found_inf": state.guard.found_inf,
        "average": state.average.weights["lm_head.weight"],
    }
    assert {name: graph_nodes(tensor) for name, tensor in kept.items()} == dict.fromkeys(kept, 0)
    assert not any(tensor.requires_grad for tensor in kept.values())


# What must know values or how many there are, for which a process waits for its GPU.
WAITING = {f"aten::{name}" for name in ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal")}
WAITING |= {f"aten::{name}" for name in ("masked_select", "_unique2", "unique_dim", "repeat_interleave", "bincount")}


class Asked(TorchDispatchMode):
    """Notes the operations that wait for values."""

    def __init__(self):
        super().__init__()
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waiting += WAITING & {func._schema.name}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adamw"}, {"optimizer": "adam_atan2"}, {"detach_cycles": True}],
    ids=["adamw", "adam_atan2", "detached"],
)
def test_steps_ask_the_device_for_no_value(tmp_path, changes):
    """From the first on, through a ramp."""
    arch = {"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}
    state, recipe, session = set_up(tmp_path, ema=True, arch=arch, **CURRICULUM, **changes)
    batches = list(itertools.islice(session.train_batches(0), 8))
    with Asked() as asked:
        for batch in batches:
            train_step(state, recipe, [batch], session)
        assert not asked.waiting
        state.guard.check()  # which does, as the test would see
    assert asked.waiting == ["aten::_local_scalar_dense"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "adam_atan2"])
def test_a_step_on_a_gpu_does_not_wait_for_it(tmp_path, optimizer):
    config = tiny_config(optimizer=optimizer, ema=True, **supervised())
    session = replace(local_session(tmp_path, config), device=torch.device("cuda"))
    state, recipe = TrainState(config, SHAPE, session.device), build_recipe(config, 100)
    batches = session.train_batches(0)
    train_step(state, recipe, [next(batches)], session)
    batch = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(state, recipe, [batch], session)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- scenarios --------------------------------------------------------------------------------------------------------


def weights_by_step(run_dir: Path, steps: int, **changes: Any) -> list[torch.Tensor]:
    state, recipe, session = set_up(run_dir, **changes)
    seen = []
    for batch, _ in zip(session.train_batches(0), range(steps), strict=False):
        train_step(state, recipe, [batch], session)
        seen.append(torch.cat([p.detach().flatten().clone() for p in state.model.parameters()]))
    return seen


def test_the_curriculum_is_bitwise_the_baseline_until_its_ramp_and_another_run_after(tmp_path):
    baseline = weights_by_step(tmp_path, 6)
    curriculum = weights_by_step(tmp_path, 6, **CURRICULUM)
    same = [torch.equal(a, b) for a, b in zip(baseline, curriculum, strict=True)]
    # The ramp is 0 at step 3, the fourth; the fifth is the first with a weight.
    assert same == [True, True, True, True, False, False]


def test_a_weight_of_zero_is_bitwise_the_baseline_and_others_are_not(tmp_path):
    baseline = weights_by_step(tmp_path, 3)[-1]
    assert torch.equal(weights_by_step(tmp_path, 3, **supervised(weight=0.0))[-1], baseline)
    others = [weights_by_step(tmp_path, 3, **supervised(schedule))[-1] for schedule in SCHEDULES]
    assert not any(torch.equal(other, baseline) for other in others)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(others, 2))


def test_a_schedule_of_ones_own_is_one_line_and_trains_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "half_way", lambda i, n: 0.5)
    half = weights_by_step(tmp_path, 3, **supervised("half_way", weight=0.8))
    constant = weights_by_step(tmp_path, 3, **supervised("constant", weight=0.4))
    assert torch.equal(half[-1], constant[-1])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="deep_supervision_schedule"):
        tiny_config(**supervised("half_way"))


def test_weights_of_ones_own_are_bitwise_the_schedule_that_they_spell_out(tmp_path):
    schedule = weights_by_step(tmp_path, 3, **supervised("exponential_decay", weight=0.5))
    own = weights_by_step(tmp_path, 3, **supervised(deep_supervision_weights=[0.25, 0.5, 2.0]))
    assert torch.equal(own[-1], schedule[-1])


def test_the_curriculum_at_full_weight_is_bitwise_the_supervised_run(tmp_path):
    full = supervised(curriculum_enabled=True, curriculum_start_step=0, curriculum_end_step=4)
    state, recipe, session = set_up(tmp_path, **full)
    plain, plain_recipe, _ = set_up(tmp_path, **supervised())
    state.step = plain.step = 4
    batch = next(session.train_batches(4))
    train_step(state, recipe, [batch], session)
    train_step(plain, plain_recipe, [batch], session)
    assert_same(state.model.state_dict(), plain.model.state_dict())


def test_a_stage_of_a_depth_curriculum_is_bitwise_a_run_of_that_depth(tmp_path):
    staged = {"depth_curriculum": [[0, 1, 1], [0.04, 2, 1], [0.6, 3, 2]], **supervised()}
    seen = weights_by_step(tmp_path, 6, **staged)
    shallow = weights_by_step(tmp_path, 6, **supervised(arch={"H_cycles": 1, "L_cycles": 1}))
    assert [torch.equal(a, b) for a, b in zip(seen, shallow, strict=True)] == [True] * 4 + [False] * 2
    state, recipe, session = set_up(tmp_path, **staged)
    plain, plain_recipe, _ = set_up(tmp_path, **supervised())
    state.step = plain.step = 60  # of 100
    for batch, _ in zip(session.train_batches(60), range(3), strict=False):
        train_step(state, recipe, [batch], session)
        train_step(plain, plain_recipe, [batch], session)
    assert_same(state.model.state_dict(), plain.model.state_dict())


def test_a_depth_curriculum_logs_the_cycles_that_there_were_and_evaluates_at_full_depth(tmp_path):
    each, windows = tmp_path / "each", tmp_path / "windows"
    for folder, log_interval in ((each, 1), (windows, 4)):
        trained(folder, log_interval=log_interval, **supervised(**STAGED))
    rows, wide = metric_rows(each), metric_rows(windows)
    cycles = [sum(f"train/deep_supervision/step_{i}_loss" in row for i in range(3)) for row in rows.values()]
    assert cycles == [row["train/H_cycles"] for row in rows.values()] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert [row["train/L_cycles"] for row in rows.values()] == [1, 1, 1, 1, 1, 1, 2, 2]
    for i, steps in ((0, (5, 6, 7, 8)), (1, (5, 6, 7, 8)), (2, (7, 8))):
        tag = f"train/deep_supervision/step_{i}_loss"
        assert wide[8][tag] == pytest.approx(sum(rows[step][tag] for step in steps) / len(steps)), tag
    assert all(f"eval/first_segment/step_{i}_loss" in rows[4] for i in range(3))


def test_the_operations_of_a_depth_curriculum_are_those_of_its_stages(tmp_path):
    trained(tmp_path, **supervised(**STAGED))
    flops = [row["train/flops"] for row in metric_rows(tmp_path).values()]
    ones = [0.0]
    for H, L in [(1, 1)] * 3 + [(2, 1)] * 3 + [(3, 2)] * 2:
        ones.append(
            ones[-1] + step_flops(tiny_config(arch={"H_cycles": H, "L_cycles": L}), SHAPE, GradientPath.full(H))
        )
    assert flops == pytest.approx(ones[1:])


# -- learning and reproducibility -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, supervised()], ids=["baseline", "supervised"])
def test_a_run_overfits_eight_puzzles(tmp_path, changes):
    arch = {"hidden_size": 32, "expansion": 4, "L_layers": 2}
    config = tiny_config(lr=5e-3, log_interval=10, eval_interval=1000, arch=arch, **changes)
    puzzles = sudoku(8, blanks=9)
    row = run_training(config, SHAPE, 60, local_session(tmp_path, config, puzzles, test=puzzles))
    assert row["eval/exact_accuracy"] == 1.0
    assert row["eval/loss"] < 0.1
    losses = [row["train/lm_loss"] for row in metric_rows(tmp_path).values() if "train/lm_loss" in row]
    assert losses[0] > 10 * losses[-1]


def test_a_bfloat16_run_learns_with_float32_weights_and_moments(tmp_path):
    arch = {"forward_dtype": "bfloat16", "hidden_size": 32}
    state = trained(tmp_path, steps=40, lr=5e-3, log_interval=10, eval_interval=1000, arch=arch, **supervised())
    losses = [row["train/lm_loss"] for row in metric_rows(tmp_path).values()]
    assert losses[-1] < 0.7 * losses[0]
    assert {weight.dtype for weight in state["model"].values()} == {torch.float32}
    moments = [tensor for moments in state["optimizer"]["state"].values() for tensor in moments.values()]
    assert {tensor.dtype for tensor in moments} == {torch.float32}
    assert state["carry"]["answer"].dtype == torch.bfloat16


def test_the_same_seed_gives_the_same_run_bitwise_and_another_seed_another(tmp_path):
    first, again, other = (
        trained(tmp_path / name, seed=seed, **CURRICULUM) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert_same(first["model"], again["model"])
    assert metric_rows(tmp_path / "a") == metric_rows(tmp_path / "b")
    assert difference(first, other) > 0.01
    assert metric_rows(tmp_path / "a")[1] != metric_rows(tmp_path / "c")[1]


# -- what is due when -------------------------------------------------------------------------------------------------


def test_logs_evaluations_and_checkpoints_come_when_they_are_due_and_at_the_end(tmp_path):
    trained(tmp_path, steps=8, log_interval=3, eval_interval=5)
    rows = metric_rows(tmp_path)
    assert {step for step, row in rows.items() if "train/total_loss" in row} == {3, 6, 8}
    assert {step for step, row in rows.items() if "eval/loss" in row} == {5, 8}
    assert {p.name for p in tmp_path.glob("*") if p.is_dir()} == {
        "checkpoint_step_5",
        "checkpoint_step_8",
        "final_model",
    }
    assert not list(tmp_path.glob(".*"))


def test_without_checkpoints_at_evaluations_the_end_is_saved_all_the_same(tmp_path):
    trained(tmp_path, steps=4, eval_interval=2, checkpoint_every_eval=False)
    names = {p.name for p in tmp_path.glob("*") if p.is_dir()}
    assert "checkpoint_step_2" not in names
    assert "final_model" in names


class Reported(Session):
    """Notes what the launcher is told, and which checkpoint it would find then."""

    awaits_checkpoints = True

    def report(self, step, metrics):
        self.log_row(step, 0.0, {"reported/exact": metrics["eval/exact_accuracy"], "reported/at": step})
        assert latest_checkpoint(self.run_dir, verified=True) == self.run_dir / f"checkpoint_step_{step}"


def test_the_launcher_hears_of_an_evaluation_once_its_checkpoint_is_there(tmp_path):
    config = tiny_config(eval_interval=2)
    run_training(config, SHAPE, 4, local_session(tmp_path, config, kind=Reported))
    assert [row.get("reported/at") for row in metric_rows(tmp_path).values()] == [None, 2, None, 4]


def test_the_launcher_hears_of_an_evaluation_once_it_is_in_the_log_even_if_nothing_is_saved(tmp_path):
    config, told = tiny_config(eval_interval=2, checkpoint_every_eval=False), []

    class Noting(Session):
        awaits_checkpoints = True

        def report(self, step, metrics):
            told.append(step)

    session = local_session(tmp_path, config, kind=partial(Noting, sync_log=lambda: told.append("log")))
    run_training(config, SHAPE, 4, session)
    assert told[:2] == ["log", 2]
    assert told[-2:] == ["log", 4]


TRAIN_TAGS = {f"train/{part}_loss" for part in ("total", "act", "supervised", "lm")} | {
    *(f"train/{where}/step_{i}_loss" for where in ("deep_supervision", "first_segment") for i in range(3)),
    *(f"train/act/{name}" for name in ("steps", "accuracy", "exact_accuracy", "q_halt_accuracy", "q_halt_loss")),
    *("train/curriculum_weight", "train/grad_norm", "train/learning_rate", "train/flops"),
    *(f"throughput/{name}" for name in ("puzzles_per_s", "steps_per_s", "data_wait_fraction", "num_workers")),
}


def test_a_row_has_the_tags_that_the_reports_read(tmp_path):
    trained(tmp_path, steps=3, log_interval=3, eval_interval=3)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    evaluation = {tag for tag in row if tag.startswith("eval/")}
    spent = {f"core_seconds/{part}" for part in PARTS}
    assert set(row) - evaluation == TRAIN_TAGS | spent | {"step", "wall_s"}
    assert {f"eval/step_{i}_loss" for i in range(3)} < evaluation
    assert 0 < row["throughput/steps_per_s"] * 8 == pytest.approx(row["throughput/puzzles_per_s"])
    assert 0 <= row["throughput/data_wait_fraction"] < 1
    assert 0 < row["wall_s"] < 60


def test_a_window_that_an_older_release_began_goes_on_without_what_it_did_not_sum_up(tmp_path):
    trained(tmp_path, steps=4, log_interval=100, eval_interval=2)
    state = load_checkpoint(tmp_path / "checkpoint_step_2")
    num_old = len(state["sums"]) - 1 - 3  # without the first segments' count and losses
    session = local_session(tmp_path, tiny_config())
    before = TrainState(tiny_config(), SHAPE, torch.device("cpu"))
    before.load_state_dict({**state, "sums": state["sums"][:num_old]}, session)
    assert torch.equal(before.sums.sums[:num_old], state["sums"][:num_old])
    assert not before.sums.sums[num_old:].any()


def test_the_counted_operations_grow_with_the_steps_that_are_supervised(tmp_path):
    trained(tmp_path, steps=8, log_interval=4, **CURRICULUM)
    rows = metric_rows(tmp_path)
    first, last = rows[4]["train/flops"], rows[8]["train/flops"]
    assert 0 < first < last - first


def test_pauses_count_neither_as_busy_nor_as_exchange(monkeypatch):
    now, exchange = [0.0], ExchangeTime()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(0.0, exchange, CoreSeconds({}, lambda: 0.0))
    with clock.waiting():
        now[0] += 1
    now[0] += 5
    exchange.seconds += 3  # of those five
    with clock.paused("evaluation"):
        now[0] += 10
        exchange.seconds += 8
    row = clock.throughput(12)
    assert row["throughput/steps_per_s"] == pytest.approx(1 / 6)
    assert row["throughput/data_wait_fraction"] == pytest.approx(1 / 6)
    assert row["throughput/exchange_fraction"] == pytest.approx(3 / 6)


def test_every_rows_total_is_the_sum_of_its_printed_parts_and_of_its_cycles(tmp_path):
    trained(tmp_path, log_interval=2, **CURRICULUM)
    for row in metric_rows(tmp_path).values():
        assert row["train/total_loss"] == pytest.approx(row["train/act_loss"] + row["train/supervised_loss"], rel=1e-6)
        assert row["train/lm_loss"] == row["train/deep_supervision/step_2_loss"]
    last = metric_rows(tmp_path)[8]  # steps 7 and 8 have the full weights 1/6, 1/3, 1
    first, second, third = (last[f"train/deep_supervision/step_{i}_loss"] for i in range(3))
    expected = (first / 6 + second / 3 + third) / 1.5 + 0.5 * last["train/act/q_halt_loss"]
    assert last["train/total_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_window_averages_its_steps(tmp_path):
    changes: dict[str, Any] = {"eval_interval": 100, **supervised()}
    trained(tmp_path / "each", log_interval=1, **changes)
    trained(tmp_path / "windows", log_interval=3, **changes)
    each, windows = metric_rows(tmp_path / "each"), metric_rows(tmp_path / "windows")
    for end, steps in ((3, (1, 2, 3)), (6, (4, 5, 6)), (8, (7, 8))):
        for tag in ("train/total_loss", "train/lm_loss", "train/grad_norm", "train/deep_supervision/step_0_loss"):
            mean = sum(each[step][tag] for step in steps) / len(steps)
            assert windows[end][tag] == pytest.approx(mean, rel=1e-6), (end, tag)
        assert windows[end]["train/learning_rate"] == each[end]["train/learning_rate"]  # of the window's last step


def test_rows_tell_the_rate_and_the_weight_that_their_step_used(tmp_path):
    trained(tmp_path, lr=1e-3, lr_warmup_steps=4, **CURRICULUM)
    rows = metric_rows(tmp_path)
    rates = [rows[step]["train/learning_rate"] for step in range(1, 9)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])
    weights = [rows[step]["train/curriculum_weight"] for step in range(1, 9)]
    assert weights == pytest.approx([0, 0, 0, 0, 0.5 / 3, 1.0 / 3, 0.5, 0.5])


def test_per_cycle_losses_can_be_left_out(tmp_path):
    trained(tmp_path, steps=2, log_per_step_losses=False)
    assert not [tag for row in metric_rows(tmp_path).values() for tag in row if "deep_supervision" in tag]


# -- gradients of each cycle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, CURRICULUM], ids=["baseline", "curriculum"])
def test_measuring_gradients_does_not_change_training(tmp_path, changes):
    plain = trained(tmp_path / "plain", **changes)
    measured = trained(tmp_path / "measured", compute_gradient_stats=True, gradient_stats_interval=1, **changes)
    assert_same(plain["model"], measured["model"])
    assert_same(plain["optimizer"]["state"], measured["optimizer"]["state"])
    rows, others = metric_rows(tmp_path / "plain"), metric_rows(tmp_path / "measured")
    for step, row in rows.items():
        assert {tag: value for tag, value in others[step].items() if "/gradients/" not in tag} == row


def test_gradients_are_measured_when_due_for_every_cycle_that_has_any(tmp_path):
    trained(tmp_path, compute_gradient_stats=True, gradient_stats_interval=2, **CURRICULUM)
    cycles = {
        step: sorted({tag.split("_")[1] for tag in row if tag.startswith("train/gradients/")})
        for step, row in metric_rows(tmp_path).items()
    }
    every = ["0", "1", "2"]
    assert cycles == {1: [], 2: ["2"], 3: [], 4: ["2"], 5: [], 6: every, 7: [], 8: every}


def test_a_cycles_gradient_norms_are_those_of_its_own_loss(tmp_path):
    state, recipe, session = set_up(tmp_path, **supervised())
    batch = next(session.train_batches(0))
    row = gradient_stats(state, recipe, batch, session)
    for cycle in range(3):
        model = copy.deepcopy(state.model)
        output = model(model.initial_carry(batch), batch, GradientPath.full(model.H_cycles))
        F.cross_entropy(output.cycle_logits[cycle].flatten(0, 1), batch.labels.flatten().long()).backward()
        norms = [p.grad.norm().item() for name, p in model.named_parameters() if not name.startswith("q_head")]
        expected = {"mean": sum(norms) / len(norms), "max": max(norms), "min": min(norms)}
        for name, value in expected.items():
            assert row[f"train/gradients/step_{cycle}_grad_norm_{name}"] == pytest.approx(value, rel=1e-4)
    assert all(p.grad is None for p in state.model.parameters())


# -- interruption and resume ------------------------------------------------------------------------------------------

RESUMABLE: dict[str, dict[str, Any]] = {
    "baseline": {"optimizer": "adam_atan2", "arch": {"forward_dtype": "bfloat16"}},
    "curriculum with an average": CURRICULUM | {"ema": True, "ema_rate": 0.9, "arch": {"puzzle_emb_ndim": 16}},
    "text": supervised(arch={**TEXT_ARCH, "halt_max_steps": 2}, ema=True),
}
INTERVALS = {"eval_interval": 2, "log_interval": 3}


@pytest.fixture(scope="module", params=RESUMABLE)
def uninterrupted(request, tmp_path_factory) -> tuple[Config, Path]:
    """A run in which rows halt early, from its first step to its eighth; every checkpoint is kept."""
    config, run_dir = tiny_config(**INTERVALS, **RESUMABLE[request.param]), tmp_path_factory.mktemp("whole")
    begun(run_dir, **INTERVALS, **RESUMABLE[request.param])
    (run_dir / "metrics.jsonl").unlink()
    run_training(config, shape_of(config), 8, local_session(run_dir, config))
    return config, run_dir


def first_checkpoint(run_dir: Path, folder: Path) -> None:
    shutil.copytree(run_dir / "checkpoint_step_1", folder / "checkpoint_step_1")


def assert_same_run(first: Path, second: Path) -> None:
    assert metric_rows(first) == metric_rows(second)
    ours, theirs = (load_checkpoint(run / "final_model") for run in (first, second))
    for state in (ours, theirs):
        del state["wall_s"], state["core_seconds"]
    assert_same(ours, theirs)


@pytest.mark.parametrize("step", range(1, 8))
def test_a_run_interrupted_at_any_step_goes_on_bitwise(uninterrupted, tmp_path, step):
    config, whole = uninterrupted
    first_checkpoint(whole, tmp_path)
    with pytest.raises(RunDiedError):
        run_training(config, shape_of(config), 8, local_session(tmp_path, config, die_after=step))
    run_training(config, shape_of(config), 8, local_session(tmp_path, config))
    assert_same_run(tmp_path, whole)


def test_a_run_interrupted_again_and_again_goes_on_bitwise(uninterrupted, tmp_path):
    config, whole = uninterrupted
    first_checkpoint(whole, tmp_path)
    for step in (3, 4, 7):
        with pytest.raises(RunDiedError):
            run_training(config, shape_of(config), 8, local_session(tmp_path, config, die_after=step))
    run_training(config, shape_of(config), 8, local_session(tmp_path, config))
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("changes", [{"segments_per_update": 2}, STAGED], ids=["segments", "stages"])
def test_a_run_of_another_kind_of_step_goes_on_bitwise_from_the_middle_of_a_window(tmp_path, changes):
    config = tiny_config(**CURRICULUM, **changes, log_interval=3, eval_interval=4, ema=True)
    run_training(config, SHAPE, 8, local_session(tmp_path / "whole", config))
    broken = local_session(tmp_path / "broken", config, die_after=7 * config.segments_per_update - 1)
    with pytest.raises(RunDiedError):
        run_training(config, SHAPE, 8, broken)
    run_training(config, SHAPE, 8, local_session(tmp_path / "broken", config))
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_a_run_that_never_saved_begins_again(tmp_path):
    config = tiny_config()
    with pytest.raises(RunDiedError):
        run_training(config, SHAPE, 8, local_session(tmp_path / "broken", config, die_after=3))
    run_training(config, SHAPE, 8, local_session(tmp_path / "broken", config))
    run_training(config, SHAPE, 8, local_session(tmp_path / "whole", config))
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_seconds_add_up_over_a_resume(tmp_path):
    config = tiny_config(eval_interval=2)
    with pytest.raises(RunDiedError):
        run_training(config, SHAPE, 8, local_session(tmp_path, config, die_after=5))
    folder = tmp_path / "checkpoint_step_4"
    state = load_checkpoint(folder)
    save_checkpoint(folder, state | {"wall_s": 1000.0})
    run_training(config, SHAPE, 8, local_session(tmp_path, config))
    assert 1000 < load_checkpoint(tmp_path / "final_model")["wall_s"] < 1060


def test_a_finished_run_has_nothing_left_to_train(tmp_path):
    config = tiny_config()
    before = trained(tmp_path)
    assert run_training(config, SHAPE, 8, local_session(tmp_path, config)) == {}
    assert_same(load_checkpoint(tmp_path / "final_model"), before)


def test_frozen_weights_stay_while_the_puzzle_embedding_learns(tmp_path):
    config = tiny_config(freeze_weights=True, puzzle_emb_lr=0.1, arch={"puzzle_emb_ndim": 16})
    run_training(config, SHAPE, 4, local_session(tmp_path, config))
    before, after = build_model(config, SHAPE).state_dict(), load_checkpoint(tmp_path / "final_model")["model"]
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"puzzle_embedding.table"}


def test_only_rows_of_puzzles_that_were_seen_move(tmp_path):
    config = tiny_config(puzzle_emb_lr=0.1, arch={"puzzle_emb_ndim": 16})
    run_training(config, SHAPE, 4, local_session(tmp_path, config, sudoku(8)))
    moved = load_checkpoint(tmp_path / "final_model")["model"]["puzzle_embedding.table"].any(1)
    assert moved.tolist() == [True] * 8 + [False] * 24


def test_a_run_killed_between_its_last_checkpoint_and_its_final_model_is_finished_by_a_resume(tmp_path, monkeypatch):
    config = tiny_config()

    def killed(folder, *content):
        if folder.name == "final_model":
            raise RunDiedError
        return save_checkpoint(folder, *content)

    monkeypatch.setattr(store, "save_checkpoint", killed)
    with pytest.raises(RunDiedError):
        run_training(config, SHAPE, 8, local_session(tmp_path, config))
    monkeypatch.undo()
    run_training(config, SHAPE, 8, local_session(tmp_path, config))
    assert (tmp_path / "final_model" / "state.pt").is_file()


def test_a_checkpoint_holds_the_average_and_the_weights_and_evaluation_uses_the_average(tmp_path):
    state = trained(tmp_path, ema=True, ema_rate=0.9)
    assert state["ema"].keys() == {name for name in state["model"] if not name.endswith("_init")}
    plain = trained(tmp_path / "plain")
    assert_same(state["model"], plain["model"])  # averaging does not change training
    rows, others = metric_rows(tmp_path)[8], metric_rows(tmp_path / "plain")[8]
    assert rows["train/total_loss"] == others["train/total_loss"]
    assert rows["eval/loss"] != others["eval/loss"]
    config = tiny_config()
    model, session = TrainState(config, SHAPE, torch.device("cpu")).model, local_session(tmp_path, config)
    model.load_state_dict(state["model"] | state["ema"])
    assert evaluate(model, session.test_batches(), softmax_cross_entropy, session).row["eval/loss"] == rows["eval/loss"]


def test_a_checkpoint_names_its_step_and_carries_its_config(tmp_path):
    trained(tmp_path, lr=2e-3)
    state = load_checkpoint(tmp_path / "checkpoint_step_4")
    assert state["step"] == 4
    assert Config.model_validate(state["config"]) == tiny_config(lr=2e-3)


# -- stopping in time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "adam_atan2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_makes_no_update(tmp_path, optimizer, bad):
    state, recipe, session = set_up(tmp_path, optimizer=optimizer)
    batches = session.train_batches(0)
    train_step(state, recipe, [next(batches)], session)
    before = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()["state"]))
    hook = state.model.lm_head.weight.register_hook(lambda gradient: gradient * bad)
    train_step(state, recipe, [next(batches)], session)
    hook.remove()
    train_step(state, recipe, [next(batches)], session)  # nor does a later one, until somebody looks
    assert_same(state.model.state_dict(), before[0])
    assert_same(state.optimizer.state_dict()["state"], before[1])
    with pytest.raises(NonFiniteError, match=r"step=2, .*grad_norm=(nan|inf), lr=0\.003"):
        state.guard.check()


def test_a_non_finite_loss_stops_the_run_and_the_last_checkpoint_stands(tmp_path):
    trained(tmp_path, steps=4)
    folder = tmp_path / "checkpoint_step_4"
    state = load_checkpoint(folder)
    state["model"]["lm_head.weight"][0, 0] = math.nan
    save_checkpoint(folder, state)
    config = tiny_config(**supervised())
    with pytest.raises(NonFiniteError) as caught:
        run_training(config, SHAPE, 8, local_session(tmp_path, config))
    for part in ("step=5,", "total_loss=nan", "act_loss=nan", "supervised_loss=nan", "lm_loss=nan", "grad_norm=nan"):
        assert part in str(caught.value)
    for part in ("lr=0.003", "lower lr", "lower deep_supervision_weight", "curriculum_enabled=true"):
        assert part in str(caught.value)
    last = metric_rows(tmp_path)[5]
    assert last.keys() - {"step", "wall_s"} == {"train/total_loss", "train/grad_norm", "train/learning_rate"}
    assert math.isnan(last["train/total_loss"])
    assert last["train/learning_rate"] == pytest.approx(0.003)
    assert {p.name for p in tmp_path.glob("checkpoint_*")} == {"checkpoint_step_4"}
    after = load_checkpoint(folder)
    torch.testing.assert_close(dict(after["model"]), dict(state["model"]), rtol=0, atol=0, equal_nan=True)


def test_a_rate_beyond_all_reason_stops_the_run_before_it_saves_anything(tmp_path):
    config = tiny_config(lr=1e30, lr_warmup_steps=0)
    with pytest.raises(NonFiniteError, match=r"step=[23],.*lr=1e\+30"):
        run_training(config, SHAPE, 8, local_session(tmp_path, config))
    assert not list(tmp_path.glob("checkpoint_*"))
    assert not (tmp_path / "final_model").exists()


# -- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(10, None, 150), (10, 100, 100), (10, 1000, 150), (None, 70, 70)],  # 10 · 40 · 3 / 8 = 150
)
def test_epochs_count_passes_over_the_puzzles_and_max_steps_caps_them(epochs, max_steps, expected):
    config = tiny_config(epochs=epochs, max_steps=max_steps)
    assert total_steps(config, groups=40, mean_puzzle_examples=3.0) == expected


def test_a_step_of_several_segments_takes_as_many_batches_of_its_epochs_and_of_its_rates(tmp_path):
    several = tiny_config(epochs=10, max_steps=None, segments_per_update=4)
    assert total_steps(several, groups=40, mean_puzzle_examples=3.0) == 37  # 1200 / (8 · 4)
    with pytest.raises(ValueError, match=r"gives no step: 31 puzzles .*global_batch_size=8 · segments_per_update=4;"):
        total_steps(tiny_config(epochs=1, max_steps=None, segments_per_update=4), groups=31, mean_puzzle_examples=1.0)
    trained(tmp_path, steps=2, segments_per_update=3)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["throughput/puzzles_per_s"] == pytest.approx(24 * row["throughput/steps_per_s"])


def test_too_few_puzzles_for_one_step_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"epochs=1 gives no step: 7 puzzles .*global_batch_size=8"):
        total_steps(tiny_config(epochs=1, max_steps=None), groups=7, mean_puzzle_examples=1.0)
