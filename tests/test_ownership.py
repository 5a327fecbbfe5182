"""Folders have one owner at a time: other processes, other machines, storage without locks, object storage."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from replay_helpers import rows_of, write_run
from run_helpers import run_config, some_puzzles, tiny_overrides
from typer.testing import CliRunner

import trm_ray
from trm_ray import ownership
from trm_ray.cli import app
from trm_ray.ownership import NOTE_FILE, FolderInUse, Note, Ownership, refuse_if_held
from trm_ray.programs.compare import compare
from trm_ray.storage import as_path

HOLD = """
import sys
from trm_ray.ownership import FolderInUse, Ownership
from trm_ray.storage import as_path
try:
    with Ownership(as_path(sys.argv[1]), "log_dir=it"):
        print("held", flush=True)
        sys.stdin.read()
except FolderInUse as error:
    print("refused", error, flush=True)
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder until it is killed or its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def elsewhere(**changes: str | int) -> Note:
    """A note of a process on another machine."""
    return replace(Note.own(), host="node7", kernel="another", pid=4321, **changes)


@contextmanager
def renewing(write: Callable[[Note], object]) -> Iterator[None]:
    """Renew a note of another machine again and again."""
    ended = threading.Event()

    def renew() -> None:
        number = 0
        while not ended.wait(0.05):
            number += 1
            write(elsewhere(renewed=number, token="theirs"))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("STALE_S", 0.6), ("STALE_REMOTE_S", 0.6), ("_SETTLE_S", 0.05)):
        monkeypatch.setattr(ownership, name, seconds)


def test_a_second_process_is_told_who_holds_the_folder_and_how_to_stop_it_until_that_is_dead(tmp_path: Path):
    folder = tmp_path / "run"
    with another_process(folder) as holder:
        assert says(holder) == "held"
        rule = rf"^log_dir=run is being written by process {holder.pid} since 20\d\d-.*\(-c .*\); stop it with "
        with pytest.raises(FolderInUse, match=rf"{rule}`kill {holder.pid}`, or choose another folder$"):
            Ownership(folder, "log_dir=run").__enter__()
        with pytest.raises(FolderInUse, match="wait"):
            refuse_if_held(folder, "it", "wait")
        holder.kill()
        holder.wait()
        assert (folder / NOTE_FILE).is_file()
        refuse_if_held(folder, "it", "wait")
        with Ownership(folder, "log_dir=run"):  # at once, without a word
            assert json.loads((folder / NOTE_FILE).read_bytes())["pid"] == os.getpid()


def test_a_folder_is_let_go_at_the_end_whatever_the_end_is_and_no_empty_one_stays(tmp_path: Path):
    with Ownership(tmp_path / "a" / "b", "it"), pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        Ownership(tmp_path / "a" / "b", "it").__enter__()
    assert list(tmp_path.iterdir()) == []
    with suppress(KeyboardInterrupt), Ownership(tmp_path / "a" / "b", "it"):
        (tmp_path / "a" / "b" / "mine.txt").touch()
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["mine.txt"]
    assert not [thread for thread in threading.enumerate() if thread.name == "owner"]


def test_of_processes_that_come_at_once_one_gets_the_folder(tmp_path: Path):
    with ExitStack() as stack:
        processes = [stack.enter_context(another_process(tmp_path / "run")) for _ in range(4)]
        assert sorted(says(process).split()[0] for process in processes) == ["held", "refused", "refused", "refused"]


def test_another_machine_s_note_counts_while_it_is_renewed(tmp_path: Path):
    note = tmp_path / NOTE_FILE
    with renewing(lambda told: note.write_bytes(told.to_bytes())):
        while not note.exists():
            time.sleep(0.01)
        with pytest.raises(FolderInUse, match=r"process 4321 on node7 .*stop it with `kill 4321` on node7"):
            Ownership(tmp_path, "it").__enter__()
    with Ownership(tmp_path, "it"):  # nobody renews it any more
        assert json.loads(note.read_bytes())["pid"] == os.getpid()


