"""What a person sees while it runs: the lines of one run, and the table of a sweep's trials. Both read run folders."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trm_ray.reporting.marks import HEADING, show_marks
from trm_ray.reporting.numbers.diagnosis import Onlooker
from trm_ray.reporting.run_log import (
    CONFIG_FILE,
    METRICS_FILE,
    Row,
    evaluation_line,
    read_mapping,
    step_line,
    supervision_line,
    with_nan,
)
from trm_ray.reporting.terminal import as_it_is, fitted, say, show
from trm_ray.storage import is_remote, read_part

_LOG = logging.getLogger("trm_ray")
# Between two looks at a run's rows; those on object storage, which come every few seconds, cost more.
_POLL_S, _POLL_REMOTE_S = 0.3, 2.0
_REFRESH_REMOTE_S = 5.0  # of a trial in the table


def read_new_rows(path: Path, offset: int) -> tuple[list[Row], int]:
    """Read the rows that a metrics file gained since `offset`; a file that shrank was begun anew."""
    if not path.is_file():
        return [], 0
    size = path.stat().st_size
    offset = offset if size >= offset else 0
    whole, newline, _ = read_part(path, offset, size).rpartition(b"\n")
    lines = whole.splitlines() if newline else []
    try:
        return [with_nan(json.loads(line)) for line in lines], offset + len(whole) + len(newline)
    except ValueError:  # a resume has cut the file, and it is already longer again: no row begins at the offset
        return [], 0


class RunDisplay:
    """Print a run's rows as they appear in its folder, and what is wrong with it, over a progress bar on a terminal.

    Args:
        config: of the run, as its config.yaml has it.
        first_step: the step that the run goes on from; earlier rows have been seen.
    """

    def __init__(
        self,
        folder: Path,
        console: Console,
        *,
        config: Mapping[str, Any],
        num_cycles: int,
        schedule: str,
        first_step: int,
        num_steps: int,
    ):
        self._path, self._console, self._seen, self._offset = folder / METRICS_FILE, console, first_step, 0
        self._num_cycles, self._schedule, self._first_step = num_cycles, schedule, first_step
        self._onlooker = Onlooker(config, num_steps)
        self._num_workers: float | None = None
        bar = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
        self._progress = Progress(*bar, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("train", total=num_steps, completed=first_step)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):  # a terminal that was closed is no reason to take the run for a failed one
            self._progress.stop()

    def _follow(self) -> None:
        pause = _POLL_REMOTE_S if is_remote(self._path) else _POLL_S
        try:
            while not self._stop.wait(pause):
                self._show()
            self._show()
        except Exception as error:  # whatever it is, a run does not end for want of its lines
            _LOG.warning(
                "nothing more is shown (%s: %s); the run's numbers are in %s", type(error).__name__, error, self._path
            )

    def _show(self) -> None:
        with suppress(OSError):  # what the storage withholds now is shown later; whoever writes there tells
            rows, self._offset = read_new_rows(self._path, self._offset)
            for row in rows:
                found = self._onlooker.see(row)
                if row["step"] > self._seen:
                    self._seen = int(row["step"])
                    for line in self._lines(row):
                        say(self._console, line)
                    self._progress.update(self._task, completed=self._seen)
                if row["step"] > self._first_step:
                    show_marks(self._console, found, indent=5, with_docs=True)
            self._tell_workers(rows)

    def _tell_workers(self, rows: list[Row]) -> None:
        """Say when the number of workers has changed; steps that are taken again are not shown again, but this is."""
        counted = [row for row in rows if "throughput/num_workers" in row]
        if not counted:
            return
        step, now = int(counted[-1]["step"]), counted[-1]["throughput/num_workers"]
        if self._num_workers not in (None, now):
            say(self._console, f"Now {now:.0f} instead of {self._num_workers:.0f} workers, as of step {step}")
        self._num_workers = now

    def _lines(self, row: Row) -> Iterator[str]:
        if "train/act_loss" in row:  # and not only what was not finite
            yield step_line(row)
            if (weight := row["train/curriculum_weight"]) > 0:
                num_cycles = int(row.get("train/H_cycles", self._num_cycles))  # fewer early in a depth curriculum
                yield supervision_line(num_cycles, weight, self._schedule)
        if "eval/loss" in row:
            yield evaluation_line(row)


@dataclass
class _Trial:
    state: str
    folder: Path
    num_steps: int
    step: int = 0
    offset: int = 0
    loss: float | None = None
    exact: float | None = None
    bits: float | None = None
    next_look: float = 0.0
    onlooker: Onlooker | None = None

    @property
    def marks(self) -> str:
        """What is wrong with it, by its names."""
        return ", ".join(finding.id for finding in self.onlooker.found) if self.onlooker else ""

    def refresh(self) -> None:
        """Read what the trial has logged since the last look."""
        if is_remote(self.folder):
            if time.monotonic() < self.next_look:
                return
            self.next_look = time.monotonic() + _REFRESH_REMOTE_S
        with suppress(OSError):  # as `RunDisplay`
            rows, offset = read_new_rows(self.folder / METRICS_FILE, self.offset)
            if rows and self.onlooker is None:
                self.onlooker = Onlooker(_config_in(self.folder), self.num_steps)
            self.offset = offset  # now that nothing can fail any more
            for row in rows:
                self._see(row)
                self.step = int(row["step"])
                self.loss, self.exact = row.get("eval/loss", self.loss), row.get("eval/exact_accuracy", self.exact)
                self.bits = row.get("eval/bits_per_byte", self.bits)

    def _see(self, row: Row) -> None:
        if self.onlooker is not None:
            self.onlooker.see(row)


def _config_in(folder: Path) -> dict[str, Any]:
    """Read a run's config; what needs it is not judged where it is missing or damaged."""
    with suppress(FileNotFoundError, ValueError):
        return read_mapping(folder / CONFIG_FILE)
    return {}


