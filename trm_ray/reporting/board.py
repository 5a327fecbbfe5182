"""What TensorBoard shows of a run: its numbers, its config beside others, its cycles together, a picture of its depths.

TensorBoard sorts cards by their tags. What says how a run is doing comes first, `eval/…` and `train/…`; what it costs,
`checkpoint/…` and the like in `metrics.jsonl`, comes last, as `usage/checkpoint/…`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trm_ray.config import load_yaml
from trm_ray.config.errors import show
from trm_ray.replacement import SWEEP, is_ours
from trm_ray.reporting.aside import aside
from trm_ray.reporting.event_files import USAGE

_LAST = ("checkpoint", "core_seconds", "gpu", "throughput")
# By what runs differ and people tell them apart: the first columns of the table of runs, with the keys that a sweep
# searches, and the others.
_VARIED = ("config_name", "seed", "task")
_ESSENTIAL: tuple[str, ...] = tuple(f"deep_supervision_{name}" for name in ("enabled", "schedule", "weight", "weights"))
_ESSENTIAL += ("recurrent_grad_depth", "detach_cycles", "depth_curriculum", "segments_per_update", "max_steps")
_ESSENTIAL += ("curriculum_enabled", "lr", "weight_decay", "optimizer", "loss_type", "ema", "global_batch_size")
_ESSENTIAL += tuple(f"arch.{name}" for name in ("H_cycles", "L_cycles", "hidden_size", "mixer", "halt_max_steps"))
Material = Literal["puzzles", "text", "prompts"]  # what a run is of; of text no row is right as a whole
_SOLVED, _BITS = ("eval/exact_accuracy", "eval/anytime_accuracy"), ("eval/bits_per_byte", "eval/anytime_bits_per_byte")
# The custom scalars: charts, each with a pattern of the tags in it.
_SOLVED_CHARTS = {
    "solved: at the end, after the first segment, where it halts": r"eval/exact_accuracy(_first|_halting)?$",
    "solved, averaged over depths": r"eval/anytime_accuracy$",
}
_BITS_CHARTS = {
    "bits per byte, unigrams' and xz's": r"eval/(unigram_|xz_)?bits_per_byte$",
    "bits per byte, averaged over depths": r"eval/anytime_bits_per_byte$",
    "tokens foretold": r"eval/accuracy$",
}
_SOLVED_BY_CYCLE = {
    "solved after each cycle of the first segment": r"eval/first_segment/step_\d+_exact_accuracy$",
}
_BITS_BY_CYCLE = {
    "bits per byte after each cycle of the first segment": r"eval/first_segment/step_\d+_bits_per_byte$",
}
_BY_CYCLE = {
    "held-out loss after each cycle of the first segment": r"eval/first_segment/step_\d+_loss$",
    "held-out loss after each cycle of the last segment": r"eval/step_\d+_loss$",
    "training loss of each cycle": r"train/deep_supervision/step_\d+_loss$",
    "gradient norm of each cycle's loss": r"train/gradients/step_\d+_grad_norm_mean$",
}


@dataclass(frozen=True)
class Identity:
    """What tells a run from others: its name, values of its config by dotted key, those that vary; what it is of."""

    name: str = ""
    values: Mapping[str, bool | float | str] = field(default_factory=dict)
    varied: tuple[str, ...] = ()
    material: Material = "puzzles"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Tags that the table of runs shows."""
        return (*(_SOLVED * self._has_solved), *(_BITS * self._has_bits), "eval/loss")

    @property
    def _has_solved(self) -> bool:
        return self.material != "text"

    @property
    def _has_bits(self) -> bool:
        return self.material != "puzzles"

    @property
    def charts(self) -> dict[str, dict[str, str]]:
        """Charts that lie together, by the name of their category."""
        held_out, by_cycle = {"loss": r"eval/loss$"}, _BY_CYCLE
        if self._has_bits:
            held_out, by_cycle = _BITS_CHARTS | held_out, _BITS_BY_CYCLE | by_cycle
        if self._has_solved:
            held_out, by_cycle = _SOLVED_CHARTS | held_out, _SOLVED_BY_CYCLE | by_cycle
        return {f"Held-out {self.material}": held_out, "H-cycles": by_cycle}


