"""Runs, datasets and reports on object storage: a real S3 server, which goes away and comes back."""

import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same, metric_rows, sudoku
from run_helpers import ROOT, laid_over, run_config, some_puzzles, tiny_overrides, write_puzzles
from s3_helpers import BUCKET, Gate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.check import open_dataset
from trm_ray.data.format import read_split
from trm_ray.data.rows import DatasetError
from trm_ray.reporting.console import read_new_rows
from trm_ray.reporting.mirrored_log import MirroredLog
from trm_ray.reporting.run_log import read_run
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.storage import RemotePath, StorageError, as_path, join, remove_tree
from trm_ray.training.checkpoint import (
    checkpoint_step,
    checkpoints,
    damage,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from trm_ray.training.stopping import STOP_FILE, StopFile, StopSignals
from trm_ray.training.store import CheckpointStore

# Larger uploads go in parts of 16 MiB.
IN_PARTS = 18 << 20


def state_of(step: int, num_bytes: int = 1000) -> dict[str, Any]:
    return {"step": step, "weights": (torch.arange(num_bytes) % 251).to(torch.uint8)}


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


# ---- text to path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "text", "expected"),
    [
        (None, "s3://bucket/runs/a/", "s3://bucket/runs/a"),
        ("s3://bucket/x", "runs//a", "s3://bucket/x/runs/a"),
        ("s3://bucket", "s3://other/a", "s3://other/a"),
        ("s3://bucket", "/mnt/a", "/mnt/a"),
        ("/mnt", "runs/a", "/mnt/runs/a"),
        ("/mnt", "file:///data", "/data"),
    ],
)
def test_a_place_is_a_folder_or_a_url_below_another_or_by_itself(base, text, expected):
    path = join(base, text)
    assert str(path) == expected
    assert str(pickle.loads(pickle.dumps(path)) / "b" / "c.json") == f"{expected}/b/c.json"


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else found(name))
    with pytest.raises(ValueError, match=r"^gs:// needs the package gcsfs; pip install 'trm-ray\[gcs\]'$"):
        as_path("gs://bucket/runs")


def test_what_others_write_meanwhile_is_seen(bucket: Path):
    assert not bucket.exists()
    assert bucket.glob("*") == []
    code = "import sys; from trm_ray.storage import as_path; (as_path(sys.argv[1]) / 'a.json').write_text('{}')"
    subprocess.run([sys.executable, "-c", code, str(bucket)], check=True, cwd=ROOT)
    assert bucket.is_dir()
    assert [path.name for path in bucket.iterdir()] == ["a.json"]


def test_errors_name_the_place_and_are_those_of_a_file(bucket: Path, gate: Gate):
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{bucket}/none'"):
        (bucket / "none").read_text()
    with pytest.raises(OSError, match="bucket does not exist"):
        as_path("s3://no-such-bucket/x").write_text("")
    gate.shut()
    try:
        for look in (bucket.exists, bucket.is_file, bucket.is_dir):
            with pytest.raises(OSError, match=f"Could not connect.*: '{bucket}'"):
                look()
    finally:
        gate.open()


# ---- checkpoints -----------------------------------------------------------------------------------------


def test_a_folder_without_its_manifest_is_no_checkpoint_and_is_swept_away(bucket: Path):
    whole, torn = (save_checkpoint(bucket / f"checkpoint_step_{step}", state_of(step)) for step in (3, 6))
    save_checkpoint(bucket / "final_model", state_of(6))
    for folder in (torn, bucket / "final_model"):
        (folder / "manifest.json").unlink()
    assert checkpoints(bucket) == [whole]
    assert find_checkpoint(bucket) == latest_checkpoint(bucket, verified=True) == whole
    assert damage(torn, digests=False) == "manifest.json is missing"
    remove_leftovers(bucket)
    assert [path.name for path in bucket.iterdir()] == ["checkpoint_step_3"]


def test_storage_that_fails_in_between_costs_no_checkpoint(bucket: Path, gate: Gate, monkeypatch):
    whole, listed = save_checkpoint(bucket / "checkpoint_step_3", state_of(3)), RemotePath.glob

    def list_and_fail(path: RemotePath, pattern: str) -> list[Path]:
        found = listed(path, pattern)
        gate.shut()
        return found

    monkeypatch.setattr(RemotePath, "glob", list_and_fail)
    with pytest.raises(OSError, match=r"manifest\.json"):
        remove_leftovers(bucket)
    gate.open()
    with pytest.raises(OSError, match=r"manifest\.json"):
        latest_checkpoint(bucket)
    gate.open()
    assert damage(whole, digests=True) is None


