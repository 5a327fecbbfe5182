"""Layers against composed operations, explicit loops and formulas worked by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trm_ray.model import layers
from trm_ray.model.layers import (
    AttentionMixer,
    Block,
    Linear,
    MLPMixer,
    Rotary,
    SwiGLU,
    residual_norm,
    swiglu_inner_size,
    truncated_normal_,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def composed_norm(x: Tensor, eps: float, dim: int) -> Tensor:
    """The formula, in the dtype of its input."""
    return x / torch.sqrt((x * x).mean(dim, keepdim=True) + eps)


# -- initial weights -------------------------------------------------------------------------------------------------


def test_a_truncated_normal_has_the_standard_deviation_asked_for_and_no_tails():
    drawn = truncated_normal_(torch.empty(200_000), 0.3, seeded())
    assert drawn.std().item() == pytest.approx(0.3, rel=0.01)
    assert drawn.mean().item() == pytest.approx(0.0, abs=0.003)
    # Cut at two sigmas of the untruncated normal, whose sigma is 0.3 / 0.8796.
    assert 0.66 < drawn.abs().max().item() <= 2 * 0.3 / 0.87962566 + 1e-6


def test_a_linear_map_begins_with_lecun_weights_and_zero_biases():
    linear = Linear(400, 300, bias=True, generator=seeded())
    assert linear.weight.shape == (300, 400)
    assert linear.weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert linear.bias is not None
    assert not linear.bias.any()


def test_the_same_generator_draws_the_same_weights_and_another_seed_others():
    first, again, other = (Linear(8, 8, generator=seeded(s)).weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_residual_scale_touches_output_projections_alone():
    def build(scale: float) -> tuple[AttentionMixer, SwiGLU, MLPMixer]:
        return (
            AttentionMixer(8, 2, rotary=None, eps=1e-5, generator=seeded(), residual_init_scale=scale),
            SwiGLU(8, 16, generator=seeded(), residual_init_scale=scale),
            MLPMixer(5, 16, eps=1e-5, generator=seeded(), residual_init_scale=scale),
        )

    for original, scaled in zip(build(1.0), build(0.1), strict=True):
        for (name, weight), small in zip(original.named_parameters(), scaled.parameters(), strict=True):
            output = "o_proj" in name or "down_proj" in name
            torch.testing.assert_close(small, weight * (0.1 if output else 1.0))


# -- linear maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_map_over_positions_equals_transposing(dtype):
    linear, x = Linear(5, 7, generator=seeded()).to(dtype), normal(3, 5, 4, dtype=dtype)
    torch.testing.assert_close(linear.over_positions(x), linear(x.transpose(1, 2)).transpose(1, 2))


def test_gradients_of_a_map_over_positions_equal_those_of_transposing():
    gradients = []
    for over_positions in (True, False):
        swiglu, x = SwiGLU(5, 6, generator=seeded()), normal(3, 5, 4).requires_grad_()
        y = swiglu.over_positions(x) if over_positions else swiglu(x.transpose(1, 2)).transpose(1, 2)
        (y * normal(3, 5, 4, seed=1)).sum().backward()
        gradients.append([x.grad, *(p.grad for p in swiglu.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_biased_map_over_positions_is_refused():
    with pytest.raises(AssertionError, match="bias"):
        Linear(5, 7, bias=True, generator=seeded()).over_positions(normal(3, 5, 4))


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_products_sum_in_float32_with_and_without_bfloat16_units(monkeypatch, has_units):
    monkeypatch.setattr(layers, "_BFLOAT16_UNITS", has_units)
    linear, x = Linear(64, 32, generator=seeded()).bfloat16(), normal(4, 9, 64, dtype=torch.bfloat16)
    y = linear(x)
    exact = x.double() @ linear.weight.double().T
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-5)  # one rounding to 8 bits


# -- custom gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [-1, 1])
def test_the_residual_norm_equals_composed_operations_with_both_gradients(dim):
    x, update, weight = (normal(3, 5, 7, seed=s) * scale for s, scale in ((0, 1.0), (1, 3.0), (2, 1.0)))
    mine = [x.clone().requires_grad_(), update.clone().requires_grad_()]
    exact = [x.double().requires_grad_(), update.double().requires_grad_()]
    y = residual_norm(*mine, 1e-5, dim)
    expected = composed_norm(exact[0] + exact[1], 1e-5, dim)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)
    (y * weight).sum().backward()
    (expected * weight.double()).sum().backward()
    for ours, theirs in zip(mine, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_the_residual_norm_counts_a_tensor_twice_that_is_given_twice():
    x, exact = normal(2, 6).requires_grad_(), normal(2, 6).double().requires_grad_()
    (residual_norm(x, x, 1e-5) * normal(2, 6, seed=1)).sum().backward()
    (composed_norm(2 * exact, 1e-5, -1) * normal(2, 6, seed=1).double()).sum().backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_the_residual_norm_has_root_mean_square_one_and_computes_in_float32():
    x, update = (100 * normal(4, 64, seed=s, dtype=torch.bfloat16) for s in (0, 1))
    y = residual_norm(x, update, 1e-5)
    assert y.dtype == torch.bfloat16
    expected = composed_norm((x + update).double(), 1e-5, -1)
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=0)
    assert y.double().square().mean(-1).sqrt() == pytest.approx(torch.ones(4, dtype=torch.float64), abs=2**-8)


def test_zeros_stay_zeros_and_give_finite_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    y = residual_norm(x, torch.zeros(2, 4), 1e-5)
    y.sum().backward()
    assert not y.any()
    torch.testing.assert_close(x.grad, torch.full((2, 4), 1e-5**-0.5))  # d(x/√(x²+ε)) = 1/√ε at 0


@pytest.mark.parametrize("dim", [-1, 1])
def test_the_gate_equals_composed_operations_and_passes_gradcheck(dim):
    gate_up = normal(2, 6, 4, dtype=torch.float64).requires_grad_()
    gate, up = gate_up.chunk(2, dim)
    torch.testing.assert_close(layers._SiLUGate.apply(gate_up, dim), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(lambda t: layers._SiLUGate.apply(t, dim), (gate_up,))


def test_the_gate_takes_expanded_gradients_and_leaves_its_input_alone():
    gate_up = normal(3, 8).requires_grad_()
    before = gate_up.detach().clone()
    layers._SiLUGate.apply(gate_up, -1).sum().backward()  # the gradient of a sum is an expanded scalar
    exact = before.double().requires_grad_()
    gate, up = exact.chunk(2, -1)
    (F.silu(gate) * up).sum().backward()
    torch.testing.assert_close(gate_up.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert torch.equal(gate_up.detach(), before)


# -- feed-forward -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expansion", "multiple_of", "expected"),
    [
        (512, 4.0, 256, 1536),  # 1365.3 → 6 · 256
        (64, 4.0, 256, 256),  # 170.7
        (64, 2.0, 32, 96),  # 85.3
        (96, 4.0, 256, 256),  # exactly 256
        (36, 2.0, 32, 64),  # exactly 48
    ],
)
def test_the_inner_size_rounds_up_two_thirds_of_the_expansion(size, expansion, multiple_of, expected):
    assert swiglu_inner_size(size, expansion, multiple_of) == expected


def test_swiglu_is_down_of_silu_gate_times_up():
    swiglu, x = SwiGLU(6, 5, generator=seeded()), normal(3, 6)
    gate_weight, up_weight = swiglu.gate_up_proj.weight.split(5)
    gate = x @ gate_weight.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ up_weight.T)) @ swiglu.down_proj.weight.T
    torch.testing.assert_close(swiglu(x), expected)


# -- positions and attention ------------------------------------------------------------------------------------------


def test_rotary_positions_turn_pairs_of_features_by_their_own_angle():
    rotary, x = Rotary(8, 5, 100.0), normal(2, 3, 5, 8)
    turned = rotary(x)
    for position in range(5):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            number = torch.complex(x[:, :, position, pair].double(), x[:, :, position, pair + 4].double())
            expected = number * complex(math.cos(angle), math.sin(angle))
            torch.testing.assert_close(turned[:, :, position, pair].double(), expected.real, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(turned[:, :, position, pair + 4].double(), expected.imag, rtol=1e-5, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    rotary = Rotary(8, 12, 10000.0)
    query, key = (rotary(normal(8, seed=s).expand(1, 1, 12, 8))[0, 0] for s in (0, 1))
    products = query @ key.T
    for distance in range(-11, 12):
        torch.testing.assert_close(*(d.expand(2)[:2] for d in products.diagonal(distance).aminmax()), atol=1e-5, rtol=0)


def attention_by_loops(mixer: AttentionMixer, x: Tensor) -> Tensor:
    """Multi-head attention of one row, head by head and query by query."""
    length, size = x.shape
    width = size // mixer.num_heads
    query, key, value = ((x @ w.T).view(length, -1, width) for w in mixer.qkv_proj.weight.split(size))
    if mixer.rotary is not None:
        query, key = (mixer.rotary(t.transpose(0, 1)[None])[0].transpose(0, 1) for t in (query, key))
    mixed = torch.zeros(length, size)
    for head in range(mixer.num_heads):
        for at in range(length):
            scores = torch.stack([query[at, head] @ key[other, head] / math.sqrt(width) for other in range(length)])
            weights = torch.exp(scores) / torch.exp(scores).sum()
            mixed[at, head * width : (head + 1) * width] = weights @ value[:, head]
    return composed_norm(x + mixed @ mixer.o_proj.weight.T, mixer.eps, -1)


@pytest.mark.parametrize("rotary", [None, Rotary(4, 5, 10000.0)], ids=["no positions", "rope"])
def test_attention_equals_explicit_loops_over_heads_and_queries(rotary):
    mixer, x = AttentionMixer(8, 2, rotary=rotary, eps=1e-5, generator=seeded()), normal(3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), torch.stack([attention_by_loops(mixer, row) for row in x]))


def test_attention_without_positions_ignores_the_order_and_with_rotary_ones_does_not():
    x, order = normal(2, 5, 8), torch.tensor([3, 0, 4, 1, 2])
    plain = AttentionMixer(8, 2, rotary=None, eps=1e-5, generator=seeded())
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])
    turned = AttentionMixer(8, 2, rotary=Rotary(4, 5, 10000.0), eps=1e-5, generator=seeded())
    assert (turned(x[:, order]) - turned(x)[:, order]).abs().max() > 1e-2


def test_the_mlp_mixer_mixes_and_norms_over_the_positions_as_the_original():
    mixer, x = MLPMixer(5, 12, eps=1e-5, generator=seeded()), normal(3, 5, 8)
    h = x.transpose(1, 2)
    gate, up = F.linear(h, mixer.mlp.gate_up_proj.weight).chunk(2, -1)
    h = composed_norm(h + F.linear(F.silu(gate) * up, mixer.mlp.down_proj.weight), 1e-5, -1)
    torch.testing.assert_close(mixer(x), h.transpose(1, 2))


def test_the_mlp_mixer_can_norm_over_the_features_instead():
    mixer, x = MLPMixer(5, 12, eps=1e-5, generator=seeded(), norm="features"), normal(3, 5, 8)
    gate, up = F.linear(x.transpose(1, 2), mixer.mlp.gate_up_proj.weight).chunk(2, -1)
    update = F.linear(F.silu(gate) * up, mixer.mlp.down_proj.weight).transpose(1, 2)
    torch.testing.assert_close(mixer(x), composed_norm(x + update, 1e-5, -1))


def test_a_block_mixes_then_feeds_forward_each_with_its_norm_after_the_residual():
    mixer = AttentionMixer(8, 2, rotary=None, eps=1e-5, generator=seeded())
    block, x = Block(mixer, SwiGLU(8, 16, generator=seeded(1)), 1e-5), normal(3, 5, 8)
    h = mixer(x)
    torch.testing.assert_close(block(x), composed_norm(h + block.mlp(h), 1e-5, -1))


# -- two spellings ----------------------------------------------------------------------------------------------------


def with_gradients(function, *inputs: Tensor) -> list[Tensor]:
    """The value and the gradients of its inputs, for gradients of the value that differ from place to place."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    value = function(*leaves)
    value.backward(normal(*value.shape, seed=9, dtype=value.dtype))
    return [value.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [-1, 1])
def test_what_a_compiler_gets_equals_the_hand_written_functions(dim, dtype):
    x, update, gate_up = (normal(3, 6, 8, seed=seed, dtype=dtype) for seed in (0, 1, 2))
    tolerance = {"rtol": 0, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}
    for eager, composed, inputs in (
        (layers.residual_norm, layers._composed_residual_norm, (x, update)),
        (layers.silu_gate, layers._composed_silu_gate, (gate_up,)),
    ):
        more = (1e-5, dim) if len(inputs) == 2 else (dim,)
        ours, theirs = (with_gradients(lambda *t, f=f, m=more: f(*t, *m), *inputs) for f in (eager, composed))
        torch.testing.assert_close(ours, theirs, **tolerance)
