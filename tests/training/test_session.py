"""The seam, for one process and for two that share a step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SHAPE, begun, local_session, metric_rows, sudoku, tiny_config
from workers import NUM_STEPS, RUNS, train, train_on_text, work

from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.loop import run_training

# -- one process ------------------------------------------------------------------------------------------------------


def test_a_process_alone_is_rank_zero_of_one_and_exchanges_nothing(tmp_path):
    session = local_session(tmp_path, tiny_config())
    assert (session.rank, session.world_size) == (0, 1)
    rows, kept = torch.arange(6.0), torch.arange(6.0)
    session.sum_over_ranks(rows)
    assert torch.equal(rows, kept)
    assert session.gather_rows(rows, 6) is rows
    assert torch.equal(session.own_rows(rows), rows)


def test_batches_become_tensors_from_the_number_asked_for_on(tmp_path):
    session = local_session(tmp_path, tiny_config())
    all_batches, later = session.train_batches(0), session.train_batches(2)
    third = [next(all_batches) for _ in range(3)][-1]
    batch = next(later)
    for name in ("inputs", "labels", "puzzle_identifiers"):
        assert torch.equal(getattr(batch, name), getattr(third, name))
        assert getattr(batch, name).dtype == torch.int32
    assert batch.inputs.shape == (8, 16)
    assert len(batch) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_that_are_copied_ahead_to_a_gpu_are_those_of_the_stream(tmp_path):
    session = local_session(tmp_path, tiny_config())
    on_gpu = replace(session, device=torch.device("cuda"))
    for ours, theirs, _ in zip(on_gpu.train_batches(3), session.train_batches(3), range(20), strict=False):
        torch.cuda._sleep(10**6)  # a step that computes while the next batch is copied
        for name in ("inputs", "labels", "puzzle_identifiers"):
            assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name))


def test_the_test_split_can_be_read_again_and_again(tmp_path):
    session = local_session(tmp_path, tiny_config(), test=sudoku(7, seed=1))
    for _ in range(2):
        assert torch.cat([b.puzzle_identifiers for b in session.test_batches()]).tolist() == list(range(7))


def test_a_run_goes_on_from_the_checkpoint_that_its_session_names(tmp_path):
    config = tiny_config()
    run_training(config, SHAPE, 4, local_session(tmp_path, config))
    session = local_session(tmp_path, config)
    assert session.latest == tmp_path / "checkpoint_step_4"
    assert run_training(config, SHAPE, 4, session) == {}


# -- two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes go on from one process's checkpoint in every run of `RUNS`."""
    folder = tmp_path_factory.mktemp("two_workers")
    for name, changes in RUNS.items():
        begun(folder / name, **changes)
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in one process."""
    folder = tmp_path_factory.mktemp("one_worker")
    for name, changes in RUNS.items():
        begun(folder / name, **changes)
        train(name, folder / name)
    return folder


def finished(folder: Path, name: str) -> Path:
    error = folder / name / "error.txt"
    if error.exists():
        pytest.fail(f"a worker of the run {name!r} failed:\n{error.read_text()}")
    return folder / name


def assert_close_weights(first: Path, second: Path, tolerance: float) -> None:
    ours, theirs = (load_checkpoint(run / "final_model") for run in (first, second))
    assert ours["step"] == theirs["step"] == NUM_STEPS
    for part in ("model", "ema"):
        if ours[part] is not None:
            torch.testing.assert_close(dict(ours[part]), dict(theirs[part]), rtol=0, atol=tolerance)


def assert_close_rows(first: Path, second: Path, tolerance: float) -> None:
    ours, theirs = metric_rows(first), metric_rows(second)
    assert ours.keys() == theirs.keys()
    for step, row in theirs.items():
        assert ours[step] == pytest.approx(row, rel=tolerance, abs=tolerance), step


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("supervised", 1e-6), ("stablemax", 1e-6), ("puzzles", 1e-6), ("detached", 1e-6), ("uneven", 1e-6)],
)
def test_two_workers_with_their_shares_of_each_batch_take_the_steps_of_one(two_workers, one_worker, name, tolerance):
    assert_close_weights(finished(two_workers, name), one_worker / name, tolerance)


@pytest.mark.parametrize("name", ["supervised", "stablemax", "puzzles", "detached", "uneven"])
def test_two_workers_log_the_metrics_of_one(two_workers, one_worker, name):
    run = finished(two_workers, name)
    assert_close_rows(run, one_worker / name, 1e-4)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps))  # one rank writes


def test_two_workers_measure_a_text_as_one_does(two_workers, tmp_path):
    train_on_text(tmp_path)
    assert_close_rows(finished(two_workers, "text"), tmp_path, 1e-6)
    assert {"eval/bits_per_byte", "eval/exact_accuracy", "train/act/exact_accuracy"} <= set(metric_rows(tmp_path)[2])


def test_the_compared_runs_halt_explore_and_measure(one_worker):
    """What makes the comparison above worth something."""
    rows = metric_rows(one_worker / "supervised")
    assert any(1 < row.get("train/act/steps", 0) < 3 for row in rows.values())
    assert {"eval/exact_accuracy_halting", "train/gradients/step_0_grad_norm_mean"} <= {
        t for r in rows.values() for t in r
    }


def test_only_runs_of_several_workers_tell_the_share_of_exchange(two_workers, one_worker):
    for folder, told in ((finished(two_workers, "puzzles"), True), (one_worker / "puzzles", False)):
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        shares = [row["throughput/exchange_fraction"] for row in rows if "throughput/exchange_fraction" in row]
        assert len(shares) == (NUM_STEPS - 1 if told else 0)  # the run goes on from step 1, a row a step
        assert all(0 < share < 1 for share in shares)


def test_two_workers_in_bfloat16_stay_near_one(two_workers, one_worker):
    run = finished(two_workers, "bfloat16")
    assert_close_weights(run, one_worker / "bfloat16", 0.05)
    assert load_checkpoint(run / "final_model")["carry"]["answer"].dtype == torch.bfloat16


def test_a_checkpoint_of_two_workers_holds_the_whole_carry_and_one_worker_goes_on_with_it(
    two_workers, one_worker, tmp_path
):
    run = finished(two_workers, "supervised")
    name = "checkpoint_step_4"
    ours, theirs = (load_checkpoint(folder / name)["carry"] for folder in (run, one_worker / "supervised"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert {len(rows) for rows in ours.values()} == {8}
    uneven = load_checkpoint(finished(two_workers, "uneven") / name)["carry"]
    assert {len(rows) for rows in uneven.values()} == {7}
    shutil.copytree(run / name, tmp_path / name)
    train("supervised", tmp_path)
    assert_close_weights(tmp_path, run, 1e-6)


def test_sums_and_rows_arrive_whole_on_every_rank(two_workers):
    finished(two_workers, "exchange")
    rows = torch.arange(12).view(4, 3)
    for rank in (0, 1):
        seen = torch.load(two_workers / "exchange" / f"{rank}.pt", weights_only=True)
        assert seen["scalar"].item() == 3.0
        assert seen["table"].tolist() == [[0, 9], [3, 12], [6, 15]]
        assert torch.equal(seen["own"], rows[2 * rank : 2 * rank + 2])
        for dtype in (torch.float32, torch.bfloat16, torch.int32):
            assert torch.equal(seen[str(dtype)], rows.to(dtype))
        assert torch.equal(seen["torch.bool"], rows % 2 == 1)
        assert torch.equal(seen["odd"], torch.arange(10).view(5, 2))
