"""What a rule sees, and how it reads a run, whoever wrote it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from trm_ray.config import typed
from trm_ray.config.keys import flatten
from trm_ray.reporting.run_log import YARDSTICKS, Run, Series

Mark = Literal["ok", "warn", "bad"]

MIN_LOGS = 4  # fewer tell no trend; while a run goes on, twice as many
LASTING = 3  # evaluations, at least, in a quarter of a run
ACCURACY_SLACK = 0.02  # a smaller difference of exact accuracies is noise
BITS_SLACK = 0.01  # a smaller relative difference of bits per byte is noise, on the same text too
SOLVES_SOME, SOLVES_HALF, SOLVES_ALL = 0.1, 0.5, 0.95
SMALL_START = 0.1  # of what each block adds


class Seen(NamedTuple):
    """What a rule saw: a judgement, the numbers and steps that it rests on, what to do, and with which keys."""

    mark: Mark
    evidence: str
    step: int
    remedy: str = ""
    changes: tuple[str, ...] = ()


def lasting(see: Callable[[Run], Seen | None]) -> Callable[[Run], Seen | None]:
    """Let a rule fire on a run that goes on once it has held for a quarter of it: most such things pass."""

    @functools.wraps(see)
    def seen(run: Run) -> Seen | None:
        found = see(run)
        if found is None or has_ended(run):
            return found
        parts = _at_evaluations(run)
        return found if len(parts) >= LASTING and all(see(part) is not None for part in parts[:-1]) else None

    return seen


def _at_evaluations(run: Run) -> list[Run]:
    """Cut a run off at the evaluations of its last quarter, at a few of them where there are many."""
    ends = [place for place, row in enumerate(run.rows, start=1) if "eval/loss" in row]
    since = run.last_step - (run.planned_steps or 0) / 4
    recent = max(LASTING, sum(run.rows[end - 1]["step"] >= since for end in ends))
    chosen = ends[-recent:]
    few = {chosen[at] for at in np.linspace(0, len(chosen) - 1, 2 * LASTING).astype(int)} if chosen else set()
    return [replace(run, rows=run.rows[:end]) for end in sorted(few)]


# ---- reading a run ---------------------------------------------------------------------------------------


def has_ended(run: Run) -> bool:
    """Tell whether a run has taken its last step."""
    return run.finished or bool(run.planned_steps and run.last_step >= run.planned_steps)


def finite(series: Series) -> Series:
    """Leave out what is not finite."""
    kept = np.isfinite(series.values)
    return Series(series.steps[kept], series.wall_s[kept], series.values[kept])


def training_loss(run: Run) -> Series:
    """Take the last cycle's cross-entropy: the total is not even monotone in a good run."""
    own = finite(run.series("train/lm_loss"))
    return own if len(own.values) else finite(run.series("train/total_loss"))


def has_trend(run: Run, loss: Series) -> bool:
    """Tell whether there are logs enough to see where a loss goes."""
    return len(loss.values) >= (MIN_LOGS if has_ended(run) else 2 * MIN_LOGS)


def ends(loss: Series) -> tuple[float, float]:
    """Average the first and the last quarter."""
    quarter = max(1, len(loss.values) // 4)
    return float(np.mean(loss.values[:quarter])), float(np.mean(loss.values[-quarter:]))


def trend(loss: Series) -> str:
    """Write the ends of a loss."""
    first, last = ends(loss)
    return f"{first:.3g} → {last:.3g}, steps {loss.steps[0]:,} to {loss.steps[-1]:,}"


def from_to(series: Series, first: int) -> str:
    """Write a value of a series and the last, with their steps."""
    ends = (f"{series.values[at]:.3g} (step {series.steps[at]:,})" for at in (first, -1))
    return " → ".join(ends)


def steady(run: Run, tag: str) -> float | None:
    """Average a share over the logs but the first, of which there must be a few."""
    values = finite(run.series(tag)).values[1:]
    return float(np.mean(values)) if len(values) >= MIN_LOGS - 1 else None


def yardstick(run: Run, name: str) -> float | None:
    """Read the bits per byte of what takes no model, `unigram` or `xz`; None where they are not known."""
    values = finite(run.series(YARDSTICKS[name])).values
    return float(values[-1]) if len(values) else None


def knows_more(run: Run, bits: float) -> bool:
    """Tell whether so many bits per byte are fewer than what takes no model needs; those of less differ by chance."""
    return all(bits < known for name in YARDSTICKS if (known := yardstick(run, name)) is not None)


def percent(share: float) -> str:
    """Write a share."""
    return f"{100 * share:.1f} %"


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---- remedies --------------------------------------------------------------------------------------------


def word(key: str, value: Any) -> str:
    """Write a value as the command line takes it."""
    return f"{key}={typed(value)}"


def times(run: Run, key: str, factor: float) -> tuple[str, ...]:
    """Multiply a number of the run's config; nothing where the config does not hold it."""
    value = flatten(run.config).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ()
    if isinstance(value, int):
        return (word(key, max(1, round(value * factor))),)
    return (word(key, float(f"{value * factor:.2g}")),)


def smaller_blocks(run: Run) -> tuple[str, ...]:
    """Let blocks begin small; nothing where they do."""
    starts_large = float(run.arch.get("residual_init_scale") or 0) > SMALL_START
    return (word("arch.residual_init_scale", SMALL_START),) if starts_large else ()


def keep_best(run: Run) -> tuple[str, ...]:
    """Keep the checkpoint of the lowest held-out loss, where some are removed."""
    if run.config.get("keep_last") is None:  # all checkpoints stay
        return ()
    return (word("keep_best", max(1, int(run.config.get("keep_best") or 0))),)
