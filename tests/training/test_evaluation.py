"""Evaluation of outputs written by hand, and of a model row by row."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import local_session, sudoku, tiny_config, tiny_model
from torch import nn

from trm_ray.model.trm import Batch, Carry, SegmentOutput, TinyRecursiveModel
from trm_ray.training.evaluation import anytime, evaluate, measure_rows
from trm_ray.training.inference import run_segments
from trm_ray.training.losses import softmax_cross_entropy

# Three puzzles of two cells and three tokens; the second counts one cell only.
# Predictions of the last cycle, by segment.
LABELS = torch.tensor([[1, 2], [1, -100], [2, 2]])
PREDICTED = torch.tensor(
    [
        [[1, 1], [1, 0], [2, 1]],  # right: half, all, half
        [[1, 2], [1, 0], [2, 1]],  # right: all, all, half
        [[1, 2], [0, 0], [2, 1]],  # right: all, none, half
    ]
)
HALT = torch.tensor([[-1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])


class Written(nn.Module):
    """A model of two cycles that answers from the tables; its first cycle always says token 0."""

    H_cycles, halt_max_steps, causal = 2, 3, False

    def initial_carry(self, batch: Batch) -> Carry:
        zeros = torch.zeros(len(batch), dtype=torch.int64)
        return Carry(zeros, zeros, zeros, zeros == 0, batch)

    def forward(self, carry: Carry, batch: Batch) -> SegmentOutput:
        assert not self.training
        segment, rows = int(carry.steps[0]), batch.puzzle_identifiers
        cycles = (torch.zeros_like(PREDICTED[segment]), PREDICTED[segment])
        logits = tuple(2.0 * F.one_hot(cycle[rows], 3).float() for cycle in cycles)
        return SegmentOutput(logits, HALT[segment][rows], replace(carry, steps=carry.steps + 1))


def test_all_numbers_equal_those_worked_by_hand(tmp_path):
    batch = Batch(torch.zeros(3, 2, dtype=torch.int64), LABELS, torch.arange(3))
    model = Written().train()
    held_out = evaluate(model, [batch], softmax_cross_entropy, local_session(tmp_path, tiny_config()))
    right, wrong = (math.log(math.exp(2) + 2) - logit for logit in (2, 0))
    last = (right + wrong + (right + wrong) / 2) / 3  # the last segment's: all, none and half right
    first = (right + (right + wrong)) / 3  # half, all and half right
    both = (2 * right + (right + wrong) / 2) / 3
    # Depth by depth: every first cycle is wrong.
    exact = [0, 1 / 3, 0, 2 / 3, 0, 1 / 3]
    assert held_out.depths["exact_accuracy"] == pytest.approx(exact)
    assert held_out.depths["accuracy"] == pytest.approx([0, 2 / 3, 0, 2.5 / 3, 0, 1.5 / 3])
    assert held_out.depths["loss"] == pytest.approx([wrong, first, wrong, both, wrong, last])
    assert held_out.row == pytest.approx(
        {
            "eval/loss": last,
            "eval/step_0_loss": wrong,  # no label is 0
            "eval/step_1_loss": last,
            "eval/accuracy": (1 + 0 + 0.5) / 3,
            "eval/exact_accuracy": 1 / 3,  # the first puzzle
            "eval/exact_accuracy_first": 1 / 3,  # the second
            "eval/exact_accuracy_halting": 2 / 3,  # the first halts at 2, the second at 1, the third never: at 3
            "eval/act_steps": (2 + 1 + 3) / 3,
            "eval/q_halt_accuracy": 1 / 3,  # of its last verdicts no, yes, no only the third puzzle's is right
            "eval/first_segment/step_0_loss": wrong,
            "eval/first_segment/step_0_exact_accuracy": 0,
            "eval/first_segment/step_1_loss": first,
            "eval/first_segment/step_1_exact_accuracy": 1 / 3,
            "eval/anytime_accuracy": (1 / 3 / 2 + 2 / 3 / 4 + 1 / 3 / 6) / (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6),
        }
    )
    assert model.training


def test_rows_without_labels_count_nowhere(tmp_path):
    session, model, puzzles = local_session(tmp_path, tiny_config()), tiny_model(), sudoku(5, blanks=9)
    puzzles.labels[[1, 3]] = -100
    labelled = puzzles[np.array([0, 2, 4])]
    expected = evaluate(model, [labelled.batch()], softmax_cross_entropy, session)
    found = evaluate(model, [puzzles.batch()], softmax_cross_entropy, session)
    assert found.row == pytest.approx(expected.row)
    for name, values in found.depths.items():
        assert values == pytest.approx(expected.depths[name])
    nothing = evaluate(model, [puzzles[np.array([1, 3])].batch()], softmax_cross_entropy, session)
    assert all(math.isnan(value) for values in (nothing.row.values(), *nothing.depths.values()) for value in values)


def halting_model() -> TinyRecursiveModel:
    """A model that was never trained, whose halt head stops some rows early and some never."""
    model = tiny_model()
    model.q_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model.q_head.get_parameter("bias").data.fill_(-1.0)
    return model


@pytest.mark.parametrize("halt", [False, True])
def test_measured_rows_equal_those_measured_one_by_one(halt):
    model, puzzles = halting_model(), sudoku(9, blanks=9)
    puzzles.labels[4] = -100
    rows = measure_rows(model, puzzles.batch(), 5, softmax_cross_entropy, halt=halt)
    assert rows.labelled.tolist() == [row != 4 for row in range(9)]
    for row in range(9):
        batch = puzzles[row : row + 1].batch()
        for segment, output in enumerate(run_segments(model, batch, 5)):
            for cycle, logits in enumerate(output.cycle_logits):
                right = (logits.argmax(-1) == batch.labels).float().mean()
                assert rows.cells[segment:, cycle, row].tolist()[0] == pytest.approx(right.item())
                assert bool(rows.solved[segment, cycle, row]) == (right == 1 or row == 4)
            assert rows.halt_logits[segment, row].item() == pytest.approx(output.halt_logits.item(), abs=1e-5)
            loss = F.cross_entropy(logits[0], batch.labels[0].long()).nan_to_num()
            assert rows.losses[segment, row].item() == pytest.approx(loss.item(), abs=1e-5)
            if halt and output.halt_logits > 0:
                break
        assert rows.num_run[row] == segment + 1
        assert rows.answers[row].tolist() == logits.argmax(-1)[0].tolist()
        # What was not computed any more is the answer that was kept, in every cycle.
        frozen = (rows.cells[segment, -1, row], rows.losses[segment, row], rows.halt_logits[segment, row])
        kept = (rows.cells, rows.losses, rows.halt_logits)
        assert all((v[segment + 1 :, ..., row] == f).all() for v, f in zip(kept, frozen, strict=True))
    assert (len(set(rows.num_run.tolist())) > 1) == halt


def test_the_batch_shrinks_as_rows_halt():
    model, sizes = halting_model(), []
    model.register_forward_hook(lambda module, arguments, output: sizes.append(len(output.halt_logits)))
    rows = measure_rows(model, sudoku(9, blanks=9).batch(), 5, softmax_cross_entropy, halt=True)
    assert sizes == [int((rows.num_run > segment).sum()) for segment in range(len(sizes))]
    assert sizes[0] == 9 > sizes[1]


def test_every_row_counts_once_when_the_last_batch_is_smaller(tmp_path):
    session, model, puzzles = local_session(tmp_path, tiny_config()), tiny_model(), sudoku(7, blanks=9)
    model.q_head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    model.q_head.get_parameter("bias").data.zero_()

    def measured(size: int) -> dict[str, float]:
        batches = [puzzles[i : i + size].batch() for i in range(0, 7, size)]
        return evaluate(model, batches, softmax_cross_entropy, session).row

    assert measured(3) == pytest.approx(measured(7), rel=1e-5)
    by_row = [measured_row(model, puzzles[i : i + 1].batch(), session) for i in range(7)]
    for tag, value in measured(3).items():
        assert value == pytest.approx(sum(row[tag] for row in by_row) / 7, rel=1e-5, abs=1e-7), tag
    assert len({row["eval/act_steps"] for row in by_row}) > 1


def measured_row(model, batch, session):
    return evaluate(model, [batch], softmax_cross_entropy, session).row


def test_the_depths_are_those_that_each_row_is_measured_at(tmp_path):
    model, batch = tiny_model(), sudoku(7, blanks=3).batch()
    held_out = evaluate(model, [batch], softmax_cross_entropy, local_session(tmp_path, tiny_config()))
    rows = measure_rows(model, batch, model.halt_max_steps, softmax_cross_entropy)
    for name, values in (("accuracy", rows.cells), ("exact_accuracy", rows.solved)):
        assert held_out.depths[name] == pytest.approx(values.double().mean(-1).flatten().tolist())
    losses = rows.losses.double().mean(-1).tolist()
    assert held_out.depths["loss"][model.H_cycles - 1 :: model.H_cycles] == pytest.approx(losses)


def test_an_answer_that_is_right_at_once_has_an_anytime_accuracy_of_one():
    assert anytime([1.0] * 24) == pytest.approx(1.0)
    assert anytime([0.0, 1.0]) == pytest.approx(1 / 3)
    assert anytime([1.0, 0.0]) == pytest.approx(2 / 3)


def test_every_row_gets_all_segments_from_the_initial_state_whatever_the_halt_head_says(tmp_path):
    model, batch = tiny_model(), sudoku(5).batch()
    model.q_head.get_parameter("bias").data.fill_(1.0)
    carry = model.initial_carry(batch)
    for segment in range(3):
        with torch.no_grad():
            # Rows go on by force: the first segment alone begins afresh.
            carry = replace(carry, halted=torch.full((5,), segment == 0))
            output = model(carry, batch)
        carry = output.carry
    expected = [F.cross_entropy(c.flatten(0, 1), batch.labels.flatten().long()).item() for c in output.cycle_logits]
    row = evaluate(model, [batch], softmax_cross_entropy, local_session(tmp_path, tiny_config())).row
    assert [row[f"eval/step_{i}_loss"] for i in range(3)] == pytest.approx(expected, rel=1e-5)
    assert row["eval/loss"] == row["eval/step_2_loss"]
    assert row["eval/act_steps"] == 1.0


def test_an_evaluation_leaves_no_gradient_and_no_random_number_behind(tmp_path):
    model = tiny_model()
    before = torch.get_rng_state()
    evaluate(model, [sudoku(4).batch()], softmax_cross_entropy, local_session(tmp_path, tiny_config()))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