def test_a_note_that_nobody_can_read_does_not_keep_a_folder_for_ever(tmp_path: Path):
    for torn in (b"", b"{", b'{"pid": 1}', b"[]"):
        (tmp_path / NOTE_FILE).write_bytes(torn)
        with Ownership(tmp_path, "it"):
            assert Note.from_bytes((tmp_path / NOTE_FILE).read_bytes()) is not None


def test_without_the_kernel_s_locks_the_note_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with another_process(tmp_path) as holder:
        assert says(holder) == "held"
        with pytest.raises(FolderInUse, match=f"process {holder.pid} "):
            Ownership(tmp_path, "it").__enter__()
        holder.kill()
        holder.wait()
        with Ownership(tmp_path, "it"), pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
            Ownership(tmp_path, "it").__enter__()


def test_who_was_taken_for_dead_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ownership, "RENEW_S", 0.02)
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with Ownership(tmp_path, "it"):
            (tmp_path / NOTE_FILE).write_bytes(elsewhere(token="theirs").to_bytes())
            until = time.monotonic() + 10
            while not stopped.is_set() and time.monotonic() < until:
                time.sleep(0.01)  # signals reach the main thread between its instructions
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.is_set()
    assert json.loads((tmp_path / NOTE_FILE).read_bytes())["token"] == "theirs"


def test_object_storage_has_one_owner_too(bucket: Path):
    folder = bucket / "run"
    note = folder / NOTE_FILE
    with Ownership(folder, "it") as held:
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} "):
            Ownership(folder, "it").__enter__()
        assert held._held is not None
        assert held._held.renew()
        assert json.loads(note.read_bytes())["renewed"] == 1
    assert not note.exists()
    with another_process(folder) as holder:
        assert says(holder) == "held"
        holder.kill()
        holder.wait()
        with Ownership(folder, "it"):
            assert json.loads(note.read_bytes())["pid"] == os.getpid()


def test_another_machine_s_note_on_object_storage_counts_while_it_is_renewed():
    note = as_path("memory://owned/run") / NOTE_FILE
    with renewing(lambda told: note.write_bytes(told.to_bytes())):
        while not note.exists():
            time.sleep(0.01)
        with pytest.raises(FolderInUse, match="process 4321 on node7"):
            Ownership(note.parent, "it").__enter__()
        with pytest.raises(FolderInUse, match="process 4321 on node7"):
            refuse_if_held(note.parent, "it", "wait")
    with Ownership(note.parent, "it") as held:
        note.write_bytes(elsewhere(token="theirs").to_bytes())
        assert held._held is not None
        assert not held._held.renew()
    assert note.exists()  # it is theirs now


def test_a_note_of_another_version_or_with_more_in_it_is_none():
    assert Note.from_bytes(json.dumps({**asdict(Note.own()), "more": 1}).encode()) is None
    assert Note.from_bytes(Note.own().to_bytes()) is not None


# ---- commands --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and a finished run."""
    place = tmp_path_factory.mktemp("held")
    data = some_puzzles(place / "data", train=64, test=8)
    trm_ray.train(run_config(data, place / "sweep" / "trial", "ray.num_workers=0"))
    return data, place / "sweep" / "trial"


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*words], catch_exceptions=False)
    return done.exit_code, done.stderr


