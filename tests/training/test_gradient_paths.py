"""Training along each path of the gradient: against autograd over plainly written cycles, and where paths coincide."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import SHAPE, assert_same, local_session, metric_rows, sudoku, supervised, tiny_config, tiny_model
from torch import Tensor

from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, Carry, TinyRecursiveModel
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training
from trm_ray.training.losses import softmax_cross_entropy
from trm_ray.training.segment import build_segment
from trm_ray.training.state import build_supervision
from trm_ray.training.supervision import CycleWeights

CPU = torch.device("cpu")
DETACHED: dict[str, Any] = {"detach_cycles": True}
BPTT_LAST: dict[str, Any] = {"deep_supervision_enabled": False, "recurrent_grad_depth": "all"}

# -- one segment ------------------------------------------------------------------------------------------------------


def plain_loss(
    model: TinyRecursiveModel, carry: Carry, batch: Batch, leaf: Tensor, weights: tuple[float, ...], cut: list[bool]
) -> tuple[Tensor, list[Tensor]]:
    """The loss of a segment and each cycle's, with answer and latent detached before the cycles where `cut` says so."""
    rows = F.embedding(batch.puzzle_identifiers, model.puzzle_embedding.table) + leaf
    prefix = F.pad(rows, (0, 2 * 16 - rows.shape[1])).view(len(rows), 2, 16)
    x = 4 * torch.cat((prefix, F.embedding(batch.inputs, model.embed_tokens)), 1)
    y, z, ces = carry.answer, carry.latent, []
    for detached in cut:
        y, z = (y.detach(), z.detach()) if detached else (y, z)
        for _ in range(model.L_cycles):
            z = model.blocks(z + (y + x))
        y = model.blocks(y + z)
        ces.append(F.cross_entropy(model.lm_head(y)[:, 2:].flatten(0, 1), batch.labels.flatten().long()))
    solved = (model.lm_head(y)[:, 2:].argmax(-1) == batch.labels).all(-1).float()
    halt = F.binary_cross_entropy_with_logits(model.q_head(y[:, 0])[:, 0], solved)
    supervised = (weight * ce for weight, ce in zip(weights, ces, strict=True) if weight)
    return sum(supervised) / sum(weights) + halt / 2, ces


