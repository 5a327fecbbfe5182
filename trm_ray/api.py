"""The Python API, which the package offers as `trm_ray.train` and so on. Nothing here prints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_ray.training.stopping import stops_at_once

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trm_ray.config import Config, SweepConfig
    from trm_ray.interop.loading import LoadedModel
    from trm_ray.model.trm import TinyRecursiveModel
    from trm_ray.programs.generate import Generated
    from trm_ray.reporting.numbers.replay import Replay
    from trm_ray.reporting.numbers.summary import ScenarioSummary
    from trm_ray.reporting.numbers.verdicts import Verdict
    from trm_ray.training.inference import Solution


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, and the numbers of its last evaluation by tag (`eval/exact_accuracy`, …)."""

    folder: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class SweepResult:
    """A sweep: its folder, its trials compared, and the reasons of those that failed.

    ranking: groups of trials, the best first: by exact accuracy, or by bits per byte where there is only text.
    verdicts: what may be said of each scenario against the baseline.
    """

    folder: Path
    ranking: list[ScenarioSummary]
    failed: dict[str, str]
    verdicts: list[Verdict]


def load_config(
    config_name: str, overrides: Sequence[str] = (), config_dir: str | os.PathLike[str] | None = None
) -> Config:
    """Resolve a run's config: defaults < scenario < task < overrides.

    Args:
        config_name: a scenario's name, or the path of a .yaml file.
        overrides: `key=value` as on the command line.
        config_dir: folder of configs to look into first, `configs` if not given.

    Raises:
        ConfigError: one line that names key, value, rule and way out.
    """
    from trm_ray import config

    return config.load_config(config_name, overrides, config_dir=config_dir)


