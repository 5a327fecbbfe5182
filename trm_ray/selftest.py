"""Faults on purpose: tiny runs are disturbed for real and must arrive at the bytes of one that was left alone."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_ray.config import Config, SweepConfig, flat, to_yaml, with_overrides
from trm_ray.run import RunPlan, claim_folder, is_finished, plan_run, train_in_process
from trm_ray.training.checkpoint import FINAL_MODEL, STATE_FILE, checkpoint_step, checkpoints, damage

if TYPE_CHECKING:
    from rich.table import Table

# A run of 40 steps that saves every 5 is hit as soon as it has logged step 23.
NUM_STEPS, SAVE_EVERY, HIT_AT = 40, 5, 23
# Long enough for the processes of a killed sweep's trial to be gone before it has finished without its driver.
NUM_LONG_STEPS = 400

_ARCH: dict[str, Any] = {
    **{"H_cycles": 2, "L_cycles": 2, "L_layers": 2, "hidden_size": 64, "num_heads": 2, "ffn_multiple_of": 16},
    **{"mixer": "mlp", "pos_encodings": "none", "residual_init_scale": 0.1, "forward_dtype": "float32"},
    **{"halt_max_steps": 4, "halt_exploration_prob": 0.1},
}
_RUN: dict[str, Any] = {
    **{"max_steps": NUM_STEPS, "eval_interval": SAVE_EVERY, "log_interval": 1, "global_batch_size": 32},
    **{"lr": 1e-3, "lr_warmup_steps": 0, "ema": True, "device": "cpu", "arch": _ARCH},
}
_PATIENCE_S = 180.0
_STORAGE_GONE_S = 3.0
_DISK_FULL_BYTES = 8192
_COMMAND = "from trm_ray.cli import app; app()"
_JUMPING_CLOCK = "import os, time; now = time.time; time.time = lambda: now() - 86400 * os.path.exists({!r})\n"


class FaultError(RuntimeError):
    """A fault did not end as it should; the message says what was seen instead."""


@dataclass(frozen=True)
class Ground:
    """A folder for the runs and their data, and the number of Ray workers of the runs that are hit under Ray."""

    folder: Path
    workers: int = 0

    def plan(self, name: str, **changes: Any) -> RunPlan:
        """Plan a run; `changes` are keys of the config, a dot written as two underscores."""
        data, told = self.folder / "data", {key.replace("__", "."): value for key, value in changes.items()}
        if not data.exists():
            from trm_ray.data.sudoku import prepare_sudoku

            prepare_sudoku(data, size=4, train=64, test=16, seed=0)
        values = {**_RUN, "config_name": "selftest", "data_paths": [str(data)], "log_dir": str(self.folder / name)}
        return plan_run(with_overrides(Config.model_validate(values | {"ray": {"num_workers": 0}}), told))

    def undisturbed(self, **changes: Any) -> Path:
        """Train a run that nobody disturbs, unless that was done before; return its folder."""
        name = "-".join(["undisturbed", *(f"{key}={value}" for key, value in changes.items())])
        plan = self.plan(name, **changes)
        if not is_finished(plan):
            claim_folder(plan)
            _train(plan)
        return plan.folder

    def killed(self) -> Path:
        """Kill the process of a run, unless that was done before; return the folder as it was left."""
        plan = self.plan("killed")
        if not plan.folder.exists():
            with started(plan) as process:
                wait_for_hit(plan.folder, process)
                process.kill()
                process.wait()
            if (plan.folder / FINAL_MODEL).exists():
                raise FaultError("the run had ended before it could be killed; this machine is too busy, try again")
        return plan.folder


@dataclass(frozen=True)
class Outcome:
    """What a fault did.

    steps_lost: steps that were logged and had to be taken again.
    pause_s: the longest time without a step from the fault on, or from the start of `--resume` on; starts of Python,
        torch and Ray are in it.
    problem: why the fault counts as failed, if metrics and weights do not tell.
    """

    fault: str
    steps_lost: int | None = None
    pause_s: float | None = None
    metrics_equal: bool = False
    weights_equal: bool = False
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Tell whether nothing was lost that a checkpoint held."""
        return self.problem is None and self.metrics_equal and self.weights_equal


