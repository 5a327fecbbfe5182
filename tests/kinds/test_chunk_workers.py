"""Processes that make puzzles: started from any kind of program, gone with it, and not needed for the same puzzles."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from trm_ray.kinds.chunk_workers import ChunkWorkers, Puzzles
from trm_ray.kinds.sudoku.generate import prepare_sudoku

MAKE = """
from pathlib import Path
from trm_ray.kinds.sudoku.generate import prepare_sudoku
with Path("runs.txt").open("a") as file:
    file.write("once\\n")
prepare_sudoku("made", size=4, train=40, test=8, processes=2)
"""


def some_puzzles(number: int) -> Puzzles:
    return Puzzles(np.full((1, 4), number), np.zeros((1, 4)), [b""])


def first_numbers(workers: ChunkWorkers, how_many: int = 6) -> list[int]:
    return [int(chunk.questions[0, 0]) for chunk in islice(workers.chunks(), how_many)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone") / "made"
    prepare_sudoku(folder, size=4, train=40, test=8, processes=1)
    return files(folder)


@pytest.mark.parametrize("way", ["script", "stdin", "a worker of a pool"])
def test_a_program_without_a_guard_makes_the_same_bytes_with_processes_and_runs_once(
    tmp_path: Path, made_alone: dict[str, bytes], way: str
):
    """Also from a folder whose files are called like the standard library's; a pool's worker may not use another."""
    script, here = tmp_path / "scripts" / "plain.py", tmp_path / "here"
    script.parent.mkdir()
    here.mkdir()
    script.write_text(MAKE, encoding="utf-8")
    if way == "script":
        for name in ("random.py", "pickle.py", "signal.py"):
            (here / name).write_text("raise SystemExit('not this one')")
    in_a_pool = (
        f"import multiprocessing as m; m.current_process()._config['daemon'] = True; exec(open({str(script)!r}).read())"
    )
    words = {"script": [str(script)], "stdin": ["-"], "a worker of a pool": ["-c", in_a_pool]}[way]
    ended = subprocess.run([sys.executable, *words], cwd=here, input=MAKE, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (here / "runs.txt").read_text() == "once\n"
    assert files(here / "made") == made_alone


@pytest.mark.parametrize("executable", ["", "/opt/editor/bin/editor", "/nowhere/python3", "python that says nothing"])
def test_where_no_process_can_be_started_the_same_chunks_are_made_in_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, executable: str
):
    if executable.startswith("python"):
        executable = str(tmp_path / "python")
        os.symlink("/bin/true", executable)
    monkeypatch.setattr(sys, "executable", executable)
    with ChunkWorkers(some_puzzles, 2) as workers:
        assert first_numbers(workers) == [0, 1, 2, 3, 4, 5]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("puzzles are made in this process: ")


def test_a_program_that_python_was_frozen_into_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with ChunkWorkers(some_puzzles, 2) as workers:
        assert first_numbers(workers) == [0, 1, 2, 3, 4, 5]
    assert "is no Python" in caplog.text


def test_a_process_that_is_killed_costs_no_chunk(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    with ChunkWorkers(some_puzzles, 1) as workers:
        chunks = workers.chunks()
        numbers = [int(next(chunks).questions[0, 0])]
        [process] = workers._started
        os.kill(process._process.pid, signal.SIGKILL)
        numbers += [int(chunk.questions[0, 0]) for chunk in islice(chunks, 5)]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert len(caplog.messages) == 1


def test_an_error_in_a_process_is_raised_here_and_leaves_no_thread_and_no_process():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), ChunkWorkers(partial(divmod, 1), 2) as workers:  # type: ignore[arg-type]
        next(workers.chunks())
    assert threading.active_count() == before
    assert all(process._process.returncode is not None for process in workers._started)


def test_the_processes_of_a_killed_program_end():
    program = """
import time
from test_chunk_workers import some_puzzles
from trm_ray.kinds.chunk_workers import ChunkWorkers
with ChunkWorkers(some_puzzles, 2) as workers:
    next(workers.chunks())
    print(*(process._process.pid for process in workers._started), flush=True)
    time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        parent.kill()
    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    assert len(pids) == 2


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # whose parent has to look
    except FileNotFoundError:
        return False
