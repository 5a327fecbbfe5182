"""Replace what we have written, and nothing else: which files of a folder are ours, and how old ones make way for new.

A folder is a run's, a sweep's or a dataset's by content that only we write, never by a name that others use too. What
`--overwrite` replaces is set aside inside the folder, file by file, and is removed when the new content stands; until
then it can be put back, also by the next process after a kill.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trm_ray.ownership import NOTE_FILE
from trm_ray.storage import RemotePath, is_remote, meant, move, remove_tree

# In a folder, what is being replaced. While the mark is in it, all that lies outside is old too: it is not yet set
# aside entirely, or is being put back.
ASIDE = ".trm-ray-replaced"
_INCOMPLETE = ".incomplete"
# In a folder, what is being written until it is put in place, and then what has come there so far: both of a process
# that was killed may be removed.
PARTIAL = ".trm-ray-partial"
UNFINISHED = ".trm-ray-unfinished"
_MOST_TOLD = 5

_CHECKPOINT_FILES = r"(state\.pt|run\.json|manifest\.json|identifiers\.json|tokenizer\.json)"
_REPORT_FILES = (
    r"(dashboard\.png|comparison\.png|report\.html|summary\.(json|md)|evaluation_[A-Za-z0-9_.-]+\.(json|png)"
    r"|submission\.json)"
)
_RUN_FILES = "|".join(
    (
        r"config\.yaml|environment\.json|(metrics|depths)\.jsonl(\.tmp)?",
        r"\.(config\.yaml|environment\.json)\.tmp",
        r"events\.out\.tfevents\.\d{19}\..+",  # others' have a time of ten digits
        r"stopped_early\.json|stop_requested|resize_requested",
        rf"(checkpoint_step_\d+|final_model)(/{_CHECKPOINT_FILES})?",  # the folder itself, where it is a link
        rf"\.(checkpoint_step_\d+|final_model)\.\d+\.(tmp|old)/{_CHECKPOINT_FILES}",
        rf"((checkpoint_step_\d+|final_model)/)?report/{_REPORT_FILES}",
        r"\.ray/.+",
    )
)
_SWEEP_FILES = (
    r"sweep\.yaml|final\.json|core_seconds\.json|\.(sweep\.yaml|final\.json|core_seconds\.json)\.tmp|stop_requested"
    rf"|report/{_REPORT_FILES}|\.tune(-[0-9a-f]+)?/.+"
)

_LOG = logging.getLogger("trm_ray")


@dataclass(frozen=True)
class Content:
    """A sort of folder that we write.

    name: what it is called. file: holds what only we write. keys: of that file, in all versions of it. ours: full match
    of the names of our files in it.
    """

    name: str
    file: str
    keys: frozenset[str]
    ours: str


RUN = Content("run", "config.yaml", frozenset({"format_version", "config_name", "arch", "ray"}), _RUN_FILES)
SWEEP = Content("sweep", "sweep.yaml", frozenset({"format_version", "scenarios", "asha", "search_space"}), _SWEEP_FILES)
_DATASET_KEYS = frozenset({"format_version", "seq_len", "vocab_size", "splits", "num_puzzle_identifiers"})
DATASET = Content("dataset", "dataset.json", _DATASET_KEYS, rf"dataset\.json|{re.escape(UNFINISHED)}")


def report_content(file: str) -> Content:
    """Describe a folder that an evaluation was written into, by the name of its numbers."""
    return Content("report", file, frozenset({"format_version", "provenance", "by_segment"}), _REPORT_FILES)


def is_ours(folder: Path, content: Content) -> bool:
    """Tell by its content whether a folder is of a sort that we write."""
    values = _read(folder / content.file)
    return isinstance(values, dict) and content.keys <= values.keys()


def tell_begins(folder: Path, content: Content, named: str) -> None:
    """Say that a resume finds nothing to go on with. A job is started with the same words again and again: no error."""
    there = is_ours(folder, content)
    found = f"no checkpoint in {named} yet" if there else f"no {content.name} in {named}"
    asked = "" if there else meant(folder, lambda path: is_ours(path, content))
    _LOG.warning("--resume: %s, so it begins anew%s", found, asked)


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        text = path.read_bytes()
        return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, yaml.YAMLError, RecursionError, TypeError, KeyError, AttributeError):  # as others' files may be
        return None


def foreign_names(folder: Path) -> list[str]:
    """Name what lies in a folder, for whoever refuses it; what only a killed process of ours leaves does not count."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(names - {NOTE_FILE, ASIDE, PARTIAL, ".config.yaml.tmp", ".environment.json.tmp", ".sweep.yaml.tmp"})


def is_unfinished(folder: Path) -> bool:
    """Tell whether a folder holds what a process that was killed had not put in place entirely."""
    return isinstance(_read(folder / UNFINISHED), list)


