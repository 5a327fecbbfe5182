"""Rules of the held-out puzzles: does what is learned hold for them, and are they solved."""

from __future__ import annotations

import math

import numpy as np

from trm_ray.reporting.rules.learning import converging, diverging
from trm_ray.reporting.rules.seen import (
    Seen,
    counted,
    finite,
    from_to,
    has_ended,
    keep_best,
    lasting,
    percent,
    times,
    training_loss,
    yardstick,
)
from trm_ray.reporting.run_log import EVAL_FIRST_LOSS, TRAIN_FIRST_LOSS, Run, Series

BEST_SLACK = 0.05  # the best of many evaluations is by chance so much above the others
BEST_BITS = 1.02  # last bits per byte over the best ones
OVERFIT_WARN, OVERFIT_BAD = 1.1, 1.5  # last held-out loss over the best one
OVERFIT_RISE, OVERFIT_GAP = 0.05, 1.5  # and how much higher it must be than the best, and than in training
# Bits per byte that no model of plain text gets: below a quarter of what xz takes, and half a bit; where xz is unknown.
LEAK_SHARE, LEAK_MOST, LEAK_UNKNOWN = 0.25, 0.5, 0.3


@lasting
def overfitting(run: Run) -> Seen | None:
    """Look whether the held-out loss rises again while that of the training puzzles stays below it."""
    loss, gap = finite(run.series("eval/loss")), _gap(run)
    if len(loss.values) < 2 or gap is None:
        return None
    best = int(np.argmin(loss.values))
    ratio, rise = loss.values[-1] / max(loss.values[best], 1e-12), loss.values[-1] - loss.values[best]
    if ratio <= OVERFIT_WARN or rise <= OVERFIT_RISE or gap <= OVERFIT_GAP:
        return None
    told = f"held-out loss {from_to(loss, best)}; in the first segment it is {gap:.1f} times the training loss"
    has_symmetries = run.config.get("augment") is False and not run.is_text
    changes = (*times(run, "generator.train", 8), *(["augment=true"] if has_symmetries else []))
    remedy = f"train on more {run.material}, or take the checkpoint of the lowest loss"
    return Seen(
        "bad" if ratio > OVERFIT_BAD else "warn", told, int(loss.steps[-1]), remedy, (*changes, *keep_best(run))
    )


def generalising(run: Run) -> Seen | None:
    """Look whether the held-out loss is near its best."""
    loss = finite(run.series("eval/loss"))
    if len(loss.values) < 2 or converging(run) is None:
        return None
    if loss.values[-1] > OVERFIT_WARN * min(loss.values) + OVERFIT_RISE:
        return None
    return Seen("ok", f"held-out loss near its best: {loss.values[-1]:.3g}", int(loss.steps[-1]))


def nothing_solved(run: Run) -> Seen | None:
    """Look whether a run has ended without ever solving a held-out puzzle."""
    exact = finite(run.series("eval/exact_accuracy"))
    if not has_ended(run) or not len(exact.values) or (exact.values > 0).any() or diverging(run):
        return None
    told = f"no held-out {run.material.removesuffix('s')} solved at any of {counted(len(exact.values), 'evaluation')}"
    return Seen("warn", told, int(exact.steps[-1]), "train longer", times(run, "max_steps", 4))


def past_its_best(run: Run) -> Seen | None:
    """Look whether a run that has ended had solved more puzzles before."""
    exact = finite(run.series("eval/exact_accuracy"))
    if run.is_plain_text and has_ended(run):
        return _bits_past_their_best(run)
    if not has_ended(run) or not len(exact.values):
        return None
    best, last = int(np.argmax(exact.values)), exact.values[-1]
    quick, top = run.config.get("eval_quick_puzzles"), float(exact.values[best])
    noise = 2 * math.sqrt(top * (1 - top) / quick) if quick else 0.0  # fewer puzzles were looked at then
    if last >= top - max(BEST_SLACK, noise):
        return None
    told = f"held-out {run.material} solved {percent(top)} at step {exact.steps[best]:,} and {percent(last)} at the end"
    return Seen("warn", told, int(exact.steps[-1]), *_keep_the_best(run))


def _bits_past_their_best(run: Run) -> Seen | None:
    looked = run.series("eval/bits_per_byte")
    if run.config.get("eval_quick_puzzles"):  # of other text at the end: a part of it may well be ten percent easier
        looked = Series(*(values[:-1] for values in looked))
    bits = finite(looked)
    if not len(bits.values) or bits.values[-1] <= BEST_BITS * min(bits.values):
        return None
    told = f"held-out bits per byte {from_to(bits, int(np.argmin(bits.values)))}"
    return Seen("warn", told, int(bits.steps[-1]), *_keep_the_best(run))


def _keep_the_best(run: Run) -> tuple[str, tuple[str, ...]]:
    remedy = "take the checkpoint of the lowest held-out loss, or let the learning rate fall further"
    return remedy, (*keep_best(run), *(["lr_min_ratio=0.1"] if run.config.get("lr_min_ratio", 0) > 0.1 else []))


def solving(run: Run) -> Seen | None:
    """Look how many held-out puzzles are solved."""
    exact = finite(run.series("eval/exact_accuracy"))
    if not len(exact.values) or exact.values[-1] == 0:
        return None
    return Seen("ok", f"held-out {run.material} solved: {percent(exact.values[-1])}", int(exact.steps[-1]))


@lasting
def worse_than_unigram(run: Run) -> Seen | None:
    """Look whether a text is known no better than by how often each of its tokens comes, once the rate is warmed up."""
    bits, known = finite(run.series("eval/bits_per_byte")), yardstick(run, "unigram")
    if known is None or not len(bits.values) or bits.steps[-1] < (run.config.get("lr_warmup_steps") or 0):
        return None
    if bits.values[-1] < known:
        return None
    told = f"held-out bits per byte {bits.values[-1]:.3g}, of token frequencies alone {known:.3g}"
    return Seen("warn", told, int(bits.steps[-1]), "train longer", times(run, "max_steps", 4))


def leak(run: Run) -> Seen | None:
    """Look whether plain text is guessed better than it can be; an answer to a prompt may well be known for sure."""
    bits, xz = finite(run.series("eval/bits_per_byte")), yardstick(run, "xz")
    if not run.is_plain_text or not len(bits.values):
        return None
    least = LEAK_UNKNOWN if xz is None else min(LEAK_MOST, LEAK_SHARE * xz)
    if bits.values[-1] >= least:
        return None
    beside = "" if xz is None else f", of xz {xz:.3g}"
    told = f"held-out bits per byte {bits.values[-1]:.2g}{beside}: less than a model of text can come to"
    remedy = "look for held-out text that was trained on too, and for a model that sees what it is to guess"
    return Seen("bad", told, int(bits.steps[-1]), remedy)


def _gap(run: Run) -> float | None:
    """Divide the held-out loss by that of the training puzzles, both after the last cycle of the first segment."""
    held_out, training = run.cycle_series(EVAL_FIRST_LOSS), run.cycle_series(TRAIN_FIRST_LOSS)
    if held_out and len(held_out) == len(training):
        ours, theirs = held_out[-1], training[-1]
    else:
        ours, theirs = run.series("eval/loss"), training_loss(run)
    if not len(ours.values) or not len(theirs.values):
        return None
    return float(ours.values[-1] / max(theirs.values[-1], 1e-12))
