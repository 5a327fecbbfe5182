"""Rules of the recipe: does the config fit the length of its run, and itself."""

from __future__ import annotations

import math

from trm_ray.reporting.rules.seen import (
    Seen,
    word,
)
from trm_ray.reporting.run_log import Run


def warming_up(run: Run) -> Seen | None:
    """Look whether the learning rate is still being warmed up at the run's end."""
    planned, warm_up, rate = run.planned_steps, run.config.get("lr_warmup_steps"), run.series("train/learning_rate")
    if not planned or not warm_up or planned >= warm_up or not len(rate.values):
        return None
    told = f"lr {rate.values[-1]:.3g} of {run.config.get('lr', math.nan):g} at step {rate.steps[-1]:,}: "
    told += f"lr_warmup_steps={warm_up} of a run of {planned:,} steps"
    return Seen(
        "warn", told, int(rate.steps[-1]), "warm up for a tenth of the run", (word("lr_warmup_steps", planned // 10),)
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
    own = run.config.get("deep_supervision_weights") is not None  # then the ramp is a share of them
    whole = 1.0 if own else run.config.get("deep_supervision_weight", math.nan)
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


def _ramp(run: Run) -> tuple[int, int] | None:
    if not run.config.get("curriculum_enabled"):
        return None
    start, end = run.config.get("curriculum_start_step"), run.config.get("curriculum_end_step")
    return None if start is None or end is None else (int(start), int(end))


def _ramp_for(planned: int) -> tuple[str, str]:
    return word("curriculum_start_step", planned // 10), word("curriculum_end_step", max(1, 6 * planned // 10))
