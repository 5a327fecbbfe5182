"""Where things lie: in folders of this machine, or on object storage by their URL. Imports nothing of ours.

Text becomes a path by `as_path` alone. A URL's path does what is asked of a `Path` here, with three differences that
whoever writes must know: there is no rename, a folder is there as soon as a file lies in it, and no file can grow.
"""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import importlib.util
import io
import logging
import os
import posixpath
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Pauses before each further attempt to write, in seconds: half a minute in all, beside what a client waits itself.
RETRY_DELAYS = (1, 2, 4, 8, 15)

_LOG = logging.getLogger("trm_ray")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://(.*)", re.DOTALL)
# Which extra of this package reaches a protocol.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_READ_ONLY = {"http", "https", "data", "zip", "tar", "libarchive", "reference", "git", "github", "dir", "cached"}
# Object stores proper: making a folder there means nothing, or would make a bucket.
_WITHOUT_FOLDERS = {*EXTRAS, "abfs", "abfss", "az", "adl", "oci", "oss", "r2"}
# What is held in memory of a file that is being written; S3 takes 10,000 of them, so files up to 160 GB.
_PART_BYTES = 16 << 20

Result = TypeVar("Result")


class StorageError(RuntimeError):
    """Something could not be written; the message says where a copy lies."""


# ---- text to path ----------------------------------------------------------------------------------------


def as_path(place: str | os.PathLike[str]) -> Path:
    """Turn text, or a path as it is, into a path: of this machine, or of object storage if it is a URL.

    Raises:
        ValueError: nobody knows the URL's protocol, or its package is missing; or `~` means no folder here.
    """
    if isinstance(place, RemotePath):
        return cast(Path, place)
    url = _URL.fullmatch(os.fspath(place))
    if url is None:
        return Path(with_home(place)) if isinstance(place, str) else Path(place)
    if url[1] in ("file", "local"):
        return Path(url[2])
    check_url(os.fspath(place))
    return cast(Path, RemotePath(url[1], posixpath.normpath(url[2])))


def with_home(text: str) -> str:
    """Put the home folder for a leading `~`, that of another user for `~NAME`.

    Raises:
        ValueError: there is no such user, or this one has no home.
    """
    expanded = os.path.expanduser(text)
    if not expanded.startswith("~"):
        return expanded
    user = expanded[1:].partition("/")[0]
    if user:
        raise ValueError(f"no user {user} is known here; write the whole path, or ./{text} for a place of that name")
    raise ValueError(f"{text} names no place, for this user has no home folder; set HOME, or write the whole path")


def check_url(text: str) -> str:
    """Refuse a URL that could not be written; other text passes.

    Raises:
        ValueError: with the rule that it breaks and the way out.
    """
    url = _URL.fullmatch(text)
    if url is None or url[1] in ("file", "local"):
        return text
    from fsspec.registry import known_implementations, registry

    protocol, rest = url[1], url[2]
    if protocol in _READ_ONLY or (protocol not in known_implementations and protocol not in registry):
        way_out = "use s3://BUCKET/FOLDER, gs://… or a folder"
        if protocol in ("http", "https"):
            way_out += ", and download what is to be read with curl -LO URL"
        raise ValueError(f"{protocol}:// is no storage that can be written; {way_out}")
    user = rest.partition("/")[0]
    if "@" in user or (":" in user and protocol in EXTRAS):  # no bucket has a colon; AWS's secrets may hold slashes
        raise ValueError(f"{protocol}:// must hold no user or password; they belong into the environment")
    if not rest.strip("/."):
        raise ValueError(f"{protocol}:// names no place; use {protocol}://BUCKET/FOLDER")
    package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
    if protocol not in registry and importlib.util.find_spec(package) is None:
        wanted = f"'trm-ray[{EXTRAS[protocol]}]'" if protocol in EXTRAS else package
        raise ValueError(f"{protocol}:// needs the package {package}; pip install {wanted}")
    return text


def join(base: str | None, place: str) -> Path:
    """Return a place as an absolute path: below `base` unless it stands for itself."""
    path = as_path(place)
    if base is not None and not isinstance(path, RemotePath):
        path = as_path(base) / str(path)
    return absolute(path)


def absolute(path: Path) -> Path:
    """Return a path that means the same from any working directory."""
    return path if isinstance(path, RemotePath) else Path(os.path.abspath(path))


def is_remote(path: Path) -> bool:
    """Tell whether a path leads to object storage."""
    return isinstance(path, RemotePath)


# ---- what object storage does differently ----------------------------------------------------------------


def is_whole(folder: Path, last: str) -> bool:
    """Tell whether a folder is there that appears whole: on object storage as soon as its `last` file does."""
    return (folder / last).is_file() if is_remote(folder) else folder.is_dir()


