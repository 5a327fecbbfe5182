"""A compiled segment beside the eager one: the same numbers, two graphs for a whole run, and nothing that waits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from helpers import SHAPE, assert_same, local_session, metric_rows, supervised, tiny_config
from torch._dynamo.utils import counters

from trm_ray.config import Config
from trm_ray.training import segment
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training

# A ramp, a row of the log a step, gradients measured aside, and evaluations whose last batch is one of 3 instead of 4.
EVENTFUL: dict[str, Any] = {
    **supervised(curriculum_enabled=True, curriculum_start_step=6, curriculum_end_step=12),
    **{"ema": True, "compute_gradient_stats": True, "gradient_stats_interval": 4, "eval_interval": 10},
    "arch": {"H_cycles": 2, "L_cycles": 1},
}
NUM_STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_compiled_twice() -> Iterator[None]:
    # One thread compiles: a pool of processes takes longer to start than such small graphs do.
    with torch._dynamo.config.patch(error_on_recompile=True), torch._inductor.config.patch(compile_threads=1):
        yield


def trained(folder: Path, **changes: Any) -> dict[str, Any]:
    """Train on from what is there; return what is saved at the end and how many graphs it took, broken and whole."""
    counters.clear()
    config: Config = tiny_config(**EVENTFUL | changes)
    run_training(config, SHAPE, NUM_STEPS, local_session(folder, config))
    graphs = {"whole": counters["stats"]["unique_graphs"], "broken": len(counters["graph_break"])}
    return load_checkpoint(folder / "final_model") | graphs


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compiled")
    return folder, trained(folder, compile=True)


def test_a_run_takes_a_graph_for_each_way_of_its_steps_and_one_for_its_evaluations(compiled):
    assert (compiled[1]["whole"], compiled[1]["broken"]) == (3, 0)


def test_a_compiled_run_has_the_numbers_of_the_eager_one(compiled, tmp_path):
    eager = trained(tmp_path, compile=False)
    assert eager["whole"] == 0
    for part in ("model", "ema"):
        torch.testing.assert_close(dict(compiled[1][part]), dict(eager[part]), rtol=0, atol=1e-5)
    ours, theirs = metric_rows(compiled[0]), metric_rows(tmp_path)
    assert ours.keys() == theirs.keys()
    for step, row in theirs.items():
        assert ours[step] == pytest.approx(row, rel=1e-5, abs=1e-5), step


def test_a_compiled_run_goes_on_bitwise_from_its_middle(compiled, tmp_path):
    folder, straight = compiled
    shutil.copytree(folder / "checkpoint_step_10", tmp_path / "checkpoint_step_10")
    resumed = trained(tmp_path, compile=True)
    assert (resumed["whole"], resumed["broken"]) == (2, 0)  # the ramp has begun
    for part in ("model", "ema", "optimizer", "carry", "sums"):
        assert_same({part: resumed[part]}, {part: straight[part]})


def test_attention_in_bfloat16_behind_a_puzzle_embedding_is_one_graph_too(monkeypatch, tmp_path):
    monkeypatch.setattr(
        segment, "BACKEND", "aot_eager"
    )  # which traces the graph and its gradient, and compiles nothing
    attention = {"mixer": "attention", "pos_encodings": "rope", "forward_dtype": "bfloat16"}
    arch = EVENTFUL["arch"] | attention | {"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}
    state = trained(tmp_path, compile=True, arch=arch, loss_type="stablemax_cross_entropy", **supervised())
    assert state["whole"] == 2
    assert state["model"]["puzzle_embedding.table"].abs().max() > 0
