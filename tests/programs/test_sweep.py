"""A sweep's plan, its folder's rules, and the best trial as a command: all that needs no cluster."""

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import metric_rows
from rich.console import Console
from run_helpers import ROOT, TINY_RUN, run_config, some_puzzles

from trm_ray.config import (
    AshaConfig,
    Config,
    ConfigError,
    SweepConfig,
    config_names,
    flat,
    load_config,
    load_sweep,
    to_yaml,
)
from trm_ray.data.format import DatasetInfo, SplitInfo, TextInfo
from trm_ray.kinds.text.prepare import prepare_text
from trm_ray.programs.commands import best_command
from trm_ray.programs.sweep import SweepPlan, compare_trials, owned_sweep, plan_sweep, start_sweep
from trm_ray.runs.data import complete
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.training.stopping import Interrupted

CONFIGS = ROOT / "configs"
LINEAR, BASELINE = "deep_supervision_linear", "deep_supervision_baseline"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


def sweep_config(data: Path, folder: Path, **changes: Any) -> SweepConfig:
    overrides = {**TINY_RUN, "data_paths": [str(data)]}
    values = {"scenarios": [BASELINE, LINEAR], "overrides": overrides, "log_dir": str(folder)}
    return SweepConfig.model_validate({**values, **changes})


def test_a_plan_holds_a_run_for_every_variant(data: Path, tmp_path: Path):
    sweep = sweep_config(data, tmp_path, seeds=[0, 1], search_space={"weight_decay": [0.1, 0.2]})
    plan = plan_sweep(sweep)
    told = [(run.config.seed, run.config.weight_decay, run.config.config_name) for run in plan.runs]
    assert told == [(s, w, n) for s in (0, 1) for w in (0.1, 0.2) for n in (BASELINE, LINEAR)]
    assert {(run.train_paths, run.num_steps) for run in plan.runs} == {((data,), 6)}
    assert plan.folder == tmp_path


def test_each_variant_has_its_own_number_of_steps(data: Path, tmp_path: Path):
    overrides = {**TINY_RUN, "data_paths": [str(data)], "max_steps": None, "epochs": 3}
    del overrides["global_batch_size"]
    sweep = sweep_config(data, tmp_path, overrides=overrides, search_space={"global_batch_size": [8, 16]})
    assert [run.num_steps for run in plan_sweep(sweep).runs] == [24, 24, 12, 12]


