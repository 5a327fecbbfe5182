import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trm_ray.reporting.run_log import (
    EVAL_CYCLE_LOSS,
    RunLog,
    evaluation_line,
    find_runs,
    read_run,
    step_line,
    supervision_line,
)

ROOT = Path(__file__).parents[2]


def run_folder(path: Path, lines: str = "") -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("config_name: deep_supervision_linear\nseed: 3\nmax_steps: 50\n")
    (path / "metrics.jsonl").write_text(lines)
    return path


def write_steps(folder: Path, steps: list[int], resume_step: int | None = None, value: float = 1.0) -> None:
    with RunLog(folder, resume_step) as log:
        for step in steps:
            log.write(step, 0.5 * step, {"train/total_loss": value * step})


def steps_on_disk(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def age_event_files(folder: Path) -> None:
    """Let the event files look older: TensorBoard reads them by the second in their name."""
    for path in folder.glob("events.out.tfevents.*"):
        parts = path.name.split(".")
        parts[3] = str(int(parts[3]) - 100)
        path.rename(folder / ".".join(parts))


def board_points(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


# ---- writing


def test_a_row_is_one_json_line_with_step_seconds_and_tags(tmp_path: Path) -> None:
    with RunLog(tmp_path, None) as log:
        log.write(100, 12.3456, {"train/total_loss": np.float32(0.5), "eval/loss": 1})
        text = (tmp_path / "metrics.jsonl").read_text()  # before close: others can follow the run
    assert json.loads(text) == {"step": 100, "wall_s": 12.346, "train/total_loss": 0.5, "eval/loss": 1.0}
    assert text.count("\n") == 1


@pytest.mark.parametrize("missing", ["tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer"])
def test_a_broken_tensorboard_costs_a_warning_and_no_row(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    write_steps(tmp_path, [1, 2, 3])
    assert steps_on_disk(tmp_path) == [1, 2, 3]
    (told,) = caplog.messages
    assert told.startswith("TensorBoard will not show what comes from here on (ModuleNotFoundError: ")


def test_numbers_that_tensorboard_does_not_take_are_logged_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunLog(tmp_path) as log:
        log.write(1, 0.5, {"train/total_loss": 3.0})
        log.write(2, 1.0, {"half a letter \ud83c": 2.0})
        log.write(3, 1.5, {"train/total_loss": 1.0})
    assert steps_on_disk(tmp_path) == [1, 2, 3]
    assert board_points(tmp_path, "train/total_loss") == [(1, 3.0)]
    assert len(caplog.messages) == 1


def test_tensorboard_holds_the_same_numbers_under_the_same_tags(tmp_path: Path) -> None:
    write_steps(tmp_path, [10, 20], value=0.25)
    assert board_points(tmp_path, "train/total_loss") == [(10, 2.5), (20, 5.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_in_the_file_and_nan_when_read(tmp_path: Path, value: float) -> None:
    folder = run_folder(tmp_path / "run")
    with RunLog(folder, 0) as log:
        log.write(1, 1.0, {"train/grad_norm": value})
    line = (folder / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == {
        "step": 1,
        "wall_s": 1.0,
        "train/grad_norm": None,
    }
    assert np.isnan(read_run(folder).series("train/grad_norm").values).tolist() == [True]


def test_a_resumed_run_leaves_one_row_a_step(tmp_path: Path) -> None:
    write_steps(tmp_path, [10, 20, 30, 40])
    age_event_files(tmp_path)
    write_steps(tmp_path, [30, 40, 50], resume_step=20, value=2.0)
    assert steps_on_disk(tmp_path) == [10, 20, 30, 40, 50]
    expected = [(10, 10.0), (20, 20.0), (30, 60.0), (40, 80.0), (50, 100.0)]
    assert board_points(tmp_path, "train/total_loss") == expected


def test_an_evaluations_depths_stand_beside_its_row_and_go_with_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    depths = {"loss": [2.0, math.nan], "accuracy": [0.5, 0.75], "exact_accuracy": [0.0, 0.25]}
    with RunLog(folder, 0) as log:
        for step in (10, 20, 30):
            log.write(step, 0.5 * step, {"eval/loss": 1.0}, depths)
            log.write(step + 5, 0.5 * step, {"train/lm_loss": 1.0})
    with RunLog(folder, 20) as log:
        log.write(30, 15.0, {"eval/loss": 1.0}, {**depths, "accuracy": [1.0, 1.0]})
    found = read_run(folder).depths
    assert [(row.step, row.wall_s) for row in found] == [(10, 5.0), (20, 10.0), (30, 15.0)]
    assert [row.accuracy.tolist() for row in found] == [[0.5, 0.75], [0.5, 0.75], [1.0, 1.0]]
    assert found[0].exact_accuracy.tolist() == [0.0, 0.25]
    assert np.isnan(found[0].loss).tolist() == [False, True]
    RunLog(folder).close()  # a new attempt
    assert (folder / "depths.jsonl").read_text() == ""


def test_a_run_of_an_older_release_has_no_depths(tmp_path: Path) -> None:
    assert read_run(run_folder(tmp_path / "run", '{"step": 10, "wall_s": 1.0}\n')).depths == ()


def test_a_resume_drops_the_line_that_a_kill_tore(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", '{"step": 10, "wall_s": 1.0}\n{"step": 20, "wa')
    write_steps(folder, [20], resume_step=15)
    assert steps_on_disk(folder) == [10, 20]
    assert list(folder.glob("*.tmp")) == []


def test_a_resume_keeps_a_whole_last_line_that_lacks_its_newline(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", '{"step": 10, "wall_s": 1.0}')
    write_steps(folder, [20], resume_step=10)
    assert steps_on_disk(folder) == [10, 20]


def test_without_a_resume_step_the_rows_of_an_earlier_attempt_are_dropped(tmp_path: Path) -> None:
    write_steps(tmp_path, [10, 20])
    write_steps(tmp_path, [10], value=3.0)
    assert steps_on_disk(tmp_path) == [10]
    assert board_points(tmp_path, "train/total_loss") == [(10, 30.0)]


def test_a_log_can_be_closed_twice(tmp_path: Path) -> None:
    log = RunLog(tmp_path, None)
    log.write(1, 0.5, {"train/lm_loss": 2.0})
    log.close()
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


# ---- console lines


def test_the_step_line_reads_as_people_know_it() -> None:
    row = {
        "step": 100,
        "train/total_loss": 2.34214,
        "train/act_loss": 2.12341,
        "train/supervised_loss": 0.21873,
        "train/learning_rate": 5e-5,
        "train/grad_norm": 0.81234,
        "train/act/steps": 3.2099,
    }
    assert step_line(row) == (
        "Step    100 | Loss: 2.3421 (ACT: 2.1234, Sup: 0.2187) | LR: 5.00e-05 | GradNorm: 0.8123 | Steps: 3.21"
    )


def test_the_supervision_line_stands_under_the_step_line() -> None:
    line = "         Deep supervision: 3 steps, weight=0.500, schedule=linear_decay"
    assert supervision_line(3, 0.5, "linear_decay") == line


def test_the_evaluation_line_tells_the_other_segments_too() -> None:
    row = {
        "step": 200,
        "eval/loss": 0.42111,
        "eval/exact_accuracy": 0.723,
        "eval/first_segment/step_0_exact_accuracy": 0.312,
        "eval/exact_accuracy_first": 0.701,
        "eval/exact_accuracy_halting": 0.72,
        "eval/accuracy": 0.91,
        "eval/act_steps": 3.21,
    }
    assert evaluation_line(row) == (
        "Eval    200 | Loss: 0.4211 | Exact: 72.3 % (first cycle 31.2 %, first segment 70.1 %, halting 72.0 %) "
        "| Cells: 91.0 % | Steps: 3.21"
    )


def test_the_evaluation_line_leaves_out_what_was_not_measured() -> None:
    row = {"step": 200, "eval/loss": 0.5, "eval/exact_accuracy": 0.25}
    assert evaluation_line(row) == "Eval    200 | Loss: 0.5000 | Exact: 25.0 %"


def test_the_lines_of_a_text_tell_bits_per_byte_beside_what_takes_no_model_and_nothing_of_halting() -> None:
    row = {
        "step": 200,
        "eval/loss": 1.6011,
        "eval/bits_per_byte": 2.3104,
        "eval/perplexity": 4.958,
        "eval/accuracy": 0.512,
    }
    known = {"eval/unigram_bits_per_byte": 4.8, "eval/xz_bits_per_byte": 2.71}
    assert evaluation_line(row | known) == (
        "Eval    200 | Loss: 1.6011 | Bits/byte: 2.31 (unigram 4.80, xz 2.71) | Perplexity: 4.96 | Top-1: 51.2 %"
    )
    assert "| Bits/byte: 2.31 | Perplexity" in evaluation_line(row)
    prompts = row | {"eval/exact_accuracy": 0.45, "eval/exact_accuracy_first": 0.4}
    assert "| Exact: 45.0 % (first segment 40.0 %) | Bits/byte: 2.31 |" in evaluation_line(prompts)
    tags = ("total_loss", "act_loss", "supervised_loss", "learning_rate", "grad_norm")
    assert step_line({"step": 1, **{f"train/{tag}": 1.0 for tag in tags}}).endswith("| GradNorm: 1.0000")


# ---- reading


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "my_run")
    with RunLog(folder, 0) as log:
        log.write(10, 1.0, {"train/total_loss": 2.0})
        log.write(20, 2.5, {"train/total_loss": 1.0, "eval/loss": 0.75})
    run = read_run(folder)
    assert (run.name, run.config_name, run.seed) == ("my_run", "deep_supervision_linear", 3)
    assert (run.last_step, run.wall_s, run.planned_steps, run.finished) == (20, 2.5, 50, False)
    steps, wall_s, values = run.series("eval/loss")
    assert (steps.tolist(), wall_s.tolist(), values.tolist()) == ([20], [2.5], [0.75])
    assert steps.dtype == np.int64
    assert len(run.series("no/such_tag").steps) == 0


def test_a_run_with_a_final_model_is_finished_and_not_stopped_early(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", '{"step": 10, "wall_s": 1.0}\n')
    assert read_run(folder).stopped_early
    (folder / "final_model").mkdir()
    assert read_run(folder).finished
    assert not read_run(folder).stopped_early


def test_total_steps_of_the_environment_go_before_max_steps(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "environment.json").write_text('{"total_steps": 40}')
    assert read_run(folder).planned_steps == 40


def test_of_two_rows_of_a_step_the_last_counts_and_steps_are_in_order(tmp_path: Path) -> None:
    rows = [(10, 1), (20, 2), (10, 9)]
    lines = "".join(f'{{"step": {step}, "wall_s": 1, "a": {value}}}\n' for step, value in rows)
    series = read_run(run_folder(tmp_path / "run", lines)).series("a")
    assert (series.steps.tolist(), series.values.tolist()) == ([10, 20], [9.0, 2.0])


def test_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    lines = '{"step": 10, "wall_s": 1.0}\n{"step": 20, "wall_s": 2.0, "eval/lo'
    assert read_run(run_folder(tmp_path / "run", lines)).last_step == 10


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", '{"step": 10, "wall_s": 1.0}\nnonsense\n{"step": 20, "wall_s": 2.0}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 .*nonsense"):
        read_run(folder)


def test_cycles_are_collected_up_to_the_first_that_was_never_logged(tmp_path: Path) -> None:
    losses = {f"eval/step_{i}_loss": loss for i, loss in ((0, 3.0), (1, 2.5), (3, 9.0))}
    lines = json.dumps({"step": 1, "wall_s": 1, **losses})
    run = read_run(run_folder(tmp_path / "run", lines))
    assert [series.values.tolist() for series in run.cycle_series(EVAL_CYCLE_LOSS)] == [[3.0], [2.5]]


def test_a_folder_that_is_no_run_says_what_is_missing_and_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run: config.yaml and metrics.jsonl missing; `trm-ray train"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        read_run(tmp_path / "nowhere")


def test_a_config_that_is_no_mapping_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "config.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"config.yaml is not YAML"):
        read_run(folder)


# ---- finding


def test_runs_are_found_inside_a_sweep_and_by_a_glob_alike(tmp_path: Path) -> None:
    sweep = tmp_path / "five"
    for name in ("a", "b"):
        run_folder(sweep / name)
    run_folder(sweep / "b" / "checkpoint_step_10" / "not_a_run_of_its_own")
    (sweep / "report").mkdir()
    (sweep / "sweep.json").write_text("{}")
    assert [run.name for run in find_runs([sweep])] == ["a", "b"]
    assert [run.name for run in find_runs(sorted(sweep.glob("*")))] == ["a", "b"]
    assert [run.name for run in find_runs([sweep / "b", sweep])] == ["b", "a"]


def test_what_else_lies_among_runs_is_passed_over(tmp_path: Path) -> None:
    sweep = tmp_path / "five"
    run_folder(sweep / "a")
    (sweep / "loop").symlink_to(sweep)
    (sweep / "a-again").symlink_to(sweep / "a")
    (sweep / "gone").symlink_to(tmp_path / "nowhere")
    (sweep / "._a").write_bytes(b"\x00\x05")
    (sweep / "__MACOSX").mkdir()
    os.mkfifo(sweep / "pipe")
    assert [run.name for run in find_runs([tmp_path])] == ["a"]


def test_nothing_found_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(ValueError, match=r"no run in .*report.*`trm-ray train"):
        find_runs([tmp_path / "report"])
    with pytest.raises(ValueError, match=r"missing does not exist"):
        find_runs([tmp_path / "missing"])
    with pytest.raises(ValueError, match="an empty list of paths"):
        find_runs([])


def test_importing_the_reports_loads_neither_torch_nor_ray() -> None:
    modules = ["reporting.pictures.dashboard", "reporting.pictures.comparison"]
    assert loaded_with(modules, {"torch", "ray", "tensorboard", "matplotlib.pyplot"}) == "[]"


def test_the_numbers_need_no_matplotlib() -> None:
    modules = [f"reporting.numbers.{path.stem}" for path in (ROOT / "trm_ray/reporting/numbers").glob("[a-z]*.py")]
    assert {"reporting.numbers.evaluation", "reporting.numbers.groups"} <= set(modules)
    assert loaded_with(modules, {"torch", "ray", "tensorboard", "matplotlib"}) == "[]"


def loaded_with(modules: list[str], heavy: set[str]) -> str:
    """What of `heavy` a fresh interpreter has loaded once it has imported modules of trm_ray."""
    imports = ", ".join(["sys", *(f"trm_ray.{module}" for module in modules)])
    code = f"import {imports}\nprint(sorted({heavy!r} & set(sys.modules)))"
    return subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip()
