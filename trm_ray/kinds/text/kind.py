"""Text as a kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trm_ray.kinds.text.tokenizer import BytesTokenizer
from trm_ray.kinds.tokens import Tokens

_BYTES = BytesTokenizer()


@dataclass(frozen=True)
class Text(Tokens):
    """Rows of text. Where the tokens are bytes they are written as text, and else as numbers."""

    name = "text"

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Text:
        """Return a row of any length."""
        return cls(seq_len, vocab_size)

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the tokens out in one row."""
        return np.arange(self.seq_len)[None]

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write bytes as characters where they are one, the separator as `¶`."""
        if self.vocab_size != _BYTES.vocab_size:
            return super().symbols(tokens)
        shown = [chr(token) if 32 <= token < 127 else "·" for token in range(256)]
        return np.array([*shown, "¶"])[tokens]
