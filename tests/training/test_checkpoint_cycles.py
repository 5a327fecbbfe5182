"""H-cycles that are computed again in the backward pass: the same run, with less kept."""

from typing import Any

import pytest
import torch
from helpers import SHAPE, TEXT_ARCH, assert_same, local_session, metric_rows, supervised, tiny_config

from trm_ray.training import memory
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training
from trm_ray.training.memory import kept_bytes, needs_checkpoints
from trm_ray.training.state import TokenShape, TrainState, build_recipe

CPU = torch.device("cpu")

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


def kept(**changes: Any) -> int:
    """What autograd keeps at once of a segment, without the weights."""
    config = tiny_config(arch={"hidden_size": 32, "L_layers": 2, "H_cycles": 3, "L_cycles": 3}, **changes)
    return kept_bytes(TrainState(config, SHAPE, CPU), build_recipe(config, 8), num_rows=8)


def test_of_each_cycle_but_its_beginning_nothing_is_kept():
    """Kept whole, three supervised cycles are three times the baseline's one; computed again, less than that one."""
    baseline, whole = kept(), kept(**supervised())
    assert 2.5 < whole / baseline < 3.5
    assert kept(**supervised(), checkpoint_cycles=True) < 0.5 * baseline


def test_what_a_text_keeps_does_not_grow_with_its_vocabulary_or_with_the_cycles_that_are_computed_again():
    """The head and the logits of a chunk are in memory while they are needed, and no other logits ever."""

    def kept_of_text(vocab_size: int, **changes: Any) -> int:
        config = tiny_config(**supervised(), arch=TEXT_ARCH, **changes)
        shape = TokenShape(12, vocab_size, separator=0)
        return kept_bytes(TrainState(config, shape, CPU), build_recipe(config, 8), num_rows=8)

    assert kept_of_text(257) == kept_of_text(4096)
    of_cycle = 2 * 8 * 12 * 16 * 4  # answer and latent of a cycle's beginning
    assert kept_of_text(4096, checkpoint_cycles=True) < 3 * of_cycle + 2**17 < kept_of_text(4096)


def test_detached_cycles_keep_what_one_cycle_does_and_a_depth_of_two_what_two_do():
    baseline = kept()
    assert kept(**supervised(detach_cycles=True)) == pytest.approx(baseline, rel=0.05)
    assert kept(**supervised(recurrent_grad_depth=2)) == pytest.approx(2 * baseline, rel=0.1)


def test_what_is_kept_grows_by_the_same_with_every_row():
    config = tiny_config(**supervised())
    state, recipe = TrainState(config, SHAPE, CPU), build_recipe(config, 8)
    one, two, eight = (kept_bytes(state, recipe, rows) for rows in (1, 2, 8))
    assert eight == one + 7 * (two - one)


@pytest.mark.parametrize(("free_mib", "again"), [(100, False), (0.5, True)])
def test_auto_computes_cycles_again_where_memory_is_short_and_says_so(monkeypatch, tmp_path, caplog, free_mib, again):
    config = tiny_config(**CYCLES, checkpoint_cycles="auto")
    state, recipe = TrainState(config, SHAPE, CPU), build_recipe(config, 8)
    assert not state.model.checkpoint_cycles
    monkeypatch.setattr(memory, "_free_bytes", lambda device: int(free_mib * 2**20))
    assert needs_checkpoints(state, recipe, local_session(tmp_path, config)) == again
    (line,) = caplog.messages
    told = "computed again in the backward pass" if again else "kept"
    assert line.startswith(f"checkpoint_cycles=auto: H-cycles are {told} (they take ")


def test_auto_has_nothing_to_save_where_gradients_run_through_one_cycle(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 0)
    for changes in ({}, supervised(detach_cycles=True)):
        config = tiny_config(**changes, checkpoint_cycles="auto")
        state, recipe = TrainState(config, SHAPE, CPU), build_recipe(config, 8)
        assert not needs_checkpoints(state, recipe, local_session(tmp_path, config))


def test_a_run_that_decides_by_itself_is_bitwise_one_that_was_told(tmp_path):
    for setting in ("auto", False):
        config = tiny_config(**CYCLES, checkpoint_cycles=setting)
        run_training(config, SHAPE, 4, local_session(tmp_path / str(setting), config))
    ours, theirs = (load_checkpoint(tmp_path / name / "final_model") for name in ("auto", "False"))
    assert_same(ours["model"], theirs["model"])
    assert metric_rows(tmp_path / "auto") == metric_rows(tmp_path / "False")
