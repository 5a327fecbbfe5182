"""A trained model in use: loaded with the checkpoint's own architecture, refining its answer for as long as asked."""

import copy
import pickle

import pytest
import torch
from helpers import SHAPE, local_session, sudoku, tiny_config

from trm_ray.interop.loading import load_model
from trm_ray.training.inference import run_segments, solve
from trm_ray.training.loop import run_training
from trm_ray.training.state import build_model

PUZZLES = {"arch": {"puzzle_emb_ndim": 16, "puzzle_emb_len": 2}, "puzzle_emb_lr": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(ema=True, ema_rate=0.5, **PUZZLES)
    run_training(config, SHAPE, 4, local_session(folder, config))
    return folder


def test_a_model_is_loaded_with_its_architecture_weights_and_average(run):
    state = torch.load(run / "final_model" / "state.pt", weights_only=True)
    averaged, raw = load_model(run), load_model(run / "checkpoint_step_4", averaged=False)
    assert averaged.shape == SHAPE
    assert (averaged.step, averaged.averaged, raw.averaged) == (4, True, False)
    assert averaged.config.arch.puzzle_emb_ndim == 16
    for name, value in state["model"].items():
        assert torch.equal(raw.state_dict()[name], value)
        assert torch.equal(averaged.state_dict()[name], state["ema"].get(name, value))
    assert not torch.equal(averaged.lm_head.weight, raw.lm_head.weight)
    assert raw.puzzle_embedding is not None
    assert raw.puzzle_embedding.table.any()


def test_a_loaded_model_is_a_module_that_says_where_it_comes_from(run):
    model = load_model(run)
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert not model.train().eval().training
    assert model.model is model
    assert model.device.type == "cpu"
    assert copy.deepcopy(model).to("meta").device.type == "meta"
    assert {name.partition(".")[0] for name in model.state_dict()} == {
        name.partition(".")[0] for name in torch.load(run / "final_model" / "state.pt", weights_only=True)["model"]
    }
    [first, second, *_] = repr(model).splitlines()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (first, second.strip()) == (
        "LoadedModel(",
        f"path={str(run / 'final_model')!r}, step=4, weights='averaged', parameters={parameters:,}",
    )


def test_a_copied_saved_or_replaced_model_solves_as_it_did(run, tmp_path):
    model, inputs = load_model(run), torch.from_numpy(sudoku(2).inputs)
    expected = solve(model, inputs).logits
    torch.save(model, tmp_path / "whole.pt")
    again = build_model(model.config, model.shape)
    again.load_state_dict(model.state_dict())
    saved = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert (saved.path, saved.step, saved.averaged) == (model.path, 4, True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved, again):
        assert torch.equal(solve(other, inputs).logits, expected)


@pytest.mark.parametrize("arch", [{}, {"mixer": "attention", "pos_encodings": "rope"}, {"forward_dtype": "bfloat16"}])
def test_a_model_of_rounded_weights_still_solves(arch):
    config = tiny_config(**{**PUZZLES, "arch": {**PUZZLES["arch"], **arch}})
    model, inputs = build_model(config, SHAPE), torch.from_numpy(sudoku(2).inputs)
    expected = solve(model, inputs).logits
    for rounded in (copy.deepcopy(model).bfloat16(), copy.deepcopy(model).half(), copy.deepcopy(model).double()):
        logits = solve(rounded, inputs).logits
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.1)


def test_segments_equal_the_models_own_and_go_on_beyond_those_it_was_trained_with():
    model, batch = build_model(tiny_config(), SHAPE), sudoku(3).batch()
    carry = model.initial_carry(batch)
    trained = []
    for _ in range(3):
        output = model(carry, batch)
        carry = output.carry
        trained.append(output.cycle_logits[-1])
    longer = [output.cycle_logits[-1] for output in run_segments(model, batch, 5)]
    assert len(list(run_segments(model, batch))) == 3
    for ours, theirs in zip(longer, trained, strict=False):
        assert torch.equal(ours, theirs)
    # At the fourth the model itself would begin the puzzle anew.
    assert not torch.equal(longer[3], trained[0])


def test_solve_returns_logits_and_halt_logits_of_every_segment(run):
    model, puzzles = load_model(run), sudoku(5)
    solution = solve(model, torch.from_numpy(puzzles.inputs), torch.arange(5), segments=4)
    assert solution.logits.shape == (4, 5, 16, 6)
    assert solution.halt_logits.shape == (4, 5)
    assert solution.logits.dtype == solution.halt_logits.dtype == torch.float32
    assert torch.equal(solution.answers, solution.logits[-1].argmax(-1))
    expected = [output.cycle_logits[-1] for output in run_segments(model, puzzles.batch(), 4)]
    torch.testing.assert_close(solution.logits, torch.stack(expected))


def test_a_puzzle_without_an_identifier_gets_the_blank_one(run):
    model, inputs = load_model(run), torch.from_numpy(sudoku(2).inputs)
    assert torch.equal(solve(model, inputs).logits, solve(model, inputs, torch.tensor([0, 0])).logits)
    assert not torch.equal(solve(model, inputs).logits, solve(model, inputs, torch.tensor([1, 2])).logits)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((torch.zeros(2, 9),), r"inputs of shape \(2, 9\) must be \(B, 16\) token ids"),
        ((torch.full((1, 16), 6),), "inputs hold tokens from 6 to 6; they must be 0 to 5"),
        ((torch.zeros(1, 16), torch.tensor([32])), "puzzle_identifiers up to 32 must be 0 to 31"),
        ((torch.zeros(1, 16), torch.tensor([0, 1])), r"puzzle_identifiers of shape \(2,\) must be \(1,\)"),
        ((torch.zeros(1, 16), None, 0), "segments=0 must be at least 1"),
    ],
)
def test_what_a_model_cannot_solve_is_refused(run, arguments, told):
    with pytest.raises(ValueError, match=told):
        solve(load_model(run), *arguments)
