"""Checkpoints on disk: one folder each, whole or not there, with the marks that tell whether it still is as written."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from trm_ray.ownership import lives
from trm_ray.storage import drop_copy, is_remote, is_whole, local_file, remove_tree, sha256, version

FORMAT_VERSION = 2
STATE_FILE = "state.pt"
# Which puzzle each row of the puzzle embedding belongs to. Without it no training on the same puzzles can go on.
IDENTIFIERS_FILE = "identifiers.json"
# How a text is spelt, unless its tokens are bytes.
TOKENIZER_FILE = "tokenizer.json"
# What differs between two runs of the same steps; without it their states are the same file, byte for byte.
RUN_FILE = "run.json"
_RUN_KEYS = ("config", "wall_s", "core_seconds")
# Size and SHA-256 of the other files. Written last; checkpoints of earlier versions have none.
MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
FINAL_MODEL = "final_model"

_LOG = logging.getLogger("trm_ray")
_LEFTOVER = re.compile(r"\.(?:checkpoint_step_\d+|final_model)\.(\d{1,7})\.(?:tmp|old)")
_NAME = re.compile(r"checkpoint_step_(0|[1-9]\d{0,14})")
_DAY_S = 86400


def checkpoint_name(step: int) -> str:
    """Name a checkpoint's folder."""
    return f"checkpoint_step_{step}"


def name_number(folder: Path) -> int:
    """Read the number off the name of a checkpoint's folder, which mostly is its step."""
    return int(folder.name.rpartition("_")[2])


def checkpoint_step(folder: Path) -> int:
    """Tell the step of a checkpoint: what its manifest says, whatever its folder is called; without one, the name."""
    try:
        manifest = read_manifest(folder)
    except ValueError:  # damaged, which who reads it tells
        manifest = None
    return name_number(folder) if manifest is None or manifest.step is None else manifest.step