def test_a_resume_that_finds_no_sweep_says_so(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    plan = plan_sweep(sweep_config(data, tmp_path / "sweep"))
    for _ in range(2):
        with owned_sweep(plan, resume=True, overwrite=False) as begin:
            begin()
    assert caplog.messages == [f"--resume: no sweep in log_dir={tmp_path / 'sweep'}, so it begins anew"]


def test_data_that_is_not_there_is_told_before_anything_starts(tmp_path: Path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        plan_sweep(sweep_config(tmp_path / "nowhere", tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("metric", "instead"),
    [
        ("eval/exact_accuracy", "eval/bits_per_byte"),
        ("eval/anytime_accuracy", "eval/anytime_bits_per_byte"),
        ("eval/first_segment/step_0_exact_accuracy", "eval/first_segment/step_0_bits_per_byte"),
    ],
)
def test_a_metric_that_text_never_logs_is_refused_with_the_one_that_it_does(metric: str, instead: str, tmp_path: Path):
    plays = (json.dumps({"text": f"{number} To be, or not to be: that is the question."}) for number in range(40))
    (tmp_path / "plays.jsonl").write_text("\n".join(plays))
    prepare_text(tmp_path / "data", inputs=[tmp_path / "plays.jsonl"], seq_len=16, test_share=0.5)
    text = {"arch.causal": True, "arch.mixer": "attention", "arch.pos_encodings": "rope", "arch.halt_max_steps": 1}
    sweep = sweep_config(tmp_path / "data", tmp_path / "runs")
    overrides = {**sweep.overrides, **text}
    refused = sweep.model_copy(update={"overrides": overrides, "asha": AshaConfig(metric=metric, mode="max")})
    with pytest.raises(
        ConfigError, match=rf"asha.metric={metric} is not logged .*; use asha.metric={instead} asha.mode=min"
    ):
        plan_sweep(refused)
    for fitting in (AshaConfig(metric=instead, mode="min"), AshaConfig()):
        assert plan_sweep(refused.model_copy(update={"asha": fitting})).runs


def test_bits_per_byte_are_refused_where_there_are_puzzles(data: Path, tmp_path: Path):
    asha = AshaConfig(metric="eval/bits_per_byte", mode="min")
    with pytest.raises(
        ConfigError, match=r"not logged by runs on puzzles; use asha.metric=eval/exact_accuracy asha.mode=max"
    ):
        plan_sweep(sweep_config(data, tmp_path / "runs").model_copy(update={"asha": asha}))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_plans(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Making 9×9 boards takes minutes, and benchmarks are downloaded: here the datasets are only described."""
    from trm_ray.runs import plan as planning

    def described(config: Config) -> DatasetInfo:
        made, text = config.generator, config.arch.causal
        train, test = (made.train, made.test) if made else (10**6 if text else 1000, 1000)
        splits = {name: SplitInfo(rows, rows, 1.0, {}) for name, rows in (("train", train), ("test", test))}
        if text:
            info = TextInfo(256, "bytes", "", "running", {}, {}, {}, {}, [])
            return DatasetInfo(3, 128, 257, 0, -100, 1, splits, "text", {}, None, None, {}, "text", info)
        size = made.size if made else 9
        return DatasetInfo(2, size**2, size + 2, 0, -100, 1, splits, "sudoku", {}, 0, None, {})

    monkeypatch.setattr(planning, "open_data", described)
    if path.parent.name == "sweep":
        runs = plan_sweep(load_sweep(path.stem, config_dir=CONFIGS)).runs
    else:
        words = [f"task={path.stem}"] if path.parent.name == "task" else []
        runs = [plan_run(load_config(LINEAR if words else path.stem, words, config_dir=CONFIGS))]
    assert all(run.num_steps >= 100 for run in runs)
    assert all(run.config.eval_interval <= run.num_steps for run in runs)


# ---- the folder ------------------------------------------------------------------------------------------


def start(plan: SweepPlan, **flags: bool) -> None:
    start_sweep(plan, Console(file=io.StringIO()), **{"resume": False, "overwrite": False, **flags})


def recorded(plan: SweepPlan) -> SweepPlan:
    """The plan of a sweep that has been started in its folder."""
    plan.folder.mkdir()
    (plan.folder / "sweep.yaml").write_text(to_yaml(plan.sweep))
    return plan


def test_a_folder_that_holds_a_sweep_is_refused_with_the_ways_out(data: Path, tmp_path: Path):
    plan = recorded(plan_sweep(sweep_config(data, tmp_path / "runs")))
    with pytest.raises(ConfigError, match=r"already holds a sweep.*--resume.*--overwrite.*another log_dir"):
        start(plan)


def test_another_sweep_is_not_resumed(data: Path, tmp_path: Path):
    recorded(plan_sweep(sweep_config(data, tmp_path / "runs")))
    with pytest.raises(ConfigError, match=r"has another sweep\.yaml"):
        start(plan_sweep(sweep_config(data, tmp_path / "runs", seeds=[5])), resume=True)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_holds_something_else_is_never_touched(data: Path, tmp_path: Path, flags: dict[str, bool]):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds files but no sweep \(.*\); choose another log_dir"):
        start(plan_sweep(sweep_config(data, tmp_path)), **flags)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("begins", [False, True])
def test_a_sweep_that_is_stopped_before_it_begins_leaves_nothing(begins, data: Path, tmp_path: Path, monkeypatch):
    """As by Ctrl-C while Ray starts: the same command is not refused afterwards. What had begun keeps its seconds."""

    def stopped(plan: SweepPlan, console: Console, begin: Callable[[], None]) -> None:
        if begins:
            begin()
        raise Interrupted

    monkeypatch.setattr("trm_ray.programs.sweep.run_trials", stopped)
    plan = plan_sweep(sweep_config(data, tmp_path / "sweep"))
    with pytest.raises(Interrupted):
        start(plan)
    left = {path.name for path in plan.folder.iterdir()} if plan.folder.is_dir() else set()
    assert left == ({"sweep.yaml", "core_seconds.json"} if begins else set())


def test_resume_and_overwrite_exclude_each_other(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="exclude each other"):
        start(plan_sweep(sweep_config(data, tmp_path / "runs")), resume=True, overwrite=True)


# ---- the best trial as a command ------------------------------------------------------------------------------


def read_back(command: str) -> Config:
    program, verb, flag, name, *words = shlex.split(command)
    assert (program, verb, flag) == ("trm-ray", "train", "--config-name")
    return complete(load_config(name, words, config_dir=CONFIGS))


def without_place(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if key != "log_dir"}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["lr=1e-5", "seed=3", "ema=true", "arch.hidden_size=128"],
        ["task=sudoku4", "deep_supervision_weight=0.7"],
        ["epochs=null"],
        ["max_steps=null"],
        ["eval_batch_size=64"],
        ["task=null", "data_paths=[data/mine]", "max_steps=10"],
        ["generator=null", "data_paths=[a, 'b c', \"it's\"]"],
        ["generator.clues=null"],
        ["generator.clues=[10, 12]", "generator.seed=7"],
        ["generator=null", "generator={name: maze, size: 6, min_length: 5}"],
        ["data_paths_test=[data/held out]"],
        ["ray.storage_path=/mnt/my runs", "ray.num_workers=2"],
        ["log_dir=elsewhere"],
    ],
    ids=" ".join,
)
def test_the_command_of_the_best_trial_trains_the_same_config(words: list[str]):
    config = complete(load_config(LINEAR, words, config_dir=CONFIGS))
    assert without_place(read_back(best_command(yaml.safe_load(to_yaml(config))))) == without_place(config)


def test_the_command_tells_only_what_differs():
    config = load_config(LINEAR, ["task=sudoku4", "lr=0.005", "seed=0"], config_dir=CONFIGS)
    command = best_command(yaml.safe_load(to_yaml(config)))
    assert command == "trm-ray train --config-name deep_supervision_linear task=sudoku4 lr=0.005"


def test_every_scenario_s_own_command_is_short():
    for name in config_names(config_dir=CONFIGS):
        command = best_command(yaml.safe_load(to_yaml(load_config(name, config_dir=CONFIGS))))
        assert command == f"trm-ray train --config-name {name} task=sudoku6"


# ---- the report ------------------------------------------------------------------------------------------


class Ended:
    """How a sweep of which one trial failed has ended."""

    failed = {"deep_supervision_linear-seed0": "NonFiniteError: the [loss] is not finite"}  # noqa: RUF012


def compared(plan: SweepPlan) -> str:
    console = Console(file=io.StringIO(), width=200)
    compare_trials(plan, Ended(), console)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_failed_is_told_and_the_rest_is_ranked(data: Path, tmp_path: Path):
    plan = plan_sweep(sweep_config(data, tmp_path / "runs"))
    config = run_config(data, plan.folder / f"{BASELINE}-seed0", scenario=BASELINE)
    trial = plan_run(config)
    claim_folder(trial)
    train_in_process(trial)
    printed = compared(plan)
    assert "failed deep_supervision_linear-seed0: NonFiniteError: the [loss] is not finite" in printed
    assert "trm-ray train --config-name deep_supervision_baseline" in printed
    assert list(metric_rows(trial.folder)) == [1, 2, 3, 4, 5, 6]
    assert {"comparison.png", "report.html"} <= {path.name for path in (plan.folder / "report").iterdir()}


def test_a_sweep_without_any_run_ends_with_the_failures(data: Path, tmp_path: Path):
    plan = recorded(plan_sweep(sweep_config(data, tmp_path / "runs")))
    assert compared(plan).strip() == "failed deep_supervision_linear-seed0: NonFiniteError: the [loss] is not finite"
