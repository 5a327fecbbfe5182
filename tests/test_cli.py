"""The command line as people use it: help, errors in one line, a run from training to its pictures, Ctrl-C."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import ROOT, laid_over, some_puzzles, tiny_overrides
from typer.main import get_command
from typer.testing import CliRunner, Result

import trm_ray
from trm_ray import __version__
from trm_ray.cli import app
from trm_ray.data.format import DatasetInfo
from trm_ray.reporting.run_log import read_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


def run(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def train_words(data: Path, log_dir: Path, *words: str) -> list[str]:
    places = [f"data_paths=[{data}]", f"log_dir={log_dir}", "ray.num_workers=0"]
    return ["train", "--config-name", "deep_supervision_linear", *laid_over([*tiny_overrides(), *places], words)]


SCRIPT = [str(Path(sys.executable).with_name("trm-ray"))]


@pytest.mark.parametrize("called", [SCRIPT, [sys.executable, "-m", "trm_ray.cli"]], ids=["script", "module"])
def test_modules_of_the_user_s_in_the_working_directory_are_none_of_ours(called: list[str], tmp_path: Path):
    for module in ("random", "numpy", "yaml", "logging", "typing", "json", "pydantic"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('a module of the user')\n")
    ended = subprocess.run([*called, "train", "lr=fast"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: lr=fast must be a number above 0")


def commands() -> Iterator[tuple[str, ...]]:
    """Every command with the words that lead to it."""
    found = get_command(app)
    waiting = [((name,), command) for name, command in found.commands.items()]  # type: ignore[attr-defined]
    for words, command in waiting:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words
        else:
            waiting += [((*words, name), leaf) for name, leaf in inner.items()]


# ---- help ------------------------------------------------------------------------------------------------


def test_the_promised_commands_exist():
    promised = {
        "prepare",
        "train",
        "sweep",
        "evaluate",
        "predict",
        "generate",
        "dashboard",
        "compare",
        "bench",
        "selftest",
        "plan",
    }
    promised |= {"import-checkpoint", "export-checkpoint", "submit", "jobs", "grafana", "replay", "schedule"}
    promised |= {"diagnose", "report"}
    assert {words[0] for words in commands()} == promised


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(words: tuple[str, ...]):
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert f"trm-ray {' '.join(words)} " in result.stdout.split("Example:")[1].split("─")[0]
    assert run(*words, "-h").stdout == result.stdout


def test_the_version_is_told_and_the_package_is_a_program(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run("--version").stdout == f"trm-ray {__version__}\n"
    monkeypatch.setattr(sys, "argv", ["trm_ray", "-h"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("trm_ray", run_name="__main__")
    assert not ended.value.code
    assert "Usage: trm-ray [OPTIONS] COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "cp1252"])
def test_help_can_be_told_in_any_encoding(charset: str):
    result = CliRunner(charset=charset).invoke(app, ["prepare", "sudoku", "--help"])
    assert result.exit_code == 0, result.exception
    assert re.search("Read 9[×x]9 puzzles", result.stdout)


def test_what_submit_is_to_run_has_its_own_help_and_its_own_mistakes():
    assert "Usage: submit train" in run("submit", "train", "-h").stdout.replace("trm-ray", "submit")
    assert "No such option: --foo" in run("submit", "train", "--foo").stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train --max-steps 5", "--max-steps; it is a key: write max_steps=VALUE"),
        ("train --hidden_size=5", "--hidden_size; it is a key: write arch.hidden_size=VALUE"),
        ("train --learning-rate 5", "--learning-rate; it is a key: write lr=VALUE"),
        ("sweep --seeds 3", "--seeds; it is a key: write seeds=VALUE"),
        ("bench scaling --arch.H_cycles 3", "--arch.H_cycles; it is a key: write arch.H_cycles=VALUE"),
        ("train --foo", "--foo"),
        ("evaluate --max-steps 5", "--max-steps (Possible options: --max-puzzles)"),  # it takes no keys
    ],
)
def test_a_key_that_is_written_as_an_option_is_told_how_it_is_written(words: str, told: str):
    refused = run(*words.split())
    lines = [line.strip("│ ") for line in refused.stderr.splitlines() if line.startswith("│")]
    assert (refused.exit_code, " ".join(lines)) == (2, f"No such option: {told}")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_a_job_script_is_the_command_of_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert re.search(rf"Usage: .*{path.stem}", capsys.readouterr().out)


def test_help_is_quick_and_loads_nothing_heavy():
    program = (
        "import sys, time; began = time.perf_counter(); sys.argv = ['trm-ray', '--help']\n"
        "try:\n    from trm_ray.cli import app; app()\n"
        "except SystemExit:\n    heavy = {'torch', 'ray', 'matplotlib', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "    print(time.perf_counter() - began, *heavy, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, *heavy = ended.stderr.split()
    assert "sweep" in ended.stdout
    assert heavy == []
    assert float(seconds) < 5  # half a second on an idle machine


# ---- errors ------------------------------------------------------------------------------------------------


def assert_refused(result: Result, told: str) -> None:
    """Exit code 2 and one line on the error stream, whatever went to the other before."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert re.search(told, result.stderr), result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("learning_rate=1e-3", r"learning_rate=.* has an unknown key; did you mean `lr`\?"),
        ("arch.hiden_size=64", r"arch\.hiden_size=64 has an unknown key; did you mean `arch\.hidden_size`\?"),
        ("max_steps=many", "max_steps=many must be a whole number of at least 1 or null"),
        ("lr=-1", "lr=-1 must be a number above 0"),
        ("deep_supervision_weight=1.5", "deep_supervision_weight=1.5 must be a number from 0 to 1"),
        ("deep_supervision_schedule=linear", "did you mean `linear_decay`"),
        ("ray.num_workers=3", r"global_batch_size=8 must be divisible by ray\.num_workers=3; use 6 or 9"),
        ("task=sudoku5", "task=sudoku5 must name an existing task; did you mean"),
        ("just words", "must be key=value"),
        ("lr=[", "lr=.* must be a YAML value"),
        ("device=tpu", "device=tpu must be one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_config_ends_with_one_line(data: Path, tmp_path: Path, word: str, told: str):
    assert_refused(run(*train_words(data, tmp_path / "run", word)), told)
    assert not (tmp_path / "run").exists()


def test_a_sweep_with_a_wrong_key_ends_with_one_line():
    assert_refused(run("sweep", "learning_rate=1e-3"), "learning_rate=.* has an unknown key; did you mean `lr`")
    assert_refused(run("sweep", "keep=[nobody]"), "keep=.* must name scenarios, and `nobody` is none")


def test_an_unknown_scenario_ends_with_the_nearest():
    assert_refused(run("train", "--config-name", "deep_supervision_liner"), "did you mean `deep_supervision_linear`")


def test_a_missing_dataset_ends_with_the_command_that_makes_it(tmp_path: Path):
    result = run(*train_words(tmp_path / "nowhere", tmp_path / "run"))
    assert_refused(result, r"nowhere does not exist; `trm-ray prepare --help` tells")


def test_a_corrupt_dataset_is_refused_before_training(data: Path, tmp_path: Path):
    shutil.copytree(data, tmp_path / "data")
    part = tmp_path / "data" / "train" / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert_refused(run(*train_words(tmp_path / "data", tmp_path / "run")), r"part-00000\.parquet.*(SHA-256|checksum)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "dashboard", "compare"])
def test_a_folder_that_is_no_run_ends_with_one_line(tmp_path: Path, command: str):
    assert_refused(run(command, tmp_path), "no run|must be a run's folder|name the folder of a run")
    assert_refused(run(command, tmp_path / "nowhere"), "nowhere")


@pytest.mark.parametrize("words", [("--subsample", "5"), ("--min-difficulty", "1")])
def test_options_of_a_csv_without_one_are_refused(tmp_path: Path, words: tuple[str, ...]):
    assert_refused(run("prepare", "sudoku", "--output", tmp_path / "new", *words), "--from-csv")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        *(("sudoku", words) for words in ("--size 9", "--train 8", "--clues 20 30", "--difficulty any")),
        *(("maze", words) for words in ("--size 30", "--train 8", "--min-length 9")),
    ],
)
def test_options_of_puzzles_that_are_generated_are_refused_with_a_csv(tmp_path: Path, task: str, words: str):
    (tmp_path / "all.csv").write_text("")
    asked = ["prepare", task, "--output", tmp_path / "new", "--from-csv", tmp_path / "all.csv", *words.split()]
    assert_refused(run(*asked), rf"{words.split()[0]} is for puzzles that are generated, not for those of --from-csv")


