"""Held-out puzzles solved by the models of some runs: which puzzles, which runs, and what is shown of the answers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_helpers import arc_run, checkpoint
from run_helpers import some_puzzles

from trm_ray.data.format import read_split
from trm_ray.interop.loading import load_model
from trm_ray.kinds.tokens import Tokens
from trm_ray.model.trm import Batch
from trm_ray.programs.gallery import NUM_PUZZLES, galleries, solved_at, spread_out
from trm_ray.reporting.numbers.groups import Group
from trm_ray.reporting.run_log import Run
from trm_ray.training.inference import run_segments


def group(label: str, *runs: tuple[Path, int], **config: Any) -> Group:
    """Runs as their folders tell them, which here hold checkpoints alone."""
    made = (Run(folder, folder.name, {"seed": seed, **config}, (), finished=True) for folder, seed in runs)
    return Group(label, label, tuple(made))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "data", train=64, test=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return checkpoint(tmp_path_factory.mktemp("runs") / "run", data)


def test_the_boards_are_the_models_likeliest_tokens_after_every_cycle(run: Path, data: Path):
    [gallery] = galleries([group("ours", (run, 0), data_paths=[str(data)], task="sudoku4")])
    model, rows = load_model(run), read_split(data, "test")
    batch = Batch(*map(torch.from_numpy, (rows.inputs, rows.labels, rows.puzzle_identifiers)))
    logits = [cycle for output in run_segments(model, batch) for cycle in output.cycle_logits]
    assert gallery.num_depths == len(logits) == model.halt_max_steps * model.H_cycles
    assert gallery.num_cycles == model.H_cycles
    shown = {"".join(puzzle.question.symbols.flat): puzzle for puzzle in gallery.puzzles}
    assert len(shown) == NUM_PUZZLES
    symbols = Tokens(16, 6).symbols
    for inputs, labels, *found in zip(
        rows.inputs, rows.labels, *(one.argmax(-1).numpy() for one in logits), strict=True
    ):
        if puzzle := shown.pop("".join(symbols(inputs)), None):
            [answer] = puzzle.answers
            for stage in answer.stages:
                for tokens in found[stage.first - 1 : stage.last]:
                    assert "".join(stage.board.symbols.flat) == "".join(symbols(tokens))
                    assert stage.board.wrong.ravel().tolist() == (tokens != labels).tolist()
                    assert stage.num_wrong == (tokens != labels).sum()
            assert (answer.stages[0].first, answer.stages[-1].last) == (1, len(logits))
    assert not shown


def test_a_puzzle_counts_as_solved_from_where_it_stays_solved():
    solved = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)  # by depth and puzzle
    answers, labels = solved[:, :, None].astype(int), np.ones((3, 1), int)
    assert solved_at(answers, labels).tolist() == [3, 2, 4]


def test_puzzles_are_chosen_at_equal_distances_from_the_easiest_to_the_hardest():
    assert spread_out(np.array([9, 1, 5, 3, 7]), 3).tolist() == [1, 2, 0]
    assert spread_out(np.array([2, 1]), 2).tolist() == [1, 0]


def test_the_runs_are_those_of_the_first_seed_that_all_scenarios_have(run: Path, data: Path, tmp_path: Path):
    paths = {"data_paths": [str(data)]}
    groups = [
        group("first", (tmp_path / "lost", 0), (run, 1), (run, 2), **paths),
        group("second", (run, 0), (run, 2), **paths),
        group("third", (tmp_path / "gone", 2), **paths),
    ]
    [gallery] = galleries(groups)
    assert [answer.label for answer in gallery.puzzles[0].answers] == ["first", "second"]
    assert gallery.words[0] == "No checkpoint is left of third."
    assert "Models of seed 2 after 7 steps, averaged weights." in gallery.words[1]


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ("checkpoint", "no run here has a checkpoint."),
        ("data", "the held-out puzzles are not in .*gone; write the report where the runs were started."),
        ("time", "on this machine it would take minutes; trm-ray report draws it all the same."),
    ],
)
def test_what_cannot_be_shown_is_told(run: Path, data: Path, tmp_path: Path, lacking: str, words: str):
    folder = tmp_path if lacking == "checkpoint" else run
    place = tmp_path / "gone" if lacking == "data" else data
    [gallery] = galleries([group("ours", (folder, 0), data_paths=[str(place)])], 0 if lacking == "time" else None)
    assert gallery.puzzles == ()
    assert re.search(f"There is no gallery: {words}", gallery.words[-1])


def test_tasks_have_a_gallery_each_and_arc_grids_their_own_sizes(run: Path, data: Path, tmp_path: Path):
    arc, arc_data = arc_run(tmp_path)
    ours, theirs = galleries(
        [
            group("ours", (run, 0), data_paths=[str(data)]),
            group("arc", (arc, 0), data_paths=[str(arc_data)], task="arc"),
        ]
    )
    assert (ours.title, theirs.title) == ("data", "arc")
    assert {puzzle.question.symbols.shape for puzzle in theirs.puzzles} <= {(2, 2), (1, 3), (3, 1)}
    assert all(answer.stages for puzzle in theirs.puzzles for answer in puzzle.answers)
