"""What an evaluation of text comes to: bits per byte by hand, from all logits, and however rows are dealt out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    TEXT_ARCH,
    Puzzles,
    local_session,
    metric_rows,
    supervised,
    text_model,
    text_shape,
    texts,
    tiny_config,
)

from trm_ray.model.trm import Batch, TinyRecursiveModel
from trm_ray.model.unread import Unread
from trm_ray.training.evaluation import anytime, evaluate, perplexity
from trm_ray.training.inference import run_segments
from trm_ray.training.loop import run_training
from trm_ray.training.losses import softmax_cross_entropy
from trm_ray.training.text import TextMeasure

LENGTH = 12
BYTES = np.array([1] * 256 + [0])  # of a tokenizer whose tokens are bytes
WORDS = np.random.default_rng(5).integers(1, 9, 257)  # of one whose tokens are several
WORDS[256] = 0
YARDSTICKS = {"eval/unigram_bits_per_byte": 4.75, "eval/xz_bits_per_byte": 2.5}
OF_PUZZLES = ("exact_accuracy", "anytime_accuracy", "q_halt", "act_steps", "act/steps")


def measure(token_bytes: np.ndarray = BYTES, *, whole_rows: bool = False) -> TextMeasure:
    return TextMeasure(torch.from_numpy(token_bytes), whole_rows, YARDSTICKS)


def ended(texts: Puzzles) -> Puzzles:
    """The same with separators as labels here and there, which cost nats and stand for no byte."""
    labels = texts.labels.copy()
    labels[:, 2][labels[:, 2] >= 0] = 256
    return replace(texts, labels=labels)


def by_hand(model: TinyRecursiveModel, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Nats and whether the label is the likeliest, of every token at every depth, (D, B, L), from float64 logits."""
    nats, right, labels = [], [], batch.labels.numpy()
    for output in run_segments(model, batch):
        for cycle in output.cycle_logits:
            assert isinstance(cycle, Unread)
            logits = cycle.states.numpy().astype(np.float64) @ cycle.head.detach().numpy().astype(np.float64).T
            top = logits.max(-1)
            normaliser = top + np.log(np.exp(logits - top[..., None]).sum(-1))
            of_label = np.take_along_axis(logits, labels.clip(min=0)[..., None], -1)[..., 0]
            nats.append(np.where(labels >= 0, normaliser - of_label, 0))
            right.append((logits.argmax(-1) == labels) & (labels >= 0))
    return np.array(nats), np.array(right)


def evaluated(tmp_path, model, batches, text=None):
    return evaluate(model, batches, softmax_cross_entropy, replace(local_session(tmp_path, tiny_config()), text=text))


