"""Evaluation of a trained model: every row of a split at every segment, in this process or on workers of Ray."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from trm_ray import __version__
from trm_ray.config.surroundings import check_surroundings
from trm_ray.data.check import open_datasets
from trm_ray.data.format import INFO_NAME, DatasetInfo, read_identifiers, read_splits
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.progress import progress, tell
from trm_ray.data.rows import IGNORED_LABEL, TokenBatch
from trm_ray.interop.loading import LoadedModel, load_model
from trm_ray.kinds.registry import KINDS, check_kind, symmetry_from, tally_in
from trm_ray.kinds.tally import Asked, Extra
from trm_ray.model.trm import Batch
from trm_ray.programs.evaluate_text import TextEvaluator, TextJob
from trm_ray.replacement import is_ours, report_content, told_names
from trm_ray.reporting.aside import aside
from trm_ray.reporting.numbers.evaluation import (
    Evaluation,
    RowResults,
    evaluation_json,
    evaluation_lines,
    evaluation_table,
    summarise_evaluation,
)
from trm_ray.reporting.numbers.text_evaluation import TextEvaluation, text_lines, text_table
from trm_ray.reporting.pictures.evaluation import save_evaluation
from trm_ray.runs.data import make_missing
from trm_ray.runs.execute import choose_device, num_threads_kept
from trm_ray.storage import as_path, sha256
from trm_ray.training.evaluation import MeasuredRows, measure_rows
from trm_ray.training.losses import LOSSES


@dataclass(frozen=True)
class EvaluationJob(Asked):
    """What a worker needs to know. A board is a row of the split in one of its variants."""

    checkpoint: Path
    averaged: bool
    num_segments: int
    halt: bool
    batch_size: int


@dataclass(frozen=True)
class MeasuredBatch:
    """What came of a batch of B boards.

    rows: the rows as they are that have labels, which the numbers count.
    num_run: segments that were computed, over all boards.
    counted: what the kind's tally counts of all boards.
    """

    num_boards: int
    rows: RowResults
    num_run: int
    counted: Any


class Evaluator:
    """Measure batch k of a job's boards; whoever does it, batch k holds the same boards in the same order.

    Args:
        loaded: the job's model, where it has been loaded already.

    Raises:
        ValueError: checkpoint or data are bad, or do not belong together.
    """

    def __init__(self, job: EvaluationJob, loaded: LoadedModel | None = None):
        self.job, self.loaded = job, loaded or load_model(job.checkpoint, averaged=job.averaged)
        self.identifiers = read_identifiers(*job.folders)
        self._embedded_as = embedding_rows(self.loaded, self.identifiers, job.folders)
        self._symmetry = symmetry_from(DatasetInfo.load(job.folders[0]).symmetry, self.identifiers)
        rows = read_splits(job.folders, job.split)
        self.tally = tally_in(job.folders)(job, rows, self.identifiers, self._symmetry)
        if job.num_variants is not None and not self.tally.votes:
            told = f"--augmentations={job.num_variants - 1} is for a test split whose answers are voted on"
            raise ValueError(f"{told}; leave it out for the {job.split} split of {_listed(job.folders)}")
        self.rows, variants = self.tally.rows, self.tally.variants
        self._row_of = np.repeat(np.arange(len(self.rows)), variants)
        self._variant_of = np.arange(len(self._row_of)) - np.repeat(np.cumsum(variants) - variants, variants)
        self._as_it_is = (self._variant_of == 0) & (self.tally.stored[self._row_of] == 0)

    @property
    def num_boards(self) -> int:
        """Count the rows in all their variants."""
        return len(self._row_of)

    @property
    def num_batches(self) -> int:
        """Count the batches."""
        return -(-self.num_boards // self.job.batch_size)

    @property
    def notes(self) -> list[str]:
        """Say what was taken for granted, as nothing could tell."""
        num, loaded = len(self.identifiers), self.loaded
        if loaded.config.arch.puzzle_emb_ndim == 0 or loaded.identifiers is not None or num == 1:
            return []
        return [
            f"{loaded.path} has no identifiers.json: its {num:,} puzzle embeddings are taken to be those of "
            f"{_listed(self.job.folders)}, in the same order"
        ]

    @functools.cached_property
    def _device(self) -> torch.device:
        """Move the model to where it measures, on the first batch: a process that measures nothing takes no GPU."""
        device = choose_device(self.loaded.config)
        self.loaded.to(device)
        return device

    def __call__(self, number: int) -> MeasuredBatch:
        """Measure a batch, on the run's number of threads."""
        config = self.loaded.config
        torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
        boards = slice(number * self.job.batch_size, (number + 1) * self.job.batch_size)
        rows, variants = self._row_of[boards], self._variant_of[boards]
        tokens = self._tokens(rows, variants)
        arrays = (tokens.inputs, tokens.labels, self._embedded_as[tokens.puzzle_identifiers])
        batch = Batch(*map(torch.from_numpy, arrays)).to(self._device)
        cell_loss, model = LOSSES[config.loss_type], self.loaded
        measured = measure_rows(model, batch, self.job.num_segments, cell_loss, halt=self.job.halt)
        num_cells = (tokens.labels != IGNORED_LABEL).sum(1)
        kept = _counted(measured, self._as_it_is[boards], units=self.rows.groups[rows], num_cells=num_cells)
        halt_probabilities = measured.halt_logits[-1].double().sigmoid().cpu().numpy()
        counted = self.tally.count(tokens, measured.answers.cpu().numpy(), halt_probabilities)
        return MeasuredBatch(len(rows), kept, int(measured.num_run.sum()), counted)

    def collect(
        self, batches: Iterable[MeasuredBatch], segments: Sequence[int]
    ) -> tuple[Evaluation, dict[str, float], Extra]:
        """Put batches together, in their order; return what they come to, what they took, and what the kind adds."""
        began, kept, num_run = time.perf_counter(), [], 0
        with progress("boards", self.num_boards) as advance:
            for batch in batches:
                kept.append(batch.rows)
                self.tally.add(batch.counted)
                num_run += batch.num_run
                advance(batch.num_boards)
        names = [field.name for field in fields(RowResults)]
        rows = RowResults(*(np.concatenate([getattr(part, name) for part in kept], axis=-1) for name in names))
        compute = {
            "halt": self.job.halt,
            "boards": self.num_boards,
            "segments": num_run,
            "share_saved": 1 - num_run / (self.num_boards * self.job.num_segments),
            "seconds": time.perf_counter() - began,
        }
        evaluation = summarise_evaluation(rows, segments=segments, trained_segments=self.loaded.halt_max_steps)
        return evaluation, compute, self.tally.result()

    @property
    def facts(self) -> dict[str, Any]:
        """Say which boards are measured."""
        job = self.job
        return {
            "rows": len(self.rows),
            "puzzles": len(np.unique(self.rows.puzzles)),
            "max_puzzles": job.max_puzzles,
            "augmentations": None if not self.tally.votes else job.num_variants - 1 if job.num_variants else "all",
        }

    def _tokens(self, rows: np.ndarray, variants: np.ndarray) -> TokenBatch:
        tokens = TokenBatch(self.rows.inputs[rows], self.rows.labels[rows], self.rows.puzzle_identifiers[rows])
        return self._symmetry.variant(tokens, variants) if self._symmetry and variants.any() else tokens


