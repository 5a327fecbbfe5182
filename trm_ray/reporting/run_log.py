"""A run's numbers: written row by row while it trains, printed as lines, read back from its folder."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import numpy as np
import yaml

from trm_ray.config import UNREADABLE, load_yaml
from trm_ray.reporting.board import Board, Identity
from trm_ray.reporting.event_files import has_event_files, named_by_folder, read_event_rows
from trm_ray.storage import as_path, is_whole

METRICS_FILE = "metrics.jsonl"
DEPTHS_FILE = "depths.jsonl"
LOG_FILES = (METRICS_FILE, DEPTHS_FILE)
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
FINAL_FOLDER, FINAL_MARK = "final_model", "manifest.json"

TRAIN_CYCLE_LOSS = "train/deep_supervision/step_{i}_loss"
EVAL_CYCLE_LOSS = "eval/step_{i}_loss"
# Where refinement is to be seen: at the last segment all cycles agree.
TRAIN_FIRST_LOSS = "train/first_segment/step_{i}_loss"
EVAL_FIRST_LOSS = "eval/first_segment/step_{i}_loss"
EVAL_FIRST_EXACT = "eval/first_segment/step_{i}_exact_accuracy"
EVAL_FIRST_BITS = "eval/first_segment/step_{i}_bits_per_byte"
# What a text's bits per byte are to be seen beside: neither of the two knows the language.
YARDSTICKS = {"unigram": "eval/unigram_bits_per_byte", "xz": "eval/xz_bits_per_byte"}

Row = dict[str, float]
_LOG = logging.getLogger("trm_ray")


# ---- writing ---------------------------------------------------------------------------------------------


class RunLog:
    """Write one row a step to `metrics.jsonl`, an evaluation's numbers by depth beside it, and rows to TensorBoard.

    Args:
        folder: the run's folder; made when missing.
        resume_step: the step of the checkpoint that the run goes on from. Rows after it are dropped, in
            TensorBoard too: the run is about to write them again. None starts over: what an attempt without a
            checkpoint left is dropped.
        identity: what TensorBoard tells the run from others by (`board.identity_of`).
    """

    def __init__(self, folder: Path, resume_step: int | None = None, identity: Identity | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            forget_earlier_attempt(folder)
        else:
            for name in LOG_FILES:
                _drop_rows_after(folder / name, resume_step)
        self._file, self._depths = ((folder / name).open("a", encoding="utf-8") for name in LOG_FILES)
        self._board: Board | None = None
        self._on_board(
            lambda: self._open_board(folder, None if resume_step is None else resume_step + 1, identity or Identity())
        )

    def _open_board(self, folder: Path, purge_step: int | None, identity: Identity) -> None:
        self._board = Board(folder, purge_step, identity)

    def _on_board(self, work: Callable[[], None]) -> None:
        """Do something for TensorBoard. It is no reason to end a run: what fails is told, and not tried again."""
        try:
            work()
        except Exception as error:
            failed, self._board = self._board, None
            if failed is not None:
                with suppress(Exception):  # what is wrong is told below
                    failed.close()
            line = "TensorBoard will not show what comes from here on (%s: %s)"
            logging.getLogger(__name__).warning(line, type(error).__name__, error)

    def write(
        self,
        step: int,
        wall_s: float,
        metrics: Mapping[str, float],
        depths: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Append the row of `step`; it is on disk, readable by others, when this returns.

        Args:
            wall_s: training seconds so far, those before a resume included.
            metrics: value by tag. JSON has no NaN and no infinity: both are written as null, and read back as NaN.
            depths: an evaluation's `loss`, `accuracy` and the like after every H-cycle.
        """
        numbers = {tag: float(value) for tag, value in metrics.items()}
        place = {"step": int(step), "wall_s": round(float(wall_s), 3)}
        if depths is not None:  # first: whoever sees an evaluation's row finds its depths
            by_depth = {name: [_finite(value) for value in values] for name, values in depths.items()}
            _append(self._depths, {**place, **by_depth})
        _append(self._file, {**place, **{tag: _finite(value) for tag, value in numbers.items()}})
        if (board := self._board) is not None:
            self._on_board(lambda: board.write(int(step), numbers, depths))

    def sync(self) -> None:
        """Make sure that what was written is where the run's folder lies; here it always is."""

    def close(self) -> None:
        """Flush and close both files; a second call does nothing."""
        self._file.close()
        self._depths.close()
        if self._board is not None:
            self._on_board(self._board.close)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, allow_nan=False) + "\n")
    file.flush()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def forget_earlier_attempt(folder: Path) -> None:
    """Remove a log that no checkpoint is left of."""
    for name in LOG_FILES:
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()


