"""Results on their way from a cluster: which files go, and that they arrive as they were or not at all."""

import base64
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from run_helpers import ROOT

from trm_ray.distributed.results import copy_results, pack, unpack
from trm_ray.storage import as_path

MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with what runs and sweeps hold."""
    folder = tmp_path / "run"
    files = {
        "config.yaml": b"seed: 0\n",
        "metrics.jsonl": b'{"step": 1}\n' * 1000,
        "report/comparison.png": bytes(range(256)),
        "report/empty.csv": b"",
        "checkpoint_step_10/state.pt": b"weights",
        "final_model/state.pt": b"weights",
        ".ray/notes.json": b"{}",
        ".tune/trial/notes.json": b"{}",
        "stop_requested": b"",
        "linear-seed0/metrics.jsonl": b"{}\n",
        "linear-seed0/checkpoint_step_5/state.pt": b"weights",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


LIGHT = {"config.yaml", "metrics.jsonl", "report/comparison.png", "report/empty.csv", "linear-seed0/metrics.jsonl"}
WEIGHTS = {"checkpoint_step_10/state.pt", "final_model/state.pt", "linear-seed0/checkpoint_step_5/state.pt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("checkpoints", "expected"), [(False, LIGHT), (True, LIGHT | WEIGHTS)])
def test_a_copy_and_a_text_of_results_arrive_as_the_same_files(
    run: Path, tmp_path: Path, checkpoints: bool, expected: set[str]
):
    assert copy_results(run, tmp_path / "copied", checkpoints) == len(expected)
    assert unpack(pack(run, MIB, checkpoints), tmp_path / "unpacked") == len(expected)
    original = {name: content for name, content in contents(run).items() if name in expected}
    assert contents(tmp_path / "copied") == contents(tmp_path / "unpacked") == original


def test_results_on_object_storage_arrive_as_well(run: Path, tmp_path: Path):
    remote = as_path(f"memory://bucket{run}")
    for name, content in contents(run).items():
        (remote / name).write_bytes(content)
    assert copy_results(remote, tmp_path / "copied", checkpoints=True) == len(LIGHT | WEIGHTS)
    assert unpack(pack(remote, MIB), tmp_path / "unpacked") == len(LIGHT)
    assert contents(tmp_path / "copied") == {name: contents(run)[name] for name in LIGHT | WEIGHTS}


def test_a_picture_alone_is_a_result_too(run: Path, tmp_path: Path):
    assert unpack(pack(run / "report" / "comparison.png", MIB), tmp_path / "here") == 1
    assert contents(tmp_path / "here") == {"comparison.png": bytes(range(256))}


def test_other_lines_of_a_log_do_not_matter(run: Path, tmp_path: Path):
    log = "\n".join(["Running entrypoint", pack(run, MIB), "a warning"])
    assert unpack(log, tmp_path / "here") == len(LIGHT)


def test_results_beyond_the_limit_are_refused_with_a_way_out(run: Path):
    (run / "random.bin").write_bytes(os.urandom(2 * MIB))
    with pytest.raises(ValueError, match=r"more than 1 MiB, too much for the job server; mount that storage here"):
        pack(run, MIB)


def test_a_log_that_is_cut_or_damaged_is_refused(run: Path, tmp_path: Path):
    line = pack(run, MIB)
    for torn in ("", line[: len(line) // 2], line[:-400], "another line"):
        with pytest.raises(ValueError, match=r"did not arrive whole \(.+\); fetch them again"):
            unpack(torn, tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_file_is_refused_by_its_checksum(tmp_path: Path, method: int):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as files:
        files.writestr("config.yaml", "seed: 0\n")
    content = bytearray(archive.getvalue())
    content[len("config.yaml") + 31] ^= 1  # the second byte of what the file holds
    with pytest.raises(ValueError, match="did not arrive whole"):
        unpack(as_line(bytes(content)), tmp_path / "here")
    assert not (tmp_path / "here" / "config.yaml").exists()


def as_line(archive: bytes) -> str:
    return f"trm-ray-results {base64.b64encode(archive).decode()}"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr(name, "harm")
    with pytest.raises(ValueError, match="must be a name below a folder"):
        unpack(as_line(archive.getvalue()), tmp_path / "here")


def test_the_small_job_prints_results_or_says_why_not(run: Path, tmp_path: Path):
    command = [sys.executable, "-m", "trm_ray.distributed.results", "--limit", str(MIB)]
    printed = subprocess.run([*command, str(run)], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert unpack(printed, tmp_path / "here") == len(LIGHT)
    failed = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True, cwd=ROOT)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {tmp_path / 'nowhere'} does not exist where the job ran")


def test_pipes_and_dead_links_among_results_are_passed_over(run: Path, tmp_path: Path):
    os.mkfifo(run / "report" / "pipe")
    (run / "gone").symlink_to(tmp_path / "nowhere")
    assert copy_results(run, tmp_path / "copied") == len(LIGHT)
