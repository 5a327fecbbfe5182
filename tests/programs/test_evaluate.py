"""Evaluation of checkpoints made by hand, against a slow loop and against rules."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from evaluation_helpers import EMBEDDED, SMALL, arc_run, checkpoint
from helpers import Puzzles, sudoku
from run_helpers import run_config, write_puzzles
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.format import read_identifiers, read_split
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.rows import DatasetError, Rows, TokenBatch
from trm_ray.data.write import write_dataset
from trm_ray.interop.checkpoints import export_checkpoint
from trm_ray.interop.loading import load_model
from trm_ray.kinds.arc.symmetry import ArcSymmetry
from trm_ray.kinds.arc.voting import Votes
from trm_ray.kinds.tally import Extra
from trm_ray.model.trm import Batch
from trm_ray.programs.evaluate import EvaluationJob, EvaluationReport, Evaluator, embedding_rows, evaluate_run
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import plan_run
from trm_ray.training.inference import run_segments

NUM_ROWS = 13


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boards with two blanks, of which the third has no solution and the fourth a few labels alone."""
    test = sudoku(NUM_ROWS, seed=1, blanks=2)
    test.labels[2] = -100
    test.labels[3, 5:] = -100
    return write_puzzles(tmp_path_factory.mktemp("data") / "puzzles", sudoku(8), test)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("runs") / "run", data)


def evaluated(run: Path, **options: Any) -> EvaluationReport:
    """Evaluate without drawing, which takes longer than all the rest."""
    with patch("trm_ray.programs.evaluate.save_evaluation", lambda evaluation, path, *words: path):
        return evaluate_run(run, **options)


def one_by_one(run: Path, rows: Rows, num_segments: int) -> list[list[tuple[list[bool], list[float], float]]]:
    """For each row with labels and each segment: solved and share of right cells by cycle, halt logit."""
    model, told = load_model(run), []
    for row in range(len(rows)):
        batch = Batch(
            *(torch.from_numpy(a[row : row + 1]) for a in (rows.inputs, rows.labels, rows.puzzle_identifiers))
        )
        wanted = [cell for cell in range(16) if rows.labels[row, cell] != -100]
        if not wanted:
            continue
        segments = []
        for output in run_segments(model, batch, num_segments):
            right = [[int(c[0, w].argmax()) == rows.labels[row, w] for w in wanted] for c in output.cycle_logits]
            segments.append(([all(r) for r in right], [sum(r) / len(r) for r in right], output.halt_logits.item()))
        told.append(segments)
    return told


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def test_numbers_equal_those_of_a_loop_over_single_rows(run: Path, data: Path, tmp_path: Path):
    report = evaluated(run, segments=[5, 2], batch_size=4, output=tmp_path)
    rows = one_by_one(run, read_split(data, "test"), 5)
    found = report.evaluation
    assert found.num_rows == len(rows) == NUM_ROWS - 1
    assert (found.trained_segments, found.requested_segments) == (3, [2, 5])
    assert len({segments[4][1][-1] for segments in rows}) > 2
    for at, numbers in enumerate(found.by_segment):
        assert numbers.exact_accuracy.value == pytest.approx(mean([r[at][0][-1] for r in rows]))
        assert numbers.accuracy.value == pytest.approx(mean([r[at][1][-1] for r in rows]))
        for cycle in range(2):
            assert numbers.cycle_exact_accuracy[cycle] == pytest.approx(mean([r[at][0][cycle] for r in rows]))
            assert numbers.cycle_accuracy[cycle] == pytest.approx(mean([r[at][1][cycle] for r in rows]))
    stops = [next((at for at in range(5) if r[at][2] > 0), 4) for r in rows]
    assert len(set(stops)) > 1
    assert found.halting.mean_segment == pytest.approx(mean([at + 1 for at in stops]))
    assert found.halting.accuracy.value == pytest.approx(
        mean([r[at][1][-1] for r, at in zip(rows, stops, strict=True)])
    )
    assert found.halting.histogram == [stops.count(at) for at in range(5)]
    assert report.compute["share_saved"] == 0


