"""Runs of other trainers, of which there are TensorBoard's event files and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from trm_ray.reporting.event_files import named_by_folder, read_event_rows
from trm_ray.reporting.numbers.summary import compare_runs
from trm_ray.reporting.run_log import RunLog, find_runs, read_run


def scalar(step: int, wall_time: float = 0.0, **values: float) -> Event:
    found = [Summary.Value(tag=tag.replace("__", "/"), simple_value=value) for tag, value in values.items()]
    return Event(wall_time=wall_time, step=step, summary=Summary(value=found))


def write_events(folder: Path, *events: Event, name: str = "events.out.tfevents.1.here") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter((folder / name).open("wb"))
    for event in (Event(wall_time=100.0, file_version="brain.Event:2"), *events):
        writer.write(event.SerializeToString())
    writer.close()
    return folder


def trained(folder: Path, exact: list[float]) -> Path:
    rows = [
        scalar(100 * (i + 1), 100 + 10.0 * (i + 1), eval__exact_accuracy=value, eval__loss=1 - value)
        for i, value in enumerate(exact)
    ]
    return write_events(folder, *rows)


def test_scalars_become_rows_with_the_seconds_since_the_first_event(tmp_path: Path) -> None:
    write_events(tmp_path, scalar(5, 101.5, a=0.5), scalar(5, 102.0, b=0.25), scalar(10, 104.0, a=0.75))
    assert read_event_rows(tmp_path) == [
        {"step": 5, "wall_s": 2.0, "a": 0.5, "b": 0.25},
        {"step": 10, "wall_s": 4.0, "a": 0.75},
    ]


def test_numbers_in_tensors_are_read_and_pictures_are_not(tmp_path: Path) -> None:
    values = [Summary.Value(tag="a", tensor=make_tensor_proto(np.float32(0.5)))]
    values += [Summary.Value(tag="text", tensor=make_tensor_proto("words")), Summary.Value(tag="image")]
    values += [Summary.Value(tag="many", tensor=make_tensor_proto(np.zeros(3)))]
    write_events(tmp_path, Event(wall_time=100.0, step=1, summary=Summary(value=values)))
    assert read_event_rows(tmp_path) == [{"step": 1, "wall_s": 0.0, "a": 0.5}]


def test_steps_that_a_restarted_run_takes_again_are_dropped(tmp_path: Path) -> None:
    write_events(tmp_path, *(scalar(step, a=1.0) for step in (1, 2, 3)))
    again = Event(wall_time=100.0, step=2, session_log=SessionLog(status=SessionLog.START))
    write_events(tmp_path, again, scalar(2, a=2.0), name="events.out.tfevents.2.here")
    assert [(row["step"], row["a"]) for row in read_event_rows(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_a_file_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    write_events(tmp_path, scalar(1, a=1.0), scalar(2, a=2.0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert [row["step"] for row in read_event_rows(tmp_path)] == [1]


def test_our_own_event_files_hold_what_our_log_holds(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(10, 1.0, {"eval/loss": 0.5, "train/lm_loss": 0.25})
    (tmp_path / "metrics.jsonl").unlink()
    (row,) = read_run(tmp_path).rows
    assert (row["step"], row["eval/loss"], row["train/lm_loss"]) == (10, 0.5, 0.25)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("linear-seed3", ("linear", 3)),
        ("linear_s12", ("linear", 12)),
        ("linear.seed=4", ("linear", 4)),
        ("linear/seed_5", ("linear", 5)),
        ("linear/s6", ("linear", 6)),
        ("runs7", ("runs7", 0)),
        ("linear", ("linear", 0)),
    ],
)
def test_a_folder_s_name_tells_scenario_and_seed(tmp_path: Path, place: str, expected: tuple[str, int]) -> None:
    assert named_by_folder(tmp_path / place) == expected


def test_runs_of_other_trainers_are_paired_by_seed_as_ours_are(tmp_path: Path) -> None:
    for seed in range(3):
        trained(tmp_path / f"baseline-seed{seed}", [0.1, 0.5 + 0.01 * seed])
        trained(tmp_path / "mine" / f"seed{seed}", [0.2, 0.75 + 0.02 * seed])
    comparison = compare_runs(find_runs([tmp_path]))
    (verdict,) = [one for one in comparison.verdicts if (one.number, one.at) == ("exact_accuracy", "steps")]
    assert (verdict.scenario, verdict.n, verdict.claim) == ("mine", 3, "better")
    assert verdict.difference == pytest.approx(0.26, abs=1e-6)
    assert {one.at for one in comparison.verdicts} == {"steps", "seconds"}
    assert comparison.unfinished == []