def remove_tree(folder: Path, first: str | None = None, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that it holds, if it is there.

    Args:
        first: file that tells that the folder is whole; on object storage it must not outlive another one.
        ignore_errors: leave what a folder of this machine will not let go.

    Raises:
        OSError: something could not be removed.
    """
    if isinstance(folder, RemotePath):
        if first is not None:
            (folder / first).unlink(missing_ok=True)
        folder.remove()
    elif folder.exists():
        shutil.rmtree(folder, ignore_errors=ignore_errors)


@contextmanager
def made_elsewhere(path: Path) -> Iterator[Path]:
    """Give a name on this machine to write a file by; it appears in its place when it is finished, whole."""
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="trm-ray-") as folder:
            yield Path(folder) / path.name
            path.upload(Path(folder) / path.name)
    else:
        temporary = path.with_name(f".{path.name}.tmp")
        yield temporary
        temporary.replace(path)


def write_new(path: Path, content: bytes) -> bool:
    """Write a file unless one of its name is there, and tell whether it was written; of two writers one is told so."""
    if isinstance(path, RemotePath):
        return path.create(content)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def move(source: Path, target: Path) -> None:
    """Give a file another name in the same storage; on object storage it is copied there, then removed here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, RemotePath):
        source.move(cast(RemotePath, target))
    else:
        os.replace(source, target)


def resolved(path: Path) -> Path:
    """Follow links to what they point to, whether or not that is there.

    Raises:
        ValueError: they lead in a circle.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError) as error:  # RuntimeError before Python 3.13
        raise ValueError(f"{path} is a link that leads to itself; remove it or name another folder") from error


def check_is_folder(path: Path, named: str, way_out: str = "choose another folder") -> None:
    """Refuse a place where, or above which, a file lies.

    Args:
        named: what a user calls it.

    Raises:
        ValueError: with the name of the file.
    """
    there = next((place for place in (path, *([] if is_remote(path) else path.parents)) if place.exists()), None)
    if there is not None and not there.is_dir():
        what = "is a file" if there == path else f"lies below {there}, which is a file"
        raise ValueError(f"{named} {what}; {way_out}")


def near_name(path: Path, wanted: Callable[[Path], bool]) -> Path | None:
    """Find what a path that is not there may have been meant for: what is wanted and has nearly its name, beside it."""
    if path.parent == path:
        return None
    parent = path.parent if path.parent.is_dir() else near_name(path.parent, lambda found: found.is_dir())
    try:
        beside = {found.name: found for found in parent.iterdir()} if parent else {}
    except OSError:  # what lies there is nobody's business
        return None
    near = (beside[name] for name in get_close_matches(path.name, beside, cutoff=0.75))
    return next((found for found in near if found != path and wanted(found)), None)


def meant(path: Path, wanted: Callable[[Path], bool]) -> str:
    """Ask for what `near_name` finds; empty where that is nothing."""
    found = near_name(path, wanted)
    return "" if found is None else f" (did you mean {found}?)"


def write_whole(path: Path, text: str) -> None:
    """Write a file anew so that a kill meanwhile leaves the old content or the new."""
    with made_elsewhere(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_part(path: Path, start: int, end: int) -> bytes:
    """Read the bytes of a file from `start` to before `end`, also while it is being written anew."""
    if isinstance(path, RemotePath):
        return path.read_part(start, end) if end > start else b""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def sha256(path: Path, advance: Callable[[int], None] = lambda num_bytes: None) -> str:
    """Hash a file, in hexadecimal.

    Args:
        advance: is told how much more has been read, every MiB.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def tree_bytes(folder: Path) -> int:
    """Add up the sizes of all files below a folder."""
    if isinstance(folder, RemotePath):
        return folder.tree_bytes()
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def local_file(path: Path) -> Path:
    """Return a file for whoever reads by name alone: itself, or a copy of what lies on object storage.

    Of copies the process keeps the latest, until another is asked for, `drop_copy` is called or it ends. So a file that
    is checked and then read is fetched once.
    """
    return path if not isinstance(path, RemotePath) else _copy_of(os.getpid()).fetch(path, version(path))


def drop_copy() -> None:
    """Remove the copy that `local_file` made; whoever has mapped it into memory keeps it."""
    if _copy_of.cache_info().currsize:
        _copy_of(os.getpid()).drop()


def version(path: Path) -> tuple[Any, ...]:
    """Tell by what a file's content can be told from an earlier one without reading it."""
    if isinstance(path, RemotePath):
        info = path.info()
        return tuple(str(info.get(key)) for key in ("size", "ETag", "etag", "LastModified", "mtime", "updated"))
    there = path.stat()
    return there.st_size, there.st_mtime_ns


