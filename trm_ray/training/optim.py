"""Optimizers, the learning-rate schedule, averaged weights, and the guard that stops a run before it is poisoned."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, found_inf)

    def _update(self, weight: Tensor, grad: Tensor, group: dict[str, Any], found_inf: Tensor | None) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        # 1 to update, 0 to skip: on the device, so that nobody waits for the gradient norm.
        go = torch.ones((), device=weight.device) if found_inf is None else 1 - found_inf
        grad = torch.where(go > 0, grad, 0.0)
        beta1, beta2 = group["betas"]
        state["step"] = state["step"].to(weight.device) + go  # loading a checkpoint leaves it on the CPU
        state["exp_avg"].lerp_(grad, go * (1 - beta1))
        state["exp_avg_sq"].lerp_(grad.square(), go * (1 - beta2))
        # Before the first update all is 0, and so is what is taken off, since `go` is.
        bias1, bias2 = (1 - beta ** state["step"].clamp(min=1) for beta in (beta1, beta2))
        scale = (state["exp_avg_sq"] / bias2).sqrt_()
        weight.mul_(1 - go * group["lr"] * group["weight_decay"])
        weight.sub_(go * group["lr"] / bias1 * torch.atan2(state["exp_avg"], scale))


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
        for name, parameter in model.named_parameters():
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)


class NonFiniteError(RuntimeError):
    """A loss or gradient norm became NaN or infinite; no weight has taken part in that update."""


class FiniteGuard:
    """Remembers the first step whose loss or gradient norm is not finite, without waiting for the device.

    The optimizer reads `found_inf` and leaves the weights alone; `check` raises when the caller can afford to wait.
    """

    def __init__(self, device: torch.device):
        self.found_inf = torch.zeros((), device=device)
        self._first: dict[str, Tensor] = {}

    def watch(self, values: dict[str, Tensor]) -> None:
        """Look at one step's scalars on the device; after the first bad step no update happens any more."""
        row = torch.stack([value.detach().float() for value in values.values()])
        fresh = ~torch.isfinite(row).all() & (self.found_inf == 0)
        before = self._first or dict.fromkeys(values, row.new_zeros(()))
        self._first = {n: torch.where(fresh, row[i], before[n]) for i, n in enumerate(values)}
        self.found_inf = torch.maximum(self.found_inf, fresh.float())

    def check(self) -> None:
        """Raise if a step was not finite. Synchronises with the device."""
        if self.found_inf.item() == 0:
            return
        parts = {name: value.item() for name, value in self._first.items()}
        values = ", ".join(f"{name}={value:{'.0f' if name == 'step' else '.4g'}}" for name, value in parts.items())
        raise NonFiniteError(
            f"the loss or the gradient norm is not finite: {values}. That update was not made and the last checkpoint "
            "stands; try a lower lr, a lower deep_supervision_weight or curriculum_enabled=true"
        )
