"""Let a trained model solve puzzles that come as text, and tell what each segment made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_ray.config.text import NotTextError, read_standard_input, read_text
from trm_ray.data.format import DatasetInfo
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import IGNORED_LABEL
from trm_ray.kinds.kind import Kind, Question, Verdict
from trm_ray.kinds.registry import kind_named, kind_of
from trm_ray.reporting.pictures.boards import Board, Frame
from trm_ray.storage import as_path

if TYPE_CHECKING:
    from trm_ray.interop.loading import LoadedModel

_TOKENS_AT_ONCE = 8192  # of one batch: enough to keep a processor busy


@dataclass(frozen=True)
class Segment:
    """An answer after a segment, numbered from 1: tokens (L,), and which of them differ from the segment before.

    The first segment is compared with the puzzle itself.
    """

    number: int
    tokens: np.ndarray
    changed: np.ndarray
    halt_probability: float
    verdict: Verdict


@dataclass(frozen=True)
class Prediction:
    """What a model made of a puzzle; the answer is the last segment's, as in evaluation."""

    kind: Kind
    question: Question
    segments: tuple[Segment, ...]

    @property
    def halting_segment(self) -> int | None:
        """Return the first segment at which the halt head says stop, None if it never does."""
        return next((segment.number for segment in self.segments if segment.halt_probability > 0.5), None)

    @property
    def verdict(self) -> Verdict:
        """Return what the rules say of the answer."""
        return self.segments[-1].verdict

    @property
    def solved(self) -> bool | None:
        """Return whether the answer is the known one; None if that is not known."""
        labels, tokens = self.question.labels, self.segments[-1].tokens
        return None if labels is None else bool((tokens == labels)[labels != IGNORED_LABEL].all())

    def frames(self) -> list[Frame]:
        """Lay out all segments for drawing."""
        halting = self.halting_segment
        return [self._frame(segment, halts=segment.number == halting) for segment in self.segments]

    def _frame(self, segment: Segment, *, halts: bool) -> Frame:
        cells, inputs = self.kind.layout(segment.tokens), self.question.inputs
        board = Board(
            self.kind.name,
            self.kind.symbols(segment.tokens)[cells],
            given=self.kind.given(inputs)[cells],
            changed=segment.changed[cells],
            wrong=segment.verdict.wrong[cells],
            box=self.kind.box,
        )
        num_changed, verdict = int(segment.changed.sum()), segment.verdict
        halt = segment.halt_probability
        return Frame(segment.number, board, halt, num_changed, verdict.words, verdict.valid, halts)

    def as_json(self) -> dict[str, Any]:
        """Write the prediction in plain values."""
        return {
            "puzzle": self.question.name,
            "segments": [
                {
                    "segment": segment.number,
                    "board": self.kind.plain(segment.tokens),
                    "halt_probability": round(segment.halt_probability, 6),
                    "valid": segment.verdict.valid,
                    "changed": int(segment.changed.sum()),
                }
                for segment in self.segments
            ],
            "answer": self.kind.plain(self.segments[-1].tokens),
            "valid": self.verdict.valid,
            "solved": self.solved,
            "halting_segment": self.halting_segment,
        }


