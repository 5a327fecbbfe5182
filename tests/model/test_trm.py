"""The recursion against the original's golden outputs and a transcription in plain torch; the carry; low precision."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SHAPE, sudoku, tiny_model
from torch import Tensor

from trm_ray.config import ArchConfig, Config
from trm_ray.model import trm
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, Carry, TinyRecursiveModel
from trm_ray.training.losses import stablemax_cross_entropy, stablemax_cross_entropy_float64
from trm_ray.training.state import TokenShape, build_model
from trm_ray.training.supervision import CycleWeights, segment_losses

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "conformance"
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden outputs of the original are not at hand")


# -- the original's golden outputs ------------------------------------------------------------------------------------


RENAMED = {
    "_orig_mod.": "",
    "model.inner.": "",
    "H_init": "answer_init",
    "L_init": "latent_init",
    "embed_tokens.embedding_weight": "embed_tokens",
    "L_level.layers": "blocks",
    "self_attn": "mixer",
    "mlp_t": "mixer.mlp",
    "puzzle_emb.weights": "puzzle_embedding.table",
    "embed_pos.embedding_weight": "embed_positions",
}


def our_name(original: str) -> str:
    for theirs, ours in RENAMED.items():
        original = original.replace(theirs, ours)
    return original


def golden_model(case: str) -> TinyRecursiveModel:
    """Build the case by its values alone and load all that its file holds."""
    original = json.loads((GOLDEN / f"{case}.json").read_text())
    ours = set(ArchConfig.model_fields) & original.keys()
    arch = {name: original[name] for name in ours} | {"mixer": "mlp" if original["mlp_t"] else "attention"}
    if original["mlp_t"] and original["pos_encodings"] == "rope":  # which its mixer never looks at
        arch["pos_encodings"] = "none"
    config = Config.model_validate({"data_paths": ["in-memory"], "max_steps": 1, "arch": arch})
    sizes = (original[name] for name in ("seq_len", "vocab_size", "num_puzzle_identifiers"))
    model = build_model(config, TokenShape(*sizes))
    saved = torch.load(GOLDEN / f"{case}.pt", weights_only=True)
    model.load_state_dict({our_name(name): value for name, value in saved.items()})
    return model


def golden_batch(case: str) -> tuple[Batch, dict[str, np.ndarray]]:
    arrays = dict(np.load(GOLDEN / f"{case}.npz"))
    return Batch(*(torch.from_numpy(arrays[n]) for n in ("inputs", "labels", "puzzle_identifiers"))), arrays


CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def segments_to_compare(case: str) -> tuple[int, float]:
    """Say how many segments agree within which tolerance.

    With random weights the mixer's recursion is chaotic: a change of 1e-7 in its initial answer grows to 8e-5 in the
    first segment's logits and thirtyfold with each further one, so rounding alone leaves only the first to compare.
    """
    chaotic = json.loads((GOLDEN / f"{case}.json").read_text())["mlp_t"]
    return (1, 5e-4) if chaotic else (len(np.load(GOLDEN / f"{case}.npz")["q"]), 1e-4)


@golden
@pytest.mark.parametrize("case", CASES)
def test_logits_halt_logits_and_losses_equal_the_originals(case):
    model, (batch, expected), (segments, tolerance) = golden_model(case), golden_batch(case), segments_to_compare(case)
    carry = model.initial_carry(batch)
    for segment in range(segments):
        with torch.no_grad():
            output = model(carry, batch)
        carry, logits = output.carry, output.cycle_logits[-1]
        torch.testing.assert_close(logits, torch.from_numpy(expected["logits"][segment]), rtol=0, atol=tolerance)
        torch.testing.assert_close(output.halt_logits, torch.from_numpy(expected["q"][segment]), rtol=0, atol=tolerance)
        for cell_loss in (stablemax_cross_entropy, stablemax_cross_entropy_float64):
            losses = segment_losses(output, CycleWeights.of((1.0,) * model.H_cycles), cell_loss, num_puzzles=1)
            assert losses.lm.item() == pytest.approx(expected["lm"][segment], rel=1e-5)
        assert losses.halt.item() == pytest.approx(expected["ql"][segment], rel=1e-5)
        plain = replace(output, cycle_logits=(logits,))
        total = segment_losses(plain, CycleWeights.of((1.0,)), stablemax_cross_entropy, num_puzzles=1).total
        assert total.item() == pytest.approx(expected["loss"][segment], rel=1e-5)
    assert carry.halted.all() == (segments == model.halt_max_steps)


@golden
@pytest.mark.parametrize("case", CASES)
def test_gradient_norms_of_every_parameter_equal_the_originals(case):
    model, (batch, _) = golden_model(case), golden_batch(case)
    output = model(model.initial_carry(batch), batch)
    weights = (*(0.0,) * (model.H_cycles - 1), 1.0)
    segment_losses(output, CycleWeights.of(weights), stablemax_cross_entropy, len(batch)).total.backward()
    expected = json.loads((GOLDEN / f"{case}.grads.json").read_text())
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms == pytest.approx({our_name(name): value for name, value in expected.items()}, rel=1e-3)


# -- a transcription of the pseudo-code -------------------------------------------------------------------------------


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)


def swiglu(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    gate, up = F.linear(x, weights[f"{name}.gate_up_proj.weight"]).chunk(2, -1)
    return F.linear(F.silu(gate) * up, weights[f"{name}.down_proj.weight"])


def rotated(x: Tensor) -> Tensor:
    """Turn pairs (i, i + half) of the channels by position · 10000^(−i / half)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2]).unsqueeze(1) * 10000.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


