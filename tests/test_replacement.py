"""What `--overwrite` replaces: our own files alone, once the new ones stand; and what it does on the way there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml
from helpers import sudoku
from run_helpers import laid_over, run_config, some_puzzles, tiny_overrides, write_puzzles
from typer.testing import CliRunner

import trm_ray
from trm_ray import replacement
from trm_ray.cli import app
from trm_ray.config import ConfigError, to_yaml
from trm_ray.data.check import open_dataset
from trm_ray.data.rows import DatasetError
from trm_ray.data.write import write_dataset
from trm_ray.replacement import ASIDE, DATASET, RUN, SWEEP, is_ours, our_files, set_aside, settle
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import owned_run
from trm_ray.runs.plan import plan_run
from trm_ray.storage import as_path, move
from trm_ray.training.checkpoint import has_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=8)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with one finished trial, with all that the commands write into both."""
    sweep = tmp_path_factory.mktemp("runs") / "sweep"
    run = sweep / "trial"
    words = ["max_steps=4", "eval_interval=2", "ray.num_workers=0", "keep_last=1"]
    trm_ray.train(run_config(data, run, *words))
    for words in (
        ["evaluate", run],
        ["evaluate", run / "checkpoint_step_4"],
        ["dashboard", run],
        ["compare", run, "--save", sweep / "report" / "comparison.png"],
        ["report", run, "--no-gallery", "--output", sweep / "report" / "report.html"],
    ):
        assert CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False).exit_code == 0
    words = ["scenarios=[deep_supervision_linear]", "keep=[]", *tiny_overrides(), f"data_paths=[{data}]"]
    (sweep / "sweep.yaml").write_text(to_yaml(trm_ray.config.load_sweep("five_scenarios", words)))
    return sweep


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "trial", tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes | str]:
    """All files by name, links by where they lead."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def again(run: Path, data: Path, *words: str) -> tuple[int, str]:
    """Train it anew by the command line."""
    short = tiny_overrides(max_steps=2, eval_interval=2, ray__num_workers=0)
    usual = [*short, f"data_paths=[{data}]", f"log_dir={run}"]
    done = CliRunner().invoke(app, ["train", *laid_over(usual, words)], catch_exceptions=False)
    return done.exit_code, " ".join((done.stdout + done.stderr).split())


# ---- what is ours ----------------------------------------------------------------------------------------


def test_every_file_that_the_commands_write_is_known_as_ours(finished: Path, data: Path):
    run = finished / "trial"
    for folder, content in ((run, RUN), (finished, SWEEP), (data, DATASET)):
        assert is_ours(folder, content)
        ours, others = our_files(folder, content)
        assert others == []
        assert ours == sorted(contents(folder))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "notes.txt",
            "src/thesis.tex",
            "final_model/model.safetensors",
            "checkpoint_step_2/mine.txt",
            "report/me.png",
        ),
        *(
            "events.out.tfevents.1700000000.host.1.0",
            "checkpoint_step_x/state.pt",
            "config.yaml.bak",
            ".ray",
            "weights/",
        ),
    ],
)
def test_what_others_put_into_a_run_is_not(run: Path, name: str):
    (run / name).parent.mkdir(exist_ok=True, parents=True)
    (run / name).mkdir() if name.endswith("/") else (run / name).write_text("mine")
    assert our_files(run, RUN)[1] == ([] if name.endswith("/") else [name])


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.yaml", "trainer: {gpus: 4}", ["train", "ray.num_workers=0"]),
        ("config.yaml", "format_version: 1\narch: resnet", ["train", "ray.num_workers=0"]),
        ("config.yaml", "- a list", ["train", "ray.num_workers=0"]),
        ("config.yaml", "!!python/object:os.system x", ["train", "ray.num_workers=0"]),
        ("sweep.yaml", "program: train.py\nmethod: bayes", ["sweep", "scenarios=[deep_supervision_linear]", "keep=[]"]),
        ("dataset.json", '{"name": "my data"}', ["prepare", "sudoku", "--size", "4", "--train", "9", "--test", "3"]),
        ("dataset.json", "not json", ["prepare", "maze", "--size", "6", "--min-length", "2", "--train", "9"]),
        ("config.yaml", "trainer: {}", ["import-checkpoint", "FILE"]),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_somebody_else_s_folder_is_refused_with_the_names_and_left_as_it_is(
    data: Path, tmp_path: Path, file: str, content: str, words: list[str], flags: list[str]
):
    mine = tmp_path / "proj"
    (mine / "src").mkdir(parents=True)
    (mine / file).write_text(content)
    (mine / "src" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_bytes(b"weights")
    before = contents(mine)
    given = [word.replace("FILE", str(tmp_path / "file")) for word in words]
    if words[0] in ("train", "sweep"):
        given += [*tiny_overrides(), f"data_paths=[{data}]", f"log_dir={mine}"]
    else:
        given += ["--output", str(mine)]
    done = CliRunner().invoke(app, [*given, *flags], catch_exceptions=False)
    assert (done.exit_code, contents(mine)) == (2, before)
    assert f"({', '.join(sorted([file, 'src']))})" in done.stderr


# ---- runs ------------------------------------------------------------------------------------------------


def test_overwrite_keeps_what_it_does_not_know_and_says_so(run: Path, data: Path, caplog: pytest.LogCaptureFixture):
    (run / "notes.txt").write_text("mine")
    (run / "checkpoint_step_4" / "why.md").write_text("mine too")
    code, _ = again(run, data, "--overwrite")
    assert code == 0
    told = f"{run}: kept checkpoint_step_4/why.md, notes.txt, which trm-ray has not written"
    assert told in caplog.messages
    assert (run / "notes.txt").read_text() == "mine"
    assert [path.name for path in (run / "checkpoint_step_4").iterdir()] == ["why.md"]
    assert {path.name for path in run.iterdir() if path.is_dir()} == {
        *("checkpoint_step_2", "checkpoint_step_4", "final_model")
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["device=cuda"], "device=cuda needs a GPU"),
        (["ray.num_workers=1", "ray.address=127.0.0.1:1"], "ray.address=127.0.0.1:1 does not answer"),
        (["init_from=nowhere"], "nowhere"),
        (["data_paths=[nowhere]"], "the dataset folder nowhere does not exist"),
        (["lr=1e30", "lr_warmup_steps=0", "grad_clip_norm=null", "eval_interval=99", "max_steps=99"], "not finite"),
    ],
)
def test_a_new_run_that_fails_at_once_leaves_the_old_one(run: Path, data: Path, words: list[str], told: str):
    before = contents(run)
    code, said = again(run, data, "--overwrite", *words)
    assert code != 0
    assert told in said
    assert contents(run) == before


def test_the_old_run_goes_when_the_new_one_has_saved_its_first_checkpoint(run: Path, data: Path, monkeypatch):
    from trm_ray.training import loop

    seen = []

    def evaluate_then_look(*args, **options):
        seen.append((run / ASIDE / "config.yaml").is_file())
        return measure(*args, **options)

    measure = loop.evaluate_state
    monkeypatch.setattr(loop, "evaluate_state", evaluate_then_look)
    assert again(run, data, "--overwrite", "max_steps=6", "eval_interval=2")[0] == 0
    assert seen == [True, False, False]


def test_after_a_kill_before_its_first_checkpoint_the_old_run_is_back_for_the_next_process(run: Path, data: Path):
    before = contents(run)
    plan = plan_run(run_config(data, run, "lr=0.5", "ray.num_workers=0"))
    set_aside(run, RUN)
    (run / "config.yaml").write_text(to_yaml(plan.config))
    (run / "metrics.jsonl").write_text('{"step": 1, "wall_s": 1}\n')
    code, said = again(run, data)
    assert (code, "already holds a run" in said) == (2, True)
    code, said = again(run, data, "--resume", "max_steps=4", "keep_last=1")
    assert (code, "has been trained to step 4 of 4; nothing to do" in said) == (0, True)
    assert {name: content for name, content in contents(run).items() if name != "environment.json"} == {
        name: content for name, content in before.items() if name != "environment.json"
    }


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[int]]:
    """End the process, as it were, at the `number`-th change of the file system."""
    counted = [0]
    real = {"move": replacement.move, "remove_tree": replacement.remove_tree}

    def counting(name):
        def change(*args):
            if counted[0] == number:
                raise Killed
            counted[0] += 1
            return real[name](*args)

        return change

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(replacement, name, counting(name))
        with suppress(Killed):
            yield counted


def test_a_kill_at_any_moment_of_setting_aside_and_putting_back_loses_nothing(run: Path, monkeypatch):
    (run / "notes.txt").write_text("mine")
    before, number, reached = contents(run), 0, True
    while reached:
        with killed_at(monkeypatch, number) as counted:
            set_aside(run, RUN)
            (run / "config.yaml").write_text("new: true")
            (run / "checkpoint_step_2").mkdir(exist_ok=True)
            (run / "checkpoint_step_2" / "run.json").write_text("torn")
            settle(run, RUN, has_checkpoint)
        reached = counted[0] == number
        settle(run, RUN, has_checkpoint)
        assert contents(run) == before, number
        number += 1
    assert number > 2 * len(before)


def test_a_kill_while_the_old_run_is_removed_leaves_the_new_one(run: Path, data: Path):
    set_aside(run, RUN)
    plan = plan_run(run_config(data, run, "max_steps=2", "ray.num_workers=0"))
    shutil.copytree(run / ASIDE / "checkpoint_step_4", run / "checkpoint_step_4")
    (run / "config.yaml").write_text(to_yaml(plan.config))
    new = contents(run / "checkpoint_step_4")
    (run / ASIDE / "config.yaml").unlink()  # as far as the removal came
    settle(run, RUN, has_checkpoint)
    assert not (run / ASIDE).exists()
    assert contents(run / "checkpoint_step_4") == new


# ---- links -----------------------------------------------------------------------------------------------


def test_a_log_dir_that_is_a_link_stays_one_and_what_it_points_to_is_written(run: Path, data: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(run)
    assert again(tmp_path / "link", data, "--overwrite")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert (run / "checkpoint_step_2" / "state.pt").is_file()
    assert not (run / "checkpoint_step_4").exists()
    (tmp_path / "dangling").symlink_to(tmp_path / "not" / "yet")
    assert again(tmp_path / "dangling", data)[0] == 0
    assert (tmp_path / "not" / "yet" / "final_model").is_dir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    code, told = again(tmp_path / "circle", data)
    assert (code, "is a link that leads to itself" in told) == (2, True)


def test_a_checkpoint_that_was_moved_to_another_disk_and_linked_is_not_gone_on_from_by_the_next_run(
    run: Path, data: Path, tmp_path: Path
):
    shutil.move(run / "checkpoint_step_4", tmp_path / "elsewhere")
    (run / "checkpoint_step_4").symlink_to(tmp_path / "elsewhere")
    kept = contents(tmp_path / "elsewhere")
    assert again(run, data, "--overwrite")[0] == 0
    assert not (run / "checkpoint_step_4").is_symlink()
    assert contents(tmp_path / "elsewhere") == kept


# ---- checkpoints by what they hold -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["checkpoint_step_99", "checkpoint_step_0", "checkpoint_step_3"])
@pytest.mark.parametrize("original", [True, False])
def test_a_checkpoint_is_what_its_manifest_says_whatever_it_is_called(run: Path, data: Path, name: str, original: bool):
    shutil.rmtree(run / "final_model")
    shutil.copytree(run / "checkpoint_step_4", run / name)
    if not original:
        shutil.rmtree(run / "checkpoint_step_4")
    code, told = again(run, data, "--resume", "max_steps=6", "keep_last=1")
    assert code == 0
    assert "Going on after step 4 of 6" in told
    assert [row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] == [*range(1, 7)]
    assert json.loads((run / "final_model" / "manifest.json").read_text())["step"] == 6


def test_another_run_s_checkpoint_is_refused(run: Path, data: Path, tmp_path: Path):
    trm_ray.train(run_config(data, tmp_path / "other", "lr=0.5", "max_steps=8", "eval_interval=8", "ray.num_workers=0"))
    shutil.copytree(tmp_path / "other" / "checkpoint_step_8", run / "checkpoint_step_8")
    code, told = again(run, data, "--resume", "max_steps=9", "keep_last=1")
    assert code == 2
    assert "lr=0.03 differs from" in told
    assert "checkpoint_step_8, which a run saved that has lr=0.5" in told


# ---- sweeps ----------------------------------------------------------------------------------------------


def test_a_sweep_s_files_and_those_of_its_trials_are_replaced_and_nothing_else(finished: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    shutil.copytree(finished, sweep)
    for mine in ("notes.txt", "trial/notes.txt", "analysis/plot.py", "report/mine.png"):
        (sweep / mine).parent.mkdir(exist_ok=True)
        (sweep / mine).write_text("mine")
    before = contents(sweep)
    set_aside(sweep, SWEEP)
    assert sorted(name for name in contents(sweep) if not name.startswith(ASIDE)) == [
        *("analysis/plot.py", "notes.txt", "report/mine.png", "trial/notes.txt")
    ]
    settle(sweep, SWEEP, lambda folder: False)
    assert contents(sweep) == before


def test_a_sweep_whose_cluster_does_not_answer_leaves_the_old_one(finished: Path, data: Path, tmp_path: Path):
    sweep = tmp_path / "sweep"
    shutil.copytree(finished, sweep)
    before = contents(sweep)
    words = ["scenarios=[deep_supervision_linear]", "keep=[]", "asha.enabled=false", f"log_dir={sweep}"]
    words += [*tiny_overrides(), f"data_paths=[{data}]", "ray.address=127.0.0.1:1"]
    done = CliRunner().invoke(app, ["sweep", *words, "--overwrite"], catch_exceptions=False)
    assert (done.exit_code, "does not answer" in done.stderr) == (1, True)
    assert contents(sweep) == before


# ---- datasets --------------------------------------------------------------------------------------------


def test_a_new_dataset_replaces_the_old_one_s_files_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = some_puzzles(tmp_path / "puzzles", train=600, test=9)
    (folder / "raw").mkdir()
    (folder / "raw" / "source.txt").write_text("mine")
    (folder / "train" / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="already holds a dataset"):
        write_puzzles(folder, sudoku(8), sudoku(8))
    told = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": None, "vocab_size": 6, "overwrite": True}
    with pytest.raises(DatasetError, match="the test split is empty"):
        write_dataset(folder, {"train": rows(8), "test": rows(0)}, **told)
    assert open_dataset(folder).split("train").rows == 600
    write_dataset(folder, {"train": rows(8), "test": rows(4)}, **told)
    assert open_dataset(folder).split("train").rows == 8
    assert sorted(contents(folder)) == [
        *("dataset.json", "identifiers.json", "raw/source.txt", "test/part-00000.parquet", "train/notes.txt"),
        "train/part-00000.parquet",
    ]
    assert any("kept raw/source.txt, train/notes.txt" in message for message in caplog.messages)


def rows(count: int):
    from trm_ray.data.rows import Rows

    puzzles = sudoku(max(count, 1))
    return Rows.of_single_puzzles(puzzles.inputs[:count], puzzles.labels[:count])


def test_a_dataset_half_put_in_its_place_is_the_old_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = some_puzzles(tmp_path / "puzzles", train=600, test=9)
    before = contents(folder)
    moves = [0]

    def failing(source: Path, target: Path) -> None:
        moves[0] += 1
        if moves[0] == 3:
            raise OSError(28, "No space left on device", str(target))
        move(source, target)

    monkeypatch.setattr("trm_ray.data.write.move", failing)
    told = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": None, "vocab_size": 6, "overwrite": True}
    with pytest.raises(OSError, match="No space left"):
        write_dataset(folder, {"train": rows(800), "test": rows(4)}, **told)
    assert contents(folder) == before


def test_a_folder_that_is_mounted_may_be_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is written beside it: its parent may be read-only, and a mount cannot be renamed."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    inode = folder.stat().st_ino
    some_puzzles(folder, train=8, test=4)
    assert folder.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["mounted"]


def test_a_run_on_object_storage_is_replaced_in_the_same_way(bucket: Path, data: Path):
    config = run_config(data, as_path(f"{bucket}/run"), "max_steps=2", "eval_interval=2", "ray.num_workers=0")
    trm_ray.train(config)
    (bucket / "run" / "notes.txt").write_bytes(b"mine")
    old = {str(path): path.read_bytes() for path in (bucket / "run").files()}  # type: ignore[attr-defined]
    plan = plan_run(config)
    with suppress(Killed), owned_run(plan, overwrite=True) as (begin, _):
        begin()
        assert (bucket / "run" / ASIDE / "checkpoint_step_2" / "state.pt").is_file()
        raise Killed
    assert {str(path): path.read_bytes() for path in (bucket / "run").files()} == old  # type: ignore[attr-defined]
    with owned_run(plan, overwrite=True) as (begin, _):
        begin()
        train_in_process(plan)
    assert not (bucket / "run" / ASIDE).exists()
    assert (bucket / "run" / "notes.txt").read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="already holds a run"), owned_run(plan):
        pass


def test_yaml_of_others_is_read_without_running_it(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.mkdir [made]")
    assert not is_ours(tmp_path, RUN)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict.fromkeys(RUN.keys, 1)))
    assert is_ours(tmp_path, RUN)


def test_an_evaluation_replaces_no_file_of_others(run: Path, tmp_path: Path):
    for name in ("submission.json", "evaluation_test.json"):
        mine = tmp_path / name.partition(".")[0]
        mine.mkdir()
        (mine / name).write_text('{"mine": 1}')
        done = CliRunner().invoke(app, ["evaluate", str(run), "--output", str(mine)], catch_exceptions=False)
        assert (done.exit_code, f"holds {name}, not written by trm-ray" in done.stderr) == (2, True)
        assert contents(mine) == {name: b'{"mine": 1}'}
    for _ in range(2):  # its own it does
        done = CliRunner().invoke(
            app, ["evaluate", str(run), "--output", str(tmp_path / "own")], catch_exceptions=False
        )
        assert done.exit_code == 0
