"""ARC's grids as a kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError
from trm_ray.data.stream import Symmetry
from trm_ray.kinds.arc import read
from trm_ray.kinds.arc.symmetry import ArcSymmetry
from trm_ray.kinds.arc.voting import ArcTally
from trm_ray.kinds.kind import Kind, Question, Verdict, numbered_names


@dataclass(frozen=True)
class Arc(Kind):
    """Grids of ten colours, of any size up to 30×30."""

    name = "arc"
    known_by = read.TEST_PUZZLES_NAME
    tally = ArcTally
    has_own_symmetry = True

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Arc | None:
        """Return the canvas of 30×30 cells."""
        return cls() if (seq_len, vocab_size) == (read.SEQ_LEN, read.VOCAB_SIZE) else None

    @classmethod
    def symmetry(cls, named: Mapping[str, Any], identifiers: PuzzleIdentifiers) -> Symmetry:
        """Build that of puzzles whose identifiers name their augmentations."""
        return ArcSymmetry(identifiers)

    def has_symmetry(self, named: Mapping[str, Any]) -> bool:
        """Tell whether the canvas is ARC's, as every one of this kind is."""
        return True

    def read(self, text: str, source: str, name: str) -> list[Question]:
        """Read the test inputs of a task from its public JSON, and their outputs if they are there."""
        try:
            task = json.loads(text)
        except (ValueError, RecursionError) as error:
            rule = 'an ARC task is {"train": […], "test": [{"input": [[0, 1], …]}]}'
            raise DatasetError(f"{source} is not valid JSON ({error}); {rule}") from error
        pairs = read.parse_puzzle(source, name, task).test
        names = numbered_names(name, len(pairs))
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
        return read.grids_of(tokens[None])[0].tolist()

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