def attend(x: Tensor, weights: dict[str, Tensor], heads: int, rope: bool) -> Tensor:
    batch, length, size = x.shape
    qkv = F.linear(x, weights["blocks.0.mixer.qkv_proj.weight"]).view(batch, length, 3 * heads, size // heads)
    q, k, v = (t.transpose(1, 2) for t in qkv.split(heads, 2))
    if rope:
        q, k = rotated(q), rotated(k)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(size // heads)).softmax(-1)
    return F.linear((scores @ v).transpose(1, 2).reshape(x.shape), weights["blocks.0.mixer.o_proj.weight"])


def net(x: Tensor, weights: dict[str, Tensor], mixer: str, rope: bool) -> Tensor:
    """One layer; with the MLP mixer the original transposes, feeds forward and norms, and transposes back."""
    if mixer == "mlp":
        x = x.transpose(1, 2)
        x = rms(x + swiglu(x, weights, "blocks.0.mixer.mlp")).transpose(1, 2)
    else:
        x = rms(x + attend(x, weights, heads=2, rope=rope))
    return rms(x + swiglu(x, weights, "blocks.0.mlp"))


def transcription(
    weights: dict[str, Tensor], carry: Carry, batch: Batch, arch: dict[str, Any], supervise: bool
) -> tuple[list[Tensor], Tensor]:
    """H-cycles of latent updates and an answer update, as in the paper's pseudo-code; earlier cycles under no_grad.

    `rows` among the weights is what the puzzle embedding holds for each puzzle of the batch.
    """
    size, prefix = weights["embed_tokens"].shape[1], 0
    x = F.embedding(batch.inputs, weights["embed_tokens"])
    if "rows" in weights:
        prefix = arch["puzzle_emb_len"]
        padded = torch.cat((weights["rows"], torch.zeros(len(x), prefix * size - weights["rows"].shape[1])), 1)
        x = torch.cat((padded.reshape(len(x), prefix, size), x), 1)
    if "embed_positions" in weights:
        x = 0.707106781 * (x + weights["embed_positions"])
    x = math.sqrt(size) * x
    y, z, logits = carry.answer, carry.latent, []
    how = (weights, arch.get("mixer", "mlp"), arch.get("pos_encodings") == "rope")
    for cycle in range(3):
        with torch.set_grad_enabled(supervise or cycle == 2):
            for _ in range(2):
                z = net(z + (y + x), *how)
            y = net(y + z, *how)
            logits.append(F.linear(y, weights["lm_head.weight"])[:, prefix:])
    return logits, F.linear(y[:, 0], weights["q_head.weight"], weights["q_head.bias"])[:, 0]


def started(model: TinyRecursiveModel, rows: int = 4) -> tuple[Carry, Batch]:
    """A carry in the middle of its puzzles, and its batch."""
    batch = sudoku(rows).batch()
    with torch.no_grad():
        return model(model.initial_carry(batch), batch).carry, batch


ARCHS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "mlp behind a puzzle embedding": {"puzzle_emb_ndim": 20, "puzzle_emb_len": 3},
    "mlp with learned positions": {"pos_encodings": "learned"},
    "attention": {"mixer": "attention", "pos_encodings": "none"},
    "attention with rope": {"mixer": "attention", "pos_encodings": "rope"},
    "attention with all": {
        "mixer": "attention",
        "pos_encodings": "learned",
        "puzzle_emb_ndim": 32,
        "puzzle_emb_len": 2,
    },
}


@pytest.mark.parametrize("supervise", [False, True], ids=["baseline", "supervised"])
@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
def test_a_segment_equals_the_transcription_with_all_its_gradients(arch, supervise):
    model = tiny_model(residual_init_scale=1.0, **arch)
    with torch.no_grad():
        model.q_head.weight.normal_(generator=torch.Generator().manual_seed(3))
        if model.puzzle_embedding is not None:
            model.puzzle_embedding.table.normal_(generator=torch.Generator().manual_seed(4))
    carry, batch = started(model)
    output = model(carry, batch, GradientPath.full(3) if supervise else None)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    leaves = list(model.parameters())
    if model.puzzle_embedding is not None:
        assert output.puzzle_leaf is not None
        weights["rows"] = model.puzzle_embedding.table[batch.puzzle_identifiers.long()].requires_grad_()
        leaves.append(output.puzzle_leaf)
    logits, halt = transcription(weights, carry, batch, arch, supervise)
    torch.testing.assert_close(list(output.cycle_logits), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.halt_logits, halt, rtol=1e-4, atol=1e-4)

    def loss(cycles, halts):
        flat = (F.cross_entropy(c.flatten(0, 1), batch.labels.flatten().long()) for c in cycles)
        return sum(w * ce for w, ce in zip((0.2, 0.3, 1.0), flat, strict=True)) + halts.square().mean()

    expected = torch.autograd.grad(loss(logits, halt), list(weights.values()))
    found = torch.autograd.grad(loss(output.cycle_logits, output.halt_logits), leaves)
    for name, ours, theirs in zip(weights, found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=3e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_only_the_last_cycle_receives_gradients_in_the_baseline():
    model = tiny_model()
    carry, batch = started(model)
    baseline = model(carry, batch)
    assert [logits.requires_grad for logits in baseline.cycle_logits] == [False, False, True]
    full = model(carry, batch, GradientPath.full(model.H_cycles))
    assert all(logits.requires_grad for logits in full.cycle_logits)
    for ours, theirs in zip(baseline.cycle_logits, full.cycle_logits, strict=True):
        assert torch.equal(ours, theirs)
    one, all_cycles = (
        torch.autograd.grad(out.cycle_logits[-1].square().sum(), list(model.blocks.parameters()))
        for out in (baseline, full)
    )
    assert not any(torch.allclose(a, b, rtol=1e-2) for a, b in zip(one, all_cycles, strict=True))


# -- beginnings -------------------------------------------------------------------------------------------------------


def test_the_halt_head_begins_at_never_halt_whatever_it_sees():
    model = tiny_model(hidden_size=64)
    assert not model.q_head.weight.any()
    carry, batch = started(model)
    assert torch.equal(model(carry, batch).halt_logits, torch.full((4,), -5.0))


def test_a_question_is_its_token_embedding_scaled_to_unit_variance():
    model = tiny_model(hidden_size=256, num_heads=4)
    inputs = torch.arange(6).repeat(16, 3)[:, :16]
    question = trm._Recursion(model)._embed(inputs, None)
    torch.testing.assert_close(question, 16.0 * model.embed_tokens[inputs])
    assert question.std().item() == pytest.approx(1.0, rel=0.05)


def test_learned_positions_are_added_and_the_sum_keeps_its_variance():
    model = tiny_model(hidden_size=256, num_heads=4, mixer="attention", pos_encodings="learned")
    assert model.embed_positions is not None
    assert model.embed_positions.shape == (SHAPE.seq_len, 256)
    question = trm._Recursion(model)._embed(torch.full((2, 16), 3), None)
    expected = 16 * math.sqrt(0.5) * (model.embed_tokens[3] + model.embed_positions[5])
    torch.testing.assert_close(question[1, 5], expected)


def test_the_initial_states_are_unit_normal_saved_and_never_trained():
    model = tiny_model(hidden_size=1024)
    assert {"answer_init", "latent_init"} <= model.state_dict().keys()
    assert not {"answer_init", "latent_init"} & dict(model.named_parameters()).keys()
    for init in (model.answer_init, model.latent_init):
        assert init.std().item() == pytest.approx(1.0, rel=0.08)  # 1024 draws: ±2 %
    assert not torch.equal(model.answer_init, model.latent_init)


def test_a_seed_fixes_all_weights():
    first, again, other = (tiny_model(seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed_tokens"], other["embed_tokens"])


# -- the carry --------------------------------------------------------------------------------------------------------


def with_halt_bias(model: TinyRecursiveModel, bias: float) -> TinyRecursiveModel:
    torch.nn.init.constant_(model.q_head.get_parameter("bias"), bias)
    return model


def test_the_first_segment_takes_the_batchs_puzzles_and_the_initial_states():
    model, batch = tiny_model(), sudoku(4).batch()
    carry = model.initial_carry(batch)
    assert carry.halted.all()
    noise = replace(carry, answer=torch.full_like(carry.answer, 7.0), latent=torch.full_like(carry.latent, 7.0))
    fresh = replace(
        carry,
        answer=model.answer_init.expand_as(carry.answer),
        latent=model.latent_init.expand_as(carry.latent),
        halted=torch.zeros(4, dtype=torch.bool),
    )
    expected = model(fresh, batch)
    for start in (carry, noise):
        output = model(start, batch)
        assert torch.equal(output.cycle_logits[-1], expected.cycle_logits[-1])
        assert output.carry.steps.tolist() == [1, 1, 1, 1]


def test_halted_rows_take_the_batchs_puzzle_and_the_others_keep_their_own():
    model = tiny_model()
    carry, first = started(model)
    second = sudoku(4, seed=5).batch()
    halted = torch.tensor([True, False, False, True])
    carry = replace(carry, halted=halted, steps=torch.tensor([3, 1, 2, 3], dtype=torch.int32))
    output = model(carry, second)
    for name in ("inputs", "labels", "puzzle_identifiers"):
        mine, new, old = (getattr(b, name) for b in (output.carry.puzzles, second, first))
        assert torch.equal(mine[[0, 3]], new[[0, 3]])
        assert torch.equal(mine[[1, 2]], old[[1, 2]])
    assert output.carry.steps.tolist() == [1, 2, 3, 1]
    fresh = model(model.initial_carry(second), second)
    going_on = model(replace(carry, halted=torch.zeros_like(halted)), first)
    for field in ("answer", "latent"):
        mine, new, old = (getattr(o.carry, field) for o in (output, fresh, going_on))
        torch.testing.assert_close(mine[[0, 3]], new[[0, 3]])
        torch.testing.assert_close(mine[[1, 2]], old[[1, 2]])


def test_the_new_carry_is_detached_and_is_the_state_after_the_last_cycle():
    model = tiny_model()
    carry, batch = started(model)
    output = model(carry, batch, GradientPath.full(model.H_cycles))
    assert not output.carry.answer.requires_grad
    assert not output.carry.latent.requires_grad
    torch.testing.assert_close(model.lm_head(output.carry.answer), output.cycle_logits[-1])


@pytest.mark.parametrize(
    ("bias", "min_steps", "expected"),
    [
        (1.0, [0, 0, 0, 0], [True, True, True, True]),  # halts as soon as the logit is above 0
        (0.0, [0, 0, 0, 0], [False, False, False, True]),  # 0 is not above 0; the last row has had its 3 segments
        (1.0, [2, 3, 3, 3], [True, False, False, True]),  # exploration keeps a row going on
        (-1.0, [0, 0, 0, 0], [False, False, False, True]),
        (1.0, None, [False, False, False, True]),  # evaluation ignores the halt head
    ],
)
def test_a_row_halts_by_its_logit_past_its_minimum_or_at_the_most_steps(bias, min_steps, expected):
    model = with_halt_bias(tiny_model(), bias)
    carry, batch = started(model)
    carry = replace(carry, halted=torch.zeros(4, dtype=torch.bool), steps=torch.tensor([1, 1, 1, 2]))
    fewest = None if min_steps is None else torch.tensor(min_steps)
    output = model(carry, batch, min_steps=fewest)
    assert output.carry.steps.tolist() == [2, 2, 2, 3]
    assert output.carry.halted.tolist() == expected


def test_a_puzzle_is_replaced_every_third_segment_when_nothing_halts_earlier():
    model = tiny_model()
    batches = [sudoku(4, seed=s).batch() for s in range(7)]
    carry, seen = model.initial_carry(batches[0]), []
    for batch in batches:
        with torch.no_grad():
            carry = model(carry, batch, min_steps=torch.zeros(4)).carry
        seen.append(next(i for i, b in enumerate(batches) if torch.equal(b.labels, carry.puzzles.labels)))
    assert seen == [0, 0, 0, 3, 3, 3, 6]


# -- low precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [{}, {"mixer": "attention", "pos_encodings": "rope"}], ids=["mlp", "attention"])
def test_a_bfloat16_segment_is_close_to_float32_and_its_gradients_reach_float32_weights(arch):
    gradients, logits = [], []
    for dtype in ("float32", "bfloat16"):
        model = tiny_model(forward_dtype=dtype, hidden_size=32, **arch)
        batch = sudoku(8).batch()
        output = model(model.initial_carry(batch), batch, GradientPath.full(model.H_cycles))
        assert output.halt_logits.dtype == torch.float32
        assert output.carry.answer.dtype == output.carry.latent.dtype == getattr(torch, dtype)
        logits.append(torch.stack(output.cycle_logits).float())
        (logits[-1].square().mean() + output.halt_logits.mean()).backward()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (logits[0] - logits[1]).abs().mean() < 0.05 * logits[0].abs().mean()
    assert F.cosine_similarity(*gradients, dim=0) > 0.98
    assert not torch.equal(*logits)