class _Copy:
    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="trm-ray-copy-"))
        self._of: tuple[RemotePath, tuple[Any, ...]] | None = None
        atexit.register(shutil.rmtree, self._folder, ignore_errors=True)

    def fetch(self, path: RemotePath, version: tuple[Any, ...]) -> Path:
        copy = self._folder / path.name
        if self._of != (path, version):
            self.drop()
            path.download(copy)
            self._of = path, version
        return copy

    def drop(self) -> None:
        if self._of is not None:
            (self._folder / self._of[0].name).unlink(missing_ok=True)
            self._of = None


@functools.cache
def _copy_of(pid: int) -> _Copy:
    """Give the copy that a process keeps: a forked one must not share its parent's."""
    return _Copy()


def arrow_filesystem(path: Path) -> AbstractFileSystem | None:
    """Return the filesystem that reads a path in pyarrow and Ray; None, which is their default, for this machine's."""
    return path.filesystem if isinstance(path, RemotePath) else None


def storage_key(path: Path) -> str:
    """Name a path as `arrow_filesystem` knows it."""
    return path.key if isinstance(path, RemotePath) else str(path)


def retried(
    do: Callable[[], Result], what: Path, sleep: Callable[[float], None] = time.sleep, done: str = "written"
) -> Result:
    """Write or read, again after a while where the storage fails.

    Raises:
        OSError: it failed at the last attempt too.
    """
    for delay in RETRY_DELAYS:
        try:
            return do()
        except OSError as error:
            _LOG.warning("%s could not be %s (%s); the next attempt is in %s s", what, done, error, delay)
            sleep(delay)
    return do()


# ---- the path of a URL -----------------------------------------------------------------------------------


