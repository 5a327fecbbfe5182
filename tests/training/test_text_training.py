"""Training on text: tokens weigh alike, nothing halts, noise teaches nothing, and large vocabularies fit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TEXT_ARCH, local_session, metric_rows, supervised, text_model, text_shape, texts, tiny_config
from torch import Tensor

from trm_ray.measure import step_cost
from trm_ray.model import unread
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.training.evaluation import evaluate
from trm_ray.training.flops import step_flops
from trm_ray.training.loop import run_training
from trm_ray.training.losses import softmax_cross_entropy
from trm_ray.training.state import TokenShape, build_model
from trm_ray.training.supervision import CycleWeights, SegmentLosses, segment_losses

LENGTH = 12
WEIGHTS = (0.25, 0.5, 1.0)
VOCABULARY = 2**15


def nats(model: TinyRecursiveModel, batch: Batch) -> list[Tensor]:
    """Sum each cycle's cross-entropies over the labelled tokens, from all its logits at once."""
    output = model(model.initial_carry(batch), batch, GradientPath.full(3))
    labels = batch.labels.flatten().long()
    return [F.cross_entropy(c.float().flatten(0, 1), labels, reduction="sum") for c in output.cycle_logits]


def losses_of(model: TinyRecursiveModel, batch: Batch, num_puzzles: int) -> SegmentLosses:
    output = model(model.initial_carry(batch), batch, GradientPath.full(3))
    return segment_losses(output, CycleWeights.of(WEIGHTS), softmax_cross_entropy, num_puzzles)


def test_a_texts_loss_is_a_sum_over_tokens_and_has_no_part_for_halting():
    model, batch = text_model(LENGTH), texts(4, LENGTH, labelled=0.2).batch()
    losses, cells = losses_of(model, batch, 4), 4 * LENGTH
    sums = [total / cells for total in nats(model, batch)]
    torch.testing.assert_close(list(losses.cycles), sums)
    torch.testing.assert_close(losses.act, sums[2] / 1.75)
    torch.testing.assert_close(losses.supervised, (0.25 * sums[0] + 0.5 * sums[1]) / 1.75)
    assert losses.halt == 0
    assert losses.labelled is not None
    assert losses.labelled.item() == pytest.approx((batch.labels != -100).sum().item() / cells)


def test_gradients_of_the_shares_of_a_batch_add_up_to_those_of_the_whole():
    model, batch = text_model(LENGTH), texts(5, LENGTH, labelled=0.2).batch()
    parts = [batch.each(lambda rows, part=part: rows[part]) for part in (slice(0, 2), slice(2, 5))]
    wanted = [p for name, p in model.named_parameters() if "q_head" not in name]
    whole, *shares = (torch.autograd.grad(losses_of(model, rows, 5).total, wanted) for rows in (batch, *parts))
    for together, *apart in zip(whole, *shares, strict=True):
        torch.testing.assert_close(sum(apart), together)


def test_logged_losses_are_averages_over_the_labelled_tokens_of_their_window(tmp_path):
    """With a rate of next to nothing, so that all steps have the first weights."""
    data = texts(6, LENGTH, labelled=0.2)
    config = tiny_config(
        **supervised("constant", 0.5, arch=TEXT_ARCH, lr=1e-30, max_steps=3, log_interval=3, global_batch_size=6)
    )
    run_training(config, text_shape(LENGTH), 3, local_session(tmp_path, config, data, test=data))
    row, batch = metric_rows(tmp_path)[3], data.batch()
    first, second, last = (
        total.item() / (batch.labels != -100).sum().item() for total in nats(text_model(LENGTH), batch)
    )
    expected = {
        **{"train/deep_supervision/step_0_loss": first, "train/first_segment/step_1_loss": second},
        **{"train/lm_loss": last, "train/act_loss": last / 2, "train/supervised_loss": (first + second) / 4},
        **{
            "train/total_loss": last / 2 + (first + second) / 4,
        },
        **{"eval/loss": last, "eval/first_segment/step_0_loss": first},
    }
    assert {tag: row[tag] for tag in expected} == pytest.approx(expected, rel=1e-5)
    assert row["eval/accuracy"] == pytest.approx(row["train/act/accuracy"])


