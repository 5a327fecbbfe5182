"""A compiled segment beside the eager one: the same numbers, two graphs for a whole run, and nothing that waits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from helpers import (
    SHAPE,
    TEXT_ARCH,
    assert_same,
    local_session,
    metric_rows,
    shape_of,
    supervised,
    tiny_config,
    tiny_model,
)
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.training import segment
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training
from trm_ray.training.losses import LOSSES
from trm_ray.training.metrics import MetricSums
from trm_ray.training.segment import build_segment, compiles
from trm_ray.training.supervision import CycleWeights

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
NUM_STEPS = 20
# A ramp, a row of the log a step, gradients measured aside, and evaluations whose last batch is one of 3 instead of 4.
EVENTFUL: dict[str, Any] = {
    **supervised(curriculum_enabled=True, curriculum_start_step=6, curriculum_end_step=12),
    **{"ema": True, "compute_gradient_stats": True, "gradient_stats_interval": 4, "eval_interval": 10},
    "arch": {"H_cycles": 2, "L_cycles": 1},
}
ATTENTION = {"mixer": "attention", "pos_encodings": "rope", "forward_dtype": "bfloat16"}
ATTENTION |= {"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}
TEXT = TEXT_ARCH | {"halt_max_steps": 2}


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_compiled_twice() -> Iterator[None]:
    # One thread compiles: a pool of processes takes longer to start than such small graphs do.
    with torch._dynamo.config.patch(error_on_recompile=True), torch._inductor.config.patch(compile_threads=1):
        yield


def trained(folder: Path, backend: str = "inductor", num_steps: int = NUM_STEPS, **changes: Any) -> dict[str, Any]:
    """Train on from what is there; return what is saved at the end, and how many graphs it took, broken and whole."""
    counters.clear()
    config = tiny_config(**EVENTFUL | changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "BACKEND", backend)
        run_training(config, shape_of(config), num_steps, local_session(folder, config))
    graphs = {"whole": counters["stats"]["unique_graphs"], "broken": len(counters["graph_break"])}
    return load_checkpoint(folder / "final_model") | graphs


# `aot_eager` traces each graph and its gradient and takes the composed operations, but writes no kernels.
@pytest.fixture(scope="module", params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def compiled(backend: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("compiled")
    return folder, trained(folder, backend, compile=True)


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


def test_a_compiled_run_goes_on_bitwise_from_its_middle(backend, compiled, tmp_path):
    folder, straight = compiled
    shutil.copytree(folder / "checkpoint_step_10", tmp_path / "checkpoint_step_10")
    resumed = trained(tmp_path, backend, compile=True)
    assert (resumed["whole"], resumed["broken"]) == (2, 0)  # the ramp has begun
    for part in ("model", "ema", "optimizer", "carry", "sums"):
        assert_same({part: resumed[part]}, {part: straight[part]})


def test_a_depth_curriculum_takes_a_graph_for_each_of_its_stages(tmp_path):
    """With each of its own, and an evaluation's."""
    changes = {"depth_curriculum": [[0, 1, 1], [0.5, 1, 2]], "arch": {"H_cycles": 1, "L_cycles": 2}}
    state = trained(tmp_path, "eager", compile=True, compute_gradient_stats=False, **changes)
    assert (state["whole"], state["broken"]) == (3, 0)


def test_a_text_takes_a_graph_for_its_steps_and_one_for_its_evaluations(tmp_path):
    changes = {"curriculum_enabled": False, "compute_gradient_stats": False, "arch": {**EVENTFUL["arch"], **TEXT}}
    state = trained(tmp_path, "eager", 3, compile=True, **changes)
    assert (state["whole"], state["broken"]) == (2, 0)


