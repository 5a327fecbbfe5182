"""A run's folder: who may write it, what lies in it, and where a run goes on."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trm_ray import __version__
from trm_ray.config import Config, ConfigError, config_from_run, config_from_values, flat, to_yaml
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.ownership import Ownership, refuse_if_held
from trm_ray.replacement import RUN, SWEEP, foreign_names, is_ours, set_aside, settled, tell_begins, told_names
from trm_ray.runs.plan import RunPlan
from trm_ray.storage import check_is_folder, is_whole, write_whole
from trm_ray.training.checkpoint import (
    FINAL_MODEL,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    checkpoint_step,
    final_step,
    has_checkpoint,
    latest_checkpoint,
    load_identifiers,
    load_run_config,
    load_tokenizer,
)

# A resumed run may train longer, be watched differently and run elsewhere; anything else makes it another run.
RESUMABLE_KEYS = (
    *("max_steps", "epochs", "eval_interval", "eval_batch_size", "eval_max_puzzles"),
    "eval_quick_puzzles",
    *("checkpoint_every_eval", "keep_last", "keep_best"),
    *("log_interval", "log_per_step_losses", "compute_gradient_stats", "gradient_stats_interval"),
    *("init_from", "prepare_command", "generator.check_existing", "log_dir", "device", "compile", "checkpoint_cycles"),
)


@contextmanager
def owned_run(
    plan: RunPlan, *, resume: bool = False, overwrite: bool = False
) -> Iterator[tuple[Callable[[], None], Path | None]]:
    """Hold the run's folder while this lasts, after all checks of what lies in it.

    Yields:
        What begins to write there, to be called when nothing else can keep the run from starting, and the checkpoint
        that the run goes on from. An old run that is overwritten is back in its place afterwards unless a checkpoint of
        the new one has been saved.

    Raises:
        ValueError: as `check_folder`, or another process writes the folder.
    """
    named, way_out = f"log_dir={plan.config.log_dir}", "choose another log_dir"
    check_is_folder(plan.folder, named, way_out)
    if check_folder(plan, resume=resume, overwrite=overwrite or not resume) is None and resume:
        tell_begins(plan.folder, RUN, named)
    with Ownership(plan.folder, named, way_out):
        if is_ours(plan.folder.parent, SWEEP):  # its trials are its to write while it runs
            refuse_if_held(plan.folder.parent, f"{named} is a trial of a sweep that", "wait for its end")
        with settled(plan.folder, RUN, has_checkpoint):
            latest = check_folder(plan, resume=resume, overwrite=overwrite)
            yield lambda: begin_run(plan, overwrite=overwrite), latest


def claim_folder(plan: RunPlan, *, resume: bool = False) -> Path | None:
    """Begin to write a run's folder, for whoever holds it already: `check_folder`, then `begin_run`."""
    latest = check_folder(plan, resume=resume)
    begin_run(plan)
    return latest


def check_folder(plan: RunPlan, *, resume: bool = False, overwrite: bool = False) -> Path | None:
    """Refuse a folder that the run must not be written into; nothing is changed.

    Returns:
        The checkpoint that the run goes on from, None if it begins.

    Raises:
        ValueError: the folder holds a run and neither `resume` nor `overwrite` was asked for, it holds something else,
            or a resumed run's config differs in what defines it.
    """
    folder, config = plan.folder, plan.config
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    _check_not_foreign(plan, resume=resume)
    if overwrite or not is_ours(folder, RUN):
        return None
    metrics = folder / "metrics.jsonl"
    begun = (metrics.is_file() and metrics.stat().st_size > 0) or any(folder.glob("checkpoint_step_*"))
    if not begun and is_whole(folder / FINAL_MODEL, MANIFEST_FILE):
        raise ConfigError(
            f"log_dir={config.log_dir} holds weights only, from an imported file, so no training can go on from it; "
            f"use --init-from {config.log_dir} with another log_dir"
        )
    if begun and not resume:
        way_out = "go on with it with --resume, replace it with --overwrite, or choose another log_dir"
        raise ConfigError(f"log_dir={config.log_dir} already holds a run; {way_out}")
    if not begun:
        return None
    _check_same_run(config, before := config_from_run(folder))
    latest = _checked_checkpoint(plan)
    _tell_change_of_workers(plan, before)
    return latest