class SweepDisplay:
    """Show the trials of a sweep: a live table on a terminal, else a line for every event.

    Args:
        trials: name, folder and planned steps of every trial that is known before the sweep starts.
    """

    def __init__(self, console: Console, trials: dict[str, tuple[Path, int]]):
        self._console = console
        self._trials = {name: _Trial("waiting", *place) for name, place in trials.items()}
        self._live = Live(
            console=console,
            get_renderable=lambda: fitted(console, self._table()),
            refresh_per_second=1,
            vertical_overflow="visible",
            transient=True,
        )

    def __enter__(self) -> SweepDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            with suppress(OSError):  # as `RunDisplay`
                self._live.stop()
                show(self._console, self._table())

    def tell(self, text: str) -> None:
        """Say what concerns no single trial."""
        say(self._console, text)

    def started(self, name: str, folder: Path, num_steps: int) -> None:
        """Note that a trial runs."""
        self._trials[name] = _Trial("running", folder, num_steps)
        self._say(name, "started")

    def reported(self, name: str, row: Row) -> None:
        """Note an evaluation."""
        place = f"step {row['step']:>5} of {self._trials[name].num_steps}"
        found = [f"eval loss {row['eval/loss']:.4f}"]
        if "eval/exact_accuracy" in row:
            found.append(f"exact {100 * row['eval/exact_accuracy']:5.1f} %")
        if "eval/bits_per_byte" in row:
            found.append(f"bits/byte {row['eval/bits_per_byte']:.4f}")
        self._say(name, "  ".join([place, *found]))

    def ended(self, name: str, state: str) -> None:
        """Note that a trial is over: finished, stopped early, or failed."""
        self._trials[name].state = state
        self._say(name, state)

    def _say(self, name: str, text: str) -> None:
        if not self._console.is_terminal:
            width = max(map(len, self._trials))
            say(self._console, f"{name:<{width}}  {text}")

    def _table(self) -> Table:
        table, trials = Table(box=None, pad_edge=False), self._trials.values()
        table.add_column("trial", overflow="fold")
        table.add_column("state", no_wrap=True)
        for trial in trials:
            trial.refresh()
        numbers = self._numbers()
        for heading in numbers:
            table.add_column(heading, justify="right", no_wrap=True)
        if has_marks := any(trial.marks for trial in trials):
            table.add_column(HEADING, overflow="fold")
        for name, trial in self._trials.items():
            cells = [name, trial.state, *(told(trial) for told in numbers.values()), *[trial.marks][:has_marks]]
            table.add_row(*(Text(as_it_is(cell)) for cell in cells))
        return table

    def _numbers(self) -> dict[str, Callable[[_Trial], str]]:
        """Choose the columns of numbers, and how a trial fills each: bits per byte are for text."""
        trials = self._trials.values()
        has_bits, has_exact = (any(getattr(trial, of) is not None for trial in trials) for of in ("bits", "exact"))
        found: dict[str, Callable[[_Trial], str]] = {
            "step": lambda trial: f"{trial.step} / {trial.num_steps}",
            "eval loss": lambda trial: "–" if trial.loss is None else f"{trial.loss:.4f}",
        }
        if has_exact or not has_bits:
            found["exact"] = lambda trial: "–" if trial.exact is None else f"{100 * trial.exact:.1f} %"
        if has_bits:
            found["bits/byte"] = lambda trial: "–" if trial.bits is None else f"{trial.bits:.4f}"
        return found
