"""Rules of the H-cycles: does the answer get better from one to the next, and does each have its gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from trm_ray.reporting.rules.held_out import past_its_best
from trm_ray.reporting.rules.learning import converging
from trm_ray.reporting.rules.seen import (
    ACCURACY_SLACK,
    BITS_SLACK,
    MIN_LOGS,
    SMALL_START,
    SOLVES_ALL,
    SOLVES_SOME,
    Seen,
    has_ended,
    knows_more,
    lasting,
    smaller_blocks,
    times,
    training_loss,
    word,
)
from trm_ray.reporting.run_log import EVAL_FIRST_BITS, EVAL_FIRST_EXACT, EVAL_FIRST_LOSS, Run

EQUAL_LOSS, REVERSED_LOSS, U_LOSS = 0.98, 1.1, 1.05  # last cycle's loss over the first's; the ends' over the middle's
EQUAL_BITS = 0.995  # the same of a text's bits per byte
STARVED, EXPLODING = 1e-6, 100.0  # a cycle's gradient norm over the last cycle's
LARGE_GRADIENT = 10.0  # where norms differ that are smaller, the puzzles of some cycles are solved
CYCLE_GRADIENT = "train/gradients/step_{i}_grad_norm_mean"


class _Cycles(NamedTuple):
    """Held-out loss and exact accuracy after each H-cycle of the first segment, (H,), at the last evaluation.

    Of plain text the loss is in bits per byte, and no row of it is right as a whole: exact is NaN.
    """

    step: int
    loss: np.ndarray
    exact: np.ndarray

    @property
    def is_text(self) -> bool:
        """Whether it is plain text."""
        return bool(np.isnan(self.exact).all())


class _Gradients(NamedTuple):
    """The mean gradient norm that the loss of each supervised H-cycle gives."""

    step: int
    norms: list[float]

    @property
    def told(self) -> str:
        """Write them out."""
        norms = " → ".join(f"{norm:.2g}" for norm in self.norms)
        return f"mean gradient norm by supervised H-cycle {norms}, step {self.step:,}"


@lasting
def no_refinement(run: Run) -> Seen | None:
    """Look whether the last H-cycle of the first segment is no better than the first."""
    found = _cycles(run, unsolved_too=True)
    if (
        found is None
        or past_its_best(run)
        or found.exact[0] >= SOLVES_ALL
        or ((found.is_text or found.exact.max() >= SOLVES_SOME) and _is_reversed(found))
    ):
        return None
    if _is_better(found) or found.exact[-1] > found.exact[0] + ACCURACY_SLACK:
        return None
    small = smaller_blocks(run)
    remedy = "let blocks begin small" if small else "give each answer more latent updates"
    return Seen("warn", _cycles_told(found), found.step, remedy, small or times(run, "arch.L_cycles", 2))


@lasting
def reversed_refinement(run: Run) -> Seen | None:
    """Look whether the last H-cycle of the first segment is worse than the first."""
    found = _cycles(run)
    if found is None or not _is_reversed(found):
        return None
    return Seen("bad", _cycles_told(found), found.step, *_later_cycles(run))


@lasting
def u_shape(run: Run) -> Seen | None:
    """Look whether an H-cycle in the middle of the first segment is better than those at both of its ends."""
    found = _cycles(run)
    if found is None or len(found.loss) < 3 or _is_reversed(found):
        return None
    best = 1 + int(np.argmin(found.loss[1:-1]))
    ends = [0, -1]
    if (found.loss[ends] < (1 + BITS_SLACK if found.is_text else U_LOSS) * found.loss[best]).any():
        return None
    if (found.exact[ends] > found.exact[best] - ACCURACY_SLACK).any():
        return None
    return Seen("warn", _cycles_told(found), found.step, *_later_cycles(run))


def refining(run: Run) -> Seen | None:
    """Look whether the last H-cycle of the first segment is better than the first."""
    found = _cycles(run)
    if found is None or not _is_better(found) or u_shape(run):
        return None
    return Seen("ok", _cycles_told(found), found.step)


def starved_cycles(run: Run) -> Seen | None:
    """Look whether a supervised H-cycle has next to no gradient beside the last one's."""
    found = _gradients(run)
    if found is None or min(found.norms) >= STARVED * found.norms[-1]:
        return None
    return Seen(
        "bad", found.told, found.step, "let blocks begin small", (word("arch.residual_init_scale", SMALL_START),)
    )


