"""A kind of one's own: a folder and a line of the registry, and a task makes it, every command knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_helpers import run_config
from typer.testing import CliRunner

import trm_ray
from trm_ray.cli import app
from trm_ray.config import Config, ConfigError, Generator
from trm_ray.config.keys import Positive
from trm_ray.data.check import open_dataset
from trm_ray.data.format import DatasetInfo
from trm_ray.data.rows import DatasetError, Rows, TokenBatch
from trm_ray.data.write import write_dataset
from trm_ray.kinds.kind import Arguments, Kind, Question, Verdict, named
from trm_ray.kinds.registry import KINDS, check_kind, kind_named
from trm_ray.kinds.tally import Extra, Tally
from trm_ray.programs.predict import kind_for, predict, read_questions
from trm_ray.runs.data import complete, make_missing


class SortingArguments(Arguments):
    """Letters to be put in order."""

    length: Positive = 16  # letters of a question


class LettersTally(Tally):
    """Counts the letters in their place and all letters, also where nobody has written labels."""

    in_place, letters = 0, 0

    def count(self, tokens: TokenBatch, answers: np.ndarray, halt_probabilities: np.ndarray) -> tuple[int, int]:
        return int((answers == np.sort(tokens.inputs, axis=1)).sum()), answers.size

    def add(self, counted: tuple[int, int]) -> None:
        self.in_place, self.letters = self.in_place + counted[0], self.letters + counted[1]

    def result(self) -> Extra:
        share = self.in_place / self.letters
        return Extra({"in_place": share}, [f"letters in place: {share:.4f}"], {"evaluation_letters.json": "[]\n"})


@dataclass(frozen=True)
class Sorting(Kind):
    """Letters a to i, to be put in order."""

    length: int
    name = "sorting"
    arguments = SortingArguments
    tally = LettersTally

    @classmethod
    def of_shape(cls, seq_len: int, vocab_size: int) -> Sorting | None:
        return cls(seq_len) if vocab_size == 10 else None

    @classmethod
    def generate(cls, output: str | Path, train: int, test: int, seed: int, length: int) -> DatasetInfo:
        questions = np.random.default_rng(seed).integers(1, 10, (train + test, length), dtype=np.int32)
        rows = Rows.of_single_puzzles(questions, np.sort(questions, axis=1))
        splits = {"train": rows[:train], "test": rows[train:]}
        made = {"train": train, "test": test, "length": length}
        told: dict[str, Any] = {"generator": "sorting", "arguments": made, "seed": seed, "symmetry": None}
        return write_dataset(output, splits, vocab_size=10, kind="sorting", **told)

    @classmethod
    def shape_made(cls, arguments: Any) -> tuple[int, int]:
        return arguments["length"], 10

    def read(self, text: str, source: str, name: str) -> list[Question]:
        return named(source, name, [np.array([ord(c) - ord("a") + 1 for c in line]) for line in text.split()])

    def given(self, inputs: np.ndarray) -> np.ndarray:
        return np.zeros(inputs.shape, bool)

    def layout(self, tokens: np.ndarray) -> np.ndarray:
        return np.arange(self.length).reshape(1, -1)

    def symbols(self, tokens: np.ndarray) -> np.ndarray:
        return np.array(["?", *"abcdefghi"])[tokens]

    def plain(self, tokens: np.ndarray) -> str:
        return "".join(self.symbols(tokens))

    def judge(self, question: Question, tokens: np.ndarray) -> Verdict:
        wrong = tokens != np.sort(question.inputs)
        return Verdict(not wrong.any(), f"{wrong.sum()} letters out of place", wrong)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "sorting", Sorting)


def sorting(folder: Path, *words: str) -> Config:
    """A tiny run on letters that its config makes."""
    made = "generator={name: sorting, train: 64, test: 12}"
    return run_config(folder / "data", folder / "run", "ray.num_workers=0", "augment=false", made, *words)


def test_a_kind_of_one_s_own_is_made_trained_and_judged(tmp_path: Path):
    """What a task names in `generator` makes it; the model that was trained on it solves and judges its puzzles."""
    trm_ray.train(sorting(tmp_path))
    info = open_dataset(tmp_path / "data", also=check_kind)
    assert (info.kind, info.seq_len, info.vocab_size, info.split("train").rows) == ("sorting", 16, 10, 64)
    model = trm_ray.load_model(tmp_path / "run")
    kind = kind_for(model)
    assert kind == Sorting(16)
    assert model.config.generator == complete(sorting(tmp_path)).generator
    (tmp_path / "question.txt").write_text("ihgfedcbaihgfedc")
    [prediction] = predict(model, kind, read_questions(str(tmp_path / "question.txt"), kind))
    assert prediction.verdict.words.endswith("letters out of place")
    answer = kind.plain(prediction.segments[-1].tokens)
    right = "abccddeeffgghhii"
    assert prediction.verdict.valid == (answer == right)
    assert prediction.verdict.words.split()[0] == str(sum(a != b for a, b in zip(answer, right, strict=True)))


def test_the_keys_of_its_generator_are_its_own(tmp_path: Path):
    make_missing(sorting(tmp_path, "generator.length=1e1"))
    assert DatasetInfo.load(tmp_path / "data").seq_len == 10
    with pytest.raises(
        ConfigError, match=r"generator\.length=11 but .*data was made with length=10; set data_paths to"
    ):
        make_missing(sorting(tmp_path, "generator.length=11"))
    with pytest.raises(
        ConfigError, match=r"generator\.length=0 must be a whole number of at least 1; the default is 16"
    ):
        make_missing(sorting(tmp_path, "generator.length=0"))
    with pytest.raises(
        ConfigError, match=r"generator\.lenght=9 has an unknown key; did you mean `generator\.length`\?"
    ):
        make_missing(sorting(tmp_path, "generator.lenght=9"))


def test_its_own_count_stands_in_the_evaluation(tmp_path: Path):
    """All its cells have labels, of which the letters in place are the right ones."""
    trm_ray.train(sorting(tmp_path))
    found = trm_ray.evaluate(tmp_path / "run", batch_size=5)
    assert found["in_place"] == pytest.approx(found["by_segment"][-1]["accuracy"]["value"])
    assert 0 < found["in_place"] < 1
    assert (found["voting"], list(found)[-1]) == (None, "in_place")
    assert (tmp_path / "run" / "report" / "evaluation_letters.json").read_text() == "[]\n"
    printed = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")]).stdout
    assert f"letters in place: {found['in_place']:.4f}" in printed


def test_a_kind_that_nobody_knows_or_of_another_shape_is_refused(tmp_path: Path):
    Sorting.generate(tmp_path / "data", train=8, test=2, seed=0, length=16)
    with pytest.raises(DatasetError, match="kind=sorting has no boards of seq_len=16 and vocab_size=11"):
        kind_named("sorting", 16, 11)
    del KINDS["sorting"]
    with pytest.raises(
        DatasetError, match=r"kind=sorting is unknown; this release knows sudoku, maze, arc, text, tokens"
    ):
        open_dataset(tmp_path / "data", also=check_kind)
    KINDS["sorting"] = Sorting  # what the fixture takes back


def test_what_cannot_be_made_says_so(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"generator\.name=arc must be one of sudoku, maze, text, sorting; prepare other"
    ):
        make_missing(sorting(tmp_path).model_copy(update={"generator": Generator(name="arc")}))