def test_damage_is_found_and_passed_over(bucket: Path, caplog):
    for step in (3, 6, 9):
        save_checkpoint(bucket / f"checkpoint_step_{step}", state_of(step))
    flipped(bucket / "checkpoint_step_9" / "state.pt")
    cut = bucket / "checkpoint_step_6" / "state.pt"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert latest_checkpoint(bucket, verified=True) == bucket / "checkpoint_step_3"
    assert "state.pt is not what was written (another SHA-256)" in caplog.text
    with pytest.raises(ValueError, match=r"state.pt has \d+ of \d+ bytes; remove s3://"):
        load_checkpoint(bucket / "checkpoint_step_6")


def test_a_checkpoint_that_is_verified_and_loaded_is_fetched_once(bucket: Path, monkeypatch):
    save_checkpoint(bucket / "checkpoint_step_3", state_of(3), identifiers=b"{}")
    fetched, download = [], RemotePath.download

    def counted(path: RemotePath, to: Path) -> None:
        fetched.append(to)
        download(path, to)

    monkeypatch.setattr(RemotePath, "download", counted)
    found = latest_checkpoint(bucket, verified=True)
    assert found is not None
    assert_same(load_checkpoint(found), {"format_version": 2, **state_of(3)})
    assert [path.name for path in fetched] == ["state.pt"]
    assert not fetched[0].exists()


def test_only_the_latest_and_the_best_stay(bucket: Path):
    with CheckpointStore(bucket, keep_last=1, keep_best=1) as store:
        for step, score in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3)):
            store.save(f"checkpoint_step_{step}", state_of(step), score=score)
    assert [folder.name for folder in checkpoints(bucket)] == ["checkpoint_step_4", "checkpoint_step_2"]
    assert {path.name for path in bucket.iterdir()} == {"checkpoint_step_4", "checkpoint_step_2"}


@pytest.mark.parametrize(("size", "cut_after"), [(1000, 0), (200_000, 100_000), (IN_PARTS, 17 << 20)])
def test_an_upload_that_is_cut_is_made_anew_once_the_storage_is_back(bucket: Path, gate: Gate, caplog, size, cut_after):
    told: list[float] = []

    def wait(seconds: float) -> None:
        told.append(seconds)
        if seconds == 2:
            gate.open()
            assert checkpoints(bucket) == []

    with CheckpointStore(bucket, sleep=wait) as store:
        gate.shut_after(cut_after)
        store.save("checkpoint_step_5", state_of(5, size))
    assert told == [1, 2]
    assert "checkpoint_step_5 could not be written" in caplog.text
    assert "the next attempt is in 1 s" in caplog.text
    assert_same(load_checkpoint(bucket / "checkpoint_step_5"), {"format_version": 2, **state_of(5, size)})


def test_storage_that_is_gone_for_good_leaves_a_copy_here_and_the_checkpoint_before_it(bucket: Path, gate: Gate):
    with CheckpointStore(bucket, sleep=lambda seconds: None) as store:
        store.save("checkpoint_step_4", state_of(4))
        store.wait()
        gate.shut_after(2000)
        store.save("checkpoint_step_5", state_of(5, 100_000))
        with pytest.raises(
            StorageError, match=rf"^{bucket}/checkpoint_step_5 \(step 5\) could not be written: "
        ) as told:
            store.wait()
    gate.open()
    copy = Path(str(told.value).partition("a copy is ")[2].partition(" on ")[0])
    assert_same(load_checkpoint(copy), {"format_version": 2, **state_of(5, 100_000)})
    assert latest_checkpoint(bucket, verified=True) == bucket / "checkpoint_step_4"
    for file in copy.iterdir():  # as the message says
        (bucket / copy.name / file.name).write_bytes(file.read_bytes())
    assert latest_checkpoint(bucket, verified=True) == bucket / "checkpoint_step_5"


# ---- the log ---------------------------------------------------------------------------------------------


