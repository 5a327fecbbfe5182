"""Import the dataset folders of the original TRM code.

    DIR/identifiers.json, DIR/test_puzzles.json (ARC), and for train and test
    DIR/SPLIT/dataset.json, DIR/SPLIT/SET__{inputs,labels,puzzle_identifiers,puzzle_indices,group_indices}.npy

Puzzle p owns the rows puzzle_indices[p] to puzzle_indices[p + 1], group g the puzzles group_indices[g] to
group_indices[g + 1]. Identifiers keep their numbers, so checkpoints keep their embeddings. The arrays are mapped and
read in blocks: a folder may be larger than the memory.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.config.keys import NAME, NAME_RULE
from trm_ray.config.text import read_text
from trm_ray.data.format import IDENTIFIERS_NAME, INFO_NAME, DatasetInfo, read_json
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.progress import Advance, progress, tell
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID, DatasetError, Rows, TokenBatch
from trm_ray.data.write import owns_output, write_dataset
from trm_ray.kinds.arc.duplicates import find_duplicates
from trm_ray.kinds.arc.read import EOS, SEQ_LEN, SIDE, TEST_PUZZLES_NAME, VOCAB_SIZE, grid_sizes, pair_sums
from trm_ray.kinds.arc.symmetry import ArcSymmetry
from trm_ray.kinds.registry import kind_of
from trm_ray.storage import is_remote

# Stored augmentations that are compared with ours, spread over the set.
CHECKED_PUZZLES = 1_000
_BLOCK = 2_048
_INDICES = ("puzzle_identifiers", "puzzle_indices", "group_indices")
_KEYS = ("seq_len", "vocab_size", "num_puzzle_identifiers", "total_groups", "pad_id", "blank_identifier_id")
_SHARED = ("seq_len", "vocab_size", "num_puzzle_identifiers", "ignore_label_id")


@dataclass(frozen=True)
class _Set:
    """Hold one set of a split.

    Args:
        path: of its files, up to `__inputs.npy`.
        inputs: (N, L), mapped; so are the labels.
        puzzle_identifiers: (P,).
        puzzle_indices: (P + 1,) where each puzzle's rows begin.
        group_indices: (G + 1,) where each group's puzzles begin.
    """

    path: Path
    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray

    @property
    def group_of_puzzle(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.group_indices) - 1), np.diff(self.group_indices))

    def rows_of(self, puzzles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """List the rows of some puzzles one after the other, and for each row its place among the puzzles."""
        lengths = np.diff(self.puzzle_indices)[puzzles]
        which = np.repeat(np.arange(len(puzzles)), lengths)
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.puzzle_indices[puzzles][which] + within, which


@dataclass(frozen=True)
class _Split:
    metadata: dict[str, Any]
    sets: list[_Set]

    @property
    def num_rows(self) -> int:
        return sum(len(one.inputs) for one in self.sets)


@owns_output
def import_original(
    source: Path,
    output: Path,
    *,
    keep_augmentations: bool = False,
    keep_duplicates: bool = False,
    overwrite: bool = False,
) -> DatasetInfo:
    """Import a dataset of the original code, its puzzles and groups as they are.

    Of ARC only the puzzles as they are get stored, moved to the upper left corner; the augmentations that the folder
    holds are computed while streaming, after a sample of them was found equal. Training rows that are a test pair of
    another puzzle, up to turns and colours, are left out (`arc_duplicates`).

    Args:
        keep_augmentations: copy every row as it is.
        keep_duplicates: leave no training row out.

    Raises:
        DatasetError: a file is missing, unreadable or does not agree with another one; or a stored augmentation is not
            what its name says.
    """
    if is_remote(source):
        raise DatasetError(f"{source} must lie on this machine, where its arrays can be mapped; copy it here first")
    splits = {name: _open_split(source, name) for name in ("train", "test")}
    metadata = _shared_metadata(source, splits)
    identifiers = _read_identifiers(source, metadata["num_puzzle_identifiers"])
    computed = _is_arc(metadata) and not keep_augmentations
    if computed:
        _check_computable(splits, identifiers)
    with tempfile.TemporaryDirectory(dir=_parent(output), prefix=".import-") as scratch:
        with progress("rows", sum(split.num_rows for split in splits.values())) as advance:
            rows = {
                name: _rows(split, identifiers if computed else None, Path(scratch) / name, advance)
                for name, split in splits.items()
            }
        left_out = _without_duplicates(rows, identifiers, kept=keep_duplicates) if _is_arc(metadata) else {}
        info = write_dataset(
            output,
            rows,
            vocab_size=metadata["vocab_size"],
            generator="import_original",
            arguments={"folder": source.resolve().name, "keep_augmentations": not computed, **left_out},
            seed=None,
            symmetry={"name": "arc"} if computed else None,
            kind=kind_of(metadata["seq_len"], metadata["vocab_size"], source.name).name,
            identifiers=identifiers,
            side_files=_side_files(source),
            overwrite=overwrite,
        )
    for name, split in info.splits.items():
        tell(f"Wrote {output}: {name} has {split.rows:,} of {splits[name].num_rows:,} rows in {split.groups:,} groups")
    return info


def _parent(output: Path) -> Path | None:
    if is_remote(output):
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.parent


def _is_arc(metadata: dict[str, Any]) -> bool:
    shape = (metadata["seq_len"], metadata["vocab_size"])
    return shape == (SEQ_LEN, VOCAB_SIZE) and metadata["num_puzzle_identifiers"] > 1


# --- Reading -----------------------------------------------------------------------------------------------


def _read_json(path: Path, kind: type) -> Any:
    return read_json(path, kind, "; a folder of the original has it")


def _open_split(source: Path, name: str) -> _Split:
    path = source / name / INFO_NAME
    metadata = _read_json(path, dict)
    for key in _KEYS:
        if not isinstance(metadata.get(key), int):
            raise DatasetError(f"{path}: {key}={metadata.get(key)!r} must be a whole number")
    if not isinstance(metadata.get("ignore_label_id"), int | None):
        raise DatasetError(f"{path}: ignore_label_id={metadata['ignore_label_id']!r} must be a whole number or null")
    for key in ("pad_id", "blank_identifier_id"):
        if metadata[key] != 0:
            raise DatasetError(f"{path}: {key}={metadata[key]} must be 0, as all builders of the original write")
    names = metadata.get("sets")
    if not isinstance(names, list) or not names or not all(re.fullmatch(NAME, str(one)) for one in names):
        raise DatasetError(f"{path}: sets={names!r} must name at least one set, each {NAME_RULE}")
    sets = [_open_set(source / name / str(one), metadata) for one in names]
    groups = sum(len(one.group_indices) - 1 for one in sets)
    if groups != metadata["total_groups"]:
        raise DatasetError(f"{path}: total_groups={metadata['total_groups']}, but the sets hold {groups}")
    return _Split(metadata, sets)


def _open_set(path: Path, metadata: dict[str, Any]) -> _Set:
    boards = [_open_array(path, name, dimensions=2) for name in ("inputs", "labels")]
    one = _Set(path, *boards, *(np.asarray(_open_array(path, name, dimensions=1), np.int64) for name in _INDICES))
    if one.inputs.shape != one.labels.shape or one.inputs.shape[1] != metadata["seq_len"]:
        rule = f"both must be (rows, seq_len={metadata['seq_len']})"
        raise DatasetError(f"{path}: inputs are {one.inputs.shape} and labels {one.labels.shape}; {rule}")
    _check_indices(f"{path}__puzzle_indices.npy", one.puzzle_indices, len(one.inputs), "rows")
    _check_indices(f"{path}__group_indices.npy", one.group_indices, len(one.puzzle_identifiers), "puzzles")
    if len(one.puzzle_indices) != len(one.puzzle_identifiers) + 1:
        rule = f"there must be one more than the {len(one.puzzle_identifiers)} puzzle_identifiers"
        raise DatasetError(f"{path}: {len(one.puzzle_indices)} puzzle_indices; {rule}")
    limit = metadata["num_puzzle_identifiers"]
    if one.puzzle_identifiers.min() < 0 or one.puzzle_identifiers.max() >= limit:
        raise DatasetError(f"{path}__puzzle_identifiers.npy: all must be at least 0 and below {limit}")
    return one


def _open_array(path: Path, name: str, *, dimensions: int) -> np.ndarray:
    file = path.with_name(f"{path.name}__{name}.npy")
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # which unlike `np.load` never reads pickles or archives
    except FileNotFoundError as error:
        raise DatasetError(f"{file} is missing; {INFO_NAME} beside it names the set {path.name!r}") from error
    except Exception as error:  # damaged and hostile headers raise all sorts
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise DatasetError(f"{file} is no NumPy array that can be mapped ({reason})") from error
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        rule = f"it must be whole numbers of {dimensions} dimensions"
        raise DatasetError(f"{file} is {array.dtype} {array.shape}; {rule}")
    return array


def _check_indices(file: str, indices: np.ndarray, end: int, what: str) -> None:
    if len(indices) < 2 or indices[0] != 0 or indices[-1] != end or (np.diff(indices) < 1).any():
        raise DatasetError(f"{file}: the numbers must rise from 0 to {end}, as there are so many {what}")


def _shared_metadata(source: Path, splits: dict[str, _Split]) -> dict[str, Any]:
    train, test = (split.metadata for split in splits.values())
    for key in _SHARED:
        if train.get(key) != test.get(key):
            differing = f"{key} is {train.get(key)} in train and {test.get(key)} in test"
            raise DatasetError(f"{source}: {differing}; make it anew")
    return train


def _read_identifiers(source: Path, number: int) -> PuzzleIdentifiers:
    path = source / IDENTIFIERS_NAME
    names = _read_json(path, list)
    if len(names) != number or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: {len(names)} names; dataset.json says num_puzzle_identifiers={number}")
    try:
        return PuzzleIdentifiers.from_names(names)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error


def _side_files(source: Path) -> dict[str, bytes]:
    path = source / TEST_PUZZLES_NAME
    if not path.exists():
        return {}
    # As it is, but without what an editor puts before it: whoever reads it later takes it for plain JSON.
    _read_json(path, dict)
    return {TEST_PUZZLES_NAME: read_text(path).encode()}


# --- Writing -----------------------------------------------------------------------------------------------


def _rows(split: _Split, computed: PuzzleIdentifiers | None, scratch: Path, advance: Advance) -> Rows:
    """Collect a split's rows in files beside the output, so that none of it need fit into memory.

    Args:
        computed: take the puzzles as they are alone, moved to the corner; these name the others. None takes all rows.
    """
    chosen = [
        np.flatnonzero(_is_plain(one, computed)) if computed else np.arange(len(one.puzzle_identifiers))
        for one in split.sets
    ]
    picked = [one.rows_of(puzzles) for one, puzzles in zip(split.sets, chosen, strict=True)]
    shape = (sum(len(rows) for rows, _ in picked), split.metadata["seq_len"])
    inputs, labels = (_scratch_array(scratch / name, shape, split.metadata["vocab_size"]) for name in ("in", "out"))
    columns, begin, first_puzzle, first_group = [], 0, 0, 0
    for one, puzzles, (rows, which) in zip(split.sets, chosen, picked, strict=True):
        for new_inputs, new_labels in _blocks(one, rows, split.metadata, to_corner=computed is not None):
            end = begin + len(new_inputs)
            inputs[begin:end], labels[begin:end], begin = new_inputs, new_labels, end
            advance(len(new_inputs))
        owners = puzzles[which]
        groups = one.group_of_puzzle[owners] + first_group
        columns.append(np.stack([one.puzzle_identifiers[owners], owners + first_puzzle, groups]).astype(np.int32))
        first_puzzle += len(one.puzzle_identifiers)
        first_group += len(one.group_indices) - 1
    return Rows(inputs, labels, *np.concatenate(columns, axis=1))


def _without_duplicates(rows: dict[str, Rows], identifiers: PuzzleIdentifiers, *, kept: bool) -> dict[str, Any]:
    """Take the training rows that are test pairs of another puzzle out, and give what dataset.json says of them."""
    duplicates = find_duplicates(rows["train"], rows["test"], identifiers, _pair_sums)
    duplicates.tell(kept=kept)
    if kept or not duplicates.tested:
        return {}
    rows["train"] = _compacted(rows["train"], np.flatnonzero(~duplicates.leaking))
    return {"duplicates_left_out": duplicates.tested}


def _pair_sums(inputs: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    tokens = (np.where(side == IGNORED_LABEL, PAD_ID, side).astype(np.int32) for side in (inputs, labels))
    return pair_sums(*_cornered(*tokens))


def _compacted(rows: Rows, stay: np.ndarray) -> Rows:
    """Move the rows that stay to the front, in their file, since they need not fit into memory."""
    for begin in range(0, len(stay), _BLOCK):
        part = stay[begin : begin + _BLOCK]
        for tokens in (rows.inputs, rows.labels):
            tokens[begin : begin + len(part)] = tokens[part]
    numbers = (rows.puzzle_identifiers[stay], rows.puzzles[stay], rows.groups[stay])
    return Rows(rows.inputs[: len(stay)], rows.labels[: len(stay)], *numbers)


def _scratch_array(path: Path, shape: tuple[int, int], vocab_size: int) -> np.ndarray:
    path.parent.mkdir(exist_ok=True)
    dtype = np.int8 if vocab_size <= 128 else np.int32
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _blocks(
    one: _Set, rows: np.ndarray, metadata: dict[str, Any], *, to_corner: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read the inputs and labels of some rows as int32, labels that do not count as `IGNORED_LABEL`."""
    for begin in range(0, len(rows), _BLOCK):
        these = rows[begin : begin + _BLOCK]
        tokens = [_read_tokens(one, name, these, metadata["vocab_size"]) for name in ("inputs", "labels")]
        inputs, labels = _cornered(*tokens) if to_corner else tokens
        if metadata.get("ignore_label_id") is not None:
            labels = np.where(labels == metadata["ignore_label_id"], np.int32(IGNORED_LABEL), labels)
        yield inputs, labels