@pytest.mark.parametrize("words", [["--resume"], ["--overwrite"]])
def test_no_train_touches_a_run_that_another_process_writes(trained: tuple[Path, Path], words: list[str]):
    data, run = trained
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    with another_process(run) as holder:
        assert says(holder) == "held"
        given = [*tiny_overrides(), f"data_paths=[{data}]", f"log_dir={run}", "ray.num_workers=0", *words]
        code, told = command("train", *given)
        assert (code, f"log_dir={run} is being written by process {holder.pid} " in told) == (2, True)
        assert command("compare", str(run), "--save", str(run.parent.parent / "picture.png")) == (0, "")
    (run / NOTE_FILE).unlink()
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_no_trial_is_trained_by_hand_while_its_sweep_runs_nor_the_sweep_while_its_trial_is(trained: tuple[Path, Path]):
    data, run = trained
    sweep = run.parent
    words = ["scenarios=[deep_supervision_linear]", "keep=[]", "asha.enabled=false", f"log_dir={sweep}"]
    words += [*tiny_overrides(), f"data_paths=[{data}]"]
    resolved = trm_ray.config.load_sweep("five_scenarios", [word for word in words if "=" in word])
    (sweep / "sweep.yaml").write_text(trm_ray.config.to_yaml(resolved))
    with another_process(sweep) as holder:
        assert says(holder) == "held"
        given = [*tiny_overrides(), f"data_paths=[{data}]", f"log_dir={run}", "ray.num_workers=0", "--resume"]
        code, told = command("train", *given)
        assert (code, f"is a trial of a sweep that is being written by process {holder.pid}" in told) == (2, True)
        for flag in ("--resume", "--overwrite"):
            code, told = command("sweep", *words, flag)
            assert (code, f"log_dir={sweep} is being written by process {holder.pid}" in told) == (2, True)
    with another_process(run) as holder:
        assert says(holder) == "held"
        code, told = command("sweep", *words, "--resume")
        assert (code, f"the trial trial in log_dir={sweep} is being written by" in told) == (2, True)


@pytest.mark.parametrize("place", ["", "memory://runs"])
def test_a_comparison_tells_trials_that_are_trained_from_those_that_were_interrupted(tmp_path: Path, place: str):
    """A trial is held through its sweep's folder, a run by itself."""
    runs = as_path(place) if place else tmp_path
    for name in ("sweep/one", "alone", "left"):
        write_run(runs / name, name.replace("/", "_"), 0, rows_of(0.5)[:2])

    def states() -> dict[str, str]:
        return {run.label: run.state for run in compare([runs]).comparison.unfinished}

    assert set(states().values()) == {"interrupted"}
    with ExitStack() as held:
        for folder in (runs / "sweep", runs / "alone"):
            if place:
                held.enter_context(Ownership(folder, "it"))
            else:
                assert says(held.enter_context(another_process(folder))) == "held"
        assert states() == {"sweep_one": "running", "alone": "running", "left": "interrupted"}


def test_nothing_is_imported_into_a_run_nor_prepared_in_a_dataset_that_another_process_writes(
    trained: tuple[Path, Path], tmp_path: Path
):
    data, run = trained
    for folder, words in (
        (run, ["import-checkpoint", str(tmp_path / "model.safetensors"), "--output", str(run), "--overwrite"]),
        (data, ["prepare", "sudoku", "--size", "4", "--train", "8", "--test", "4", "--output", str(data)]),
    ):
        (tmp_path / "model.safetensors").touch()
        with another_process(folder) as holder:
            assert says(holder) == "held"
            code, told = command(*words, *(["--overwrite"] if folder == data else []))
            assert (code, f"--output {folder} is being written by process {holder.pid}" in told) == (2, True)


def test_two_that_need_the_same_data_make_them_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    from trm_ray.runs import data as data_of_runs

    monkeypatch.setattr(data_of_runs, "_LOOK_EVERY_S", 0.02)
    words = ["task=sudoku4", f"data_paths=[{tmp_path / 'data'}]", "generator.train=20", "generator.test=5"]
    config = trm_ray.load_config("deep_supervision_linear", words)
    with another_process(tmp_path / "data") as maker:
        assert says(maker) == "held"

        def kill_when_waited_for() -> None:  # the dead one's work is done by who waits
            while not caplog.messages:
                time.sleep(0.02)
            maker.kill()

        waits = threading.Thread(target=kill_when_waited_for, daemon=True)
        waits.start()
        data_of_runs.make_missing(config)
        waits.join()
    info = data_of_runs.open_data(config)
    assert info.split("train").rows == 20
    assert [message for message in caplog.messages if "waiting for the data" in message][1:] == []
    assert any(f"process {maker.pid}" in message for message in caplog.messages)