@contextmanager
def _left_as_found() -> Iterator[None]:
    """Print nothing; take back afterwards what Ray, where it is started, and its settings do to the whole process."""
    from trm_ray.data.progress import silence

    loggers = [logging.getLogger(), logging.getLogger("trm_ray")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    names = set(os.environ)
    try:
        with silence():
            yield
    finally:
        for logger, level, handlers in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
        for name in set(os.environ) - names:
            if (
                name.startswith(("RAY_", "TUNE_", "TOKENIZERS_")) or name == "PYTHONBREAKPOINT"
            ):  # Ray's debugger for the program's
                del os.environ[name]


@stops_at_once()
@_left_as_found()
def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> TrainResult:
    """Train one run: in this process with `ray.num_workers=0`, else on Ray.

    Args:
        resume: go on from the last checkpoint in the run's folder.
        overwrite: replace the run that the folder holds, once the new one has saved a checkpoint.

    Raises:
        ValueError: the data is missing or bad, the folder holds a run and neither option is given, or another process
            writes it.
        NonFiniteError: the loss or a gradient is not finite; the last checkpoint stands.
        Interrupted: Ctrl-C (a `KeyboardInterrupt`) or another stop signal that the program has no handler for came;
            the step that was under way is saved.
    """
    from trm_ray.programs.train import train as train_run
    from trm_ray.training.clock import leave_out_earlier

    leave_out_earlier()
    trained = train_run(config, resume=resume, overwrite=overwrite)
    return TrainResult(trained.plan.folder, trained.metrics)


@stops_at_once()
@_left_as_found()
def sweep(
    sweep: str | SweepConfig,
    overrides: Sequence[str] = (),
    *,
    config_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> SweepResult:
    """Run scenarios and variants as concurrent trials on Ray, stop the bad ones early, and write the comparison.

    Args:
        sweep: a sweep's name, the path of its .yaml file, or a resolved sweep, which takes no overrides.
        overrides: `key=value`, of the sweep or of all its runs.

    Raises:
        ValueError: a config or its data is bad, the folder holds a sweep and neither option is given, or another
            process writes it.
        Interrupted: Ctrl-C (a `KeyboardInterrupt`) or another stop signal that the program has no handler for came;
            the running trials have saved where they stood.
    """
    from rich.console import Console

    from trm_ray.config import load_sweep
    from trm_ray.programs.sweep import sweep as run_sweep

    resolved = load_sweep(sweep, overrides, config_dir=config_dir) if isinstance(sweep, str) else sweep
    quiet = Console(quiet=True, force_terminal=False)
    swept = run_sweep(resolved, quiet, resume=resume, overwrite=overwrite)
    ranking, verdicts = (swept.comparison.ranking, swept.comparison.verdicts) if swept.comparison else ([], [])
    return SweepResult(swept.plan.folder, ranking, swept.outcome.failed, verdicts)


def compare(
    *places: str | os.PathLike[str], threshold: float | None = None, baseline: str = "baseline"
) -> dict[str, Any]:
    """Compare runs on held-out puzzles or text: finished ones with each other, and each scenario with the baseline.

    Args:
        places: folders or URLs of runs, of sweeps, or of TensorBoard's event files with the same tags.
        threshold: exact accuracy that steps and seconds count to, 0.5 if not given; of text bits per byte, those of
            `xz` or unigrams if not given.
        baseline: scenario that the others are compared with.

    Returns:
        What `trm-ray compare --json FILE` writes: `words`, `verdicts`, `scenarios` with the best first, `unfinished`.

    Raises:
        ValueError: a place does not exist, or holds no run.
    """
    from trm_ray.programs.compare import compare as compare_runs
    from trm_ray.reporting.numbers.tables import comparison_json
    from trm_ray.storage import as_path

    compared = compare_runs([as_path(place) for place in places], threshold, baseline)
    return json.loads(comparison_json(compared.comparison))


def diagnose(*places: str | os.PathLike[str], baseline: str | None = None) -> dict[str, Any]:
    """Say what is wrong with runs, why it is thought so, and what to try.

    Args:
        places: folders or URLs of runs, or of sweeps.
        baseline: scenario that the others are compared with, where there are several seeds; None = the baseline.

    Returns:
        What `trm-ray diagnose --json` prints: `runs`, each with its `findings`, and those of scenarios in `groups`.

    Raises:
        ValueError: a place does not exist, or holds no run.
    """
    from trm_ray.programs.diagnose import diagnose as diagnose_runs
    from trm_ray.reporting.numbers.json_text import json_text
    from trm_ray.storage import as_path

    return json.loads(json_text(diagnose_runs([as_path(place) for place in places], baseline).content()))


@stops_at_once()
@_left_as_found()
def report(*places: str | os.PathLike[str], output: str | os.PathLike[str] = "report.html", **options: Any) -> Path:
    """Write what runs have come to into one HTML file: words, tables, curves, puzzles being solved.

    Args:
        places: folders or URLs of runs or of sweeps.
        options: of `trm_ray.programs.report.report`: `threshold`, `baseline`, `gallery`.

    Returns:
        The file.

    Raises:
        ValueError: a place does not exist, or holds no run.
    """
    from trm_ray.programs.report import report as write
    from trm_ray.storage import as_path

    return write([as_path(place) for place in places], as_path(output), **options)


@stops_at_once()
@_left_as_found()
def replay(paths: Sequence[str | os.PathLike[str]], **options: Any) -> Replay:
    """Replay early stopping on runs that were trained to their end: what each setting would have saved and lost.

    Args:
        paths: folders of runs, or folders that hold runs, such as a sweep's.
        options: of `trm_ray.programs.replay.replay`: `grace`, `reduction`, `metrics`, `keep`, `orders` …

    Returns:
        Every setting with its outcome, what foretells the end, and in `advised` the setting to take.

    Raises:
        ValueError: a run was not trained to its end, there is nothing to compare, or a value does not fit.
    """
    from trm_ray.programs.replay import replay as replay_runs
    from trm_ray.storage import as_path

    return replay_runs([as_path(path) for path in paths], **options)


@_left_as_found()
def evaluate(path: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Measure a run or a checkpoint on held-out puzzles or text; write numbers and a picture into its `report` folder.

    Args:
        options: of `trm_ray.programs.evaluate.evaluate_run`: `split`, `segments`, `halt`, `averaged`, `data` …

    Returns:
        What `evaluation_SPLIT.json` holds.

    Raises:
        ValueError: there is no checkpoint, or the data do not fit it.
    """
    from trm_ray.programs.evaluate import evaluate_run
    from trm_ray.storage import as_path

    report = evaluate_run(as_path(path), **options)
    numbers = next(file for file in report.files if file.name.startswith("evaluation_") and file.suffix == ".json")
    return json.loads(numbers.read_text(encoding="utf-8"))


def load_model(
    path: str | os.PathLike[str], *, averaged: bool = True, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Load the model of a run, a checkpoint or an imported checkpoint: a `torch.nn.Module`, ready for `solve`.

    It knows where it comes from: `config`, `step`, `path`, `averaged`, `identifiers`. Calling it takes one segment
    (`TinyRecursiveModel.forward`).

    Args:
        path: a run's folder (its final model, else its latest checkpoint) or a checkpoint's.
        averaged: take the averaged weights if there are any.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    from trm_ray.interop import loading

    return loading.load_model(path, averaged=averaged, device=device)


def solve(
    model: TinyRecursiveModel,
    inputs: Tensor | Any,
    puzzle_identifiers: Tensor | Any | None = None,
    segments: int | None = None,
) -> Solution:
    """Let a model solve puzzles, segment by segment.

    Args:
        inputs: (B, L) token ids: a tensor, an array or lists.
        puzzle_identifiers: (B,) rows of the puzzle embedding; 0, a puzzle that nobody knows, if not given.
        segments: how many; as many as in training if not given.

    Returns:
        Logits (S, B, L, V) and halt logits (S, B) of every segment, and `answers` (B, L) after the last.

    Raises:
        ValueError: shapes, tokens or identifiers that the model does not have.
    """
    import torch

    from trm_ray.training import inference

    identifiers = None if puzzle_identifiers is None else torch.as_tensor(puzzle_identifiers)
    return inference.solve(model, torch.as_tensor(inputs), identifiers, segments)


@_left_as_found()
def generate(
    model: LoadedModel,
    prompt: str | Sequence[int] = "",
    *,
    each: Callable[[str], object] = lambda piece: None,
    **settings: Any,
) -> Generated:
    """Let a model of text go on with a prompt, up to the end of its document.

    Args:
        model: from `load_model`.
        prompt: text, before which the separator of documents is put, or token ids as they are.
        each: told each piece of text as soon as it is there, whole characters.
        settings: of `trm_ray.programs.generate.Settings`: `max_new_tokens`, `temperature`, `top_p`, `seed`,
            `segments`, `cycles`.

    Returns:
        `text` that comes after the prompt, its `tokens` with the `log_probabilities` that the model gives them, and at
        what it `ended`.

    Raises:
        ValueError: it is no model of text, the prompt has what its tokenizer does not know, or a setting breaks its
            rule.
    """
    from trm_ray.programs import generate as programme

    return programme.generate(model, prompt, programme.Settings(**settings), each)
