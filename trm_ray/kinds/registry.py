"""What the tokens of a puzzle spell: reading it from text, laying it out as a board, judging an answer by the rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trm_ray.data.rows import DatasetError
from trm_ray.kinds.arc import read
from trm_ray.kinds.maze.generate import (
    CHARACTERS,
    FREE,
    PATH,
    SMALLEST,
    VOCAB_SIZE,
    is_valid_answer,
    parse_maze,
    shortest_lengths,
)
from trm_ray.kinds.sudoku.generate import BOXES, box_of, parse_board

SUDOKU_SIZES = {(size * size, size + 2): size for size in BOXES}  # by (seq_len, vocab_size)


@dataclass(frozen=True)
class Question:
    """A puzzle to be solved: inputs (L,) token ids, labels (L,) if they are known, the task it belongs to."""

    name: str
    inputs: np.ndarray
    labels: np.ndarray | None = None
    task: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the rules say of an answer; `valid` is None where there are no rules. wrong: (L,) cells that break one."""

    valid: bool | None
    words: str
    wrong: np.ndarray


class Kind(Protocol):
    """A sort of puzzle."""

    @property
    def name(self) -> str:
        """Return what it is called."""

    @property
    def box(self) -> tuple[int, int] | None:
        """Return the rows and columns of a box on the board, if it has boxes."""

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read every puzzle of a text.

        Args:
            source: what to call the text in an error.
            name: what to call its puzzles, with a number if there are several.

        Raises:
            DatasetError: the text holds something else, or puzzles of another size.
        """

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Say which tokens (L,) of a puzzle its answer must keep."""

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Say which positions (H, W) of the tokens (L,) make the board."""

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write tokens (L,) as they are drawn: (L,) short texts."""

    def plain(self, tokens: np.ndarray) -> Any:
        """Write an answer (L,) for JSON, in the form that `read` takes."""

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Hold an answer (L,) against the rules."""


def kind_of(seq_len: int, vocab_size: int, told: str = "") -> Kind:
    """Tell the sort of puzzle from the tokens that a model reads and writes; token ids if it is none of ours.

    Args:
        told: names that come with the data. A 4×4 board is a Sudoku unless they speak of a maze.
    """
    is_maze = vocab_size == VOCAB_SIZE and _side(seq_len) >= SMALLEST
    if (seq_len, vocab_size) in SUDOKU_SIZES and not (is_maze and "maze" in told):
        return Sudoku(SUDOKU_SIZES[seq_len, vocab_size])
    if is_maze:
        return Maze(_side(seq_len))
    return Arc() if (seq_len, vocab_size) == (read.SEQ_LEN, read.VOCAB_SIZE) else Tokens(seq_len, vocab_size)


def _side(seq_len: int) -> int:
    """Return the side of a square board, 0 if there is none."""
    side = round(seq_len**0.5)
    return side if side * side == seq_len else 0


def _named(source: str, name: str, puzzles: Sequence[np.ndarray]) -> list[Question]:
    """Call a single puzzle `name`, several by number too.

    Raises:
        DatasetError: there are none.
    """
    if not puzzles:
        raise DatasetError(f"{source} holds no puzzle; give one, or several with blank lines between them")
    names = _names(name, len(puzzles))
    return [Question(called, tokens.astype(np.int32)) for called, tokens in zip(names, puzzles, strict=True)]


def _names(name: str, number: int) -> list[str]:
    return [name] if number == 1 else [f"{name} #{n}" for n in range(1, number + 1)]


# ---- Sudoku ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sudoku:
    """Boards of digits: token 1 is a blank, d + 1 the digit d."""

    size: int
    name = "sudoku"

    @property
    def box(self) -> tuple[int, int]:
        """Return the rows and columns of a box."""
        return box_of(self.size)

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read boards of digits, `.` or `0` for a blank: a line each, or a block of lines each."""
        boards = [self._board(piece, source) for block in _blocks(text) for piece in self._pieces(block)]
        return _named(source, name, [board + 1 for board in boards])

    def _pieces(self, block: list[str]) -> list[str]:
        """Take a block as one board unless each of its lines is one."""
        lines = ["".join(line.split()) for line in block]
        return lines if all(len(line) == self.size**2 for line in lines) else ["".join(lines)]

    def _board(self, cells: str, source: str) -> np.ndarray:
        wrong = sorted(set(cells) - set("." + "0123456789"[: self.size + 1]))
        if wrong:
            raise DatasetError(f"{source} has the character {wrong[0]!r}; use 1 to {self.size}, and . or 0 for a blank")
        if len(cells) != self.size**2:
            rule = f"this model solves {self.size}×{self.size} boards of {self.size**2}"
            raise DatasetError(f"{source} has a puzzle of {len(cells)} cells; {rule}, with blank lines between them")
        return parse_board(cells)

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep the clues."""
        clues: np.ndarray = inputs > 1
        return clues

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the cells out row by row."""
        return np.arange(self.size**2).reshape(self.size, self.size)

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write digits, `.` for a blank, `?` for what is no cell."""
        return np.array(["?", ".", *"123456789"])[tokens]

    def plain(self, tokens: np.ndarray) -> list[str]:
        """Write one text a row."""
        return _rows_of_text(self, tokens)

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Call a grid valid when no digit comes twice, none is missing and the clues stand."""
        clashing, empty = self._clashing(tokens), tokens < 2
        moved = self.given(question.inputs) & (tokens != question.inputs)
        counts = {"clashing": clashing.sum(), "blank": empty.sum(), "changed clues": moved.sum()}
        told = [f"{what}: {count}" for what, count in counts.items() if count]
        return Verdict(not told, ", ".join(told) or "solved", clashing | moved | (tokens == 0))

    def _clashing(self, tokens: np.ndarray) -> np.ndarray:
        """Find the digits that another cell of the row, column or box has too."""
        (height, width), cells = self.box, np.arange(self.size**2)
        row, column = cells // self.size, cells % self.size
        units = (row, column, row // height * self.size + column // width)
        peers = np.logical_or.reduce([unit[:, None] == unit for unit in units]) & ~np.eye(len(cells), dtype=bool)
        twice: np.ndarray = (peers & (tokens[:, None] == tokens)).any(1) & (tokens > 1)
        return twice


def _blocks(text: str) -> list[list[str]]:
    """Part a text at its blank lines."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _rows_of_text(kind: Kind, tokens: np.ndarray) -> list[str]:
    return ["".join(row) for row in kind.symbols(tokens)[kind.layout(tokens)].tolist()]


# ---- Maze ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maze:
    """Square mazes of walls, free cells, start, goal, and in an answer the path `o` between the two."""

    size: int
    name = "maze"
    box = None

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read mazes of `# SG`, a line each row, with blank lines between them; or a line each maze."""
        lines = [self._cut(line) for line in text.splitlines()]
        if all(len(line) == self.size**2 or not line.strip() for line in lines):
            mazes = [line for line in lines if line.strip()]
        else:
            mazes = [self._joined(block, source) for block in self._blocks(lines)]
        return _named(source, name, [self._tokens(maze, source) for maze in mazes])

    def _cut(self, line: str) -> str:
        """Cut the blanks off that stand beyond a row, or beyond a maze in one line."""
        length = self.size if len(line) < self.size**2 else self.size**2
        return line if line[length:].strip() else line[:length]

    def _blocks(self, lines: list[str]) -> Iterator[list[str]]:
        """Part mazes, each with the line after it; a blank line is a row of free cells where that makes a maze."""
        at, step = 0, self.size + 1
        while at < len(lines):
            block = lines[at : at + step]
            if lines[at].strip() or self._is_maze(block):
                yield block
                at += step
            else:
                at += 1

    def _is_maze(self, block: list[str]) -> bool:
        cells, after = "".join(block[: self.size]), "".join(block[self.size :])
        return len(block) >= self.size and cells.count("S") == cells.count("G") == 1 and not after.strip()

    def _joined(self, block: list[str], source: str) -> str:
        """Join the rows of a maze, which a blank line may follow; spaces at a line's end may be missing."""
        rows, after = block[: self.size], "".join(block[self.size :])
        longest = max(map(len, rows))
        if after.strip() or longest > self.size or len(rows) < self.size:
            rule = f"this model solves mazes of {self.size} rows of {self.size}, with blank lines between them"
            raise DatasetError(f"{source} has a block of {len(block)} rows of up to {longest} characters; {rule}")
        return "".join(row.ljust(self.size) for row in rows)

    def _tokens(self, maze: str, source: str) -> np.ndarray:
        if "o" in maze:
            raise DatasetError(
                f"{source} has a path already; a puzzle is drawn with # wall, blank free, S start, G goal"
            )
        try:
            return parse_maze(maze)
        except ValueError as error:
            raise DatasetError(f"{source}: {error}") from error

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep all but free cells, which may become path."""
        kept: np.ndarray = inputs != FREE
        return kept

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the cells out row by row."""
        return np.arange(self.size**2).reshape(self.size, self.size)

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write the maze's own characters, `?` for what is no cell."""
        return np.array(["?", *CHARACTERS])[tokens]

    def plain(self, tokens: np.ndarray) -> list[str]:
        """Write one text a row."""
        return _rows_of_text(self, tokens)

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Call an answer valid when its marks are one path from S to G, and tell whether a shorter one exists."""
        path = tokens == PATH
        moved = np.where(path, question.inputs != FREE, tokens != question.inputs)
        if moved.any():
            return Verdict(False, f"changed cells of the maze: {moved.sum()}", moved)
        if not is_valid_answer(question.inputs, tokens):
            return Verdict(False, "no single path from S to G", moved)
        length, shortest = int(path.sum()) + 1, int(shortest_lengths(question.inputs))
        best = "the shortest" if length == shortest else f"the shortest takes {shortest}"
        return Verdict(True, f"a path of {length} steps, {best}", moved)


# ---- ARC -------------------------------------------------------------------------------------------------


# ---- ARC -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arc:
    """Grids of ten colours, of any size up to 30×30."""

    name = "arc"
    box = None

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read the test inputs of a task from its public JSON, and their outputs if they are there."""
        try:
            task = json.loads(text)
        except (ValueError, RecursionError) as error:
            rule = 'an ARC task is {"train": […], "test": [{"input": [[0, 1], …]}]}'
            raise DatasetError(f"{source} is not valid JSON ({error}); {rule}") from error
        pairs = read.parse_puzzle(source, name, task).test
        names = _names(name, len(pairs))
        return [
            Question(called, read.input_tokens(pair.input), _labels(pair.output), task=name)
            for called, pair in zip(names, pairs, strict=True)
        ]

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep nothing: the answer is another grid."""
        return np.zeros(inputs.shape, bool)

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay out the largest rectangle of colours in the upper left."""
        height, width = read.grid_sizes(tokens[None])[0]
        return np.arange(read.SEQ_LEN).reshape(read.SIDE, read.SIDE)[:height, :width]

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write colours as digits."""
        return np.array(["?", "?", *"0123456789"])[tokens]

    def plain(self, tokens: np.ndarray) -> list[list[int]]:
        """Write a list of rows, as the public files do."""
        rows: list[list[int]] = read.grids_of(tokens[None])[0].tolist()
        return rows

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Call an answer valid when EOS runs along the whole of its grid's lower and right border."""
        wrong, (height, width) = np.zeros(tokens.shape, bool), self.layout(tokens).shape
        canvas = tokens.reshape(read.SIDE, read.SIDE)
        below, beside = canvas[height : height + 1, :width], canvas[:height, width : width + 1]
        missing = (below != read.EOS).sum() + (beside != read.EOS).sum()
        if height == 0:
            return Verdict(False, "no grid", wrong)
        if missing:
            return Verdict(False, f"{height}×{width} grid not closed: {missing} cells lack EOS", wrong)
        return Verdict(True, f"a grid of {height}×{width}", wrong)


def _labels(grid: np.ndarray | None) -> np.ndarray | None:
    return None if grid is None else read.label_tokens(grid)


# ---- token ids -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Boards of token ids without rules, such as those of a dataset of one's own."""

    seq_len: int
    vocab_size: int
    name = "tokens"
    box = None

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read integers with white space or commas between them, a line a board."""
        lines = [line.replace(",", " ").split() for line in text.splitlines()]
        return _named(source, name, [self._tokens(words, source) for words in lines if words])

    def _tokens(self, words: list[str], source: str) -> np.ndarray:
        wrong = [word for word in words if not word.isdecimal() or int(word) >= self.vocab_size]
        if wrong:
            raise DatasetError(f"{source} has {wrong[0]!r}; this model reads token ids from 0 to {self.vocab_size - 1}")
        if len(words) != self.seq_len:
            raise DatasetError(f"{source} has a line of {len(words)} tokens; this model reads {self.seq_len} a line")
        return np.array([int(word) for word in words])

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep nothing."""
        return np.zeros(inputs.shape, bool)

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        """Lay the tokens out as a square if they make one, else in one row."""
        return np.arange(self.seq_len).reshape(_side(self.seq_len) or 1, -1)

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write the numbers."""
        return tokens.astype(str)

    def plain(self, tokens: np.ndarray) -> list[int]:
        """Write the numbers."""
        numbers: list[int] = tokens.tolist()
        return numbers

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Leave the answer to the reader."""
        return Verdict(None, "no rules to hold it against", np.zeros(tokens.shape, bool))
