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
)
from trm_ray.reporting.run_log import EVAL_FIRST_LOSS, TRAIN_FIRST_LOSS, Run

BEST_SLACK = 0.05  # the best of many evaluations is by chance so much above the others
OVERFIT_WARN, OVERFIT_BAD = 1.1, 1.5  # last held-out loss over the best one
OVERFIT_RISE, OVERFIT_GAP = 0.05, 1.5  # and how much higher it must be than the best, and than in training


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
    changes = (*times(run, "generator.train", 8), *(["augment=true"] if run.config.get("augment") is False else []))
    remedy = "train on more puzzles, or take the checkpoint of the lowest loss"
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
    told = f"no held-out puzzle solved at any of {counted(len(exact.values), 'evaluation')}"
    return Seen("warn", told, int(exact.steps[-1]), "train longer", times(run, "max_steps", 4))


def past_its_best(run: Run) -> Seen | None:
    """Look whether a run that has ended had solved more puzzles before."""
    exact = finite(run.series("eval/exact_accuracy"))
    if not has_ended(run) or not len(exact.values):
        return None
    best, last = int(np.argmax(exact.values)), exact.values[-1]
    quick, top = run.config.get("eval_quick_puzzles"), float(exact.values[best])
    noise = 2 * math.sqrt(top * (1 - top) / quick) if quick else 0.0  # fewer puzzles were looked at then
    if last >= top - max(BEST_SLACK, noise):
        return None
    told = f"held-out puzzles solved {percent(top)} at step {exact.steps[best]:,} and {percent(last)} at the end"
    remedy = "take the checkpoint of the lowest held-out loss, or let the learning rate fall further"
    changes = (*keep_best(run), *(["lr_min_ratio=0.1"] if run.config.get("lr_min_ratio", 0) > 0.1 else []))
    return Seen("warn", told, int(exact.steps[-1]), remedy, changes)


def solving(run: Run) -> Seen | None:
    """Look how many held-out puzzles are solved."""
    exact = finite(run.series("eval/exact_accuracy"))
    if not len(exact.values) or exact.values[-1] == 0:
        return None
    return Seen("ok", f"held-out puzzles solved: {percent(exact.values[-1])}", int(exact.steps[-1]))


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