@pytest.mark.parametrize("token_bytes", [BYTES, WORDS], ids=["bytes", "words"])
def test_bits_per_byte_are_all_nats_over_all_bytes_at_every_depth(tmp_path, token_bytes):
    model, batch = text_model(LENGTH, arch={"halt_max_steps": 2}), ended(texts(7, LENGTH, labelled=0.2)).batch()
    found = evaluated(tmp_path, model, [batch], measure(token_bytes))
    nats, right = by_hand(model, batch)
    labels = batch.labels.numpy()
    num_bytes = sum(int(token_bytes[label]) for label in labels.flat if label >= 0)
    bits = nats.sum((1, 2)) / math.log(2) / num_bytes
    assert (labels == 256).sum() > 3
    assert found.depths["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert found.depths["accuracy"] == pytest.approx(right.sum((1, 2)) / (labels >= 0).sum())
    weights = 1 / np.arange(1, 7)
    loss = nats[-1].sum() / (labels >= 0).sum()
    expected = {
        "eval/loss": loss,
        "eval/perplexity": math.exp(loss),
        "eval/bits_per_byte": bits[5],
        "eval/anytime_bits_per_byte": (weights * bits).sum() / weights.sum(),
        **{f"eval/first_segment/step_{i}_bits_per_byte": bits[i] for i in range(3)},
        **YARDSTICKS,
    }
    assert {tag: found.row[tag] for tag in expected} == pytest.approx(expected, rel=1e-6)


def test_of_running_text_nothing_is_logged_that_cannot_move(tmp_path):
    found = evaluated(tmp_path, text_model(LENGTH), [texts(3, LENGTH).batch()], measure())
    assert not [tag for tag in found.row if any(word in tag for word in OF_PUZZLES)]
    assert sorted(found.depths) == ["accuracy", "bits_per_byte", "loss"]


def test_prompts_are_solved_row_by_row_however_long_their_answers_are(tmp_path):
    model, rows = text_model(LENGTH), texts(5, LENGTH, labelled=0.2)
    answers = next(iter(run_segments(model, rows.batch()))).cycle_logits[-1].argmax(-1).numpy()
    rows.labels[:2] = np.where(rows.labels[:2] >= 0, answers[:2], -100)  # two of the four that have labels
    rows.labels[2] = -100
    found = evaluated(tmp_path, model, [rows.batch()], measure(whole_rows=True))
    _, right = by_hand(model, rows.batch())
    assert found.depths["exact_accuracy"][-1] == found.row["eval/exact_accuracy"] == 2 / 4
    by_row = [(right[depth] | (rows.labels < 0)).all(-1)[[0, 1, 3, 4]].mean() for depth in range(3)]
    assert found.row["eval/anytime_accuracy"] == pytest.approx(anytime(by_row))
    assert found.row["eval/accuracy"] == right[-1].sum() / (rows.labels >= 0).sum()
    assert not [tag for tag in found.row if any(word in tag for word in ("halt", "act_steps"))]


def test_a_tokens_bits_weigh_alike_in_whichever_batch_it_is(tmp_path):
    model, data = text_model(LENGTH), texts(7, LENGTH, labelled=0.2)
    whole, parts = (
        evaluated(tmp_path, model, [data[i : i + n].batch() for i in range(0, 7, n)], measure(WORDS, whole_rows=True))
        for n in (7, 2)
    )
    assert parts.row == pytest.approx(whole.row, rel=1e-6)


def test_without_labels_or_bytes_all_is_nan(tmp_path):
    model, rows = text_model(LENGTH), texts(2, LENGTH)
    separators = replace(rows, labels=np.full_like(rows.labels, 256))
    assert math.isnan(evaluated(tmp_path, model, [separators.batch()], measure()).row["eval/bits_per_byte"])
    nothing = evaluated(tmp_path, model, [replace(rows, labels=rows.labels * 0 - 100).batch()], measure())
    assert all(math.isnan(value) for tag, value in nothing.row.items() if tag not in YARDSTICKS)


def test_a_perplexity_too_large_for_a_float_is_infinite():
    assert (perplexity(0.0), perplexity(1e4)) == (1.0, math.inf)
    assert math.isnan(perplexity(math.nan))


def test_a_run_logs_what_its_text_comes_to_and_no_halting(tmp_path):
    data, changes = texts(8, LENGTH, labelled=0.2), supervised(arch=TEXT_ARCH, max_steps=2, log_interval=2)
    for whole_rows in (False, True):
        config, folder = tiny_config(**changes), tmp_path / str(whole_rows)
        session = replace(local_session(folder, config, data, test=data), text=measure(whole_rows=whole_rows))
        run_training(config, text_shape(LENGTH), 2, session)
        row = metric_rows(folder)[2]
        assert {"eval/bits_per_byte", "train/lm_loss", "train/act/accuracy", *YARDSTICKS} <= set(row)
        left = {"train/act/exact_accuracy", "eval/exact_accuracy"} if whole_rows else set()
        assert {tag for tag in row if any(word in tag for word in OF_PUZZLES)} >= left
        assert not [tag for tag in row if any(word in tag for word in ("halt", "act_steps", "act/steps"))]
        assert whole_rows or not [tag for tag in row if "exact" in tag]


def test_training_counts_whole_rows_alike_whatever_their_labels_share(tmp_path):
    """With a rate of next to nothing; two of three rows with labels are answered rightly by the first weights."""
    config = tiny_config(**supervised(arch=TEXT_ARCH, lr=1e-30, max_steps=1, global_batch_size=4))
    data = texts(4, LENGTH, labelled=0.2)
    answers = next(iter(run_segments(text_model(LENGTH), data.batch()))).cycle_logits[-1].argmax(-1).numpy()
    data.labels[:2] = np.where(data.labels[:2] >= 0, answers[:2], -100)
    data.labels[2] = -100
    session = replace(local_session(tmp_path, config, data, test=data), text=measure(whole_rows=True))
    run_training(config, text_shape(LENGTH), 1, session)
    assert metric_rows(tmp_path)[1]["train/act/exact_accuracy"] == pytest.approx(2 / 3)