@functools.total_ordering
class RemotePath:
    """A place on storage that fsspec reaches, used as a `pathlib.Path` is.

    Nothing is remembered of what others list or write, and whatever the storage's client raises becomes an `OSError`
    that names the place. It holds no credentials: clients find them in the environment of the machine they run on.
    """

    def __init__(self, protocol: str, key: str):
        self._protocol, self._key = protocol, PurePosixPath(key)

    def __str__(self) -> str:
        return f"{self._protocol}://{self._key}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, part: str | os.PathLike[str]) -> Path:
        text = os.fspath(part)
        if _URL.fullmatch(text) or text.startswith("/"):
            return as_path(text)
        return cast(Path, RemotePath(self._protocol, posixpath.normpath(str(self._key / text))))

    @property
    def name(self) -> str:
        """The last part."""
        return self._key.name

    @property
    def stem(self) -> str:
        """The last part without its ending."""
        return self._key.stem

    @property
    def suffix(self) -> str:
        """The ending of the last part, with its dot."""
        return self._key.suffix

    @property
    def parent(self) -> Path:
        """The folder that it lies in."""
        return cast(Path, RemotePath(self._protocol, str(self._key.parent)))

    @property
    def parents(self) -> list[Path]:
        """The folders that it lies in, the innermost first."""
        return [cast(Path, RemotePath(self._protocol, str(key))) for key in self._key.parents]

    def with_name(self, name: str) -> Path:
        """Name a neighbour."""
        return self.parent / name

    def resolve(self) -> RemotePath:
        """Return it as it is: there are no links."""
        return self

    # -- looking --

    @property
    def filesystem(self) -> AbstractFileSystem:
        """The fsspec filesystem, made anew in every process; it keeps no listings, since others write too."""
        return self._reached()[0]

    @property
    def key(self) -> str:
        """The place as the filesystem names it."""
        return self._reached()[1]

    def _reached(self) -> tuple[AbstractFileSystem, str]:
        from fsspec.core import url_to_fs

        filesystem, key = url_to_fs(str(self), use_listings_cache=False)
        return filesystem, key

    def info(self) -> dict[str, Any]:
        """Return what the storage tells of a file."""
        return cast(dict[str, Any], self._ask("info"))

    def stat(self) -> SimpleNamespace:
        """Return a file's size, as `st_size`."""
        return SimpleNamespace(st_size=int(self.info()["size"]))

    def exists(self) -> bool:
        """Tell whether a file or a folder is there."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Tell whether a file is there."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Tell whether any file lies below."""
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        # Not fsspec's own `isfile` and the like: they call a storage that fails, or refuses, a file that is not there.
        try:
            return str(self.info()["type"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def iterdir(self) -> list[Path]:
        """List what lies directly below."""
        listed = (name.rstrip("/") for name in self._ask("ls", detail=False))
        return [self / name for name in sorted({posixpath.basename(name) for name in listed if name != self.key})]

    def glob(self, pattern: str) -> list[Path]:
        """List what lies directly below and whose name fits; nothing if there is no such folder."""
        with suppress(FileNotFoundError):
            return [path for path in self.iterdir() if fnmatchcase(path.name, pattern)]
        return []

    def tree_bytes(self) -> int:
        """Add up the sizes of all files below."""
        return int(self._ask("du"))

    # -- reading --

    def read_bytes(self) -> bytes:
        """Read a whole file."""
        return cast(bytes, self._ask("cat_file"))

    def read_part(self, start: int, end: int) -> bytes:
        """Read the bytes from `start` to before `end`; unlike an open file, also while it is being written anew."""
        return cast(bytes, self._ask("cat_file", start=start, end=end))

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Read a whole file."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors).read()

    def open(self, mode: str = "r", **text: Any) -> Any:
        """Open for reading (`r`, `rb`) or to write anew (`wb`): that appears when it is closed, not after an error."""
        assert mode in ("r", "rb", "wb")
        parts = {"block_size": _PART_BYTES} if mode == "wb" else {}
        file = self._ask("open", mode if "b" in mode else "rb", **parts)
        if mode == "wb":
            return _RemoteFile(self, file)
        buffered = io.BufferedReader(_RemoteFile(self, file), 1 << 20)
        return buffered if mode == "rb" else io.TextIOWrapper(buffered, **text)

    def download(self, to: Path) -> None:
        """Copy to a file of this machine."""
        self._ask("get_file", str(to))

    # -- writing --

    def write_bytes(self, content: bytes) -> int:
        """Write a file, whole or not at all."""
        self._ask("pipe_file", content)
        return len(content)

    def write_text(self, content: str, encoding: str = "utf-8") -> int:
        """Write a file, whole or not at all."""
        return self.write_bytes(content.encode(encoding))

    def upload(self, file: Path) -> None:
        """Write a copy of a file of this machine, whole or not at all."""
        with self._telling():
            self.filesystem.put_file(str(file), self.key)

    def create(self, content: bytes) -> bool:
        """Write a file unless one of its name is there, and tell whether it was written."""
        try:
            self._ask("pipe_file", content, mode="create")
        except OSError:
            if self.exists():  # each client has an error of its own for this
                return False
            raise
        return True

    def move(self, target: RemotePath) -> None:
        """Copy a file inside the storage, then remove it here."""
        self._ask("cp_file", target.key)
        self.unlink()

    def files(self) -> list[Path]:
        """List all files below."""
        with suppress(FileNotFoundError), self._telling():
            prefix = f"{self.key.rstrip('/')}/"
            return [self / key.removeprefix(prefix) for key in sorted(self.filesystem.find(self.key))]
        return []

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """Name it as it lies below a folder."""
        return self._key.relative_to(other._key)

    def touch(self) -> None:
        """Write an empty file."""
        self.write_bytes(b"")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder where the storage has such things."""
        if self._protocol not in _WITHOUT_FOLDERS:
            self._ask("makedirs", exist_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        try:
            self._ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Remove all that lies below."""
        with suppress(FileNotFoundError), self._telling():
            if self._protocol not in _WITHOUT_FOLDERS:
                self.filesystem.rm(self.key, recursive=True)
            elif files := self.filesystem.find(self.key):
                self.filesystem.rm(files)

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Have the filesystem do something with this place."""
        with self._telling():
            return getattr(self.filesystem, method)(self.key, *args, **options)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Raise what the storage's client raises as an `OSError` that names the place."""
        try:
            yield
        except Exception as error:  # each client has a family of its own
            missing = isinstance(error, FileNotFoundError)
            number = errno.ENOENT if missing else getattr(error, "errno", None) or errno.EIO
            words = " ".join(str(error).split())
            is_name = not words or words.strip("'\"/") in (str(self._key), str(self))  # `key` asks the storage
            raise OSError(number, os.strerror(number) if is_name else words, str(self)) from error


class _RemoteFile(io.RawIOBase):
    """An open file whose errors name it, and which does not appear when what should be written to it fails."""

    def __init__(self, path: RemotePath, file: Any):
        self._path, self._file = path, file

    def readable(self) -> bool:
        return bool(self._file.readable())

    def writable(self) -> bool:
        return bool(self._file.writable())

    def seekable(self) -> bool:
        return self.readable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with self._path._telling():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def write(self, content: Any) -> int:
        with self._path._telling():
            self._file.write(content)
        return memoryview(content).nbytes

    def close(self) -> None:
        if not self.closed:
            try:
                with self._path._telling():
                    self._file.close()
            finally:
                super().close()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self.writable():
            with suppress(Exception):  # the error that led here is told; parts without an end take a rule of the bucket
                self._file.discard()
            self._file.closed = True
        self.close()
