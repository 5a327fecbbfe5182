"""Held-out text as models read it: every token's surprise at every depth, and text that stays whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_helpers import checkpoint

from trm_ray.data.format import DatasetInfo, read_split
from trm_ray.interop.loading import load_model
from trm_ray.kinds.text.generate import generate_text
from trm_ray.kinds.text.prepare import prepare_text
from trm_ray.kinds.text.tokenizer import BytesTokenizer, FileTokenizer, Tokenizer, train_tokenizer
from trm_ray.model.trm import Batch
from trm_ray.model.unread import Unread
from trm_ray.programs.gallery import galleries
from trm_ray.programs.passages import Guesses, Script
from trm_ray.programs.predict import kind_for
from trm_ray.reporting.numbers.groups import Group
from trm_ray.reporting.page.gallery import Gallery
from trm_ray.reporting.run_log import Run
from trm_ray.training.inference import run_segments
from trm_ray.training.state import TokenShape

PLAY = "To be, or not to be:\nWhether ’tis nobler 日本 in the mind\tto suffer\n"
CAUSAL = ["arch.causal=true", "arch.mixer=attention", "arch.pos_encodings=rope", "arch.num_heads=2"]


def text_run(folder: Path, data: Path) -> Path:
    """A model of text that nobody has trained."""
    info = DatasetInfo.load(data)
    assert info.text is not None
    shape = TokenShape(info.seq_len, info.vocab_size, separator=info.text.separator)
    return checkpoint(folder, data, *CAUSAL, "arch.residual_init_scale=1.0", shape=shape)


def gallery_of(data: Path, *runs: Path) -> Gallery:
    config = {"seed": 0, "data_paths": [str(data)], "task": "text"}
    made = [Group(run.name, run.name, (Run(run, run.name, config, (), finished=True),)) for run in runs]
    [gallery] = galleries(made)
    return gallery


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    texts = [f"{number} {PLAY}" for number in range(40)]
    (folder / "plays.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare_text(folder / "data", inputs=[folder / "plays.jsonl"], seq_len=24, test_share=0.3)
    return folder / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return text_run(tmp_path_factory.mktemp("runs") / "ours", data)


@torch.inference_mode()
def test_a_passage_shows_minus_log2_p_of_every_token_at_every_depth(run: Path, data: Path):
    gallery = gallery_of(data, run)
    model, rows = load_model(run), read_split(data, "test")
    batch = Batch(*map(torch.from_numpy, (rows.inputs, rows.labels, rows.puzzle_identifiers)))
    read = [cycle for output in run_segments(model, batch) for cycle in output.cycle_logits]
    assert (gallery.num_depths, gallery.num_cycles) == (len(read), model.H_cycles)
    assert gallery.puzzles == ()
    assert len(gallery.passages) > 1
    spelt = {bytes(row[row < 256].tolist()).decode(errors="replace"): n for n, row in enumerate(whole_rows(rows))}
    for passage in gallery.passages:
        [reader] = passage.readers
        assert [reading.depth for reading in reader.readings] == list(range(1, len(read) + 1))
        for reading, states in zip(reader.readings, read, strict=True):
            text = "".join(piece.text for piece in reading.pieces).replace("¶", "")
            row = spelt[text]
            assert isinstance(states, Unread)
            nats = -states.float()[row].log_softmax(-1).gather(-1, batch.labels[row].clamp(min=0).long()[:, None])
            counted = batch.labels[row] >= 0
            bits = (nats[:, 0] * counted).sum().item() / math.log(2)
            shown = [piece.bits for piece in reading.pieces if piece.bits is not None]
            assert sum(shown) == pytest.approx(bits, rel=1e-4)
            num_bytes = ((batch.labels[row] >= 0) & (batch.labels[row] < 256)).sum().item()
            assert reading.bits_per_byte == pytest.approx(bits / num_bytes, rel=1e-4)


def whole_rows(rows) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The tokens of each row, its last label too."""
    return np.concatenate([rows.inputs, np.where(rows.labels < 0, 256, rows.labels)[:, -1:]], 1)


