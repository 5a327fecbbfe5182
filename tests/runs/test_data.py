"""What a task's generator is asked for: the kind of puzzle knows its keys, before anything is made or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import ROOT, run_config, tiny_overrides

import trm_ray
from trm_ray.config import ConfigError, SweepConfig, config_from_run, flat, load_config, load_sweep
from trm_ray.data.format import DatasetInfo
from trm_ray.distributed.submission import plan_submission
from trm_ray.kinds.registry import KINDS
from trm_ray.measure.budget import plan_cost, told_ms
from trm_ray.measure.scaling import WEAK, Case, measure_scaling
from trm_ray.runs.data import complete, complete_trials, make_missing
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder, is_finished, start_step
from trm_ray.runs.plan import plan_run

MISTAKES = [
    ("generator.size=5", "generator.size=5 must be one of 4, 6, 9; the default is 6"),
    ("generator.train=0", "generator.train=0 must be a whole number of at least 1; the default is 2000"),
    ("generator.seed=yes", "generator.seed=true must be a whole number from 0 to below 2**32; the default is 0"),
    ("generator.clues=9", "generator.clues=9 must be null or [MIN, MAX]"),
    ("generator.clues=[9]", "generator.clues=[9] must be null or [MIN, MAX]"),
    ("generator.clues=[010, 12]", "generator.clues=[010, 12]: 010 is 10 in decimal and 8"),
    ("generator.trian=9", "generator.trian=9 has an unknown key; did you mean `generator.train`?"),
    ("generator.check_exsting=no", "check_exsting=false has an unknown key; did you mean `generator.check_existing`?"),
    ("generator.min_length=9", "generator.min_length=9 has an unknown key; did you mean `generator."),
    ("generator.arch.x=9", "generator.arch={x: 9} has an unknown key"),
    ("generator.name=arc", "generator.name=arc must be one of sudoku, maze, text; prepare other puzzles, and name"),
    ("generator.name=sudoko", "generator.name=sudoko must be one of sudoku, maze, text"),
]


@pytest.mark.parametrize(("word", "told"), MISTAKES, ids=[word for word, _ in MISTAKES])
def test_a_mistake_in_a_key_of_a_kind_is_answered_as_one_in_any_key(tmp_path: Path, word: str, told: str):
    with pytest.raises(ConfigError) as caught:
        complete(run_config(tmp_path / "data", tmp_path / "run", "generator.size=4", word))
    assert told in str(caught.value)


def test_several_mistakes_are_counted_and_the_first_is_told_with_file_and_line(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("task: sudoku6\ngenerator: {test: 8}\n")
    task = tmp_path / "task" / "sudoku6.yaml"
    task.parent.mkdir()
    task.write_text("data_paths: [x]\nmax_steps: 1\ngenerator:\n  size: 6\n  trian: 7\n  clues: 3\n")
    with pytest.raises(ConfigError) as caught:
        complete(load_config("mine", config_dir=tmp_path))
    assert str(caught.value) == f"{task}:6: generator.clues=3 must be null or [MIN, MAX] (and 1 more)"
    task.write_text("data_paths: [x]\nmax_steps: 1\ngenerator: {name: chess}\n")
    with pytest.raises(
        ConfigError, match=rf"^{task}:3: generator\.name=chess must be one of sudoku, maze, text; prepare oth"
    ):
        complete(load_config("mine", config_dir=tmp_path))


@pytest.mark.parametrize(
    "start",
    [
        lambda config, sweep: trm_ray.train(config),
        lambda config, sweep: trm_ray.sweep(sweep),
        lambda config, sweep: plan_cost(config, told_ms(1), "told"),
        lambda config, sweep: plan_cost(sweep, told_ms(1), "told"),
        lambda config, sweep: measure_scaling(config, [Case(WEAK, 1)]),
    ],
    ids=["train", "sweep", "plan", "plan sweep", "bench scaling"],
)
def test_nothing_is_made_or_written_for_a_bad_key(tmp_path: Path, start: Callable[[Any, SweepConfig], object]):
    """Not even the data of a sweep's first trials, whose keys are good."""
    words = [f"data_paths=[{tmp_path / 'data'}]", f"log_dir={tmp_path / 'run'}", *tiny_overrides(), "generator.size=4"]
    sweep = load_sweep("five_scenarios", ["search_space.generator.train=[8,0]", *words], config_dir=ROOT / "configs")
    with pytest.raises(ConfigError, match=r"generator\.train=0 must be a whole number of at least 1"):
        start(load_config("deep_supervision_linear", [*words, "generator.train=0"]), sweep)
    assert list(tmp_path.iterdir()) == []


