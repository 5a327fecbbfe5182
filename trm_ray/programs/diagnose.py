"""Diagnose runs: read them, judge each by the rules, and the scenarios among them against the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trm_ray.programs.compare import check_baseline, compare_found
from trm_ray.reporting.numbers.diagnosis import Finding, findings, group_findings
from trm_ray.reporting.numbers.verdicts import BASELINE
from trm_ray.reporting.run_log import Run, find_runs

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Diagnosed:
    """Runs with what was found of each, and of some scenarios by their labels."""

    runs: Sequence[tuple[Run, list[Finding]]]
    groups: Mapping[str, list[Finding]]

    def content(self) -> dict[str, Any]:
        """Give what its JSON holds."""

        def told(found: Sequence[Finding]) -> list[dict[str, Any]]:
            return [finding.content() for finding in found]

        return {
            "format_version": FORMAT_VERSION,
            "runs": [
                {
                    "run": str(run.folder),
                    "step": run.last_step,
                    "planned_steps": run.planned_steps,
                    "findings": told(found),
                }
                for run, found in self.runs
            ],
            "groups": {label: told(found) for label, found in self.groups.items()},
        }


def diagnose(places: Sequence[Path], baseline: str | None = None) -> Diagnosed:
    """Judge the runs at or below some paths.

    Args:
        baseline: scenario that the others are compared with, where there are several seeds of both.

    Raises:
        ValueError: a path does not exist, or there is no run; or none is of a baseline that was asked for.
    """
    runs = find_runs(places)
    if len(runs) == 1 and baseline is None:
        return Diagnosed([(runs[0], findings(runs[0]))], {})
    comparison = compare_found(runs, places, baseline=baseline or BASELINE).comparison
    if baseline is not None:
        check_baseline(comparison, baseline)
    return Diagnosed([(run, findings(run)) for run in runs], group_findings(comparison.verdicts))