def test_passages_go_from_the_easiest_for_the_first_model_to_the_hardest(run: Path, data: Path, tmp_path: Path):
    other = text_run(tmp_path / "theirs", data)
    gallery = gallery_of(data, run, other)
    last = [passage.readers[0].readings[-1].bits_per_byte for passage in gallery.passages]
    assert last == sorted(last)
    assert [reader.label for reader in gallery.passages[0].readers] == ["ours", "theirs"]
    assert gallery.passages[0].name == f"Passage 1: ours needs {last[0]:.2f} bits per byte"
    assert "ordered by how many bits per byte ours needs for them" in gallery.words[-1]


def test_answers_to_prompts_are_right_or_wrong_as_a_whole_and_prompts_are_given(tmp_path: Path):
    generate_text(tmp_path / "sums", source="addition", train=30, test=10, seq_len=13)
    gallery = gallery_of(tmp_path / "sums", text_run(tmp_path / "run", tmp_path / "sums"))
    assert gallery.passages[0].name.startswith("Prompt 1: run ")
    for passage in gallery.passages:
        for reading in passage.readers[0].readings:
            asked, *answer = reading.stretches()
            assert asked.text.startswith("¶")
            assert asked.text.endswith("=")
            assert asked.bits is None
            assert answer[-1].text == "¶"
            assert reading.num_wrong == sum(bool(piece.instead) for piece in answer)
            assert reading.words.startswith("✗ " if reading.num_wrong else "✓ solved")


def script(tokenizer: Tokenizer) -> Script:
    return Script(tokenizer, tokenizer.token_bytes, prompts=False)


def test_bytes_are_joined_to_whole_characters_with_the_bits_of_all_of_them():
    tokens = np.array([256, *"a’b".encode(), 256, *b"c"])
    inputs, labels = tokens[:-1], tokens[1:]
    found = Guesses(np.array([[1.0, 2, 3, 4, 5, 6, 7]]), labels[None] + np.array([0, 0, 1, 0, 0, 0, 1]))
    [reading] = script(BytesTokenizer()).readings(inputs, labels, found, most=100)
    assert [(piece.text, piece.bits) for piece in reading.pieces] == [
        ("¶", None), ("a", 1), ("’", 2 + 3 + 4), ("b", 5), ("¶", 6), ("c", 7)
    ]  # fmt: skip
    assert [piece.instead for piece in reading.pieces] == ["", "", "token 129", "", "", "d"]
    assert reading.bits_per_byte == pytest.approx(28 / 6)  # the separator has bits, and no byte
    assert reading.num_wrong is None
    [shorter] = script(BytesTokenizer()).readings(inputs, labels, found, most=1)
    assert [piece.text for piece in shorter.pieces] == ["¶", "a"]


def test_what_is_no_label_ends_a_passage():
    inputs, labels = np.array([256, 97, 98, 256, 256]), np.array([97, 98, 256, -100, -100])
    found = Guesses(np.array([[1.0, 2, 3, 0, 0]]), np.zeros((1, 5), int))
    [reading] = script(BytesTokenizer()).readings(inputs, labels, found, most=100)
    assert [(piece.text, piece.bits) for piece in reading.pieces] == [("¶", None), ("a", 1), ("b", 2), ("¶", 3)]


def test_the_tokens_of_any_tokenizer_are_spelt_as_they_stand_in_the_text():
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'trm-ray[text]'")
    tokenizer = FileTokenizer(train_tokenizer([PLAY.encode()] * 3, 280))
    tokens, _ = tokenizer.encode([PLAY.encode()])
    spelt = list(script(tokenizer).spelt(tokens.tolist()))
    assert "".join(text for text, _ in spelt) == PLAY
    assert sum(at.stop - at.start for _, at in spelt) == len(tokens)
    assert any(len(text) > 1 for text, _ in spelt)
    assert not any("\ufffd" in text for text, _ in spelt)


def test_a_model_of_text_is_not_asked_to_solve_puzzles(run: Path):
    with pytest.raises(
        ValueError, match=r"is a model of text: `trm-ray generate` continues text .* `trm-ray evaluate`"
    ):
        kind_for(load_model(run))