@pytest.mark.parametrize(
    ("weights", "path", "cut"),
    [
        ((0, 0, 1), {}, [0, 0, 1]),
        ((0, 0, 1), {"depth": 3}, [0, 0, 0]),
        ((0, 0.5, 1), {"depth": 2}, [0, 1, 0]),
        ((0, 0.5, 1), {}, [0, 0, 0]),
        ((0.25, 0, 1), {}, [0, 0, 0]),
        ((0.25, 0.5, 1), {"detached": True}, [1, 1, 1]),
        ((0.25, 0, 1), {"detached": True}, [1, 1, 1]),
        ((0, 0.5, 1), {"detached": True}, [1, 1, 1]),
    ],
    ids=["baseline", "bptt_last", "k=2", "last two", "first and last", *(f"detached {i}" for i in range(3))],
)
def test_a_segment_has_the_loss_and_the_gradients_of_plain_autograd_over_its_cycles(weights, path, cut):
    model = tiny_model(residual_init_scale=1.0, puzzle_emb_ndim=20, puzzle_emb_len=2)
    batch = sudoku(4).batch()
    with torch.no_grad():
        model.q_head.weight.normal_(generator=torch.Generator().manual_seed(3))
        model.puzzle_embedding.table.normal_(generator=torch.Generator().manual_seed(4))
        carry = model(model.initial_carry(batch), batch).carry
    plain, leaf = copy.deepcopy(model), torch.zeros(4, 20, requires_grad=True)
    loss, ces = plain_loss(plain, carry, batch, leaf, weights, cut)
    loss.backward()

    segment = build_segment(softmax_cross_entropy, 4, CPU, compiled=False)
    given = CycleWeights.of(weights, GradientPath.along(weights, **path))
    result = segment(model, carry, batch, torch.zeros(4), given)
    result.loss.backward()

    sums = result.sums
    assert sums["total_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert [sums[f"step_{i}_loss"].item() for i in range(3)] == pytest.approx([ce.item() for ce in ces], rel=1e-5)
    before = sum(weight * ce.item() for weight, ce in zip(weights[:-1], ces[:-1], strict=True)) / sum(weights)
    assert sums["supervised_loss"].item() == pytest.approx(before, rel=1e-5)
    torch.testing.assert_close(result.puzzle_leaf.grad, leaf.grad, rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    # The carry goes on as ever: a segment counts once, whatever it falls into.
    whole = model(carry, batch, min_steps=torch.zeros(4)).carry
    assert_same({**vars(result.carry), "puzzles": vars(result.carry.puzzles)}, {**vars(whole), "puzzles": vars(batch)})


# -- the scenario of a config -----------------------------------------------------------------------------------------


def scenario(step: int, **changes: Any) -> tuple[tuple[float, ...], GradientPath]:
    supervision = build_supervision(tiny_config(**changes))
    return supervision.weights(step), supervision.path(step)


def test_the_keys_choose_weights_and_path_as_worked_by_hand():
    half = supervised("constant", 0.5)
    assert scenario(0, **half, recurrent_grad_depth=2) == ((0, 0.5, 1), GradientPath((False, True, True), 2))
    assert scenario(0, **half, recurrent_grad_depth=1) == ((0, 0, 1), GradientPath.last(3))
    assert (
        scenario(0, **half, recurrent_grad_depth="all") == scenario(0, **half) == ((0.5, 0.5, 1), GradientPath.full(3))
    )
    assert scenario(0, **BPTT_LAST) == ((0, 0, 1), GradientPath((False, False, True), 3))
    assert scenario(0, **half, **DETACHED) == ((0.5, 0.5, 1), GradientPath((True, True, True), 1, detached=True))
    ramp = {"curriculum_enabled": True, "curriculum_start_step": 3, "curriculum_end_step": 5}
    for keys, path in (
        (DETACHED, GradientPath.last(3)),
        ({"recurrent_grad_depth": 2}, GradientPath((False, False, True), 2)),
    ):
        assert scenario(3, **half, **ramp, **keys) == ((0, 0, 1), path)
        assert scenario(4, **half, **ramp, **keys)[0][1:] == (0.25, 1)


# -- whole runs -------------------------------------------------------------------------------------------------------


def trained(folder: Path, steps: int = 4, **changes: Any) -> dict[str, Any]:
    config = tiny_config(eval_interval=2, **changes)
    run_training(config, SHAPE, steps, local_session(folder, config))
    return load_checkpoint(folder / "final_model")["model"]


def test_paths_that_come_to_the_same_train_bitwise_alike_and_others_do_not(tmp_path):
    runs = {
        "baseline": {},
        "supervised": supervised(),
        "all": supervised(recurrent_grad_depth="all"),
        "detached at weight 0": supervised(weight=0.0, **DETACHED),
        "k=1": supervised(recurrent_grad_depth=1),
        "k=2": supervised(recurrent_grad_depth=2),
        "detached": supervised(**DETACHED),
        "bptt_last": BPTT_LAST,
    }
    states = {name: trained(tmp_path / name, **changes) for name, changes in runs.items()}
    for name in ("detached at weight 0", "k=1"):
        assert_same(states[name], states["baseline"])
        rows = [metric_rows(tmp_path / run)[4] for run in (name, "baseline")]
        assert rows[0] | {"train/curriculum_weight": 0.0} == rows[1]
    assert_same(states["all"], states["supervised"])
    distinct = ("baseline", "supervised", "k=2", "detached", "bptt_last")
    assert len({states[name]["lm_head.weight"].sum().item() for name in distinct}) == len(distinct)


@pytest.mark.parametrize("changes", [supervised(**DETACHED), BPTT_LAST], ids=["detached", "bptt_last"])
def test_a_run_goes_on_bitwise_from_its_middle_and_measures_its_gradients(tmp_path, changes):
    options = {**changes, "ema": True, "compute_gradient_stats": True, "gradient_stats_interval": 3}
    straight = trained(tmp_path / "straight", 4, **options)
    trained(tmp_path / "parts", 2, **options)
    (tmp_path / "parts" / "final_model").rename(tmp_path / "parts" / "other")
    assert_same(trained(tmp_path / "parts", 4, **options), straight)
    rows = [metric_rows(tmp_path / name) for name in ("straight", "parts")]
    assert rows[0] == rows[1]
    cycles = (0, 1, 2) if changes.get("deep_supervision_enabled") else (2,)
    for cycle in range(3):
        assert (f"train/gradients/step_{cycle}_grad_norm_mean" in rows[0][3]) == (cycle in cycles)
