"""What is printed while a run or a sweep goes on, read off folders that somebody else writes."""

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trm_ray.reporting.console import RunDisplay, SweepDisplay, read_new_rows


def train_row(step: int, weight: float = 0.5, **more: float) -> dict[str, float]:
    tags = {"total_loss": 2.0, "act_loss": 1.5, "supervised_loss": 0.5, "curriculum_weight": weight}
    tags |= {"learning_rate": 1e-3, "grad_norm": 0.8, "act/steps": 3.0}
    return {"step": step, "wall_s": 0.1 * step, **{f"train/{tag}": value for tag, value in tags.items()}, **more}


def eval_row(step: int, loss: float = 0.9, exact: float = 0.25) -> dict[str, float]:
    return {"step": step, "wall_s": 0.1 * step, "eval/loss": loss, "eval/exact_accuracy": exact}


def append(folder: Path, *rows: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def recording(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=160, force_terminal=terminal, color_system=None)


def printed(console: Console) -> str:
    """The text, without the codes that move a terminal's cursor."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def run_display(folder: Path, console: Console, first_step: int = 0, **config: Any) -> RunDisplay:
    about = {"config": config, "num_cycles": 3, "schedule": "linear_decay"}
    return RunDisplay(folder, console, **about, first_step=first_step, num_steps=100)


def marked(console: Console) -> list[str]:
    """What was said to be wrong."""
    return [line.split(":")[0].strip() for line in printed(console).splitlines() if "docs/diagnosis.md" in line]


def test_rows_are_read_once_and_a_torn_one_when_it_is_whole(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_new_rows(path, 0) == ([], 0)
    path.write_text('{"step": 1}\n{"ste')
    rows, offset = read_new_rows(path, 0)
    assert (rows, offset) == ([{"step": 1}], len('{"step": 1}\n'))
    assert read_new_rows(path, offset) == ([], offset)
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert read_new_rows(path, offset) == ([{"step": 2}], path.stat().st_size)


def test_a_file_that_was_begun_anew_is_read_from_its_start(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    _, offset = read_new_rows(path, 0)
    path.write_text('{"step": 1}\n')
    assert read_new_rows(path, offset)[0] == [{"step": 1}]


def test_a_file_that_was_cut_and_is_longer_again_is_read_from_its_start(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    _, offset = read_new_rows(path, 0)
    path.write_text('{"step": 1, "wall_s": 0.25}\n{"step": 2}\n')
    again = read_new_rows(path, offset)
    assert again == ([], 0)
    assert [row["step"] for row in read_new_rows(path, again[1])[0]] == [1, 2]


def test_rows_that_come_while_the_display_is_open_are_printed(tmp_path: Path):
    console = recording()
    with run_display(tmp_path, console):
        append(tmp_path, train_row(10))
        time.sleep(0.5)
        append(tmp_path, train_row(20), eval_row(25))
    assert printed(console).splitlines() == [
        "Step     10 | Loss: 2.0000 (ACT: 1.5000, Sup: 0.5000) | LR: 1.00e-03 | GradNorm: 0.8000 | Steps: 3.00",
        "         Deep supervision: 3 steps, weight=0.500, schedule=linear_decay",
        "Step     20 | Loss: 2.0000 (ACT: 1.5000, Sup: 0.5000) | LR: 1.00e-03 | GradNorm: 0.8000 | Steps: 3.00",
        "         Deep supervision: 3 steps, weight=0.500, schedule=linear_decay",
        "Eval     25 | Loss: 0.9000 | Exact: 25.0 %",
    ]


def test_a_row_of_both_kinds_is_two_lines_and_the_baseline_says_nothing_of_supervision(tmp_path: Path):
    console = recording()
    with run_display(tmp_path, console):
        append(tmp_path, train_row(10, weight=0.0, **{"eval/loss": 0.5}))
    assert [line.split()[0] for line in printed(console).splitlines()] == ["Step", "Eval"]


def test_a_resumed_run_s_earlier_rows_are_not_printed_again(tmp_path: Path):
    append(tmp_path, train_row(10), train_row(20))
    console = recording()
    with run_display(tmp_path, console, first_step=20):
        append(tmp_path, train_row(30, weight=0.0))
    assert [line.split()[1] for line in printed(console).splitlines()] == ["30"]


def test_a_terminal_gets_the_lines_over_a_bar_that_goes_away(tmp_path: Path):
    console = recording(terminal=True)
    append(tmp_path, train_row(50, weight=0.0))
    with run_display(tmp_path, console):
        time.sleep(0.7)
    text = printed(console)
    assert "Step     50 | Loss: 2.0000" in text
    assert "50/100" in text
    assert "steps" in text


def test_a_number_that_is_not_finite_does_not_stop_the_display(tmp_path: Path):
    """It is null in the file, as JSON has no NaN."""
    console = recording()
    with run_display(tmp_path, console):
        append(tmp_path, {**train_row(10), "train/total_loss": None})
        append(tmp_path, train_row(20, weight=0.0))
    assert [line.split()[1] for line in printed(console).splitlines() if line.startswith("Step")] == ["10", "20"]


def test_a_window_in_which_no_puzzle_was_finished_has_no_act_numbers(tmp_path: Path):
    console, row = recording(), train_row(10, weight=0.0)
    del row["train/act/steps"]
    with run_display(tmp_path, console):
        append(tmp_path, row, train_row(20, weight=0.0))
    assert [line.split()[1] for line in printed(console).splitlines()] == ["10", "20"]


def test_what_is_wrong_is_said_once_below_the_row_that_shows_it(tmp_path: Path):
    console = recording()
    with run_display(tmp_path, console, lr_warmup_steps=150, lr=2e-3):
        append(tmp_path, train_row(10, weight=0.0), train_row(20, weight=0.0))
        time.sleep(0.5)
        append(tmp_path, {"step": 21, "wall_s": 2.1, "train/total_loss": None, "train/grad_norm": None})
    lines = printed(console).splitlines()
    assert [line.split()[0] for line in lines] == ["Step", "warn", "Step", "bad"]
    told = "lr 0.001 of 0.002 at step 10: lr_warmup_steps=150 of a run of 100 steps"
    advice = "warm up for a tenth of the run: lr_warmup_steps=10 (docs/diagnosis.md#warming-up)"
    assert lines[1] == f"     warn  warming-up: {told}; {advice}"
    assert lines[3].startswith("      bad  non-finite: train/total_loss is not finite at step 21;")


def test_a_resume_says_what_is_wrong_once_more_only_if_it_is_new(tmp_path: Path):
    append(tmp_path, train_row(10), train_row(20))
    console = recording()
    with run_display(tmp_path, console, first_step=20, lr_warmup_steps=150):
        append(tmp_path, train_row(30), {"step": 31, "wall_s": 3.1, "train/total_loss": None})
    assert marked(console) == ["bad  non-finite"]


def test_steps_that_are_taken_again_say_nothing_again(tmp_path: Path):
    console = recording()
    with run_display(tmp_path, console, lr_warmup_steps=150):
        append(tmp_path, train_row(10), train_row(20))
        time.sleep(0.5)
        (tmp_path / "metrics.jsonl").unlink()
        append(tmp_path, train_row(10))
        time.sleep(0.5)
        append(tmp_path, train_row(20), train_row(30))
    assert marked(console) == ["warn  warming-up"]


def sweep_display(console: Console, folder: Path) -> SweepDisplay:
    return SweepDisplay(console, {name: (folder / name, 100) for name in ("good", "poor one", "late")})


def test_a_sweep_without_a_terminal_is_a_line_an_event(tmp_path: Path):
    console = recording()
    with sweep_display(console, tmp_path) as display:
        display.started("good", tmp_path / "good", 100)
        display.reported("good", eval_row(50, 0.4321, 0.5))
        display.ended("good", "finished")
        display.ended("poor one", "stopped early at step 50")
    assert [line.rstrip() for line in printed(console).splitlines()] == [
        "good      started",
        "good      step    50 of 100  eval loss 0.4321  exact  50.0 %",
        "good      finished",
        "poor one  stopped early at step 50",
    ]


@pytest.mark.parametrize("is_prompt", [False, True])
def test_a_sweep_of_text_tells_bits_per_byte(tmp_path: Path, is_prompt: bool):
    row = {"step": 50, "wall_s": 1.0, "eval/loss": 1.5, "eval/bits_per_byte": 2.3456}
    row |= {"eval/exact_accuracy": 0.5} if is_prompt else {}
    lines, table = recording(), recording(terminal=True)
    for console in (lines, table):
        with sweep_display(console, tmp_path) as display:
            display.started("good", tmp_path / "good", 100)
            display.reported("good", row)
            append(tmp_path / "good", row)
    assert printed(lines).splitlines()[1].split("of 100  ")[1] == (
        "eval loss 1.5000  exact  50.0 %  bits/byte 2.3456" if is_prompt else "eval loss 1.5000  bits/byte 2.3456"
    )
    headings, *rows = (line for line in printed(table).splitlines() if line.startswith(("trial", "good")))
    assert ("exact" in headings, "bits/byte" in headings) == (is_prompt, True)
    assert "2.3456" in rows[-1]


def test_a_sweep_on_a_terminal_is_a_table_that_stays(tmp_path: Path):
    console = recording(terminal=True)
    with sweep_display(console, tmp_path) as display:
        display.started("good", tmp_path / "good", 100)
        append(tmp_path / "good", train_row(40), eval_row(50, 0.4321, 0.5), train_row(60))
        display.ended("good", "finished")
    table = printed(console).splitlines()[-4:]
    assert table[0].split() == ["trial", "state", "step", "eval", "loss", "exact"]
    assert table[1].split() == ["good", "finished", "60", "/", "100", "0.4321", "50.0", "%"]
    assert table[3].split() == ["late", "waiting", "0", "/", "100", "–", "–"]


def test_a_trial_with_something_wrong_has_it_in_the_table(tmp_path: Path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "config.yaml").write_text("lr_warmup_steps: 150\n")
    append(tmp_path / "good", train_row(40))
    console = recording(terminal=True)
    with sweep_display(console, tmp_path) as display:
        display.started("good", tmp_path / "good", 100)
    lines = printed(console).splitlines()[-4:]
    assert lines[0].split()[-3:] == ["to", "look", "at"]
    assert lines[1].split()[-1] == "warming-up"


def test_a_trial_that_was_not_known_before_joins_the_sweep(tmp_path: Path):
    console = recording()
    with SweepDisplay(console, {}) as display:
        display.started("sampled", tmp_path / "sampled", 10)
    assert printed(console) == "sampled  started\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_an_evaluation_that_is_not_finite_does_not_stop_a_sweep(tmp_path: Path, terminal: bool):
    append(tmp_path / "good", {"step": 50, "wall_s": 1.0, "eval/loss": None, "eval/exact_accuracy": 0.0})
    console = recording(terminal)
    with sweep_display(console, tmp_path) as display:
        display.started("good", tmp_path / "good", 100)
        display.reported("good", eval_row(50, float("nan"), 0.0))
    assert "good" in printed(console)


def test_a_change_of_workers_is_said_at_once_though_steps_are_taken_again(tmp_path: Path):
    """A run of two workers lost one at step 30 and goes on from the checkpoint of step 10."""

    def row(step: int, workers: int) -> dict[str, float]:
        return train_row(step, weight=0.0, **{"throughput/num_workers": workers})

    console = recording()
    with run_display(tmp_path, console):
        append(tmp_path, row(10, 2), row(20, 2), row(30, 2))
        time.sleep(0.5)
        (tmp_path / "metrics.jsonl").unlink()
        append(tmp_path, row(10, 2))
        time.sleep(0.5)
        append(tmp_path, row(20, 1))
        time.sleep(0.5)
        append(tmp_path, row(30, 1), row(40, 1))
    lines = [line.split("|")[0].strip() for line in printed(console).splitlines()]
    assert lines == [
        "Step     10",
        "Step     20",
        "Step     30",
        "Now 1 instead of 2 workers, as of step 20",
        "Step     40",
    ]


def test_a_sweep_says_what_concerns_no_single_trial():
    console = recording()
    with SweepDisplay(console, {}) as display:
        display.tell("waiting for 5 CPUs (the cluster has 0 of 5)")
    assert printed(console) == "waiting for 5 CPUs (the cluster has 0 of 5)\n"