def _counted(measured: MeasuredRows, as_they_are: np.ndarray, **columns: np.ndarray) -> RowResults:
    """Keep the rows with labels that are as they are, with what else is known of each."""
    counted = measured.labelled.cpu().numpy() & as_they_are
    names = (field.name for field in fields(RowResults) if field.name not in columns)
    columns |= {name: getattr(measured, name).cpu().numpy() for name in names}
    return RowResults(**{name: values[..., counted] for name, values in columns.items()})


def embedding_rows(loaded: LoadedModel, identifiers: PuzzleIdentifiers, folders: Sequence[Path]) -> np.ndarray:
    """Find the row of a model's puzzle embedding for each identifier of a dataset: (N,) int32.

    Where the dataset is another one than the model was trained on, a puzzle is known by its name.

    Raises:
        ValueError: the model knows other puzzles, so it would be given wrong embeddings.
    """
    if loaded.config.arch.puzzle_emb_ndim == 0:
        return np.zeros(len(identifiers), np.int32)
    same = np.arange(len(identifiers), dtype=np.int32)
    if loaded.identifiers is None:  # an imported checkpoint whose map nobody has kept
        if len(identifiers) == loaded.shape.num_puzzle_identifiers:
            return same
        raise ValueError(
            f"{loaded.path} has embeddings of {loaded.shape.num_puzzle_identifiers} puzzle identifiers and no "
            f"identifiers.json; {_listed(folders)} has {len(identifiers)}: name the dataset of its training with --data"
        )
    known = PuzzleIdentifiers.from_bytes(loaded.identifiers)
    if known.digest() == identifiers.digest():
        return same
    place = {name: row for row, name in reversed(list(enumerate(known.all_names())))}
    names = identifiers.all_names()
    missing = [name for name in names if name not in place]
    if missing:
        raise ValueError(
            f"{_listed(folders)} has {len(missing)} puzzle identifiers that {loaded.path} does not know, such as "
            f"{missing[0]}; name the dataset of its training with --data, or prepare this one with the same puzzles, "
            "seed and augmentations"
        )
    return np.array([place[name] for name in names], np.int32)


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))


