"""Tell and draw the comparison on text: recursive models and plain transformers at equal operations of training.

    python docs/text_comparison.py runs/text_comparison runs/text_comparison_plain runs/text_comparison_short > table.md

Prints a table for docs/text.md and writes docs/text_comparison.png, both of all held-out rows. Every model is measured
at twice its depth too, unless that was done before.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import trm_ray
from trm_ray.config import config_from_run
from trm_ray.reporting.numbers.statistics import spread
from trm_ray.reporting.pictures import style

_BITS, _COST, _SECONDS = "eval/bits_per_byte", "train/flops", "core_seconds/steps"


@dataclass(frozen=True)
class Run:
    """One run: the rows of its log that have an evaluation, and what the steps before each had cost.

    by_depth: bits per byte at each depth (D,), twice the trained.
    """

    arm: str
    rows: list[dict[str, float]]
    costs: np.ndarray
    by_depth: np.ndarray

    @property
    def curve(self) -> np.ndarray:
        """Bits per byte of every evaluation (n,)."""
        return np.array([row[_BITS] for row in self.rows])


def read(folder: Path) -> Run:
    """Read a run, and measure its model over depth if nobody has."""
    config = config_from_run(folder)
    arm = config.config_name.removeprefix("deep_supervision_")
    if config.arch.L_cycles == 0:
        arm = f"plain, {config.arch.L_layers} layers" + (", lr=3e-3" if config.lr == 3e-3 else "")
    if config.max_flops is None:
        arm += f", {config.max_steps} steps"
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged: list[dict[str, float]] = [*map(json.loads, lines)]
    rows = [row for row in logged if _BITS in row]
    steps, costs = zip(*((row["step"], row[_COST]) for row in logged if _COST in row), strict=True)
    at_rows = np.interp([row["step"] for row in rows], (0, *steps), (0, *costs))
    depths = _evaluated(folder)["by_depth"]
    return Run(arm, rows, at_rows, np.array([depth["bits_per_byte"]["value"] for depth in depths]))


def _evaluated(folder: Path) -> dict[str, Any]:
    known = folder / "report" / "evaluation_test.json"
    if known.is_file():
        evaluation: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
        return evaluation
    return trm_ray.evaluate(folder, segments=[2])


def table(arms: dict[str, list[Run]]) -> str:
    """Write a line an arm: what its training took, and bits per byte at the end, of every cycle."""
    heads = ["model", "steps", "GFLOP", "CPU-s in steps", "after 1 cycle", "after 2"]
    lines = [heads, ["---"] * len(heads)]
    for arm, runs in arms.items():
        last = [run.rows[-1] for run in runs]
        cost, seconds = (np.mean([row[tag] for row in last]) for tag in (_COST, _SECONDS))
        tags = [f"eval/first_segment/step_{cycle}_bits_per_byte" for cycle in (0, 1)]
        bits = [_told([row[tag] for row in last if tag in row]) for tag in tags]
        lines.append([arm, f"{last[0]['step']:.0f}", f"{cost / 1e9:.0f}", f"{seconds:.0f}", *bits])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(values: list[float]) -> str:
    if not values:
        return ""
    found = spread(values)
    half = (found.high - found.low) / 2
    return f"{found.mean:.2f}" if np.isnan(half) else f"{found.mean:.2f} ± {half:.2f}"


def draw(arms: dict[str, list[Run]], path: Path) -> None:
    """Draw bits per byte over the operations of training, and over depth."""
    with style.styled():
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for (arm, runs), look in zip(arms.items(), style.group_looks([*arms]), strict=True):
            _line(left, runs[0].costs / 1e9, np.array([run.curve for run in runs]), look, arm)
            by_depth = np.array([run.by_depth for run in runs])
            _line(right, np.arange(by_depth.shape[1]) + 1, by_depth, look, arm)
        packed = next(iter(arms.values()))[0].rows[-1]["eval/xz_bits_per_byte"]
        for axes in (left, right):
            axes.axhline(packed, color=style.MUTED, linewidth=1, linestyle=":")
        place = {"xycoords": ("axes fraction", "data"), "va": "bottom", "color": style.MUTED}
        left.annotate(f"xz {packed:.2f}", (0, packed), **place)
        left.set(title="Held out, while training", xlabel="GFLOP of training", ylabel="bits per byte")
        right.set(title="At the end, by depth", xlabel="H-cycles (trained with 2, the plain ones with 1)")
        right.set_xticks([1, 2, 3, 4])
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
        figure.savefig(path, dpi=110)


def _line(axes: Axes, x: np.ndarray, values: np.ndarray, look: style.LineLook, label: str) -> None:
    axes.plot(x, values.mean(0), look.line_style, color=look.colour, marker=look.marker, label=label)
    axes.fill_between(x, values.min(0), values.max(0), color=look.colour, alpha=0.15, linewidth=0)


def main() -> None:
    """Read all runs below the folders that are named."""
    found = [path.parent for folder in sys.argv[1:] for path in sorted(Path(folder).glob("*/metrics.jsonl"))]
    arms: dict[str, list[Run]] = {}
    for run in map(read, found):
        arms.setdefault(run.arm, []).append(run)
    print(table(arms))
    draw(arms, Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
