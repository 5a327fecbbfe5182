"""Checkpoints on disk: one folder each, written under a temporary name and renamed, read with `weights_only`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 2
STATE_FILE = "state.pt"
# Which puzzle each row of the puzzle embedding belongs to. Without it no training on the same puzzles can go on.
IDENTIFIERS_FILE = "identifiers.json"
FINAL_MODEL = "final_model"


def checkpoint_name(step: int) -> str:
    """Name a checkpoint's folder."""
    return f"checkpoint_step_{step}"


def checkpoint_step(folder: Path) -> int:
    """Read the step off a checkpoint's name."""
    return int(folder.name.rpartition("_")[2])


def save_checkpoint(folder: Path, state: dict[str, Any], identifiers: bytes | None = None) -> Path:
    """Write a checkpoint so that `folder` holds either all of it or does not exist.

    Args:
        state: tensors and plain containers.
        identifiers: content of the dataset's identifiers.json.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    if identifiers is not None:
        (temporary / IDENTIFIERS_FILE).write_bytes(identifiers)
    with open(temporary / STATE_FILE, "wb") as file:
        torch.save({"format_version": FORMAT_VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if folder.exists():  # the same step again, after a resume: a rename cannot replace a full folder
        shutil.rmtree(folder)
    os.rename(temporary, folder)
    return folder


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint's state.

    Raises:
        ValueError: the folder holds none, it is damaged, or its format is another version's.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {STATE_FILE}; name a checkpoint_step_N or {FINAL_MODEL} folder of a run")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # damaged and hostile files raise all sorts
        told = f"{path} cannot be read ({type(error).__name__}); remove {folder} to go on from an earlier one"
        raise ValueError(told) from error
    if state.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version={state.get('format_version')}, this trm-ray reads {FORMAT_VERSION}"
        )
    return state


def load_identifiers(folder: Path) -> bytes | None:
    """Read the identifiers.json that lies with a checkpoint, if there is one."""
    path = folder / IDENTIFIERS_FILE
    return path.read_bytes() if path.is_file() else None


def find_checkpoint(path: Path) -> Path:
    """Find what a user means by a run: its final model, else its latest checkpoint; a checkpoint's folder itself.

    Raises:
        ValueError: there is none.
    """
    if (path / STATE_FILE).is_file():
        return path
    final = path / FINAL_MODEL
    found = final if (final / STATE_FILE).is_file() else latest_checkpoint(path)
    if found is None:
        there = "holds no checkpoint yet" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {there}; name a run's folder after its first evaluation, or a checkpoint's folder")
    return found


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Find the checkpoint of the highest step in a run's folder."""
    named = (path for path in run_dir.glob("checkpoint_step_*") if re.fullmatch(r"checkpoint_step_\d+", path.name))
    return max((path for path in named if (path / STATE_FILE).is_file()), key=checkpoint_step, default=None)
