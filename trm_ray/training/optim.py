"""Optimizers, the learning-rate schedule, averaged weights, and the guard that stops a run before it is poisoned."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


class _WithoutCompiler(Optimizer):
    """Methods of an optimizer as they are below the decorator that keeps torch's compiler away from them.

    To say so it imports the compiler, with sympy and 800 other modules: 2 s and 70 MB of every process that trains.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class _AdamW(_WithoutCompiler, AdamW):
    step = torch.no_grad()(inspect.unwrap(AdamW.step))


class AdamAtan2(_WithoutCompiler):
    """Adam whose update is atan2(m, √v̂) / (1 − β₁ᵗ): no epsilon, invariant to the scale of the loss.

    Source: Everett et al., arXiv 2407.05872, without their constants and with the bias of m mended outside, as in the
    `adam-atan2` package that the original trains with; decoupled weight decay as in AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; leave all as they are if `found_inf` is set and true."""
        assert closure is None, "closures are not supported"
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, group, found_inf)

    def _update(self, weights: list[Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
        """Update all weights of a group together: a launch or a few for each operation, not one a weight."""
        steps, means, squares = self._states(weights)
        # 1 to update, 0 to skip: on the device, so that nobody waits for the gradient norm. What is skipped moves
        # towards where it is.
        go = torch.ones((), device=weights[0].device) if found_inf is None else 1 - found_inf
        grads = [weight.grad for weight in weights if weight.grad is not None]
        aims = [torch.where(go > 0, grad, mean) for grad, mean in zip(grads, means, strict=True)]
        square_aims = [torch.where(go > 0, grad.square(), old) for grad, old in zip(grads, squares, strict=True)]
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, [go] * len(steps))
        torch._foreach_lerp_(means, aims, 1 - beta1)
        torch._foreach_lerp_(squares, square_aims, 1 - beta2)
        # Before the first update all is 0, and so is what is taken off, since `go` is.
        bias1, bias2 = (_one_minus_powers(beta, torch._foreach_clamp_min(steps, 1)) for beta in (beta1, beta2))
        angles = list(map(torch.atan2, means, torch._foreach_sqrt(torch._foreach_div(squares, bias2))))
        rate = go * group["lr"]
        torch._foreach_mul_(angles, [rate / bias for bias in bias1])
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        torch._foreach_sub_(weights, angles)

    def _states(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Give each weight's count of steps, mean of gradients and mean of their squares, 0 at first."""
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["step"] = state["step"].to(weight.device)  # loading a checkpoint leaves it on the CPU
        steps, means, squares = ([self.state[w][n] for w in weights] for n in ("step", "exp_avg", "exp_avg_sq"))
        return steps, means, squares


def _one_minus_powers(base: float, exponents: Iterable[Tensor]) -> list[Tensor]:
    return list(torch._foreach_add(torch._foreach_neg(torch._foreach_pow(base, list(exponents))), 1))


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """Build `adamw` (fused, in one pass over the weights) or `adam_atan2`; all parameters decay, as in the original."""
    parameters = list(model.parameters())
    if name == "adam_atan2":
        return AdamAtan2(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    return _AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def learning_rate(step: int, *, lr: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Give the rate of step `step` (counted from 0): linear warm-up, then half a cosine down to `min_ratio`·lr.

    Source: the original's `cosine_schedule_with_warmup_lr_lambda`; a `min_ratio` of 1 keeps it constant.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    return lr * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class AveragedWeights:
    """Exponential moving average of a model's parameters, in float32.

    Lore: in bfloat16 a rate of 0.999 never moves, since 0.001 of a difference is below its resolution.
    """

    def __init__(self, model: nn.Module, rate: float):
        self.rate = rate
        self.weights = {name: p.detach().float().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move a share of 1 − rate towards the model's weights."""
        new = [p.float() for p in model.parameters()]
        torch._foreach_lerp_(list(self.weights.values()), new, 1 - self.rate)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the averages; a second call undoes the first."""
        weights: list[Tensor] = list(model.parameters())
        averages = list(self.weights.values())
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, averages)
        torch._foreach_copy_(averages, kept)


class NonFiniteError(RuntimeError):
    """A loss or gradient norm became NaN or infinite; no weight has taken part in that update.

    Args:
        values: what was watched, by name, at the `step` where it happened.
    """

    def __init__(self, message: str, values: Mapping[str, float] | None = None):
        super().__init__(message)
        self.values = dict(values or {})


class FiniteGuard:
    """Remembers the first step whose loss or gradient norm is not finite, without waiting for the device.

    The optimizer reads `found_inf` and leaves the weights alone; `check` raises when the caller can afford to wait.
    """

    def __init__(self, device: torch.device):
        self.found_inf = torch.zeros((), device=device)
        self._names: tuple[str, ...] = ()
        self._first: Tensor | None = None

    def watch(self, values: dict[str, Tensor]) -> None:
        """Look at one step's scalars on the device; after the first bad step no update happens any more."""
        row = torch.stack([value.detach().float() for value in values.values()])
        fresh = ~torch.isfinite(row).all() & (self.found_inf == 0)
        self._names = tuple(values)
        self._first = torch.where(fresh, row, row if self._first is None else self._first)
        self.found_inf = torch.maximum(self.found_inf, fresh.float())

    def check(self) -> None:
        """Raise if a step was not finite. Synchronises with the device."""
        if self.found_inf.item() == 0 or self._first is None:
            return
        parts = dict(zip(self._names, self._first.tolist(), strict=True))
        values = ", ".join(f"{name}={value:{'.0f' if name == 'step' else '.4g'}}" for name, value in parts.items())
        raise NonFiniteError(
            f"the loss or the gradient norm is not finite: {values}. That update was not made and the last checkpoint "
            "stands; try a lower lr, a lower deep_supervision_weight or curriculum_enabled=true",
            parts,
        )
