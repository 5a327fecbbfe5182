"""Text as a kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trm_ray.config.keys import Positive
from trm_ray.data.format import TextInfo
from trm_ray.kinds.kind import Arguments
from trm_ray.kinds.text.generate import generate_text
from trm_ray.kinds.text.tokenizer import BytesTokenizer
from trm_ray.kinds.tokens import Tokens

_BYTES = BytesTokenizer()


class TextArguments(Arguments):
    """Text that needs no files, as bytes."""

    train: Positive = 10_000  # rows to train on
    test: Positive = 512  # held-out rows, of other documents
    # addition and reverse = prompts with answers, a row each; stdlib = the documentation of this Python's library.
    source: Literal["addition", "reverse", "stdlib"] = "stdlib"
    seq_len: Positive = 128  # tokens a row
    size: Positive = 3  # most digits of a number, most letters of a word


@dataclass(frozen=True)
class Text(Tokens):
    """Rows of text. Where the tokens are bytes they are written as text, and else as numbers."""

    name = "text"
    arguments = TextArguments
    generate = staticmethod(generate_text)

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Text:
        """Return a row of any length."""
        return cls(seq_len, vocab_size)

    @classmethod
    def shape_made(cls, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Say so of rows of bytes."""
        return arguments["seq_len"], _BYTES.vocab_size

    @classmethod
    def text_made(cls, arguments: Mapping[str, Any]) -> TextInfo:
        """Name the separator; how much there is, only the text itself tells."""
        packing: Literal["running", "prompt"] = "running" if arguments["source"] == "stdlib" else "prompt"
        return TextInfo(_BYTES.separator, _BYTES.name, _BYTES.sha256, packing, {}, {}, {}, {}, [])

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the tokens out in one row."""
        return np.arange(self.seq_len)[None]

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write bytes as characters where they are one, the separator as `¶`."""
        if self.vocab_size != _BYTES.vocab_size:
            return super().symbols(tokens)
        shown = [chr(token) if 32 <= token < 127 else "·" for token in range(256)]
        return np.array([*shown, "¶"])[tokens]
