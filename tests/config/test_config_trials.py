"""What trials are called: short enough for any file system, and no two alike."""

from typing import Any

import pytest

from trm_ray.config import SweepConfig, trial_configs
from trm_ray.config.trials import MOST_BYTES, TrialNames, trial_name

LINEAR = "deep_supervision_linear"


def sweep(space: dict[str, Any], **changes: Any) -> SweepConfig:
    overrides = {"task": "sudoku4", "data_paths": ["d"]}
    overrides = {key: value for key, value in overrides.items() if key not in space}
    values = {"scenarios": [LINEAR], "overrides": overrides, "search_space": space}
    return SweepConfig.model_validate({**values, **changes})


def names(of: SweepConfig) -> list[str]:
    found = TrialNames(of)
    return [found.of(number, config, {}) for number, config in enumerate(trial_configs(of))]


@pytest.mark.parametrize(
    ("space", "sampled", "told"),
    [
        ({}, {}, ""),
        ({"weight_decay": [0.00025]}, {}, "-weight_decay=0.00025"),
        ({"lr": [1e4]}, {}, "-lr=1e4"),
        ({"weight_decay": {"uniform": [0.0, 1.0]}}, {"weight_decay": 1 / 3}, "-weight_decay=0.3333"),
        ({"arch.num_heads": {"choice": [1, 2]}}, {"arch.num_heads": 2}, "-arch.num_heads=2"),
        ({"data_paths_test": {"choice": [["a/b"], ["c d"]]}}, {"data_paths_test": ["c d"]}, "-data_paths_test=_c_d_"),
        ({"curriculum_enabled": [True]}, {}, "-curriculum_enabled=True"),
    ],
)
def test_a_trial_is_named_by_what_sets_it_apart(space: dict[str, Any], sampled: dict[str, Any], told: str):
    of = sweep(space)
    assert trial_name(of, trial_configs(of)[0], sampled) == f"{LINEAR}-seed0{told}"


def test_the_longest_names_of_the_shipped_sweeps_are_whole():
    space = {
        "deep_supervision_schedule": ["exponential_decay"],
        "deep_supervision_weight": [0.3],
        "curriculum_enabled": [False],
    }
    (name,) = names(sweep(space, seeds=[4294967295]))
    assert name == (
        "deep_supervision_linear-seed4294967295-deep_supervision_schedule=exponential_decay"
        "-deep_supervision_weight=0.3-curriculum_enabled=False"
    )


LONG = {
    "weight_decay": [0.1, 0.2],
    "beta1": [0.9],
    "beta2": [0.95],
    "deep_supervision_schedule": ["linear_decay"],
    "deep_supervision_weight": [0.5],
    "lr_min_ratio": [0.1],
    "grad_clip_norm": [1.0],
    "arch.residual_init_scale": [0.1],
    "arch.halt_exploration_prob": [0.1],
    "arch.rms_norm_eps": [1e-5, 1e-6],
    "puzzle_emb_lr": [1e-2],
}


def test_a_long_search_space_makes_names_that_any_file_system_takes_and_that_differ():
    found = names(sweep(LONG))
    assert len(set(found)) == 4
    assert max(map(len, found)) == MOST_BYTES < 200
    assert found[0].startswith(f"{LINEAR}-seed0-weight_decay=0.1-beta1=0.9-")
    assert found == names(sweep(LONG)), "a resumed sweep finds its trials by their names"


@pytest.mark.parametrize(
    "space",
    [
        {"data_paths": [["data/a"], ["data_a"]]},
        {"weight_decay": [0.10001, 0.10002]},
        {"data_paths": [["d"], ["ä"], ["ö"], ["/"]]},
    ],
    ids=str,
)
def test_values_that_only_differ_in_what_a_name_leaves_out_are_kept_apart(space: dict[str, Any]):
    found = names(sweep(space))
    assert len(set(found)) == len(found)
    assert all(name.isascii() and "/" not in name for name in found)


def test_values_that_are_drawn_twice_are_two_trials_of_the_same_order_each_time():
    of = sweep({"beta1": {"choice": [0.8, 0.9]}}, num_samples=4)
    (config,) = trial_configs(of)
    drawn = [0.8, 0.9, 0.8, 0.8]
    first, second = TrialNames(of), TrialNames(of)
    found = [first.of(f"id_{i}", config, {"beta1": value}) for i, value in enumerate(drawn)]
    assert found[:2] == [f"{LINEAR}-seed0-beta1=0.8", f"{LINEAR}-seed0-beta1=0.9"]
    assert len(set(found)) == 4
    assert found == [second.of(i, config, {"beta1": value}) for i, value in enumerate(drawn)]
    assert found[2] == first.of("id_2", config, {"beta1": 0.8}), "asked again, the same"
