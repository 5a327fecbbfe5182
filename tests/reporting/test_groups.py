from collections.abc import Callable
from typing import Any

import pytest

from trm_ray.reporting.numbers.groups import group_runs, num_differences, spread_over_seeds
from trm_ray.reporting.run_log import Run

MakeRun = Callable[..., Run]


def evaluated(losses: list[float], exact: list[float], every: int = 100, step_s: float = 0.5) -> list[dict[str, float]]:
    return [
        {
            "step": every * (i + 1),
            "wall_s": step_s * every * (i + 1),
            "eval/loss": losses[i],
            "eval/exact_accuracy": exact[i],
            "throughput/steps_per_s": 1 / step_s,
        }
        for i in range(len(losses))
    ]


@pytest.fixture
def two_scenarios(make_run: MakeRun) -> list[Run]:
    """Linear: seeds of losses 0.2, 0.4 and exact 0.8, 0.6; the baseline: 0.5 and stopped at step 200 of 400."""
    baseline = {"config_name": "deep_supervision_baseline"}
    return [
        make_run(evaluated([1.0, 0.6, 0.3, 0.2], [0.0, 0.5, 0.7, 0.8]), "l0", seed=0),
        make_run(evaluated([1.0, 0.7, 0.35, 0.4], [0.0, 0.4, 0.65, 0.6]), "l1", seed=1),
        make_run(evaluated([1.2, 0.5], [0.1, 0.3], step_s=0.25), "b0", finished=False, **baseline),
    ]


def test_runs_that_differ_in_seed_folder_and_logging_alone_are_one_group(make_run: MakeRun) -> None:
    runs = [make_run([], str(seed), seed=seed, log_dir=f"runs/{seed}", log_interval=seed + 1) for seed in (2, 0, 1)]
    (group,) = group_runs(runs)
    assert group.label == "linear"
    assert [run.seed for run in group.runs] == [0, 1, 2]


def test_a_run_of_a_release_that_did_not_know_a_key_is_one_with_its_default(make_run: MakeRun):
    runs = [make_run([], "old", seed=0), make_run([], "new", seed=1, segments_per_update=1)]
    runs.append(make_run([], "other", seed=2, segments_per_update=2))
    assert "segments_per_update" not in runs[0].config
    groups = {group.label: [run.seed for run in group.runs] for group in group_runs(runs)}
    assert groups == {"linear · segments_per_update=1": [0, 1], "linear · segments_per_update=2": [2]}


def test_a_variant_is_compared_with_the_baseline_of_its_own_depth_curriculum(make_run: MakeRun):
    stages = [[0.0, 1, 1], [0.5, 3, 3]]
    baselines = [make_run([], f"b{i}", config_name="deep_supervision_baseline", depth_curriculum=of)
                 for i, of in enumerate((None, stages))]  # fmt: skip
    linear = make_run([], "l", depth_curriculum=stages)
    assert [num_differences(linear, baseline) for baseline in baselines] == [1, 0]
    labels = [group.label for group in group_runs([*baselines, linear])]
    assert labels == [f"baseline · depth_curriculum={of}" for of in ("[0.0, 1, 1]+[0.5, 3, 3]", "null")] + ["linear"]


def test_weights_of_ones_own_are_told_in_the_label(make_run: MakeRun):
    runs = [make_run([], str(i), deep_supervision_weights=own) for i, own in enumerate(([0.1, 0.3, 1.0], None))]
    labels = [group.label for group in group_runs(runs)]
    assert labels == ["linear · weights=[0.1, 0.3, 1]", "linear · weights=null"]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("eval_interval", (100, 50)),
        ("eval_batch_size", (None, 64)),
        ("keep_last", (None, 2)),
        ("keep_best", (0, 1)),
        ("log_interval", (10, 20)),
        ("prepare_command", (None, "make data")),
        ("ray", ({"start_timeout_s": 600.0}, {"start_timeout_s": 60.0})),
        ("generator", ({"name": "sudoku", "check_existing": True}, {"name": "sudoku", "check_existing": False})),
    ],
)
def test_a_key_that_does_not_change_training_makes_no_variant(make_run: MakeRun, key: str, values: tuple[Any, Any]):
    runs = [make_run([], str(seed), seed=seed, **{key: value}) for seed, value in enumerate(values)]
    assert [(group.label, len(group.runs)) for group in group_runs(runs)] == [("linear", 2)]
    assert num_differences(*runs) == 0


def test_variants_are_labelled_by_the_keys_in_which_they_differ(make_run: MakeRun) -> None:
    runs = [
        make_run([], "a", lr=5e-5),
        make_run([], "b", lr=1e-4),
        make_run([], "c", lr=1e-4, deep_supervision_weight=0.7),
        make_run([], "d", lr=1e-4, config_name="deep_supervision_baseline", deep_supervision_weight=0.0),
    ]
    assert [group.label for group in group_runs(runs)] == [
        "baseline · lr=1e-4",
        "linear · lr=1e-4 · weight=0.5",
        "linear · lr=1e-4 · weight=0.7",
        "linear · lr=5e-5 · weight=0.5",
    ]


def test_seed_scenario_and_length_do_not_make_runs_differ(make_run: MakeRun) -> None:
    run = make_run([], "a")
    same = make_run([], "b", config_name="deep_supervision_baseline", deep_supervision_weight=0.0, seed=3, max_steps=9)
    assert num_differences(run, same) == 0
    assert num_differences(run, make_run([], "c", lr=1e-4, arch={"H_cycles": 2})) == 4  # lr, and three keys of arch


def test_tasks_are_told_apart_in_the_labels(make_run: MakeRun) -> None:
    runs = [make_run([], "a"), make_run([], "b", task="sudoku4", lr=1e-4, arch={"H_cycles": 2})]
    assert [group.label for group in group_runs(runs)] == ["linear · sudoku4", "linear · sudoku6"]


def test_scenarios_keep_their_usual_order(make_run: MakeRun) -> None:
    names = ["zebra", "curriculum", "exponential", "linear", "constant", "baseline"]
    runs = [make_run([], name, config_name=f"deep_supervision_{name}") for name in names]
    assert [group.scenario for group in group_runs(runs)] == [*reversed(names[1:]), "zebra"]


def test_a_band_is_mean_lowest_and_highest_of_the_seeds_that_got_there(two_scenarios: list[Run]) -> None:
    longer, shorter = two_scenarios[0], two_scenarios[2]
    band = spread_over_seeds([longer.series("eval/loss"), shorter.series("eval/loss")])
    assert band.steps.tolist() == [100, 200, 300, 400]
    assert band.mean == pytest.approx([1.1, 0.55, 0.3, 0.2])
    assert band.low == pytest.approx([1.0, 0.5, 0.3, 0.2])
    assert band.high == pytest.approx([1.2, 0.6, 0.3, 0.2])
    assert band.count.tolist() == [2, 2, 1, 1]
    assert band.wall_s == pytest.approx([37.5, 75.0, 150.0, 200.0])
