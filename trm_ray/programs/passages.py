"""Held-out text under the eyes of models: how much each token surprises them at every depth, and what they expected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm_ray.data.format import DatasetInfo, read_token_bytes, read_tokenizer
from trm_ray.data.rows import IGNORED_LABEL
from trm_ray.interop.loading import LoadedModel
from trm_ray.kinds.text.spelling import Speller
from trm_ray.kinds.text.tokenizer import Tokenizer, tokenizer_of
from trm_ray.model.trm import Batch
from trm_ray.model.unread import Unread
from trm_ray.reporting.page.passage import Piece, Reading, visible
from trm_ray.training.inference import run_segments
from trm_ray.training.losses import LOSSES

SEPARATOR = "¶"


@dataclass(frozen=True)
class Guesses:
    """What a model makes of rows of text after each H-cycle: bits of each label, 0 where there is none, and the
    likeliest tokens, (D, B, L) each."""

    bits: np.ndarray
    likeliest: np.ndarray

    def of(self, rows: Any) -> Guesses:
        """Choose rows, or one."""
        return Guesses(self.bits[:, rows], self.likeliest[:, rows])


@torch.inference_mode()
def guesses(model: LoadedModel, batch: Batch) -> Guesses:
    """Read rows of text, with the logits of a few tokens of one H-cycle in memory at a time."""
    cell_loss, bits, likeliest = LOSSES[model.config.loss_type], [], []
    for output in run_segments(model, batch):
        for states in output.cycle_logits:
            assert isinstance(states, Unread), "the states of a text"
            bits.append(states.each(cell_loss, batch.labels).cpu().numpy() / math.log(2))
            likeliest.append(states.argmax(-1).cpu().numpy())
    return Guesses(np.stack(bits), np.stack(likeliest))


@dataclass(frozen=True)
class Script:
    """How a text's tokens are written, and how many bytes each stands for (V,).

    prompts: rows are prompts with answers.
    """

    tokenizer: Tokenizer
    token_bytes: np.ndarray
    prompts: bool

    @classmethod
    def of(cls, folder: Path, info: DatasetInfo) -> Script:
        """Take it from a dataset.

        Raises:
            DatasetError: the tokenizer is missing, or the package that reads it.
        """
        assert info.text is not None
        tokenizer = tokenizer_of(read_tokenizer(folder), info.text.separator, info.vocab_size, str(folder))
        return cls(tokenizer, read_token_bytes(folder, info), info.text.packing == "prompt")

    def bits_per_byte(self, bits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Add up bits (…, L) over the bytes of their labels: (…)."""
        counted = labels != IGNORED_LABEL
        num_bytes = (self.token_bytes[np.where(counted, labels, self.tokenizer.separator)]).sum(-1)
        return np.asarray(np.where(counted, bits, 0).sum(-1) / np.maximum(num_bytes, 1))

    def readings(self, inputs: np.ndarray, labels: np.ndarray, found: Guesses, most: int) -> tuple[Reading, ...]:
        """Lay out a row (L,) after each H-cycle, as far as it has labels.

        Args:
            found: of this row alone, (D, L).
            most: labels at most.
        """
        length = min(most, int(np.flatnonzero(labels != IGNORED_LABEL).max(initial=-1)) + 1)
        tokens, labels = np.append(inputs, labels[-1])[: length + 1], labels[:length]
        spelt = list(self.spelt(tokens.tolist()))
        return tuple(
            self._reading(depth, spelt, labels, bits[:length], likeliest[:length])
            for depth, (bits, likeliest) in enumerate(zip(found.bits, found.likeliest, strict=True), start=1)
        )

    def _reading(
        self,
        depth: int,
        spelt: Sequence[tuple[str, slice]],
        labels: np.ndarray,
        bits: np.ndarray,
        likeliest: np.ndarray,
    ) -> Reading:
        counted = labels != IGNORED_LABEL
        wrong = np.logical_and(counted, likeliest != labels)
        # A label is the token at the next place.
        known = [None, *(float(value) if one else None for value, one in zip(bits, counted, strict=True))]
        instead = ["", *(self.name(int(token)) if one else "" for token, one in zip(likeliest, wrong, strict=True))]
        pieces = (Piece(text, _sum(known[at]), next(filter(None, instead[at]), "")) for text, at in spelt)
        num_wrong = int(wrong.sum()) if self.prompts else None
        return Reading(depth, tuple(pieces), float(self.bits_per_byte(bits, labels)), num_wrong)

    def spelt(self, tokens: Sequence[int]) -> Iterator[tuple[str, slice]]:
        """Part tokens into the shortest stretches that are whole characters, and separators."""
        speller, begin = Speller(self.tokenizer), 0
        for at, token in enumerate(tokens):
            if token == self.tokenizer.separator:
                if begin < at:
                    yield speller.rest(), slice(begin, at)
                speller, begin = Speller(self.tokenizer), at + 1
                yield SEPARATOR, slice(at, at + 1)
            elif text := speller.add(token):
                yield text, slice(begin, at + 1)
                begin = at + 1
        if begin < len(tokens):
            yield speller.rest(), slice(begin, len(tokens))

    def name(self, token: int) -> str:
        """Write a token that stands alone, which may be a part of a character."""
        if token == self.tokenizer.separator:
            return SEPARATOR
        text = self.tokenizer.decode([token])
        if not text or "\ufffd" in text:
            return f"token {token}"
        return visible(text.replace(" ", "␣")).replace("↵\n", "↵")


def _sum(bits: Sequence[float | None]) -> float | None:
    """Add up what is known."""
    known = [value for value in bits if value is not None]
    return sum(known) if known else None
