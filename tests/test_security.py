"""What SECURITY.md promises: nothing foreign is executed, nothing is open to the network, no secret is written down."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import ROOT, some_puzzles, tiny_overrides

SOURCES = [*sorted((ROOT / "trm_ray").rglob("*.py")), *sorted((ROOT / "jobs").rglob("*.py"))]
SECRETS = {"AWS_SECRET_ACCESS_KEY": "sesame-1f9c", "RAY_AUTH_TOKEN": "sesame-7b2e", "WANDB_API_KEY": "sesame-44d0"}


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call of the package: where it stands, itself, and what is called, with dots."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node, ast.unparse(node.func)


def test_weights_are_read_without_code():
    loads = {place: call for place, call, name in calls() if name == "torch.load"}
    assert loads
    unsafe = [
        place
        for place, call in loads.items()
        if not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    ]
    assert unsafe == []


def test_nothing_that_could_run_foreign_code_is_called():
    executing = {
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
        "np.load",
        "numpy.load",
        "eval",
        "exec",
        "os.system",
    }
    executing |= {"torch.jit.load", "torch.package.PackageImporter", "shutil.unpack_archive", "tarfile.open"}
    assert [place for place, _, name in calls() if name in executing] == []
    shells = [place for place, call, _ in calls() if any(keyword.arg == "shell" for keyword in call.keywords)]
    assert shells == []


def test_no_pickle_is_imported_but_between_a_process_and_those_that_it_starts():
    pickles = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile"}
    own_processes = ROOT / "trm_ray" / "kinds" / "chunk_workers.py"  # by pipes that nobody else writes into
    assert own_processes in SOURCES
    for path in set(SOURCES) - {own_processes}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not pickles & {name.partition(".")[0] for name in names}, path


def files_with_secrets(folder: Path) -> list[str]:
    """Files below a folder that hold one of the secrets, packed or not."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    assert found
    return [str(path) for path in found if any(secret.encode() in path.read_bytes() for secret in SECRETS.values())]


def test_no_secret_of_the_environment_reaches_a_run_s_folder_or_its_output(tmp_path: Path):
    data = some_puzzles(tmp_path / "data", train=16, test=3)
    words = [*tiny_overrides(max_steps=2), f"data_paths=[{data}]", f"log_dir={tmp_path / 'run'}", "ray.num_workers=0"]
    command = [sys.executable, "-m", "trm_ray.cli", "train", *words, "--verbose"]
    ended = subprocess.run(command, env={**os.environ, **SECRETS}, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert not any(secret in ended.stdout + ended.stderr for secret in SECRETS.values())
    assert (tmp_path / "run" / "final_model").is_dir()
    assert files_with_secrets(tmp_path / "run") == []


OPENED = """
import json, os, sys
from trm_ray.distributed.cluster import ray_cluster
import ray
with ray_cluster(None):
    from ray._private.worker import _global_node
    print("dashboard", ray.get_runtime_context().gcs_address, _global_node.address_info["webui_url"], flush=True)
    print("mode", os.environ["RAY_AUTH_MODE"], flush=True)
    import urllib.request, urllib.error
    try:
        urllib.request.urlopen("http://" + _global_node.address_info["webui_url"] + "/api/jobs/", timeout=20)
        print("jobs open", flush=True)
    except urllib.error.HTTPError as error:
        print("jobs", error.code, flush=True)
"""


@pytest.mark.ray
def test_a_cluster_of_our_own_listens_here_alone_and_asks_for_a_token_that_only_its_owner_can_read(tmp_path: Path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", OPENED], env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    told = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert [address.partition(":")[0] for address in told["dashboard"].split()] == ["127.0.0.1", "127.0.0.1"]
    assert told["mode"] == "token"
    assert told["jobs"] in ("401", "403")
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


def test_a_token_that_others_can_read_is_closed_to_them(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("x" * 64)
    token.chmod(0o644)
    program = "from trm_ray.distributed.surroundings import own_cluster\nwith own_cluster(): pass"
    env = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}
    env.pop("RAY_AUTH_TOKEN", None)
    subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "x" * 64