def begin_run(plan: RunPlan, *, overwrite: bool = False) -> None:
    """Write `config.yaml` and `environment.json`; an old run that is to be overwritten is set aside."""
    if overwrite and is_ours(plan.folder, RUN):
        set_aside(plan.folder, RUN)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_whole(plan.folder / "config.yaml", to_yaml(plan.config))
    environment = {**describe_environment(), "total_steps": plan.num_steps}
    write_whole(plan.folder / "environment.json", json.dumps(environment, indent=2) + "\n")


def _check_not_foreign(plan: RunPlan, *, resume: bool) -> None:
    names = foreign_names(plan.folder)
    if names and not is_ours(plan.folder, RUN):
        if resume and (plan.folder / "config.yaml").is_file():
            config_from_run(plan.folder)  # says what is wrong with it
        rule = f"holds files but no run ({told_names(names)}); choose another log_dir"
        raise ConfigError(f"log_dir={plan.config.log_dir} {rule}")


def _checked_checkpoint(plan: RunPlan) -> Path | None:
    """Find the latest checkpoint; refuse another run's, and data whose puzzles or tokens mean others than its own.

    With other puzzles vectors would change owners, and so they would with other tokens.
    """
    latest, now = latest_checkpoint(plan.folder, verified=True), plan.identifiers()
    if latest is None:
        return None
    saved = load_identifiers(latest)
    if (theirs := load_run_config(latest)) is not None:
        _check_same_run(plan.config, config_from_values(theirs, str(latest)), f"{latest}, which a run saved that")
    if saved not in (None, now.to_bytes()):
        then = PuzzleIdentifiers.from_bytes(saved)
        raise ConfigError(
            f"data_paths={plan.config.data_paths} has {len(now)} puzzle identifiers that are not the {len(then)} which "
            f"{latest} was trained with; prepare the dataset with the same puzzles, seed and augmentations"
        )
    if load_tokenizer(latest) not in (None, plan.tokenizer()):
        rule = f"has another tokenizer than {latest} was trained with; prepare the dataset with that one: --tokenizer"
        raise ConfigError(f"data_paths={plan.config.data_paths} {rule} {latest / TOKENIZER_FILE}")
    return latest


def _tell_change_of_workers(plan: RunPlan, before: Config) -> None:
    """Say what differs from here on when a run goes on with another number of workers."""
    now, then = (max(1, config.ray.most_workers) for config in (plan.config, before))
    if now == then or plan.config.ray.is_elastic or before.ray.is_elastic:  # whose number the log tells
        return
    differing = "the same batches from the same state, so that only the rounding of sums differs"
    logging.getLogger("trm_ray").warning("going on with %s instead of %s workers: %s", now, then, differing)


def _check_same_run(config: Config, before: Config, place: str | None = None) -> None:
    now, then, place = flat(config), flat(before), place or f"the run in {before.log_dir}, which"
    for key, value in now.items():
        if key not in RESUMABLE_KEYS and not key.startswith("ray.") and value != then.get(key):
            way_out = "resume it with that value or choose another log_dir"
            raise ConfigError(f"{key}={value} differs from {place} has {key}={then.get(key)}; {way_out}")


def describe_environment() -> dict[str, Any]:
    """Name the software and hardware that a run's numbers come from."""
    packages = ("torch", "ray", "numpy", "pyarrow")
    return {
        "trm_ray": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def start_step(plan: RunPlan) -> int:
    """Look after which step the run goes on: that of its latest checkpoint, else 0."""
    return step_of(latest_checkpoint(plan.folder, verified=True))


def step_of(latest: Path | None) -> int:
    """Say after which step a run goes on from a checkpoint: 0 without one."""
    return 0 if latest is None else checkpoint_step(latest)


def is_finished(plan: RunPlan, step: int) -> bool:
    """Tell whether nothing is left to do for a run that goes on after `step`: its final model is there, too."""
    return step > plan.num_steps or (step == plan.num_steps and final_step(plan.folder) == step)
