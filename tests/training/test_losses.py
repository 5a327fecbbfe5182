"""Cross-entropies against their formulas in Python's floats, and what counts as solved."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import literal_cross_entropy

from trm_ray.training import losses
from trm_ray.training.losses import (
    IGNORED_LABEL,
    LOSSES,
    puzzle_loss,
    softmax_cross_entropy,
    solved_cells,
    stablemax_cross_entropy,
    stablemax_cross_entropy_float64,
)


def logits_and_labels(scale: float = 3.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(3, 5, 4, generator=generator)
    labels = torch.randint(0, 4, (3, 5), generator=generator, dtype=torch.int32)
    labels[0, 2] = labels[2, 0] = labels[2, 4] = IGNORED_LABEL
    return logits, labels


@pytest.mark.parametrize("name", LOSSES)
def test_a_cell_loss_equals_its_formula_and_is_zero_where_a_label_does_not_count(name):
    logits, labels = logits_and_labels()
    losses = LOSSES[name](logits, labels)
    for puzzle in range(3):
        for cell in range(5):
            label = int(labels[puzzle, cell])
            expected = 0.0 if label == -100 else literal_cross_entropy(name, logits[puzzle, cell], label)
            assert losses[puzzle, cell].item() == pytest.approx(expected, rel=1e-5)


def test_stablemax_values_worked_by_hand():
    # s(1) = 2, s(-1) = 1/2, s(0) = 1: probabilities 4/7, 1/7, 2/7.
    logits, labels = torch.tensor([[[1.0, -1.0, 0.0]] * 3]), torch.tensor([[0, 1, 2]])
    expected = [math.log(7 / 4), math.log(7), math.log(7 / 2)]
    assert stablemax_cross_entropy(logits, labels)[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert stablemax_cross_entropy_float64(logits, labels)[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_losses_compute_in_float32_and_one_in_float64():
    logits, labels = logits_and_labels()
    assert stablemax_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
    assert stablemax_cross_entropy_float64(logits.bfloat16(), labels).dtype == torch.float64
    assert softmax_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
    exact = F.cross_entropy(logits.bfloat16().float().flatten(0, 1), labels.flatten().long(), reduction="none")
    torch.testing.assert_close(softmax_cross_entropy(logits.bfloat16(), labels).flatten(), exact)


def test_gradients_of_stablemax_in_float64_equal_finite_differences():
    logits, labels = logits_and_labels()
    parameter = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stablemax_cross_entropy_float64(x, labels), (parameter,))


def value_and_gradient(cell_loss, logits, labels):
    leaf = logits.clone().requires_grad_()
    loss = cell_loss(leaf, labels).double()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4, 1e30])
def test_stablemax_in_float32_is_that_in_float64_at_every_scale(scale):
    logits, labels = logits_and_labels(scale)
    single = value_and_gradient(stablemax_cross_entropy, logits, labels)
    double = value_and_gradient(stablemax_cross_entropy_float64, logits, labels)
    torch.testing.assert_close(single[0], double[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single[1], double[1], rtol=1e-4, atol=1e-7)


def test_stablemax_has_a_slope_at_zero_logits():
    # All s are 1, so each probability is 1/4, and the slope of log s is 1 at 0: gradients are p − label.
    gradient = value_and_gradient(stablemax_cross_entropy, torch.zeros(1, 1, 4), torch.tensor([[2]]))[1]
    assert gradient.tolist() == [[[0.25, 0.25, -0.75, 0.25]]]


def test_gradients_of_softmax_are_probabilities_less_the_label():
    logits, labels = logits_and_labels()
    counted = labels != IGNORED_LABEL
    softmax_cross_entropy(logits.requires_grad_(), labels).sum().backward()
    expected = logits.detach().softmax(-1) - F.one_hot(labels.clamp(min=0).long(), 4)
    torch.testing.assert_close(logits.grad, expected * counted.unsqueeze(-1))


@pytest.mark.parametrize("value", [-1e30, -1e4, -1.0, 0.0, 1.0, 1e4, 1e30])
def test_stablemax_and_its_gradient_are_finite_for_extreme_logits(value):
    logits = torch.tensor([[[value, -1.0, 1.0]]], requires_grad=True)
    loss = stablemax_cross_entropy(logits, torch.tensor([[1]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 1] < 0  # more of the right logit is always better


def test_a_puzzles_loss_is_the_mean_over_its_labelled_cells():
    logits, labels = logits_and_labels()
    losses = softmax_cross_entropy(logits, labels)
    expected = [losses[0].sum() / 4, losses[1].sum() / 5, losses[2].sum() / 3]
    torch.testing.assert_close(puzzle_loss(softmax_cross_entropy, logits, labels), torch.stack(expected))


def test_a_puzzle_without_labels_costs_nothing():
    logits = torch.zeros(1, 3, 4)
    assert puzzle_loss(softmax_cross_entropy, logits, torch.full((1, 3), IGNORED_LABEL)).tolist() == [0.0]


def test_a_puzzle_is_solved_when_all_labelled_cells_are_right():
    predicted = torch.tensor([[1, 2, 3], [1, 2, 0], [1, 0, 0]])
    labels = torch.tensor([[1, 2, 3], [1, 2, 3], [1, -100, -100]])
    share, solved = solved_cells(F.one_hot(predicted, 4).float(), labels)
    assert share.tolist() == pytest.approx([1.0, 2 / 3, 1.0])
    assert solved.tolist() == [True, False, True]


def test_the_logarithm_that_a_compiler_gets_equals_the_hand_written_one_at_zero_too():
    x = torch.tensor([-1e4, -3.0, -1e-6, -0.0, 0.0, 1e-6, 0.5, 1e4])
    values = []
    for spelling in (losses.log_stable, losses._composed_log_stable):
        leaf = x.clone().requires_grad_()
        value = spelling(leaf)
        value.backward(torch.linspace(1, 2, len(x)))
        values.append([value.detach(), leaf.grad])
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)
    assert values[0][1][3:5].tolist() == pytest.approx([1 + 3 / 7, 1 + 4 / 7])  # the slope at 0 is 1