def test_no_checkpoint_is_newer_than_the_log(bucket: Path, monkeypatch):
    monkeypatch.setattr("trm_ray.reporting.mirrored_log.COPY_EVERY_S", 1000.0)
    with MirroredLog(bucket) as log, CheckpointStore(bucket, log_first=log.sync) as store:
        for step in range(1, 7):
            log.write(step, 0.0, {"loss": 1.0})
            if step == 4:
                store.save("checkpoint_step_4", state_of(4))
                store.wait()
        rows, offset = read_new_rows(bucket / "metrics.jsonl", 0)
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
    rows, _ = read_new_rows(bucket / "metrics.jsonl", offset)
    assert [row["step"] for row in rows] == [5, 6]


def test_the_log_follows_by_itself_and_outlives_an_absence_of_the_storage(
    bucket: Path, gate: Gate, monkeypatch, caplog
):
    monkeypatch.setattr("trm_ray.reporting.mirrored_log.COPY_EVERY_S", 0.05)

    def eventually(seen: Callable[[], bool]) -> None:
        ends = time.monotonic() + 20
        while not seen():
            assert time.monotonic() < ends
            time.sleep(0.05)

    with MirroredLog(bucket) as log:
        log.write(1, 0.0, {"loss": 1.0})
        eventually(lambda: len(read_new_rows(bucket / "metrics.jsonl", 0)[0]) == 1)
        gate.shut()
        log.write(2, 0.0, {"loss": 1.0})
        eventually(lambda: "is behind" in caplog.text)
        gate.open()
        eventually(lambda: len(read_new_rows(bucket / "metrics.jsonl", 0)[0]) == 2)


def test_a_log_that_cannot_be_finished_says_where_it_lies(bucket: Path, gate: Gate):
    log = MirroredLog(bucket, sleep=lambda seconds: None)
    log.write(1, 0.0, {"loss": 1.0})
    gate.shut()
    with pytest.raises(
        StorageError, match=f"the log's last rows could not be written to {bucket}: .*Could not"
    ) as told:
        log.close()
    gate.open()
    copy = Path(str(told.value).partition("all of it is in ")[2].partition(" on ")[0])
    assert json.loads((copy / "metrics.jsonl").read_text())["step"] == 1


# ---- datasets --------------------------------------------------------------------------------------------


def test_a_dataset_there_is_the_one_here(bucket: Path, tmp_path: Path):
    here, there = (some_puzzles(folder / "puzzles", train=520, test=9) for folder in (tmp_path, bucket))
    assert open_dataset(there) == open_dataset(here)
    for split in ("train", "test"):
        rows, expected = read_split(there, split), read_split(here, split)
        assert (rows.inputs == expected.inputs).all()
        assert (rows.labels == expected.labels).all()
    flipped(there / "train" / "part-00001.parquet")
    with pytest.raises(DatasetError, match=rf"{there}/train/part-00001.parquet: the checksum does not match"):
        open_dataset(there)


def test_a_dataset_whose_upload_was_cut_is_none_and_may_be_written_again(bucket: Path, gate: Gate, monkeypatch):
    monkeypatch.setattr("trm_ray.storage.RETRY_DELAYS", ())
    gate.shut_after(30_000)
    with pytest.raises(OSError, match=f"{bucket}/puzzles/"):
        some_puzzles(bucket / "puzzles", train=990)
    gate.open()
    assert (bucket / "puzzles" / ".trm-ray-unfinished").exists()
    with pytest.raises(DatasetError, match=r"dataset\.json cannot be read"):
        open_dataset(bucket / "puzzles")
    some_puzzles(bucket / "puzzles", train=40, test=9)
    assert open_dataset(bucket / "puzzles").split("train").rows == 40
    assert not (bucket / "puzzles" / ".trm-ray-unfinished").exists()
    (bucket / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="exists and is no dataset"):
        write_puzzles(bucket / "other", sudoku(8), sudoku(8))


# ---- whole runs ------------------------------------------------------------------------------------------