def test_a_row_that_halts_keeps_its_answer_and_is_not_computed_again(run: Path, data: Path, tmp_path: Path):
    whole = evaluated(run, segments=[5], output=tmp_path).evaluation
    report = evaluated(run, segments=[5], halt=True, output=tmp_path)
    halted = report.evaluation
    rows = one_by_one(run, read_split(data, "test"), 5)
    stops = [next((at for at in range(5) if r[at][2] > 0), 4) for r in rows]
    assert halted.halting == whole.halting
    assert halted.by_segment[4].accuracy.value == pytest.approx(whole.halting.accuracy.value)
    for at in range(5):
        expected = mean([r[min(at, stop)][1][-1] for r, stop in zip(rows, stops, strict=True)])
        assert halted.by_segment[at].accuracy.value == pytest.approx(expected)
    assert sum(halted.calibration_all_segments.count) == sum(at + 1 for at in stops)
    assert 0 < report.compute["segments"] < 5 * NUM_ROWS
    assert report.compute["share_saved"] == pytest.approx(1 - report.compute["segments"] / (5 * NUM_ROWS))


def test_batches_of_any_size_give_the_same(run: Path, tmp_path: Path):
    first, second = (evaluated(run, batch_size=size, output=tmp_path).evaluation for size in (1, 64))
    for one, other in zip(first.by_segment, second.by_segment, strict=True):
        assert (one.exact_accuracy, one.cycle_accuracy) == (other.exact_accuracy, other.cycle_accuracy)
        assert one.loss == pytest.approx(other.loss)


@pytest.mark.parametrize("ema", ["true", "false"])
def test_evaluating_a_run_repeats_its_last_evaluation(data: Path, tmp_path: Path, ema: str):
    plan = plan_run(run_config(data, tmp_path / "run", f"ema={ema}", "ema_rate=0.5"))
    claim_folder(plan)
    last = train_in_process(plan)
    found = evaluated(plan.folder).evaluation
    first, trained = found.by_segment
    assert {
        "eval/loss": trained.loss,
        "eval/accuracy": trained.accuracy.value,
        "eval/exact_accuracy": trained.exact_accuracy.value,
        "eval/exact_accuracy_first": first.exact_accuracy.value,
        "eval/exact_accuracy_halting": found.halting.exact_accuracy.value,
        "eval/act_steps": found.halting.mean_segment,
        "eval/anytime_accuracy": found.anytime_accuracy,
    } == pytest.approx({tag: last[tag] for tag in last if "step_" not in tag and "q_halt" not in tag})


def test_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(run: Path, tmp_path: Path):
    averaged = evaluated(run, output=tmp_path)
    raw = evaluated(run, averaged=False, output=tmp_path)
    assert (averaged.provenance["weights"], raw.provenance["weights"]) == ("averaged", "raw")
    assert averaged.evaluation.by_segment[-1].loss != raw.evaluation.by_segment[-1].loss


def test_an_evaluation_without_its_picture_has_its_numbers_and_says_so(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "evaluation_test.png").mkdir()
    report = evaluate_run(run, max_puzzles=5, output=tmp_path)
    assert [path.name for path in report.files] == ["evaluation_test.json"]
    assert "no picture of the evaluation was drawn; the numbers are in" in caplog.text


def test_the_report_says_where_it_comes_from(run: Path, data: Path):
    report = evaluate_run(run, max_puzzles=5)
    assert [path.name for path in report.files] == ["evaluation_test.json", "evaluation_test.png"]
    assert all(path.parent == run / "report" for path in report.files)
    written = json.loads(report.files[0].read_text())
    assert written["format_version"] == 1
    told = written["provenance"]
    assert (told["step"], told["weights"], told["split"], told["puzzles"]) == (7, "averaged", "test", 5)
    assert told["checkpoint"].endswith("checkpoint_step_7")
    assert told["datasets"][0]["folder"] == str(data)
    assert written["num_rows"] == 4  # the third of the first five has no labels
    assert len(written["by_segment"]) == 3
    assert written["by_segment"][2]["exact_accuracy"].keys() == {"value", "low", "high"}


def test_another_dataset_of_the_same_kind_can_be_named(run: Path, tmp_path: Path):
    other = write_puzzles(tmp_path / "other", sudoku(3), sudoku(5, seed=9))
    report = evaluated(run, data=[other], split="train")
    assert report.evaluation.num_rows == 3
    assert report.files[0].name == "evaluation_train.json"