def test_a_dataset_is_not_replaced_unasked(tmp_path: Path):
    words = ["prepare", "sudoku", "--size", "4", "--train", "8", "--test", "2", "--output", str(tmp_path / "new")]
    assert run(*words).exit_code == 0
    assert_refused(run(*words), "already holds a dataset; pass --overwrite")
    assert run(*words, "--seed", "1", "--clues", "5", "7", "--overwrite").exit_code == 0
    info = DatasetInfo.load(tmp_path / "new")
    assert (info.seed, list(info.arguments["clues"]), info.split("train").rows) == (1, [5, 7], 8)


def write_sudoku_csv(path: Path) -> None:
    solved = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
    puzzles = ["." * (i + 1) + solved[i + 1 :] for i in range(8)]  # none symmetric to another
    rows = [f"mine,{puzzle},{solved},{i}" for i, puzzle in enumerate(puzzles)]
    path.write_text("\n".join(["source,question,answer,rating", *rows]) + "\n")


def test_a_csv_file_becomes_a_dataset(tmp_path: Path):
    write_sudoku_csv(tmp_path / "all.csv")
    words = ["--from-csv", str(tmp_path / "all.csv"), "--test", "3", "--min-difficulty", "2"]
    result = run("prepare", "sudoku", "--output", tmp_path / "new", *words)
    assert result.exit_code == 0, result.output
    info = DatasetInfo.load(tmp_path / "new")
    assert (info.seq_len, info.vocab_size, info.split("test").rows) == (81, 11, 3)


