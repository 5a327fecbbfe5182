"""Text through a model, by the command and from Python."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import TEXT_ARCH, text_shape
from prediction_helpers import checkpoint
from run_helpers import run_config
from typer.testing import CliRunner, Result

import trm_ray
from trm_ray.cli import app
from trm_ray.interop.loading import LoadedModel, load_model
from trm_ray.kinds.text.prepare import prepare_text
from trm_ray.model.trm import Batch
from trm_ray.programs.generate import Settings, generate
from trm_ray.training.inference import run_segments

LENGTH, SEPARATOR = 16, 256


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a model of bytes and nothing else: no data, no config."""
    folder = tmp_path_factory.mktemp("text") / "run"
    checkpoint(folder / "final_model", text_shape(LENGTH), **TEXT_ARCH)
    return folder


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedModel:
    return load_model(run)


def call(*words: str | Path, stdin: str | bytes = "") -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["generate", *map(str, words)], input=stdin)


def refused(*words: str | Path, stdin: str | bytes = "") -> str:
    result = call(*words, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


# ---- what is generated -----------------------------------------------------------------------------------


def test_log_probabilities_are_those_that_an_evaluation_gives_the_text(loaded: LoadedModel):
    made = generate(loaded, "ab", Settings(max_new_tokens=12, temperature=1.0, seed=2, segments=2))
    assert len(made.tokens) == 12
    row = torch.tensor([[SEPARATOR, *b"ab", *made.tokens, 0]])
    with torch.inference_mode():
        *_, last = run_segments(loaded, Batch(row, row, torch.zeros(1, dtype=torch.int32)), 2)
        evaluated = last.cycle_logits[-1].float()[0].log_softmax(-1)
    expected = [float(evaluated[place, token]) for place, token in enumerate(made.tokens, 2)]
    assert list(made.log_probabilities) == pytest.approx(expected, abs=1e-5)


def test_pieces_are_told_as_they_come_and_are_the_text(loaded: LoadedModel):
    pieces: list[str] = []
    made = trm_ray.generate(loaded, "é", each=pieces.append, max_new_tokens=40, temperature=1.0)
    assert "".join(pieces) == made.text == bytes(t for t in made.tokens if t < 256).decode(errors="replace")
    assert len(pieces) > 5
    assert made.settings == Settings(40, 1.0, segments=1, cycles=3)


def ending(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, *tokens: int) -> None:
    """Let a model's next tokens be these."""
    drawn: Iterator[int] = iter(tokens)
    monkeypatch.setattr("trm_ray.training.generation.draw", lambda *_: next(drawn))


def test_a_document_ends_at_its_separator_which_is_no_text(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch):
    ending(loaded, monkeypatch, *b"46", SEPARATOR, *b"no")
    made = generate(loaded, "12+34=", Settings())
    assert (made.text, made.tokens, made.ended) == ("46", (*b"46", SEPARATOR), "separator")
    assert len(made.log_probabilities) == 3


def test_a_prompt_longer_than_the_window_is_seen_by_its_end(loaded: LoadedModel):
    long = "x" * 100 + "0123456789abcdef"
    first, second = (generate(loaded, prompt, Settings(8)) for prompt in (long, [*b"0123456789abcdef"]))
    assert first.tokens == second.tokens
    assert (first.left_out, second.left_out) == (101, 0)


def test_a_prompt_of_tokens_may_hold_several_documents(loaded: LoadedModel):
    """Of which the model sees the last; it is the second of the row, and so at other places."""
    one, two = (generate(loaded, prompt, Settings(3)) for prompt in ([*b"xyz", SEPARATOR, *b"ab"], "ab"))
    assert one.tokens == two.tokens
    assert one.prompt == "xyzab"


# ---- the command -----------------------------------------------------------------------------------------


def test_the_command_prints_the_text_and_nothing_else(run: Path, loaded: LoadedModel):
    expected = generate(loaded, "ab", Settings(9, 0.9, 0.8, 5))
    words = ("--prompt", "ab", "--max-new-tokens", "9", "--temperature", "0.9", "--top-p", "0.8", "--seed", "5")
    result = call(run, *words)
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected.text, "")