@contextmanager
def unfinished(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Leave a list of the files that are about to be put in place; it goes when all are there."""
    (folder / UNFINISHED).write_text(json.dumps([*names]) + "\n", encoding="utf-8")
    yield
    (folder / UNFINISHED).unlink()


def told_names(names: list[str]) -> str:
    """Write a few of them."""
    more = f" and {len(names) - _MOST_TOLD} more" if len(names) > _MOST_TOLD else ""
    return ", ".join(names[:_MOST_TOLD]) + more


# ---- which files are ours --------------------------------------------------------------------------------


def our_files(folder: Path, content: Content) -> tuple[list[str], list[str]]:
    """List the files of a folder that we have written, and the others, by their names in it; links are files here."""
    names = [name for name in _names(folder) if name.partition("/")[0] not in (NOTE_FILE, ASIDE, PARTIAL)]
    is_one = _matcher(folder, content)
    ours = [name for name in names if is_one(name)]
    return ours, sorted(set(names) - set(ours))


def _names(folder: Path) -> list[str]:
    if isinstance(folder, RemotePath):
        return [str(path.relative_to(folder)) for path in folder.files()]
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(str(path.relative_to(folder)) for path in found)


def _matcher(folder: Path, content: Content) -> Callable[[str], bool]:
    names = re.compile(content.ours, re.DOTALL)
    inside: set[str] = set()
    if content is DATASET:
        inside = _named_by(_read(folder / content.file)) | {*map(str, _read(folder / UNFINISHED) or ())}
    if content is SWEEP:
        trials = [path.name for path in folder.iterdir() if path.is_dir() and is_ours(path, RUN)]
        return lambda name: bool(names.fullmatch(name)) or _is_of_trial(name, trials)
    return lambda name: bool(names.fullmatch(name)) or name in inside


def _is_of_trial(name: str, trials: list[str]) -> bool:
    trial, _, rest = name.partition("/")
    ours = rf"{_RUN_FILES}|{re.escape(NOTE_FILE)}|{re.escape(ASIDE)}/.+"
    return trial in trials and re.fullmatch(ours, rest, re.DOTALL) is not None


def _named_by(info: Any) -> set[str]:
    """List the files that a dataset.json names."""
    if not isinstance(info, dict):
        return set()
    splits: Any = info.get("splits")
    owners = [info, *(splits.values() if isinstance(splits, dict) else ())]
    files = [owner.get("files") for owner in owners if isinstance(owner, dict)]
    return {str(name) for named in files if isinstance(named, dict) for name in named}


# ---- setting aside ---------------------------------------------------------------------------------------


def set_aside(folder: Path, content: Content) -> None:
    """Make way for new content: move what we have written into a folder inside, and tell what else stays."""
    ours, others = our_files(folder, content)
    if others:
        _LOG.warning("%s: kept %s, which trm-ray has not written", folder, told_names(others))
    if ours:
        (folder / ASIDE).mkdir(exist_ok=True)
        (folder / ASIDE / _INCOMPLETE).touch()
        for name in ours:
            move(folder / name, folder / ASIDE / name)
        _remove_empty(folder, ours)
        (folder / ASIDE / _INCOMPLETE).unlink()


@contextmanager
def settled(folder: Path, content: Content, stands: Callable[[Path], bool]) -> Iterator[None]:
    """End the replacement that a killed process has begun, and afterwards the one that is begun meanwhile.

    Args:
        stands: tells whether the folder holds new content that is worth more than what it replaces.
    """
    settle(folder, content, stands)
    try:
        yield
    except BaseException:
        try:
            settle(folder, content, stands)
        except OSError as error:  # what led here is told; the next process settles
            _LOG.warning("%s: what is in %s could not be put back yet (%s)", folder, ASIDE, error)
        raise
    settle(folder, content, stands)


def settle(folder: Path, content: Content, stands: Callable[[Path], bool]) -> None:
    """End a replacement: remove what was set aside if the new content stands, else put it back."""
    aside = folder / ASIDE
    if not aside.is_dir():
        return
    was_complete = not (aside / _INCOMPLETE).exists()
    if was_complete and stands(folder):
        drop_replaced(folder)
        return
    if was_complete:  # else nothing new has been written
        new, _ = our_files(folder, content)
        for name in new:
            (folder / name).unlink()
        _remove_empty(folder, new)
        (aside / _INCOMPLETE).touch()  # from here on what is outside is old
    old = [name for name in _names(aside) if name != _INCOMPLETE]
    for name in old:
        move(aside / name, folder / name)
    remove_tree(aside)
    _LOG.warning("%s: the %s that was to be replaced is back, as nothing new was finished", folder, content.name)


def drop_replaced(folder: Path) -> None:
    """Remove what was set aside in a folder, if there is any."""
    remove_tree(folder / ASIDE)


def _remove_empty(folder: Path, names: list[str]) -> None:
    """Remove the folders that hold nothing after files with these names have gone."""
    if is_remote(folder):
        return
    inner = {parent for name in names for parent in Path(name).parents if str(parent) != "."}
    for path in sorted((folder / parent for parent in inner), key=lambda path: len(path.parts), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