def load(path: Path, *, averaged: bool = True) -> LoadedModel:
    """Load the model of a run or checkpoint onto a GPU if there is one.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    import torch

    from trm_ray.interop.loading import load_model

    return load_model(path, averaged=averaged, device="cuda" if torch.cuda.is_available() else "cpu")


def kind_for(loaded: LoadedModel) -> Kind:
    """Tell what sort of puzzle a model was trained on: what its dataset says, or where that is not here its tokens.

    Raises:
        ValueError: it was trained on text.
    """
    config, shape = loaded.config, loaded.shape
    if loaded.causal:
        raise ValueError(
            f"{loaded.path} is a model of text: `trm-ray generate` continues text and answers prompts, "
            "`trm-ray evaluate` measures held-out text"
        )
    with suppress(ValueError, OSError):
        if name := DatasetInfo.load(config.train_folders[0]).kind:
            return kind_named(name, shape.seq_len, shape.vocab_size)
    generator = config.generator.name if config.generator else ""
    return kind_of(shape.seq_len, shape.vocab_size, names=" ".join([generator, config.task or "", *config.data_paths]))


def read_questions(source: str, kind: Kind) -> list[Question]:
    """Read the puzzles of a file, or of the standard input for `-`.

    Raises:
        ValueError: it cannot be read, is empty, or holds something else than puzzles of this kind.
    """
    return kind.read(*read_source(source))


def read_source(source: str) -> tuple[str, str, str]:
    """Read a file, or the standard input for `-`, which says nothing of a kind yet; return what `Kind.read` takes.

    Raises:
        ValueError: it cannot be read, or is empty.
    """
    path = None if source == "-" else as_path(source)
    called, name = ("the standard input", "stdin") if path is None else (source, path.stem)
    try:
        text = read_standard_input() if path is None else read_text(path)
    except (OSError, NotTextError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        way_out = "name a file with a puzzle, or - for the standard input"
        raise ValueError(f"{called} cannot be read: {reason}; {way_out}") from error
    if not text.strip():
        raise ValueError(f"{called} is empty; give it a puzzle")
    return text, called, name


def identify(loaded: LoadedModel, questions: Sequence[Question]) -> np.ndarray:
    """Find the identifiers (B,) that a model knows the questions' tasks by; 0, the blank one, where there is none."""
    known: dict[str | None, int] = {}
    if loaded.identifiers is not None and loaded.puzzle_embedding is not None:
        identifiers, asked = PuzzleIdentifiers.from_bytes(loaded.identifiers), {question.task for question in questions}
        for name, first in zip(identifiers.names, identifiers.first.tolist(), strict=True):
            # A run of identifiers may hold augmentations alone, where the original's list names a puzzle twice.
            if name in asked and identifiers.name(first) == name:
                known.setdefault(name, first)
    return np.array([known.get(question.task, 0) for question in questions], np.int32)


def remark(loaded: LoadedModel, questions: Sequence[Question]) -> str | None:
    """Tell which tasks a model with puzzle embeddings has never seen, None if there are none."""
    if loaded.puzzle_embedding is None:
        return None
    unknown = {q.task for q, known in zip(questions, identify(loaded, questions), strict=True) if q.task and not known}
    if not unknown:
        return None
    return (
        f"The model has never seen {', '.join(sorted(unknown))}, so its embedding is blank: a TRM can only solve a "
        "task whose examples it was trained on"
    )


def predict(
    loaded: LoadedModel,
    kind: Kind,
    questions: Sequence[Question],
    *,
    num_segments: int | None = None,
    advance: Callable[[int], None] = lambda amount: None,
) -> Iterator[Prediction]:
    """Solve puzzles in batches.

    Args:
        num_segments: as many as the model was trained with, if not given.
        advance: told the number of puzzles after each segment that they have gone through.
    """
    batch_size = max(1, _TOKENS_AT_ONCE // loaded.shape.seq_len)
    for start in range(0, len(questions), batch_size):
        yield from _predict_batch(loaded, kind, questions[start : start + batch_size], num_segments, advance)


def _predict_batch(
    loaded: LoadedModel,
    kind: Kind,
    questions: Sequence[Question],
    num_segments: int | None,
    advance: Callable[[int], None],
) -> Iterator[Prediction]:
    import torch

    from trm_ray.model.trm import Batch
    from trm_ray.training.inference import run_segments

    inputs = np.stack([question.inputs for question in questions])
    arrays = (inputs, np.full_like(inputs, IGNORED_LABEL), identify(loaded, questions))
    batch = Batch(*map(torch.from_numpy, arrays)).to(loaded.device)
    boards, halts = [inputs], []
    for output in run_segments(loaded, batch, num_segments):
        boards.append(output.cycle_logits[-1].argmax(-1).cpu().numpy())
        halts.append(output.halt_logits.sigmoid().cpu().numpy())
        advance(len(questions))
    for row, question in enumerate(questions):
        tokens = [board[row] for board in boards]
        yield Prediction(kind, question, tuple(_segments(kind, question, tokens, [float(halt[row]) for halt in halts])))


def _segments(
    kind: Kind, question: Question, tokens: Sequence[np.ndarray], halts: Sequence[float]
) -> Iterator[Segment]:
    """Compare the answers after each segment with what was before, the puzzle itself at first."""
    for number, (before, after, halt) in enumerate(zip(tokens, tokens[1:], halts, strict=False), 1):
        shown = np.zeros(after.shape, bool)  # the rest of the tokens means nothing, and nothing has taught it to stay
        shown[kind.layout(before)] = shown[kind.layout(after)] = True
        yield Segment(number, after, shown & (before != after), halt, kind.judge(question, after))
