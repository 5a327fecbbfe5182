"""Evaluation of a model of text: sums over the rows of a split, of which one row group is in memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trm_ray.data.format import DatasetInfo
from trm_ray.data.progress import progress
from trm_ray.data.rows import IGNORED_LABEL, Rows, concatenate
from trm_ray.data.stored import StoredSplit
from trm_ray.interop.loading import LoadedModel, load_model
from trm_ray.kinds.tally import Extra
from trm_ray.model.trm import Batch
from trm_ray.reporting.numbers.text_evaluation import TextEvaluation, TextSums, summarise_text
from trm_ray.runs.execute import choose_device, text_measure
from trm_ray.training.evaluation import measure_text, text_sizes
from trm_ray.training.losses import LOSSES


@dataclass(frozen=True)
class TextJob:
    """What a worker needs to know.

    max_rows: only so many rows, the first; None = all.
    """

    checkpoint: Path
    averaged: bool
    folders: tuple[Path, ...]
    split: str
    num_segments: int
    batch_size: int
    max_rows: int | None


class StoredRows:
    """The rows of a split where they lie, in their order; the row groups read last are kept."""

    def __init__(self, folders: Sequence[Path], split: str):
        stored = StoredSplit.of(folders, split, memory_gib=1.0)
        self._groups, self._seq_len = stored.row_groups, stored.seq_len
        self._ends = np.cumsum([group.num_rows for group in self._groups])
        self._read = functools.lru_cache(maxsize=2)(self._read_group)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def between(self, first: int, last: int) -> Rows:
        """Read rows `first` to before `last`."""
        begin, end = np.searchsorted(self._ends, (first, last - 1), side="right")
        parts = []
        for number in range(begin, end + 1):
            before = int(self._ends[number]) - self._groups[number].num_rows
            parts.append(self._read(number)[max(0, first - before) : last - before])
        return concatenate(parts)

    def _read_group(self, number: int) -> Rows:
        return self._groups[number].read(self._seq_len)


class TextEvaluator:
    """Sum up batch k of a job's rows, whoever does it.

    Args:
        loaded: the job's model, where it has been loaded already.
    """

    def __init__(self, job: TextJob, loaded: LoadedModel | None = None):
        self.job, self.loaded = job, loaded or load_model(job.checkpoint, averaged=job.averaged)
        self._rows, self.info = StoredRows(job.folders, job.split), DatasetInfo.load(job.folders[0])
        measure = text_measure(job.folders)
        assert measure is not None, "the dataset is one of text"
        self.measure = measure
        self.num_rows = min(len(self._rows), job.max_rows or len(self._rows))

    @property
    def num_batches(self) -> int:
        """Count the batches."""
        return -(-self.num_rows // self.job.batch_size)

    @functools.cached_property
    def _device(self) -> torch.device:
        """Move the model to where it measures, on the first batch: a process that measures nothing takes no GPU."""
        device = choose_device(self.loaded.config)
        self.loaded.to(device)
        return device

    def __call__(self, number: int) -> tuple[int, TextSums]:
        """Measure a batch, on the run's number of threads: how many rows it has, and their sums."""
        config, size = self.loaded.config, self.job.batch_size
        torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
        rows = self._rows.between(number * size, min((number + 1) * size, self.num_rows))
        arrays = (rows.inputs, rows.labels, np.zeros_like(rows.puzzle_identifiers))
        batch = Batch(*map(torch.from_numpy, arrays)).to(self._device)
        found = measure_text(self.loaded, batch, LOSSES[config.loss_type], self.job.num_segments)
        sizes = text_sizes(batch.labels, self.measure.token_bytes.to(self._device)).double()
        seen = context_sizes(rows.inputs, self.loaded.separator)[rows.labels != IGNORED_LABEL].sum()
        return len(rows), TextSums.of(found.cpu().numpy(), sizes.cpu().numpy(), float(seen))

    def collect(
        self, batches: Iterable[tuple[int, TextSums]], segments: Sequence[int]
    ) -> tuple[TextEvaluation, dict[str, float], Extra]:
        """Add the batches up, in their order; return what they come to, what they took, and nothing more."""
        began, sums = time.perf_counter(), None
        with progress("rows", self.num_rows) as advance:
            for num_rows, found in batches:
                sums = found if sums is None else sums + found
                advance(num_rows)
        assert sums is not None, "a split has rows"
        loaded, text = self.loaded, self.info.text
        assert text is not None, "the dataset is one of text"
        evaluation = summarise_text(
            sums,
            seq_len=self.info.seq_len,
            packing=text.packing,
            document_mask=loaded.separator is not None,
            num_cycles=loaded.H_cycles,
            trained_segments=loaded.halt_max_steps,
            segments=segments,
            yardsticks=self.measure.yardsticks if self.job.split == "test" else {},
        )
        num_run, seconds = self.num_rows * self.job.num_segments, time.perf_counter() - began
        return evaluation, {"boards": self.num_rows, "segments": num_run, "seconds": seconds}, Extra()

    @property
    def facts(self) -> dict[str, Any]:
        """Say which rows are measured."""
        return {"rows": self.num_rows, "max_rows": self.job.max_rows}

    @property
    def notes(self) -> list[str]:
        """Say where the yardsticks are of more than what was measured."""
        if self.job.split != "test" or self.num_rows == len(self._rows) or not self.measure.yardsticks:
            return []
        return [f"{' and '.join(self.measure.yardsticks)}: of all {len(self._rows):,} rows of the split"]


def context_sizes(inputs: np.ndarray, separator: int | None) -> np.ndarray:
    """Count what each position of rows (B, L) looks at: (B, L), those before it and itself, from a separator on."""
    places = np.arange(inputs.shape[1])
    if separator is None:
        return np.broadcast_to(places + 1, inputs.shape)
    begins = np.maximum.accumulate(np.where(inputs == separator, places, 0), axis=1)
    return places - begins + 1
