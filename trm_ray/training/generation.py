"""A trained model at work on text: token after token, each drawn from what the model makes of those before."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trm_ray.model.cache import Past
from trm_ray.model.trm import TinyRecursiveModel
from trm_ray.model.unread import Unread
from trm_ray.training.losses import log_probabilities


@dataclass(frozen=True)
class Drawn:
    """A token, and its log-probability (nats) under the model itself, whatever it was drawn by."""

    token: int
    log_probability: float


@torch.inference_mode()
def generate_tokens(
    model: TinyRecursiveModel,
    tokens: Sequence[int],
    *,
    num_cycles: int | None = None,
    loss_type: str = "softmax_cross_entropy",
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[Drawn]:
    """Go on with a text, without an end.

    The model sees `seq_len` tokens, its window, as in training. Where the text is longer than that it sees the last of
    them; where it grows longer, the last half of the window is read anew, and there is room again.

    Args:
        tokens: one at least.
        num_cycles: H-cycles, of all segments together; as in training if not given.
        loss_type: that of its training, which says how logits are probabilities.
        temperature: probabilities are those of the model to the power of 1/temperature; 0 takes the likeliest token.
        top_p: drawn are the fewest likeliest tokens that have so much probability together.
        seed: of the draws, which are made on the CPU wherever the model is.

    Raises:
        ValueError: the model's output is not finite.
    """
    if model.embed_tokens.dtype != model.forward_dtype:
        model = copy.deepcopy(model).to(model.forward_dtype)  # at once, instead of once a token
    num_cycles, window = num_cycles or model.halt_max_steps * model.H_cycles, model.seq_len
    generator = torch.Generator().manual_seed(seed)
    seen = unread = [*tokens][-window:]
    past = Past(window, model.separator)
    while True:
        if past.length + len(unread) > window:
            seen = unread = seen[-max(1, window // 2) :]
            past = Past(window, model.separator)
        read = model.extend(past, torch.tensor([unread], device=model.embed_tokens.device), num_cycles)
        logits = Unread(read.states[0, -1], read.head).float().cpu()
        known = log_probabilities(loss_type, logits)
        token = draw(known, temperature, top_p, generator)
        yield Drawn(token, float(known[token]))
        unread = [token]
        seen = [*seen, token]


def draw(known: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token by log-probabilities (V,).

    Raises:
        ValueError: they are not finite.
    """
    if not math.isfinite(float(known.max())):
        raise ValueError("the model's output is not finite, so there is nothing to draw from; take another checkpoint")
    if temperature == 0:
        return int(known.argmax())
    powers = ((known.double() - known.max()) / temperature).softmax(-1)  # the likeliest is exp(0), however small it is
    return int(torch.multinomial(nucleus(powers, top_p), 1, generator=generator))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the fewest likeliest tokens (V,) that have a probability of `top_p` together.

    Returns:
        Their probabilities, which no longer add up to 1, and 0 for the others.

    Source: Holtzman et al., arXiv 1904.09751.
    """
    if top_p == 1:
        return probabilities
    sorted_, order = probabilities.sort(descending=True, stable=True)
    dropped = sorted_.cumsum(0) - sorted_ >= top_p
    return probabilities.index_fill(0, order[dropped], 0)
