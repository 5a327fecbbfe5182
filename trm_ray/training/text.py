"""What an evaluation must know of a text beside its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TextMeasure:
    """How much text the tokens stand for, and what a model of them is held against.

    token_bytes: (V,) bytes of each token; a separator has none.
    whole_rows: a row may be right as a whole, as an answer to a prompt is; not so where rows are cut out of text.
    yardsticks: bits per byte that take no model, by the tag that they are logged under.
    """

    token_bytes: Tensor
    whole_rows: bool
    yardsticks: Mapping[str, float] = field(default_factory=dict)
