"""Optimizers against scalar transcriptions, the rate's values, averaged weights, and the guard."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from trm_ray.training.optim import (
    AdamAtan2,
    AveragedWeights,
    FiniteGuard,
    NonFiniteError,
    build_optimizer,
    learning_rate,
)

OPTIMIZERS = ("adamw", "adam_atan2")


class Weights(nn.Module):
    def __init__(self, *values: float):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))


def built(name: str, model: nn.Module, **more: float) -> torch.optim.Optimizer:
    return build_optimizer(name, model, lr=0.1, betas=(0.9, 0.95), weight_decay=more.get("weight_decay", 0.1))


def gradients(steps: int) -> list[list[float]]:
    return [[math.sin(3 * step + 1), 1e-6 * math.cos(step), 1e3 * (step - 2)] for step in range(steps)]


def take_steps(optimizer: torch.optim.Optimizer, model: Weights, rows: list[list[float]]) -> None:
    for row in rows:
        model.values.grad = torch.tensor(row)
        optimizer.step()


def literal(name: str, weight: float, grads: list[float], rates: list[float]) -> float:
    """One weight, step by step, from the papers' formulas; decoupled weight decay 0.1."""
    mean = square = 0.0
    for step, (grad, rate) in enumerate(zip(grads, rates, strict=True), 1):
        mean = 0.9 * mean + 0.1 * grad
        square = 0.95 * square + 0.05 * grad * grad
        m, v = mean / (1 - 0.9**step), square / (1 - 0.95**step)
        # The kernel of the `adam-atan2` package takes lr / (1 − β₁ᵗ) times the angle of the moving average itself.
        update = m / (math.sqrt(v) + 1e-8) if name == "adamw" else math.atan2(mean, math.sqrt(v)) / (1 - 0.9**step)
        weight = weight * (1 - rate * 0.1) - rate * update
    return weight


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_steps_equal_a_scalar_transcription(name):
    model, rows, rates = Weights(1.0, -2.0, 0.5), gradients(6), [0.1, 0.1, 0.05, 0.2, 0.1, 0.01]
    optimizer = built(name, model)
    for row, rate in zip(rows, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        take_steps(optimizer, model, [row])
    expected = [literal(name, w, [row[i] for row in rows], rates) for i, w in enumerate((1.0, -2.0, 0.5))]
    assert model.values.tolist() == pytest.approx(expected, rel=2e-6)


def one_by_one(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: int, rate: float) -> None:
    """Adam-atan2 of one tensor, in place: its formula an operation at a time, in the order that rounds the same."""
    mean.lerp_(grad, 1 - 0.9)
    square.lerp_(grad.square(), 1 - 0.95)
    bias1, bias2 = (1 - beta ** torch.tensor(float(step)) for beta in (0.9, 0.95))
    angle = torch.atan2(mean, (square / bias2).sqrt())
    weight.mul_(1 - torch.tensor(rate) * 0.1)
    weight.sub_(torch.tensor(rate) / bias1 * angle)


def test_weights_updated_together_are_bitwise_those_updated_one_by_one():
    generator = torch.Generator().manual_seed(0)
    shapes, rates = [(7,), (33, 17), (1,), (64, 96)], [0.1, 0.1, 0.05, 0.2, 0.01]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    rows = [(weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight)) for weight in weights]
    optimizer = AdamAtan2([weight.requires_grad_() for weight in weights], weight_decay=0.1)
    for step, rate in enumerate(rates, 1):
        optimizer.param_groups[0]["lr"] = rate
        for weight, (alone, mean, square) in zip(weights, rows, strict=True):
            weight.grad = 10.0 ** (step - 3) * torch.randn(weight.shape, generator=generator)
            one_by_one(alone, weight.grad, mean, square, step, rate)
        optimizer.step()
    for weight, (alone, mean, square) in zip(weights, rows, strict=True):
        assert torch.equal(weight, alone)
        assert torch.equal(optimizer.state[weight]["exp_avg"], mean)
        assert torch.equal(optimizer.state[weight]["exp_avg_sq"], square)


