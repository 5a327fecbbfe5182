"""Compare runs on held-out puzzles: read them, set them against the baseline, draw them beside each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trm_ray.ownership import holder
from trm_ray.programs.stages import counted
from trm_ray.reporting.aside import aside
from trm_ray.reporting.numbers.summary import Comparison, compare_runs
from trm_ray.reporting.numbers.tables import comparison_json, comparison_markdown
from trm_ray.reporting.numbers.unfinished import nobody_writes
from trm_ray.reporting.numbers.verdicts import BASELINE
from trm_ray.reporting.run_log import Run, find_runs


@dataclass(frozen=True)
class Compared:
    """Runs that were read, and what they tell."""

    runs: Sequence[Run]
    comparison: Comparison

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        threshold: float | None = None,
        baseline: str = BASELINE,
        is_written: Callable[[Path], bool] = nobody_writes,
    ) -> Compared:
        """Compare them; `is_written` tells of a run's folder whether a process goes on with it."""
        return cls(runs, compare_runs(runs, threshold, baseline, is_written=is_written))

    def draw(self, picture: Path) -> Path:
        """Draw them into a file; its ending chooses the format."""
        from trm_ray.reporting.pictures.comparison import save_comparison  # here: matplotlib may be what fails

        return save_comparison(self.runs, picture, self.comparison.threshold)

    def write(self, folder: Path) -> list[Path]:
        """Write what a sweep leaves: comparison.png, summary.md and summary.json.

        Returns:
            The files written; the picture is left out, with a warning, where it cannot be drawn.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tables = self.write_tables(folder)
        picture = self.draw_aside(folder)
        return tables if picture is None else [picture, *tables]

    def draw_aside(self, folder: Path) -> Path | None:
        """Draw them as comparison.png; None, with a warning, where that cannot be done."""
        words = f"no picture of the comparison was drawn; the tables are in {folder}"
        return aside(words, lambda: self.draw(folder / "comparison.png"))

    def write_tables(self, folder: Path) -> list[Path]:
        """Write summary.md and summary.json."""
        tables = [folder / "summary.md", folder / "summary.json"]
        tables[0].write_text(comparison_markdown(self.comparison), encoding="utf-8")
        tables[1].write_text(comparison_json(self.comparison), encoding="utf-8")
        return tables


def check_baseline(comparison: Comparison, baseline: str) -> None:
    """Refuse a baseline that somebody has asked for and no run is of.

    Raises:
        ValueError: it is no scenario and no label here.
    """
    names = {name for group in comparison.ranking for name in (group.scenario, group.label)}
    if baseline not in names:
        raise ValueError(f"--baseline {baseline} is no scenario of these runs; use one of {', '.join(sorted(names))}")


def compare(places: Sequence[Path], threshold: float | None = None, baseline: str = BASELINE) -> Compared:
    """Read and compare the runs at or below some paths; of a sweep with a second stage those that count.

    Raises:
        ValueError: a path does not exist, or there is no run.
    """
    return compare_found(find_runs(places), places, threshold, baseline)


def compare_found(
    found: Sequence[Run], places: Sequence[Path], threshold: float | None = None, baseline: str = BASELINE
) -> Compared:
    """Compare runs that were found at or below some paths, as `compare` does."""
    by_sweep: dict[Path, list[Run]] = {}
    for run in found:  # one that is named itself is asked for, whichever stage it is of
        by_sweep.setdefault(run.folder if run.folder in places else run.folder.parent, []).append(run)
    runs = [run for folder, of_it in by_sweep.items() for run in counted(of_it, folder)]
    is_held = functools.cache(lambda folder: holder(folder) is not None)
    # A sweep holds its own folder, not those of its trials.
    return Compared.of(runs, threshold, baseline, lambda run: is_held(run) or is_held(run.parent))
