"""Faults of a run in one process."""

from __future__ import annotations

import os
import re
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trm_ray.measure.selftest.ground import (
    TIMED,
    FaultError,
    Ground,
    Outcome,
    Pauses,
    compared,
    finish,
    gone_on_with,
    raw_rows,
    started,
    wait_for_hit,
)
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.training.checkpoint import STATE_FILE, checkpoints

STORAGE_GONE_S = 3.0
# Half a minute of attempts is no part of what storage that stays away shows.
_IMPATIENT = "import trm_ray.storage as storage; storage.RETRY_DELAYS = (0.1, 0.2)\n"
_ELSEWHERE = "import os; os.environ |= dict.fromkeys(('HOME', 'TMPDIR'), {0!r}); os.chdir({0!r})\n"
_DISK_FULL_BYTES = 8192
_JUMPING_CLOCK = "import os, time; now = time.time; time.time = lambda: now() - 86400 * os.path.exists({!r})\n"


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


def move_elsewhere(ground: Ground) -> Outcome:
    """Kill the process of a run, then `--resume` with another home, temporary and working folder."""
    place = ground.folder / "another_machine"
    place.mkdir()
    return _resumed(ground, "elsewhere", lambda newest: None, before=_ELSEWHERE.format(str(place)))


def _resumed(ground: Ground, name: str, spoil: Callable[[Path], None], word: str = "", *, before: str = "") -> Outcome:
    plan = ground.plan(name)
    shutil.copytree(ground.killed(), plan.folder)
    spoil(checkpoints(plan.folder)[0] / STATE_FILE)
    return gone_on_with(plan, ground.undisturbed(), word, before)


def fill_disk(ground: Ground) -> Outcome:
    """Let every write beyond a few kB fail, as on a full disk; once there is room again, `--resume`."""
    plan = ground.plan("disk")
    with started(plan) as process:
        wait_for_hit(plan.folder, process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_DISK_FULL_BYTES, resource.RLIM_INFINITY))
        complaint = finish(process, exit_code=1)
    if "Traceback" in complaint:
        raise FaultError(f"the full disk ended in a traceback: {complaint}")
    return gone_on_with(plan, ground.undisturbed())


def lose_storage(ground: Ground) -> Outcome:
    """Take the run's folder away while it trains, until the run gives up; then do what its last line says."""
    plan, scratch = ground.plan("storage_lost"), ground.folder / "scratch"
    scratch.mkdir()
    with started(plan, before=_IMPATIENT + f"import os; os.environ['TMPDIR'] = {str(scratch)!r}\n") as process:
        wait_for_hit(plan.folder, process)
        away = _take_away(plan.folder)
        complaint = finish(process, exit_code=1)
    _put_back(away, plan.folder)
    copy = re.search(r"error: .*; a copy is (\S+) on ", complaint)
    if copy is None or "Traceback" in complaint:
        raise FaultError(f"the run did not tell of a copy in one line: {complaint}")
    shutil.move(copy[1], plan.folder)
    return gone_on_with(plan, ground.undisturbed())


def unplug_storage(ground: Ground) -> Outcome:
    """Take the run's folder away for some seconds while it trains; saving is tried again until it is back."""
    plan = ground.plan("storage")
    return _disturbed(ground, plan, lambda: _unplug(plan.folder), word="the next attempt is in")


def _unplug(folder: Path) -> None:
    away = _take_away(folder)
    time.sleep(STORAGE_GONE_S)
    _put_back(away, folder)


def _take_away(folder: Path) -> Path:
    """Put a file where the folder was: an empty place could be made a folder again, which a lost mount cannot."""
    away = folder.with_name(f"{folder.name}.away")
    folder.rename(away)
    folder.touch()
    return away


def _put_back(away: Path, folder: Path) -> None:
    folder.unlink()
    away.rename(folder)


def remove_data(ground: Ground) -> Outcome:
    """Remove a Parquet file while a run trains: it goes on from memory, and a resume names the file."""
    return _data_disturbed(ground, "data_lost", Path.unlink)


def change_data(ground: Ground) -> Outcome:
    """Change a Parquet file while a run trains: it goes on from memory, and a resume names the file."""
    return _data_disturbed(ground, "data_changed", _flip_bit)


def _data_disturbed(ground: Ground, name: str, disturb: Callable[[Path], None]) -> Outcome:
    data = ground.folder / f"{name}_dataset"
    shutil.copytree(ground.plan(name).train_paths[0], data)
    plan, file = ground.plan(name, data_paths=[str(data)]), data / "train" / "part-00000.parquet"
    outcome = _disturbed(ground, plan, lambda: disturb(file))
    try:
        plan_run(plan.config)
    except ValueError as refusal:
        return outcome if file.name in str(refusal) else replace(outcome, problem=f"refused with: {refusal}")
    return replace(outcome, problem=f"a resume did not miss {file.name}")


def turn_clock_back(ground: Ground) -> Outcome:
    """Turn the clock of the run's process back by a day: no time in the log is negative."""
    plan, mark = ground.plan("clock"), ground.folder / "turned_back"
    outcome = _disturbed(ground, plan, mark.touch, before=_JUMPING_CLOCK.format(str(mark)))
    timed = [value for row in raw_rows(plan.folder) for tag, value in row.items() if tag.startswith(TIMED)]
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
