"""Compare runs on held-out puzzles: read them, rank their groups, draw them beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trm_ray.reporting.numbers.summary import DEFAULT_THRESHOLD, ScenarioSummary, summarise
from trm_ray.reporting.run_log import Run, find_runs


@dataclass(frozen=True)
class Comparison:
    """Runs, and their groups with the best first; `threshold` is the accuracy that steps and seconds count to."""

    runs: list[Run]
    ranking: list[ScenarioSummary]
    threshold: float

    def draw(self, picture: Path) -> Path:
        """Draw them into a file; its ending chooses the format."""
        from trm_ray.reporting.pictures.comparison import save_comparison  # here: a ranking needs no matplotlib

        return save_comparison(self.runs, picture, self.threshold)


def compare(paths: Sequence[Path], threshold: float = DEFAULT_THRESHOLD) -> Comparison:
    """Rank the runs at or below some paths.

    Raises:
        ValueError: a path does not exist, or there is no run.
    """
    runs = find_runs(paths)
    return Comparison(runs, summarise(runs, threshold=threshold), threshold)
