"""Evaluation of models of text: as in training, with intervals by hand, and rows read where they lie."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import texts
from run_helpers import run_config

from trm_ray.data.format import TextInfo, read_split
from trm_ray.data.rows import Rows
from trm_ray.data.write import write_dataset
from trm_ray.interop.loading import load_model
from trm_ray.model.trm import Batch
from trm_ray.programs.evaluate import EvaluationReport, evaluate_run
from trm_ray.programs.evaluate_text import StoredRows, context_sizes
from trm_ray.reporting.numbers.evaluation import Z95, estimate
from trm_ray.reporting.numbers.text_evaluation import TextEvaluation
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.training.evaluation import measure_text
from trm_ray.training.losses import softmax_cross_entropy

LENGTH = 12
BYTES = [1, 2, 3] * 85 + [1, 0]  # of tokens that stand for one to three, and of the separator
TEXT_RUN = ("arch.causal=true", "arch.mixer=attention", "arch.pos_encodings=rope", "arch.num_heads=2", "lr=3e-2")
Made = tuple[Path, dict[str, float]]


def write_text(folder: Path, packing: str, *, rows: int = 23, seed: int = 0) -> Path:
    """Random tokens with yardsticks; of prompts the labels of differing shares of each row, one of them none."""
    splits = {}
    for number, name in enumerate(("train", "test")):
        found = texts(rows, LENGTH, seed=seed + number, labelled=1.0 if packing == "running" else 0.2)
        if packing == "prompt":
            found.labels[0] = -100
            found.labels[1:12, 1:] = -100  # half of the answers are the same letter, which is soon learned
            found.labels[1:12, 0] = ord("A")
        splits[name] = Rows.of_single_puzzles(found.inputs, found.labels)
    yardsticks: Any = {"unigram_bits_per_byte": 4.5, "xz_bits_per_byte": 2.25} if packing == "running" else {}
    counts = {name: {"train": 1, "test": 1} for name in ("documents", "tokens", "bytes")}
    text = TextInfo(256, "bytes", "a" * 64, packing, **counts, left_out={}, sources=[], **yardsticks)  # type: ignore[arg-type]
    told: dict[str, Any] = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": None}
    side_files = {"token_bytes.json": json.dumps(BYTES).encode()}
    write_dataset(folder, splits, vocab_size=257, kind="text", side_files=side_files, text=text, **told)
    return folder


def made(folder: Path, packing: str) -> Made:
    """A run of a few steps, and its last evaluation."""
    data = write_text(folder / "data", packing)
    plan = plan_run(run_config(data, folder / "run", *TEXT_RUN, "eval_batch_size=5", "max_steps=12"))
    claim_folder(plan)
    return plan.folder, train_in_process(plan)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("running"), "running")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("prompts"), "prompt")


def evaluated(run: Path, **options: Any) -> tuple[EvaluationReport, TextEvaluation]:
    """Evaluate without drawing, which takes longer than all the rest."""
    with patch("trm_ray.programs.evaluate.save_evaluation", lambda evaluation, path, *words: path):
        report = evaluate_run(run, **options)
    assert isinstance(report.evaluation, TextEvaluation)
    return report, report.evaluation


def measured(run: Path, num_segments: int) -> tuple[np.ndarray, Rows]:
    """Nats, right tokens and whether all are, at every depth of every row, and the rows."""
    rows = read_split(run.parent / "data", "test")
    batch = Batch(*map(torch.from_numpy, (rows.inputs, rows.labels, rows.puzzle_identifiers)))
    return measure_text(load_model(run), batch, softmax_cross_entropy, num_segments).numpy(), rows


def test_evaluating_a_run_of_text_repeats_its_last_evaluation(running: Made, tmp_path: Path):
    run, last = running
    _, found = evaluated(run, output=tmp_path)
    assert (found.num_rows, found.num_tokens, found.trained_depth) == (23, 23 * LENGTH, 4)
    trained = found.by_depth[-1]
    assert {
        "eval/loss": trained.loss,
        "eval/perplexity": trained.perplexity,
        "eval/accuracy": trained.accuracy.value,
        "eval/bits_per_byte": trained.bits_per_byte.value,
        "eval/anytime_bits_per_byte": found.anytime_bits_per_byte,
        **{f"eval/{name}_bits_per_byte": value for name, value in found.yardsticks.items()},
    } == pytest.approx({tag: value for tag, value in last.items() if "step_" not in tag})
    assert [found.by_depth[i].bits_per_byte.value for i in range(2)] == pytest.approx(
        [last[f"eval/first_segment/step_{i}_bits_per_byte"] for i in range(2)]
    )


def test_prompts_are_counted_answer_by_answer_as_in_training(prompts: Made, tmp_path: Path):
    run, last = prompts
    _, found = evaluated(run, segments=[3], output=tmp_path)
    trained, exact = found.by_depth[3], found.by_depth[3].exact_accuracy
    assert exact is not None
    assert (found.num_rows, len(found.by_depth), found.yardsticks) == (22, 6, {})
    assert last["eval/exact_accuracy"] == exact.value
    assert 0 < exact.value < 1
    assert (found.anytime_accuracy, trained.bits_per_byte.value) == pytest.approx(
        (last["eval/anytime_accuracy"], last["eval/bits_per_byte"])
    )
    numbers, rows = measured(run, 3)
    labelled = (rows.labels >= 0).any(1)
    solved = numbers[2, 3][labelled]
    assert exact == estimate(solved, np.arange(len(solved)))


def test_the_interval_of_bits_per_byte_comes_from_how_far_rows_lie_apart(running: Made, tmp_path: Path):
    """That of a ratio: each row's nats less what its bytes would take."""
    run, _ = running
    _, found = evaluated(run, segments=[3], batch_size=4, output=tmp_path)
    numbers, rows = measured(run, 3)
    size = np.array(BYTES)[rows.labels].sum(1)
    for one, nats, right in zip(found.by_depth, numbers[0], numbers[1], strict=True):
        bits = nats.sum() / size.sum()
        deviation = math.sqrt(23 / 22 * ((nats - bits * size) ** 2).sum()) / size.sum()
        interval = one.bits_per_byte
        assert interval.value == pytest.approx(bits / math.log(2))
        assert (interval.high - interval.value) * math.log(2) == pytest.approx(Z95 * deviation)
        shares = estimate(right / LENGTH, np.arange(23), most=23 * LENGTH)
        assert (one.accuracy.value, one.accuracy.low, one.accuracy.high) == pytest.approx(
            (shares.value, shares.low, shares.high)
        )


