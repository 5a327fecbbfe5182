"""A sweep from config to comparison: its folder, its trials, and the report that it leaves."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trm_ray.config import Config, ConfigError, SweepConfig, run_dir, to_yaml
from trm_ray.config.surroundings import LOCAL, cluster_address
from trm_ray.config.sweep import best_mode
from trm_ray.config.trials import TrialNames
from trm_ray.ownership import Ownership, refuse_if_held
from trm_ray.programs.commands import best_command
from trm_ray.programs.stages import CORE_SECONDS_FILE, SWEEP_FILE, Stage, counted, final_config, stages
from trm_ray.replacement import SWEEP, foreign_names, is_ours, set_aside, settled, tell_begins, told_names
from trm_ray.reporting.terminal import say
from trm_ray.runs.data import complete_trials, make_missing
from trm_ray.runs.plan import RunPlan, check_machine, plan_run
from trm_ray.storage import check_is_folder, join, resolved, write_whole

if TYPE_CHECKING:
    from trm_ray.distributed.tuner import Outcome
    from trm_ray.reporting.numbers.summary import Comparison
    from trm_ray.runs.process_times import ProcessTimes


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that has passed all checks: one plan a variant, in the order of `sweep.variants()`."""

    sweep: SweepConfig
    folder: Path
    runs: list[RunPlan]
    final: Stage | None = None  # what a second stage may train


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended: how, and its trials compared; None where no trial has logged anything."""

    plan: SweepPlan
    outcome: Outcome
    comparison: Comparison | None


def sweep(config: SweepConfig, console: Console, *, resume: bool = False, overwrite: bool = False) -> Swept:
    """Run scenarios and variants as concurrent trials on Ray, stop the bad ones early, and write the comparison.

    Errors: those of `trm_ray.sweep`.
    """
    for trial in {_data_of(trial): trial for trial in complete_trials(config)}.values():
        check_machine(trial)
        make_missing(trial)
    return start_sweep(plan_sweep(config), console, resume=resume, overwrite=overwrite)


def plan_sweep(sweep: SweepConfig) -> SweepPlan:
    """Check every trial's config and data; nothing is written.

    Raises:
        ValueError: a trial's data is missing or bad, or it will not log what trials are judged by.
    """
    runs = _plans(complete_trials(sweep))
    _check_metric(sweep, runs)
    final = final_config(sweep) if sweep.final.top_k is not None else None
    return SweepPlan(
        sweep,
        resolved(join(runs[0].config.ray.storage_path, sweep.log_dir)),
        runs,
        None if final is None else Stage(final, _plans(complete_trials(final))),
    )


def _check_metric(sweep: SweepConfig, runs: Iterable[RunPlan]) -> None:
    """Refuse a metric that a trial will not log: Tune would end the sweep at the first evaluation."""
    from trm_ray.reporting.numbers.measure import PUZZLES, TEXT

    metric, exact = sweep.asha.metric, PUZZLES.numbers[: len(TEXT.numbers)]
    for text in (run.info.text for run in runs):
        if text is None:
            material, missing, instead = "puzzles", TEXT.numbers, exact
        elif text.packing == "running":
            material, missing, instead = "text, no row of which is right as a whole", exact, TEXT.numbers
        else:
            continue
        for number, other in zip(missing, instead, strict=True):
            if metric == number.tag:
                way_out = f"use asha.metric={other.tag} asha.mode={best_mode(other.tag)}"
                raise ConfigError(f"asha.metric={metric} is not logged by runs on {material}; {way_out}")


def _plans(configs: Iterable[Config]) -> list[RunPlan]:
    by_data: dict[str, RunPlan] = {}
    runs = []
    for config in configs:
        key = _data_of(config)
        if key not in by_data:
            by_data[key] = plan_run(config)
        runs.append(by_data[key].vary(config, run_dir(config)))
    return runs


def _data_of(config: Config) -> str:
    return str((config.data_paths, config.data_paths_test, config.generator))


def start_sweep(plan: SweepPlan, console: Console, *, resume: bool, overwrite: bool) -> Swept:
    """Hold the sweep's folder, run its trials on Ray and compare them."""
    from trm_ray.runs.process_times import ProcessTimes

    with owned_sweep(plan, resume=resume, overwrite=overwrite) as begin:
        file = plan.folder / CORE_SECONDS_FILE
        with ProcessTimes(file if resume else None) as times:

            def begin_and_keep() -> None:
                begin()
                times.keep_in(file)

            outcome = run_trials(plan, console, begin_and_keep)
            return Swept(plan, outcome, compare_trials(plan, outcome, console, times))


def run_trials(plan: SweepPlan, console: Console, begin: Callable[[], None]) -> Outcome:
    """Run the trials of a sweep on Ray, showing them while they run.

    Args:
        begin: is called before anything is written.
    """
    from trm_ray.distributed.tuner import run_sweep
    from trm_ray.reporting.console import SweepDisplay

    names, planned = TrialNames(plan.sweep), enumerate(plan.runs if not plan.sweep.random_space() else ())
    known = {(name := names.of(i, run.config, {})): (plan.folder / name, run.num_steps) for i, run in planned}
    number = len(plan.runs) * plan.sweep.num_samples
    where = plan.sweep.log_dir if plan.runs[0].config.ray.storage_path is None else plan.folder
    say(console, f"Sweep {plan.sweep.name}: {number} trials in {where}")
    say(console, "Starting Ray and reading the data; trials begin in half a minute …")
    with ExitStack() as shown:
        display = SweepDisplay(console, known)

        def begin_and_show() -> None:
            begin()
            shown.enter_context(display)

        first = Stage(plan.sweep, plan.runs)
        rounds = stages(first, plan.final, plan.folder, display.tell)
        return run_sweep(first, rounds, plan.folder, display, begin_and_show)


