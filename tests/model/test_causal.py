"""That a text's model sees neither what comes later, nor other documents, nor labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import TINY_ARCH, text_model, texts, tiny_model
from torch import Tensor

from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, Carry, TinyRecursiveModel

LENGTH, SEPARATOR = 16, 256
NORMS = pytest.mark.parametrize("norm", ["post", "pre"])


def all_logits(model: TinyRecursiveModel, batches: list[Batch], carry: Carry | None = None) -> Tensor:
    """Run a segment on each batch, every row going on as the carry says: (segments · cycles, B, L, V)."""
    carry, logits = carry or model.initial_carry(batches[0]), []
    for batch in batches:
        output = model(carry, batch)
        logits += [cycle.float() for cycle in output.cycle_logits]
        carry = output.carry
    return torch.stack(logits)


def different(tokens: Tensor, *where: slice) -> Tensor:
    """Replace tokens by others that are no separators."""
    changed = tokens.clone()
    changed[where] = (changed[where] + 101) % SEPARATOR
    return changed


@NORMS
@pytest.mark.parametrize(("checkpoint_cycles", "document_mask"), [(False, True), (True, True), (False, False)])
def test_no_logit_has_a_gradient_with_respect_to_anything_behind_it(norm, checkpoint_cycles, document_mask):
    """Of each position's embedding, told apart as the row of another token, and of the carry that a segment gets."""
    arch = {"norm": norm, "document_mask": document_mask, "halt_max_steps": 2}
    length = 5
    model = text_model(length, checkpoint_cycles=checkpoint_cycles, arch=arch)
    tokens = torch.randperm(SEPARATOR, generator=torch.Generator().manual_seed(0))
    batch = replace(texts(1, length).batch(), inputs=tokens[None, :length])
    carry = model.initial_carry(batch)
    for _ in range(2):
        states = [state.clone().requires_grad_() for state in (carry.answer, carry.latent)]
        output = model(replace(carry, answer=states[0], latent=states[1]), batch, GradientPath.full(3))
        for cycle in output.cycle_logits:
            for position in range(length):
                chosen = cycle.float()[0, position].square().sum()
                wanted = [model.embed_tokens, *states]
                table, *carried = torch.autograd.grad(chosen, wanted, retain_graph=True)
                by_position = table[batch.inputs[0]].abs().sum(-1)
                assert by_position[: position + 1].gt(0).all()
                assert by_position[position + 1 :].eq(0).all()
                for state in carried:
                    assert state[0, position + 1 :].eq(0).all()
                    assert state.any() == (not carry.halted.all())
        carry = output.carry


@NORMS
@pytest.mark.parametrize("document_mask", [False, True])
def test_changing_what_comes_later_leaves_the_logits_before_it_bitwise(norm, document_mask):
    model = text_model(LENGTH, arch={"norm": norm, "document_mask": document_mask, "halt_max_steps": 3})
    batch = texts(2, LENGTH).batch()
    changed = replace(batch, inputs=different(batch.inputs, slice(None), slice(9, None)))
    before, after = (all_logits(model, [rows] * 3) for rows in (batch, changed))
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def two_documents(length: int, begin: int) -> tuple[Batch, Batch]:
    """A document that begins before the row, and one inside it; and both with another first one."""
    batch = texts(2, length).batch()
    inputs = batch.inputs.clamp(max=SEPARATOR - 1)
    inputs[:, begin] = SEPARATOR
    batch = replace(batch, inputs=inputs)
    return batch, replace(batch, inputs=different(inputs, slice(None), slice(0, begin)))


@NORMS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changing_one_document_leaves_the_logits_of_the_next_bitwise(norm, dtype):
    model = text_model(LENGTH, arch={"norm": norm, "forward_dtype": dtype, "halt_max_steps": 2})
    before, after = (all_logits(model, [rows] * 2) for rows in two_documents(LENGTH, 7))
    assert torch.equal(before[:, :, 7:], after[:, :, 7:])
    assert not torch.equal(before[:, :, :7], after[:, :, :7])


def test_a_document_longer_than_an_attention_kernels_blocks_stays_to_itself():
    model = text_model(1100, arch={"H_cycles": 1, "L_cycles": 1})
    before, after = (all_logits(model, [rows]) for rows in two_documents(1100, 530))
    assert torch.equal(before[:, :, 530:], after[:, :, 530:])
    assert before.isfinite().all()


def test_without_the_mask_the_next_document_sees_the_one_before_it():
    model = text_model(LENGTH, arch={"document_mask": False})
    before, after = (all_logits(model, [rows]) for rows in two_documents(LENGTH, 7))
    assert not torch.equal(before[:, :, 7:], after[:, :, 7:])


