"""Run folders of made-up sweeps whose best scenario is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

STEPS = (100, 200, 300, 400, 500, 600)
SOLVED = "eval/exact_accuracy"
FIRST_CYCLE, ANYTIME = "eval/first_segment/step_0_exact_accuracy", "eval/anytime_accuracy"


def write_run(folder: Path, scenario: str, seed: int, rows: Sequence[Mapping[str, float]], **config: Any) -> Path:
    """A run that was trained to its last row, written line by line."""
    folder.mkdir(parents=True)
    values = {"config_name": scenario, "task": "sudoku6", "seed": seed, "max_steps": STEPS[-1], "lr": 1e-3, **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return folder


def rows_of(quality: float, misleading: Mapping[int, float] | None = None) -> list[dict[str, float]]:
    """A run of 0.1 s a step that solves a share of `quality` at its end, which all its numbers tell from the beginning.

    Args:
        misleading: quality that the loss speaks of at some steps instead.
    """
    rows = []
    for step in STEPS:
        shown, told = quality * step / STEPS[-1], (misleading or {}).get(step, quality) * step / STEPS[-1]
        solved = {"eval/accuracy": shown, SOLVED: shown, ANYTIME: shown, FIRST_CYCLE: shown / 2}
        rows.append({"step": step, "wall_s": 0.1 * step, "train/flops": 1e6 * step, "eval/loss": 2 - told, **solved})
    return rows


def write_sweep(
    folder: Path, of: Mapping[str, Sequence[float]], *, keep: Sequence[str] = (), **misleading: Mapping[int, float]
) -> Path:
    """A sweep without stopping: a scenario a name, a seed a quality.

    Args:
        misleading: by scenario, as in `rows_of`; of all its seeds.
    """
    for scenario, of_seeds in of.items():
        for seed, quality in enumerate(of_seeds):
            write_run(folder / f"{scenario}-seed{seed}", scenario, seed, rows_of(quality, misleading.get(scenario)))
    keys = {"format_version": 1, "scenarios": list(of), "keep": list(keep), "asha": {}, "search_space": {}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(keys))
    return folder