def _read_tokens(one: _Set, name: str, rows: np.ndarray, vocab_size: int) -> np.ndarray:
    tokens = getattr(one, name)[rows]
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        row = int(((tokens < 0) | (tokens >= vocab_size)).any(1).argmax())
        raise DatasetError(f"{one.path}__{name}.npy, row {rows[row]}: a token is not below vocab_size={vocab_size}")
    return tokens.astype(np.int32)


def _cornered(inputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the grids of ARC rows (B, 900) from where the input lies to the upper left corner."""
    filled = (inputs != PAD_ID).reshape(-1, SIDE, SIDE)
    rows, columns = (np.arange(SIDE) + filled.any(axis).argmax(1)[:, None] for axis in (2, 1))
    cells = (rows[:, :, None] * SIDE + columns[:, None, :]).reshape(len(inputs), -1)
    outside = ((rows >= SIDE)[:, :, None] | (columns >= SIDE)[:, None, :]).reshape(len(inputs), -1)
    moved = (np.take_along_axis(tokens, cells % SEQ_LEN, axis=1) for tokens in (inputs, labels))
    first, second = (_bordered(np.where(outside, np.int32(PAD_ID), tokens)) for tokens in moved)
    return first, second


def _bordered(tokens: np.ndarray) -> np.ndarray:
    """Draw the EOS border of grids in the corner (B, 900): one that lay at the canvas's edge had no room for it."""
    heights, widths = grid_sizes(tokens).T[:, :, None, None]
    rows, columns = np.arange(SIDE)[:, None], np.arange(SIDE)
    border = ((rows == heights) & (columns < widths)) | ((columns == widths) & (rows < heights))
    return np.where(border.reshape(tokens.shape), np.int32(EOS), tokens)


# --- ARC's augmentations -----------------------------------------------------------------------------------


def _is_plain(one: _Set, identifiers: PuzzleIdentifiers) -> np.ndarray:
    """Say which puzzles (P,) are the first of their name, as they are."""
    ids = one.puzzle_identifiers
    own = identifiers.puzzle_of(ids)
    identity = (identifiers.dihedral[ids] == 0) & (identifiers.colours[ids] == np.arange(10)).all(1)
    return (own >= 0) & identity & (identifiers.first[own] == ids)


def _check_computable(splits: dict[str, _Split], identifiers: PuzzleIdentifiers) -> None:
    """Compare stored augmentations with ours, and tell of how many rows.

    Raises:
        DatasetError: one differs, or a group is not what the names say.
    """
    checked = 0
    for split in splits.values():
        for one in split.sets:
            differs = _structure_differs(one, identifiers)
            if differs is None:
                rows, differs = _sample_differs(one, split.metadata, identifiers)
                checked += rows
            if differs is not None:
                raise DatasetError(f"{one.path}: {differs}; mend it, or {_cost_of_a_copy(splits)}")
    tell(f"{checked:,} rows of stored augmentations were computed anew: all equal, up to where the grids lie")


def _cost_of_a_copy(splits: dict[str, _Split]) -> str:
    rows = sum(split.num_rows for split in splits.values())
    needed = 2 * 4 * splits["train"].metadata["seq_len"] * rows / 2**20
    return f"--keep-augmentations copies all {rows:,} rows as they are, {needed:,.1f} MiB of tokens to read for a run"


def _structure_differs(one: _Set, identifiers: PuzzleIdentifiers) -> str | None:
    """Say which group is not one puzzle as it is and all the augmentations that identifiers.json names for it."""
    plain, group, ids = _is_plain(one, identifiers), one.group_of_puzzle, one.puzzle_identifiers
    num_plain = np.bincount(group[plain], minlength=len(one.group_indices) - 1)[group]
    if (num_plain != 1).any():
        name = identifiers.name(int(ids[(num_plain != 1).argmax()]))
        return f"puzzle {name}: its group does not hold exactly one puzzle without augmentation"
    base, lengths = np.flatnonzero(plain)[group], np.diff(one.puzzle_indices)
    own, sizes = identifiers.puzzle_of(ids), np.bincount(group)[group]
    _, which, copies = np.unique(group * np.int64(len(identifiers)) + ids, return_inverse=True, return_counts=True)
    incomplete = (own != own[base]) | (sizes != identifiers.counts[own]) | (copies[which] > 1)
    for wrong, rule in (
        (incomplete, "its group does not hold each augmentation of it once"),
        (lengths != lengths[base], "it has more or fewer examples than without augmentation"),
    ):
        if wrong.any():
            return f"puzzle {identifiers.name(int(ids[wrong.argmax()]))}: {rule}"
    return None


def _sample_differs(one: _Set, metadata: dict[str, Any], identifiers: PuzzleIdentifiers) -> tuple[int, str | None]:
    """Compute some of the stored augmentations anew: how many rows were compared, and which differs first."""
    plain = _is_plain(one, identifiers)
    stored = np.flatnonzero(~plain)
    if not len(stored):
        return 0, None
    stored = np.unique(stored[np.linspace(0, len(stored) - 1, CHECKED_PUZZLES).astype(np.int64)])
    base = np.flatnonzero(plain)[one.group_of_puzzle[stored]]
    theirs, from_base = (one.rows_of(puzzles) for puzzles in (stored, base))
    ids = one.puzzle_identifiers
    numbers = (ids[stored] - ids[base])[theirs[1]]
    blocks = (_blocks(one, rows, metadata, to_corner=True) for rows in (theirs[0], from_base[0]))
    begin = 0
    for (inputs, labels), (plain_inputs, plain_labels) in zip(*blocks, strict=True):
        which = slice(begin, begin + len(inputs))
        rows = TokenBatch(plain_inputs, plain_labels, ids[base][theirs[1]][which].astype(np.int32))
        made = ArcSymmetry(identifiers).variant(rows, numbers[which])
        equal = (made.inputs == inputs).all(1) & (made.labels == labels).all(1)
        if not equal.all():
            puzzle = stored[theirs[1][which][int(equal.argmin())]]
            return begin, f"puzzle {puzzle}, {identifiers.name(int(ids[puzzle]))}, is not what its name says"
        begin = which.stop
    return begin, None