def test_a_run_there_is_the_run_here_and_tensorboard_reads_it(bucket: Path, tmp_path: Path, monkeypatch):
    here = plan_run(run_config(some_puzzles(tmp_path / "puzzles", train=64), tmp_path / "run", "ema=true"))
    there = plan_run(run_config(some_puzzles(bucket / "puzzles", train=64), bucket / "run", "ema=true"))
    for plan in (here, there):
        claim_folder(plan)
        train_in_process(plan)
    for name in ("checkpoint_step_3", "checkpoint_step_6", "final_model"):
        assert (there.folder / name / "state.pt").read_bytes() == (here.folder / name / "state.pt").read_bytes()
    assert metric_rows(there.folder) == metric_rows(here.folder)
    losses = [row["eval/loss"] for row in read_run(there.folder).rows if "eval/loss" in row]
    for filesystem in ("S3FileSystem", "FSSpecFileSystem"):  # with boto3, and without
        assert type(gfile.get_filesystem(str(bucket))).__name__ == filesystem
        events = EventAccumulator(str(there.folder)).Reload()
        assert [event.step for event in events.Scalars("eval/loss")] == [3, 6]
        assert [event.value for event in events.Scalars("eval/loss")] == pytest.approx(losses)
        monkeypatch.delitem(gfile._REGISTERED_FILESYSTEMS, "s3", raising=False)


