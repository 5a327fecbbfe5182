"""What can be right or wrong with a run: a rule each, a pure function of what it has logged and of its config.

A rule that fires on a good run is a defect, so each says from when on it can be judged. docs/diagnosis.md has a section
for each, and the runs, good ones and ones broken on purpose, that its bounds were tried on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from trm_ray.config import typed
from trm_ray.config.keys import flatten
from trm_ray.reporting.run_log import EVAL_FIRST_EXACT, EVAL_FIRST_LOSS, TRAIN_FIRST_LOSS, Row, Run, Series

Mark = Literal["ok", "warn", "bad"]

MIN_LOGS = 4  # fewer tell no trend; while a run goes on, twice as many
LASTING = 3  # evaluations
MIN_FALL, MAX_RISE = 0.02, 0.05  # relative fall of the training loss that counts as learning, rise that does not
NEARLY_ALWAYS = 0.9  # share of the logs
ACCURACY_SLACK, BEST_SLACK = 0.02, 0.05  # smaller differences of exact accuracies are noise; of the best of many, too
SOLVES_SOME, SOLVES_HALF, SOLVES_ALL = 0.1, 0.5, 0.95
EQUAL_LOSS, REVERSED_LOSS, U_LOSS = 0.98, 1.1, 1.05  # last cycle's loss over the first's; the ends' over the middle's
STARVED, EXPLODING = 1e-6, 100.0  # a cycle's gradient norm over the last cycle's
OVERFIT_WARN, OVERFIT_BAD = 1.1, 1.5  # last held-out loss over the best one
OVERFIT_RISE, OVERFIT_GAP = 0.05, 1.5  # and how much higher it must be than the best, and than in training
ONE_SEGMENT, ALL_SEGMENTS = 1.1, 0.95  # mean segments where halting collapsed; share of all where it never halts
CLAIMED_SOLVED = 0.8  # of puzzles that a halt head lets go at once so many should be right
HALTING_SLACK = (
    0.15  # what halting may cost at the end: runs of sudoku6 at half the learning rate pay up to 13.5 points
)
MAX_DATA_WAIT = 0.05
MAX_EXCHANGE = 1 / 3
MAX_EVALUATION = 0.25
SMALL_START = 0.1  # of what each block adds
LOSS_NAME = "training loss (last cycle's cross-entropy)"


class Seen(NamedTuple):
    """What a rule saw: a judgement, the numbers and steps that it rests on, what to do, and with which keys."""

    mark: Mark
    evidence: str
    step: int
    remedy: str = ""
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule: its name, which stays what it is, what it means when it fires, and how it looks at a run."""

    id: str
    meaning: str
    see: Callable[[Run], Seen | None]


def lasting(see: Callable[[Run], Seen | None]) -> Callable[[Run], Seen | None]:
    """Let a rule fire on a run that goes on once it has held at three evaluations in a row: most such things pass."""

    @functools.wraps(see)
    def seen(run: Run) -> Seen | None:
        found = see(run)
        if found is None or has_ended(run):
            return found
        ends = [place for place, row in enumerate(run.rows, start=1) if "eval/loss" in row][-LASTING:]
        parts = [replace(run, rows=run.rows[:end]) for end in ends[:-1]]
        return found if len(ends) == LASTING and all(see(part) is not None for part in parts) else None

    return seen


# ---- the loss --------------------------------------------------------------------------------------------


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
    changes = (*_times(run, "lr", 0.2), *(["grad_clip_norm=1.0"] if unclipped else []))
    return Seen("bad", f"{first[1]} is not finite at step {first[0]:,}", first[0], "learn more slowly", changes)


def diverging(run: Run) -> Seen | None:
    """Look whether the loss is higher than it was: in training than at its start, or held out than a guess and twice
    its best."""
    loss, held_out = _training_loss(run), _finite(run.series("eval/loss"))
    told = None
    if _has_trend(run, loss) and not run.config.get("init_from"):
        first, last = _ends(loss)
        told = f"{LOSS_NAME} {_trend(loss)}" if last > (1 + MAX_RISE) * first else None
    if told is None and len(held_out.values) >= 3 and len(loss.values) >= MIN_LOGS:
        best, first = int(np.argmin(held_out.values[:-2])), loss.values[0]
        lost = (held_out.values[-2:] > max(2 * held_out.values[best], first)).all()
        # Where training knows the answers still, it is overfitting.
        told = f"held-out loss {_from_to(held_out, best)}" if lost and min(loss.values[-2:]) > first / 2 else None
    return None if told is None else Seen("bad", told, run.last_step, "learn more slowly", _times(run, "lr", 0.2))