def test_attention_in_bfloat16_behind_a_puzzle_embedding_is_one_graph_too(tmp_path):
    changes = {
        "curriculum_enabled": False,
        "arch": EVENTFUL["arch"] | ATTENTION,
        "loss_type": "stablemax_cross_entropy",
    }
    state = trained(tmp_path, "aot_eager", compile=True, **changes)
    assert (state["whole"], state["broken"]) == (2, 0)
    assert state["model"]["puzzle_embedding.table"].abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "graphs"),
    [
        # The cycles before the last share a graph; then the last cycle's and the evaluations'.
        ({"detach_cycles": True, "arch": {"H_cycles": 3, "L_cycles": 1, "puzzle_emb_ndim": 16}}, 3),
        pytest.param({"recurrent_grad_depth": 2, "arch": {"H_cycles": 3, "L_cycles": 1}}, 2, marks=pytest.mark.slow),
        pytest.param({"checkpoint_cycles": True, "arch": {**EVENTFUL["arch"], **TEXT}}, 2, marks=pytest.mark.slow),
    ],
    ids=["detached", "k=2", "text"],
)
def test_other_paths_are_a_graph_each_too_with_the_numbers_of_the_eager_one(tmp_path, changes, graphs):
    changes |= {"curriculum_enabled": False, "compute_gradient_stats": False}
    ours = trained(tmp_path / "graphs", "aot_eager", 3, compile=True, **changes)
    assert (ours["whole"], ours["broken"]) == (graphs, 0)
    theirs = trained(tmp_path / "eager", num_steps=3, compile=False, **changes)
    torch.testing.assert_close(dict(ours["model"]), dict(theirs["model"]), rtol=0, atol=1e-5)
    for step, row in metric_rows(tmp_path / "eager").items():
        assert metric_rows(tmp_path / "graphs")[step] == pytest.approx(row, rel=1e-5, abs=1e-5), step


# -- on a GPU that is not there ---------------------------------------------------------------------------------------


def moved(model: TinyRecursiveModel) -> TinyRecursiveModel:
    """Give a model weights on a GPU, made there; as the GPU is not, they have no values."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype, device=GPU))
        for name, buffer in module._buffers.items():
            module._buffers[name] = (
                None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
            )
    return model


def tensors_of(*values: Any) -> Iterator[Tensor]:
    return (value for value in torch.utils._pytree.tree_leaves(values) if isinstance(value, Tensor))


PATHS = (GradientPath.last(3), GradientPath.full(3), GradientPath.along((0.0, 0.5, 1.0), 2))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("arch", [{}, ATTENTION], ids=["mlp", "attention"])
def test_no_tensor_of_a_segment_or_of_its_sums_leaves_the_gpu(arch, loss):
    """Without gradients, whose pass ends the process on a torch that was built without CUDA."""
    model, segment = tiny_model(**arch), build_segment(LOSSES[loss], 8, CPU, compiled=False)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=False):
        model, cells = moved(model), torch.zeros(8, SHAPE.seq_len, dtype=torch.int32, device=GPU)
        batch = Batch(cells, cells.clone(), torch.zeros(8, dtype=torch.int32, device=GPU))
        carry, fewest = model.initial_carry(batch), torch.zeros(8, dtype=torch.int64, device=GPU)
        for path in PATHS:
            weights = CycleWeights(torch.ones(model.H_cycles + 1, dtype=torch.float64, device=GPU), path)
            result = segment(model, carry, batch, fewest, weights)
            sums = MetricSums(result.names, GPU)
            sums.add(result.sums)
            carry, puzzles = result.carry, vars(result.carry.puzzles)
            states = {name: value for name, value in vars(carry).items() if name != "puzzles"}
            assert {t.device for t in tensors_of(result.loss, result.values, sums.sums, states, puzzles)} == {GPU}


# -- what decides -----------------------------------------------------------------------------------------------------


def test_auto_leaves_a_cpu_alone_and_true_compiles_there():
    assert [compiles(setting, CPU) for setting in ("auto", False, True)] == [False, False, True]


def test_compiling_without_a_compiler_is_refused_by_name_and_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"compile=true needs a C\+\+ compiler, which is not there; .*compile=false"):
        compiles(True, CPU)
    assert not compiles("auto", CPU)
