"""That a text read token by token is the text read at once, at every depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import text_model, texts
from torch import Tensor

from trm_ray.model.cache import Past
from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.training.inference import run_segments

LENGTH, SEPARATOR = 16, 256
TWO_SEGMENTS = {"H_cycles": 2, "L_cycles": 2, "L_layers": 2, "halt_max_steps": 2, "residual_init_scale": 1.0}


@torch.inference_mode()
def at_once(model: TinyRecursiveModel, batch: Batch) -> list[Tensor]:
    """The log-probabilities (B, L, V) of every depth, as an evaluation computes them."""
    return [cycle.float().log_softmax(-1) for output in run_segments(model, batch) for cycle in output.cycle_logits]


@torch.inference_mode()
def in_parts(model: TinyRecursiveModel, batch: Batch, depth: int, sizes: list[int]) -> Tensor:
    """Those of one depth, of texts that are read in parts."""
    past = Past(LENGTH, model.separator)
    parts = batch.inputs.split(sizes, 1)
    return torch.cat([model.extend(past, part, depth).float() for part in parts], 1).log_softmax(-1)


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("tied_embeddings", [True, False])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_every_token_has_the_probabilities_that_an_evaluation_gives_it(norm, tied_embeddings, document_mask):
    arch = TWO_SEGMENTS | {"norm": norm, "tied_embeddings": tied_embeddings, "document_mask": document_mask}
    model, batch = text_model(LENGTH, arch=arch), texts(3, LENGTH).batch()
    assert (batch.inputs == SEPARATOR).any(-1).sum() > 1
    for depth, expected in enumerate(at_once(model, batch), 1):
        torch.testing.assert_close(in_parts(model, batch, depth, [1] * LENGTH), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "tolerance"),
    [({"L_cycles": 1}, 1e-5), ({"embedding_size": 6}, 1e-5), ({"forward_dtype": "bfloat16"}, 0.1)],
    ids=str,
)
def test_so_it_has_in_parts_of_any_length(arch, tolerance):
    model, batch = text_model(LENGTH, arch=TWO_SEGMENTS | arch), texts(3, LENGTH).batch()
    *_, expected = at_once(model, batch)
    for sizes in ([16], [5, 1, 7, 3]):
        torch.testing.assert_close(in_parts(model, batch, 4, sizes), expected, rtol=tolerance, atol=tolerance)


def test_another_document_before_it_leaves_a_document_as_it_is_bitwise():
    model, batch = text_model(LENGTH, arch=TWO_SEGMENTS), texts(1, LENGTH).batch()
    inputs = batch.inputs.clamp(max=SEPARATOR - 1)
    inputs[:, 7] = SEPARATOR
    other = inputs.clone()
    other[:, :7] = (other[:, :7] + 1) % SEPARATOR
    one, two = (in_parts(model, replace(batch, inputs=tokens), 4, [7, 1, 2, 6]) for tokens in (inputs, other))
    assert torch.equal(one[:, 7:], two[:, 7:])
    assert not torch.equal(one[:, :7], two[:, :7])
