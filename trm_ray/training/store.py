"""Saving while training goes on: copies in memory, a thread that writes them, and what stays on the disk."""

from __future__ import annotations

import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trm_ray.replacement import drop_replaced
from trm_ray.storage import StorageError, is_remote, remove_tree, retried
from trm_ray.training.checkpoint import (
    FINAL_MODEL,
    MANIFEST_FILE,
    beside,
    checkpoint_step,
    checkpoints,
    damage,
    read_manifest,
    save_checkpoint,
)

_LOG = logging.getLogger("trm_ray")


class CheckpointStore:
    """Save a run's checkpoints while it trains on: the loop waits for a copy in memory, a thread does the rest.

    One save is under way at a time; another waits for it. So there is at most one copy of the state, in memory of the
    CPU beside the state itself: 1.8 GB for an ARC table of that size (neither the average nor the optimizer has a part
    in it), and no further one while it is written. On a GPU the copy is pinned and the step goes on while it is made;
    torch rounds pinned memory up to a power of two and keeps it for the next save.

    Use it as a context, which waits for the last save at its end.

    Args:
        keep_last: how many of the latest checkpoints stay; None keeps all.
        keep_best: how many of those with the lowest score stay beside them.
        log_first: called before a checkpoint is written, which nothing may outlive that it has not logged.
        sleep: pauses between attempts to write.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        keep_last: int | None = None,
        keep_best: int = 0,
        log_first: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._run_dir, self._keep_last, self._keep_best = run_dir, keep_last, keep_best
        self._log_first, self._sleep = log_first, sleep
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[float] | None = None
        self._numbers: dict[str, float] = {}
        self._core_s = 0.0
        self._stands = False

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):  # a second Ctrl-C waits for nothing
            self._thread.shutdown(wait=False)
            return
        try:
            self.wait()
        except Exception as own:
            if error is None:
                raise
            _LOG.error("%s", own)  # what ended the run comes first
        finally:
            self._thread.shutdown()

    def save(self, name: str, state: Mapping[str, Any], *more: Any) -> None:
        """Begin to save a state as the run's folder `name`; the state may change as soon as this returns.

        Args:
            more: what else `save_checkpoint` takes.

        Raises:
            StorageError: the save before this one failed.
        """
        self.wait()
        with self._stalling():
            copy = copy_to_host(state)
            copied = torch.cuda.current_stream().record_event() if torch.cuda.is_initialized() else None
            self._saving = self._thread.submit(self._save, name, copy, copied, *more)

    def wait(self) -> None:
        """Wait until what was saved is there.

        Raises:
            StorageError: it could not be written.
        """
        if self._saving is not None:
            with self._stalling():
                saving, self._saving = self._saving, None
                self._numbers["checkpoint/write_s"] = saving.result()

    def numbers(self) -> dict[str, float]:
        """Tell how long saving held the loop up and how long writing took, as far as not told before.

        Raises:
            StorageError: a save failed.
        """
        if self._saving is not None and self._saving.done():
            self.wait()
        numbers, self._numbers = self._numbers, {}
        return numbers

    def core_seconds(self) -> float:
        """CPU seconds of the thread that writes, in the saves that have ended."""
        return self._core_s

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        stalled = 1000 * (time.perf_counter() - began)
        self._numbers["checkpoint/stall_ms"] = self._numbers.get("checkpoint/stall_ms", 0.0) + stalled

    def _save(self, name: str, state: Any, copied: torch.cuda.Event | None, *more: Any) -> float:
        began = time.perf_counter()
        if copied is not None:
            copied.synchronize()
        folder = self._write(self._run_dir / name, state, *more)
        self._drop_replaced()
        if self._keep_last is not None and name != FINAL_MODEL:
            try:
                self._thin_out(folder, self._keep_last)
            except OSError as error:
                _LOG.warning("checkpoints in %s could not be thinned out (%s)", self._run_dir, error)
        self._core_s = time.thread_time()
        return time.perf_counter() - began

    def _drop_replaced(self) -> None:
        """Let an old run go, which this one replaces, once this one has saved something."""
        if self._stands:
            return
        self._stands = True
        try:
            drop_replaced(self._run_dir)
        except OSError as error:
            _LOG.warning("the run that was in %s before could not be removed (%s)", self._run_dir, error)

    def _write(self, folder: Path, *content: Any) -> Path:
        def attempt() -> Path:
            self._log_first()
            return save_checkpoint(folder, *content)

        try:
            return retried(attempt, folder, self._sleep)
        except OSError as error:
            raise StorageError(_give_up(folder, error, *content)) from error

    def _thin_out(self, saved: Path, keep_last: int) -> None:
        """Remove what need not stay; steps after the saved one are an earlier attempt's and will be written anew."""
        past = [folder for folder in checkpoints(self._run_dir) if checkpoint_step(folder) <= checkpoint_step(saved)]
        good = [folder for folder in past if damage(folder, digests=False) is None]
        stay = {saved, *good[:keep_last], *_best(good, self._keep_best)}
        for folder in (folder for folder in past if folder not in stay):
            try:
                _remove(folder)
            except OSError as error:
                _LOG.warning("%s could not be removed (%s)", folder, error)


def _remove(folder: Path) -> None:
    """Remove a checkpoint so that a kill meanwhile leaves no half one."""
    if is_remote(folder):
        remove_tree(folder, MANIFEST_FILE)
        return
    away = beside(folder, "old")
    os.rename(folder, away)
    remove_tree(away)


def _best(folders: list[Path], number: int) -> list[Path]:
    manifests = ((folder, read_manifest(folder)) for folder in folders)
    scores = {folder: found.score for folder, found in manifests if found is not None and found.score is not None}
    return sorted(scores, key=lambda folder: scores[folder])[:number]


def _give_up(folder: Path, error: OSError, state: Mapping[str, Any], *more: Any) -> str:
    """Write a copy into a temporary folder of this machine, and tell where it is."""
    fault = f"{folder} (step {state.get('step')}) could not be written: {error}"
    try:
        copy = _save_elsewhere(folder.name, state, *more)
    except OSError as again:
        return f"{fault}; nor could a copy on {platform.node()}: {again}; the checkpoints before it stand"
    return f"{fault}; a copy is {copy} on {platform.node()}: move it there once the storage is back, then use --resume"


def _save_elsewhere(name: str, *content: Any) -> Path:
    parent = Path(tempfile.mkdtemp(prefix="trm-ray-"))
    try:
        return save_checkpoint(parent / name, *content)
    except OSError:
        parent.rmdir()
        raise


def copy_to_host(value: Any) -> Any:
    """Copy every tensor in nested containers to memory of its own on the CPU; nothing waits for a GPU.

    Containers are new and equal texts are one object, so that equal states become equal bytes: pickle refers to an
    object that it has met instead of writing it again.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Tensor):
        if value.device.type != "cuda":
            return value.detach().clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        return {copy_to_host(key): copy_to_host(item) for key, item in value.items()}
    return type(value)(map(copy_to_host, value)) if isinstance(value, list | tuple) else value