def test_a_depth_is_the_same_however_cycles_are_dealt_to_segments(running: Made):
    """So that more segments show what more cycles of one come to."""
    run, _ = running
    as_trained, _ = measured(run, 3)
    model = load_model(run)
    model.H_cycles = 6
    with patch("test_evaluate_text.load_model", lambda run: model):
        in_one, _ = measured(run, 1)
    assert np.array_equal(as_trained, in_one)


def test_batches_of_any_size_and_the_first_rows_alone_are_measured(running: Made, tmp_path: Path):
    run, _ = running
    sizes = [evaluated(run, batch_size=size, output=tmp_path)[1] for size in (1, 64)]
    assert sizes[0].by_depth[-1].bits_per_byte.value == pytest.approx(sizes[1].by_depth[-1].bits_per_byte.value)
    report, first = evaluated(run, max_puzzles=9, output=tmp_path)
    assert first.num_rows == 9
    assert math.isnan(first.by_depth[0].bits_per_byte.low)  # too few to say how far they lie apart
    assert report.provenance["notes"] == ["unigram and xz: of all 23 rows of the split"]
    assert evaluated(run, split="train", output=tmp_path)[1].yardsticks == {}


def test_what_is_told_has_the_yardsticks_the_stride_and_no_halting(running: Made, tmp_path: Path):
    run, _ = running
    report, found = evaluated(run, segments=[1, 4], output=tmp_path)
    columns = [list(column.cells) for column in report.table.columns]
    assert columns[0] == ["1", "2", "3", "as trained: 4", "5", "6", "7", "8", "unigram", "xz"]
    assert columns[1][-2:] == ["4.5000", "2.2500"]
    rows = f"rows of {LENGTH} tokens, stride {LENGTH}: a token sees what stands before it in its row and document"
    assert report.lines[0] == f"{rows}, {found.mean_context:.1f} tokens on average"
    assert not [line for line in report.lines if "halt" in line]
    assert f"23 rows, {23 * LENGTH} tokens" in report.headline
    written = json.loads((tmp_path / "evaluation_test.json").read_text())
    assert written["by_depth"][7]["bits_per_byte"]["value"] == found.by_depth[7].bits_per_byte.value
    assert written["by_depth"][0]["exact_accuracy"] is None
    evaluated(run, output=tmp_path)  # its own numbers are replaced


def test_a_token_sees_those_before_it_in_its_row_from_the_last_separator_on():
    rows = np.array([[5, 9, 7, 9, 6], [1, 2, 3, 4, 5]])
    assert context_sizes(rows, 9).tolist() == [[1, 1, 2, 1, 2], [1, 2, 3, 4, 5]]
    assert context_sizes(rows, None).tolist() == [[1, 2, 3, 4, 5]] * 2


def test_rows_are_read_where_they_lie_across_files_and_folders(tmp_path: Path):
    folders = [write_text(tmp_path / str(seed), "running", rows=rows, seed=seed) for seed, rows in ((2, 5), (4, 3))]
    whole = np.concatenate([read_split(folder, "test").inputs for folder in folders])
    stored = StoredRows(folders, "test")
    assert len(stored) == 8
    for first, last in ((0, 8), (4, 6), (5, 8), (0, 5), (6, 7)):
        assert np.array_equal(stored.between(first, last).inputs, whole[first:last])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halt": True}, "--halt is for puzzles: no row of a text halts"),
        ({"augmentations": 3}, "--augmentations=3 is for puzzles"),
    ],
)
def test_what_text_has_not_is_refused(running: Made, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        evaluate_run(running[0], **options)


def test_the_picture_of_text_shows_the_yardsticks_by_name(running: Made, tmp_path: Path):
    from trm_ray.reporting.pictures.evaluation import draw_evaluation

    _, found = evaluated(running[0], segments=[3], output=tmp_path)
    bits, right = draw_evaluation(found, "a run").axes
    model, unigram, xz, trained = bits.lines
    assert list(model.get_ydata()) == [one.bits_per_byte.value for one in found.by_depth]
    assert [list(line.get_ydata()) for line in (unigram, xz)] == [[4.5, 4.5], [2.25, 2.25]]
    assert [text.get_text() for text in bits.texts] == ["unigram 4.500", "xz 2.250"]
    assert list(trained.get_xdata()) == [4, 4]
    assert list(right.lines[0].get_ydata()) == [one.accuracy.value for one in found.by_depth]