def test_atan2_does_not_care_for_the_scale_of_the_loss_and_stands_still_without_a_gradient():
    small, large, still = Weights(1.0, 2.0, 3.0), Weights(1.0, 2.0, 3.0), Weights(1.0, 2.0, 3.0)
    rows = gradients(4)
    take_steps(built("adam_atan2", small), small, rows)
    take_steps(built("adam_atan2", large), large, [[1024 * g for g in row] for row in rows])
    assert torch.equal(small.values, large.values)
    take_steps(built("adam_atan2", still, weight_decay=0.0), still, [[0.0] * 3] * 3)
    assert still.values.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_without_a_gradient_stay(name):
    model, other = Weights(1.0), Weights(2.0)
    both = nn.ModuleList([model, other])
    optimizer = built(name, both)
    take_steps(optimizer, model, [[1.0]])
    assert other.values.tolist() == [2.0]
    assert model.values.tolist() != [1.0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_makes_a_round_trip_bitwise(name):
    rows = gradients(7)
    straight, resumed = Weights(1.0, -2.0, 0.5), Weights(0.0, 0.0, 0.0)
    optimizer = built(name, straight)
    take_steps(optimizer, straight, rows[:3])
    resumed.load_state_dict(straight.state_dict())
    second = built(name, resumed)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(optimizer, straight, rows[3:])
    take_steps(second, resumed, rows[3:])
    assert torch.equal(straight.values, resumed.values)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_found_inf_leaves_weights_and_moments_alone_whatever_the_gradient(name):
    model = Weights(1.0, -2.0, 0.5)
    optimizer = built(name, model)
    take_steps(optimizer, model, gradients(2))
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    optimizer.found_inf = torch.ones(())
    take_steps(optimizer, model, [[math.nan, math.inf, 1.0]])
    after = (model.state_dict(), optimizer.state_dict()["state"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    optimizer.found_inf = torch.zeros(())
    undisturbed = Weights(1.0, -2.0, 0.5)
    take_steps(built(name, undisturbed), undisturbed, gradients(4))
    take_steps(optimizer, model, gradients(4)[2:])
    assert torch.equal(model.values, undisturbed.values)


def test_adamw_is_fused_and_an_unset_guard_is_no_obstacle():
    assert built("adamw", Weights(1.0)).defaults["fused"]
    model = Weights(1.0)
    AdamAtan2(model.parameters()).step()
    assert model.values.tolist() == [1.0]


# -- learning rate ----------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_linearly_then_falls_by_half_a_cosine():
    def rate(step: int) -> float:
        return learning_rate(step, lr=1e-3, warmup_steps=10, total_steps=110, min_ratio=0.1)

    # The original counts steps from 1: its step s ≥ 10 has 1e-3 · (0.1 + 0.9 · (1 + cos(π·(s−10)/100)) / 2).
    expected = {0: 1e-4, 4: 5e-4, 9: 1e-3, 59: 5.5e-4, 109: 1e-4, 500: 1e-4}
    expected[34] = 1e-3 * (0.1 + 0.45 * (1 + math.sqrt(0.5)))
    for step, value in expected.items():
        assert rate(step) == pytest.approx(value, rel=1e-12), step


def test_a_ratio_of_one_keeps_the_rate_constant_and_the_last_step_has_the_lowest():
    rates = [learning_rate(s, lr=1e-4, warmup_steps=0, total_steps=50, min_ratio=1.0) for s in range(50)]
    assert rates == pytest.approx([1e-4] * 50)
    assert learning_rate(49, lr=1e-4, warmup_steps=0, total_steps=50, min_ratio=0.0) == pytest.approx(0, abs=1e-12)


def test_a_run_that_ends_in_its_warm_up_is_no_division_by_zero():
    assert learning_rate(5, lr=1e-3, warmup_steps=2000, total_steps=6, min_ratio=0.1) == pytest.approx(3e-6)
    assert learning_rate(6, lr=1e-3, warmup_steps=6, total_steps=6, min_ratio=0.1) == pytest.approx(1e-4)


# -- averaged weights -------------------------------------------------------------------------------------------------


def test_the_average_follows_the_weights_as_worked_by_hand():
    model = Weights(1.0, 2.0)
    average = AveragedWeights(model, 0.9)
    for values in ([2.0, 2.0], [4.0, 0.0]):
        with torch.no_grad():
            model.values.copy_(torch.tensor(values))
        average.update(model)
    # 0.9 · 1 + 0.1 · 2 = 1.1, then 0.9 · 1.1 + 0.1 · 4 = 1.39; 2, then 1.8.
    assert average.weights["values"].tolist() == pytest.approx([1.39, 1.8])


def test_the_average_of_bfloat16_weights_moves_since_it_is_kept_in_float32():
    model = Weights(1.0).bfloat16()
    average = AveragedWeights(model, 0.999)
    with torch.no_grad():
        model.values.fill_(2.0)
    for _ in range(3):
        average.update(model)
    assert average.weights["values"].dtype == torch.float32
    assert average.weights["values"].item() == pytest.approx(2 - 0.999**3, rel=1e-6)
    kept = torch.ones((), dtype=torch.bfloat16)
    kept.lerp_(torch.tensor(2.0, dtype=torch.bfloat16), 0.001)
    assert kept.item() == 1.0  # what a bfloat16 average would do


def test_swapping_twice_gives_both_back_and_trains_nothing_else():
    model = Weights(1.0, 2.0)
    average, parameter = AveragedWeights(model, 0.5), model.values
    with torch.no_grad():
        model.values.fill_(8.0)
    average.swap(model)
    assert model.values.tolist() == [1.0, 2.0]
    average.swap(model)
    assert model.values.tolist() == [8.0, 8.0]
    assert average.weights["values"].tolist() == [1.0, 2.0]
    assert model.values is parameter


# -- the guard --------------------------------------------------------------------------------------------------------


def watched(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_guard_lets_finite_steps_pass():
    guard = FiniteGuard(torch.device("cpu"))
    guard.watch(watched(step=1.0, total_loss=3.0, lr=1e30))
    guard.check()
    assert guard.found_inf.item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_guard_remembers_the_first_bad_step_and_tells_its_values_and_the_way_out(bad):
    guard = FiniteGuard(torch.device("cpu"))
    guard.watch(watched(step=6.0, total_loss=1.0, grad_norm=2.0, lr=0.5))
    guard.watch(watched(step=7.0, total_loss=1.5, grad_norm=bad, lr=0.25))
    guard.watch(watched(step=8.0, total_loss=bad, grad_norm=bad, lr=0.125))
    assert guard.found_inf.item() == 1
    with pytest.raises(NonFiniteError) as caught:
        guard.check()
    message = str(caught.value)
    for part in ("step=7,", "total_loss=1.5", f"grad_norm={bad}", "lr=0.25"):
        assert part in message
    for advice in ("lower lr", "deep_supervision_weight", "curriculum_enabled=true", "last checkpoint"):
        assert advice in message


def test_the_guard_names_a_late_step_in_full():
    guard = FiniteGuard(torch.device("cpu"))
    guard.watch(watched(step=123457.0, total_loss=math.nan))
    with pytest.raises(NonFiniteError, match="step=123457,"):
        guard.check()


TRAINS = """
import sys, torch
import trm_ray.runs.execute
from trm_ray.model.unread import Unread
from trm_ray.training.losses import softmax_cross_entropy
from trm_ray.training.optim import build_optimizer
model = torch.nn.Linear(2, 2)
optimizer = build_optimizer({name!r}, model, lr=0.1, betas=(0.9, 0.95), weight_decay=0.1)
model(torch.ones(1, 2)).sum().backward()
states = Unread(model(torch.ones(1, 3, 2)), model.weight)
states.each(softmax_cross_entropy, torch.ones(1, 3, dtype=torch.int32)).sum().backward()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(*sorted({{"torch._dynamo", "sympy"}} & sys.modules.keys()))
"""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_process_that_trains_loads_no_compiler(name: str):
    """It is 2 s and 70 MB of every process that trains, unless steps are compiled."""
    command = [sys.executable, "-c", TRAINS.format(name=name)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""


def test_adamw_is_pytorch_s_own_bit_for_bit():
    ours, theirs = Weights(1.0, -2.0, 3e3), Weights(1.0, -2.0, 3e3)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.1, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer = built("adamw", ours)
    for one, model in ((optimizer, ours), (plain, theirs)):
        take_steps(one, model, gradients(5))
    assert torch.equal(ours.values, theirs.values)
    assert str(optimizer.state_dict()) == str(plain.state_dict())
