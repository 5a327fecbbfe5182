"""`trm-ray prepare text`: in this process, or by Ray Data where there is much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from trm_ray.data.format import DatasetInfo
from trm_ray.kinds.text.prepare import RunAll
from trm_ray.kinds.text.prepare import prepare_text as prepare
from trm_ray.kinds.text.read import text_files
from trm_ray.storage import is_remote, tree_bytes

# Below this much text for each, a further process costs more than it saves.
_BYTES_PER_WORKER = 128 << 20


def prepare_text(output: Path, *, inputs: Sequence[Path], workers: int | None = None, **options: Any) -> DatasetInfo:
    """Write a dataset of text, see `kinds.text.prepare.prepare_text`.

    Args:
        workers: processes of Ray Data; 0 = this one alone; None = as many as pay off here.

    Raises:
        ValueError: `workers` is below 0, or see there.
    """
    workers = _paying_off(inputs) if workers is None else workers
    if workers < 0:
        raise ValueError(f"--workers {workers} must be at least 0, which is this process alone")
    with _task_runner(workers, is_remote(output)) as run_all:
        return prepare(output, inputs=inputs, run_all=run_all, **options)


def _paying_off(inputs: Sequence[Path]) -> int:
    files = text_files(inputs)
    num_bytes = sum(tree_bytes(path) if path.is_dir() else path.stat().st_size for path in files)
    wanted = min(len(files), os.cpu_count() or 1, num_bytes // _BYTES_PER_WORKER)
    return wanted if wanted > 1 else 0


def _task_runner(workers: int, here: bool) -> AbstractContextManager[RunAll[Any]]:
    if workers == 0:
        return nullcontext(map)
    from trm_ray.distributed.tasks import task_runner

    return task_runner(workers, here=here)