def _drop_rows_after(path: Path, last_step: int) -> None:
    """Keep the rows up to `last_step`, and none that is torn."""
    if not path.exists():
        return
    rows = [row for row in _raw_rows(path) if row["step"] <= last_step]
    scratch = path.with_suffix(".jsonl.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)  # a kill in between leaves the old rows or the new ones, never half of them


# ---- console lines ---------------------------------------------------------------------------------------


def step_line(row: Mapping[str, float]) -> str:
    """Tell one training row: `Step    100 | Loss: 2.3421 (ACT: 2.1234, Sup: 0.2187) | LR: 5.00e-05 | …`."""
    parts = f"ACT: {row['train/act_loss']:.4f}, Sup: {row['train/supervised_loss']:.4f}"
    # No puzzle may have been finished since the last log; a text has no halting.
    steps = f"{row['train/act/steps']:.2f}" if "train/act/steps" in row else "–"
    has_halting = "train/act/steps" in row or "train/act/q_halt_loss" in row
    return (
        f"Step {int(row['step']):6d} | Loss: {row['train/total_loss']:.4f} ({parts}) | "
        f"LR: {row['train/learning_rate']:.2e} | "
        f"GradNorm: {row['train/grad_norm']:.4f}" + (f" | Steps: {steps}" if has_halting else "")
    )


def supervision_line(num_cycles: int, weight: float, schedule: str) -> str:
    """Tell how the cycles are supervised, indented to stand under a step line."""
    return f"         Deep supervision: {num_cycles} steps, weight={weight:.3f}, schedule={schedule}"


def evaluation_line(row: Mapping[str, float]) -> str:
    """Tell one evaluation row; what the row does not hold is left out."""
    parts = [f"Eval {int(row['step']):6d}"]
    if "eval/loss" in row:
        parts.append(f"Loss: {row['eval/loss']:.4f}")
    if "eval/exact_accuracy" in row:
        parts.append(f"Exact: {100 * row['eval/exact_accuracy']:.1f} %{_other_segments(row)}")
    if "eval/bits_per_byte" in row:
        parts.append(f"Bits/byte: {row['eval/bits_per_byte']:.2f}{_yardsticks(row)}")
    if "eval/perplexity" in row:
        parts.append(f"Perplexity: {row['eval/perplexity']:.2f}")
    if "eval/accuracy" in row:
        name = "Top-1" if "eval/bits_per_byte" in row else "Cells"
        parts.append(f"{name}: {100 * row['eval/accuracy']:.1f} %")
    if "eval/act_steps" in row:
        parts.append(f"Steps: {row['eval/act_steps']:.2f}")
    return " | ".join(parts)


def _other_segments(row: Mapping[str, float]) -> str:
    tags = {
        "first cycle": EVAL_FIRST_EXACT.replace("{i}", "0"),
        "first segment": "eval/exact_accuracy_first",
        "halting": "eval/exact_accuracy_halting",
    }
    parts = [f"{name} {100 * row[tag]:.1f} %" for name, tag in tags.items() if tag in row]
    return f" ({', '.join(parts)})" if parts else ""


def _yardsticks(row: Mapping[str, float]) -> str:
    parts = [f"{name} {row[tag]:.2f}" for name, tag in YARDSTICKS.items() if tag in row]
    return f" ({', '.join(parts)})" if parts else ""


# ---- reading ---------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """One tag over a run: `steps` int64 (n,), `wall_s` and `values` float64 (n,), NaN where not finite."""

    steps: np.ndarray
    wall_s: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class DepthRow:
    """What an evaluation found after each of the D H-cycles since the puzzle was taken up: (D,) each.

    A text alone has bits per byte, and no exact accuracy where no row of it is right as a whole: (0,) then.
    """

    step: int
    wall_s: float
    loss: np.ndarray
    accuracy: np.ndarray
    exact_accuracy: np.ndarray
    bits_per_byte: np.ndarray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    `rows` are in the order of their steps, one a step; `depths` too, one an evaluation. `finished` means that the
    folder holds a final model.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    rows: tuple[Row, ...]
    finished: bool
    environment: dict[str, Any] = field(default_factory=dict)
    depths: tuple[DepthRow, ...] = ()

    @property
    def config_name(self) -> str:
        """Name of the config file that the run was started from: its scenario."""
        return str(self.config.get("config_name", self.name))

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.config.get("seed", 0))

    @property
    def arch(self) -> dict[str, Any]:
        """Section `arch` of the config."""
        return self.config.get("arch") or {}

    @property
    def is_text(self) -> bool:
        """Whether it is of text, whose rows are read from left to right."""
        return bool(self.arch.get("causal"))

    @property
    def is_plain_text(self) -> bool:
        """Whether it is of text without prompts, of which no row is right as a whole: bits per byte measure it."""
        return self.is_text and not any("eval/exact_accuracy" in row for row in self.rows)

    @property
    def material(self) -> str:
        """What it is of, in a word."""
        return "text" if self.is_plain_text else "prompts" if self.is_text else "puzzles"

    @property
    def last_step(self) -> int:
        """Step of the last row, 0 without one."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def wall_s(self) -> float:
        """Training seconds at the last row."""
        return float(self.rows[-1]["wall_s"]) if self.rows else 0.0

    @property
    def planned_steps(self) -> int | None:
        """Steps to take: `total_steps` of environment.json, else `max_steps` of config.yaml."""
        planned = self.environment.get("total_steps") or self.config.get("max_steps")
        return int(planned) if planned else None

    @property
    def stopped_early(self) -> bool:
        """Whether the run ended, or still is, short of its planned steps."""
        return not self.finished and self.planned_steps is not None and self.last_step < self.planned_steps

    def series(self, tag: str) -> Series:
        """Collect the rows that hold `tag`; empty arrays when none does."""
        rows = [row for row in self.rows if tag in row]
        return _series(rows, [row[tag] for row in rows])

    def cycle_series(self, template: str) -> list[Series]:
        """Collect a tag of every H-cycle.

        Args:
            template: a tag with `{i}`, say `eval/step_{i}_loss`.

        Returns:
            One series a cycle, from cycle 0 up to the first that was never logged.
        """
        found: list[Series] = []
        while len((series := self.series(template.replace("{i}", str(len(found))))).steps):
            found.append(series)
        return found


def _series(rows: Sequence[Row], values: Sequence[float]) -> Series:
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    wall_s = np.array([row["wall_s"] for row in rows], dtype=np.float64)
    return Series(steps, wall_s, np.array(values, dtype=np.float64))


def is_run(folder: Path) -> bool:
    """Tell whether `folder` holds a run that can be read."""
    return (folder / CONFIG_FILE).is_file() and (folder / METRICS_FILE).is_file()


def read_run(folder: Path) -> Run:
    """Read a run's folder; of two rows of one step the last counts, and a torn last line does not.

    A folder that has no log of ours but TensorBoard's event files is the run of another trainer.

    Raises:
        ValueError: `folder` is no run, or one of its files is damaged.
    """
    folder = as_path(folder)
    if _is_foreign(folder):
        return _read_foreign(folder)
    _check_is_run(folder)
    rows = {int(row["step"]): row for row in _raw_rows(folder / METRICS_FILE)}
    return Run(
        folder=folder,
        name=folder.resolve().name,
        config=read_mapping(folder / CONFIG_FILE),
        rows=tuple(with_nan(rows[step]) for step in sorted(rows)),
        finished=is_whole(folder / FINAL_FOLDER, FINAL_MARK),
        environment=_read_environment(folder / ENVIRONMENT_FILE),
        depths=_read_depths(folder / DEPTHS_FILE),
    )


def _is_foreign(folder: Path) -> bool:
    return not (folder / METRICS_FILE).is_file() and has_event_files(folder)


def _read_foreign(folder: Path) -> Run:
    """Read another trainer's run; its files tell nothing of its config, and that it has ended is taken for granted."""
    scenario, seed = named_by_folder(folder)
    rows = tuple(read_event_rows(folder))
    return Run(folder, folder.resolve().name, {"config_name": scenario, "seed": seed}, rows, finished=True)


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Read the runs at or below `paths`, each once, in the order given and by name inside a folder.

    Files and folders without a run are passed over, so that a shell's `runs/five_scenarios/*` works.

    Raises:
        ValueError: a path does not exist, or no run is left.
    """
    given = [as_path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise ValueError(f"{path} does not exist; name a run's folder, or a folder that holds runs")
    folders = {folder.resolve(): folder for path in given for folder in _run_folders(path)}
    if not folders:
        named = ", ".join(map(str, given[:4])) + (", …" if len(given) > 4 else "")
        raise ValueError(
            f"no run in {named or 'an empty list of paths'}: a run's folder holds {CONFIG_FILE} and "
            f"{METRICS_FILE}; `trm-ray train --config-name deep_supervision_linear` makes one"
        )
    return [read_run(folder) for folder in folders.values()]


def _run_folders(path: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Walk to the runs at or below `path`; nothing inside a run is another run, and a link back up leads nowhere."""
    if is_run(path) or _is_foreign(path):
        yield path
    elif path.is_dir() and not path.name.startswith(".") and (here := path.resolve()) not in above:
        for child in _children(path):
            yield from _run_folders(child, above | {here})


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except PermissionError:
        _LOG.warning("%s cannot be read and is passed over", folder)
        return []


