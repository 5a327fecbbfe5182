"""Rules of the loss: is there one, does it fall."""

from __future__ import annotations

import math

import numpy as np

from trm_ray.reporting.rules.seen import (
    MIN_LOGS,
    Seen,
    ends,
    finite,
    from_to,
    has_ended,
    has_trend,
    percent,
    smaller_blocks,
    times,
    training_loss,
    trend,
)
from trm_ray.reporting.run_log import Row, Run, Series

MIN_FALL, MAX_RISE = 0.02, 0.05  # relative fall of the training loss that counts as learning, rise that does not
NEARLY_ALWAYS = 0.9  # share of the logs
LEAST_WAY = 0.02  # lr · steps, which is as far as Adam can have taken a weight
LOSS_NAME = "training loss (last cycle's cross-entropy)"


def non_finite(run: Run) -> Seen | None:
    """Look for a loss or gradient norm that is NaN or infinite."""
    first: tuple[int, str] | None = None
    for tag in ("train/total_loss", "train/lm_loss", "train/grad_norm", "eval/loss"):
        # Held-out puzzles without labels have no accuracy either: nothing is wrong with the run.
        rows = [row for row in run.rows if tag in row and not (tag == "eval/loss" and _is_nan(row, "eval/accuracy"))]
        broken = [int(row["step"]) for row in rows if not math.isfinite(row[tag])]
        if broken and (first is None or broken[0] < first[0]):
            first = broken[0], tag
    if first is None:
        return None
    unclipped = run.config.get("grad_clip_norm", 1.0) is None and run.config.get("optimizer") != "adam_atan2"
    changes = (*times(run, "lr", 0.2), *(["grad_clip_norm=1.0"] if unclipped else []))
    return Seen("bad", f"{first[1]} is not finite at step {first[0]:,}", first[0], "learn more slowly", changes)


def diverging(run: Run) -> Seen | None:
    """Look whether the loss is higher than it was: in training than at its start, or held out than a guess and twice
    its best."""
    loss, held_out = training_loss(run), finite(run.series("eval/loss"))
    told = None
    if has_trend(run, loss) and not run.config.get("init_from"):
        first, last = ends(loss)
        told = f"{LOSS_NAME} {trend(loss)}" if last > (1 + MAX_RISE) * first else None
    if told is None and len(held_out.values) >= 3 and len(loss.values) >= MIN_LOGS:
        best, first = int(np.argmin(held_out.values[:-2])), loss.values[0]
        lost = (held_out.values[-2:] > max(2 * held_out.values[best], first)).all()
        # Where training knows the answers still, it is overfitting.
        told = f"held-out loss {from_to(held_out, best)}" if lost and min(loss.values[-2:]) > first / 2 else None
    return None if told is None else Seen("bad", told, run.last_step, "learn more slowly", times(run, "lr", 0.2))


def not_learning(run: Run) -> Seen | None:
    """Look whether the training loss stays where it was."""
    loss = training_loss(run)
    if not _stands_still(run, loss):
        return None
    if _creeps(run):
        remedy, changes = "learn faster", times(run, "lr", 10)
    else:
        remedy, changes = "learn more slowly", (*times(run, "lr", 0.2), *smaller_blocks(run))
    return Seen("warn", f"{LOSS_NAME} {trend(loss)}", run.last_step, remedy, changes)


def converging(run: Run) -> Seen | None:
    """Look whether the training loss falls."""
    loss = training_loss(run)
    if not has_trend(run, loss) or non_finite(run) or diverging(run):
        return None
    first, last = ends(loss)
    falls = last < (1 - MIN_FALL) * first
    return Seen("ok", f"{LOSS_NAME} {trend(loss)}", run.last_step) if falls else None


def clipped(run: Run) -> Seen | None:
    """Look whether nearly every step is clipped while the loss stays where it was.

    Clipping alone is no harm: Adam divides by the norm anyway, and good runs are clipped at every step.
    """
    norms, clip = finite(run.series("train/grad_norm")), run.config.get("grad_clip_norm")
    if not clip or not len(norms.values):
        return None
    share, loss = float(np.mean(norms.values > clip)), training_loss(run)
    stuck = (_stands_still(run, loss) and not _creeps(run)) or diverging(run)
    if share < NEARLY_ALWAYS or not stuck:
        return None
    told = f"gradient norm above {clip:g} at {percent(share)} of the logs, median {np.median(norms.values):.3g}"
    told += f", and the loss does not fall: {trend(loss)}"
    return Seen("warn", told, run.last_step, "learn more slowly", times(run, "lr", 0.2))


def _stands_still(run: Run, loss: Series) -> bool:
    """Tell whether the loss is where it was, once the warm-up and a tenth of the run are over.

    A run that begins with learned weights may stand still.
    """
    begun = max(run.config.get("lr_warmup_steps") or 0, (run.planned_steps or 0) / 10)
    too_early = run.last_step < begun and not has_ended(run)
    if too_early or not has_trend(run, loss) or run.config.get("init_from"):
        return False
    first, last = ends(loss)
    return (1 - MIN_FALL) * first <= last <= (1 + MAX_RISE) * first


def _creeps(run: Run) -> bool:
    """Tell whether the learning rate is too low for the run's weights to have gone anywhere."""
    return float(run.config.get("lr") or math.inf) * run.last_step < LEAST_WAY


def _is_nan(row: Row, tag: str) -> bool:
    return tag in row and math.isnan(row[tag])
