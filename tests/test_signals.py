"""Commands that are asked to stop, each in a process of its own."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from run_helpers import ROOT, run_config, some_puzzles

from trm_ray.config import to_yaml

PATIENCE_S = 120.0


@contextmanager
def command(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command; whatever happens, it is gone in the end."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    program = [sys.executable, "-m", "trm_ray.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, env=environment, start_new_session=True, **{**pipes, **options}) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(there: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def endless_run(folder: Path, *words: str) -> list[str]:
    """The words that train a run for longer than anybody waits."""
    data = some_puzzles(folder / "puzzles", train=64, test=9)
    config = run_config(data, folder / "run", "ray.num_workers=0", "max_steps=1000000", "eval_interval=500000", *words)
    file = folder / "endless.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    return ["train", "--config-name", str(file)]


def has_begun(folder: Path) -> bool:
    metrics = folder / "run" / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def checkpoints(folder: Path) -> list[str]:
    return [path.name for path in (folder / "run").glob("checkpoint_step_*")]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text() if Path(f"/proc/{pid}").exists() else ""
    return [int(word) for word in told.split()]


def test_the_first_signal_while_data_is_made_ends_all_processes_with_one_line(tmp_path: Path):
    prepare = (
        "prepare",
        "sudoku",
        "--size",
        "9",
        "--train",
        "500000",
        "--test",
        "16",
        "--output",
        str(tmp_path / "data"),
    )
    with command(*prepare) as process:
        wait_until(lambda: process.poll() is not None or len(children(process.pid)) >= 1, process)
        started = children(process.pid)
        process.send_signal(signal.SIGTERM)
        complaint = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 143
    assert complaint == "error: interrupted\n"
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nohup_is_heeded_and_slurms_warning_saves_the_step_under_way(tmp_path: Path):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with command(*endless_run(tmp_path), preexec_fn=ignore) as process:
        wait_until(lambda: has_begun(tmp_path), process)
        for number in (signal.SIGHUP, signal.SIGCONT, signal.SIGUSR1):
            process.send_signal(number)
        complaint = process.communicate(timeout=PATIENCE_S)[1]
    [saved] = checkpoints(tmp_path)
    told = f"stopped after step {saved.rpartition('_')[2]}, which is saved; the same command with --resume goes on"
    assert complaint.endswith(f"error: interrupted: {told}\n")
    assert process.returncode == 138


def test_a_terminal_that_is_closed_saves_the_step_under_way(tmp_path: Path):
    """Nothing can be printed from then on."""
    words = endless_run(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "trm_ray.cli", *words])
    deadline = time.monotonic() + PATIENCE_S
    while not has_begun(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert len(checkpoints(tmp_path)) == 1


def test_the_first_signal_works_while_libraries_are_read(tmp_path: Path):
    """As soon as torch is being imported, which takes the longest of what comes before the first step."""
    with command(*endless_run(tmp_path)) as process:
        wait_until(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text(), process)
        process.send_signal(signal.SIGINT)
        complaint = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    told = "stopped at once; nothing was left to save; the same command with --resume goes on"
    assert complaint == f"error: interrupted: {told}\n"
    assert not checkpoints(tmp_path)