def not_learning(run: Run) -> Seen | None:
    """Look whether the training loss stays where it was."""
    loss = _training_loss(run)
    if not _stands_still(run, loss):
        return None
    starts_large = float(run.arch.get("residual_init_scale") or 0) > SMALL_START
    changes = (*_times(run, "lr", 0.2), *([f"arch.residual_init_scale={SMALL_START}"] if starts_large else []))
    return Seen("warn", f"{LOSS_NAME} {_trend(loss)}", run.last_step, "learn more slowly, or for longer", changes)


def converging(run: Run) -> Seen | None:
    """Look whether the training loss falls."""
    loss = _training_loss(run)
    if not _has_trend(run, loss) or non_finite(run) or diverging(run):
        return None
    first, last = _ends(loss)
    falls = last < (1 - MIN_FALL) * first
    return Seen("ok", f"{LOSS_NAME} {_trend(loss)}", run.last_step) if falls else None


def clipped(run: Run) -> Seen | None:
    """Look whether nearly every step is clipped while the loss stays where it was.

    Clipping alone is no harm: Adam divides by the norm anyway, and good runs are clipped at every step.
    """
    norms, clip = _finite(run.series("train/grad_norm")), run.config.get("grad_clip_norm")
    if not clip or not len(norms.values):
        return None
    share, loss = float(np.mean(norms.values > clip)), _training_loss(run)
    if share < NEARLY_ALWAYS or not (_stands_still(run, loss) or diverging(run)):
        return None
    told = f"gradient norm above {clip:g} at {_percent(share)} of the logs, median {np.median(norms.values):.3g}"
    told += f", and the loss does not fall: {_trend(loss)}"
    return Seen("warn", told, run.last_step, "learn more slowly", _times(run, "lr", 0.2))


# ---- the recipe ------------------------------------------------------------------------------------------