def test_an_evaluation_averages_over_tokens_however_they_are_dealt_to_batches(tmp_path):
    model, data = text_model(LENGTH, arch={"halt_max_steps": 2}), texts(7, LENGTH, labelled=0.2)
    session = local_session(tmp_path, tiny_config())
    rows = []
    for size in (7, 3):
        batches = [data[i : i + size].batch() for i in range(0, 7, size)]
        rows.append(evaluate(model, batches, softmax_cross_entropy, session).row)
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_nothing_is_to_be_learned_from_noise(tmp_path):
    """Uniformly random bytes have 8 bits each, whatever has been learned by heart."""
    arch = TEXT_ARCH | {"residual_init_scale": 1.0, "H_cycles": 2, "L_cycles": 1, "hidden_size": 32}
    config = tiny_config(**supervised(arch=arch, max_steps=80, lr=2e-2, eval_interval=40, log_interval=10))
    train, held_out = texts(4, 32), texts(64, 32, seed=1)
    run_training(config, text_shape(32), 80, local_session(tmp_path, config, train, test=held_out, test_batch_size=64))
    rows = metric_rows(tmp_path)
    assert rows[80]["train/lm_loss"] / math.log(2) < 6
    assert all(rows[step]["eval/loss"] / math.log(2) > 8 for step in (40, 80))


# -- a large vocabulary -----------------------------------------------------------------------------------------------


HIGHEST = Path("/proc/self/clear_refs")


@pytest.mark.skipif(not HIGHEST.exists(), reason="Linux alone tells the highest memory since a moment")
def test_three_cycles_over_a_vocabulary_of_32k_take_less_memory_than_the_logits_of_one():
    """Without chunks the logits of all three are kept for the backward pass, and their gradients come on top."""
    arch = {"L_cycles": 1, "num_heads": 1, "hidden_size": 8, "document_mask": False}
    model, batch = build_model(tiny_config(arch=TEXT_ARCH | arch), TokenShape(64, VOCABULARY)), texts(16, 64).batch()
    losses_of(model, batch.each(lambda rows: rows[:1]), 1).total.backward()  # loads what it needs of the libraries
    HIGHEST.write_text("5")
    before = step_cost._highest_bytes(torch.device("cpu"))
    losses_of(model, batch, 16).total.backward()
    logits = 16 * 64 * VOCABULARY * 4
    assert unread.CHUNK * 4 < step_cost._highest_bytes(torch.device("cpu")) - before < logits


# -- operations -------------------------------------------------------------------------------------------------------


def test_causal_attention_counts_the_pairs_that_it_must_look_at():
    """Position i looks at i + 1 of them, and of an embedding of another width each token is projected once."""
    arch = TEXT_ARCH | {"H_cycles": 1, "L_cycles": 1, "num_heads": 1, "hidden_size": 2, "embedding_size": 5}
    config = tiny_config(global_batch_size=3, arch=arch)
    inner = 8  # 2·2·2/3, rounded up to a multiple of 8
    layer = sum(4 * 2 * 2 + 2 * (i + 1) * 2 + 3 * 2 * inner for i in range(4))
    forward = 2 * layer + 4 * 2 * 7 + 4 * 5 * 2
    assert step_flops(config, TokenShape(4, 7, separator=0), GradientPath.last(1)) == 2 * 3 * 3 * forward


def test_a_frozen_embedding_stays_as_it_is_and_everything_else_learns(tmp_path):
    arch = TEXT_ARCH | {"pretrained_embeddings": "any.safetensors", "freeze_embeddings": True}
    changes = supervised(arch=arch, compute_gradient_stats=True, gradient_stats_interval=1, ema=True)
    config, data = tiny_config(**changes, max_steps=2), texts(8, LENGTH)
    run_training(config, text_shape(LENGTH), 2, local_session(tmp_path, config, data, test=data))
    before = text_model(LENGTH, **{k: v for k, v in changes.items() if k != "arch"}, arch=arch).state_dict()
    after = torch.load(tmp_path / "final_model" / "state.pt", weights_only=True)["model"]
    still = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert still == {"embed_tokens", "q_head.weight", "q_head.bias", "answer_init", "latent_init"}
    assert np.isfinite(metric_rows(tmp_path)[2]["train/gradients/step_0_grad_norm_mean"])
