"""What a job leaves, carried to another machine: the files of a run, a sweep or a report, copied or written as text.

Checkpoints stay behind unless they are asked for: they are most of the bytes, and pictures and tables need none.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from trm_ray.storage import as_path

# Requests to stop mean nothing elsewhere, nor do Ray's own notes, which are hidden.
_NEVER = ("stop_requested", "resize_requested", ".")
_WEIGHTS = ("checkpoint_step_", "final_model")
# Begin the lines that `pack` writes, between whatever else a job's log holds.
_FILE, _END = "trm-ray-file ", "trm-ray-end "


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


def pack(source: Path, limit: int, checkpoints: bool = False) -> Iterator[str]:
    """Write results as lines of text, each with its checksum.

    Args:
        limit: most bytes in all, compressed.

    Raises:
        ValueError: there are more, or there is nothing.
    """
    if not source.exists():
        raise ValueError(f"{source} does not exist where the job ran; has the job begun to write?")
    num_files, size = 0, 0
    for name, path in result_files(source, checkpoints):
        content = path.read_bytes()
        data = base64.b64encode(zlib.compress(content)).decode()
        num_files, size = num_files + 1, size + len(data) * 3 // 4
        if size > limit:
            raise ValueError(
                f"the results in {source} have more than {limit >> 20} MiB, too much for the job server; mount that "
                "storage here, or leave --checkpoints out"
            )
        yield _FILE + json.dumps({"name": name, "sha256": hashlib.sha256(content).hexdigest(), "data": data})
    yield f"{_END}{num_files}"


def unpack(lines: Iterable[str], target: Path) -> int:
    """Write what `pack` wrote as lines, which may stand between others, as files below `target`; return their number.

    Raises:
        ValueError: a file is damaged or missing, or its name leads out of `target`; the files before it are there.
    """
    told = list(lines)
    files = [json.loads(line.removeprefix(_FILE)) for line in told if line.startswith(_FILE)]
    if f"{_END}{len(files)}" not in told:
        raise ValueError("the results are not whole: the job server cut the log; fetch them again")
    return _write(target, ((file["name"], _checked(file)) for file in files))


def _checked(file: dict[str, str]) -> bytes:
    content = zlib.decompress(base64.b64decode(file["data"]))
    if hashlib.sha256(content).hexdigest() != file["sha256"]:
        raise ValueError(f"{file['name']} does not have its SHA-256; fetch the results again")
    return content


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
        for line in pack(given.source, given.limit, given.checkpoints):
            print(line)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