def warming_up(run: Run) -> Seen | None:
    """Look whether the learning rate is still being warmed up at the run's end."""
    planned, warm_up, rate = run.planned_steps, run.config.get("lr_warmup_steps"), run.series("train/learning_rate")
    if not planned or not warm_up or planned >= warm_up or not len(rate.values):
        return None
    told = f"lr {rate.values[-1]:.3g} of {run.config.get('lr', math.nan):g} at step {rate.steps[-1]:,}: "
    told += f"lr_warmup_steps={warm_up} of a run of {planned:,} steps"
    return Seen(
        "warn", told, int(rate.steps[-1]), "warm up for a tenth of the run", (_key("lr_warmup_steps", planned // 10),)
    )


def curriculum_not_begun(run: Run) -> Seen | None:
    """Look whether the run ends before its curriculum begins."""
    planned, ramp = run.planned_steps, _ramp(run)
    if ramp is None or not planned or planned > ramp[0] or not run.rows:
        return None
    told = f"weight 0 at step {run.last_step:,}: curriculum_start_step={ramp[0]} of a run of {planned:,} steps"
    return Seen("warn", told, run.last_step, "begin early in the run", _ramp_for(planned))


def curriculum_cut_short(run: Run) -> Seen | None:
    """Look whether the run ends before its curriculum does."""
    planned, ramp, weight = run.planned_steps, _ramp(run), run.series("train/curriculum_weight")
    if ramp is None or not planned or not ramp[0] < planned < ramp[1] or not len(weight.values):
        return None
    whole = run.config.get("deep_supervision_weight", math.nan)
    told = f"weight {weight.values[-1]:.3g} of {whole:g} at step {weight.steps[-1]:,}: "
    told += f"curriculum_end_step={ramp[1]} of a run of {planned:,} steps"
    return Seen("warn", told, int(weight.steps[-1]), "end the ramp within the run", _ramp_for(planned)[1:])


def nothing_supervised(run: Run) -> Seen | None:
    """Look whether deep supervision is on and there is nothing that it supervises."""
    weights = run.series("train/curriculum_weight")
    if not run.config.get("deep_supervision_enabled") or not len(weights.values):
        return None
    if run.arch.get("H_cycles") == 1:
        told, remedy = "arch.H_cycles=1: no H-cycle comes before the last", ("arch.H_cycles=3",)
    elif run.config.get("deep_supervision_weight") == 0 and not weights.values.any():
        told, remedy = (
            "deep_supervision_weight=0: no H-cycle before the last has a weight",
            ("deep_supervision_weight=0.5",),
        )
    else:
        return None
    return Seen("warn", told, int(weights.steps[0]), "give it cycles to supervise, or turn it off", remedy)


# ---- refinement ------------------------------------------------------------------------------------------


class _Cycles(NamedTuple):
    """Held-out loss and exact accuracy after each H-cycle of the first segment, (H,), at the last evaluation."""

    step: int
    loss: np.ndarray
    exact: np.ndarray


@lasting
def no_refinement(run: Run) -> Seen | None:
    """Look whether the last H-cycle of the first segment is no better than the first."""
    found = _cycles(run)
    if found is None or _is_reversed(found) or found.exact[0] >= SOLVES_ALL:
        return None
    if found.loss[-1] < EQUAL_LOSS * found.loss[0] or found.exact[-1] > found.exact[0] + ACCURACY_SLACK:
        return None
    remedy = "give each answer more latent updates"
    return Seen("warn", _cycles_told(found), found.step, remedy, _times(run, "arch.L_cycles", 2))


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
    if (found.loss[ends] < U_LOSS * found.loss[best]).any():
        return None
    if (found.exact[ends] > found.exact[best] - ACCURACY_SLACK).any():
        return None
    return Seen("warn", _cycles_told(found), found.step, *_later_cycles(run))


def refining(run: Run) -> Seen | None:
    """Look whether the last H-cycle of the first segment is better than the first."""
    found = _cycles(run)
    if found is None or found.loss[-1] >= EQUAL_LOSS * found.loss[0] or u_shape(run):
        return None
    return Seen("ok", _cycles_told(found), found.step)


def starved_cycles(run: Run) -> Seen | None:
    """Look whether a supervised H-cycle has next to no gradient beside the last one's."""
    found = _gradient_ratios(run)
    if found is None or min(found[1]) >= STARVED:
        return None
    return Seen(
        "bad",
        _ratios_told(*found),
        found[0],
        "let blocks begin small",
        (_key("arch.residual_init_scale", SMALL_START),),
    )


def exploding_cycles(run: Run) -> Seen | None:
    """Look whether the gradients of the H-cycles are of different orders of magnitude."""
    found = _gradient_ratios(run)
    if found is None or min(found[1]) < STARVED or max(*found[1], *(1 / ratio for ratio in found[1])) <= EXPLODING:
        return None
    return Seen("bad", _ratios_told(*found), found[0], "learn more slowly", _times(run, "lr", 0.2))


# ---- held-out puzzles ------------------------------------------------------------------------------------


@lasting
def overfitting(run: Run) -> Seen | None:
    """Look whether the held-out loss rises again while that of the training puzzles stays below it."""
    loss, gap = _finite(run.series("eval/loss")), _gap(run)
    if len(loss.values) < 2 or gap is None:
        return None
    best = int(np.argmin(loss.values))
    ratio, rise = loss.values[-1] / max(loss.values[best], 1e-12), loss.values[-1] - loss.values[best]
    if ratio <= OVERFIT_WARN or rise <= OVERFIT_RISE or gap <= OVERFIT_GAP:
        return None
    told = f"held-out loss {_from_to(loss, best)}; in the first segment it is {gap:.1f} times the training loss"
    changes = (*_times(run, "generator.train", 8), *(["augment=true"] if run.config.get("augment") is False else []))
    remedy = "train on more puzzles, or take the checkpoint of the lowest loss"
    return Seen(
        "bad" if ratio > OVERFIT_BAD else "warn", told, int(loss.steps[-1]), remedy, (*changes, *_keep_best(run))
    )


def generalising(run: Run) -> Seen | None:
    """Look whether the held-out loss is near its best."""
    loss = _finite(run.series("eval/loss"))
    if len(loss.values) < 2 or loss.values[-1] > OVERFIT_WARN * min(loss.values) + OVERFIT_RISE:
        return None
    return Seen("ok", f"held-out loss near its best: {loss.values[-1]:.3g}", int(loss.steps[-1]))


def nothing_solved(run: Run) -> Seen | None:
    """Look whether a run has ended without ever solving a held-out puzzle."""
    exact = _finite(run.series("eval/exact_accuracy"))
    if not has_ended(run) or not len(exact.values) or (exact.values > 0).any():
        return None
    told = f"no held-out puzzle solved at any of {_counted(len(exact.values), 'evaluation')}"
    return Seen("warn", told, int(exact.steps[-1]), "train longer", _times(run, "max_steps", 4))


def past_its_best(run: Run) -> Seen | None:
    """Look whether a run that has ended had solved more puzzles before."""
    exact = _finite(run.series("eval/exact_accuracy"))
    if not has_ended(run) or not len(exact.values):
        return None
    best, last = int(np.argmax(exact.values)), exact.values[-1]
    quick, top = run.config.get("eval_quick_puzzles"), float(exact.values[best])
    noise = 2 * math.sqrt(top * (1 - top) / quick) if quick else 0.0  # fewer puzzles were looked at then
    if last >= top - max(BEST_SLACK, noise):
        return None
    told = f"held-out puzzles solved {_percent(top)} at step {exact.steps[best]:,} and {_percent(last)} at the end"
    remedy = "take the checkpoint of the lowest held-out loss, or let the learning rate fall further"
    changes = (*_keep_best(run), *(["lr_min_ratio=0.1"] if run.config.get("lr_min_ratio", 0) > 0.1 else []))
    return Seen("warn", told, int(exact.steps[-1]), remedy, changes)


def solving(run: Run) -> Seen | None:
    """Look how many held-out puzzles are solved."""
    exact = _finite(run.series("eval/exact_accuracy"))
    if not len(exact.values) or exact.values[-1] == 0:
        return None
    return Seen("ok", f"held-out puzzles solved: {_percent(exact.values[-1])}", int(exact.steps[-1]))


# ---- segments and halting --------------------------------------------------------------------------------


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
    told = f"halts after {found.segments:.2f} of {found.most} segments, where {_percent(found.halting)} are solved"
    return Seen(
        "warn",
        told,
        found.step,
        "train on more puzzles, and on longer series",
        (*_times(run, "generator.train", 8), *_explore(run)),
    )


def halting_too_early(run: Run) -> Seen | None:
    """Look whether halting loses puzzles that all segments solve, at the end: before, the halt head is still behind."""
    found = _halting(run)
    if found is None or not has_ended(run) or found.exact < SOLVES_HALF or found.halting >= found.exact - HALTING_SLACK:
        return None
    told = f"{_percent(found.exact)} solved with all {found.most} segments, "
    told += f"{_percent(found.halting)} where the halt head stops"
    return Seen("warn", told, found.step, "train longer, or evaluate with all segments", _times(run, "max_steps", 2))


@lasting
def halting_never(run: Run) -> Seen | None:
    """Look whether the halt head stops nearly nowhere, though most puzzles get solved."""
    found = _halting(run)
    if found is None or found.segments <= ALL_SEGMENTS * found.most or found.exact < SOLVES_HALF:
        return None
    told = f"halts after {found.segments:.1f} of {found.most} segments, though {_percent(found.exact)} are solved"
    return Seen("warn", told, found.step, "train longer", _times(run, "max_steps", 2))


@lasting
def segments_hurt(run: Run) -> Seen | None:
    """Look whether more segments solve fewer puzzles than the first alone: the run was trained with too few."""
    first, last = run.series("eval/exact_accuracy_first"), run.series("eval/exact_accuracy")
    if not len(first.values) or not len(last.values) or not first.values[-1] > last.values[-1] + ACCURACY_SLACK:
        return None
    most = run.arch.get("halt_max_steps", "all")
    told = f"{_percent(first.values[-1])} solved after one segment, {_percent(last.values[-1])} after {most}"
    return Seen("warn", told, int(last.steps[-1]), "let more puzzles go on for longer", _explore(run))


def halting_saves(run: Run) -> Seen | None:
    """Look whether halting saves segments at little cost."""
    found = _halting(run)
    if found is None or found.exact < SOLVES_HALF or found.segments > ALL_SEGMENTS * found.most:
        return None
    if halting_collapsed(run) or halting_too_early(run):
        return None
    told = f"halts after {found.segments:.1f} of {found.most} segments at {_percent(found.halting)} solved"
    return Seen("ok", told, found.step)


# ---- where the time goes ---------------------------------------------------------------------------------


def data_starved(run: Run) -> Seen | None:
    """Look how long a step waits for data, without the first log: the loader starts in it."""
    waits = _steady(run, "throughput/data_wait_fraction")
    if waits is None or waits < MAX_DATA_WAIT:
        return None
    told = f"{_percent(waits)} of a step is waiting for data"
    remedy = "give each worker a CPU more, and hold the puzzles in memory if they are read as it goes"
    changes = (*_plus_one(run, "ray.cpus_per_worker"), *_times(run, "data_memory_gib", 4))
    return Seen("warn", told, run.last_step, remedy, changes)


def exchange_bound(run: Run) -> Seen | None:
    """Look how much of a step workers spend on exchanging gradients."""
    share, workers = _steady(run, "throughput/exchange_fraction"), run.series("throughput/num_workers").values
    if share is None or share < MAX_EXCHANGE:
        return None
    told = (
        f"{_percent(share)} of a step is exchange between {workers[-1]:.0f} workers"
        if len(workers)
        else _percent(share)
    )
    fewer = (_key("ray.num_workers", max(1, int(workers[-1]) // 2)),) if len(workers) else ()
    return Seen(
        "warn",
        told,
        run.last_step,
        "use fewer workers, or larger batches",
        (*fewer, *_times(run, "global_batch_size", 2)),
    )


def evaluation_heavy(run: Run) -> Seen | None:
    """Look whether evaluations take more than a quarter of the run's CPU seconds, its start left out."""
    rows = [row for row in run.rows if "core_seconds/evaluation" in row]
    if not rows or (len(rows) < 3 and not has_ended(run)):
        return None
    parts = {
        tag: seconds
        for tag, seconds in rows[-1].items()
        if tag.startswith("core_seconds/") and tag != "core_seconds/start"
    }
    evaluation, whole = parts["core_seconds/evaluation"], sum(parts.values())
    if evaluation <= MAX_EVALUATION * whole:
        return None
    told = f"{_percent(evaluation / whole)} of the CPU seconds are {_counted(len(rows), 'evaluation')}"
    rarer = math.ceil(4 * evaluation / max(whole - evaluation, 1e-9))  # leaves a fifth
    changes = _times(run, "eval_interval", min(rarer, 100))
    return Seen(
        "warn", told, int(rows[-1]["step"]), "evaluate less often, or on fewer puzzles (eval_quick_puzzles)", changes
    )


# ---- the table -------------------------------------------------------------------------------------------

RULES = (
    Rule("non-finite", "A number overflowed: no weight was updated any more, and the run ended.", non_finite),
    Rule("diverging", "The run unlearns: its steps are too long for where it is.", diverging),
    Rule("not-learning", "The network gives the answers that it gave at the start.", not_learning),
    Rule("converging", "The run learns.", converging),
    Rule("clipped", "Every step goes in a direction that was cut to length, and leads nowhere.", clipped),
    Rule("warming-up", "The run ends before its learning rate is reached.", warming_up),
    Rule(
        "curriculum-not-begun", "The run is the baseline: it ends before anything is supervised.", curriculum_not_begun
    ),
    Rule("curriculum-cut-short", "The run never has the supervision that it was given.", curriculum_cut_short),
    Rule("nothing-supervised", "The run is the baseline under another name.", nothing_supervised),
    Rule("no-refinement", "The H-cycles after the first do not improve the answer.", no_refinement),
    Rule("reversed-refinement", "The later H-cycles make the answer worse.", reversed_refinement),
    Rule("u-shape", "The answer is best in the middle of a segment, and its end undoes that.", u_shape),
    Rule("refining", "Each segment improves the answer from its first H-cycle to its last.", refining),
    Rule("starved-cycles", "An early H-cycle is supervised, but its loss moves no weight.", starved_cycles),
    Rule("exploding-cycles", "One H-cycle's loss drowns those of the others.", exploding_cycles),
    Rule("overfitting", "The network learns its training puzzles by heart.", overfitting),
    Rule("generalising", "What is learned holds for puzzles that were never seen.", generalising),
    Rule("nothing-solved", "Cells may be right, but no puzzle is.", nothing_solved),
    Rule("past-its-best", "The last checkpoint is not the best one.", past_its_best),
    Rule("solving", "Whole puzzles come out right.", solving),
    Rule(
        "halting-collapsed", "The halt head calls wrong answers right, so that nothing is refined.", halting_collapsed
    ),
    Rule("halting-too-early", "The halt head stops on puzzles that more segments would solve.", halting_too_early),
    Rule("halting-never", "The halt head does not trust any answer, so halting saves nothing.", halting_never),
    Rule("segments-hurt", "Answers that are right after one segment are spoilt by those that follow.", segments_hurt),
    Rule("halting-saves", "The halt head stops where puzzles are solved.", halting_saves),
    Rule("data-starved", "The network waits for its puzzles.", data_starved),
    Rule("exchange-bound", "More workers spend their time on each other.", exchange_bound),
    Rule("evaluation-heavy", "Much of what the run costs is looking at it.", evaluation_heavy),
)


# ---- reading a run ---------------------------------------------------------------------------------------


def has_ended(run: Run) -> bool:
    """Tell whether a run has taken its last step."""
    return run.finished or bool(run.planned_steps and run.last_step >= run.planned_steps)


def _is_nan(row: Row, tag: str) -> bool:
    return tag in row and math.isnan(row[tag])


def _finite(series: Series) -> Series:
    kept = np.isfinite(series.values)
    return Series(series.steps[kept], series.wall_s[kept], series.values[kept])


def _training_loss(run: Run) -> Series:
    """Take the last cycle's cross-entropy: the total is not even monotone in a good run."""
    own = _finite(run.series("train/lm_loss"))
    return own if len(own.values) else _finite(run.series("train/total_loss"))


def _has_trend(run: Run, loss: Series) -> bool:
    return len(loss.values) >= (MIN_LOGS if has_ended(run) else 2 * MIN_LOGS)


def _stands_still(run: Run, loss: Series) -> bool:
    """Tell whether the loss is where it was, once the warm-up and a tenth of the run are over.

    A run that begins with learned weights may stand still.
    """
    begun = max(run.config.get("lr_warmup_steps") or 0, (run.planned_steps or 0) / 10)
    too_early = run.last_step < begun and not has_ended(run)
    if too_early or not _has_trend(run, loss) or run.config.get("init_from"):
        return False
    first, last = _ends(loss)
    return (1 - MIN_FALL) * first <= last <= (1 + MAX_RISE) * first


def _ends(loss: Series) -> tuple[float, float]:
    """Average the first and the last quarter."""
    quarter = max(1, len(loss.values) // 4)
    return float(np.mean(loss.values[:quarter])), float(np.mean(loss.values[-quarter:]))


def _trend(loss: Series) -> str:
    first, last = _ends(loss)
    return f"{first:.3g} → {last:.3g}, steps {loss.steps[0]:,} to {loss.steps[-1]:,}"


def _from_to(series: Series, first: int) -> str:
    ends = (f"{series.values[at]:.3g} (step {series.steps[at]:,})" for at in (first, -1))
    return " → ".join(ends)


def _cycles(run: Run) -> _Cycles | None:
    """Read the cycles of the first segment, where they can be judged: not before some puzzles are solved.

    Only there: a later segment begins with an answer on which all cycles agree. And not before: the cycles of a network
    that has learned little differ by chance.
    """
    losses, exact = run.cycle_series(EVAL_FIRST_LOSS), run.cycle_series(EVAL_FIRST_EXACT)
    if len(losses) < 2 or len(exact) != len(losses):
        return None
    step = int(losses[0].steps[-1])
    found = _Cycles(step, *(np.array([one.values[-1] for one in all_of_it]) for all_of_it in (losses, exact)))
    judged = has_ended(run) or found.exact.max() >= SOLVES_SOME
    return found if judged and np.isfinite(found.loss).all() else None


def _is_reversed(found: _Cycles) -> bool:
    worse = found.exact[-1] < found.exact[0] - ACCURACY_SLACK
    no_better = found.exact[-1] <= found.exact[0] + ACCURACY_SLACK and found.exact[0] < SOLVES_ALL
    return bool(worse or (no_better and found.loss[-1] > REVERSED_LOSS * found.loss[0]))


def _cycles_told(found: _Cycles) -> str:
    losses = " → ".join(f"{loss:.3g}" for loss in found.loss)
    solved = " → ".join(f"{100 * share:.0f}" for share in found.exact)
    return f"held-out loss by H-cycle of the first segment {losses}, {solved} % solved, step {found.step:,}"


def _later_cycles(run: Run) -> tuple[str, tuple[str, ...]]:
    """Say how to make the later cycles count for more."""
    if run.config.get("deep_supervision_enabled") and run.config.get("deep_supervision_schedule") == "constant":
        return "let later cycles weigh more", ("deep_supervision_schedule=linear_decay",)
    return "train longer at this depth", _times(run, "max_steps", 2)


def _gradient_ratios(run: Run) -> tuple[int, list[float]] | None:
    """Take the gradient norm of each supervised cycle over the last cycle's, where they were last measured."""
    tag = "train/gradients/step_{i}_grad_norm_mean"
    last, most = None, int(run.arch.get("H_cycles") or 0)
    norms: list[float] = []
    for row in reversed(run.rows):
        if (last := row.get(tag.replace("{i}", str(most - 1)))) is not None:
            norms = [row[name] for i in range(most - 1) if (name := tag.replace("{i}", str(i))) in row]
            break
    if not norms or not last or not all(map(math.isfinite, (*norms, last))):
        return None
    return int(row["step"]), [norm / last for norm in norms]


def _ratios_told(step: int, ratios: list[float]) -> str:
    told = ", ".join(f"{ratio:.2g}" for ratio in ratios)
    return f"gradient norms of the H-cycles before the last over the last one's: {told}, step {step:,}"


def _gap(run: Run) -> float | None:
    """Divide the held-out loss by that of the training puzzles, both after the last cycle of the first segment."""
    held_out, training = run.cycle_series(EVAL_FIRST_LOSS), run.cycle_series(TRAIN_FIRST_LOSS)
    if held_out and len(held_out) == len(training):
        ours, theirs = held_out[-1], training[-1]
    else:
        ours, theirs = run.series("eval/loss"), _training_loss(run)
    if not len(ours.values) or not len(theirs.values):
        return None
    return float(ours.values[-1] / max(theirs.values[-1], 1e-12))


def _halting(run: Run) -> _Halting | None:
    tags = ("eval/exact_accuracy", "eval/exact_accuracy_halting", "eval/act_steps")
    rows, most = [row for row in run.rows if all(tag in row for tag in tags)], int(run.arch.get("halt_max_steps") or 16)
    if not rows or most < 2:
        return None
    exact, halting, segments = (rows[-1][tag] for tag in tags)
    return _Halting(int(rows[-1]["step"]), exact, halting, segments, most)


def _steady(run: Run, tag: str) -> float | None:
    """Average a share over the logs but the first, of which there must be a few."""
    values = _finite(run.series(tag)).values[1:]
    return float(np.mean(values)) if len(values) >= MIN_LOGS - 1 else None


# ---- remedies --------------------------------------------------------------------------------------------


def _key(key: str, value: Any) -> str:
    return f"{key}={typed(value)}"


def _times(run: Run, key: str, factor: float) -> tuple[str, ...]:
    """Multiply a number of the run's config; nothing where the config does not hold it."""
    value = flatten(run.config).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ()
    if isinstance(value, int):
        return (_key(key, max(1, round(value * factor))),)
    return (_key(key, float(f"{value * factor:.2g}")),)


def _plus_one(run: Run, key: str) -> tuple[str, ...]:
    value = flatten(run.config).get(key)
    return (_key(key, value + 1),) if isinstance(value, int | float) else ()


def _ramp(run: Run) -> tuple[int, int] | None:
    if not run.config.get("curriculum_enabled"):
        return None
    start, end = run.config.get("curriculum_start_step"), run.config.get("curriculum_end_step")
    return None if start is None or end is None else (int(start), int(end))


def _ramp_for(planned: int) -> tuple[str, str]:
    return _key("curriculum_start_step", planned // 10), _key("curriculum_end_step", max(1, 6 * planned // 10))


def _explore(run: Run) -> tuple[str, ...]:
    value = float(run.arch.get("halt_exploration_prob", 0.1))
    return (_key("arch.halt_exploration_prob", min(1.0, max(0.1, round(2 * value, 3)))),)


def _keep_best(run: Run) -> tuple[str, ...]:
    if run.config.get("keep_last") is None:  # all checkpoints stay
        return ()
    return (_key("keep_best", max(1, int(run.config.get("keep_best") or 0))),)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
