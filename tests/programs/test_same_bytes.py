"""The five scenarios by two ways through the code: the command's own, and the parts put together by hand."""

from pathlib import Path

import pytest
import torch
from helpers import assert_same
from run_helpers import run_config, some_puzzles

from trm_ray.config import Config
from trm_ray.data.format import read_split
from trm_ray.data.stream import RowStream
from trm_ray.kinds.registry import symmetry_from
from trm_ray.model.trm import Batch
from trm_ray.programs.train import train
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.session import Session
from trm_ray.training.state import TrainState, build_recipe
from trm_ray.training.step import train_step

NUM_STEPS = 30
SCENARIOS = ("baseline", "constant", "linear", "exponential", "curriculum")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=100, test=9)


def configured(scenario: str, data: Path, folder: Path) -> Config:
    words = [f"max_steps={NUM_STEPS}", "eval_interval=10", "log_interval=7", "ray.num_workers=0"]
    ramp = ["curriculum_start_step=5", "curriculum_end_step=20"]
    more = ["arch.H_cycles=3", "arch.halt_exploration_prob=0.5", "arch.halt_max_steps=4", "ema=true", *ramp]
    return run_config(data, folder, *words, *more, scenario=f"deep_supervision_{scenario}")


def by_hand(plan: RunPlan) -> TrainState:
    """Take the steps and nothing else: no evaluation, log or checkpoint between them."""
    rows = read_split(plan.train_paths[0], "train")
    symmetry = symmetry_from(plan.info.symmetry, plan.identifiers())
    config = plan.config
    stream = RowStream(rows, batch_size=config.global_batch_size, seed=config.seed, symmetry=symmetry)
    session = Session(plan.folder, torch.device("cpu"), stream.batches, lambda whole: [], lambda *row: None)
    state, recipe = TrainState(config, plan.shape, session.device), build_recipe(config, plan.num_steps)
    for _, tokens in zip(range(NUM_STEPS), stream.batches(0), strict=False):
        arrays = (tokens.inputs, tokens.labels, tokens.puzzle_identifiers)
        train_step(state, recipe, [Batch(*map(torch.from_numpy, arrays))], session)
    return state


def begun(scenario: str, seed: int, data: Path, folder: Path) -> tuple[dict[str, torch.Tensor], list[bytes]]:
    """The weights that a run begins with, and its first batches."""
    config = configured(scenario, data, folder).model_copy(update={"seed": seed})
    plan = plan_run(config)
    symmetry = symmetry_from(plan.info.symmetry, plan.identifiers())
    rows = read_split(plan.train_paths[0], "train")
    batches = RowStream(rows, batch_size=config.global_batch_size, seed=seed, symmetry=symmetry).batches(0)
    first = [next(batches) for _ in range(8)]
    state = TrainState(config, plan.shape, torch.device("cpu"))
    return state.model.state_dict(), [batch.inputs.tobytes() + batch.labels.tobytes() for batch in first]


@pytest.mark.parametrize("scenario", SCENARIOS[1:])
def test_runs_of_one_seed_share_initial_weights_and_the_order_of_the_data(scenario: str, data: Path, tmp_path: Path):
    """So that seeds are pairs, which a comparison rests on."""
    weights, batches = begun(scenario, 3, data, tmp_path)
    baseline, others = begun("baseline", 3, data, tmp_path)
    assert_same(weights, baseline)
    assert batches == others
    of_another_seed = begun(scenario, 4, data, tmp_path)
    assert batches != of_another_seed[1]
    assert any(not torch.equal(weights[name], value) for name, value in of_another_seed[0].items())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_s_command_and_its_steps_alone_end_in_the_same_bytes(scenario: str, data: Path, tmp_path: Path):
    trained = train(configured(scenario, data, tmp_path / "run"))
    saved = load_checkpoint(trained.plan.folder / "final_model")
    alone = by_hand(plan_run(configured(scenario, data, tmp_path / "nowhere")))
    assert saved["step"] == alone.step == NUM_STEPS
    state = alone.state_dict(
        Session(tmp_path, torch.device("cpu"), lambda k: iter(()), lambda whole: [], lambda *row: None)
    )
    parts = ("model", "optimizer", "ema", "carry", "generator")
    assert_same({part: saved[part] for part in parts}, {part: state[part] for part in parts})


def test_the_scenarios_differ(data: Path, tmp_path: Path):
    """Else the test above would show little."""
    ends = [by_hand(plan_run(configured(scenario, data, tmp_path / scenario))) for scenario in SCENARIOS]
    weights = {bytes(next(end.model.parameters()).detach().numpy().tobytes()) for end in ends}
    assert len(weights) == len(SCENARIOS)
