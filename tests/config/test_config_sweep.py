"""What a sweep stands for, and its mistakes."""

import pytest
from config_helpers import LINEAR, complaint, sweep, write

from trm_ray.config import Distribution, load_sweep, to_yaml, trial_configs
from trm_ray.config.trials import trial_name

SHIPPED = {"keep_last": 2, "keep_best": 1}  # what the file sets for every trial


def test_all_scenarios_of_the_first_seed_come_first():
    loaded = sweep("scenarios=[deep_supervision_baseline,deep_supervision_linear]", "seeds=[0,1]",
                   "search_space.lr=[1e-3,2e-3]")  # fmt: skip
    order = [(v["seed"], v["lr"], v["config_name"][17:]) for v in loaded.variants()]
    assert order == [
        (0, 0.001, "baseline"), (0, 0.001, "linear"), (0, 0.002, "baseline"), (0, 0.002, "linear"),
        (1, 0.001, "baseline"), (1, 0.001, "linear"), (1, 0.002, "baseline"), (1, 0.002, "linear"),
    ]  # fmt: skip


def test_a_run_key_holds_for_all_trials_and_the_grid_wins_over_the_file():
    loaded = sweep("lr=1e-3", "arch.H_cycles=2", "task=sudoku4", "search_space.weight_decay=[0,0.5]")
    assert loaded.overrides == SHIPPED | {"lr": 1e-3, "arch.H_cycles": 2, "task": "sudoku4"}
    configs = trial_configs(loaded)
    assert {(c.lr, c.arch.H_cycles, c.task, c.max_steps) for c in configs} == {(1e-3, 2, "sudoku4", 300)}
    assert [config.weight_decay for config in configs] == [0.0] * 5 + [0.5] * 5


def test_a_task_can_be_an_axis_of_the_grid():
    configs = trial_configs(sweep("search_space.task=[sudoku4,sudoku6]"))
    assert [config.max_steps for config in configs] == [300] * 5 + [600] * 5


def test_a_sweep_s_own_keys_change_the_sweep():
    loaded = sweep("seeds=[0,1,2]", "asha.enabled=false", "threshold=0.9", "log_dir=x", "group_by=config_name")
    assert (loaded.seeds, loaded.asha.enabled, loaded.threshold) == ([0, 1, 2], False, 0.9)
    assert (loaded.log_dir, loaded.group_by, loaded.overrides) == ("x", "config_name", SHIPPED)
    assert sweep().log_dir == "runs/five_scenarios"


def test_distributions_are_separate_from_the_grid():
    loaded = sweep(
        "search_space.lr={loguniform: [1e-4, 1e-2]}",
        "search_space.arch.H_cycles={randint: [1, 4]}",
        "search_space.beta1={choice: [0.8, 0.9]}",
        "search_space.weight_decay={uniform: [0, 1]}",
        "num_samples=4",
    )
    assert loaded.random_space() == {
        "lr": Distribution("loguniform", (1e-4, 1e-2)),
        "arch.H_cycles": Distribution("randint", (1, 4)),
        "beta1": Distribution("choice", (0.8, 0.9)),
        "weight_decay": Distribution("uniform", (0.0, 1.0)),
    }
    assert len(loaded.variants()) == 5


def test_a_sweep_survives_its_own_yaml(tmp_path):
    loaded = sweep("search_space.lr={loguniform: [1e-5, 1e-2]}", "search_space.beta1=[0.8,0.9]", "seeds=[3]")
    path = tmp_path / "sweep.yaml"
    path.write_text(to_yaml(loaded), encoding="utf-8")
    assert load_sweep(str(path)) == loaded


def test_a_list_of_weights_is_one_value_of_the_grid_and_names_its_trial():
    space = "search_space.deep_supervision_weights=[null, [0.1, 0.3, 1], [1, 0.7, 0.49]]"
    loaded = sweep(f"scenarios=[{LINEAR}]", "keep=[]", space)
    configs = trial_configs(loaded)
    assert [config.deep_supervision_weights for config in configs] == [None, [0.1, 0.3, 1.0], [1.0, 0.7, 0.49]]
    assert trial_name(loaded, configs[1], {}) == f"{LINEAR}-seed0-deep_supervision_weights=_0.1_0.3_1.0_"


def test_the_stages_of_a_depth_curriculum_are_one_value_of_the_grid_and_read_back_as_they_were(tmp_path):
    space = "search_space.depth_curriculum=[null, [[0, 1, 1], [0.5, 3, 3]]]"
    loaded = sweep(f"scenarios=[{LINEAR}]", "keep=[]", space)
    assert [config.depths for config in trial_configs(loaded)] == [[], [(0.0, 1, 1), (0.5, 3, 3)]]
    path = tmp_path / "five_scenarios.yaml"
    path.write_text(to_yaml(loaded), encoding="utf-8")
    assert load_sweep(str(path)) == loaded