def test_a_document_has_the_logits_that_it_has_alone():
    """As if the row began with it: rotations are relative, and there is nothing before it."""
    model = text_model(LENGTH)
    batch, _ = two_documents(LENGTH, 7)
    alone = replace(batch, inputs=batch.inputs.roll(-7, 1))
    here, there = all_logits(model, [batch])[:, :, 7:], all_logits(model, [alone])[:, :, : LENGTH - 7]
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_changing_labels_changes_no_logit():
    model = text_model(LENGTH, arch={"halt_max_steps": 2})
    batch = texts(2, LENGTH).batch()
    changed = replace(batch, labels=different(batch.labels))
    assert torch.equal(all_logits(model, [batch] * 2), all_logits(model, [changed] * 2))


def test_a_row_that_takes_another_text_equals_a_fresh_one_bitwise():
    model = text_model(LENGTH, arch={"halt_max_steps": 2})
    first, second = texts(3, LENGTH).batch(), texts(3, LENGTH, seed=1).batch()
    begun = model(model.initial_carry(first), first).carry
    assert not begun.halted.any()
    refilled = replace(begun, halted=torch.tensor([True, False, True]))
    ours, fresh, going_on = (
        all_logits(model, [second], refilled),
        all_logits(model, [second]),
        all_logits(model, [second], begun),
    )
    assert torch.equal(ours[:, [0, 2]], fresh[:, [0, 2]])
    assert torch.equal(ours[:, 1], going_on[:, 1])


def test_every_text_gets_the_same_number_of_segments_whatever_the_halt_head_says():
    model, batch = text_model(LENGTH, arch={"halt_max_steps": 2}), texts(2, LENGTH).batch()
    torch.nn.init.constant_(model.q_head.get_parameter("bias"), 5.0)
    first = model(model.initial_carry(batch), batch, min_steps=torch.zeros(2, dtype=torch.int32)).carry
    assert first.halted.tolist() == [False, False]
    assert model(first, batch).carry.halted.tolist() == [True, True]


# -- the embedding ----------------------------------------------------------------------------------------------------


def numbers_of(model: TinyRecursiveModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters() if "embed" in name or "head" in name}


def test_a_tied_head_is_the_embedding_and_has_gradients_from_both_ends():
    model, batch = text_model(LENGTH, arch={"tied_embeddings": True}), texts(1, LENGTH).batch()
    assert [*numbers_of(model)] == ["embed_tokens", "q_head.weight", "q_head.bias"]
    output = model(model.initial_carry(batch), batch, GradientPath.full(3))
    logits = output.cycle_logits[-1].float()
    torch.testing.assert_close(logits, output.carry.answer @ model.embed_tokens.T)
    logits[0, 0].sum().backward()
    unread = set(range(257)) - set(batch.inputs[0].tolist())
    assert model.embed_tokens.grad is not None
    assert model.embed_tokens.grad[[*unread]].any(-1).all()  # by the head alone
    assert model.embed_tokens.grad[batch.inputs[0, 0]].ne(model.embed_tokens.grad[min(unread)]).any()


def test_an_embedding_of_another_width_is_projected():
    model = text_model(LENGTH, arch={"embedding_size": 6})
    width = TINY_ARCH["hidden_size"]
    assert numbers_of(model) | {"q_head.weight": (2, width)} == {
        **{"embed_tokens": (257, 6), "embed_proj.weight": (width, 6), "lm_head.weight": (257, width)},
        **{"q_head.weight": (2, width), "q_head.bias": (2,)},
    }
    wide = text_model(LENGTH, arch={"embedding_size": 64, "hidden_size": 256})
    for network in (model, wide, text_model(LENGTH, arch={"hidden_size": 256})):
        (recursion,) = network._recursion
        question = recursion._embed(torch.arange(257)[:, None].expand(-1, LENGTH), None)
        assert question.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.25)  # whatever the widths are


def test_learned_positions_are_added_to_the_projected_embedding():
    model = tiny_model(pos_encodings="learned", mixer="attention", embedding_size=6)
    (recursion,) = model._recursion
    question = recursion._embed(torch.ones(2, model.seq_len, dtype=torch.int64), None)
    assert model.embed_positions is not None
    assert model.embed_positions.shape == question.shape[1:] == (model.seq_len, TINY_ARCH["hidden_size"])
    assert question.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.25)


# -- without a latent --------------------------------------------------------------------------------------------------


@NORMS
def test_without_latent_updates_the_stack_is_applied_once_to_the_embedding_and_a_constant(norm):
    """The plain transformer: one cycle of it, by hand, and nothing learned that it does not use."""
    model = text_model(LENGTH, arch={"H_cycles": 1, "L_cycles": 0, "L_layers": 2, "norm": norm, "document_mask": False})
    batch = texts(2, LENGTH).batch()
    embedded = model.embed_scale * model.embed_tokens[batch.inputs]
    by_hand = model.blocks(embedded + model.answer_init, None) @ model.head.T
    assert torch.equal(all_logits(model, [batch])[0], by_hand)
    by_hand.sum().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is None} == {
        "q_head.weight",
        "q_head.bias",
    }
