"""The shipped files say what the project promises."""

import re

import pytest
import yaml
from config_helpers import CONFIGS, SCENARIOS, SWEEPS, TASKS, load, sweep

from trm_ray.config import flat, load_config, load_sweep, trial_configs


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("task", TASKS)
def test_every_scenario_loads_with_every_task(scenario, task):
    config = load(f"task={task}", name=scenario)
    assert (config.config_name, config.task) == (scenario, task)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_loads(name):
    assert sweep(name=name).name == name


def test_the_folders_hold_what_the_project_promises():
    assert {*FIVE_SCENARIOS, *OTHER_SCHEDULES, *PATHS, "depth_curriculum"} == set(SCENARIOS)
    assert {"sudoku4", "sudoku6"} <= set(TASKS)
    assert {"five_scenarios", "schedule_variants", "all_schedules"} <= set(SWEEPS)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_opens_with_the_command_that_uses_it(path):
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    arguments = re.fullmatch(r"# trm-ray (train|sweep) --config-name (\S+)((?: \S+=\S+)*)", first)
    assert arguments is not None
    assert second.startswith("# ")
    loader = load_config if arguments[1] == "train" else load_sweep
    loaded = loader(arguments[2], arguments[3].split(), config_dir=CONFIGS)
    assert path.stem in (getattr(loaded, "config_name", None), getattr(loaded, "task", None), arguments[2])


# The table of the original quick start: scenario -> (enabled, schedule, weight, curriculum).
FIVE_SCENARIOS = {
    "deep_supervision_baseline": (False, None, None, False),
    "deep_supervision_constant": (True, "constant", 0.5, False),
    "deep_supervision_linear": (True, "linear_decay", 0.5, False),
    "deep_supervision_exponential": (True, "exponential_decay", 0.5, False),
    "deep_supervision_curriculum": (True, "linear_decay", 0.7, True),
}


OTHER_SCHEDULES = {
    "deep_supervision_inverse": (True, "inverse_decay", 0.5, False),
    "deep_supervision_last_two": (True, "last_two", 0.5, False),
    "deep_supervision_first_and_last": (True, "first_and_last", 0.5, False),
}
PATHS = ("bptt_last", "detached")


@pytest.mark.parametrize(("name", "expected"), [*FIVE_SCENARIOS.items(), *OTHER_SCHEDULES.items()])
def test_the_scenarios_supervise_as_the_tables_say(name, expected):
    config = load(name=name)
    enabled, schedule, weight, curriculum = expected
    assert (config.deep_supervision_enabled, config.curriculum_enabled) == (enabled, curriculum)
    if enabled:
        assert (config.deep_supervision_schedule, config.deep_supervision_weight) == (schedule, weight)


def test_the_controls_differ_from_the_baseline_and_from_linear_in_the_gradients_path_alone():
    control, detached = (flat(load(name=name)) for name in ("bptt_last", "detached"))
    baseline, linear = (flat(load(name=f"deep_supervision_{name}")) for name in ("baseline", "linear"))
    named = ("config_name", "log_dir")
    assert {key for key in control if control[key] != baseline[key]} - set(named) == {"recurrent_grad_depth"}
    assert {key for key in detached if detached[key] != linear[key]} - set(named) == {"detach_cycles"}


