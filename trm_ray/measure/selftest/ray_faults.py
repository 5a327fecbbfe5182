"""Faults under Ray."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trm_ray.config import SweepConfig, flat, to_yaml
from trm_ray.measure.selftest.ground import (
    NUM_LONG_STEPS,
    NUM_STEPS,
    SAVE_EVERY,
    FaultError,
    Ground,
    Outcome,
    Pauses,
    await_from,
    compared,
    finish,
    gone_on_with,
    kill_at_hit,
    launched,
    started,
    steps_at_risk,
    to_be_hit,
    train,
    wait_for_hit,
)
from trm_ray.runs.folder import claim_folder
from trm_ray.training.checkpoint import FINAL_MODEL, STATE_FILE, checkpoint_step, checkpoints

# A learning rate with which every trial fails at its second step.
_LR, _LR_THAT_FAILS = 1e-3, 1e30
NUM_TRIALS = 50
_PATIENCE_S = 30.0
# A cloud's notice. Ray Train looks for one every 0.5 s here instead of every 5 s, also where that was switched off.
_NOTICE_S = 60.0
_LOOK_FOR_NOTICES_OFTEN = (
    "import os; os.environ |= {'RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S': '0.5', "
    "'RAY_TRAIN_ENABLE_PREEMPTION_WATCHER': '1'}\n"
)


def kill_worker(ground: Ground) -> Outcome:
    """Kill one of a run's Ray Train workers with SIGKILL; Ray Train starts them anew (`ray.max_failures=1`)."""
    workers: dict[str, Any] = {"ray__num_workers": ground.workers, "ray__cpus_per_worker": 0.5}
    with _ray():
        reference = ground.undisturbed(**workers)
        plan = ground.plan("worker", **workers, ray__max_failures=1)
        claim_folder(plan)
        return _hit_on_ray(plan.folder, reference, "RayTrainWorker", lambda: train(plan))


