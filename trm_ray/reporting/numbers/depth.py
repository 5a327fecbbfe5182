"""Depth: how many H-cycles a puzzle has had since it was taken up, and how good the answer is by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trm_ray.reporting.run_log import Run


@dataclass(frozen=True)
class DepthBand:
    """Exact accuracy over depth: `depths` 1, 2, … (D,), and mean, lowest and highest of the seeds there, (D,) each."""

    depths: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_seeds: int


def exact_by_depth(runs: Sequence[Run]) -> DepthBand:
    """Spread the last evaluation's exact accuracy at every depth over runs of one network; empty if none has depths."""
    found = [run.depths[-1].exact_accuracy for run in runs if run.depths]
    curves = np.array(found) if found else np.zeros((1, 0))
    mean, low, high = curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)
    return DepthBand(np.arange(1, curves.shape[1] + 1), mean, low, high, len(found))
