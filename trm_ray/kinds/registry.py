"""Which kinds of puzzles there are, and which one a dataset holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trm_ray.data.format import DatasetInfo
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.data.stream import Symmetry
from trm_ray.kinds.arc.kind import Arc
from trm_ray.kinds.dihedral import DihedralSymmetry
from trm_ray.kinds.kind import Kind, side_of
from trm_ray.kinds.maze.kind import Maze
from trm_ray.kinds.sudoku.kind import Sudoku
from trm_ray.kinds.tally import Tally
from trm_ray.kinds.text.kind import Text
from trm_ray.kinds.tokens import Tokens

# A kind of one's own is a line here. Its name stands in dataset.json, and in `generator.name` if it can be made.
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Sudoku, Maze, Arc, Text, Tokens)}


def kind_named(name: str, seq_len: int, vocab_size: int) -> Kind:
    """Return the kind of a dataset of format 3, for its boards.

    Raises:
        DatasetError: there is no such kind, or it has no boards of that shape.
    """
    if name not in KINDS:
        raise DatasetError(f"kind={name} is unknown; this release knows {', '.join(KINDS)}")
    kind = KINDS[name].of_shape(seq_len, vocab_size)
    if kind is None:
        raise DatasetError(f"kind={name} has no boards of seq_len={seq_len} and vocab_size={vocab_size}")
    return kind


def kind_of(seq_len: int, vocab_size: int, names: str = "") -> Kind:
    """Guess the kind of a dataset of format 2 from its tokens; token ids if it is none of ours.

    Args:
        names: those that come with the data. A 4×4 board is a Sudoku unless they speak of a maze.
    """
    fitting = [
        kind
        for name in KINDS
        if (kind := KINDS[name].of_shape(seq_len, vocab_size)) and name not in (Text.name, Tokens.name)
    ]
    named = [kind for kind in fitting if kind.name in names]
    return (named[-1:] or fitting[:1] or [Tokens(seq_len, vocab_size)])[0]


def tally_in(folders: Sequence[Path]) -> type[Tally]:
    """Return what an evaluation counts of datasets: of the kind whose file lies there, or whose name they have."""
    name = DatasetInfo.load(folders[0]).kind
    for kind in KINDS.values():
        if any((folder / kind.known_by).is_file() for folder in folders) if kind.known_by else kind.name == name:
            return kind.tally
    return Tally


def check_kind(info: DatasetInfo) -> None:
    """Check the kind and the symmetry that dataset.json names against the boards that they are for.

    Raises:
        DatasetError: one is unknown, or for other boards.
    """
    if info.kind is not None:
        kind_named(info.kind, info.seq_len, info.vocab_size)
    if info.symmetry is None:
        return
    symmetry_from(info.symmetry, PuzzleIdentifiers.blank())
    name = info.symmetry["name"]
    kind = KINDS[name].of_shape(info.seq_len, info.vocab_size) if name in KINDS else None
    fits = side_of(info.seq_len) > 0 if name == "dihedral" else kind is not None and kind.has_symmetry(info.symmetry)
    if not fits:
        shape = f"seq_len={info.seq_len} and vocab_size={info.vocab_size}"
        raise DatasetError(f"symmetry={dict(info.symmetry)} is not for boards of {shape}; make the dataset again")


def symmetry_from(symmetry: Mapping[str, Any] | None, identifiers: PuzzleIdentifiers) -> Symmetry | None:
    """Build the symmetry that dataset.json names, or none.

    Args:
        identifiers: of the dataset; ARC's augmentations are told apart by them.

    Raises:
        DatasetError: the name is unknown.
    """
    if symmetry is None:
        return None
    name = symmetry.get("name")
    own = {name: kind for name, kind in KINDS.items() if kind.has_own_symmetry}
    if name == "dihedral":
        return DihedralSymmetry()
    if name not in own:
        known = ", ".join((*own, "dihedral"))
        raise DatasetError(f"symmetry={dict(symmetry)} is unknown; this release knows {known}")
    return own[name].symmetry(symmetry, identifiers)