SWEEP_MISTAKES = [
    (["foo_bar=1"], "foo_bar=1 has an unknown key; did you mean"),
    (["hidden_size=1"], "hidden_size=1 has an unknown key; did you mean `arch.hidden_size`?"),
    (["asha.grace=1"], "asha.grace=1 has an unknown key; did you mean `asha.grace_period`?"),
    (["seed=1"], "seed=1 must not be set in a sweep; use seeds="),
    (["config_name=x"], "config_name=x must not be set in a sweep; use scenarios="),
    (["lr=abc"], "lr=abc must be a number above 0"),
    (["seeds=[]"], "seeds=[] must be a list of one or more"),
    (["seeds=[1,1]"], "seeds=[1, 1] must not name one twice; use [1]"),
    (["threshold=2"], "threshold=2 must be a number from 0 to 1"),
    (
        ["keep=[deep_supervision_base]"],
        "and `deep_supervision_base` is none; did you mean `deep_supervision_baseline`?",
    ),
    (
        ["keep=[]", "scenarios=[deep_supervision_liner]"],
        "config_name=deep_supervision_liner must name an existing",
    ),
    (["group_by=learning"], "group_by=learning must be a run key; did you mean"),
    (["num_samples=2"], "num_samples=2 needs a distribution"),
    (["asha.mode=min"], "asha.mode=min must be max for asha.metric=eval/accuracy"),
    (["asha.metric=eval/loss"], "asha.mode=max must be min for asha.metric=eval/loss"),
    (
        ["asha.metric=eval/anytime_accuracy", "asha.mode=min"],
        "asha.mode=min must be max for asha.metric=eval/anytime_accuracy",
    ),
    (["asha.metric=train/total_loss"], "asha.metric=train/total_loss must be one of eval/loss"),
    (["asha.reduction_factor=1"], "asha.reduction_factor=1 must be a number above 1"),
    (["asha.max_t=50"], "asha.grace_period=100 must be at most asha.max_t=50; use asha.grace_period=25"),
    (["asha.unit=seed"], "asha.unit=seed must be one of trial, group"),
    (
        ["asha.unit=group", "search_space.lr={uniform: [0.1,0.2]}"],
        "asha.unit=group must not stand beside a distribution in search_space",
    ),
    (["final.seeds=1", "seeds=[0,1]"], "final.seeds=1 must be at least the number of seeds, 2; use final.seeds=2"),
    (
        ["final.top_k=1", "search_space.lr={uniform: [0.1,0.2]}"],
        "final.top_k=1 must not stand beside a distribution in search_space",
    ),
    (["final.best=1"], "final.best=1 has an unknown key"),
    (["max_concurrent_trials=0"], "max_concurrent_trials=0 must be"),
    (["search_space=3"], "search_space=3 must be a mapping"),
    (["search_space.hidden_size=[1]"], "did you mean `search_space.arch.hidden_size`?"),
    (["search_space.seed=[1,2]"], "search_space.seed=[1, 2] must not be set in a sweep; use seeds="),
    (["search_space.lr=1"], "search_space.lr=1 must be a list of values"),
    (["search_space.lr=[]"], "search_space.lr=[] must be a list of values"),
    (["search_space.lr=[1,abc]"], "search_space.lr=abc must be a number above 0"),
    (["search_space.lr={normal: [0,1]}"], "have one of uniform, loguniform, choice, randint"),
    (["search_space.lr={uniform: [2,1]}"], "must be [LOW, HIGH] with LOW < HIGH"),
    (["search_space.lr={uniform: [a,b]}"], "search_space.lr=a must be a number above 0"),
    (["search_space.weight_decay={loguniform: [0,1]}"], "must start above 0 on a logarithmic scale"),
    (["search_space.arch.H_cycles={uniform: [1,3]}"], "must fit the key's type; randint is for"),
    (["search_space.task={choice: [sudoku4]}"], "must be chosen when the config is loaded; in a sweep, use a grid"),
    (["search_space.generator.seed={randint: [0,9]}"], "must be a list of values (a grid): data are made before"),
    (["lr=1e-3", "search_space.lr=[1e-3]"], "lr=0.001 must not stand beside search_space.lr"),
    (
        ["ray.num_workers=2", "search_space.global_batch_size=[32,33]"],
        "global_batch_size=33 must be divisible by",
    ),
    (
        ["search_space.curriculum_start_step={randint: [0,1000]}"],
        "curriculum_start_step=999 must be less than",
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), SWEEP_MISTAKES, ids=[str(item[0]) for item in SWEEP_MISTAKES])
def test_a_mistake_in_a_sweep_is_found_before_a_trial_starts(overrides, expected):
    assert expected in complaint(sweep, *overrides)


def test_a_mistake_in_a_sweep_s_file_is_named_with_file_and_line(tmp_path):
    write(tmp_path, sweep__mine=f"scenarios: [{LINEAR}]\nsearch_space:\n  lr: [abc]\n")
    message = complaint(load_sweep, "mine", config_dir=tmp_path)
    assert message.startswith(f"{tmp_path / 'sweep' / 'mine.yaml'}:3: search_space.lr=abc must be a number")


def test_a_sweep_takes_a_folder_that_it_names_as_it_is():
    configs = trial_configs(sweep("data_paths=[data/mine]"))
    assert {config.generator.check_existing for config in configs if config.generator} == {False}
    assert {config.generator.check_existing for config in trial_configs(sweep()) if config.generator} == {True}


def test_a_sweep_on_one_s_own_data_leaves_the_generator_out():
    loaded = sweep("generator=null", "data_paths=[data/mine]")
    assert loaded.overrides == SHIPPED | {"generator": None, "data_paths": ["data/mine"]}
    assert {(config.generator, tuple(config.data_paths)) for config in trial_configs(loaded)} == {
        (None, ("data/mine",))
    }
