"""Depth: how many H-cycles a puzzle has had since it was taken up, and how good the answer is by then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trm_ray.reporting.run_log import Run


@dataclass(frozen=True)
class DepthBand:
    """A number over depth: `depths` 1, 2, … (D,), and mean, lowest and highest of the seeds there, (D,) each."""

    depths: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_seeds: int


def number_by_depth(runs: Sequence[Run], name: str = "exact_accuracy") -> DepthBand:
    """Spread a number of the last evaluation over runs of one network, at every depth; empty if none has depths.

    Args:
        name: as in a `DepthRow`.
    """
    found = [getattr(run.depths[-1], name) for run in runs if run.depths]
    found = [values for values in found if np.isfinite(values).any()]
    curves = np.array(found) if found else np.zeros((1, 0))
    mean, low, high = curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)
    return DepthBand(np.arange(1, curves.shape[1] + 1), mean, low, high, len(found))
