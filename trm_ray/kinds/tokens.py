"""Token ids without rules as a kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trm_ray.data.rows import DatasetError
from trm_ray.kinds.kind import Kind, Question, Verdict, named, side_of


@dataclass(frozen=True)
class Tokens(Kind):
    """Boards of token ids without rules, such as those of a dataset of one's own."""

    seq_len: int
    vocab_size: int
    name = "tokens"

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Tokens:
        """Return any board."""
        return cls(seq_len, vocab_size)

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read integers with white space or commas between them, a line a board."""
        lines = [line.replace(",", " ").split() for line in text.splitlines()]
        return named(source, name, [self._tokens(words, source) for words in lines if words])

    def _tokens(self, words: list[str], source: str) -> np.ndarray:
        wrong = [word for word in words if not word.isdecimal() or int(word) >= self.vocab_size]
        if wrong:
            raise DatasetError(f"{source} has {wrong[0]!r}; this model reads token ids from 0 to {self.vocab_size - 1}")
        if len(words) != self.seq_len:
            raise DatasetError(f"{source} has a line of {len(words)} tokens; this model reads {self.seq_len} a line")
        return np.array([int(word) for word in words])

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep nothing."""
        return np.zeros(inputs.shape, bool)

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the tokens out as a square if they make one, else in one row."""
        return np.arange(self.seq_len).reshape(side_of(self.seq_len) or 1, -1)

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write the numbers."""
        return tokens.astype(str)

    def plain(self, tokens: np.ndarray) -> list[int]:
        """Write the numbers."""
        return tokens.tolist()

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Leave the answer to the reader."""
        return Verdict(None, "no rules to hold it against", np.zeros(tokens.shape, bool))