# ---- writing ---------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    identifiers: bytes | None = None,
    score: float | None = None,
    tokenizer: bytes | None = None,
) -> Path:
    """Write a checkpoint so that `folder` holds either all of it or what it held before.

    Everything is on the disk, not only on its way there, when this returns. On object storage, which knows no rename,
    files go to their place one by one: the manifest, which is the last, makes a checkpoint of them.

    Args:
        state: tensors and plain containers.
        identifiers: content of the dataset's identifiers.json.
        score: the evaluation's loss, which `keep_best` goes by.
        tokenizer: content of the dataset's tokenizer.json.

    Raises:
        OSError: the storage fails; nothing is left behind, but on object storage, where it is no checkpoint.
    """
    beside_state = {IDENTIFIERS_FILE: identifiers, TOKENIZER_FILE: tokenizer}
    if is_remote(folder):
        remove_tree(folder, MANIFEST_FILE)
        _fill(folder, state, score, beside_state)
        return folder
    temporary = beside(folder, "tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _fill(temporary, state, score, beside_state)
        _sync_folder(temporary)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def beside(folder: Path, kind: str) -> Path:
    """Name what this process writes or removes beside a checkpoint, so that `remove_leftovers` finds it."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.{kind}")


def _fill(folder: Path, state: Mapping[str, Any], score: float | None, others: Mapping[str, bytes | None]) -> None:
    folder.mkdir(parents=True)
    files: dict[str, Any] = {}
    for name, content in others.items():
        if content is not None:
            files[name] = _write(folder / name, functools.partial(_HashingFile.write, data=content))
    of_run = {key: state[key] for key in _RUN_KEYS if key in state}
    files[RUN_FILE] = _write(folder / RUN_FILE, lambda file: file.write(json.dumps(of_run, indent=2).encode()))
    state = {"format_version": FORMAT_VERSION, **{key: value for key, value in state.items() if key not in of_run}}
    files[STATE_FILE] = _write(folder / STATE_FILE, lambda file: torch.save(state, file))  # type: ignore[arg-type]
    score = float(score) if score is not None and math.isfinite(score) else None
    manifest = {"format_version": MANIFEST_VERSION, "files": files, "step": state.get("step"), "score": score}
    _write(folder / MANIFEST_FILE, lambda file: file.write(json.dumps(manifest, indent=2).encode()))


class _HashingFile:
    """Hash what is written on its way to a file, so that nothing is read twice.

    After an error of the storage the rest is swallowed: torch's writer would hide the error behind one of its own.
    """

    def __init__(self, file: BinaryIO):
        self._file, self.sha256, self.num_bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write and hash."""
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        self.sha256.update(data)
        self.num_bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Leave it to the caller, who syncs."""


def _write(path: Path, write: Callable[[_HashingFile], object]) -> dict[str, Any]:
    """Write a file, and tell what it must hold."""
    with path.open("wb") as raw:
        file = _HashingFile(raw)
        write(file)
        if file.error is not None:
            raise file.error
        if not is_remote(path):
            raw.flush()
            os.fsync(raw.fileno())
    return {"sha256": file.sha256.hexdigest(), "bytes": file.num_bytes}


def _put_in_place(temporary: Path, folder: Path) -> None:
    old = beside(folder, "old")
    if folder.exists():  # the same step again, after a resume: a rename cannot replace a full folder
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network storage syncs files alone
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what killed processes left half written or half removed in a run's folder.

    What a living process of this machine owns stays for a day: another machine's processes cannot be seen from here,
    but no two of them may train in one folder anyway.
    """
    if is_remote(run_dir):
        for folder in [*_named_checkpoints(run_dir), run_dir / FINAL_MODEL]:
            if not is_whole(folder, MANIFEST_FILE):
                remove_tree(folder)
        return
    for path in run_dir.glob(".*"):
        if match := _LEFTOVER.fullmatch(path.name):
            # A process that begins a run is saving nothing, so its own number is a dead one's.
            is_owned = int(match[1]) != os.getpid() and lives(int(match[1]))
            if not is_owned or time.time() - path.stat().st_mtime > _DAY_S:
                shutil.rmtree(path, ignore_errors=True)


# ---- is it still as written? -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What manifest.json tells.

    files: SHA-256 and size in bytes of each. step: None where the weights are an imported file's and nobody knows.
    score: the evaluation's loss, if there was one.
    """

    files: Mapping[str, tuple[str, int]]
    step: int | None
    score: float | None


def read_manifest(folder: Path) -> Manifest | None:
    """Read a checkpoint's manifest.json, None if it has none.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        version, step, score = content["format_version"], content["step"], content["score"]
        files = {name: (str(mark["sha256"]), int(mark["bytes"])) for name, mark in content["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        raise ValueError(f"{MANIFEST_FILE} is no manifest") from None
    if version != MANIFEST_VERSION:
        raise ValueError(f"{MANIFEST_FILE} has format_version={version!r}, this trm-ray reads {MANIFEST_VERSION}")
    known = (STATE_FILE, RUN_FILE, IDENTIFIERS_FILE, TOKENIZER_FILE)
    if STATE_FILE not in files or not files.keys() <= {*known}:
        raise ValueError(f"{MANIFEST_FILE} names other files than {', '.join(known)}")
    return Manifest(files, step if type(step) is int else None, score if isinstance(score, float) else None)


def damage(folder: Path, *, digests: bool) -> str | None:
    """Say what is wrong with a checkpoint; None if nothing is.

    Args:
        digests: read the files and compare their SHA-256 too, not only their sizes. A second look at the same file by
            the same process costs nothing.
    """
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        return str(error)
    if manifest is None and is_remote(folder):
        return f"{MANIFEST_FILE} is missing"
    if manifest is None:
        return _damage_of_archive(folder / STATE_FILE, digests=digests)
    problems = (_damage_of_file(folder / name, *mark, digests=digests) for name, mark in manifest.files.items())
    return next(filter(None, problems), None)


def _damage_of_file(path: Path, digest: str, num_bytes: int, *, digests: bool) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != num_bytes:
        return f"{path.name} has {size} of {num_bytes} bytes"
    if digests and _digest(path, version(path)) != digest:
        return f"{path.name} is not what was written (another SHA-256)"
    return None


def _damage_of_archive(path: Path, *, digests: bool) -> str | None:
    """Look at a state without a manifest: a cut one lacks its table of contents, whose checksums tell the rest."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if digests else None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError, struct.error, zlib.error):
        return f"{path.name} is cut short or no checkpoint"
    return None if bad is None else f"{path.name} is not what was written (another checksum)"


@functools.lru_cache(maxsize=64)
def _digest(path: Path, version: tuple[Any, ...]) -> str:
    """Hash a file; its version tells the cache whether it is the one that was hashed before."""
    # Who looks at a state is about to load it. The files beside it are small.
    return sha256(local_file(path) if path.name == STATE_FILE else path)


# ---- reading ---------------------------------------------------------------------------------------------


def load_checkpoint(folder: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint's state, after a look at its checksums.

    Args:
        mapped: map tensors into memory, which then holds what is looked at. Writing to them leaves the file alone.

    Raises:
        ValueError: the folder holds none, it is damaged, or its format is another version's.
    """
    path = folder / STATE_FILE
    if not path.is_file() and not (folder / MANIFEST_FILE).is_file():
        raise ValueError(f"{folder} holds no {STATE_FILE}; name a checkpoint_step_N or {FINAL_MODEL} folder of a run")
    _refuse_damaged(folder, digests=True)
    readable = local_file(path)
    try:
        state: dict[str, Any] = torch.load(readable, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged and hostile files raise all sorts
        rule = f"cannot be read ({type(error).__name__}); remove {folder} to go on from an earlier one"
        raise ValueError(f"{path} {rule}") from error
    if readable != path:
        drop_copy()  # what is mapped stays readable
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        version = state.get("format_version") if isinstance(state, dict) else None
        raise ValueError(f"{path} has format_version={version}, this trm-ray reads {FORMAT_VERSION}")
    return state | _read_of_run(folder / RUN_FILE)


def _read_of_run(path: Path) -> dict[str, Any]:
    if not path.is_file():  # the weights of an imported file, or a checkpoint of an earlier version
        return {}
    try:
        content = json.loads(path.read_bytes())
        return {key: content[key] for key in _RUN_KEYS if key in content}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not what trm-ray writes; remove {path.parent}") from error


def _refuse_damaged(folder: Path, *, digests: bool) -> None:
    if (problem := damage(folder, digests=digests)) is not None:
        way_out = "train --resume writes it anew" if folder.name == FINAL_MODEL else "go on from an earlier one"
        raise ValueError(f"{folder} is damaged: {problem}; remove {folder}, then {way_out}")


def load_run_config(folder: Path) -> dict[str, Any] | None:
    """Read the config of the run that saved a checkpoint, as plain values; None if nothing tells."""
    return _read_of_run(folder / RUN_FILE).get("config")


def load_identifiers(folder: Path) -> bytes | None:
    """Read the identifiers.json that lies with a checkpoint, if there is one."""
    path = folder / IDENTIFIERS_FILE
    return path.read_bytes() if path.is_file() else None


def load_tokenizer(folder: Path) -> bytes | None:
    """Read the tokenizer.json that lies with a checkpoint, if there is one."""
    path = folder / TOKENIZER_FILE
    return path.read_bytes() if path.is_file() else None


def find_checkpoint(path: Path) -> Path:
    """Find what a user means by a run: its final model, else its latest checkpoint; a checkpoint's folder itself.

    The final model of a run that has since been trained further is passed over.

    Raises:
        ValueError: there is none, or the final model is damaged.
    """
    if (path / STATE_FILE).is_file() or (path / MANIFEST_FILE).is_file():
        return path
    final, found = path / FINAL_MODEL, latest_checkpoint(path)
    if is_whole(final, MANIFEST_FILE):
        _refuse_damaged(final, digests=False)
        manifest = read_manifest(final)
        trained_to = None if manifest is None else manifest.step
        if found is None or trained_to is None or checkpoint_step(found) <= trained_to:
            return final
    if found is None:
        there = "holds no checkpoint yet" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {there}; name the folder of a run that has saved one, or a checkpoint's folder")
    return found


def latest_checkpoint(run_dir: Path, *, verified: bool = False) -> Path | None:
    """Find the checkpoint of the highest step in a run's folder, passing over damaged ones with a word.

    Args:
        verified: compare checksums too, as whoever goes on from it must; else the sizes of the files.
    """
    for folder in checkpoints(run_dir):
        problem = damage(folder, digests=verified)
        if problem is None:
            return folder
        _tell_once(f"{folder} is damaged: {problem}; it is passed over for the one before it")
    return None


def final_step(run_dir: Path) -> int | None:
    """Read the step of a run's final model; None if there is none or it is damaged."""
    folder = run_dir / FINAL_MODEL
    if damage(folder, digests=True) is not None:
        return None
    manifest = read_manifest(folder)
    return load_checkpoint(folder)["step"] if manifest is None else manifest.step


def has_checkpoint(run_dir: Path) -> bool:
    """Tell whether a run's folder holds weights that can be read: a checkpoint, or a final model."""
    return latest_checkpoint(run_dir) is not None or damage(run_dir / FINAL_MODEL, digests=False) is None


def checkpoints(run_dir: Path) -> list[Path]:
    """List a run's checkpoints, damaged ones too, the highest step first; of two of a step the one of that name."""
    whole = [folder for folder in _named_checkpoints(run_dir) if is_whole(folder, MANIFEST_FILE)]
    steps = {folder: checkpoint_step(folder) for folder in whole}

    def rank(folder: Path) -> tuple[int, bool, int]:
        return steps[folder], name_number(folder) == steps[folder], name_number(folder)

    return sorted(whole, key=rank, reverse=True)


def _named_checkpoints(run_dir: Path) -> list[Path]:
    return [path for path in run_dir.glob("checkpoint_step_*") if _NAME.fullmatch(path.name)]


@functools.cache
def _tell_once(text: str) -> None:
    _LOG.warning(text)
