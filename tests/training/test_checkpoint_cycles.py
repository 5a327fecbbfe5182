"""H-cycles that are computed again in the backward pass: the same run, with less kept."""

from typing import Any

import pytest
import torch
from helpers import SHAPE, assert_same, local_session, metric_rows, supervised, tiny_config

from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training

CYCLES: dict[str, Any] = {
    **supervised(curriculum_enabled=True, curriculum_start_step=2, curriculum_end_step=4),
    **{"compute_gradient_stats": True, "gradient_stats_interval": 3},
}
ATTENTION = {"mixer": "attention", "pos_encodings": "rope", "forward_dtype": "bfloat16", "puzzle_emb_ndim": 16}


@pytest.mark.parametrize("arch", [{}, {**ATTENTION, "puzzle_emb_len": 2}], ids=["mlp", "attention in bfloat16"])
def test_a_run_that_computes_cycles_again_is_bitwise_the_one_that_keeps_them(tmp_path, arch):
    for name, again in (("kept", False), ("again", True)):
        config = tiny_config(**CYCLES, arch=arch, checkpoint_cycles=again)
        run_training(config, SHAPE, 8, local_session(tmp_path / name, config))
    kept, again = (load_checkpoint(tmp_path / name / "final_model") for name in ("kept", "again"))
    assert_same(kept["model"], again["model"])
    assert_same(kept["carry"], again["carry"])
    assert metric_rows(tmp_path / "kept") == metric_rows(tmp_path / "again")


def kept_bytes(**changes: Any) -> int:
    """What autograd keeps of a segment's forward pass, without the weights."""
    from trm_ray.measure.step_cost import activation_bytes
    from trm_ray.training.state import TrainState

    config = tiny_config(arch={"hidden_size": 32, "L_layers": 2, "H_cycles": 3, "L_cycles": 3}, **changes)
    return activation_bytes(TrainState(config, SHAPE, torch.device("cpu")), config)


def test_of_each_cycle_but_its_beginning_nothing_is_kept():
    """Kept whole, three supervised cycles are three times the baseline's one; computed again, less than that one."""
    baseline, whole = kept_bytes(), kept_bytes(**supervised())
    assert 2.5 < whole / baseline < 3.5
    assert kept_bytes(**supervised(), checkpoint_cycles=True) < 0.5 * baseline
