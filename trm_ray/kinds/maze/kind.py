"""Mazes as a kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_ray.config.keys import Positive
from trm_ray.data.rows import DatasetError
from trm_ray.kinds.kind import Arguments, Question, SquareKind, Verdict, named, side_of
from trm_ray.kinds.maze import rules
from trm_ray.kinds.maze.generate import prepare_maze


class MazeArguments(Arguments):
    """Mazes without loops, each with the one path from S to G."""

    train: Positive = 1000  # mazes to train on
    test: Positive = 1000  # held-out mazes, none a rotation or mirror image of another one
    size: Positive = 30  # cells a side
    min_length: Positive = 110  # fewest steps from S to G


@dataclass(frozen=True)
class Maze(SquareKind):
    """Square mazes of walls, free cells, start, goal, and in an answer the path `o` between the two."""

    name = "maze"
    arguments = MazeArguments
    generate = staticmethod(prepare_maze)

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Maze | None:
        """Return the square maze."""
        return cls(side_of(seq_len)) if vocab_size == rules.VOCAB_SIZE and side_of(seq_len) >= rules.SMALLEST else None

    @classmethod
    def shape_made(cls, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Say so of square mazes of `size` cells a side."""
        return arguments["size"] ** 2, rules.VOCAB_SIZE

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read mazes of `# SG`, a line each row, with blank lines between them; or a line each maze."""
        lines = [self._cut(line) for line in text.splitlines()]
        if all(len(line) == self.size**2 or not line.strip() for line in lines):
            mazes = [line for line in lines if line.strip()]
        else:
            mazes = [self._joined(block, source) for block in self._blocks(lines)]
        return named(source, name, [self._tokens(maze, source) for maze in mazes])

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
            rule = "a puzzle is drawn with # wall, blank free, S start, G goal"
            raise DatasetError(f"{source} has a path already; {rule}")
        try:
            return rules.parse_maze(maze)
        except ValueError as error:
            raise DatasetError(f"{source}: {error}") from error

    def given(self, inputs: np.ndarray) -> np.ndarray:
        """Keep all but free cells, which may become path."""
        return inputs != rules.FREE

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        """Write the maze's own characters, `?` for what is no cell."""
        return np.array(["?", *rules.CHARACTERS])[tokens]

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        """Call an answer valid when its marks are one path from S to G, and tell whether a shorter one exists."""
        path = tokens == rules.PATH
        moved = np.where(path, question.inputs != rules.FREE, tokens != question.inputs)
        if moved.any():
            return Verdict(False, f"changed cells of the maze: {moved.sum()}", moved)
        if not rules.is_valid_answer(question.inputs, tokens):
            return Verdict(False, "no single path from S to G", moved)
        length, shortest = int(path.sum()) + 1, int(rules.shortest_lengths(question.inputs))
        best = "the shortest" if length == shortest else f"the shortest takes {shortest}"
        return Verdict(True, f"a path of {length} steps, {best}", moved)