def test_json_tells_all_of_it(run: Path, loaded: LoadedModel):
    result = call(run, "--prompt", "ab", "--max-new-tokens", "4", "--segments", "2", "--cycles", "1", "--json")
    told, made = json.loads(result.stdout), generate(loaded, "ab", Settings(4, segments=2, cycles=1))
    assert told == {
        **{"model": str(run / "final_model"), "step": 12, "prompt": "ab", "text": made.text},
        **{"tokens": [*made.tokens], "log_probabilities": [*made.log_probabilities], "ended": "limit", "left_out": 0},
        **{"depth": 2, "segments": 2, "cycles": 1, "seed": 0, "max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0},
    }


def test_a_prompt_comes_from_a_file_or_the_standard_input_without_the_line_end_behind_it(run: Path, tmp_path: Path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    words = ("--max-new-tokens", "3", "--json")
    prompts = [
        json.loads(call(run, "--file", source, *words, stdin=stdin).stdout)["prompt"]
        for source, stdin in ((tmp_path / "windows.txt", ""), ("-", "é\n"), ("-", "a\n\n"), ("-", ""))
    ]
    assert prompts == ["a\r\nb", "é", "a\n", ""]
    assert json.loads(call(run, *words).stdout)["prompt"] == ""


def test_a_prompt_that_is_not_seen_whole_is_told_beside_the_text(run: Path):
    result = call(run, "--prompt", "x" * 40, "--max-new-tokens", "3")
    assert result.exit_code == 0
    assert "longer than the model's window of 16: its first 25 tokens were not seen" in result.stderr


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--temperature", "-1"], "temperature=-1 must be at least 0"),
        (["--temperature", "nan"], "temperature=nan must be at least 0"),
        (["--top-p", "0"], "top_p=0 must be above 0 and at most 1"),
        (["--top-p", "1.5"], "top_p=1.5 must be above 0"),
        (["--cycles", "0"], "cycles=0 must be at least 1"),
        (["--segments", "-2"], "segments=-2 must be at least 1"),
        (["--max-new-tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--seed", "-1"], r"seed=-1 must be from 0 to 2\^63"),
        (["--file", "nowhere.txt"], "--file nowhere.txt cannot be read: No such file or directory; name a file"),
        (["--file", "x", "--prompt", "y"], "two prompts; leave one of them out"),
        (["--prompt", "a\udcffb"], r"--prompt is no text in UTF-8 \(at byte 1\)"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_told_in_one_line(words, rule):
    assert re.search(rule, refused("nowhere", *words))  # though there is no such run, which would be looked at later


def test_a_prompt_that_is_no_text_is_refused(run: Path):
    assert "--file - is no text in UTF-8 (at byte 2); save it as UTF-8" in refused(
        run, "--file", "-", stdin=b"ab\xff\xfe"
    )


def test_a_model_of_puzzles_generates_nothing(tmp_path: Path):
    checkpoint(tmp_path / "sudoku" / "final_model")
    told = refused(tmp_path / "sudoku", "--prompt", "a")
    assert "was not trained on text" in told
    assert "trm-ray predict" in told


@pytest.mark.parametrize(("prompt", "rule"), [([], "no tokens"), ([3, 257], "token 257; it must be")])
def test_tokens_that_the_model_does_not_have_are_refused(loaded: LoadedModel, prompt, rule):
    with pytest.raises(ValueError, match=rule):
        generate(loaded, prompt, Settings())


# ---- a tokenizer's way -----------------------------------------------------------------------------------


def test_a_runs_tokenizer_goes_where_its_weights_go(tmp_path: Path):
    """From the dataset to checkpoints and exported files; the dataset is needed no more. Another one is refused."""
    pytest.importorskip("tokenizers")
    (tmp_path / "play.txt").write_text("To be, or not to be, that is the question: whether it is nobler\n" * 60)
    options = {"inputs": [tmp_path / "play.txt"], "seq_len": LENGTH, "document_bytes": 600, "test_share": 0.3}
    prepare_text(tmp_path / "data", train_vocab=280, **options)
    content = (tmp_path / "data" / "tokenizer.json").read_bytes()
    text = ("arch.causal=true", "arch.mixer=attention", "arch.pos_encodings=rope", "ray.num_workers=0")
    words = ("eval_interval=1", "arch.num_heads=2", *text)
    trm_ray.train(run_config(tmp_path / "data", tmp_path / "run", "max_steps=1", *words))
    assert (tmp_path / "run" / "final_model" / "tokenizer.json").read_bytes() == content
    shutil.move(tmp_path / "data", tmp_path / "away")
    made = trm_ray.generate(load_model(tmp_path / "run"), "to be", max_new_tokens=5)
    assert all(token < 280 for token in made.tokens)
    exported = str(tmp_path / "model.safetensors")
    cli = CliRunner()
    words_out = ["export-checkpoint", str(tmp_path / "run"), "--output", exported, "--format", "safetensors"]
    assert cli.invoke(app, words_out).exit_code == 0
    back = str(tmp_path / "back")
    assert cli.invoke(app, ["import-checkpoint", exported, "--output", back]).exit_code == 0
    for source in (exported, back):
        assert trm_ray.generate(load_model(source), "to be", max_new_tokens=5).tokens == made.tokens
    other = content.replace(b'"q"', b'"\\u0071"')  # means the same, and nobody can know that
    assert other != content
    (tmp_path / "other.json").write_bytes(other)
    prepare_text(tmp_path / "data", tokenizer=str(tmp_path / "other.json"), **options)
    with pytest.raises(ValueError, match=r"has another tokenizer than .* was trained with; prepare the dataset with"):
        trm_ray.train(run_config(tmp_path / "data", tmp_path / "run", "max_steps=2", *words), resume=True)


def test_log_probabilities_are_finite_numbers(loaded: LoadedModel):
    made = generate(loaded, "", Settings(30, 1.0))
    assert all(math.isfinite(value) and value <= 0 for value in made.log_probabilities)
