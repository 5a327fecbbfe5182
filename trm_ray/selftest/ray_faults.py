"""Faults under Ray."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trm_ray.config import SweepConfig, flat, to_yaml
from trm_ray.run import claim_folder
from trm_ray.selftest.ground import (
    NUM_LONG_STEPS,
    NUM_STEPS,
    FaultError,
    Ground,
    Outcome,
    Pauses,
    compared,
    finish,
    launched,
    steps_at_risk,
    to_be_hit,
    train,
    wait_for_hit,
)
from trm_ray.training.checkpoint import FINAL_MODEL, STATE_FILE


def kill_worker(ground: Ground) -> Outcome:
    """Kill one of a run's Ray Train workers with SIGKILL; Ray Train starts them anew (`ray.max_failures=1`)."""
    workers: dict[str, Any] = {"ray__num_workers": ground.workers, "ray__cpus_per_worker": 0.5}
    with _ray():
        reference = ground.undisturbed(**workers)
        plan = ground.plan("worker", **workers, ray__max_failures=1)
        claim_folder(plan)
        return _hit_on_ray(plan.folder, reference, "RayTrainWorker", lambda: train(plan))


def kill_trial(ground: Ground) -> Outcome:
    """Kill the process of a sweep's trial with SIGKILL; Tune starts it anew (`ray.max_failures=1`)."""
    from rich.console import Console

    from trm_ray.sweeps import plan_sweep, start_sweep

    plan = plan_sweep(_sweep(ground, "trials", seeds=[0, 1]))
    trials = [plan.folder / f"{_SCENARIO}-seed{seed}" for seed in (0, 1)]

    def sweep() -> None:
        failed = start_sweep(plan, Console(file=io.StringIO()), resume=False, overwrite=False).failed
        if failed:
            raise FaultError(f"trials failed: {failed}")

    with _ray():
        outcome = _hit_on_ray(trials[0], ground.undisturbed(), "ImplicitFunc", sweep)
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
        wait_for_hit(second, process)
        process.kill()
        process.wait()
    _wait_until_still(second)
    if (second / FINAL_MODEL).exists():
        raise FaultError("the second trial had ended before its processes were gone; try again")
    finished, lost = _marks(first), steps_at_risk(second)
    with Pauses(second) as pauses, launched([*words, "--resume"]) as process:
        finish(process)
    outcome = compared(second, ground.undisturbed(max_steps=NUM_LONG_STEPS), lost, pauses.longest_s)
    untouched = _marks(first) == finished and compared(first, ground.undisturbed(), 0, 0).passed
    return outcome if untouched else replace(outcome, problem="the finished trial was run again")


def _marks(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob(STATE_FILE)}


def _wait_until_still(folder: Path, seconds: float = 3.0) -> None:
    """Wait until a trial whose driver is dead has been ended by Ray, so that no two train in one folder."""
    before = None
    while before != (before := (folder / "metrics.jsonl").stat().st_size):
        time.sleep(seconds)


_SCENARIO = "deep_supervision_linear"


def _sweep(ground: Ground, name: str, **told: Any) -> SweepConfig:
    """Two trials, one after the other, none of them stopped early; `told` says what sets them apart."""
    skipped = ("config_name", "log_dir", "seed", *told.get("search_space", ()))
    values = {key: value for key, value in flat(ground.plan(name).config).items() if key not in skipped}
    values |= {"ray.num_workers": 1, "ray.cpus_per_worker": 1, "ray.max_failures": 1}
    common = {"asha": {"enabled": False}, "max_concurrent_trials": 1, "log_dir": str(ground.folder / name)}
    return SweepConfig.model_validate({"scenarios": [_SCENARIO], "overrides": values, **common, **told})


@contextmanager
def _ray() -> Iterator[None]:
    from trm_ray.distributed.cluster import ray_cluster

    with ray_cluster(None):
        yield