def identity_of(folder: Path, values: Mapping[str, Any], material: Material = "puzzles") -> Identity:
    """Choose what tells a run from others.

    Args:
        folder: the run's; a sweep's trial lies in the sweep's folder.
        values: the config by dotted key.
        material: what it is of.
    """
    searched: Sequence[str] = ()
    if is_ours(folder.parent, SWEEP):
        searched = tuple(load_yaml((folder.parent / SWEEP.file).read_text(encoding="utf-8"))["search_space"] or ())
    varied = tuple(dict.fromkeys((*_VARIED, *searched)))
    chosen = {key: values[key] for key in (*varied, *_ESSENTIAL) if key in values}
    plain = {k: value if isinstance(value, bool | int | float | str) else show(value) for k, value in chosen.items()}
    if "config_name" in plain:
        plain["config_name"] = _short(str(plain["config_name"]))
    return Identity(f"{_short(folder.name)} ({folder.parent.name})", plain, varied, material)


def _short(name: str) -> str:
    """Cut off what most scenarios begin with: a column of the table of runs shows some fifteen characters."""
    return name.removeprefix("deep_supervision_")


class Board:
    """Write TensorBoard's event file from the thread that trains.

    torch's `SummaryWriter` opens the file again for every flush, in a thread of its own: storage that is gone for a
    moment, or a full disk, would end that thread with a traceback, and the run some steps later.

    Args:
        purge_step: TensorBoard hides what earlier event files hold from this step on.
        identity: what tells the run from others.
    """

    def __init__(self, folder: Path, purge_step: int | None, identity: Identity):
        # Costs about a second, and only a writer needs it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self._num_cycles, self._draws = int(identity.values.get("arch.H_cycles", 0)), True
        name = f"events.out.tfevents.{time.time_ns()}.{platform.node()}.{os.getpid()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._add(file_version="brain.Event:2")
        if purge_step is not None:
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))
        for summary in (*_hparams_summaries(identity), _layout_summary(identity)):
            self._add(summary=summary)
        self._file.flush()

    def _add(self, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def write(self, step: int, numbers: Mapping[str, float], depths: Mapping[str, Sequence[float]] | None) -> None:
        """Append the numbers of a step, and of an evaluation the picture of its depths."""
        values = [self._summary.Value(tag=_tag(name), simple_value=value) for name, value in numbers.items()]
        self._add(step=step, summary=self._summary(value=values))
        if depths is not None and self._draws:
            picture = aside("TensorBoard will show no depths", lambda: self._picture(step, depths))
            self._draws = picture is not None
            if picture is not None:
                self._add(step=step, summary=picture)
        self._file.flush()

    def _picture(self, step: int, depths: Mapping[str, Sequence[float]]) -> Any:
        from trm_ray.reporting.pictures.depth_curve import SIZE, depth_curve

        width, height = SIZE
        image = self._summary.Image(width=width, height=height, colorspace=3)
        image.encoded_image_string = depth_curve(depths, num_cycles=self._num_cycles, step=step)
        return self._summary(value=[self._summary.Value(tag="eval_depth/curve", image=image)])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _tag(name: str) -> str:
    return USAGE + name if name.partition("/")[0] in _LAST else name


def _hparams_summaries(identity: Identity) -> list[Any]:
    """Say which keys and metrics a table of runs has, what varies first, and the values of this one."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    if not identity.values:
        return []
    table = api_pb2.Experiment(
        hparam_infos=[api_pb2.HParamInfo(name=key, differs=key in identity.varied) for key in identity.values],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in identity.metrics],
    )
    described = metadata.create_summary_metadata(HParamsPluginData(experiment=table))
    columns = Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=described, tensor=metadata.NULL_TENSOR)
    return [Summary(value=[columns]), hparams_pb(dict(identity.values), trial_id=identity.name)]


def _layout_summary(identity: Identity) -> Any:
    """Lay out the custom scalars; the plugin's own function for that needs TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.custom_scalar import metadata
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
    from tensorboard.util.tensor_util import make_tensor_proto

    categories = [
        Category(
            title=title,
            chart=[Chart(title=name, multiline=MultilineChartContent(tag=[tags])) for name, tags in charts.items()],
        )
        for title, charts in identity.charts.items()
    ]
    layout = make_tensor_proto(Layout(category=categories).SerializeToString())
    described = metadata.create_summary_metadata()
    return Summary(value=[Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=described, tensor=layout)])