# ---- a whole evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluate_run` found and wrote.

    provenance: what was evaluated, on what.
    compute: `boards`, `segments` run over all of them, `halt`, `share_saved` by it, `seconds`.
    extra: what the kind of puzzle adds.
    """

    evaluation: Evaluation | TextEvaluation
    provenance: dict[str, Any]
    compute: dict[str, float]
    extra: Extra
    files: tuple[Path, ...] = ()

    @property
    def headline(self) -> str:
        """Say what was evaluated."""
        facts, found = self.provenance, self.evaluation
        if isinstance(found, TextEvaluation):
            what = f"{found.num_rows:,} rows, {found.num_tokens:,} tokens, {found.num_bytes:,} bytes"
        else:
            what = f"{facts['puzzles']:,} puzzles, {found.num_rows:,} rows with labels"
        return (
            f"{facts['run']}, step {facts['step']:,}, {facts['weights']} weights, on the {facts['split']} split: {what}"
        )

    @property
    def table(self) -> Table:
        """Lay the numbers out."""
        found = self.evaluation
        return text_table(found) if isinstance(found, TextEvaluation) else evaluation_table(found)

    @property
    def lines(self) -> list[str]:
        """Tell what the table does not hold."""
        found, compute = self.evaluation, self.compute
        lines = text_lines(found, compute) if isinstance(found, TextEvaluation) else evaluation_lines(found, compute)
        return [*self.provenance["notes"], *lines, *self.extra.lines]


def evaluate_run(
    run: str | Path,
    *,
    split: str = "test",
    segments: Sequence[int] | None = None,
    halt: bool = False,
    averaged: bool = True,
    data: Sequence[str | Path] = (),
    augmentations: int | None = None,
    num_workers: int = 0,
    batch_size: int | None = None,
    max_puzzles: int | None = None,
    output: str | Path | None = None,
) -> EvaluationReport:
    """Evaluate a run's final model (else its latest checkpoint), or a checkpoint; write numbers and a picture.

    Args:
        run: folder of a run or a checkpoint, or an exported .safetensors file. The architecture is always its own.
        segments: numbers of segments to tell the accuracy at; `halt_max_steps`, as trained, if not given.
        halt: stop each row where its halt logit is above 0.
        averaged: take the averaged weights if there are any.
        data: dataset folders instead of the run's own.
        augmentations: of each puzzle, to vote over where its kind does; None = all.
        num_workers: workers of Ray; 0 = this process.
        output: folder to write into; `report` in the run's folder, `NAME_report` beside a file, if not given.

    Raises:
        ValueError: there is no checkpoint, the data are bad, or they do not belong together; of a text is asked what
            only puzzles have.
    """
    if segments is not None and min(segments, default=0) < 1:
        raise ValueError(f"segments={list(segments)} must be at least one number of at least 1, such as [16, 32]")
    loaded = load_model(run, averaged=averaged)
    if num_workers:
        check_surroundings(loaded.config.ray.address)
    folders = _open(loaded, tuple(as_path(path).resolve() for path in data), split)
    asked = sorted({*(segments or [loaded.halt_max_steps])})
    size = batch_size or loaded.config.eval_batch_size or loaded.config.global_batch_size
    taken: dict[str, Any] = {
        "checkpoint": loaded.path.resolve(),
        "averaged": averaged,
        "folders": folders,
        "split": split,
    }
    taken |= {"num_segments": asked[-1], "batch_size": size}
    evaluator: Evaluator | TextEvaluator
    if loaded.causal and DatasetInfo.load(folders[0]).text is not None:
        _check_of_text(halt=halt, augmentations=augmentations)
        evaluator = TextEvaluator(TextJob(**taken, max_rows=max_puzzles), loaded)
    else:
        variants = None if augmentations is None else 1 + augmentations
        evaluator = Evaluator(EvaluationJob(**taken, halt=halt, num_variants=variants, max_puzzles=max_puzzles), loaded)
    folder = _made_folder(as_path(run), output, split)
    where = f"; starting Ray with {num_workers} workers …" if num_workers else ""
    tell(f"Evaluating {run} on its {split} split{where}")
    with num_threads_kept():
        evaluation, compute, extra = evaluator.collect(_measured(evaluator, num_workers), asked)
    provenance = _provenance(as_path(run), evaluator)
    return _written(EvaluationReport(evaluation, provenance, compute, extra), folder)


def _check_of_text(*, halt: bool, augmentations: int | None) -> None:
    """Refuse what text has not."""
    if halt:
        raise ValueError("--halt is for puzzles: no row of a text halts; leave it out")
    if augmentations is not None:
        raise ValueError(f"--augmentations={augmentations} is for puzzles whose answers are voted on; leave it out")


def _made_folder(run: Path, output: str | Path | None, split: str) -> Path:
    """Make the folder to write into, before anything is measured; what others have written there is not replaced."""
    beside = run.with_name(f"{run.stem}_report") if run.is_file() else run / "report"
    folder = as_path(output or beside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder} must be a folder to write into: {error.strerror}; name another") from error
    extra = [name for kind in KINDS.values() for name in kind.tally.files]
    names = (f"evaluation_{split}.json", f"evaluation_{split}.png", *extra)
    there = [name for name in names if (folder / name).is_file()]
    if there and not any(is_ours(folder, report_content(path.name)) for path in folder.glob("evaluation_*.json")):
        raise ValueError(f"--output {folder} holds {told_names(there)}, not written by trm-ray; choose another folder")
    return folder


def _open(loaded: LoadedModel, data: tuple[Path, ...], split: str) -> tuple[Path, ...]:
    """Check the data, those of the run if none are named, and make what a generated task lacks."""
    config = loaded.config
    if not data:
        make_missing(config)
    own = (split == "test" and config.data_paths_test) or config.data_paths
    folders = data or tuple(as_path(path).resolve() for path in own)
    info = open_datasets(folders, command_hint=config.prepare_command, require=[split], also=check_kind)
    for key in ("seq_len", "vocab_size"):
        if getattr(info, key) != getattr(loaded.shape, key):
            raise ValueError(
                f"{_listed(folders)} has {key}={getattr(info, key)}, {loaded.path} was trained with "
                f"{getattr(loaded.shape, key)}; name a dataset of the same kind with --data"
            )
    return folders


def _measured(evaluator: Evaluator | TextEvaluator, num_workers: int) -> Iterator[Any]:
    if num_workers == 0:
        return map(evaluator, range(evaluator.num_batches))
    from trm_ray.distributed.evaluator import map_on_ray

    evaluator.loaded.to("meta")  # whose weights take no memory: the workers load their own
    kind: Any = type(evaluator)
    opened = functools.partial(kind, evaluator.job)
    return map_on_ray(opened, evaluator.num_batches, evaluator.loaded.config, num_workers)


def _provenance(run: Path, evaluator: Evaluator | TextEvaluator) -> dict[str, Any]:
    job, loaded = evaluator.job, evaluator.loaded
    return {
        "trm_ray": __version__,
        "run": str(run),
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "weights": "averaged" if loaded.averaged else "raw",
        "split": job.split,
        "datasets": [{"folder": str(path), INFO_NAME: sha256(path / INFO_NAME)} for path in job.folders],
        **evaluator.facts,
        "batch_size": job.batch_size,
        "notes": evaluator.notes,
    }


def _written(report: EvaluationReport, folder: Path) -> EvaluationReport:
    evaluation, facts, extra = report.evaluation, report.provenance, report.extra
    name = f"evaluation_{facts['split']}"
    texts = {f"{name}.json": evaluation_json(evaluation, facts, report.compute, extra.numbers), **extra.files}
    files = [folder / name for name in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text, encoding="utf-8")
    title = f"{as_path(facts['run']).resolve().name} · {facts['split']} split · {evaluation.num_rows:,} rows"
    subtitle = f"step {facts['step']:,}, {facts['weights']} weights"
    picture = aside(
        f"no picture of the evaluation was drawn; the numbers are in {files[0]}",
        lambda: save_evaluation(evaluation, folder / f"{name}.png", title, subtitle),
    )
    files += [] if picture is None else [picture]
    return replace(report, files=tuple(files))