@contextmanager
def owned_sweep(plan: SweepPlan, *, resume: bool, overwrite: bool) -> Iterator[Callable[[], None]]:
    """Hold the sweep's folder while this lasts, after all checks of what lies in it.

    Yields:
        What begins to write there, to be called when nothing else can keep the sweep from starting. An old sweep that
        is overwritten is back in its place afterwards unless a trial of the new one has saved a checkpoint.

    Raises:
        ValueError: the folder holds a sweep and neither `resume` nor `overwrite` was asked for, it holds something
            else, the sweep is another one, or another process writes the folder or one of its trials.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    named, way_out = f"log_dir={plan.sweep.log_dir}", "choose another log_dir"
    check_is_folder(plan.folder, named, way_out)
    _check_sweep(plan, resume=resume, overwrite=overwrite)
    if resume and not is_ours(plan.folder, SWEEP):
        tell_begins(plan.folder, SWEEP, named)
    with Ownership(plan.folder, named, way_out):
        for trial in (path for path in plan.folder.iterdir() if path.is_dir()):
            refuse_if_held(trial, f"the trial {trial.name} in {named}", way_out)
        with settled(plan.folder, SWEEP, _has_trained):
            _check_sweep(plan, resume=resume, overwrite=overwrite)
            yield lambda: _begin(plan, overwrite=overwrite)


def _check_sweep(plan: SweepPlan, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that the sweep must not be written into; nothing is changed."""
    names, named = foreign_names(plan.folder), f"log_dir={plan.sweep.log_dir}"
    if not names:
        return
    if not is_ours(plan.folder, SWEEP):
        raise ConfigError(f"{named} holds files but no sweep ({told_names(names)}); choose another log_dir")
    if not overwrite and not resume:
        way_out = "go on with it with --resume, replace it with --overwrite, or choose another log_dir"
        raise ConfigError(f"{named} already holds a sweep; {way_out}")
    if resume and (plan.folder / SWEEP_FILE).read_text(encoding="utf-8") != to_yaml(plan.sweep):
        way_out = "resume it with the same values or choose another log_dir"
        raise ConfigError(f"the sweep in {named} has another {SWEEP_FILE}; {way_out}")


def _begin(plan: SweepPlan, *, overwrite: bool) -> None:
    if overwrite and is_ours(plan.folder, SWEEP):
        set_aside(plan.folder, SWEEP)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_whole(plan.folder / SWEEP_FILE, to_yaml(plan.sweep))


def _has_trained(folder: Path) -> bool:
    from trm_ray.training.checkpoint import has_checkpoint

    return any(has_checkpoint(path) for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def compare_trials(
    plan: SweepPlan, outcome: Outcome, console: Console, times: ProcessTimes | None = None
) -> Comparison | None:
    """Print what the trials tell, the best one as a command, and where the report is.

    Args:
        times: of all processes of the sweep; without it only the trials' own are told.
    """
    from trm_ray.programs.compare import Compared
    from trm_ray.programs.report import ASIDE_FLOPS, REPORT_FILE, draw, write_report
    from trm_ray.reporting.aside import aside
    from trm_ray.reporting.marks import told_marks
    from trm_ray.reporting.numbers.measure import PUZZLES, measure_of
    from trm_ray.reporting.numbers.spending import Spending
    from trm_ray.reporting.numbers.tables import show_comparison
    from trm_ray.reporting.run_log import find_runs, is_run

    for name, error in outcome.failed.items():
        say(console, ("failed", "red"), f" {name}: {error}")
    if not any(is_run(folder) for folder in plan.folder.iterdir()):
        return None
    runs = find_runs([plan.folder])
    shown = counted(runs, plan.folder)
    compared = Compared.of(shown, plan.sweep.threshold if measure_of(shown) is PUZZLES else None)
    report = plan.folder / "report"
    report.mkdir(exist_ok=True)
    picture = compared.draw_aside(report)  # first, since it belongs to what the sweep has cost
    drawn = draw(compared, ASIDE_FLOPS)
    spending = Spending.of(runs)
    if times and cluster_address(plan.runs[0].config.ray.address) == LOCAL:  # another cluster is out of sight
        spending = replace(spending, total=times.total_s, available=times.available_s)
    compared = replace(compared, comparison=replace(compared.comparison, spending=spending))
    show_comparison(console, compared.comparison)
    if marks := told_marks(runs):
        say(console, f"{marks} (trm-ray diagnose {shlex.quote(str(plan.folder))})")
    best = next(run for run in compared.runs if str(run.folder) == compared.comparison.ranking[0].best_run)
    say(console, "Best trial, to be trained again or longer:")
    say(console, f"  {best_command(best.config)}")
    tables = compared.write_tables(report)
    say(console, f"Comparison: {picture or tables[0]}")
    page = report / REPORT_FILE
    if aside("no report was written", lambda: write_report(compared, drawn, page, [plan.folder])):
        say(console, f"Report: {page}")
    return compared.comparison
