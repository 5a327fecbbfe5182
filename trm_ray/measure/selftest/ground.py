"""Where faults are made: tiny runs, their processes, and how a disturbed run is held against an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trm_ray
from trm_ray.config import Config, to_yaml, with_overrides
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder, is_finished, start_step
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.training.checkpoint import FINAL_MODEL, STATE_FILE, checkpoint_step, checkpoints, damage

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
PATIENCE_S = 300.0
_COMMAND = "from trm_ray.cli import app; app()"


class FaultError(RuntimeError):
    """A fault did not end as it should; the message says what was seen instead."""


@dataclass(frozen=True)
class Ground:
    """A folder for the runs and their data, and the number of Ray workers of the runs that are hit under Ray."""

    folder: Path
    workers: int = 0

    def plan(self, name: str, **changes: Any) -> RunPlan:
        """Plan a run; `changes` are keys of the config, a dot written as two underscores."""
        data, overrides = self.folder / "data", {key.replace("__", "."): value for key, value in changes.items()}
        if not data.exists():
            from trm_ray.kinds.sudoku.generate import prepare_sudoku

            prepare_sudoku(data, size=4, train=64, test=16, seed=0)
        values = {**_RUN, "config_name": "selftest", "data_paths": [str(data)], "log_dir": str(self.folder / name)}
        return plan_run(with_overrides(Config.model_validate(values | {"ray": {"num_workers": 0}}), overrides))

    def undisturbed(self, **changes: Any) -> Path:
        """Train a run that nobody disturbs, unless that was done before; return its folder."""
        name = "-".join(["undisturbed", *(f"{key}={value}" for key, value in changes.items())])
        plan = self.plan(name, **changes)
        if not is_finished(plan, start_step(plan)):
            claim_folder(plan)
            train(plan)
        return plan.folder

    def killed(self) -> Path:
        """Kill the process of a run, unless that was done before; return the folder as it was left."""
        plan = self.plan("killed")
        if not plan.folder.exists():
            with started(plan) as process:
                kill_at_hit(plan.folder, process)
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


def train(plan: RunPlan) -> None:
    """Train a run as its config says, with or without Ray."""
    if plan.config.ray.num_workers == 0:
        train_in_process(plan)
    else:
        from trm_ray.distributed.trainer import train_on_ray

        train_on_ray(plan)


# ---- processes and what they leave -----------------------------------------------------------------------


def started(plan: RunPlan, *words: str, before: str = "") -> AbstractContextManager[subprocess.Popen[str]]:
    """Train a run in a process of its own; whatever happens, it is gone in the end.

    Args:
        before: Python that the process runs first.
    """
    file = plan.folder.parent / "selftest.yaml"
    file.write_text(to_yaml(plan.config), encoding="utf-8")
    return launched(["train", "--config-name", str(file), *words], before)


@contextmanager
def launched(words: Sequence[str], before: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run a `trm-ray` command as `started` does."""
    paths = [str(Path(trm_ray.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
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
    """Wait until the run that a process trains is to be hit."""
    await_from(process, lambda: to_be_hit(folder), PATIENCE_S, f"{folder.name} did not come to step {HIT_AT}")


def await_from(process: subprocess.Popen[str], seen: Callable[[], object], patience_s: float, missed: str) -> None:
    """Wait until something is seen of what a process does.

    Raises:
        FaultError: it ended before, or takes too long; the message begins with `missed`.
    """
    deadline = time.monotonic() + patience_s
    while not seen():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise FaultError(f"{missed}: {process.communicate()[1]}")
        time.sleep(0.002)


def to_be_hit(folder: Path) -> bool:
    """Tell whether a run has logged the step at which it is to be hit."""
    path = folder / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") >= HIT_AT


def gone_on_with(plan: RunPlan, reference: Path, word: str = "", before: str = "") -> Outcome:
    """Go on with a run by `--resume`, and hold it against an undisturbed one.

    Args:
        word: what the process must say of the damage that it finds.
        before: Python that the process runs first.
    """
    lost = steps_at_risk(plan.folder)
    with Pauses(plan.folder) as pauses, started(plan, "--resume", before=before) as process:
        complaint = finish(process)
    if word not in complaint:
        raise FaultError(f"nothing was said of the damaged checkpoint: {complaint}")
    return compared(plan.folder, reference, lost, pauses.longest_s)


def kill_at_hit(folder: Path, process: subprocess.Popen[str]) -> None:
    """Kill a process once the run that it trains is to be hit."""
    wait_for_hit(folder, process)
    process.kill()
    process.wait()


def finish(process: subprocess.Popen[str], exit_code: int = 0) -> str:
    """Wait for a process to end; return its standard error.

    Raises:
        FaultError: it ended otherwise.
    """
    _, complaint = process.communicate(timeout=PATIENCE_S)
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


TIMED = ("wall_s", "throughput/", "checkpoint/", "core_seconds/")


def raw_rows(folder: Path) -> list[dict[str, float]]:
    """Read a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _untimed_rows(folder: Path) -> list[dict[str, float]]:
    return [{tag: value for tag, value in row.items() if not tag.startswith(TIMED)} for row in raw_rows(folder)]


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
