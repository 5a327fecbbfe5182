"""Faults on purpose, as `trm-ray selftest` makes them: nothing that a checkpoint held is lost."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import trm_ray
from trm_ray.cli import app
from trm_ray.measure import selftest
from trm_ray.measure.selftest import LOCAL_FAULTS, make_faults
from trm_ray.measure.selftest.ground import (
    HIT_AT,
    NUM_STEPS,
    SAVE_EVERY,
    FaultError,
    Ground,
    Outcome,
    finish,
    launched,
    raw_rows,
)

# Most steps that may be taken again: those since the newest checkpoint, or since the one before where that is damaged.
# A killed run may have taken some more by then, and may not have finished writing the newest.
MOST_LOST = {
    **dict.fromkeys(("elsewhere", "disk", "storage_lost"), 2 * SAVE_EVERY),
    "bit": 3 * SAVE_EVERY,
    **dict.fromkeys(("storage", "changed_data", "clock"), 0),
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


# "elsewhere" is "driver" on another machine; `test_checkpoint.py` has more ways to damage one, `test_schema.py` data.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name != "elsewhere" else [])
        for name in LOCAL_FAULTS
        if name not in ("driver", "cut", "data")
    ],
)
def test_a_run_that_was_disturbed_arrives_at_the_bytes_of_one_that_was_left_alone(name: str, ground: Ground):
    (outcome,) = make_faults([name], ground)
    assert outcome.problem is None
    assert (outcome.metrics_equal, outcome.weights_equal) == (True, True)
    assert outcome.steps_lost is not None
    assert outcome.steps_lost <= MOST_LOST[name]


def test_a_killed_run_was_in_the_middle(ground: Ground):
    """Else the first test would show nothing."""
    steps = [row["step"] for row in raw_rows(ground.killed())]
    assert HIT_AT <= len(steps) < NUM_STEPS


def test_the_processes_of_a_fault_import_this_trm_ray_and_not_its_inside():
    with launched([], before="import os, sys; sys.exit(os.environ['PYTHONPATH'])\n") as process:
        first = finish(process, exit_code=1).strip().split(os.pathsep)[0]
    assert first == str(Path(trm_ray.__file__).resolve().parents[1])


def test_the_command_tells_a_fault_that_fails_and_ends_with_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def other_weights(ground: Ground) -> Outcome:
        return Outcome("", 3, 1.5, metrics_equal=True, weights_equal=False)

    def breaks(ground: Ground) -> Outcome:
        raise FaultError("it went wrong")

    faults = {"one": ("the first", other_weights), "two": ("the second", breaks)}
    monkeypatch.setattr(selftest, "LOCAL_FAULTS", faults)
    words = ["selftest", "--save", str(tmp_path / "faults.json")]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    assert result.exit_code == 1
    assert [line.split() for line in result.stdout.splitlines() if line.startswith("the ")] == [
        ["the", "first", "3", "1.5", "yes", "NO"],
        ["the", "second", "–", "–", "NO", "NO"],
    ]
    assert result.stderr.splitlines() == [
        "error: the first: the run differs from the undisturbed one",
        "error: the second: FaultError: it went wrong",
    ]
    written = json.loads((tmp_path / "faults.json").read_text())
    assert [(fault["fault"], fault["passed"]) for fault in written["faults"]] == [
        ("the first", False),
        ("the second", False),
    ]
