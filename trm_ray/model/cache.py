"""What a causal recursion has seen of a text, so that the next token costs its own computation and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


class Past:
    """Keys and values of the tokens so far, of every layer at every pass of the recursion.

    A token's states depend on earlier tokens alone, pass by pass, and those do not change any more. So it is exact: a
    pass attends to what the same pass and layer had for the tokens before. The recursion meets layers in the same order
    at every token, which is how they are told apart.

    Memory: 2 · D values a token, row, layer and pass.

    Args:
        capacity: tokens that it has room for.
        separator: the token that opens a document, if documents are not to see each other.
    """

    def __init__(self, capacity: int, separator: int | None = None):
        self.capacity, self.separator = capacity, separator
        self.first = self.length = 0
        self._documents: Tensor | None = None
        self._mask: Tensor | None = None
        self._kept: list[Tensor] = []
        self._turn = 0

    def begin(self, tokens: Tensor) -> None:
        """Take up the tokens (B, n) that come next, of the same rows as before.

        They are at positions `first` to `length`.
        """
        assert self.length + tokens.shape[1] <= self.capacity, "there is room for `capacity` tokens"
        self.first, self.length, self._turn = self.length, self.length + tokens.shape[1], 0
        opens = tokens == self.separator if self.separator is not None else torch.zeros_like(tokens, dtype=torch.bool)
        document = opens.cumsum(1)
        if self._documents is not None:
            document = torch.cat((self._documents, self._documents[:, -1:] + document), 1)
        self._documents = document
        own, keys = document[:, self.first :, None], torch.arange(self.length, device=tokens.device)
        seen = (own == document[:, None]) & (keys <= keys[self.first :, None])
        self._mask = seen.unsqueeze(1)

    @property
    def mask(self) -> Tensor:
        """Say whom each of the new tokens looks at, (B, 1, n, length): itself and those before it in its document."""
        assert self._mask is not None, "after `begin`"
        return self._mask

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new tokens' keys and values (B, heads, n, size) of a layer at a pass; return those of all tokens."""
        if self._turn == len(self._kept):
            batch, heads, _, size = key.shape
            self._kept.append(key.new_empty(2, batch, heads, self.capacity, size))
        kept = self._kept[self._turn]
        kept[0, :, :, self.first : self.length], kept[1, :, :, self.first : self.length] = key, value
        self._turn += 1
        keys, values = kept[:, :, :, : self.length]
        return keys, values
