"""When a trial is past hope, whatever the others do: a pure function of its evaluations."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

# What `stop_on` may name, and how it is told.
REASONS = {"non_finite": "not finite", "diverging": "diverging"}
# So many evaluations in a row must be so many times as bad as the best before them.
_TIMES, _FACTOR = 2, 2.0


def past_hope(losses: Sequence[float], num_tokens: int, stop_on: Collection[str]) -> str | None:
    """Say why a trial is not worth another step: one of `stop_on`, or None.

    Args:
        losses: held-out losses (`eval/loss`) of all evaluations so far, in their order.
        num_tokens: of the vocabulary.
    """
    if "non_finite" in stop_on and losses and not math.isfinite(losses[-1]):
        return "non_finite"
    return "diverging" if "diverging" in stop_on and is_diverging(losses, num_tokens) else None


def is_diverging(losses: Sequence[float], num_tokens: int) -> bool:
    """Tell whether a run has lost what it had learned.

    So it is where the last two evaluations are both worse than a uniform guess over the vocabulary, ln V, and than
    twice the best evaluation before them. A run that begins badly is not diverging, for it has been no better; neither
    is one that overfits, as long as it knows more than nothing.
    """
    before = [loss for loss in losses[:-_TIMES] if math.isfinite(loss)]
    if not before:
        return False
    bar = max(math.log(num_tokens), _FACTOR * min(before))
    return all(loss > bar for loss in losses[-_TIMES:])
