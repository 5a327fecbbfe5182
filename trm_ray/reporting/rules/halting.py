"""Rules of the segments: does the halt head stop where it should, and are more of them worth it."""

from __future__ import annotations

import math
from typing import NamedTuple

from trm_ray.reporting.rules.seen import (
    ACCURACY_SLACK,
    BITS_SLACK,
    SOLVES_HALF,
    SOLVES_SOME,
    Seen,
    has_ended,
    knows_more,
    lasting,
    percent,
    times,
    word,
)
from trm_ray.reporting.run_log import EVAL_FIRST_BITS, Run

ONE_SEGMENT, ALL_SEGMENTS = 1.1, 0.95  # mean segments where halting collapsed; share of all where it never halts
CLAIMED_SOLVED = 0.8  # of puzzles that a halt head lets go at once so many should be right
HALTING_SLACK = (
    0.15  # what halting may cost at the end: runs of sudoku6 at half the learning rate pay up to 13.5 points
)


class _Halting(NamedTuple):
    """The last evaluation: solved after all segments and where the halt head stops, after so many segments of most."""

    step: int
    exact: float
    halting: float
    segments: float
    most: int


@lasting
def halting_collapsed(run: Run) -> Seen | None:
    """Look whether the halt head lets nearly all puzzles go after one segment, unsolved ones too."""
    found = _halting(run)
    if found is None or found.segments > ONE_SEGMENT or found.halting >= CLAIMED_SOLVED:
        return None
    told = f"halts after {found.segments:.2f} of {found.most} segments, where {percent(found.halting)} are solved"
    return Seen(
        "warn",
        told,
        found.step,
        "train on more puzzles, and on longer series",
        (*times(run, "generator.train", 8), *_explore(run)),
    )


def halting_too_early(run: Run) -> Seen | None:
    """Look whether halting loses puzzles that all segments solve, at the end: before, the halt head is still behind."""
    found = _halting(run)
    if found is None or not has_ended(run) or halting_collapsed(run):
        return None
    if found.exact < SOLVES_HALF or found.halting >= found.exact - HALTING_SLACK:
        return None
    told = f"{percent(found.exact)} solved with all {found.most} segments, "
    told += f"{percent(found.halting)} where the halt head stops"
    return Seen("warn", told, found.step, "train longer, or evaluate with all segments", times(run, "max_steps", 2))


@lasting
def halting_never(run: Run) -> Seen | None:
    """Look whether the halt head stops nearly nowhere, though most puzzles get solved."""
    found = _halting(run)
    if found is None or found.segments <= ALL_SEGMENTS * found.most or found.exact < SOLVES_HALF:
        return None
    told = f"halts after {found.segments:.1f} of {found.most} segments, though {percent(found.exact)} are solved"
    return Seen("warn", told, found.step, "train longer", times(run, "max_steps", 2))


@lasting
def segments_hurt(run: Run) -> Seen | None:
    """Look whether more segments solve fewer puzzles than the first alone: the run was trained with too few."""
    if run.is_plain_text:
        return _segments_hurt_text(run)
    first, last = run.series("eval/exact_accuracy_first"), run.series("eval/exact_accuracy")
    if not len(first.values) or not len(last.values) or first.values[-1] < SOLVES_SOME:
        return None
    few = run.config.get("eval_max_puzzles")
    noise = 2 * math.sqrt(first.values[-1] * (1 - first.values[-1]) / few) if few else 0.0
    if first.values[-1] <= last.values[-1] + max(ACCURACY_SLACK, noise):
        return None
    most = run.arch.get("halt_max_steps", "all")
    told = f"{percent(first.values[-1])} solved after one segment, {percent(last.values[-1])} after {most}"
    return Seen("warn", told, int(last.steps[-1]), "let more puzzles go on for longer", _explore(run))


def _segments_hurt_text(run: Run) -> Seen | None:
    """Compare the bits per byte of the first segment's last H-cycle with those at the end."""
    cycles, last = run.cycle_series(EVAL_FIRST_BITS), run.series("eval/bits_per_byte")
    if not cycles or not len(last.values):
        return None
    first = float(cycles[-1].values[-1])
    if last.values[-1] <= (1 + BITS_SLACK) * first or not knows_more(run, first):
        return None
    most = run.arch.get("halt_max_steps", "all")
    told = f"{first:.3g} bits per byte after one segment, {last.values[-1]:.3g} after {most}"
    return Seen("warn", told, int(last.steps[-1]), "train with fewer", (word("arch.halt_max_steps", 1),))


def halting_saves(run: Run) -> Seen | None:
    """Look whether halting saves segments at little cost."""
    found = _halting(run)
    if found is None or found.exact < SOLVES_HALF or found.segments > ALL_SEGMENTS * found.most:
        return None
    if halting_collapsed(run) or halting_too_early(run):
        return None
    told = f"halts after {found.segments:.1f} of {found.most} segments at {percent(found.halting)} solved"
    return Seen("ok", told, found.step)


def _halting(run: Run) -> _Halting | None:
    tags = ("eval/exact_accuracy", "eval/exact_accuracy_halting", "eval/act_steps")
    rows, most = [row for row in run.rows if all(tag in row for tag in tags)], int(run.arch.get("halt_max_steps") or 16)
    if not rows or most < 2:
        return None
    exact, halting, segments = (rows[-1][tag] for tag in tags)
    return _Halting(int(rows[-1]["step"]), exact, halting, segments, most)


def _explore(run: Run) -> tuple[str, ...]:
    value = float(run.arch.get("halt_exploration_prob", 0.1))
    return (word("arch.halt_exploration_prob", min(1.0, max(0.1, round(2 * value, 3)))),)
