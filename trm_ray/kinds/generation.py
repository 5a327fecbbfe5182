"""Puzzles made in numbered chunks by any number of processes, and dealt out to splits that share none.

What a chunk holds follows from its number, not from the process that makes it, so the same arguments give the same
puzzles on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.data.format import DatasetInfo
from trm_ray.data.progress import progress, tell
from trm_ray.data.rows import Rows
from trm_ray.data.write import write_dataset
from trm_ray.kinds.chunk_workers import ChunkWorkers, MakeChunk
from trm_ray.kinds.chunk_workers import Puzzles as Puzzles

# New puzzles are given up on after so many chunks with hardly any (a small board has few).
BARREN_CHUNKS = 12
_HARDLY_ANY = 10


def generate(make: MakeChunk, *, train: int, test: int, processes: int, unit: str, way_out: str) -> dict[str, Puzzles]:
    """Make chunks until both splits are full; a split of which nothing is wanted is left out.

    The test puzzles come first, so a larger training split leaves them as they are. No test puzzle is symmetric to
    another one or to a training puzzle; training puzzles repeat only when there are no more.

    Args:
        make: the puzzles of a chunk's number; pickled where there are several processes.
        unit: what the puzzles are called, "puzzles" or "mazes".
        way_out: what to change when there are too few of them, "widen --clues".

    Raises:
        ValueError: too few puzzles that differ under symmetry were found.
    """
    collected = _Collected(train, test, unit, way_out)
    with progress(unit, train + test) as advance, _chunks(make, processes) as chunks:
        for chunk in chunks:
            advance(collected.take(chunk))
            if collected.complete:
                break
    tell(collected.told())
    return {name: part.puzzles() for name, part in collected.parts.items() if part.wanted}


def check_least(*values: tuple[str, int, int]) -> None:
    """Check arguments, each by name, value and the least that it may be.

    Raises:
        ValueError: one is less.
    """
    for name, value, least in values:
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")


def write_boards(output: str | Path, splits: Mapping[str, Rows], **options: Any) -> DatasetInfo:
    """Write a dataset as `write_dataset` does, and say so."""
    info = write_dataset(output, splits, **options)
    tell(f"Wrote {output}: " + ", ".join(f"{split.rows:,} {name}" for name, split in info.splits.items()))
    return info


def num_processes(num_boards: int, boards_per_process: int) -> int:
    """Decide how many processes pay off: never more than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, num_boards // boards_per_process)


@contextmanager
def _chunks(make: MakeChunk, processes: int) -> Iterator[Iterable[Puzzles]]:
    """Yield chunks in the order of their numbers, without end, however many processes make them."""
    if processes <= 1:
        yield map(make, count())
        return
    with ChunkWorkers(make, processes) as workers:
        yield workers.chunks()


@dataclass
class _Part:
    """Collect the puzzles of one split."""

    wanted: int
    forms: set[bytes] = field(default_factory=set)
    chosen: list[tuple[np.ndarray, np.ndarray, bytes]] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return self.wanted - len(self.chosen)

    def add(self, question: np.ndarray, answer: np.ndarray, form: bytes) -> None:
        self.forms.add(form)
        self.chosen.append((question, answer, form))

    def puzzles(self) -> Puzzles:
        questions, answers, forms = zip(*self.chosen, strict=True)
        return Puzzles(np.stack(questions), np.stack(answers), list(forms))


class _Collected:
    """Deal puzzles out: test first, then train, all different; when no new ones come, train may repeat."""

    def __init__(self, train: int, test: int, unit: str, way_out: str) -> None:
        self.parts = {"train": _Part(train), "test": _Part(test)}
        self._unit, self._way_out = unit, way_out
        self._barren = 0

    @property
    def complete(self) -> bool:
        return not any(part.missing for part in self.parts.values())

    def take(self, chunk: Puzzles) -> int:
        """Keep what is wanted of a chunk and count it.

        Raises:
            ValueError: no more puzzles are to be had.
        """
        before = sum(part.missing for part in self.parts.values())
        train, test = self.parts["train"], self.parts["test"]
        exhausted = self._barren >= BARREN_CHUNKS
        if exhausted:
            self._check_repeatable()
        fresh = 0
        for question, answer, form in zip(chunk.questions, chunk.answers, chunk.forms, strict=True):
            is_new = form not in test.forms and form not in train.forms
            fresh += is_new
            if is_new and test.missing:
                test.add(question, answer, form)
            elif train.missing and (is_new or (exhausted and form in train.forms)):
                train.add(question, answer, form)
        self._barren = self._barren + 1 if fresh <= _HARDLY_ANY else 0
        return before - sum(part.missing for part in self.parts.values())

    def told(self) -> str:
        """Say how many of the puzzles are different, which a small board may not allow for all."""
        train = self.parts["train"]
        repeats = train.wanted - len(train.forms)
        repeated = f"; {repeats:,} training {self._unit} repeat another one under symmetry" if repeats else ""
        return f"No test {self._unit[:-1]} is symmetric to a training {self._unit[:-1]}{repeated}"

    def _check_repeatable(self) -> None:
        train, test = self.parts["train"], self.parts["test"]
        if test.missing or not train.forms:
            raise ValueError(
                f"train={train.wanted} test={test.wanted}: only {len(test.forms):,} {self._unit} that differ under "
                f"symmetry were found, and training needs some too; ask for fewer test {self._unit} or {self._way_out}"
            )