def _check_is_run(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name the log_dir of a run, such as runs/deep_supervision_linear")
    if (folder / "sweep.yaml").is_file():
        way_out = f"name one of its trials, or draw them all with `trm-ray compare {folder}`"
        raise ValueError(f"{folder} is a sweep; {way_out}")
    missing = [name for name in (CONFIG_FILE, METRICS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is no run: {' and '.join(missing)} missing; "
            f"`trm-ray train --config-name deep_supervision_linear log_dir={folder}` makes one"
        )


def _raw_rows(path: Path) -> list[dict[str, Any]]:
    """Parse the lines of a metrics file, without the last one when a kill tore it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        row = _parse_row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and any(rest.strip() for rest in lines[number:]):
            raise ValueError(f"{path}, line {number} is not a metrics row ({line[:40]!r}); remove that line")
    return rows


def _parse_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(map(_is_number, itertools.chain(*map(_listed, row.values())))):
        return None
    return row if isinstance(row.get("step"), int) and "wall_s" in row else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None)


def _read_depths(path: Path) -> tuple[DepthRow, ...]:
    """Read the numbers by depth, in the order of the steps; an older run has none."""
    rows = {int(row["step"]): row for row in _raw_rows(path)} if path.is_file() else {}
    names = ("loss", "accuracy", "exact_accuracy", "bits_per_byte")
    return tuple(
        DepthRow(step, float(row["wall_s"]), *(np.array(row.get(name, ()), dtype=np.float64) for name in names))
        for step, row in sorted(rows.items())
    )


def with_nan(row: Mapping[str, float | None]) -> Row:
    """Read a row's nulls as what they were written for: numbers that are not finite."""
    return {key: math.nan if value is None else value for key, value in row.items()}


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys, such as a run's config.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, *UNREADABLE) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML ({reason}); restore it from the run's checkpoint") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys; restore it from the run's checkpoint")
    return content


def _read_environment(path: Path) -> dict[str, Any]:
    """Read what describes the machine; a run without it, or with half of it, can still be drawn."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