def exploding_cycles(run: Run) -> Seen | None:
    """Look whether the gradient of an H-cycle is large, and far larger than another's."""
    found = _gradients(run)
    if found is None or starved_cycles(run):
        return None
    if max(found.norms) <= max(LARGE_GRADIENT, EXPLODING * min(found.norms)):
        return None
    return Seen("bad", found.told, found.step, *calmer(run))


def _cycles(run: Run, *, unsolved_too: bool = False) -> _Cycles | None:
    """Read the cycles of the first segment, where they can be judged: not before some puzzles are solved.

    Only there: a later segment begins with an answer on which all cycles agree. And not before: the cycles of a network
    that has learned little differ by chance.

    Args:
        unsolved_too: those of a run, too, that has ended without, though its loss fell over a good many logs.
    """
    if run.is_plain_text:
        return _text_cycles(run)
    losses, exact = run.cycle_series(EVAL_FIRST_LOSS), run.cycle_series(EVAL_FIRST_EXACT)
    if len(losses) < 2 or len(exact) != len(losses):
        return None
    step = int(losses[0].steps[-1])
    found = _Cycles(step, *(np.array([one.values[-1] for one in all_of_it]) for all_of_it in (losses, exact)))
    judged = found.exact.max() >= SOLVES_SOME
    if unsolved_too and has_ended(run) and len(training_loss(run).values) >= 2 * MIN_LOGS:
        judged = judged or converging(run) is not None
    return found if judged and np.isfinite(found.loss).all() else None


def _text_cycles(run: Run) -> _Cycles | None:
    """Read the cycles of plain text, once it is better known than by what takes no model."""
    bits = run.cycle_series(EVAL_FIRST_BITS)
    if len(bits) < 2 or converging(run) is None:
        return None
    found = np.array([one.values[-1] for one in bits])
    if not np.isfinite(found).all() or not knows_more(run, float(found.min())):
        return None
    return _Cycles(int(bits[0].steps[-1]), found, np.full(len(found), np.nan))


def _is_better(found: _Cycles) -> bool:
    return bool(found.loss[-1] < (EQUAL_BITS if found.is_text else EQUAL_LOSS) * found.loss[0])


def _is_reversed(found: _Cycles) -> bool:
    if found.is_text:
        return bool(found.loss[-1] > (1 + BITS_SLACK) * found.loss[0])
    worse = found.exact[-1] < found.exact[0] - ACCURACY_SLACK
    no_better = found.exact[-1] <= found.exact[0] + ACCURACY_SLACK and found.exact[0] < SOLVES_ALL
    return bool(worse or (no_better and found.loss[-1] > REVERSED_LOSS * found.loss[0]))


def _cycles_told(found: _Cycles) -> str:
    losses = " → ".join(f"{loss:.3g}" for loss in found.loss)
    if found.is_text:
        return f"held-out bits per byte by H-cycle of the first segment {losses}, step {found.step:,}"
    solved = " → ".join(f"{100 * share:.0f}" for share in found.exact)
    return f"held-out loss by H-cycle of the first segment {losses}, {solved} % solved, step {found.step:,}"


def _later_cycles(run: Run) -> tuple[str, tuple[str, ...]]:
    """Say how to make the later cycles count for more."""
    if run.config.get("deep_supervision_enabled") and run.config.get("deep_supervision_schedule") == "constant":
        return "let later cycles weigh more", ("deep_supervision_schedule=linear_decay",)
    return "train longer at this depth", times(run, "max_steps", 2)


def _gradients(run: Run) -> _Gradients | None:
    """Read the gradient norms where they were last measured; of a baseline's cycles only the last has one."""
    names = [CYCLE_GRADIENT.replace("{i}", str(i)) for i in range(int(run.arch.get("H_cycles") or 0))]
    rows = [row for row in run.rows if names and names[-1] in row]
    norms = [rows[-1][name] for name in names if name in rows[-1]] if rows else []
    if len(norms) < 2 or norms[-1] == 0 or not all(map(math.isfinite, norms)):
        return None
    return _Gradients(int(rows[-1]["step"]), norms)


def calmer(run: Run) -> tuple[str, tuple[str, ...]]:
    """Say how to bring gradients closer to each other."""
    small = smaller_blocks(run)
    return ("let blocks begin small", small) if small else ("learn more slowly", times(run, "lr", 0.2))
