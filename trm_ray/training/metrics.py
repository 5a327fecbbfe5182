"""Metrics as sums and counts: added over steps and workers on the device, divided once when a log is due."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor

from trm_ray.model.trm import SegmentOutput
from trm_ray.training.losses import IGNORED_LABEL, weighed
from trm_ray.training.session import Session
from trm_ray.training.supervision import SegmentLosses

_T = TypeVar("_T")


class MetricSums:
    """Named sums on a device, in float64; `ratios` names each metric's denominator."""

    def __init__(self, names: tuple[str, ...], device: torch.device):
        self.names = names
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's sums, 0 where it has none; nothing waits for the device."""
        none = torch.zeros((), dtype=torch.float64, device=self.sums.device)
        self.sums += torch.stack([values[name].double() if name in values else none for name in self.names])

    def drain(self, session: Session) -> dict[str, float]:
        """Add the sums over the workers, return them and start again. Synchronises with the device."""
        totals = self.sums.clone()
        session.sum_over_ranks(totals)
        self.sums.zero_()
        return dict(zip(self.names, totals.tolist(), strict=True))


STEP_MEANS = {
    "total_loss": "train/total_loss",
    "act_loss": "train/act_loss",
    "supervised_loss": "train/supervised_loss",
    "lm_loss": "train/lm_loss",
    "grad_norm": "train/grad_norm",
    "q_halt_loss": "train/act/q_halt_loss",
}
HALTED_MEANS = {
    "steps": "train/act/steps",
    "accuracy": "train/act/accuracy",
    "exact_accuracy": "train/act/exact_accuracy",
    "q_halt_accuracy": "train/act/q_halt_accuracy",
}
# No row of a text halts, and as tokens weigh alike in the sums above, whole rows are counted apart.
_OF_PUZZLES = {STEP_MEANS["q_halt_loss"], *(HALTED_MEANS[name] for name in HALTED_MEANS if name != "accuracy")}


def train_metric_names(num_cycles: int, *, staged: bool = False, text: bool = False) -> tuple[str, ...]:
    """Name the sums that training keeps.

    Args:
        staged: the number of cycles changes, so that each is counted.
        text: losses are divided by labelled tokens and whole rows by the rows, so that these are counted.
    """
    cycles = [f"step_{i}_loss" for i in range(num_cycles)]
    # Names are only ever added at the end: a checkpoint holds the sums of its window in this order.
    names = ("count", "halted", *STEP_MEANS, *HALTED_MEANS, *cycles, "first", *(f"first_{name}" for name in cycles))
    names += tuple(f"{of}_of_{name}" for name in cycles for of in ("count", "first") if staged)
    return (*names, "labelled", "halted_rows") if text else names


@torch.no_grad()
def segment_sums(output: SegmentOutput, losses: SegmentLosses) -> dict[str, Tensor]:
    """Sum up one worker's segment.

    Losses are already shares of the global batch and add up over the workers. Accuracies count the puzzles that halted,
    as in the original. Rows at their first segment are summed apart too: later ones begin with an answer that all
    cycles have refined already. Rows of a text count as much as they have labels, and alike where they are solved.
    """
    carry, solved = output.carry, losses.solved
    rows = carry.halted if losses.labelled is None else carry.halted & (carry.puzzles.labels != IGNORED_LABEL).any(-1)
    of_rows = (output.cycle_logits[-1], carry.puzzles.labels)
    halted, first = weighed(carry.halted, *of_rows), weighed(carry.steps == 1, *of_rows)

    def over_halted(values: Tensor) -> Tensor:
        return (values * halted).sum()

    return {
        "halted": halted.sum(),
        "total_loss": losses.total,
        "act_loss": losses.act,
        "supervised_loss": losses.supervised,
        "lm_loss": losses.lm,
        "q_halt_loss": losses.halt,
        "steps": over_halted(carry.steps),
        "accuracy": over_halted(losses.cells),
        "exact_accuracy": (solved * rows).sum(),
        "q_halt_accuracy": over_halted((output.halt_logits >= 0) == solved),
        **{f"step_{i}_loss": loss for i, loss in enumerate(losses.cycles)},
        "first": first.sum(),
        **{f"first_step_{i}_loss": (loss * first).sum() for i, loss in enumerate(losses.rows)},
        **({} if losses.labelled is None else {"labelled": losses.labelled, "halted_rows": rows.sum()}),
    }


def step_sums(sums: Mapping[str, Tensor], grad_norm: Tensor, world_size: int) -> dict[str, Tensor]:
    """Add what is the same on every worker, divided by their number, and how often each cycle is in the sums."""
    shared = {"count": torch.ones_like(grad_norm) / world_size, "grad_norm": grad_norm / world_size}
    cycles = [name for name in sums if name.startswith("step_")]
    all_sums = {**sums, **shared}
    counts = {"count": _divisor(all_sums), "first": all_sums["first"]}
    return all_sums | {f"{of}_of_{name}": count for name in cycles for of, count in counts.items()}


def _divisor(sums: Mapping[str, _T]) -> _T:
    """Choose what sums of losses are divided by: steps, or where tokens weigh alike the labelled share of theirs."""
    return sums["labelled"] if "labelled" in sums else sums["count"]


def train_row(sums: Mapping[str, float], *, per_cycle: bool, whole_rows: bool = True) -> dict[str, float]:
    """Divide the sums of a logging window into the row that is logged.

    Args:
        whole_rows: a row may be right as a whole; of text as it runs none is.
    """
    losses = _divisor(sums) or math.nan  # no token in the window had a label
    row = {tag: sums[name] / (sums["count"] if name == "grad_norm" else losses) for name, tag in STEP_MEANS.items()}
    if sums["halted"]:
        row |= {tag: sums[name] / sums["halted"] for name, tag in HALTED_MEANS.items()}
    if "labelled" in sums:
        row = {tag: value for tag, value in row.items() if tag not in _OF_PUZZLES}
        if whole_rows and sums["halted_rows"]:
            row[HALTED_MEANS["exact_accuracy"]] = sums["exact_accuracy"] / sums["halted_rows"]
    cycles = [name for name in sums if name.startswith("step_")] if per_cycle else []
    divisors = {"count": losses, "first": sums["first"]}
    for where, of, prefix in (("deep_supervision", "count", ""), ("first_segment", "first", "first_")):
        for name in cycles:
            if count := sums.get(f"{of}_of_{name}", divisors[of]):  # none of a cycle that was not there yet
                row[f"train/{where}/{name}"] = sums[prefix + name] / count
    return row


def gpu_row(device: torch.device) -> dict[str, float]:
    """Tell how this worker uses its GPU; nothing on a CPU. Does not wait for the device.

    `gpu/memory_gib` is the most that its tensors and torch's cache have held so far: what trials that share a GPU must
    leave to each other, apart from half a GiB or so of CUDA's own. `gpu/utilization` is the share of the last moments
    in which the GPU was busy, with anybody's work; only where nvidia-ml-py is installed.
    """
    if device.type != "cuda":
        return {}
    row = {"gpu/memory_gib": torch.cuda.max_memory_reserved(device) / 2**30}
    if importlib.util.find_spec("pynvml") is not None:
        from pynvml import NVMLError

        with suppress(NVMLError):  # the driver does not tell it of a part of a GPU (MIG); no reason to end a run
            row["gpu/utilization"] = torch.cuda.utilization(device) / 100
    return row
