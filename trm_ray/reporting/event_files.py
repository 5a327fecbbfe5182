"""TensorBoard's event files read back: the runs of trainers that log the same tags and nothing else of ours."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trm_ray.storage import is_remote

USAGE = "usage/"  # before the tags that our own files (`board`) have last
PATTERN = "events.out.tfevents.*"
# `linear-seed3`, `linear_s3`, `seed3`: how folders name a seed.
_SEED = re.compile(r"(?:(?P<name>.+?)[-_.])?(?:seed|s)[-_=]?(?P<seed>\d+)", re.IGNORECASE)


def has_event_files(folder: Path) -> bool:
    """Tell whether event files lie in `folder` itself."""
    return folder.is_dir() and any(True for _ in folder.glob(PATTERN))


def read_event_rows(folder: Path) -> list[dict[str, float]]:
    """Read the scalars of a folder's event files, a row a step in the order of the steps.

    Of two values of one step the later counts; steps that a restarted run takes again are dropped, as TensorBoard does.
    A file that was cut short is read up to there. `wall_s` counts from the first event.
    """
    rows: dict[int, dict[str, float]] = {}
    began: float | None = None
    for event in _events(folder):
        began = event.wall_time if began is None else began
        if event.HasField("session_log") and event.session_log.status == event.session_log.START:
            rows = {step: row for step, row in rows.items() if step < event.step}
        for tag, value in _scalars(event):
            row = rows.setdefault(int(event.step), {"step": int(event.step)})
            row.update({"wall_s": event.wall_time - began, tag.removeprefix(USAGE): value})
    return [rows[step] for step in sorted(rows)]


def named_by_folder(folder: Path) -> tuple[str, int]:
    """Take scenario and seed from a folder's name; from `linear/seed3` too.

    Returns:
        Seed 0 where the name holds none.
    """
    folder = folder.resolve()
    found = _SEED.fullmatch(folder.name)
    if found is None:
        return folder.name, 0
    return found["name"] or folder.parent.name, int(found["seed"])


def _events(folder: Path) -> Iterator[Any]:
    # Costs about a second, and only a foreign run needs it.
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    files = sorted(folder.glob(PATTERN), key=lambda path: path.name)
    with tempfile.TemporaryDirectory(prefix="trm-ray-events-") as scratch:
        for path in files:
            here = path
            if is_remote(path):
                here = Path(scratch) / path.name
                here.write_bytes(path.read_bytes())
            yield from LegacyEventFileLoader(str(here)).Load()


def _scalars(event: Any) -> Iterator[tuple[str, float]]:
    """Give an event's numbers by tag: as every writer's, and as tensors of one value, which TensorFlow 2 writes."""
    from tensorboard.util import tensor_util

    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, float(value.simple_value)
        elif value.HasField("tensor") and value.metadata.plugin_data.plugin_name in ("", "scalars"):
            array = tensor_util.make_ndarray(value.tensor)
            if array.size == 1 and array.dtype.kind in "fiu":
                yield value.tag, float(array.reshape(()))