def kill_driver_on_ray(ground: Ground) -> Outcome:
    """Kill the driver of a run on Ray and tear the notes of Ray Train, then `--resume`."""
    plan = ground.plan("driver_on_ray", ray__num_workers=1, max_steps=NUM_LONG_STEPS)
    with started(plan) as process:
        kill_at_hit(plan.folder, process)
    _wait_until_still(plan.folder)
    if (plan.folder / FINAL_MODEL).exists():
        raise FaultError("the run had ended before its processes were gone; try again")
    (plan.folder / ".ray" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{"chec')
    return gone_on_with(plan, ground.undisturbed(max_steps=NUM_LONG_STEPS))


def lose_node(ground: Ground) -> Outcome:
    """Kill all of the node that holds a run's only worker, and add another node (`ray.max_failures=1`)."""
    from trm_ray.distributed.faults import LocalNodes

    reference = ground.undisturbed()
    with LocalNodes(1) as nodes:
        plan = ground.plan("node", ray__num_workers=1, ray__max_failures=1, ray__address=nodes.address)
        with started(plan) as process:
            wait_for_hit(plan.folder, process)
            nodes.lose()
            lost = steps_at_risk(plan.folder)
            with Pauses(plan.folder) as pauses:
                nodes.add()
                finish(process)
    return compared(plan.folder, reference, lost, pauses.longest_s)


def preempt_node(ground: Ground) -> Outcome:
    """Give notice that the node of a run's only worker will be taken away, and take it once the step is saved.

    Nothing but the notice makes this run save before its end.
    """
    from trm_ray.distributed.faults import LocalNodes

    length = {"max_steps": NUM_LONG_STEPS, "eval_interval": NUM_LONG_STEPS}
    reference = ground.undisturbed(**length)
    with LocalNodes(1) as nodes:
        plan = ground.plan("notice", **length, ray__num_workers=1, ray__address=nodes.address)
        with started(plan, before=_LOOK_FOR_NOTICES_OFTEN) as process:
            wait_for_hit(plan.folder, process)
            nodes.announce_loss(_NOTICE_S)
            lost = _steps_lost_after_notice(plan.folder, process)
            with Pauses(plan.folder) as pauses:
                nodes.lose()
                nodes.add()
                finish(process)
    return compared(plan.folder, reference, lost, pauses.longest_s)


def _steps_lost_after_notice(folder: Path, process: subprocess.Popen[str]) -> int:
    await_from(process, lambda: checkpoints(folder), _NOTICE_S, "no step was saved after the notice")
    if checkpoint_step(checkpoints(folder)[0]) == NUM_LONG_STEPS:
        raise FaultError("the run had ended before the notice reached it; try again")
    return steps_at_risk(folder)


def kill_trial(ground: Ground) -> Outcome:
    """Kill the process of a sweep's trial with SIGKILL; Tune starts it anew (`ray.max_failures=1`)."""
    config = _sweep(ground, "trials", seeds=[0, 1])
    trials = [Path(config.log_dir) / f"{_SCENARIO}-seed{seed}" for seed in (0, 1)]

    def sweep() -> None:
        if failed := _failed_trials(config):
            raise FaultError(f"trials failed: {failed}")

    with _ray():
        outcome = _hit_on_ray(trials[0], ground.undisturbed(), "Trial", sweep)
    other = compared(trials[1], ground.undisturbed(seed=1), 0, 0)
    return outcome if other.passed else replace(outcome, problem="the other trial is not as if undisturbed")


def _hit_on_ray(folder: Path, reference: Path, actor: str, train: Callable[[], object]) -> Outcome:
    from trm_ray.distributed.faults import killing

    pauses, lost = Pauses(folder), []

    def note() -> None:
        lost.append(steps_at_risk(folder))
        pauses.__enter__()

    with killing(actor, lambda: to_be_hit(folder), note):
        train()
    if not lost:
        raise FaultError(f"no {actor} could be killed while the run trained")
    pauses.__exit__()
    return compared(folder, reference, lost[0], pauses.longest_s)


def kill_sweep_driver(ground: Ground) -> Outcome:
    """Kill the driver of a sweep with SIGKILL, then `--resume`: what is finished stays, the rest goes on."""
    sweep = _sweep(ground, "sweep", search_space={"max_steps": [NUM_STEPS, NUM_LONG_STEPS]})
    file = ground.folder / "killed_sweep.yaml"
    file.write_text(to_yaml(sweep), encoding="utf-8")
    first, second = (Path(sweep.log_dir) / f"{_SCENARIO}-seed0-max_steps={n}" for n in (NUM_STEPS, NUM_LONG_STEPS))
    words = ["sweep", "--config-name", str(file)]
    with launched(words) as process:
        kill_at_hit(second, process)
    _wait_until_still(second)
    if (second / FINAL_MODEL).exists():
        raise FaultError("the second trial had ended before its processes were gone; try again")
    finished, lost = _marks(first), steps_at_risk(second)
    with Pauses(second) as pauses, launched([*words, "--resume"]) as process:
        finish(process)
    outcome = compared(second, ground.undisturbed(max_steps=NUM_LONG_STEPS), lost, pauses.longest_s)
    untouched = _marks(first) == finished and compared(first, ground.undisturbed(), 0, 0).passed
    return outcome if untouched else replace(outcome, problem="the finished trial was run again")


def leave_nothing(ground: Ground) -> Outcome:
    """Run many short trials in a row, half of which fail, some stopped early; count what is left in the cluster."""
    from trm_ray.distributed.faults import Inventory

    with _ray():
        _run_trials(ground, "few", 2)
        before = Inventory.take()
        first = _run_trials(ground, "many", NUM_TRIALS)
        left = Inventory.take().more_than(before)
        deadline = time.monotonic() + _PATIENCE_S
        while left and time.monotonic() < deadline:
            time.sleep(1)
            left = Inventory.take().more_than(before)
    outcome = compared(first, ground.undisturbed(), 0, 0)
    return replace(outcome, problem=f"left behind: {left}") if left else outcome


def _run_trials(ground: Ground, name: str, number: int) -> Path:
    """Run trials, two at a time; return the folder of the first, which nothing can stop early."""
    search = {"lr": [_LR, _LR_THAT_FAILS]}
    asha = {"grace_period": SAVE_EVERY, "reduction_factor": 2}
    sweep = _sweep(ground, name, seeds=list(range(number // 2)), search_space=search, asha=asha)
    overrides = sweep.overrides | {"ray.max_failures": 0}
    failed = _failed_trials(sweep.model_copy(update={"max_concurrent_trials": 2, "overrides": overrides}))
    if len(failed) != number // 2 or not all(f"lr={_LR_THAT_FAILS:g}" in error for error in failed.values()):
        raise FaultError(f"other trials failed than those that had to: {failed}")
    return Path(sweep.log_dir) / f"{_SCENARIO}-seed0-lr={_LR:g}"


def _failed_trials(sweep: SweepConfig) -> dict[str, str]:
    """Run a sweep in silence; return the reasons of the trials that failed."""
    from rich.console import Console

    from trm_ray.programs.sweep import plan_sweep, start_sweep

    console = Console(file=io.StringIO())
    return start_sweep(plan_sweep(sweep), console, resume=False, overwrite=False).outcome.failed


def _marks(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob(STATE_FILE)}


def _wait_until_still(folder: Path) -> None:
    """Wait until a trial whose driver is dead has been ended by Ray, so that no two train in one folder."""
    before = None
    while before != (before := (folder / "metrics.jsonl").stat().st_size):
        time.sleep(3)


_SCENARIO = "deep_supervision_linear"


def _sweep(ground: Ground, name: str, **keys: Any) -> SweepConfig:
    """Two trials, one after the other, none of them stopped early; `keys` set them apart."""
    skipped = ("config_name", "log_dir", "seed", *keys.get("search_space", ()))
    values = {key: value for key, value in flat(ground.plan(name).config).items() if key not in skipped}
    values |= {"ray.num_workers": 1, "ray.cpus_per_worker": 1, "ray.max_failures": 1}
    common = {"asha": {"enabled": False}, "max_concurrent_trials": 1, "log_dir": str(ground.folder / name)}
    return SweepConfig.model_validate({"scenarios": [_SCENARIO], "overrides": values, **common, **keys})


@contextmanager
def _ray() -> Iterator[None]:
    from trm_ray.distributed.cluster import ray_cluster

    with ray_cluster(None):
        yield
