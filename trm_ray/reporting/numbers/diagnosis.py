"""Health of a run: each check looks at the run and gives one mark, or None where it has nothing to judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from trm_ray.reporting.run_log import EVAL_FIRST_LOSS, TRAIN_FIRST_LOSS, Run

Mark = Literal["ok", "warn", "bad"]

MIN_ROWS = 4  # fewer logs than this tell no trend
MIN_FALL = 0.02  # relative fall of the training loss that counts as learning
MAX_CLIPPED_SHARE = 0.5
MAX_DATA_WAIT = 0.05
ACCURACY_SLACK = 0.02  # a smaller loss of exact accuracy is noise
HALTING_SLACK = 0.08  # what halting may cost: runs of sudoku6 pay −0.4 to 5.9 points for three quarters of the segments
SOLVES_PUZZLES = 0.5
OVERFIT_WARN, OVERFIT_BAD = 1.1, 1.5  # last held-out loss over the best one


class HealthMark(NamedTuple):
    """A judgement and one short line on what was seen and what to do."""

    mark: Mark
    text: str


def health_marks(run: Run) -> list[HealthMark]:
    """Judge a run by every check that has the numbers it needs."""
    if not run.rows:
        return [HealthMark("warn", f"nothing logged yet: log_interval={run.config.get('log_interval', '?')}")]
    marks = [check(run) for check in CHECKS]
    return [mark for mark in marks if mark is not None]


def loss_falls(run: Run) -> HealthMark | None:
    """Judge whether the training loss is finite and falls.

    The last cycle's cross-entropy is used: the total is not even monotone in a good run.
    """
    for tag in ("train/total_loss", "train/lm_loss", "train/grad_norm", "eval/loss"):
        broken = run.series(tag).steps[~np.isfinite(run.series(tag).values)]
        if len(broken):
            return HealthMark("bad", f"{tag} not finite at step {broken[0]:,}: lower lr or warm up longer")
    loss = _training_loss(run)
    if len(loss) < MIN_ROWS:
        return HealthMark("warn", f"{_counted(len(loss), 'log')}: too few to see a trend")
    first, last = _ends(loss)
    if last < (1 - MIN_FALL) * first:
        return HealthMark("ok", f"training loss falls: {first:.3g} → {last:.3g}")
    text = f"training loss does not fall ({first:.3g} → {last:.3g}): change lr"
    return HealthMark("bad" if last > (1 + MIN_FALL) * first else "warn", text)


def cycles_refine(run: Run) -> HealthMark | None:
    """Judge whether the last H-cycle of the first segment is better than the first, held out where evaluated.

    Only there: a later segment begins with an answer on which all cycles agree.
    """
    cycles = run.cycle_series(EVAL_FIRST_LOSS) or run.cycle_series(TRAIN_FIRST_LOSS)
    if len(cycles) < 2:
        return None
    first, last = float(cycles[0].values[-1]), float(cycles[-1].values[-1])
    if last < first:
        return HealthMark("ok", f"later H-cycles refine: loss {first:.3g} → {last:.3g} in the first segment")
    return HealthMark("warn", f"later cycles do not help ({first:.3g} → {last:.3g}): raise arch.L_cycles")


def gradient_fits_clip(run: Run) -> HealthMark | None:
    """Judge how many of the logged steps were clipped: no harm in itself, for Adam divides by the norm anyway."""
    norms, clip, loss = run.series("train/grad_norm").values, run.config.get("grad_clip_norm"), _training_loss(run)
    if not clip or not len(norms):
        return None
    share = float(np.mean(norms > clip))
    text = f"gradient norm above clip at {100 * share:.0f} % of logs"
    if share <= MAX_CLIPPED_SHARE or len(loss) < MIN_ROWS:
        return HealthMark("ok", text)
    first, last = _ends(loss)
    if last < (1 - MIN_FALL) * first:
        return HealthMark("ok", f"{text}, and the loss falls")
    return HealthMark("warn", f"{text}, and the loss does not fall: lower lr")


def puzzles_get_solved(run: Run) -> HealthMark | None:
    """Judge the exact accuracy on held-out puzzles."""
    exact = run.series("eval/exact_accuracy")
    if not len(exact.steps):
        interval = run.config.get("eval_interval", "?")
        return HealthMark("warn", f"no evaluation yet: eval_interval={interval}, at step {run.last_step:,}")
    if not (exact.values > 0).any():
        return HealthMark("warn", "no held-out puzzle solved yet: train longer, or look at the loss")
    best = int(np.nanargmax(exact.values))
    text = f"held-out puzzles solved: {_percent(exact.values[-1])}"
    if exact.values[-1] >= exact.values[best] - ACCURACY_SLACK:
        return HealthMark("ok", text)
    best_text = f"{_percent(exact.values[best])} at step {exact.steps[best]:,}"
    return HealthMark("warn", f"{text}, but {best_text}: use that checkpoint")


def data_keeps_up(run: Run) -> HealthMark | None:
    """Judge the share of a step that waits for data, without the first log: the loader starts in it."""
    waits = run.series("throughput/data_wait_fraction").values
    if not len(waits):
        return None
    wait = float(np.mean(waits[1:] if len(waits) > 1 else waits))
    text = f"data wait {100 * wait:.1f} % of a step"
    return HealthMark("warn", f"{text}: give the loader a CPU") if wait >= MAX_DATA_WAIT else HealthMark("ok", text)


def halting_is_useful(run: Run) -> HealthMark | None:
    """Judge whether halting saves segments without losing puzzles; before puzzles get solved it cannot."""
    last, halting, steps = (
        _last(run, tag) for tag in ("eval/exact_accuracy", "eval/exact_accuracy_halting", "eval/act_steps")
    )
    if last is None or halting is None or steps is None or max(last, halting) < SOLVES_PUZZLES:
        return None
    most = run.arch.get("halt_max_steps", 16)
    where = f"halts after {steps:.1f} of {most} segments"
    if halting < last - HALTING_SLACK:
        return HealthMark("warn", f"{where} and loses {100 * (last - halting):.1f} points: train longer")
    if steps > 0.95 * most:
        return HealthMark("warn", f"{where}: the halting head saves nothing yet")
    return HealthMark("ok", f"{where} at {_percent(halting)} exact")


def segments_help(run: Run) -> HealthMark | None:
    """Warn when more segments solve fewer puzzles than the first alone: the run was trained with too few."""
    first, last = _last(run, "eval/exact_accuracy_first"), _last(run, "eval/exact_accuracy")
    if first is None or last is None or first <= last + ACCURACY_SLACK:
        return None
    return HealthMark(
        "warn", f"more segments hurt ({_percent(first)} → {_percent(last)}): raise arch.halt_exploration_prob"
    )


def generalises(run: Run) -> HealthMark | None:
    """Judge whether the held-out loss rises again while training goes on."""
    steps, _, loss = run.series("eval/loss")
    if len(loss) < 2 or not np.isfinite(loss).all():
        return None
    best = int(np.argmin(loss))
    ratio = float(loss[-1] / max(loss[best], 1e-12))
    if ratio <= OVERFIT_WARN:
        return HealthMark("ok", f"held-out loss near its best: {loss[-1]:.3g}")
    rise = f"{loss[best]:.3g} (step {steps[best]:,}) to {loss[-1]:.3g}"
    text = f"held-out loss rose from {rise}: stop there, or more puzzles"
    return HealthMark("bad" if ratio > OVERFIT_BAD else "warn", text)


CHECKS: tuple[Callable[[Run], HealthMark | None], ...] = (
    loss_falls,
    cycles_refine,
    gradient_fits_clip,
    puzzles_get_solved,
    generalises,
    halting_is_useful,
    segments_help,
    data_keeps_up,
)


def _training_loss(run: Run) -> np.ndarray:
    own = run.series("train/lm_loss").values
    return own if len(own) else run.series("train/total_loss").values


def _ends(loss: np.ndarray) -> tuple[float, float]:
    """Average the first and the last quarter."""
    quarter = max(1, len(loss) // 4)
    return float(np.mean(loss[:quarter])), float(np.mean(loss[-quarter:]))


def _last(run: Run, tag: str) -> float | None:
    values = run.series(tag).values
    return float(values[-1]) if len(values) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
