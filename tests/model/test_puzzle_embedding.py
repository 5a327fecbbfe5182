"""The puzzle embedding: zero at the start, rows of the batch alone, sign-SGD against a loop worked row by row."""

import pytest
import torch
from helpers import sudoku, tiny_model

from trm_ray.model.puzzle_embedding import PuzzleEmbedding, sign_sgd

NEVER = torch.zeros(())


def test_it_begins_at_zero_and_is_saved_but_no_parameter():
    model = tiny_model(puzzle_emb_ndim=16, puzzle_emb_len=2)
    assert model.state_dict()["puzzle_embedding.table"].shape == (32, 16)
    assert not model.state_dict()["puzzle_embedding.table"].any()
    assert "puzzle_embedding.table" not in dict(model.named_parameters())


def test_a_vector_fills_the_prefix_from_its_first_position_on():
    embedding = PuzzleEmbedding(4, 5, prefix_len=2, hidden_size=4)
    prefix = embedding.prefix(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert prefix.tolist() == [[[1.0, 2.0, 3.0, 4.0], [5.0, 0.0, 0.0, 0.0]]]


def test_the_prefix_has_no_logits_and_the_halt_head_reads_its_first_position():
    model, batch = tiny_model(puzzle_emb_ndim=16, puzzle_emb_len=2), sudoku(3).batch()
    carry = model.initial_carry(batch)
    assert carry.answer.shape == (3, 2 + 16, 16)
    with torch.no_grad():
        model.q_head.weight.fill_(1.0)
        output = model(carry, batch)
    assert output.cycle_logits[-1].shape == (3, 16, 6)
    torch.testing.assert_close(output.halt_logits, output.carry.answer[:, 0].sum(-1) - 5.0)


def test_puzzles_that_look_alike_are_told_apart_by_their_identifiers():
    model, batch = tiny_model(puzzle_emb_ndim=16, puzzle_emb_len=2), sudoku(2).batch()
    batch.inputs[1] = batch.inputs[0]
    assert model.puzzle_embedding is not None

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(model.initial_carry(batch), batch).cycle_logits[-1]

    assert torch.equal(*logits())
    model.puzzle_embedding.table[1] = 1.0
    assert not torch.allclose(*logits())


def literal(table, identifiers, gradients, lr, weight_decay):
    """Row by row, as the original's text says: sum the gradients of a row, take their sign, decay decoupled."""
    expected = table.clone()
    for identifier in set(identifiers.tolist()):
        total = sum(gradients[i] for i in range(len(identifiers)) if identifiers[i] == identifier)
        expected[identifier] = table[identifier] * (1 - lr * weight_decay) - lr * total.sign()
    return expected


def test_a_step_equals_the_loop_over_rows_and_leaves_the_other_rows_alone():
    generator = torch.Generator().manual_seed(0)
    table, gradients = torch.randn(9, 5, generator=generator), torch.randn(6, 5, generator=generator)
    identifiers = torch.tensor([3, 1, 3, 8, 3, 1], dtype=torch.int32)
    expected = literal(table, identifiers, gradients, 0.01, 0.5)
    sign_sgd(table, identifiers, gradients, lr=0.01, weight_decay=0.5, found_inf=NEVER)
    torch.testing.assert_close(table, expected, rtol=0, atol=1e-7)


def test_opposite_gradients_of_one_puzzle_cancel_and_only_decay_is_left():
    table, gradients = torch.ones(2, 3), torch.tensor([[1.0, 2.0, -3.0], [-1.0, -2.0, 3.0]])
    sign_sgd(table, torch.tensor([1, 1]), gradients, lr=0.1, weight_decay=1.0, found_inf=NEVER)
    assert table.tolist() == [[1.0] * 3, [pytest.approx(0.9)] * 3]


def test_a_step_that_is_not_finite_leaves_the_table_alone():
    table = torch.ones(2, 3)
    found = torch.ones(())
    sign_sgd(table, torch.tensor([0]), torch.full((1, 3), torch.nan), lr=0.1, weight_decay=1.0, found_inf=found)
    assert torch.equal(table, torch.ones(2, 3))
