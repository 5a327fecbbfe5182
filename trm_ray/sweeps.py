"""A sweep from config to comparison: its folder, its trials, and the report that it leaves."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trm_ray.config import (
    Config,
    ConfigError,
    SweepConfig,
    flat,
    load_config,
    run_dir,
    to_yaml,
    trial_configs,
    typed,
)
from trm_ray.config.trials import TrialNames
from trm_ray.run import RunPlan, plan_run
from trm_ray.storage import join, remove_tree

if TYPE_CHECKING:
    from trm_ray.distributed.tuner import Outcome

SWEEP_FILE = "sweep.yaml"


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has passed all checks: one plan a variant, in the order of `sweep.variants()`."""

    sweep: SweepConfig
    folder: Path
    runs: list[RunPlan]


def plan_sweep(sweep: SweepConfig) -> SweepPlan:
    """Check every trial's config and data; nothing is written but missing datasets.

    Raises:
        ValueError: a trial's data is missing or bad.
    """
    configs = trial_configs(sweep)
    by_data: dict[str, RunPlan] = {}
    runs = []
    for config in configs:
        key = str((config.data_paths, config.data_paths_test, config.generator))
        if key not in by_data:
            by_data[key] = plan_run(config)
        runs.append(by_data[key].vary(config, run_dir(config)))
    return SweepPlan(sweep, join(configs[0].ray.storage_path, sweep.log_dir).resolve(), runs)


def start_sweep(plan: SweepPlan, console: Console, *, resume: bool, overwrite: bool) -> Outcome:
    """Run the trials of a sweep on Ray, showing them while they run."""
    from trm_ray.distributed.tuner import run_sweep
    from trm_ray.reporting.console import SweepDisplay
    from trm_ray.reporting.terminal import say

    _claim(plan, resume=resume, overwrite=overwrite)
    names, planned = TrialNames(plan.sweep), enumerate(plan.runs if not plan.sweep.random_space() else ())
    known = {(name := names.of(i, run.config, {})): (plan.folder / name, run.num_steps) for i, run in planned}
    number = len(plan.runs) * plan.sweep.num_samples
    where = plan.sweep.log_dir if plan.runs[0].config.ray.storage_path is None else plan.folder
    say(console, f"Sweep {plan.sweep.name}: {number} trials in {where}")
    say(console, "Starting Ray and reading the data; trials begin in half a minute …")
    with SweepDisplay(console, known) as display:
        return run_sweep(plan.sweep, plan.runs, plan.folder, display)


def _claim(plan: SweepPlan, *, resume: bool, overwrite: bool) -> None:
    """Take the sweep's folder: new, gone on with, or cleared."""
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    recorded, text = plan.folder / SWEEP_FILE, to_yaml(plan.sweep)
    if plan.folder.is_dir() and any(plan.folder.iterdir()):
        if not recorded.is_file():
            raise ConfigError(f"log_dir={plan.sweep.log_dir} holds files but no sweep; choose another log_dir")
        if overwrite:
            remove_tree(plan.folder)
        elif not resume:
            raise ConfigError(
                f"log_dir={plan.sweep.log_dir} already holds a sweep; go on with it with --resume, replace it with "
                "--overwrite, or choose another log_dir"
            )
        elif recorded.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"the sweep in log_dir={plan.sweep.log_dir} has another {SWEEP_FILE}; resume it with the same values "
                "or choose another log_dir"
            )
    plan.folder.mkdir(parents=True, exist_ok=True)
    recorded.write_text(text, encoding="utf-8")


def compare_trials(plan: SweepPlan, outcome: Outcome, console: Console) -> None:
    """Print the ranking, the best trial as a command, and where the report is."""
    from trm_ray.reporting.comparison import summarise, summary_table, write_report
    from trm_ray.reporting.run_log import find_runs, is_run
    from trm_ray.reporting.terminal import say, show

    for name, error in outcome.failed.items():
        say(console, ("failed", "red"), f" {name}: {error}")
    if not any(is_run(folder) for folder in plan.folder.iterdir()):
        return
    runs = find_runs([plan.folder])
    summaries = summarise(runs, threshold=plan.sweep.threshold)
    show(console, summary_table(summaries), names=2)
    best = next(run for run in runs if str(run.folder) == summaries[0].best_run)
    say(console, "Best trial, to be trained again or longer:")
    say(console, f"  {best_command(best.config)}")
    picture, *_ = write_report(runs, plan.folder / "report", plan.sweep.threshold)
    say(console, f"Comparison: {picture}")


def best_command(values: dict[str, object]) -> str:
    """Write the command that trains a run's config, from its scenario and whatever differs from that."""
    given = {key: value for key, value in values.items() if key != "format_version"}
    config = Config(**given)
    task = [f"task={typed(config.task)}"]
    # Whoever has no task names data and length himself; they must be there for the scenario to load.
    needed = (
        [f"{key}={typed(flat(config)[key])}" for key in ("data_paths", "max_steps", "epochs")]
        if config.task is None
        else []
    )
    plain = flat(load_config(config.config_name, [*task, *needed]))
    skipped = ("config_name", "task", "log_dir")
    values_now = {key: value for key, value in flat(config).items() if key not in skipped}
    different = [
        *needed,
        *(f"{key}={typed(value)}" for key, value in values_now.items() if plain.get(key, ...) != value),
    ]
    words = ["trm-ray", "train", "--config-name", config.config_name, *task, *different]
    return " ".join(map(shlex.quote, words))