def test_a_command_for_a_cluster_is_checked_here():
    words = ["task=sudoku4", "generator.train=0", "ray.storage_path=/mnt/shared"]
    given = {"OVERRIDES": words, "--config-name": "deep_supervision_linear"}
    with pytest.raises(ConfigError, match=r"generator\.train=0 must be"):
        plan_submission(["train"], words, given)


def test_a_sweep_groups_its_trials_by_what_their_kind_knows_and_by_nothing_else():
    def trials(*words: str) -> list[Any]:
        return complete_trials(load_sweep("five_scenarios", words, config_dir=ROOT / "configs"))

    grouped = trials("search_space.task=[sudoku4,sudoku6]", "group_by=generator.size")
    assert {flat(config)["generator.size"] for config in grouped} == {4, 6}
    with pytest.raises(ConfigError, match=r"group_by=generator\.sise must be a key of every trial"):
        trials("group_by=generator.sise")


def test_a_run_s_config_holds_every_key_of_its_kind_as_the_kind_reads_it(tmp_path: Path):
    words = ["generator.train=3e1", "generator.size=4", "generator.test='8'"]
    config = run_config(tmp_path / "data", tmp_path / "run", *words)
    make_missing(config)
    plan = plan_run(config)
    told = {"name": "sudoku", "check_existing": True, "size": 4, "train": 30, "test": 8, "clues": None, "seed": 0}
    assert plan.config.generator is not None
    assert plan.config.generator.model_dump() == told
    assert plan.vary(config, tmp_path / "other").config == plan.config == complete(plan.config)
    claim_folder(plan)
    assert flat(config_from_run(tmp_path / "run")) == flat(plan.config)
    assert train_in_process(plan)
    again = plan_run(config)
    claim_folder(again, resume=True)
    assert is_finished(again, start_step(again))


MAZE = "generator={name: maze, size: 6, min_length: 5, train: 12, test: 4}"


def test_mazes_are_made_for_a_task(tmp_path: Path):
    config = run_config(tmp_path / "data", tmp_path / "run", MAZE)
    cost = plan_cost(config, told_ms(1), "told")
    assert [(data.train_rows, data.test_rows, data.disk_mib) for data in cost.data] == [(12, 4, None)]
    make_missing(config)
    info = DatasetInfo.load(tmp_path / "data")
    assert (info.kind, info.seq_len, info.seed, info.split("train").rows) == ("maze", 36, 0, 12)
    assert info.arguments == {"size": 6, "min_length": 5, "train": 12, "test": 4}
    plan = plan_run(config)
    claim_folder(plan)
    assert train_in_process(plan)
    with pytest.raises(ConfigError, match=r"generator\.min_length=6 but .* was made with min_length=5"):
        make_missing(run_config(tmp_path / "data", tmp_path / "run", MAZE.replace("min_length: 5", "min_length: 6")))


def test_a_dataset_of_another_kind_is_refused(tmp_path: Path):
    make_missing(run_config(tmp_path / "data", tmp_path / "run", MAZE))
    words = ["generator.size=6", "generator.train=12", "generator.test=4"]
    with pytest.raises(ConfigError, match=r"generator\.name=sudoku but .*data was made with name=maze; set data_paths"):
        make_missing(run_config(tmp_path / "data", tmp_path / "run", *words))


def test_what_is_made_has_the_shape_that_was_planned():
    for kind in KINDS.values():
        if kind.arguments:
            assert kind.of_shape(*kind.shape_made(kind.arguments().model_dump())) is not None