def test_an_exported_file_is_evaluated_into_a_folder_beside_it(run: Path, tmp_path: Path):
    file = tmp_path / "exported.model.safetensors"
    export_checkpoint(run, file, file_format="safetensors")
    report, whole = evaluated(file), evaluated(run, output=tmp_path)
    assert report.files[0] == tmp_path / "exported.model_report" / "evaluation_test.json"
    assert report.evaluation.by_segment == whole.evaluation.by_segment


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(run: Path, tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with (
        patch("trm_ray.programs.evaluate.measure_rows", side_effect=AssertionError("measured")),
        pytest.raises(ValueError, match=r"--output .*taken must be a folder to write into: File exists; name another"),
    ):
        evaluated(run, output=tmp_path / "taken")


def test_data_of_another_shape_are_refused(run: Path, tmp_path: Path):
    boards = np.ones((2, 9), np.int32)
    split = Rows.of_single_puzzles(boards, boards)
    write_dataset(
        tmp_path / "nine", {"test": split}, vocab_size=6, generator="test", arguments={}, seed=0, symmetry=None
    )
    with pytest.raises(ValueError, match=r"nine has seq_len=9, .*checkpoint_step_7 was trained with 16"):
        evaluated(run, data=[tmp_path / "nine"])


def test_a_missing_split_a_missing_checkpoint_and_no_segment_are_told(run: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="no validation split"):
        evaluated(run, split="validation")
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        evaluated(tmp_path)
    with pytest.raises(ValueError, match=r"segments=\[4, 0\] must be at least one number of at least 1"):
        evaluated(run, segments=[4, 0])


def test_a_split_without_any_label_is_predicted_and_has_no_accuracy(run: Path, tmp_path: Path):
    hidden = sudoku(4)
    hidden.labels[:] = -100
    report = evaluated(run, data=[write_puzzles(tmp_path / "hidden", sudoku(3), hidden)], output=tmp_path)
    assert report.evaluation.num_rows == 0
    written = json.loads(report.files[0].read_text())
    assert written["by_segment"][0]["exact_accuracy"] == {"value": None, "low": None, "high": None}
    assert written["compute"]["boards"] == 4


# ---- puzzle identifiers ----------------------------------------------------------------------------------


def named(folder: Path, names: list[str], puzzles: Puzzles, chosen: Sequence[int]) -> Path:
    """A test split whose rows carry the chosen identifiers of a map."""
    rows = Rows.of_single_puzzles(puzzles.inputs, puzzles.labels)
    rows = replace(rows, puzzle_identifiers=np.array(chosen, np.int32))
    told: dict[str, Any] = {"generator": "test", "arguments": {}, "seed": 0, "symmetry": None}
    write_dataset(folder, {"test": rows}, vocab_size=6, identifiers=PuzzleIdentifiers.plain(names), **told)
    return folder


def test_puzzles_of_another_dataset_are_known_by_their_names(tmp_path: Path):
    own = named(tmp_path / "own", ["a", "b", "c"], sudoku(3), [1, 2, 3])
    other = named(tmp_path / "other", ["c", "a"], sudoku(3), [2, 0, 1])
    run = checkpoint(tmp_path / "run", own, *EMBEDDED, identifiers=read_identifiers(own).to_bytes())
    loaded = load_model(run)
    assert embedding_rows(loaded, read_identifiers(own), [own]).tolist() == [0, 1, 2, 3]
    assert embedding_rows(loaded, read_identifiers(other), [other]).tolist() == [0, 3, 1]
    same = named(tmp_path / "same", ["a", "b", "c"], sudoku(3), [1, 0, 3])
    mapped, direct = (evaluated(run, data=[path], output=tmp_path).evaluation for path in (other, same))
    plain = evaluated(run, data=[own], output=tmp_path).evaluation
    assert mapped.by_segment == direct.by_segment != plain.by_segment
    assert evaluated(run, data=[other], output=tmp_path).provenance["notes"] == []


def test_puzzles_that_the_model_does_not_know_are_refused(tmp_path: Path):
    own = named(tmp_path / "own", ["a", "b"], sudoku(2), [1, 2])
    other = named(tmp_path / "other", ["a", "x", "y"], sudoku(2), [1, 2])
    run = checkpoint(tmp_path / "run", own, *EMBEDDED, identifiers=read_identifiers(own).to_bytes())
    with pytest.raises(ValueError, match=r"other has 2 puzzle identifiers that .* does not know, such as x; name the"):
        evaluated(run, data=[other])


def test_without_a_map_the_number_of_identifiers_must_agree(tmp_path: Path):
    own = named(tmp_path / "own", ["a", "b"], sudoku(2), [1, 2])
    run = checkpoint(tmp_path / "run", own, *EMBEDDED)
    report = evaluated(run)
    assert report.evaluation.num_rows == 2
    (note,) = json.loads(report.files[0].read_text())["provenance"]["notes"]
    assert re.search(
        r"checkpoint_step_7 has no identifiers.json: its 3 .*taken to be those of .*own, in the same", note
    )
    assert note in CliRunner().invoke(app, ["evaluate", str(run)]).stdout
    other = named(tmp_path / "other", ["a"], sudoku(2), [1, 1])
    with pytest.raises(ValueError, match=r"embeddings of 3 puzzle identifiers and no identifiers.json; .*other has 2"):
        evaluated(run, data=[other])


# ---- ARC -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return arc_run(tmp_path_factory.mktemp("arc"))


def voted_one_by_one(run: Path, data: Path, variants: int, *, halt: bool = False) -> Votes:
    """Predict every variant of every test input by itself and count the votes."""
    model, identifiers, rows = load_model(run), read_identifiers(data), read_split(data, "test")
    votes, symmetry = Votes(identifiers), ArcSymmetry(identifiers)
    for row in range(len(rows)):
        for number in range(variants):
            own = rows[row : row + 1]
            tokens = TokenBatch(own.inputs, own.labels, own.puzzle_identifiers)
            tokens = symmetry.variant(tokens, np.array([number]))
            batch = Batch(*map(torch.from_numpy, (tokens.inputs, tokens.labels, tokens.puzzle_identifiers)))
            for output in run_segments(model, batch, 3):
                if halt and output.halt_logits.item() > 0:
                    break
            answer = output.cycle_logits[-1].argmax(-1).numpy()
            probability = 1 / (1 + np.exp(-output.halt_logits.double().numpy()))
            votes.add(tokens.puzzle_identifiers, tokens.inputs, answer, probability)
    return votes


@pytest.mark.parametrize(("augmentations", "variants"), [(None, 5), (1, 2)])
def test_all_variants_of_arc_puzzles_vote(arc: tuple[Path, Path], tmp_path: Path, augmentations: Any, variants: int):
    run, data = arc
    report = evaluated(run, augmentations=augmentations, batch_size=4, output=tmp_path)
    tasks = json.loads((data / "test_puzzles.json").read_text())
    expected = voted_one_by_one(run, data, variants).result(tasks)
    assert json.loads((tmp_path / "submission.json").read_text()) == expected.submission
    assert report.compute["boards"] == 3 * variants
    voting = report.extra.numbers["voting"]
    assert {k: share["value"] for k, share in voting["pass_at"].items()} == expected.pass_at
    assert voting["pass_at"].keys() == {1, 2, 5, 10, 100, 1000}
    assert (voting["num_puzzles"], voting["num_scored"]) == (2, 1)
    assert json.loads(report.files[0].read_text())["voting"] == json.loads(json.dumps(voting))
    assert report.extra.lines[0] == "votes over 2 puzzles, of which 1 have known outputs:"
    assert report.extra.lines[-1] == "  pass@1000 100.00 %   [20.65–100.00]"  # Wilson's of one of one: 1 / (1 + 1.96²)
    assert report.evaluation.num_rows == 2  # variants only vote, and the hidden output counts in no accuracy


def test_votes_are_taken_where_the_halt_head_stops(arc: tuple[Path, Path], tmp_path: Path):
    run, data = arc
    report = evaluated(run, halt=True, output=tmp_path)
    tasks = json.loads((data / "test_puzzles.json").read_text())
    expected = voted_one_by_one(run, data, 5, halt=True).result(tasks)
    assert json.loads((tmp_path / "submission.json").read_text()) == expected.submission
    assert report.compute["share_saved"] > 0


def test_training_rows_are_measured_as_they_are(arc: tuple[Path, Path], tmp_path: Path):
    report = evaluated(arc[0], split="train", output=tmp_path)
    assert report.compute["boards"] == report.evaluation.num_rows == 2
    assert report.extra == Extra()
    assert not (tmp_path / "submission.json").exists()


def test_only_the_puzzles_that_are_wanted_are_asked(arc: tuple[Path, Path], tmp_path: Path):
    report = evaluated(arc[0], max_puzzles=1, augmentations=0, output=tmp_path)
    assert json.loads((tmp_path / "submission.json").read_text()).keys() == {"first"}
    assert report.extra.numbers["voting"]["num_puzzles"] == 1


def stored(folder: Path, data: Path) -> Path:
    """The same dataset with its augmentations as rows, as the original has them."""
    identifiers, splits = read_identifiers(data), {name: read_split(data, name) for name in ("train", "test")}
    for name, rows in splits.items():
        each = np.repeat(np.arange(len(rows)), 5)
        own = TokenBatch(rows.inputs[each], rows.labels[each], rows.puzzle_identifiers[each])
        made = ArcSymmetry(identifiers).variant(own, np.arange(len(each)) % 5)
        ids = made.puzzle_identifiers
        splits[name] = Rows(made.inputs, made.labels, ids, ids, rows.groups[each])
    told: dict[str, Any] = {"generator": "import_original", "arguments": {}, "seed": None, "symmetry": None}
    tasks = (data / "test_puzzles.json").read_bytes()
    told |= {"identifiers": identifiers, "side_files": {"test_puzzles.json": tasks}}
    write_dataset(folder, splits, vocab_size=12, **told)
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"augmentations": 1}, {"augmentations": 0}, {"max_puzzles": 1}, {"split": "train"}], ids=str
)
def test_stored_augmentations_are_evaluated_as_computed_ones(
    arc: tuple[Path, Path], tmp_path: Path, options: dict[str, Any]
):
    folders = {"computed": arc[1], "stored": stored(tmp_path / "data", arc[1])}
    one, other = (evaluated(arc[0], data=[data], output=tmp_path / n, **options) for n, data in folders.items())
    assert one.extra == other.extra
    for key in ("boards", "segments"):
        assert one.compute[key] == other.compute[key]
    assert one.provenance["puzzles"] == other.provenance["puzzles"]
    assert one.evaluation.num_rows == other.evaluation.num_rows
    for ours, theirs in zip(one.evaluation.by_segment, other.evaluation.by_segment, strict=True):
        assert ours.exact_accuracy == theirs.exact_accuracy
        assert ours.accuracy.low == pytest.approx(theirs.accuracy.low)
    if one.extra.numbers:
        assert len({(tmp_path / name / "submission.json").read_text() for name in folders}) == 1