@pytest.mark.parametrize(("words", "rows"), [((), 8), (("--test", "3"), 3)])
def test_of_a_folders_test_file_as_many_puzzles_are_drawn_as_were_asked_for(
    tmp_path: Path, words: tuple[str, ...], rows: int
):
    write_sudoku_csv(tmp_path / "test.csv")
    solved = "123456789456789123789123456231564897564897231897231564312645978645978312978312645"
    puzzle = "." * 9 + solved[9:]  # whose columns tell the row
    (tmp_path / "train.csv").write_text(f"source,question,answer,rating\nmine,{puzzle},{solved},1\n")
    result = run("prepare", "sudoku", "--output", tmp_path / "new", "--from-csv", tmp_path, *words)
    assert result.exit_code == 0, result.output
    assert DatasetInfo.load(tmp_path / "new").split("test").rows == rows


def test_a_loss_that_is_not_finite_ends_with_what_to_try(data: Path, tmp_path: Path):
    result = run(*train_words(data, tmp_path / "run", "lr=1e30"))
    assert result.exit_code == 1
    assert re.match(r"error: the loss .* is not finite: step=2, .*try a lower lr", result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1


# ---- from training to pictures ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("runs") / "linear"
    words = ["compute_gradient_stats=true", "gradient_stats_interval=3", "arch.H_cycles=3"]
    return folder, run(*train_words(data, folder, *words))


def test_training_prints_the_config_and_the_lines_that_people_know(trained: tuple[Path, Result]):
    folder, result = trained
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "Training Configuration"
    assert "global_batch_size: 8" in lines
    assert f"All keys: {folder}/config.yaml" in lines
    assert len(lines[: lines.index(f"All keys: {folder}/config.yaml")]) < 35  # most of which are of the command
    number = r"\d+\.\d{4}"
    step = (
        rf"Step +6 \| Loss: {number} \(ACT: {number}, Sup: {number}\) \| LR: \d\.\d\de-\d\d \| GradNorm: {number} \| "
    )
    assert len([line for line in lines if re.fullmatch(step + r"Steps: \d\.\d\d", line)]) == 1
    assert lines.count("         Deep supervision: 3 steps, weight=0.500, schedule=linear_decay") == 6
    assert len([line for line in lines if line.startswith("Eval ")]) == 2
    assert lines[-1] == f"Finished 6 steps. See it: trm-ray dashboard {folder} --save dashboard.png"


def test_training_leaves_what_a_run_s_folder_holds(trained: tuple[Path, Result]):
    folder, _ = trained
    names = {path.name.partition(".out.")[0] for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "depths.jsonl",
        "environment.json",
        "metrics.jsonl",
        "events",
        "checkpoint_step_3",
        "checkpoint_step_6",
        "final_model",
    }
    promised = {
        "train/total_loss", "train/act_loss", "train/supervised_loss", "train/lm_loss", "train/curriculum_weight",
        "train/grad_norm", "train/learning_rate", "train/act/steps", "train/act/accuracy", "train/act/exact_accuracy",
        "train/act/q_halt_accuracy", "train/act/q_halt_loss", "eval/loss", "eval/accuracy", "eval/exact_accuracy",
        "eval/exact_accuracy_first", "eval/exact_accuracy_halting", "eval/act_steps", "eval/q_halt_accuracy",
        "throughput/puzzles_per_s", "throughput/steps_per_s", "throughput/data_wait_fraction", "throughput/num_workers",
        *(f"train/deep_supervision/step_{i}_loss" for i in range(3)),
        *(f"eval/step_{i}_loss" for i in range(3)),
        "eval/anytime_accuracy", "train/flops",
        *(f"core_seconds/{part}" for part in ("start", "data", "steps", "gradient_stats", "evaluation", "checkpoints")),
        *(f"eval/first_segment/step_{i}_loss" for i in range(3)),
        *(f"eval/first_segment/step_{i}_exact_accuracy" for i in range(3)),
        *(f"train/gradients/step_{i}_grad_norm_{kind}" for i in range(3) for kind in ("mean", "max", "min")),
    }  # fmt: skip
    # They come when a save is over, and when a window has a puzzle at its first segment.
    now_and_then = ("checkpoint/", "train/first_segment/")
    told = {tag for tag in read_run(folder).rows[-1] if not tag.startswith(now_and_then)}
    assert promised | {"step", "wall_s"} == told


def test_tensorboard_holds_the_same_numbers(trained: tuple[Path, Result]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = trained
    board = EventAccumulator(str(folder)).Reload()
    rows = read_run(folder).rows
    shown = {tag.removeprefix("usage/"): tag for tag in board.Tags()["scalars"]}
    assert set(shown) == {tag for row in rows for tag in row} - {"step", "wall_s"}
    for tag in ("train/total_loss", "train/deep_supervision/step_0_loss", "throughput/steps_per_s"):
        told = {event.step: event.value for event in board.Scalars(shown[tag])}
        assert told == pytest.approx({int(row["step"]): row[tag] for row in rows}, rel=1e-6)


def test_a_finished_run_is_neither_mixed_into_nor_trained_again(data: Path, trained: tuple[Path, Result]):
    folder, _ = trained
    words = ["compute_gradient_stats=true", "gradient_stats_interval=3", "arch.H_cycles=3"]
    assert_refused(run(*train_words(data, folder, *words)), r"already holds a run; .*--resume.*--overwrite")
    before = (folder / "metrics.jsonl").read_bytes()
    again = run(*train_words(data, folder, *words), "--resume")
    assert again.exit_code == 0
    assert "has been trained to step 6 of 6; nothing to do" in again.stdout
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_folder_of_any_name_is_trained_in_gone_on_with_and_told(data: Path, tmp_path: Path):
    """Beside one whose name is the beginning of its own, which a remark would leave of it."""
    plain, odd = tmp_path / "try", tmp_path / "try #2 [red]:smile: [a] 漢 it's"
    assert run(*train_words(data, plain, "max_steps=2")).exit_code == 0
    before = (plain / "metrics.jsonl").read_bytes()
    first = run(*train_words(data, odd, "max_steps=2"))
    assert first.stdout.splitlines()[-1].split("dashboard ", 1)[1] == f"{shlex.quote(str(odd))} --save dashboard.png"
    assert f"log_dir: {odd}" in first.stdout
    again = run(*train_words(data, odd, "max_steps=2"), "--resume")
    assert f"{odd} has been trained to step 2 of 2; nothing to do" in again.stdout
    assert_refused(run(*train_words(data, odd, "max_steps=2")), re.escape(f"log_dir={odd} already holds a run"))
    begun = run(*train_words(data, tmp_path / "b", "max_steps=2", "--init-from", str(odd)))
    assert f"Beginning with the weights of {odd}" in begun.stdout
    assert (plain / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_to_its_end_though_nobody_reads_its_lines_any_longer(data: Path, tmp_path: Path):
    words = [sys.executable, "-m", "trm_ray", *train_words(data, tmp_path / "run", "max_steps=40")]
    with subprocess.Popen(
        words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"Training Configuration\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert read_run(tmp_path / "run").finished
    assert read_run(tmp_path / "run").last_step == 40


def test_a_trained_run_is_evaluated(trained: tuple[Path, Result]):
    folder, _ = trained
    result = run("evaluate", folder)
    assert result.exit_code == 0, result.output
    last = read_run(folder).rows[-1]
    assert f"{folder}, step 6" in result.stdout
    assert re.search(rf"as trained: 2 .* {last['eval/loss']:.4f} *\n", result.stdout)
    written = json.loads((folder / "report" / "evaluation_test.json").read_text())
    assert written["by_segment"][1]["loss"] == pytest.approx(last["eval/loss"])
    assert_refused(run("evaluate", folder, "--segments", "4,x"), "--segments=4,x must be whole numbers")
    assert_refused(run("evaluate", folder, "--augmentations", "some"), "--augmentations=some must be a whole number")
    assert_refused(run("evaluate", folder, "--split", "validation"), "no validation split")


def test_the_dashboard_is_drawn_into_the_run_s_report_or_where_asked(trained: tuple[Path, Result], tmp_path: Path):
    folder, _ = trained
    for words, path in (
        ((), folder / "report" / "dashboard.png"),
        (("--save", tmp_path / "new" / "one.png"), tmp_path / "new" / "one.png"),
    ):
        result = run("dashboard", folder, *words)
        assert result.exit_code == 0, result.output
        assert f"Wrote {path}" in result.stdout
        assert path.read_bytes().startswith(b"\x89PNG")


def test_runs_are_compared(trained: tuple[Path, Result], tmp_path: Path):
    folder, _ = trained
    picture, numbers = tmp_path / "comparison.png", tmp_path / "comparison.json"
    result = run("compare", folder, "--save", picture, "--threshold", "0.1", "--json", numbers)
    assert result.exit_code == 0, result.output
    assert "linear" in result.stdout
    content = json.loads(numbers.read_text())
    assert (content["format_version"], content["threshold"], content["baseline"]) == (2, 0.1, "baseline")
    assert content == trm_ray.compare(folder, threshold=0.1)
    refused = run("compare", folder, "--save", picture, "--baseline", "lienar")
    assert_refused(refused, r"--baseline lienar is no scenario of these runs; use one of linear")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_replaces_no_picture_of_others_unasked(
    trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    picture = Path("comparison.png")
    picture.write_bytes(b"\x89PNG of a thesis")
    assert_refused(run("compare", trained[0]), r"comparison\.png was not drawn by trm-ray; .* --save comparison\.png")
    assert picture.read_bytes() == b"\x89PNG of a thesis"
    for words in (["--save", picture], []):  # the second time it is ours
        assert run("compare", trained[0], *words).exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_a_report_is_written_with_a_gallery_and_replaces_no_page_of_others_unasked(
    trained: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    page, (folder, _) = Path("report.html"), trained
    page.write_text("<p>my home page</p>")
    assert_refused(run("report", folder), r"report\.html was not written by trm-ray; .* --output report\.html")
    result = run("report", folder, "--output", page)
    assert (result.exit_code, result.stdout) == (0, "Wrote report.html\n"), result.output
    assert "Puzzle 1: linear" in page.read_text(encoding="utf-8")
    assert run("report", folder, "--no-gallery").exit_code == 0  # now it is ours
    assert "Puzzle 1: linear" not in page.read_text(encoding="utf-8")
    assert_refused(run("report", folder, "--baseline", "lienar"), r"--baseline lienar is no scenario of these runs")
    assert trm_ray.report(folder, output="again.html", gallery=False) == Path("again.html")


# ---- Ctrl-C ------------------------------------------------------------------------------------------------


def signalled(words: list[str], number: int, once_there: Path) -> tuple[int, str]:
    """Run the command in a process of its own and send it a signal when a path is there; its exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_ray.cli", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not once_there.is_dir():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, complaint


@pytest.mark.slow
def test_a_run_that_is_stopped_ended_and_killed_arrives_at_the_bytes_of_one_that_was_left_alone(
    data: Path, tmp_path: Path
):
    def words(name: str) -> list[str]:
        return train_words(data, tmp_path / name, "max_steps=600", "eval_interval=100", "log_interval=10")

    folder = tmp_path / "hit"
    code, told = signalled(words("hit"), signal.SIGINT, folder / "checkpoint_step_100")
    assert code == 130
    assert re.search(r"^error: interrupted: stopped after step \d+, which is saved; .* --resume goes on$", told, re.M)
    code, told = signalled([*words("hit"), "--resume"], signal.SIGTERM, folder / "checkpoint_step_200")
    assert code == 143
    assert "which is saved" in told
    code, _ = signalled([*words("hit"), "--resume"], signal.SIGKILL, folder / "checkpoint_step_300")
    assert code == -signal.SIGKILL
    assert not (folder / "final_model").exists()
    for name in ("hit", "alone"):
        result = run(*words(name), *(["--resume"] if name == "hit" else []))
        assert result.exit_code == 0, result.output
    assert logged(folder) == logged(tmp_path / "alone")
    ours, theirs = ((tmp_path / name / "final_model" / "state.pt").read_bytes() for name in ("hit", "alone"))
    assert ours == theirs
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in accumulator.Scalars("train/total_loss")] == list(range(10, 601, 10))


def logged(folder: Path) -> list[dict[str, float]]:
    """All lines, without what depends on the clock."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    timed = ("wall_s", "throughput/", "checkpoint/", "core_seconds/")
    return [{tag: value for tag, value in row.items() if not tag.startswith(timed)} for row in rows]
