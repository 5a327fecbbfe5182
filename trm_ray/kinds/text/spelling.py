"""Tokens as text while they come: whole characters, as soon as they are whole."""

from __future__ import annotations

from collections.abc import Sequence

from trm_ray.kinds.text.tokenizer import Tokenizer

_CONTEXT = 8  # tokens: how a token is spelt may depend on what is before it, as a blank at the beginning
_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet


class Speller:
    """Spell tokens one after the other.

    All that is returned, joined, is the text of the tokens.

    Args:
        before: tokens that stand before and are not to be spelt.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._tokens = [*before][-_CONTEXT:]
        self._num_told = len(self._tokens)

    def add(self, token: int) -> str:
        """Take the next token; return what can be told now, nothing in the middle of a character."""
        self._tokens.append(token)
        return "" if self._tokenizer.decode(self._tokens).endswith(_BROKEN) else self.rest()

    def rest(self) -> str:
        """Return what has not been told, whole or not."""
        told = self._tokenizer.decode(self._tokens[: self._num_told]).rstrip(_BROKEN)
        text = self._tokenizer.decode(self._tokens)[len(told) :]
        self._tokens = self._tokens[self._num_told :] or self._tokens
        self._num_told = len(self._tokens)
        return text
