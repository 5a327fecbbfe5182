"""Compare runs on held-out puzzles: read them, rank their groups, draw them beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trm_ray.reporting.aside import aside
from trm_ray.reporting.numbers.summary import ScenarioSummary, summarise, summary_json, summary_markdown
from trm_ray.reporting.run_log import Run, find_runs


@dataclass(frozen=True)
class Comparison:
    """Runs, and their groups with the best first; `threshold` is the accuracy that steps and seconds count to."""

    runs: Sequence[Run]
    ranking: list[ScenarioSummary]
    threshold: float

    @classmethod
    def of(cls, runs: Sequence[Run], threshold: float) -> Comparison:
        """Rank them."""
        return cls(runs, summarise(runs, threshold=threshold), threshold)

    def draw(self, picture: Path) -> Path:
        """Draw them into a file; its ending chooses the format."""
        from trm_ray.reporting.pictures.comparison import save_comparison  # here: matplotlib may be what fails

        return save_comparison(self.runs, picture, self.threshold)

    def write(self, folder: Path) -> list[Path]:
        """Write what a sweep leaves: comparison.png, summary.md and summary.json.

        Returns:
            The files written; the picture is left out, with a warning, where it cannot be drawn.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tables = [folder / "summary.md", folder / "summary.json"]
        tables[0].write_text(summary_markdown(self.ranking), encoding="utf-8")
        tables[1].write_text(summary_json(self.ranking), encoding="utf-8")
        words = f"no picture of the comparison was drawn; the tables are in {folder}"
        picture = aside(words, lambda: self.draw(folder / "comparison.png"))
        return tables if picture is None else [picture, *tables]


def compare(paths: Sequence[Path], threshold: float) -> Comparison:
    """Read and rank the runs at or below some paths.

    Raises:
        ValueError: a path does not exist, or there is no run.
    """
    return Comparison.of(find_runs(paths), threshold)
