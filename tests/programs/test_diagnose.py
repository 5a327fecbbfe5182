"""Small runs broken on purpose, and what is said of them; docs/diagnosis.md has more, which take longer."""

import itertools
import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from run_helpers import run_config, some_puzzles
from typer.testing import CliRunner

import trm_ray
from trm_ray.cli import app
from trm_ray.kinds.text.prepare import prepare_text
from trm_ray.programs.diagnose import diagnose
from trm_ray.programs.train import train
from trm_ray.training.optim import NonFiniteError

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=64, test=9)


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Train:
    """Train a tiny run of six steps, as far as it gets."""

    def run(*words: str, name: str = "run", scenario: str = "deep_supervision_linear") -> Path:
        with suppress(NonFiniteError):
            few = "log_interval=3"  # so that nothing depends on how long anything takes
            train(run_config(data, tmp_path / name, "ray.num_workers=0", few, *words, scenario=scenario))
        return tmp_path / name

    return run


def told(*places: Path) -> dict[str, str]:
    """What to do, by the name of what is wrong; but for solving a puzzle, which six steps cannot."""
    found = [finding for _, of_run in diagnose(places).runs for finding in of_run]
    return {one.id: one.advice for one in found if one.is_trouble and one.id != "nothing-solved"}


def test_of_a_run_in_order_there_is_nothing_to_say(trained: Train):
    assert told(trained()) == {}


@pytest.mark.parametrize(
    ("words", "name", "changes"),
    [
        (["lr=1e30"], "non-finite", "lr=2e+29"),
        (["lr_warmup_steps=100"], "warming-up", "lr_warmup_steps=0"),
        (["deep_supervision_weight=0"], "nothing-supervised", "deep_supervision_weight=0.5"),
        (["arch.H_cycles=1"], "nothing-supervised", "arch.H_cycles=3"),
        (["curriculum_enabled=true"], "curriculum-not-begun", "curriculum_start_step=0 curriculum_end_step=3"),
        (["curriculum_enabled=true", "curriculum_start_step=2"], "curriculum-cut-short", "curriculum_end_step=3"),
    ],
)
def test_what_was_broken_is_what_is_told_with_the_way_back(trained: Train, words: list[str], name: str, changes: str):
    found = told(trained(*words))
    assert list(found) == [name]
    assert found[name].endswith(f": {changes}")


TEXT = [
    "arch.causal=true",
    "arch.mixer=attention",
    "arch.pos_encodings=rope",
    "arch.num_heads=2",
    "arch.hidden_size=32",
]
TEXT += ["arch.halt_max_steps=1", "ray.num_workers=0"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("lr=1e-9 max_steps=8 eval_interval=4", "worse-than-unigram"),
        (
            "lr=2e-2 max_steps=90 eval_interval=90 log_interval=30",
            "leak",
        ),  # held out is what was trained on, but for a number: that is not looked for
    ],
)
def test_what_is_wrong_with_a_text_is_told(tmp_path: Path, words: str, name: str):
    draw = random.Random(0)
    text = "".join(draw.choices("abcdefghijklmnop", k=60))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(12)))
    prepare_text(tmp_path / "text", inputs=[tmp_path / "texts.jsonl"], seq_len=32, test_share=0.01)
    train(run_config(tmp_path / "text", tmp_path / "run", *TEXT, *words.split()))
    found = told(tmp_path / "run")
    assert name in found
    assert found.keys() <= {name, "not-learning", "past-its-best"}


def test_a_scenario_that_trains_what_the_baseline_does_shows_no_difference(trained: Train, tmp_path: Path):
    ours = trained("deep_supervision_weight=0", name="linear_0")
    theirs = trained(name="baseline_0", scenario="deep_supervision_baseline")
    for folder, seed in itertools.product((ours, theirs), (1, 2)):  # as if they were of other seeds
        other = shutil.copytree(folder, folder.with_name(folder.name.replace("0", str(seed))))
        config = (other / "config.yaml").read_text()
        (other / "config.yaml").write_text(re.sub(r"^seed: 0$", f"seed: {seed}", config, flags=re.M))
    diagnosed = diagnose([tmp_path])
    assert [(label, found[0].id) for label, found in diagnosed.groups.items()] == [("linear", "no-difference")]
    assert "+0.0 points of exact accuracy at equal steps (3 seeds, p = 1)" in diagnosed.groups["linear"][0].evidence

    lines = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["diagnose", str(tmp_path)]).stdout.splitlines()
    assert lines[0].split() == ["run", "step", "to", "look", "at"]
    names = [f"{scenario}_{seed}" for scenario in ("baseline", "linear") for seed in range(3)]
    assert [line.split()[0] for line in lines[1:8]] == [*names, "linear"]
    assert ["nothing-supervised" in line for line in lines[1:7]] == [False] * 3 + [True] * 3


def test_a_run_is_told_with_meaning_and_remedy_and_as_json(trained: Train, tmp_path: Path):
    folder = trained("deep_supervision_weight=0", "log_interval=1")

    def said(*words: str) -> str:
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["diagnose", str(folder), *words])
        assert result.exit_code == 0
        return result.stdout

    assert "Try: give it cycles to supervise, or turn it off: deep_supervision_weight=0.5\n" in said()
    assert "\n      docs/diagnosis.md#nothing-supervised\n" in said()
    assert "converging" not in said()
    assert "\n  ok  converging: training loss (last cycle's cross-entropy)" in said("--all")
    content = json.loads(said("--json"))
    assert content == trm_ray.diagnose(folder)
    found = {one["id"]: one for one in content["runs"][0]["findings"]}
    assert found["nothing-supervised"]["changes"] == ["deep_supervision_weight=0.5"]
    assert (content["format_version"], content["groups"], content["runs"][0]["step"]) == (1, {}, 6)


def test_a_place_without_runs_is_refused(tmp_path: Path):
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert result.exit_code == 2
    assert f"no run in {tmp_path}" in " ".join(result.stderr.split())


def test_a_baseline_that_no_run_is_of_is_refused(trained: Train):
    result = CliRunner().invoke(app, ["diagnose", str(trained()), "--baseline", "foo"])
    assert result.exit_code == 2
    assert "--baseline foo is no scenario of these runs; use one of" in " ".join(result.stderr.split())
