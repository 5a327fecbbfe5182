"""What `trm-ray selftest --gpu` does, on a CPU: the same functions, of which only the device differs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.measure import step_cost
from trm_ray.measure.selftest import gpu
from trm_ray.measure.selftest.gpu import Bench, Finding, gpu_checks, gpu_json, gpu_markdown, run_checks
from trm_ray.measure.step_cost import RECIPES

CPU = torch.device("cpu")
BENCH = Bench(CPU, presets=("sudoku6",), preset="sudoku6", num_steps=2)
FINDINGS = [
    Finding("linear", {"steps/s": 13.9, "MFU": math.nan}, None, check="speed"),
    Finding("baseline", {"largest relative difference": 0.25}, False, "far off\nindeed", check="losses"),
]


def found(name: str, folder: Path, bench: Bench = BENCH) -> list[Finding]:
    """What a check finds in this process."""
    return list(gpu_checks(bench, folder)[name][1](bench))


# -- checks that compare -------------------------------------------------------------------------------------


def test_a_device_agrees_with_itself_step_by_step_in_both_precisions(tmp_path: Path):
    findings = found("losses", tmp_path)
    cases = [f"{scenario}, {dtype}" for dtype in ("float32", "bfloat16") for scenario in ("baseline", "linear")]
    assert [one.case for one in findings] == cases
    assert [(one.passed, one.numbers["largest relative difference"]) for one in findings] == [(True, 0)] * 4


def test_losses_that_differ_by_more_than_is_allowed_are_told():
    apart = gpu._agreement("here", [2.0, 4.0], [2.0, 5.0], 0.2)
    assert (apart.passed, apart.numbers["largest relative difference"]) == (False, 0.25)
    assert gpu._agreement("here", [2.0, 4.0], [2.0, 5.0], 0.25).passed
    assert not gpu._agreement("here", [2.0], [math.nan], 0.25).passed


def test_the_losses_are_those_of_each_step():
    config = BENCH.config()
    states = step_cost.taken_steps(config, BENCH.tokens, CPU)
    first = next(states).sums.sums.clone()
    name = next(states).sums.names.index("total_loss")
    assert gpu._losses(config, BENCH.tokens, CPU, 2)[0] == first[name].item()


@pytest.mark.slow
def test_two_workers_take_the_steps_of_one(tmp_path: Path):
    losses, exchange = found("exchange", tmp_path)
    assert losses.passed
    assert exchange.case == "all gradients, gloo"
    assert exchange.numbers["all_reduce ms"] > 0


# -- checks that measure -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_preset_is_measured_under_both_ways_of_supervision(tmp_path: Path):
    baseline, linear = found("sudoku6", tmp_path)
    assert (baseline.case, linear.case) == ("sudoku6 baseline", "sudoku6 linear")
    assert baseline.numbers["steps/s"] > linear.numbers["steps/s"] > 0
    assert 0 < baseline.numbers["of the measured matrix rate"] < 1
    assert linear.numbers["peak GiB"] > baseline.numbers["peak GiB"] > 0


@pytest.mark.slow
def test_two_processes_are_timed_at_the_same_time_and_held_against_one(tmp_path: Path):
    (finding,) = found("sharing", tmp_path)
    alone, together = (finding.numbers[name] for name in ("one alone, steps/s", "two together, steps/s"))
    assert finding.numbers["gain"] == pytest.approx(together / alone)


def test_the_loop_is_trained_on_boards_from_files(tmp_path: Path):
    baseline, linear = found("loop", tmp_path)
    assert baseline.case == "sudoku6 baseline, without Ray"
    for finding in (baseline, linear):
        assert finding.numbers["steps/s"] > 0
        assert 0 <= finding.numbers["data wait"] < 1
        assert math.isnan(finding.numbers["utilisation"])  # of a GPU
    assert (tmp_path / "boards" / "dataset.json").exists()


# -- a whole round -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_check_that_breaks_is_told_and_keeps_none_from_being_made(tmp_path: Path):
    tiny = replace(BENCH, preset="nothing of the kind")
    sharing, exchange = run_checks(tiny, tmp_path, ["sharing", "exchange"])
    assert (sharing.check, sharing.passed) == ("two processes on one GPU", False)
    assert (exchange.check, exchange.passed) == ("two GPUs train as one", False)
    assert sharing.note == exchange.note == "KeyError: 'nothing of the kind'"


def test_a_check_that_there_is_not_is_refused_before_any_is_made(tmp_path: Path):
    with pytest.raises(ValueError, match="--only speed is unknown; use one of losses, compiled"):
        run_checks(BENCH, tmp_path, ["losses", "speed"])


def test_the_presets_that_are_timed_are_known():
    assert set(Bench(CPU).presets) <= set(RECIPES)
    assert Bench(CPU).preset in RECIPES


def test_the_share_of_a_data_sheet_is_told_for_gpus_that_have_one(monkeypatch: pytest.MonkeyPatch):
    cuda = torch.device("cuda")
    for name, rate in {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L4": 121e12}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert gpu._data_sheet_rate(cuda) == rate
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Abacus 5")
    assert math.isnan(gpu._data_sheet_rate(cuda))
    assert math.isnan(gpu._data_sheet_rate(CPU))


# -- telling -------------------------------------------------------------------------------------------------


def test_findings_become_a_table_of_markdown_and_json():
    lines = gpu_markdown(FINDINGS, "1 × a GPU").splitlines()
    assert lines[0] == "`trm-ray selftest --gpu` on 1 × a GPU:"
    assert lines[-2:] == [
        "| speed | linear | steps/s 13.9 | – |",
        "| losses | baseline | largest relative difference 0.25, far off indeed | NO |",
    ]
    written = json.loads(gpu_json(FINDINGS, "1 × a GPU"))
    assert (written["format_version"], written["machine"]) == (1, "1 × a GPU")
    assert written["findings"][0]["numbers"] == {"steps/s": 13.9, "MFU": None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_ends_with_exit_code_2_and_one_line():
    result = CliRunner().invoke(app, ["selftest", "--gpu"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "error: --gpu needs a GPU, and torch finds none on this machine; run it where there is one"
    ]
