"""What a sweep leaves: the comparison in words, tables and JSON, and the picture, which it can do without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trm_ray.reporting.aside import aside
from trm_ray.reporting.numbers.summary import DEFAULT_THRESHOLD, Comparison, compare_runs
from trm_ray.reporting.numbers.tables import comparison_json, comparison_markdown
from trm_ray.reporting.run_log import Run


def write_report(
    runs: Sequence[Run], folder: Path, threshold: float = DEFAULT_THRESHOLD, comparison: Comparison | None = None
) -> list[Path]:
    """Write picture and comparison of some runs: comparison.png, summary.md and summary.json.

    Args:
        comparison: of the runs at the threshold; made here if not given.

    Returns:
        The files written; the picture is left out, with a warning, where it cannot be drawn.
    """
    found = comparison or compare_runs(runs, threshold)
    folder.mkdir(parents=True, exist_ok=True)
    tables = [folder / "summary.md", folder / "summary.json"]
    tables[0].write_text(comparison_markdown(found), encoding="utf-8")
    tables[1].write_text(comparison_json(found), encoding="utf-8")
    picture = aside(
        f"no picture of the comparison was drawn; the tables are in {folder}",
        lambda: _draw(runs, folder / "comparison.png", threshold),
    )
    return tables if picture is None else [picture, *tables]


def _draw(runs: Sequence[Run], path: Path, threshold: float) -> Path:
    from trm_ray.reporting.pictures.comparison import save_comparison  # here: matplotlib may be what fails

    return save_comparison(runs, path, threshold)
