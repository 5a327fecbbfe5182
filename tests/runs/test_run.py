"""One run's plan and folder: what is taken, gone on with, cleared, refused."""

import json
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import Puzzles, assert_same, metric_rows, sudoku
from run_helpers import (
    IDENTIFIERS,
    ROOT,
    final_weights,
    laid_over,
    run_config,
    some_puzzles,
    tiny_overrides,
    write_puzzles,
)

from trm_ray.config import Config, ConfigError, config_from_run, load_config
from trm_ray.data import stream
from trm_ray.data.format import DatasetInfo, read_split, read_splits
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError, Rows
from trm_ray.data.write import write_dataset
from trm_ray.kinds.maze.generate import prepare_maze
from trm_ray.kinds.sudoku.generate import prepare_sudoku
from trm_ray.reporting.run_log import read_run
from trm_ray.runs.data import make_missing
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import check_folder, claim_folder, is_finished, owned_run, start_step
from trm_ray.runs.plan import RunPlan, plan_run

GENERATED = ["generator.size=4", "generator.train=40", "generator.test=8", "generator.seed=3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


def planned(data: Path, folder: Path, *words: str) -> RunPlan:
    return plan_run(run_config(data, folder, *words))


def begin(plan: RunPlan, *, steps_left: int = 3) -> None:
    """Train a run, and forget its last steps as if it had been killed there."""
    claim_folder(plan)
    train_in_process(plan)
    if steps_left:
        for name in ("final_model", f"checkpoint_step_{plan.num_steps}"):
            for path in sorted((plan.folder / name).glob("*")):
                path.unlink()
            (plan.folder / name).rmdir()


def test_a_resume_goes_on_before_a_damaged_checkpoint_and_logs_every_step_once(data: Path, tmp_path: Path):
    whole, broken = (planned(data, tmp_path / name) for name in ("whole", "broken"))
    begin(whole, steps_left=0)
    begin(broken, steps_left=0)
    (broken.folder / "final_model" / "state.pt").unlink()
    state = broken.folder / "checkpoint_step_6" / "state.pt"
    state.write_bytes(state.read_bytes().replace(b"model", b"mod3l", 1))
    assert start_step(broken) == 3
    train_in_process(broken, claim_folder(broken, resume=True))
    lines = (broken.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    final = "final_model/state.pt"
    assert (broken.folder / final).read_bytes() == (whole.folder / final).read_bytes()


def test_a_new_folder_holds_the_config_and_what_it_runs_on(data: Path, tmp_path: Path):
    plan = planned(data, tmp_path / "deep" / "run", "lr=0.01")
    claim_folder(plan)
    assert config_from_run(plan.folder) == plan.config
    environment = json.loads((plan.folder / "environment.json").read_text())
    assert environment["total_steps"] == 6
    assert {
        "trm_ray",
        "python",
        "torch",
        "ray",
        "numpy",
        "pyarrow",
        "platform",
        "processor",
        "gpus",
    } <= environment.keys()


def test_planning_writes_nothing(data: Path, tmp_path: Path):
    planned(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_below_the_storage_path_is_the_run_s(data: Path, tmp_path: Path):
    config = run_config(data, Path("runs/one"), f"ray.storage_path={tmp_path}")
    assert plan_run(config).folder == tmp_path / "runs" / "one"


def test_a_claimed_folder_in_which_nothing_was_trained_may_be_claimed_again(data: Path, tmp_path: Path):
    claim_folder(planned(data, tmp_path / "run"))
    claim_folder(planned(data, tmp_path / "run", "lr=0.5"))
    assert config_from_run(tmp_path / "run").lr == 0.5


def test_a_folder_that_holds_a_run_is_refused_with_the_ways_out(data: Path, tmp_path: Path):
    plan = planned(data, tmp_path / "run")
    begin(plan)
    before = sorted(path.stat().st_mtime_ns for path in plan.folder.rglob("*"))
    with pytest.raises(ConfigError, match=r"log_dir=.*already holds a run.*--resume.*--overwrite.*another log_dir"):
        claim_folder(plan)
    assert sorted(path.stat().st_mtime_ns for path in plan.folder.rglob("*")) == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_holds_something_else_is_never_touched(data: Path, tmp_path: Path, flags: dict[str, bool]):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds files but no run \(thesis\.tex\); choose another log_dir"):
        check_folder(planned(data, tmp_path), **flags)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_leaves_nothing_of_the_run_before_once_the_new_one_has_saved(data: Path, tmp_path: Path):
    begin(planned(data, tmp_path / "run"))
    (tmp_path / "run" / "report").mkdir()
    (tmp_path / "run" / "report" / "dashboard.png").write_bytes(b"old")
    shorter = planned(data, tmp_path / "run", "lr=0.5", "max_steps=2", "eval_interval=2")
    with owned_run(shorter, overwrite=True) as (begin_to_write, latest):
        begin_to_write()
        assert latest is None
        assert start_step(shorter) == 0
        train_in_process(shorter)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if "tfevents" not in path.name) == [
        *("checkpoint_step_2", "config.yaml", "depths.jsonl", "environment.json", "final_model", "metrics.jsonl")
    ]
    assert config_from_run(tmp_path / "run").lr == 0.5


def test_gpus_that_are_not_there_are_told_before_ray_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # whose session, from another test, would be asked instead
    with pytest.raises(
        ConfigError, match=r"ray\.use_gpu=true needs a GPU, and torch finds none .* use ray\.use_gpu=fal"
    ):
        planned(data, tmp_path / "run", "ray.use_gpu=true")
    assert planned(data, tmp_path / "run", "ray.use_gpu=true", "ray.num_workers=0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert planned(data, tmp_path / "run", "ray.use_gpu=true")


def test_resume_and_overwrite_exclude_each_other(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="--resume and --overwrite exclude each other"):
        check_folder(planned(data, tmp_path / "run"), resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("lr=0.5", r"lr=0\.5 differs from the run in .*, which has lr=0\.03; resume it with that value"),
        ("arch.hidden_size=32", r"arch\.hidden_size=32 differs .* arch\.hidden_size=16"),
        ("seed=1", "seed=1 differs .* seed=0"),
        ("augment=false", "augment=False differs .* augment=True"),
        ("deep_supervision_schedule=constant", "deep_supervision_schedule=constant differs .*=linear_decay"),
        ("deep_supervision_weights=[0.5,1]", r"deep_supervision_weights=\[0\.5, 1\.0\] differs .*=None"),
        ("global_batch_size=16", "global_batch_size=16 differs .* global_batch_size=8"),
    ],
)
def test_a_run_is_not_resumed_as_another_one(data: Path, tmp_path: Path, word: str, told: str):
    begin(planned(data, tmp_path / "run"))
    with pytest.raises(ConfigError, match=told):
        claim_folder(planned(data, tmp_path / "run", word), resume=True)
    assert config_from_run(tmp_path / "run") == run_config(data, tmp_path / "run")


def test_a_resumed_run_may_be_longer_watched_differently_and_run_elsewhere(data: Path, tmp_path: Path):
    begin(planned(data, tmp_path / "run", "lr_min_ratio=1"))
    words = ["max_steps=8", "eval_interval=4", "log_interval=2", "eval_batch_size=4", "device=cpu", "ray.num_workers=0"]
    longer = planned(data, tmp_path / "run", "lr_min_ratio=1", *words)
    latest = claim_folder(longer, resume=True)
    assert start_step(longer) == 3
    train_in_process(longer, latest)
    assert list(metric_rows(longer.folder)) == [1, 2, 3, 4, 6, 8]
    assert read_run(longer.folder).finished


def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(data: Path, tmp_path: Path):
    whole, resumed = planned(data, tmp_path / "whole"), planned(data, tmp_path / "resumed")
    begin(whole, steps_left=0)
    begin(resumed)
    train_in_process(resumed, claim_folder(resumed, resume=True))
    assert_same(final_weights(resumed.folder), final_weights(whole.folder))
    assert metric_rows(resumed.folder) == metric_rows(whole.folder)
    steps = [json.loads(line)["step"] for line in (resumed.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_resume_that_finds_nothing_says_so_and_what_may_have_been_meant(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """It begins: a job that may be started anew at any time has `--resume` among its words from the first time on."""
    runs = tmp_path / "runs"
    claim_folder(planned(data, runs / "linear"))
    (runs / "linar").mkdir()  # as near, and no run
    for place, meant in (
        (runs / "liner", f" (did you mean {runs / 'linear'}?)"),
        (tmp_path / "rusn" / "linear", f" (did you mean {runs / 'linear'}?)"),
        (runs / "of_today", ""),
    ):
        with owned_run(planned(data, place), resume=True) as (_, latest):
            assert latest is None
        assert caplog.messages[-1] == f"--resume: no run in log_dir={place}, so it begins anew{meant}"
    with owned_run(planned(data, runs / "linear"), resume=True):
        pass
    assert caplog.messages[-1] == f"--resume: no checkpoint in log_dir={runs / 'linear'} yet, so it begins anew"


def test_the_rows_as_they_were_read_are_gone_while_a_run_trains(data: Path, tmp_path: Path, monkeypatch):
    read, alive = [], []

    def remember(*source):
        rows = read_splits(*source)
        read.append(weakref.ref(rows.inputs))
        return rows

    def look(*share, batches=stream.test_batches):
        alive.append([rows() is not None for rows in read])
        return batches(*share)

    monkeypatch.setattr("trm_ray.runs.execute.read_splits", remember)
    monkeypatch.setattr("trm_ray.runs.execute.test_batches", look)
    begin(planned(data, tmp_path / "run"), steps_left=0)
    assert alive == [[True, False]] * 2  # test split, train split


def test_evaluations_during_training_count_puzzles_and_not_their_rows(data: Path, tmp_path: Path, monkeypatch):
    rows = read_split(data, "test")
    pairs = replace(rows, puzzles=rows.puzzles // 2, groups=rows.groups // 2)
    more = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": None}
    write_dataset(tmp_path / "data", {"train": rows, "test": pairs}, vocab_size=6, identifiers=IDENTIFIERS, **more)
    seen = []

    def look(rows, *place, batches=stream.test_batches):
        seen.append(rows.puzzles.tolist())
        return batches(rows, *place)

    monkeypatch.setattr("trm_ray.runs.execute.test_batches", look)
    begin(planned(tmp_path / "data", tmp_path / "run", "eval_max_puzzles=2", "max_steps=3"), steps_left=0)
    assert seen == [[0, 0, 1, 1]]
    seen.clear()
    quick = ["eval_quick_puzzles=1", "eval_interval=2"]
    begin(planned(tmp_path / "data", tmp_path / "quick", "eval_max_puzzles=2", "max_steps=3", *quick), steps_left=0)
    assert seen == [[0, 0], [0, 0, 1, 1]]


def test_a_run_is_not_resumed_on_identifiers_that_mean_other_puzzles(tmp_path: Path):
    rows = sudoku(16)
    data = write_named(tmp_path / "data", rows, [f"puzzle-{i}" for i in range(16)])
    begin(planned(data, tmp_path / "run"))
    write_named(data, rows, [f"other-{i}" for i in range(16)])
    with pytest.raises(ConfigError, match=r"has 17 puzzle identifiers that are not the 17 which .*checkpoint_step_3"):
        claim_folder(planned(data, tmp_path / "run"), resume=True)


def write_named(folder: Path, rows: Puzzles, names: Sequence[str]) -> Path:
    numbers = np.arange(len(rows), dtype=np.int32)
    split = Rows(rows.inputs, rows.labels, numbers + 1, numbers, numbers)
    write_dataset(
        folder,
        {"train": split, "test": split},
        vocab_size=6,
        generator="test",
        arguments={},
        seed=0,
        symmetry=None,
        identifiers=PuzzleIdentifiers.plain(names),
        overwrite=True,
    )
    return folder


def test_weights_to_begin_with_are_found_from_any_working_directory(data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = planned(data, tmp_path / "run", "init_from=runs/earlier")
    assert plan.config.init_from == str(tmp_path / "runs" / "earlier")
    trial = plan.vary(run_config(data, tmp_path / "trial", "init_from=runs/other"), tmp_path / "trial")
    assert trial.config.init_from == str(tmp_path / "runs" / "other")


def test_to_resume_what_has_not_begun_is_to_begin(data: Path, tmp_path: Path):
    plan = planned(data, tmp_path / "run")
    claim_folder(plan, resume=True)
    assert start_step(plan) == 0


def made_and_planned(config: Config) -> RunPlan:
    make_missing(config)
    return plan_run(config)


def test_epochs_count_passes_over_the_training_puzzles(data: Path, tmp_path: Path):
    """64 puzzles in batches of 8 are 8 steps an epoch."""
    assert planned(data, tmp_path / "run", "epochs=5", "max_steps=null").num_steps == 40
    assert planned(data, tmp_path / "run", "epochs=5", "max_steps=7").num_steps == 7


def test_a_missing_dataset_of_a_generated_task_is_made_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*GENERATED, "generator.clues=[6,8]"]
    plan = made_and_planned(run_config(tmp_path / "made", tmp_path / "run", *words))
    assert "Making 48 Sudoku puzzles 4×4 with 6–8 clues" in capsys.readouterr().out
    info = DatasetInfo.load(tmp_path / "made")
    assert (info.seed, info.split("train").rows, info.split("test").rows) == (3, 40, 8)
    assert plan.info.seq_len == 16
    made_and_planned(run_config(tmp_path / "made", tmp_path / "run", *words))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["generator.train=41"],
            r"generator\.train=41 but .*made was made with train=40; set data_paths to a new folder",
        ),
        (["generator.seed=4"], r"generator\.seed=4 but .* seed=3"),
        (["generator.clues=[5,6]"], r"generator\.clues=.* but .* clues=\[4, 8\]"),
    ],
)
def test_a_dataset_that_was_made_with_other_arguments_is_refused(tmp_path: Path, words: Sequence[str], told: str):
    made_and_planned(run_config(tmp_path / "made", tmp_path / "run", *GENERATED))
    with pytest.raises(ConfigError, match=told):
        made_and_planned(run_config(tmp_path / "made", tmp_path / "run", *GENERATED, *words))


def four(folder: Path, log_dir: Path, *words: str) -> Config:
    """The task sudoku4 on a folder of one's own."""
    tiny = tiny_overrides(task="sudoku4", max_steps=2, eval_interval=2, ray__num_workers=0)
    usual = [*tiny, f"data_paths=[{folder}]", f"log_dir={log_dir}"]
    return load_config("deep_supervision_linear", laid_over(usual, words), config_dir=ROOT / "configs")


def test_one_s_own_dataset_is_used_as_it_is_and_told_in_a_line(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    plan = plan_run(four(data, tmp_path / "run"))
    assert plan.info.split("train").rows == 64
    [line] = caplog.messages
    assert line == f"using data_paths={data} as it is (made by test)"
    claim_folder(plan)
    assert train_in_process(plan)
    again = plan_run(four(data, tmp_path / "run"))
    claim_folder(again, resume=True)
    assert is_finished(again, start_step(again))
    claim_folder(plan_run(load_config(str(tmp_path / "run" / "config.yaml"))), resume=True)


def test_one_s_own_puzzles_of_another_size_and_number_are_used_beside_a_folder_that_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    mine, missing = tmp_path / "mine", tmp_path / "mien"
    prepare_sudoku(mine, size=4, train=50, test=8, seed=7)
    plan = made_and_planned(four(mine, tmp_path / "run", f"data_paths=[{mine},{missing}]"))
    assert (plan.info.split("train").rows, plan.info.split("test").rows) == (2050, 264)
    assert caplog.messages == [
        f"data_paths={missing} is not there, so it is made by the task's generator (did you mean {mine}?)",
        f"using data_paths={mine} as it is (made by sudoku; train=50, not 2000; test=8, not 256; seed=7, not 0)",
    ]
    prepare_sudoku(tmp_path / "six", size=6, train=5, test=2)
    with pytest.raises(DatasetError, match="seq_len"):
        plan_run(four(mine, tmp_path / "run", f"data_paths=[{mine},{tmp_path / 'six'}]", "generator=null"))


def test_puzzles_of_another_size_or_kind_than_the_task_s_are_refused(tmp_path: Path):
    """A run on them would be named by the task, and be something else."""
    prepare_sudoku(tmp_path / "six", size=6, train=40, test=8)
    prepare_maze(tmp_path / "maze", size=4, min_length=3, train=40, test=8)  # of as many cells and tokens
    for name, held in (("six", "sudoku of 36 cells and 8 tokens"), ("maze", "maze of 16 cells and 6 tokens")):
        rule = (
            "and task=sudoku4 is for sudoku of 16 cells and 6 tokens; use the task of those puzzles, or generator=null"
        )
        with pytest.raises(ConfigError, match=f"data_paths=.*{name} holds {held}, {rule} to train on them"):
            plan_run(four(tmp_path / name, tmp_path / "run"))
        assert plan_run(four(tmp_path / name, tmp_path / "run", "generator=null")).info.split("train").rows == 40


def test_a_run_on_other_puzzles_from_before_they_were_refused_goes_on(tmp_path: Path):
    prepare_sudoku(tmp_path / "six", size=6, train=40, test=8)
    begun = plan_run(four(tmp_path / "six", tmp_path / "run", "generator=null"))
    claim_folder(begun)
    assert train_in_process(begun)
    file, made = tmp_path / "run" / "config.yaml", "generator: {name: sudoku, check_existing: false, size: 4}\n"
    file.write_text(file.read_text().replace("generator: null\n", made))
    assert made in file.read_text()
    claim_folder(begun, resume=True)


def test_a_run_from_before_folders_were_taken_as_they_are_goes_on(data: Path, tmp_path: Path):
    claim_folder(plan_run(four(data, tmp_path / "run")))
    assert train_in_process(plan_run(four(data, tmp_path / "run")))
    config = tmp_path / "run" / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("  check_existing: false\n", ""))
    assert config.read_text() != text
    claim_folder(plan_run(four(data, tmp_path / "run")), resume=True)


def test_a_missing_dataset_that_nobody_can_make_is_told_with_the_command(tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere does not exist; `trm-ray prepare --help` tells"):
        plan_run(run_config(tmp_path / "nowhere", tmp_path / "run"))
    with pytest.raises(DatasetError, match=r"nowhere does not exist; make it with `python mine.py`"):
        plan_run(run_config(tmp_path / "nowhere", tmp_path / "run", "prepare_command=python mine.py"))


def test_the_test_split_may_lie_in_another_dataset(data: Path, tmp_path: Path):
    other = write_puzzles(tmp_path / "other", sudoku(5, seed=8), sudoku(4, seed=9))
    plan = planned(data, tmp_path / "run", f"data_paths_test=[{other}]")
    assert (plan.train_paths, plan.test_paths) == ((data,), (other,))
    claim_folder(plan)
    assert train_in_process(plan)["eval/exact_accuracy"] * 4 == pytest.approx(0, abs=4)


def test_a_test_split_whose_identifiers_mean_other_puzzles_is_refused(data: Path, tmp_path: Path):
    boards = np.ones((2, 16), np.int32)
    told = {"vocab_size": 6, "generator": "test", "arguments": {}, "seed": 0, "symmetry": None}
    for name, identifiers in (("named", PuzzleIdentifiers.plain(["a"])), ("plain", PuzzleIdentifiers.blank())):
        write_dataset(
            tmp_path / name, {"test": Rows.of_single_puzzles(boards, boards)}, identifiers=identifiers, **told
        )
    with pytest.raises(DatasetError, match="identifiers of data_paths_test and data_paths differ"):
        planned(data, tmp_path / "run", f"data_paths_test=[{tmp_path / 'named'}]")
    plan = planned(data, tmp_path / "run", f"data_paths_test=[{tmp_path / 'plain'}]")
    assert len(plan.identifiers()) == plan.info.num_puzzle_identifiers == 1000


def test_a_test_split_of_other_puzzles_is_refused(data: Path, tmp_path: Path):
    words = ["generator.size=6", "generator.train=4", "generator.test=2"]
    made_and_planned(run_config(tmp_path / "six", tmp_path / "run", *words))
    with pytest.raises(ConfigError, match=r"data_paths_test=.* has seq_len=36, data_paths has 16; they must be equal"):
        planned(data, tmp_path / "run", f"data_paths_test=[{tmp_path / 'six'}]")
