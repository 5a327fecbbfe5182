"""The Python API; the example in docs/evaluate.md is run in tests/test_docs.py."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prediction_helpers import checkpoint
from rich.console import Console
from run_helpers import TINY_RUN, run_config, some_puzzles

import trm_ray
from trm_ray.config import SweepConfig
from trm_ray.distributed.tuner import Outcome
from trm_ray.programs.sweep import SweepPlan
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.training.inference import Solution
from trm_ray.training.state import build_model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


def test_the_package_names_what_it_offers():
    assert {"load_config", "train", "sweep", "compare", "evaluate", "load_model", "solve"} <= set(dir(trm_ray))
    with pytest.raises(AttributeError, match="no attribute 'slove'"):
        trm_ray.slove  # noqa: B018


def test_a_run_is_trained_gone_on_with_and_begun_again(data: Path, tmp_path: Path):
    config = run_config(data, tmp_path / "run", "ray.num_workers=0")
    result = trm_ray.train(config)
    assert result.folder == tmp_path / "run"
    assert 0 <= result.metrics["eval/exact_accuracy"] <= 1
    with pytest.raises(ValueError, match="already holds a run"):
        trm_ray.train(config)
    assert trm_ray.train(config, resume=True).metrics["eval/loss"] == pytest.approx(result.metrics["eval/loss"])
    assert trm_ray.train(config, overwrite=True).metrics["eval/loss"] == result.metrics["eval/loss"]


@pytest.mark.parametrize("makes_data", [False, True])
def test_training_says_nothing(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], makes_data: bool):
    words = ["task=sudoku4", "generator.train=64", "generator.test=5", "ray.num_workers=0"] if makes_data else []
    trm_ray.train(run_config(tmp_path / "made" if makes_data else data, tmp_path / "run", "ray.num_workers=0", *words))
    assert capfd.readouterr() == ("", "")


def test_a_sweep_gives_its_folder_and_ranking(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The trials run one after the other here; what Ray makes of them is tested in tests/distributed."""

    def in_this_process(plan: SweepPlan, console: Console, begin: Callable[[], None]) -> Outcome:
        assert console.quiet
        begin()
        for number, run in enumerate(plan.runs):
            trial = replace(run, folder=plan.folder / f"trial{number}")
            claim_folder(trial)
            train_in_process(trial)
        return Outcome({})

    monkeypatch.setattr("trm_ray.programs.sweep.run_trials", in_this_process)
    names = ["deep_supervision_baseline", "deep_supervision_linear"]
    overrides = {**TINY_RUN, "data_paths": [str(data)], "ray.num_workers": 0}
    values = {"scenarios": names, "overrides": overrides, "log_dir": str(tmp_path / "sweep")}
    result = trm_ray.sweep(SweepConfig.model_validate(values), overwrite=True)
    assert result.folder == tmp_path / "sweep"
    assert sorted(summary.scenario for summary in result.ranking) == ["baseline", "linear"]
    first, second = result.ranking
    assert first.final.mean >= second.final.mean
    assert {(verdict.scenario, verdict.claim, verdict.n) for verdict in result.verdicts} == {("linear", "none", 1)}
    report = json.loads((result.folder / "report" / "summary.json").read_text())
    assert [summary["scenario"] for summary in report["scenarios"]] == [first.scenario, second.scenario]
    compared = trm_ray.compare(result.folder)
    for content in (compared, report):  # only the sweep saw what its other processes took
        del content["core_seconds"], content["notes"]
    assert compared == report
    assert (result.folder / "report" / "comparison.png").is_file()


def test_solve_takes_a_loaded_model_or_any_network_and_arrays_or_tensors(tmp_path: Path):
    model = trm_ray.load_model(checkpoint(tmp_path / "model"))
    inputs = np.full((2, 16), 1)
    solution = trm_ray.solve(model, inputs, segments=4)
    assert solution.logits.shape == (4, 2, 16, 6)
    assert solution.halt_logits.shape == (4, 2)
    bare = build_model(model.config, model.shape)
    bare.load_state_dict(model.state_dict())
    again: Solution = trm_ray.solve(bare, torch.from_numpy(inputs), torch.zeros(2), segments=4)
    assert torch.equal(solution.logits, again.logits)
