"""A command on its way to a cluster: what goes along, and that nothing it writes is lost there."""

from pathlib import Path

import pytest
from run_helpers import ROOT

from trm_ray.cli.submit import _planned
from trm_ray.config import ConfigError, load_config, load_sweep, run_dir
from trm_ray.distributed.submission import Submission
from trm_ray.storage import join

TRAIN = ["train", "--config-name", "deep_supervision_linear", "task=sudoku4"]
SWEEP = ["sweep", "--config-name", "five_scenarios"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(*words: str) -> Submission:
    return _planned(words)


def test_a_run_and_its_data_lie_on_the_shared_storage():
    submission = planned(*TRAIN, "ray.storage_path=/mnt/shared")
    assert submission.results == "/mnt/shared/runs/deep_supervision_linear"
    config = load_config("deep_supervision_linear", submission.words[3:])
    assert str(run_dir(config)) == submission.results
    assert config.data_paths == ["/mnt/shared/data/sudoku4"]


def test_a_sweep_and_its_data_lie_on_the_shared_storage():
    submission = planned(*SWEEP, "ray.storage_path=/mnt/shared")
    assert submission.results == "/mnt/shared/runs/five_scenarios"
    sweep = load_sweep("five_scenarios", submission.words[3:])
    assert str(join(sweep.overrides["ray.storage_path"], sweep.log_dir)) == submission.results
    assert sweep.overrides["data_paths"] == ["/mnt/shared/data/sudoku6"]


def test_data_of_one_s_own_is_named_once(tmp_path: Path):
    storage = "ray.storage_path=/mnt/shared"
    submission = planned(*TRAIN, storage, "data_paths=[data/own]")
    assert submission.words[3:] == ("task=sudoku4", storage, 'data_paths=["/mnt/shared/data/own"]')
    submission = planned(*SWEEP, storage, "overrides.data_paths=[data/own]")
    assert load_sweep("five_scenarios", submission.words[3:]).overrides["data_paths"] == ["/mnt/shared/data/own"]


def test_object_storage_is_shared_storage():
    submission = planned(*TRAIN, "ray.storage_path=memory://bucket/ours")
    assert submission.results == "memory://bucket/ours/runs/deep_supervision_linear"
    assert submission.words[-1] == 'data_paths=["memory://bucket/ours/data/sudoku4"]'
    assert planned("evaluate", "memory://bucket/runs/x").results == "memory://bucket/runs/x/report"


def test_absolute_places_stay_as_they_are():
    words = [*TRAIN, "log_dir=/mnt/shared/mine", "data_paths=[/mnt/shared/data/x]"]
    assert planned(*words) == Submission(tuple(words), (), "/mnt/shared/mine")


@pytest.mark.parametrize("words", [TRAIN, SWEEP])
def test_results_that_would_be_lost_are_refused_with_a_way_out(words: list[str]):
    told = (
        r"runs/\w+ lies in the job's copy .*; use ray\.storage_path=/mnt/shared \(storage that all nodes see\) or s3://"
    )
    with pytest.raises(ConfigError, match=told):
        planned(*words)
    with pytest.raises(ConfigError, match=r"ray\.storage_path=mine is no shared storage"):
        planned(*words, "ray.storage_path=mine")


def test_data_that_the_job_would_not_find_is_refused():
    with pytest.raises(ConfigError, match=r"data_paths=\[data/sudoku4\] lies in the job's copy"):
        planned(*TRAIN, "log_dir=/mnt/shared/x")
    with pytest.raises(ConfigError, match=r"the trials use several datasets, of which data/"):
        planned(*SWEEP, "ray.storage_path=/mnt/shared", "search_space.task=[sudoku4,sudoku6]")


def test_weights_to_begin_with_must_be_on_shared_storage():
    for words in (["--init-from", "runs/old"], ["init_from=runs/old"]):
        with pytest.raises(ConfigError, match="init_from=runs/old must be an absolute path or a URL"):
            planned(*TRAIN, "ray.storage_path=/mnt/shared", *words)


def test_a_wrong_config_is_found_before_anything_is_sent():
    with pytest.raises(ConfigError, match="did you mean `lr`"):
        planned(*TRAIN, "learning_rate=1e-3", "ray.storage_path=/mnt/shared")


def test_small_files_that_a_command_names_go_along(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    text = (ROOT / "configs" / "deep_supervision_linear.yaml").read_text()
    (tmp_path / "mine" / "scenario.yaml").write_text(text)
    submission = planned("train", "--config-name", "mine/scenario.yaml", "ray.storage_path=/mnt/shared")
    assert submission.files == ("mine/scenario.yaml",)
    (tmp_path / "puzzle.txt").write_text("1...\n")
    assert planned("predict", "/mnt/shared/runs/x", "puzzle.txt").files == ("puzzle.txt",)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "runs/x"], r"RUN runs/x: a job has no copy of it"),
        (
            ["evaluate", "/runs/x", "--output", "report"],
            r"--output report lies in .* use e\.g\. --output /mnt/shared/report",
        ),
        (["compare", "/runs/x"], r"--save comparison\.png lies in the job's copy"),
        (["compare", "/runs/x", "--save", "/x.png", "--json", "x.json"], r"--json x\.json lies in the job's copy"),
        (["prepare", "sudoku", "--output", "data/x"], r"--output data/x lies in the job's copy"),
        (
            ["prepare", "sudoku", "--output", "/data/x", "--from-csv", "folder/of/csv"],
            r"--from-csv folder/of/csv: a job has",
        ),
        (["predict", "/runs/x", "../puzzle.txt"], r"PUZZLE \.\./puzzle\.txt must lie in the working directory"),
        (["predict", "/runs/x", "-"], r"PUZZLE - is the standard input, which a job has not; name a file"),
    ],
)
def test_places_that_a_job_would_not_find_are_refused(words: list[str], told: str, tmp_path: Path):
    (tmp_path.parent / "puzzle.txt").write_text("1...\n")
    with pytest.raises(ConfigError, match=told):
        planned(*words)


@pytest.mark.parametrize(
    ("words", "results"),
    [
        (["evaluate", "/runs/x"], "/runs/x/report"),
        (["evaluate", "/runs/x", "--output", "/reports"], "/reports"),
        (["dashboard", "/runs/x"], "/runs/x/report"),
        (["compare", "/runs/x", "--save", "/shared/comparison.png"], "/shared/comparison.png"),
        (["prepare", "maze", "--output", "/data/maze"], "/data/maze"),
        (["bench"], None),
        (["plan", "five_scenarios", "data_paths=[/data/sudoku6]"], None),
    ],
)
def test_the_results_of_other_commands_are_known(words: list[str], results: str | None):
    assert planned(*words) == Submission(tuple(words), (), results)


@pytest.mark.parametrize("words", [["trian"], ["prepare", "sudokus"], ["prepare"]])
def test_what_is_no_command_is_refused_with_the_nearest(words: list[str]):
    with pytest.raises(ValueError, match=rf"`trm-ray submit {' '.join(words[:1])}.*` names no command; did you mean"):
        planned(*words)


@pytest.mark.parametrize("words", [["submit", "train"], ["jobs", "list"]])
def test_what_runs_here_alone_is_not_submitted(words: list[str]):
    with pytest.raises(ValueError, match=rf"^`trm-ray {words[0]}` runs here and cannot be submitted; leave"):
        planned(*words)
