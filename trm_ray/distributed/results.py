"""What a job leaves, carried to another machine: the files of a run, a sweep or a report, copied or packed into a line.

Checkpoints stay behind unless they are asked for: they are most of the bytes, and pictures and tables need none.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import io
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from trm_ray.storage import as_path

# Requests to stop mean nothing elsewhere, nor do Ray's own notes, which are hidden.
_NEVER = ("stop_requested", "resize_requested", ".")
_WEIGHTS = ("checkpoint_step_", "final_model")
_LINE = "trm-ray-results "


def result_files(source: Path, checkpoints: bool = False) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder, or a file alone, each with its name below it.

    Args:
        source: a folder of this machine or of object storage.
        checkpoints: whether weights are wanted too.
    """
    if source.is_file():
        yield source.name, source
        return
    for path in sorted(source.iterdir()):
        if path.name.startswith(_NEVER) or (path.name.startswith(_WEIGHTS) and not checkpoints):
            continue
        if path.is_file():
            yield path.name, path
        elif path.is_dir():  # a pipe and a dead link are no results
            yield from ((f"{path.name}/{name}", inner) for name, inner in result_files(path, checkpoints))


def copy_results(source: Path, target: Path, checkpoints: bool = False) -> int:
    """Copy results into the folder `target` and return how many files there were.

    Args:
        source: where they lie, as `result_files` takes it.
    """
    return _write(target, ((name, path.read_bytes()) for name, path in result_files(source, checkpoints)))


def pack(source: Path, limit: int, checkpoints: bool = False) -> str:
    """Write results as one line of text: a ZIP archive in base64.

    A job's log is all that the job server hands out of what a job has made, and it is text.

    Args:
        limit: most bytes of the archive.

    Raises:
        ValueError: there are more, or there is nothing.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist where the job ran; has the job begun to write?")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for name, path in result_files(source, checkpoints):
            files.writestr(name, path.read_bytes())
            if archive.tell() > limit:
                raise ValueError(
                    f"the results in {source} have more than {limit >> 20} MiB, too much for the job server; mount "
                    "that storage here, or leave --checkpoints out"
                )
    return _LINE + base64.b64encode(archive.getvalue()).decode()


def unpack(log: str, target: Path) -> int:
    """Write what `pack` put into a log, between whatever else stands there, as files below `target`; count them.

    Raises:
        ValueError: they are damaged or cut off, or a name leads out of `target`; the files before it are there.
    """
    packed = next((line.removeprefix(_LINE) for line in log.splitlines() if line.startswith(_LINE)), "")
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed))) as files:
            return _write(target, ((name, files.read(name)) for name in files.namelist()))
    except (binascii.Error, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # what zipfile raises
        raise ValueError(f"the results did not arrive whole ({error}); fetch them again") from error


def _write(target: Path, files: Iterable[tuple[str, bytes]]) -> int:
    num_files = 0
    for name, content in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name} must be a name below a folder; the results come from somebody who means harm")
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        num_files += 1
    return num_files


def main() -> None:
    """Print results as text: what a small job on the cluster does for `trm-ray jobs fetch`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=as_path)
    parser.add_argument("--limit", type=int, required=True, help="most bytes")
    parser.add_argument("--checkpoints", action="store_true")
    given = parser.parse_args()
    try:
        print(pack(given.source, given.limit, given.checkpoints))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
