"""What the tokens of a puzzle spell: reading it from text, laying it out as a board, judging an answer by the rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.data.stream import Symmetry
from trm_ray.kinds.arc import read
from trm_ray.kinds.arc.kind import Arc
from trm_ray.kinds.arc.symmetry import ArcSymmetry
from trm_ray.kinds.dihedral import DihedralSymmetry
from trm_ray.kinds.kind import Kind, side_of
from trm_ray.kinds.maze.kind import Maze
from trm_ray.kinds.maze.rules import SMALLEST, VOCAB_SIZE
from trm_ray.kinds.sudoku.kind import Sudoku
from trm_ray.kinds.sudoku.rules import BOXES
from trm_ray.kinds.sudoku.symmetry import SudokuSymmetry
from trm_ray.kinds.tokens import Tokens

SUDOKU_SIZES = {(size * size, size + 2): size for size in BOXES}  # by (seq_len, vocab_size)


def kind_of(seq_len: int, vocab_size: int, told: str = "") -> Kind:
    """Tell the sort of puzzle from the tokens that a model reads and writes; token ids if it is none of ours.

    Args:
        told: names that come with the data. A 4×4 board is a Sudoku unless they speak of a maze.
    """
    is_maze = vocab_size == VOCAB_SIZE and side_of(seq_len) >= SMALLEST
    if (seq_len, vocab_size) in SUDOKU_SIZES and not (is_maze and "maze" in told):
        return Sudoku(SUDOKU_SIZES[seq_len, vocab_size])
    if is_maze:
        return Maze(side_of(seq_len))
    return Arc() if (seq_len, vocab_size) == (read.SEQ_LEN, read.VOCAB_SIZE) else Tokens(seq_len, vocab_size)


# ---- Sudoku ----------------------------------------------------------------------------------------------


# ---- Maze ------------------------------------------------------------------------------------------------


# ---- ARC -------------------------------------------------------------------------------------------------


# ---- ARC -------------------------------------------------------------------------------------------------


# ---- token ids -------------------------------------------------------------------------------------------


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
    if name == "sudoku":
        return SudokuSymmetry(tuple(symmetry["box"]))
    if name == "dihedral":
        return DihedralSymmetry()
    if name == "arc":
        return ArcSymmetry(identifiers)
    raise DatasetError(f"symmetry={dict(symmetry)} is unknown; this release knows sudoku, dihedral and arc")
