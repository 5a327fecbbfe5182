"""TensorBoard's event file of a run, read back as TensorBoard does."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from trm_ray.reporting.board import Identity, Material, identity_of
from trm_ray.reporting.event_files import read_event_rows
from trm_ray.reporting.pictures.depth_curve import SIZE, depth_curve
from trm_ray.reporting.run_log import RunLog

DEPTHS = {"loss": [0.5, 0.4], "accuracy": [0.5, 0.75], "exact_accuracy": [0.0, 0.25]}
ROW = {"eval/loss": 0.5, "train/lm_loss": 0.25, "checkpoint/write_s": 0.125, "core_seconds/data": 2.0}
CONFIG = {
    "config_name": "deep_supervision_linear",
    "seed": 3,
    "task": None,
    "lr": 0.5,
    "arch.H_cycles": 2,
    "generator.train": 9,
}
BLUE = (0, 114, 178)  # #0072B2, of the puzzles that are solved


def board(folder: Path, identity: Identity | None = None) -> EventAccumulator:
    with RunLog(folder, identity=identity) as log:
        log.write(10, 1.0, ROW, DEPTHS)
        log.write(20, 2.0, {"train/lm_loss": 0.125})
    return EventAccumulator(str(folder)).Reload()


def test_what_a_run_costs_comes_after_how_it_is_doing_and_is_read_back_by_its_name(tmp_path: Path):
    scalars = sorted(board(tmp_path).Tags()["scalars"])
    assert scalars == ["eval/loss", "train/lm_loss", "usage/checkpoint/write_s", "usage/core_seconds/data"]
    first, second = read_event_rows(tmp_path)
    assert {tag: value for tag, value in first.items() if tag not in ("step", "wall_s")} == ROW
    assert (second["step"], second["train/lm_loss"]) == (20, 0.125)


def plugin_data(found: EventAccumulator, tag: str) -> Any:
    content = found.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_a_run_stands_in_the_table_of_runs_with_what_tells_it_from_others(tmp_path: Path):
    found = board(tmp_path, identity_of(tmp_path / "sweep" / "deep_supervision_linear-seed3", CONFIG))
    table = plugin_data(found, metadata.EXPERIMENT_TAG).experiment
    begun = plugin_data(found, metadata.SESSION_START_INFO_TAG).session_start_info
    assert [info.name for info in table.hparam_infos if info.differs] == ["config_name", "seed", "task"]
    assert [info.name.tag for info in table.metric_infos] == [
        "eval/exact_accuracy",
        "eval/anytime_accuracy",
        "eval/loss",
    ]
    assert begun.group_name == "linear-seed3 (sweep)"
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in begun.hparams.items()}
    assert told == {"config_name": "linear", "seed": 3, "task": "null", "lr": 0.5, "arch.H_cycles": 2}
    assert [info.name for info in table.hparam_infos] == list(identity_of(tmp_path, CONFIG).values)


def test_what_a_sweep_searches_comes_first_with_its_trials(tmp_path: Path):
    text = "{format_version: 1, scenarios: [linear], asha: {}, search_space: {generator.train: [9, 99]}}"
    (tmp_path / "sweep.yaml").write_text(text)
    identity = identity_of(tmp_path / "trial", CONFIG)
    assert identity.varied == ("config_name", "seed", "task", "generator.train")
    assert identity.values["generator.train"] == 9
    assert "generator.train" not in identity_of(tmp_path / "trial" / "deeper", CONFIG).values


def test_the_cycles_are_laid_out_together(tmp_path: Path):
    (event,) = board(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    charts = {chart.title: list(chart.multiline.tag) for part in layout.category for chart in part.chart}
    assert [part.title for part in layout.category] == ["Held-out puzzles", "H-cycles"]
    assert charts["training loss of each cycle"] == [r"train/deep_supervision/step_\d+_loss$"]
    assert charts["solved after each cycle of the first segment"] == [r"eval/first_segment/step_\d+_exact_accuracy$"]


@pytest.mark.parametrize(
    ("material", "metrics", "charts"),
    [
        ("text", ["eval/bits_per_byte", "eval/anytime_bits_per_byte"], 0),
        (
            "prompts",
            ["eval/exact_accuracy", "eval/anytime_accuracy", "eval/bits_per_byte", "eval/anytime_bits_per_byte"],
            3,
        ),
    ],
)
def test_text_has_the_columns_and_charts_of_what_it_logs(
    tmp_path: Path, material: Material, metrics: list[str], charts: int
):
    found = board(tmp_path, identity_of(tmp_path / "run", CONFIG, material))
    table = plugin_data(found, metadata.EXPERIMENT_TAG).experiment
    assert [info.name.tag for info in table.metric_infos] == [*metrics, "eval/loss"]
    (event,) = found.Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    patterns = [tag for part in layout.category for chart in part.chart for tag in chart.multiline.tag]
    assert layout.category[0].title == f"Held-out {material}"
    assert sum("exact" in tag or "anytime_acc" in tag for tag in patterns) == charts
    shown = [tag for tag in patterns if re.match(tag, "eval/xz_bits_per_byte")]
    assert [tag for tag in patterns if re.match(tag, "eval/bits_per_byte")] == shown
    assert len(shown) == 1


def test_an_evaluation_has_a_picture_of_its_depths(tmp_path: Path):
    (event,) = board(tmp_path).Images("eval_depth/curve")
    assert event.step == 10
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert picture.size == (event.width, event.height) == SIZE


@pytest.mark.parametrize(("share", "row"), [(0.0, 260), (1.0, 34)])  # between 34 pixels above and 40 below
def test_the_picture_shows_where_the_puzzles_that_are_solved_are(share: float, row: int):
    depths = {"exact_accuracy": [share, share, share], "accuracy": [0.5, float("nan"), 0.5]}
    pixels = np.asarray(Image.open(io.BytesIO(depth_curve(depths, num_cycles=2, step=7)))).astype(int)
    blue = (abs(pixels - BLUE).sum(2) < 60)[25:]  # below the legend
    rows, columns = np.nonzero(blue)
    assert abs(rows + 25 - row).max() <= 2
    assert (columns.min(), columns.max()) == (pytest.approx(52, abs=2), pytest.approx(SIZE[0] - 14, abs=2))


@pytest.mark.parametrize(("bits", "row"), [([2.2, 2.6, 3.0], 34), ([3.0, 2.6, 2.2], 260)])
def test_bits_per_byte_are_drawn_on_a_scale_of_their_own(bits: list[float], row: int):
    """From 2.2 to 3.0 by fifths, so that both ends are at an end of the scale."""
    depths = {"bits_per_byte": bits, "loss": bits, "accuracy": bits}
    pixels = np.asarray(Image.open(io.BytesIO(depth_curve(depths, num_cycles=3, step=7)))).astype(int)
    rows, columns = np.nonzero((abs(pixels - BLUE).sum(2) < 60)[25:])
    assert abs(rows[columns == columns.max()] + 25 - row).max() <= 2
    assert (rows.min() + 25, rows.max() + 25) == (pytest.approx(34, abs=2), pytest.approx(260, abs=2))


def test_the_same_evaluation_gives_the_same_picture_and_one_without_labels_gives_one():
    nan = float("nan")
    assert depth_curve(DEPTHS, num_cycles=2, step=7) == depth_curve(DEPTHS, num_cycles=2, step=7)
    for empty in ([], [nan], [nan] * 48):
        assert depth_curve({"exact_accuracy": empty, "accuracy": empty}, num_cycles=3, step=1)[:4] == b"\x89PNG"
        assert depth_curve({"bits_per_byte": empty}, num_cycles=3, step=1)[:4] == b"\x89PNG"


def test_a_picture_that_fails_is_told_once_and_leaves_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "trm_ray.reporting.pictures.depth_curve", None)  # as where Pillow is broken
    with RunLog(tmp_path) as log:
        for step in (10, 20):
            log.write(step, 1.0, {"eval/loss": 0.5}, DEPTHS)
    assert [message.partition(" (")[0] for message in caplog.messages] == ["TensorBoard will show no depths"]
    assert [row["step"] for row in read_event_rows(tmp_path)] == [10, 20]


def test_neither_matplotlib_nor_tensorflow_is_loaded_for_it(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from trm_ray.reporting.run_log import RunLog\n"
        f"with RunLog(Path({str(tmp_path)!r})) as log: log.write(1, 1.0, {{}}, {DEPTHS!r})\n"
        "print(sorted({'matplotlib', 'tensorflow', 'torch'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["eval_depth/curve"]