def _train(plan: RunPlan) -> None:
    if plan.config.ray.num_workers == 0:
        train_in_process(plan)
    else:
        from trm_ray.distributed.trainer import train_on_ray

        train_on_ray(plan)


# ---- faults of a run in one process ----------------------------------------------------------------------


def kill_driver(ground: Ground) -> Outcome:
    """Kill the process of a run with SIGKILL, then `--resume`."""
    return _resumed(ground, "driver", lambda newest: None)


def cut_checkpoint(ground: Ground) -> Outcome:
    """Cut the newest checkpoint of a killed run short, then `--resume`."""
    return _resumed(ground, "cut", lambda newest: os.truncate(newest, newest.stat().st_size // 2), "passed over")


def flip_bit(ground: Ground) -> Outcome:
    """Flip a bit in the newest checkpoint of a killed run, then `--resume`."""
    return _resumed(ground, "flipped", _flip_bit, "passed over")


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _resumed(ground: Ground, name: str, spoil: Callable[[Path], None], word: str = "") -> Outcome:
    plan = ground.plan(name)
    shutil.copytree(ground.killed(), plan.folder)
    spoil(checkpoints(plan.folder)[0] / STATE_FILE)
    lost = steps_at_risk(plan.folder)
    with Pauses(plan.folder) as pauses, started(plan, "--resume") as process:
        complaint = finish(process)
    if word not in complaint:
        raise FaultError(f"nothing was said of the damaged checkpoint: {complaint}")
    return compared(plan.folder, ground.undisturbed(), lost, pauses.longest_s)


def fill_disk(ground: Ground) -> Outcome:
    """Let every write beyond a few kB fail, as on a full disk; once there is room again, `--resume`."""
    plan = ground.plan("disk")
    with started(plan) as process:
        wait_for_hit(plan.folder, process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_DISK_FULL_BYTES, resource.RLIM_INFINITY))
        complaint = finish(process, exit_code=1)
    if "Traceback" in complaint:
        raise FaultError(f"the full disk ended in a traceback: {complaint}")
    lost = steps_at_risk(plan.folder)
    with Pauses(plan.folder) as pauses, started(plan, "--resume") as process:
        finish(process)
    return compared(plan.folder, ground.undisturbed(), lost, pauses.longest_s)


def unplug_storage(ground: Ground) -> Outcome:
    """Take the run's folder away for some seconds while it trains; saving is tried again until it is back."""
    plan = ground.plan("storage")
    return _disturbed(ground, plan, lambda: _unplug(plan.folder), word="the next attempt is in")


def _unplug(folder: Path) -> None:
    """Put a file where the folder was: an empty place could be made a folder again, which a lost mount cannot."""
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    folder.touch()
    time.sleep(_STORAGE_GONE_S)
    folder.unlink()
    away.rename(folder)


def remove_data(ground: Ground) -> Outcome:
    """Remove a Parquet file while a run trains: it goes on from memory, and a resume names the file."""
    shutil.copytree(ground.plan("data_lost").train_paths[0], ground.folder / "lost")
    file = ground.folder / "lost" / "train" / "part-00000.parquet"
    plan = ground.plan("data_lost", data_paths=[str(ground.folder / "lost")])
    outcome = _disturbed(ground, plan, file.unlink)
    try:
        plan_run(plan.config)
    except ValueError as refusal:
        return outcome if file.name in str(refusal) else replace(outcome, problem=f"refused with: {refusal}")
    return replace(outcome, problem=f"a resume did not miss {file.name}")


def turn_clock_back(ground: Ground) -> Outcome:
    """Turn the clock of the run's process back by a day: no time in the log is negative."""
    plan, mark = ground.plan("clock"), ground.folder / "turned_back"
    outcome = _disturbed(ground, plan, mark.touch, before=_JUMPING_CLOCK.format(str(mark)))
    timed = [value for row in raw_rows(plan.folder) for tag, value in row.items() if tag.startswith(_TIMED)]
    seconds = [row["wall_s"] for row in raw_rows(plan.folder)]
    if min(timed) < 0 or seconds != sorted(seconds):
        return replace(outcome, problem="the log holds times that are negative or go back")
    return outcome


def _disturbed(
    ground: Ground, plan: RunPlan, disturb: Callable[[], object], *, word: str = "", before: str = ""
) -> Outcome:
    """Disturb a run that must go on by itself."""
    with started(plan, before=before) as process:
        wait_for_hit(plan.folder, process)
        with Pauses(plan.folder) as pauses:
            disturb()
            complaint = finish(process)
    if word not in complaint:
        raise FaultError(f"the fault came too late to be noticed: {complaint}")
    return compared(plan.folder, ground.undisturbed(), 0, pauses.longest_s)


# ---- faults under Ray ------------------------------------------------------------------------------------


def kill_worker(ground: Ground) -> Outcome:
    """Kill one of a run's Ray Train workers with SIGKILL; Ray Train starts them anew (`ray.max_failures=1`)."""
    workers: dict[str, Any] = {"ray__num_workers": ground.workers, "ray__cpus_per_worker": 0.5}
    with _ray():
        reference = ground.undisturbed(**workers)
        plan = ground.plan("worker", **workers, ray__max_failures=1)
        claim_folder(plan)
        return _hit_on_ray(plan.folder, reference, "RayTrainWorker", lambda: _train(plan))


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

    with killing(actor, lambda: _to_be_hit(folder), note):
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


# ---- processes and what they leave -----------------------------------------------------------------------


@contextmanager
def started(plan: RunPlan, *words: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Train a run in a process of its own; whatever happens, it is gone in the end.

    Args:
        before: Python that the process runs first.
    """
    file = plan.folder.parent / "selftest.yaml"
    file.write_text(to_yaml(plan.config), encoding="utf-8")
    with launched(["train", "--config-name", str(file), *words], before) as process:
        yield process


@contextmanager
def launched(words: Sequence[str], before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run a `trm-ray` command as `started` does."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    with subprocess.Popen(
        [sys.executable, "-c", before + _COMMAND, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_hit(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the run that a process trains is to be hit.

    Raises:
        FaultError: the process ended before.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while not _to_be_hit(folder):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise FaultError(f"{folder.name} did not come to step {HIT_AT}: {process.communicate()[1]}")
        time.sleep(0.002)


def _to_be_hit(folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= HIT_AT


def finish(process: subprocess.Popen[str], exit_code: int = 0) -> str:
    """Wait for a process to end; return its standard error.

    Raises:
        FaultError: it ended otherwise.
    """
    _, complaint = process.communicate(timeout=_PATIENCE_S)
    if process.returncode != exit_code:
        raise FaultError(f"ended with exit code {process.returncode} instead of {exit_code}: {complaint}")
    return complaint


class Pauses:
    """While this lasts, measure the longest time in which a run logged no step."""

    def __init__(self, folder: Path):
        self._path, self._end = folder / "metrics.jsonl", threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.longest_s = 0.0

    def __enter__(self) -> Pauses:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        size, since = self._size(0), time.monotonic()
        while not self._end.wait(0.01):
            before, size = size, self._size(size)
            if size > before:
                now = time.monotonic()
                self.longest_s, since = max(self.longest_s, now - since), now

    def _size(self, otherwise: int) -> int:
        try:
            return self._path.stat().st_size
        except OSError:  # the storage is gone
            return otherwise


_TIMED = ("wall_s", "throughput/", "checkpoint/")


def raw_rows(folder: Path) -> list[dict[str, float]]:
    """Read a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _untimed_rows(folder: Path) -> list[dict[str, float]]:
    return [{tag: value for tag, value in row.items() if not tag.startswith(_TIMED)} for row in raw_rows(folder)]


def steps_at_risk(folder: Path) -> int:
    """Count the steps that were logged after the newest intact checkpoint."""
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]  # a torn line at the end is none
    intact = (path for path in checkpoints(folder) if damage(path, digests=True) is None)
    saved = next(map(checkpoint_step, intact), 0)
    return max(0, (json.loads(lines[-1])["step"] if lines else 0) - saved)


def compared(folder: Path, reference: Path, lost: int, pause_s: float) -> Outcome:
    """Hold a run against the undisturbed one: every logged number, and the bytes of the final weights."""
    ours, theirs = ((path / FINAL_MODEL / STATE_FILE).read_bytes() for path in (folder, reference))
    same_rows = _untimed_rows(folder) == _untimed_rows(reference)
    return Outcome("", lost, pause_s, same_rows, ours == theirs)


# ---- all of them -----------------------------------------------------------------------------------------

Fault = Callable[[Ground], Outcome]

LOCAL_FAULTS: Mapping[str, tuple[str, Fault]] = {
    "driver": ("kill -9 of a run's process, --resume", kill_driver),
    "cut": ("newest checkpoint cut short, --resume", cut_checkpoint),
    "bit": ("a bit of the newest checkpoint flipped, --resume", flip_bit),
    "disk": ("disk full; --resume once there is room", fill_disk),
    "storage": (f"storage gone for {_STORAGE_GONE_S:g} s", unplug_storage),
    "data": ("a Parquet file removed during training", remove_data),
    "clock": ("clock turned back by a day", turn_clock_back),
}
RAY_FAULTS: Mapping[str, tuple[str, Fault]] = {
    "worker": ("kill -9 of a Ray Train worker", kill_worker),
    "trial": ("kill -9 of a Tune trial's process", kill_trial),
    "sweep": ("kill -9 of a sweep's driver, --resume", kill_sweep_driver),
}


def chosen_faults(only: Sequence[str], workers: int) -> list[str]:
    """Name the faults to make: those asked for, else all that the workers allow.

    Raises:
        ValueError: one is unknown, or needs workers.
    """
    for name in only:
        if name not in (*LOCAL_FAULTS, *RAY_FAULTS):
            raise ValueError(f"--only {name} is unknown; use one of {', '.join((*LOCAL_FAULTS, *RAY_FAULTS))}")
        if name in RAY_FAULTS and workers == 0:
            raise ValueError(f"--only {name} needs Ray workers and --workers is 0; use --workers 2")
    return list(only) or [*LOCAL_FAULTS, *(RAY_FAULTS if workers else ())]


def make_faults(names: Sequence[str], ground: Ground) -> Iterator[Outcome]:
    """Make one fault after the other; one that goes wrong does not keep the others from being made."""
    for name in names:
        told, fault = {**LOCAL_FAULTS, **RAY_FAULTS}[name]
        try:
            yield replace(fault(ground), fault=told)
        except Exception as error:  # whatever it is, it is what the table has to say
            yield Outcome(told, problem=f"{type(error).__name__}: {error}")


def fault_table(outcomes: Sequence[Outcome]) -> Table:
    """Lay outcomes out as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("Fault")
    for title in ("Steps lost", "Seconds until training again", "Metrics equal", "Weights equal"):
        table.add_column(title, justify="right")
    for one in outcomes:
        lost, pause = ("–" if value is None else f"{value:.3g}" for value in (one.steps_lost, one.pause_s))
        table.add_row(one.fault, lost, pause, *("yes" if ok else "NO" for ok in (one.metrics_equal, one.weights_equal)))
    return table


def faults_json(outcomes: Sequence[Outcome]) -> str:
    """Write outcomes as JSON."""
    faults = [{**asdict(one), "passed": one.passed} for one in outcomes]
    return json.dumps({"format_version": 1, "faults": faults}, indent=2, ensure_ascii=False) + "\n"
