"""Weights of the schedules by their literal values, and losses combined by hand from the logits."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import literal_cross_entropy, sudoku, tiny_model

from trm_ray.config.schedules import SCHEDULES
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, Carry, SegmentOutput
from trm_ray.training.losses import LOSSES, softmax_cross_entropy
from trm_ray.training.supervision import (
    CycleWeights,
    Stage,
    Supervision,
    curriculum_weight,
    segment_losses,
    supervision_weights,
)

# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", (0.5, 0.5, 1.0)),
        ("linear_decay", (0.5 / 3, 1.0 / 3, 1.0)),
        ("exponential_decay", (0.125, 0.25, 1.0)),
        ("inverse_decay", (0.5, 0.35, 1.0)),
        ("last_two", (0.0, 0.5, 1.0)),
        ("first_and_last", (0.5, 0.0, 1.0)),
    ],
)
def test_three_cycles_at_one_half_weigh_as_the_book_says(schedule, expected):
    assert supervision_weights(schedule, 3, 0.5) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", (0.8, 0.8, 0.8, 1.0)),
        ("linear_decay", (0.2, 0.4, 0.6, 1.0)),
        ("exponential_decay", (0.1, 0.2, 0.4, 1.0)),
        ("inverse_decay", (0.8, 0.56, 0.392, 1.0)),
        ("last_two", (0.0, 0.0, 0.8, 1.0)),
        ("first_and_last", (0.8, 0.0, 0.0, 1.0)),
    ],
)
def test_four_cycles_at_eight_tenths(schedule, expected):
    assert supervision_weights(schedule, 4, 0.8) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_weight_of_zero_leaves_the_last_cycle_alone_and_one_cycle_needs_no_schedule(schedule):
    assert supervision_weights(schedule, 3, 0.0) == (0.0, 0.0, 1.0)
    assert supervision_weights(schedule, 1, 0.7) == (1.0,)


@pytest.mark.parametrize(
    ("schedule", "num_cycles", "weight", "message"),
    [
        ("constant", 0, 0.5, r"num_cycles=0 .*arch\.H_cycles"),
        ("constant", 3, 1.5, r"weight=1\.5 .*\[0, 1\]"),
        ("constant", 3, -0.1, r"weight=-0\.1"),
        ("constant", 3, math.nan, "weight=nan"),
        ("quadratic", 3, 0.5, "schedule='quadratic' .*constant, linear_decay, exponential_decay"),
    ],
)
def test_an_impossible_schedule_is_refused_by_name_and_value(schedule, num_cycles, weight, message):
    with pytest.raises(ValueError, match=message):
        supervision_weights(schedule, num_cycles, weight)


def test_the_curriculum_ramps_linearly_from_zero_at_the_start_to_the_weight_at_the_end():
    steps = {0: 0.0, 1000: 0.0, 1001: 0.7 / 9000, 5500: 0.35, 9999: 0.7 * 8999 / 9000, 10000: 0.7, 50000: 0.7}
    for step, expected in steps.items():
        assert curriculum_weight(step, 1000, 10000, 0.7) == pytest.approx(expected, abs=1e-15)
    assert curriculum_weight(1000, 1000, 10000, 0.7) == 0.0  # exactly: the baseline's path


def test_a_scenario_is_its_base_weight_over_the_steps():
    def base(enabled: bool, curriculum: tuple[int, int] | None) -> list[float]:
        scenario = Supervision(enabled, "linear_decay", 0.4, curriculum, 3)
        return [scenario.base_weight(step) for step in (0, 10, 15, 20, 99)]

    assert base(False, None) == base(False, (10, 20)) == [0, 0, 0, 0, 0]
    assert base(True, None) == [0.4, 0.4, 0.4, 0.4, 0.4]
    assert base(True, (10, 20)) == pytest.approx([0, 0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.4])
@pytest.mark.parametrize("curriculum", [None, (0, 5), (10, 20)])
@pytest.mark.parametrize("grad_depth", [None, 2])
@pytest.mark.parametrize("stages", [(), (Stage(0, 1, 1), Stage(4, 2, 1), Stage(11, 2, 3), Stage(16, 3, 3))])
def test_the_steps_of_each_path_are_counted_as_they_are_taken(enabled, weight, curriculum, grad_depth, stages):
    scenario = Supervision(enabled, "constant", weight, curriculum, 3, grad_depth, stages=stages)
    for steps in (0, 1, 2, 10, 11, 12, 25):
        assert scenario.paths(steps) == Counter(scenario.path(step) for step in range(steps))


OWN = Supervision(True, "constant", 0.3, None, 3, own=(1.0, 0.7, 0.5))


def test_weights_of_ones_own_are_divided_by_the_last_and_leave_weight_and_schedule_out():
    assert OWN.weights(0) == pytest.approx((2.0, 1.4, 1.0), abs=1e-15)
    assert OWN.base_weight(0) == 1.0
    assert replace(OWN, enabled=False).weights(0) == (0.0, 0.0, 1.0)
    assert OWN.path(0) == GradientPath.full(3)
    assert replace(OWN, own=(0.0, 0.0, 2.0)).path(0) == GradientPath.last(3)


def test_a_curriculum_lets_the_weights_of_ones_own_grow_together_from_zero():
    ramped = replace(OWN, curriculum=(10, 20))
    assert ramped.weights(10) == (0.0, 0.0, 1.0)
    assert ramped.weights(15) == pytest.approx((1.0, 0.7, 1.0), abs=1e-15)
    assert ramped.weights(20) == ramped.weights(99) == OWN.weights(0)
    assert [ramped.path(step) for step in (10, 11)] == [GradientPath.last(3), GradientPath.full(3)]


def test_a_depth_curriculum_weighs_the_cycles_that_there_are():
    stages = (Stage(0, 1, 1), Stage(30, 2, 2), Stage(60, 3, 6))
    scenario = Supervision(True, "linear_decay", 0.5, None, 3, stages=stages)
    assert [scenario.stage(step)[1:] for step in (0, 29, 30, 59, 60, 99)] == [
        *[(1, 1)] * 2,
        *[(2, 2)] * 2,
        *[(3, 6)] * 2,
    ]
    assert [scenario.weights(step) for step in (29, 30)] == [(1.0,), (0.25, 1.0)]
    assert scenario.weights(60) == pytest.approx((0.5 / 3, 1 / 3, 1.0))
    assert [scenario.path(step).L_cycles for step in (0, 30, 60)] == [1, 2, 6]
    short = replace(scenario, grad_depth=2)
    assert [sum(short.path(step).with_gradient) for step in (0, 30, 60)] == [1, 2, 2]


# -- losses -----------------------------------------------------------------------------------------------------------


def output_of(cycles: list[torch.Tensor], labels: torch.Tensor, halt: torch.Tensor) -> SegmentOutput:
    rows, zeros = len(labels), torch.zeros(len(labels))
    puzzles = Batch(torch.zeros_like(labels), labels, torch.zeros(rows))
    return SegmentOutput(tuple(cycles), halt, Carry(zeros, zeros, zeros, zeros.bool(), puzzles))


def random_output(seed: int = 0) -> SegmentOutput:
    generator = torch.Generator().manual_seed(seed)
    cycles = [2 * torch.randn(2, 4, 5, generator=generator) for _ in range(3)]
    labels = torch.tensor([[1, 2, 3, 4], [0, -100, 2, -100]])
    # Both puzzles' last predictions: the second is right where it counts.
    cycles[2][1, 0, 0] = cycles[2][1, 2, 2] = 9.0
    return output_of([c.requires_grad_() for c in cycles], labels, torch.tensor([0.3, -1.2], requires_grad=True))


@pytest.mark.parametrize("name", LOSSES)
def test_the_parts_add_up_as_worked_by_hand_from_the_logits(name):
    output = random_output()
    labels = output.carry.puzzles.labels

    def cross_entropy(logits: torch.Tensor) -> float:
        per_puzzle = []
        for row, cells in zip(logits, labels, strict=True):
            counted = [(r, int(c)) for r, c in zip(row, cells, strict=True) if c != -100]
            per_puzzle.append(sum(literal_cross_entropy(name, r, c) for r, c in counted) / len(counted))
        return sum(per_puzzle) / 2

    first, second, last = map(cross_entropy, output.cycle_logits)
    # Halt targets 0 (wrong) and 1 (right): BCE = softplus(0.3) and softplus(1.2).
    halt = (math.log1p(math.exp(0.3)) + math.log1p(math.exp(1.2))) / 2
    losses = segment_losses(output, CycleWeights.of((0.5 / 3, 1 / 3, 1.0)), LOSSES[name], num_puzzles=2)
    expected = {
        "total": (0.16666667 * first + 0.33333333 * second + last) / 1.5 + 0.5 * halt,
        "act": last / 1.5 + 0.5 * halt,
        "supervised": (0.16666667 * first + 0.33333333 * second) / 1.5,
        "lm": last,
        "halt": halt,
    }
    for part, value in expected.items():
        assert getattr(losses, part).item() == pytest.approx(value, rel=1e-5), part
    assert [c.item() for c in losses.cycles] == pytest.approx([first, second, last], rel=1e-5)
    assert losses.total.item() == (losses.act + losses.supervised).item()


def test_a_weight_of_zero_gives_the_baselines_loss_and_gradients_exactly():
    plain = output_of(
        [random_output().cycle_logits[2]], random_output().carry.puzzles.labels, random_output().halt_logits
    )
    baseline = segment_losses(plain, CycleWeights.of((1.0,)), softmax_cross_entropy, 2)
    output = random_output()
    zero = segment_losses(
        output, CycleWeights.of(supervision_weights("linear_decay", 3, 0.0)), softmax_cross_entropy, 2
    )
    assert zero.total.item() == zero.act.item() == baseline.total.item()
    assert zero.supervised.item() == 0.0
    zero.total.backward()
    baseline.total.backward()
    assert torch.equal(output.cycle_logits[2].grad, plain.cycle_logits[0].grad)
    assert output.cycle_logits[0].grad is None
    assert torch.equal(output.halt_logits.grad, plain.halt_logits.grad)


def test_each_cycle_gets_its_weights_share_of_the_gradient():
    output = random_output()
    segment_losses(output, CycleWeights.of((0.125, 0.25, 1.0)), softmax_cross_entropy, 2).total.backward()
    for cycle, share in zip(output.cycle_logits, (0.125 / 1.375, 0.25 / 1.375, 1 / 1.375), strict=True):
        alone = cycle.detach().requires_grad_()
        one = output_of([alone], output.carry.puzzles.labels, output.halt_logits.detach())
        segment_losses(one, CycleWeights.of((1.0,)), softmax_cross_entropy, 2).total.backward()
        torch.testing.assert_close(cycle.grad, share * alone.grad)


def test_losses_are_shares_that_add_up_over_the_workers():
    output = random_output()
    whole = segment_losses(output, CycleWeights.of((0.5, 0.5, 1.0)), softmax_cross_entropy, 2)
    halves = [
        segment_losses(
            output_of([c[i : i + 1] for c in output.cycle_logits], output.carry.puzzles.labels[i : i + 1], halt),
            CycleWeights.of((0.5, 0.5, 1.0)),
            softmax_cross_entropy,
            2,
        )
        for i, halt in enumerate(output.halt_logits.split(1))
    ]
    for part in ("total", "act", "supervised", "lm", "halt"):
        torch.testing.assert_close(getattr(whole, part), sum(getattr(half, part) for half in halves))


def test_labels_come_from_the_carry_and_not_from_the_batch():
    model, first, second = tiny_model(), sudoku(4).batch(), sudoku(4, seed=9).batch()
    carry = model(model.initial_carry(first), first, min_steps=torch.zeros(4)).carry
    output = model(carry, second)
    losses = segment_losses(output, CycleWeights.of((0.0, 0.0, 1.0)), softmax_cross_entropy, 4)
    flat = output.cycle_logits[-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(flat, first.labels.flatten().long())
    assert losses.lm.item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_gradient_reaches_the_losses_of_cycles_that_weigh_nothing():
    for weights, expected in (((0.0, 0.0, 1.0), [False, False, True]), ((0.25, 0.5, 1.0), [True, True, True])):
        losses = segment_losses(random_output(), CycleWeights.of(weights), softmax_cross_entropy, 2)
        assert [cycle.requires_grad for cycle in losses.cycles] == expected