@pytest.mark.slow
def test_another_machine_resumes_a_killed_run_to_the_same_bytes(bucket: Path, tmp_path: Path):
    data = some_puzzles(bucket / "puzzles", train=64)
    words = ["max_steps=120", "eval_interval=10", "ema=true", "ray.num_workers=0", f"data_paths=[{data}]"]
    config = run_config(data, tmp_path / "whole", *words)
    whole = plan_run(config)
    claim_folder(whole)
    train_in_process(whole)

    def machine(name: str, *more: str) -> subprocess.Popen[str]:
        """Start the command as a machine with nothing but the package, credentials and the server's address."""
        for folder in ("home", "tmp", "cwd"):
            (tmp_path / name / folder).mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if key.startswith("AWS_") or key == "PATH"}
        places = {"HOME": str(tmp_path / name / "home"), "TMPDIR": str(tmp_path / name / "tmp")}
        command = [sys.executable, "-m", "trm_ray.cli", "train", "--config-name", "deep_supervision_linear"]
        run = laid_over(tiny_overrides(), [*words, f"log_dir={bucket}/run", *more])
        return subprocess.Popen(
            [*command, *run],
            cwd=tmp_path / name / "cwd",
            env={**kept, **places, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    with machine("one") as process:
        while not (bucket / "run" / "checkpoint_step_30" / "manifest.json").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    latest = latest_checkpoint(bucket / "run")
    assert latest is not None
    assert checkpoint_step(latest) < 120
    logged = [row["step"] for row in read_run(bucket / "run").rows]
    assert logged[: checkpoint_step(latest)] == list(range(1, checkpoint_step(latest) + 1))
    with machine("two", "--resume") as process:
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    for name in ("checkpoint_step_120/state.pt", "final_model/state.pt"):
        assert (bucket / "run" / name).read_bytes() == (whole.folder / name).read_bytes()
    assert metric_rows(bucket / "run") == metric_rows(whole.folder)
    lines = (bucket / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 121))
    events = EventAccumulator(f"{bucket}/run").Reload()
    assert [event.step for event in events.Scalars("train/total_loss")] == list(range(1, 121))
    # Nothing of the run lies on either machine, and no credentials lie anywhere.
    assert [path for name in ("one", "two") for path in (tmp_path / name / "cwd").iterdir()] == []
    assert list((tmp_path / "two" / "tmp").glob("trm-ray-*")) == []
    for file in (path for path in (bucket / "run").iterdir() if path.is_file()):
        assert b"not-in-any-file" not in file.read_bytes()


def test_a_run_whose_storage_goes_away_for_good_ends_with_a_copy(bucket: Path, gate: Gate, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("trm_ray.storage.RETRY_DELAYS", ())
    plan = plan_run(run_config(some_puzzles(tmp_path / "puzzles", train=64), bucket / "run"))
    claim_folder(plan)
    gate.shut_after(60_000)  # fewer bytes than the run's first checkpoint has
    with pytest.raises(StorageError, match=r"checkpoint_step_3 \(step 3\) could not be written: .*; a copy is "):
        train_in_process(plan)
    gate.open()
    assert checkpoints(plan.folder) == []


def test_a_stop_file_there_is_seen(bucket: Path, monkeypatch):
    monkeypatch.setattr("trm_ray.training.stopping._LOOK_AT_REMOTE_EVERY_S", 0.05)
    (bucket / STOP_FILE).touch()
    with StopSignals(bucket / STOP_FILE):
        assert not (bucket / STOP_FILE).exists()
        stop = StopFile(bucket / STOP_FILE)
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        ends = time.monotonic() + 20
        while not stop.requested():
            assert time.monotonic() < ends
            time.sleep(0.02)
    assert not (bucket / STOP_FILE).exists()


# ---- commands --------------------------------------------------------------------------------------------


def succeeded(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_commands_read_and_write_urls(bucket: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, run = f"{bucket}/puzzles", f"{bucket}/runs/one"
    told = succeeded("prepare", "sudoku", "--size", "4", "--train", "32", "--test", "8", "--output", data)
    assert f"Wrote {data}: 32 train, 8 test" in told
    words = [*tiny_overrides(), f"data_paths=[{data}]", f"log_dir={run}", "ray.num_workers=0"]
    told = succeeded("train", "--config-name", "deep_supervision_linear", *words)
    assert f"log_dir: {run}" in told
    assert "Eval 6 | Loss:" in told
    assert f"See it: trm-ray dashboard {run} --save" in told
    assert f"Wrote {run}/report/evaluation_test.json" in succeeded("evaluate", run)
    assert f"Wrote {run}/report/dashboard.png" in succeeded("dashboard", run)
    assert f"Wrote {bucket}/all.png" in succeeded("compare", f"{bucket}/runs", "--save", f"{bucket}/all.png")
    (bucket / "puzzle.txt").write_text("1.3.\n.4.1\n2...\n...2\n")
    assert f"Wrote {bucket}/one.gif" in succeeded("predict", run, f"{bucket}/puzzle.txt", "--gif", f"{bucket}/one.gif")
    succeeded("export-checkpoint", run, "--format", "safetensors", "--output", f"{bucket}/one.safetensors")
    succeeded("import-checkpoint", f"{bucket}/one.safetensors", "--output", f"{bucket}/runs/two")
    begun = [*words[:-2], f"log_dir={bucket}/runs/three", "ray.num_workers=0", f"init_from={bucket}/runs/two"]
    assert f"Beginning with the weights of {bucket}/runs/two" in succeeded("train", *begun)
    for name in ("runs/one/report/dashboard.png", "runs/one/report/evaluation_test.png", "all.png"):
        assert (bucket / name).read_bytes().startswith(b"\x89PNG")
    assert (bucket / "one.gif").read_bytes().startswith(b"GIF8")
    assert list(tmp_path.iterdir()) == []


def test_storage_that_does_not_answer_is_told_in_one_line(bucket: Path, gate: Gate):
    gate.shut()
    try:
        result = CliRunner().invoke(app, ["compare", str(bucket)])
    finally:
        gate.open()
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {bucket}: Could not connect to the endpoint URL")
    assert len(result.stderr.splitlines()) == 1


def test_a_run_there_is_refused_resumed_and_replaced_as_one_here(bucket: Path, tmp_path: Path):
    words = [*tiny_overrides(), f"data_paths=[{some_puzzles(tmp_path / 'puzzles', train=64)}]", f"log_dir={bucket}/run"]
    words += ["ray.num_workers=0"]
    succeeded("train", *words)
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 2
    assert f"log_dir={bucket}/run already holds a run; go on with it with --resume" in result.stderr
    assert "nothing to do" in succeeded("train", *words, "--resume")
    remove_tree(as_path(f"{bucket}/run/final_model"))
    succeeded("train", *words, "--resume")
    assert read_run(bucket / "run").finished
    succeeded("train", *laid_over(words, ["max_steps=3"]), "--overwrite")
    assert [folder.name for folder in checkpoints(bucket / "run")] == ["checkpoint_step_3"]
    assert str(bucket).startswith(f"s3://{BUCKET}/")


# ---- home folders ------------------------------------------------------------------------------------------


def test_a_home_folder_stands_for_a_tilde_that_begins_text_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert as_path("~/x") == Path("/home/me/x")
    assert as_path("~") == Path("/home/me")
    assert as_path("./~nobody-here/x") == as_path(Path("~nobody-here/x")) == Path("~nobody-here/x")
    assert as_path("a/~/b~") == Path("a/~/b~")


def test_a_home_that_is_not_there_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"^no user nobody-here is known here; write the whole path, or \./~nobody-he"):
        as_path("~nobody-here/x")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    for text in ("~", "~/x"):
        with pytest.raises(ValueError, match=rf"^{text} names no place, for this user has no home folder; set HOME"):
            as_path(text)
