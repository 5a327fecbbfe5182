"""Text made token after token: as without a memory of what was read, drawn as it should be."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from helpers import literal_cross_entropy, text_model, texts
from torch import Tensor

from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.training.generation import Drawn, draw, generate_tokens, nucleus
from trm_ray.training.inference import run_segments

LENGTH, SEPARATOR = 12, 256
ARCH = {"H_cycles": 2, "L_cycles": 1, "halt_max_steps": 2, "residual_init_scale": 1.0}


@torch.inference_mode()
def whole(model: TinyRecursiveModel, window: list[int], depth: int) -> Tensor:
    """The logits (V,) after a text of at most a row, computed as an evaluation does, from nothing but the text."""
    tokens = torch.tensor([window + [0] * (LENGTH - len(window))])  # what comes later does not matter
    segments = run_segments(model, Batch(tokens, tokens, torch.zeros(1, dtype=torch.int32)), 9)
    cycles = [cycle for output in segments for cycle in output.cycle_logits]
    return cycles[depth - 1].float()[0, len(window) - 1]


def by_heart(model: TinyRecursiveModel, tokens: list[int], count: int, depth: int) -> list[Drawn]:
    """The likeliest tokens, the whole window being read for each: its last half once it is full."""
    window, found = tokens[-LENGTH:], []
    for _ in range(count):
        if len(window) > LENGTH:
            window = window[-LENGTH // 2 :]
        logits = whole(model, window, depth)
        token = int(logits.argmax())
        found.append(Drawn(token, float(logits.log_softmax(-1)[token])))
        window = [*window, token]
    return found


def some(count: int, *arguments: object, **named: object) -> list[Drawn]:
    return list(itertools.islice(generate_tokens(*arguments, **named), count))  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 5, 12, 30])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_likeliest_text_is_that_of_a_model_that_reads_all_of_its_window_anew(norm, length):
    """Over two windows more, whose last half is read again when they are full; with a document's end in the prompt."""
    model = text_model(LENGTH, arch=ARCH | {"norm": norm})
    prompt = texts(1, 30).inputs[0, -length:].tolist()
    prompt[length // 2] = SEPARATOR
    expected, found = by_heart(model, prompt, 26, 4), some(26, model, prompt)
    assert [one.token for one in found] == [one.token for one in expected]
    assert [one.log_probability for one in found] == pytest.approx([one.log_probability for one in expected], abs=1e-5)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_any_depth_may_be_asked_for(depth):
    model = text_model(LENGTH, arch=ARCH)
    expected, found = by_heart(model, [7, 8], 8, depth), some(8, model, [7, 8], num_cycles=depth)
    assert [one.token for one in found] == [one.token for one in expected]


def test_probabilities_are_what_the_loss_takes_for_such():
    model = text_model(LENGTH, arch=ARCH)
    logits = whole(model, [7, 8], 4)
    for name in ("softmax_cross_entropy", "stablemax_cross_entropy", "stablemax_cross_entropy_float64"):
        [first] = some(1, model, [7, 8], loss_type=name)
        assert -first.log_probability == pytest.approx(literal_cross_entropy(name, logits, first.token), rel=1e-5)


def test_a_seed_gives_the_same_text_every_time_and_another_one_another():
    model = text_model(LENGTH, arch=ARCH)
    first, again, other = (some(20, model, [7], temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_where_weights_are_cast_the_model_is_left_as_it_was():
    model = text_model(LENGTH, arch=ARCH | {"forward_dtype": "bfloat16"})
    assert len(some(3, model, [7])) == 3
    assert model.embed_tokens.dtype == torch.float32


# -- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, [0, 0.5, 0, 0]),  # one at least
        (0.5, [0, 0.5, 0, 0]),  # enough together
        (0.51, [0, 0.5, 0, 0.25]),
        (0.75, [0, 0.5, 0, 0.25]),
        (0.76, [0.125, 0.5, 0, 0.25]),  # of two that are alike the first
        (1.0, [0.125, 0.5, 0.125, 0.25]),
    ],
)
def test_a_nucleus_is_the_fewest_likeliest_tokens_that_have_its_probability(top_p, kept):
    probabilities = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64)
    assert nucleus(probabilities, top_p).tolist() == kept


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.6, 0.3, 0.1]),
        (0.5, 1.0, [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]),  # squared
        (1.0, 0.9, [2 / 3, 1 / 3, 0]),
        (0.5, 0.9, [0.8, 0.2, 0]),  # the temperature first: the two have 0.978 then, one alone 0.783
    ],
)
def test_tokens_are_drawn_as_often_as_temperature_and_nucleus_say(temperature, top_p, expected):
    known, generator = torch.tensor([0.6, 0.3, 0.1]).log(), torch.Generator().manual_seed(0)
    counts = Counter(draw(known, temperature, top_p, generator) for _ in range(2000))
    for token, share in enumerate(expected):
        assert counts[token] / 2000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-3])
def test_cold_draws_are_of_the_likeliest_token(temperature):
    assert draw(torch.tensor([0.3, 0.4, 0.3]).log(), temperature, 1.0, torch.Generator()) == 1


def test_nothing_is_drawn_from_what_is_no_number():
    with pytest.raises(ValueError, match="not finite"):
        draw(torch.tensor([math.nan, 0.0]), 1.0, 1.0, torch.Generator())
