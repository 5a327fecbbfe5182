"""Logits a chunk at a time beside all of them at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trm_ray.model import unread
from trm_ray.model.unread import Unread
from trm_ray.training.losses import IGNORED_LABEL, LOSSES

ROWS, LENGTH, WIDTH, VOCABULARY = 2, 7, 5, 11


def made() -> tuple[Unread, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, LENGTH, WIDTH, generator=generator, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[1, 5:] = IGNORED_LABEL
    return Unread(states, head), labels


@pytest.mark.parametrize("tokens", [1, 3, 14, 100])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_of_chunks_are_those_of_all_logits_at_once(monkeypatch, tokens, name):
    monkeypatch.setattr(unread, "CHUNK", tokens * VOCABULARY)
    ours, labels = made()
    whole = F.linear(ours.states, ours.head)
    by_chunks, at_once = ours.each(LOSSES[name], labels), LOSSES[name](whole, labels)
    torch.testing.assert_close(by_chunks, at_once)
    scales = torch.linspace(0.1, 1, ROWS * LENGTH).view(ROWS, LENGTH)
    for mine, theirs in zip(
        *(torch.autograd.grad((losses * scales).sum(), (ours.states, ours.head)) for losses in (by_chunks, at_once)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(ours.argmax(-1), whole.argmax(-1))


def test_a_chunk_is_never_less_than_a_token(monkeypatch):
    monkeypatch.setattr(unread, "CHUNK", 1)
    ours, labels = made()
    seen: list[tuple[int, ...]] = []

    def loss(logits: Tensor, of: Tensor) -> Tensor:
        seen.append(tuple(logits.shape))
        return LOSSES["softmax_cross_entropy"](logits, of)

    with torch.no_grad():
        ours.each(loss, labels)
    assert seen == [(1, 1, VOCABULARY)] * (ROWS * LENGTH)


def test_a_graph_holds_a_bounded_number_of_chunks_and_has_the_same_numbers(monkeypatch):
    monkeypatch.setattr(unread, "CHUNK", 1)
    monkeypatch.setattr(unread, "GRAPH_CHUNKS", 4)
    ours, labels = made()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def losses(states: Tensor, head: Tensor) -> Tensor:
        return Unread(states, head).each(LOSSES["softmax_cross_entropy"], labels)

    chunked = torch.compile(losses, backend=keep, fullgraph=True)(ours.states, ours.head)
    plain = losses(ours.states, ours.head)
    torch.testing.assert_close(chunked, plain)
    gradients = (torch.autograd.grad(one.sum(), (ours.states, ours.head)) for one in (chunked, plain))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    (graph,) = graphs
    assert sum("checkpoint" in str(node.target) for node in graph.graph.nodes if node.op == "call_function") == 4