def test_the_curriculum_ramps_from_1000_to_10000_unless_the_task_is_shorter():
    long, short = (load(f"task={task}", name="deep_supervision_curriculum") for task in ("arc1", "sudoku6"))
    assert (long.curriculum_start_step, long.curriculum_end_step) == (1000, 10000)
    assert (short.curriculum_start_step, short.curriculum_end_step) == (60, 360)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_says_how_to_supervise_and_nothing_about_data(name):
    keys = set(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")))
    how = ("deep_supervision_", "curriculum_", "recurrent_grad_depth", "detach_cycles", "depth_curriculum")
    assert {key for key in keys if not key.startswith(how)} == {"task"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_does_not_choose_the_supervision(name):
    keys = set(yaml.safe_load((CONFIGS / "task" / f"{name}.yaml").read_text(encoding="utf-8")))
    chosen = {key for key in keys if key.startswith(("deep_supervision_", "curriculum_"))}
    assert chosen <= {"curriculum_start_step", "curriculum_end_step"}


@pytest.mark.parametrize(
    ("task", "steps", "clues"), [("sudoku9", 5000, [24, 32]), ("sudoku6", 600, [9, 18]), ("sudoku4", 300, [4, 8])]
)
def test_a_short_task_ramps_its_curriculum_from_10_to_60_percent_of_its_steps(task, steps, clues):
    config = load(f"task={task}")
    assert config.max_steps == steps
    assert (config.curriculum_start_step, config.curriculum_end_step) == (steps * 0.1, steps * 0.6)
    assert config.generator is not None
    assert config.generator.clues == clues


@pytest.mark.parametrize("task", ["text_bytes_tiny", "text_shakespeare", "addition"])
def test_a_task_of_text_is_causal_has_one_segment_and_ramps_its_curriculum_as_the_others_do(task):
    config = load(f"task={task}")
    assert (config.arch.causal, config.arch.halt_max_steps) == (True, 1)
    assert config.arch.L_layers * config.arch.H_cycles * (config.arch.L_cycles + 1) == 12
    assert config.max_steps is not None
    ramp = (config.curriculum_start_step, config.curriculum_end_step)
    assert ramp == (config.max_steps * 0.1, config.max_steps * 0.6)


def test_the_plain_half_of_the_comparison_on_text_differs_in_the_network_alone():
    recursive, plain = (trial_configs(sweep(name=f"text_comparison{half}")) for half in ("", "_plain"))
    assert [config.config_name for config in recursive] == [*FIVE_SCENARIOS] * 3
    passes = [(c.arch.L_layers, c.arch.H_cycles, c.arch.L_cycles) for c in plain]
    assert passes == [(2, 1, 0)] * 3
    one, other = (flat(configs[0]) for configs in (recursive, plain))
    assert {key for key in one if one[key] != other[key]} - {"log_dir"} == {"arch.H_cycles", "arch.L_cycles"}


def test_the_recursive_llm_has_the_sizes_of_its_family():
    config = load("task=recursive_llm")
    arch = config.arch
    assert (arch.hidden_size, arch.num_heads, arch.L_layers, arch.expansion) == (2048, 4, 4, 2)
    assert (arch.H_cycles, arch.L_cycles, arch.causal, arch.forward_dtype) == (3, 3, True, "bfloat16")
    assert (config.global_batch_size, config.lr, config.lr_min_ratio, config.lr_warmup_steps) == (768, 1e-4, 0.1, 2000)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.95, 0.1)


def test_the_epochs_of_a_capped_task_last_longer_than_its_steps():
    for config in map(load, ("task=sudoku4", "task=sudoku6", "task=sudoku9")):
        assert config.generator is not None
        assert config.epochs is not None
        assert config.max_steps is not None
        assert config.epochs * config.generator.train / config.global_batch_size > config.max_steps


def test_the_five_scenarios_run_once_each_and_the_baseline_is_first_and_kept():
    loaded = sweep()
    assert [variant["config_name"] for variant in loaded.variants()] == list(FIVE_SCENARIOS)
    assert loaded.keep == ["deep_supervision_baseline"]
    assert (loaded.asha.enabled, loaded.asha.metric, loaded.asha.mode) == (False, "eval/accuracy", "max")
    for config in trial_configs(loaded):
        assert config.lr_warmup_steps < loaded.asha.grace_period < (config.max_steps or 0)


def test_all_schedules_are_every_scenario_that_is_shipped_on_three_seeds_without_stopping():
    loaded = sweep(name="all_schedules")
    assert [*loaded.scenarios] == [*FIVE_SCENARIOS, *OTHER_SCHEDULES, *PATHS]
    assert (loaded.seeds, loaded.asha.enabled) == ([0, 1, 2], False)
    assert {(config.task, config.max_steps) for config in trial_configs(loaded)} == {("sudoku6", 400)}


def test_the_schedule_variants_are_three_schedules_by_three_weights_by_the_ramp():
    configs = trial_configs(sweep(name="schedule_variants"))
    seen = {
        (config.deep_supervision_schedule, config.deep_supervision_weight, config.curriculum_enabled)
        for config in configs
    }
    assert len(configs) == len(seen) == 3 * 3 * 2
    assert {weight for _, weight, _ in seen} == {0.3, 0.5, 0.7}


# The commands of the original's README on top of its config/cfg_pretrain.yaml and config/arch/trm.yaml:
# task -> (mixer, positions, L_cycles, epochs, weight decay, puzzle_emb_lr, puzzle_emb_weight_decay).
RECIPES = {
    "sudoku_extreme_mlp": ("mlp", "none", 6, 50_000, 1.0, 1e-4, 1.0),
    "sudoku_extreme": ("attention", "rope", 6, 50_000, 1.0, 1e-4, 1.0),
    "maze_hard": ("attention", "rope", 4, 50_000, 1.0, 1e-4, 1.0),
    "arc1": ("attention", "rope", 4, 100_000, 0.1, 1e-2, 0.1),
    "arc2": ("attention", "rope", 4, 100_000, 0.1, 1e-2, 0.1),
}


@pytest.mark.parametrize("task", RECIPES)
def test_the_benchmarks_are_trained_as_the_original_trains_them(task):
    config = load(f"task={task}", name="deep_supervision_baseline")
    arch = config.arch
    assert RECIPES[task] == (
        arch.mixer,
        arch.pos_encodings,
        arch.L_cycles,
        config.epochs,
        config.weight_decay,
        config.puzzle_emb_lr,
        config.puzzle_emb_weight_decay,
    )
    assert (arch.H_cycles, arch.L_layers, arch.hidden_size, arch.num_heads, arch.expansion) == (3, 2, 512, 8, 4)
    assert (arch.puzzle_emb_ndim, arch.puzzle_emb_len, arch.ffn_multiple_of) == (512, 16, 256)
    assert (arch.halt_max_steps, arch.halt_exploration_prob, arch.forward_dtype) == (16, 0.1, "bfloat16")
    assert (arch.residual_init_scale, arch.mixer_norm) == (1.0, "positions")
    assert (config.global_batch_size, config.lr, config.lr_min_ratio, config.lr_warmup_steps) == (768, 1e-4, 1.0, 2000)
    assert (config.optimizer, config.beta1, config.beta2, config.grad_clip_norm) == ("adam_atan2", 0.9, 0.95, None)
    assert (config.loss_type, config.ema, config.ema_rate) == ("stablemax_cross_entropy", True, 0.999)
