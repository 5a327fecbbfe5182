"""What a model of text is measured against: what counting tokens gives, and what `xz` does, in bits per byte."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trm_ray.data.format import TextInfo
from trm_ray.kinds.text.pack import Packing
from trm_ray.kinds.text.tokenizer import open_tokenizer

_COMPRESSED_BYTES = 64 << 20  # what xz looks back on; it takes ten times as much memory, and a minute
_DIGITS = 6  # so that no processor's logarithm makes another file


def unigram_bits_per_byte(train: np.ndarray, test: np.ndarray, token_bytes: np.ndarray) -> float | None:
    """Return what tokens cost that are guessed by how often they were in the training split, one added to each.

    Args:
        train: (V,) how often each token is to be predicted.
        test: (V,) the same, of the split that is measured.
        token_bytes: (V,) how many bytes of text each token stands for.

    Returns:
        None where the tokens stand for no text.
    """
    num_bytes = int(test @ token_bytes)
    nats = np.log(train.sum() + len(train)) * test.sum() - test @ np.log(train + 1)
    return round(float(nats / np.log(2) / num_bytes), _DIGITS) if num_bytes else None


def xz_bits_per_byte(documents: Iterable[bytes]) -> float | None:
    """Return what `xz -9e` makes of documents that stand one after the other, a NUL between them: of the first 64 MiB.

    Returns:
        None where there is no text.
    """
    text, separators = bytearray(), 0
    for document in documents:
        if len(text) >= _COMPRESSED_BYTES:
            break
        separators += bool(text)
        text += (b"\0" if text else b"") + document
    del text[_COMPRESSED_BYTES:]
    if len(text) == separators:
        return None
    seen = 1 << max(12, (len(text) - 1).bit_length())  # all of it: no more memory than it takes
    how = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": seen}
    packed = lzma.compress(text, filters=[how])
    return round(8 * len(packed) / (len(text) - separators), _DIGITS)


@dataclass(frozen=True)
class Xz:
    """How much of a split's text xz leaves, for a file to say."""

    packing: Packing
    path: Path
    tokenizer: str
    separator: str | None

    def write(self) -> None:
        """Measure it, unless somebody has."""
        if self.path.is_file():
            return
        tokenizer = open_tokenizer(self.tokenizer, self.separator)
        found = xz_bits_per_byte(tokenizer.decode(tokens).encode() for tokens in self.packing.documents())
        temporary = self.path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(self.path)

    def read(self) -> float | None:
        """Say what was measured, in bits per byte."""
        found: float | None = json.loads(self.path.read_text(encoding="utf-8"))
        return found


def told_yardsticks(text: TextInfo) -> str:
    """Say what was measured, for the end of a line."""
    unigram, xz = text.unigram_bits_per_byte, text.xz_bits_per_byte
    return "" if unigram is None or xz is None else f"; unigram {unigram:.2f} and xz {xz:.2f} bits per byte"
