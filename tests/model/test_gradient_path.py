"""Paths of the gradient as they follow from weights, worked by hand, and where the recursion then records one."""

import pytest
import torch
from helpers import sudoku, tiny_model

from trm_ray.model.gradient_path import GradientPath

YES, NO = True, False


@pytest.mark.parametrize(
    ("weights", "options", "supervised", "with_gradient"),
    [
        ((0, 0, 1), {}, (NO, NO, YES), (NO, NO, YES)),
        ((0.2, 0.3, 1), {}, (YES, YES, YES), (YES, YES, YES)),
        ((0, 0.3, 1), {}, (NO, YES, YES), (YES, YES, YES)),
        ((0, 0.3, 1), {"depth": 2}, (NO, YES, YES), (NO, YES, YES)),
        ((0, 0, 1), {"depth": 3}, (NO, NO, YES), (YES, YES, YES)),
        ((0.2, 0.3, 1), {"detached": True}, (YES, YES, YES), (YES, YES, YES)),
        ((0.2, 0, 1), {"detached": True}, (YES, NO, YES), (YES, NO, YES)),
        ((1,), {}, (YES,), (YES,)),
    ],
)
def test_a_path_follows_the_weights(weights, options, supervised, with_gradient):
    path = GradientPath.along(weights, **options)
    assert (path.supervised, path.with_gradient) == (supervised, with_gradient)


def test_what_comes_to_the_same_is_one_path_and_so_one_graph():
    baseline = GradientPath.last(3)
    assert GradientPath.along((0, 0, 1), detached=True) == GradientPath.along((0, 0, 1), 1) == baseline
    assert GradientPath.along((0.1, 0.7, 1)) == GradientPath.along((0.9, 0.2, 1), 3) == GradientPath.full(3)
    assert GradientPath.last(1) == GradientPath.full(1)
    paths = {baseline, GradientPath.full(3), GradientPath.along((0, 0, 1), 3), GradientPath.along((0, 1, 1), 2)}
    assert len(paths | {GradientPath.along((1, 1, 1), detached=True)}) == 5


def test_a_detached_segment_falls_into_stretches_that_end_where_a_loss_is():
    one, two = GradientPath.last(1), GradientPath.last(2)
    assert GradientPath.along((0.2, 0.3, 1), detached=True).stretches == (one, one, one)
    assert GradientPath.along((0.2, 0, 1), detached=True).stretches == (one, two)
    assert GradientPath.along((0, 0.3, 1), detached=True).stretches == (two, one)
    for whole in (GradientPath.last(3), GradientPath.full(3), GradientPath.along((0, 0, 1), 2)):
        assert whole.stretches == (whole,)


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        (GradientPath.last(4), (NO, NO, NO)),
        (GradientPath.along((0, 0, 0.5, 1), 2), (NO, NO, YES)),
        (GradientPath.along((0, 0, 0, 1), 3), (NO, YES, YES)),
        (GradientPath.full(4), (YES, YES, YES)),
    ],
)
def test_the_last_loss_reaches_the_answers_behind_it_as_far_as_the_path_is_deep(path, reached):
    model, answers = tiny_model(H_cycles=4), []
    with torch.no_grad():
        carry = model(model.initial_carry(sudoku(4).batch()), sudoku(4).batch()).carry
    # The blocks' last application in each cycle is the answer's update.
    model.blocks.register_forward_hook(lambda module, given, updated: answers.append(updated))
    output = model(carry, sudoku(4).batch(), path)
    assert [logits.requires_grad for logits in output.cycle_logits] == list(path.supervised)
    ends = answers[model.L_cycles :: model.L_cycles + 1][:3]
    assert tuple(answer.requires_grad for answer in ends) == reached
    for answer in ends:
        if answer.requires_grad:
            assert torch.autograd.grad(output.cycle_logits[-1].sum(), answer, retain_graph=True)[0].any()