def test_a_puzzle_that_no_row_asks_about_is_named_and_counts_as_wrong(arc: tuple[Path, Path], tmp_path: Path):
    run, data = arc
    tasks = json.loads((data / "test_puzzles.json").read_bytes())
    tasks["lost"] = {"train": [], "test": [{"input": SMALL, "output": SMALL}]}
    split, identifiers = read_split(data, "test"), read_identifiers(data)
    told: dict[str, Any] = {"generator": "arc", "arguments": {}, "seed": 1, "symmetry": {"name": "arc"}}
    told |= {"identifiers": identifiers, "side_files": {"test_puzzles.json": json.dumps(tasks).encode()}}
    write_dataset(tmp_path / "more", {"test": split}, vocab_size=12, **told)
    report = evaluated(run, data=[tmp_path / "more"], augmentations=0, output=tmp_path)
    voting = report.extra.numbers["voting"]
    assert voting["without_predictions"] == ["lost[0]"]
    assert (voting["num_puzzles"], voting["num_scored"]) == (3, 2)
    assert report.extra.lines[-1] == "1 test inputs without predictions count as wrong: lost[0]"


def test_augmentations_are_refused_where_nothing_votes(run: Path, arc: tuple[Path, Path]):
    for path, split in ((run, "test"), (arc[0], "train")):
        with pytest.raises(ValueError, match=rf"--augmentations=3 is for .* voted on; leave it out for the {split} sp"):
            evaluated(path, split=split, augmentations=3)


def test_what_a_worker_measures_can_be_sent(arc: tuple[Path, Path]):
    told: dict[str, Any] = {"num_segments": 3, "halt": False, "batch_size": 4, "checkpoint": arc[0], "averaged": True}
    job = EvaluationJob(folders=(arc[1],), split="test", num_variants=None, max_puzzles=None, **told)
    batch = Evaluator(job)(0)
    assert pickle.loads(pickle.dumps(batch.counted)) == batch.counted != {}
