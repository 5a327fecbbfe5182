"""A run's numbers on the Prometheus endpoint of the node that it runs on, beside those that Ray itself puts there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

from ray.util.metrics import Gauge

from trm_ray.config.errors import printable
from trm_ray.runs.plan import RunPlan

# What each tag of a row of metrics is called on the endpoint, where Ray puts `ray_` before it, and what it tells.
GAUGES = {
    "step": ("trm_step", "optimizer steps taken"),
    "train/total_loss": ("trm_train_loss", "loss that is minimised, mean of the logging window"),
    "train/lm_loss": ("trm_train_lm_loss", "cross-entropy of the last H-cycle, mean of the logging window"),
    "train/grad_norm": ("trm_grad_norm", "gradient norm before clipping, mean of the logging window"),
    "eval/loss": ("trm_eval_loss", "cross-entropy of the last H-cycle on held-out puzzles or text"),
    "eval/exact_accuracy": ("trm_eval_exact_accuracy", "share of held-out puzzles solved entirely"),
    "eval/bits_per_byte": ("trm_eval_bits_per_byte", "bits that each byte of held-out text takes"),
    "throughput/steps_per_s": ("trm_steps_per_s", "optimizer steps a second"),
    "throughput/puzzles_per_s": ("trm_puzzles_per_s", "segments of puzzles a second, over all workers"),
    "throughput/data_wait_fraction": ("trm_data_wait_fraction", "share of the time that waits for data"),
    "throughput/exchange_fraction": ("trm_exchange_fraction", "share of the time in exchange between workers"),
    "checkpoint/stall_ms": ("trm_checkpoint_stall_ms", "milliseconds for which the last save held training up"),
    "checkpoint/write_s": ("trm_checkpoint_write_s", "seconds that writing the last checkpoint took"),
    "gpu/memory_gib": ("trm_gpu_memory_gib", "most GPU memory that the worker's tensors and cache have held"),
    "gpu/utilization": ("trm_gpu_utilization", "share of the last moments in which the GPU was busy"),
}
_LOG = logging.getLogger(__name__)
_LONGEST = 255  # characters of a label; a folder's name has no more
LABELS = ("experiment", "run", "scenario", "seed")


class _Label(str):
    """A label of any script: Ray asks a label for its ASCII, and shows whatever UTF-8 it is given."""

    def encode(self, encoding: str = "utf-8", errors: str = "replace") -> bytes:
        return super().encode("utf-8", errors="replace")


class RunGauges:
    """Show the latest row of a run.

    `experiment` is the folder that the run's folder lies in: the sweep, for a trial. Whatever fails here is told once
    and keeps no run from going on.
    """

    def __init__(self, plan: RunPlan):
        places = (plan.folder.parent.name, plan.folder.name, plan.config.config_name, str(plan.config.seed))
        self._labels = dict(zip(LABELS, map(_label, places), strict=True))
        self._works = True

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Set what the row tells; what it leaves out stays as it was."""
        if not self._works:
            return
        try:
            for tag, value in {"step": step, **row}.items():
                if tag in GAUGES:
                    _gauge(tag).set(value, self._labels)
        except Exception as error:
            self._works = False
            _LOG.warning("Prometheus will not show this run's numbers (%s: %s)", type(error).__name__, error)


@functools.cache  # a process may train one run after the other
def _gauge(tag: str) -> Gauge:
    return Gauge(*GAUGES[tag], tag_keys=LABELS)


def _label(name: str) -> str:
    return _Label(printable(name)[:_LONGEST])
