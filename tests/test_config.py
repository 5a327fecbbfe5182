"""Configs: what the shipped files say, which layer wins, what each mistake is answered with."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trm_ray.config import (
    Config,
    ConfigError,
    Distribution,
    SweepConfig,
    banner,
    config_from_run,
    config_names,
    flat,
    known_keys,
    load_config,
    load_sweep,
    run_dir,
    to_yaml,
    trial_configs,
    with_overrides,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SCENARIOS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))
LINEAR = "deep_supervision_linear"


def load(*overrides: str, name: str = LINEAR, **options) -> Config:
    return load_config(name, overrides, config_dir=CONFIGS, **options)


def sweep(*overrides: str, name: str = "five_scenarios") -> SweepConfig:
    return load_sweep(name, overrides, config_dir=CONFIGS)


def complaint(call, *arguments: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


# -------------------------------------------------------------------------------------------- shipped files


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("task", TASKS)
def test_every_scenario_loads_with_every_task(scenario, task):
    config = load(f"task={task}", name=scenario)
    assert (config.config_name, config.task) == (scenario, task)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_loads(name):
    assert sweep(name=name).name == name


def test_the_folders_hold_what_the_project_promises():
    names = ["baseline", "constant", "curriculum", "exponential", "linear"]
    assert [f"deep_supervision_{name}" for name in names] == SCENARIOS
    assert {"sudoku4", "sudoku6"} <= set(TASKS)
    assert {"five_scenarios", "schedule_variants"} <= set(SWEEPS)


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


@pytest.mark.parametrize(("name", "expected"), FIVE_SCENARIOS.items())
def test_the_five_scenarios_supervise_as_the_table_says(name, expected):
    config = load(name=name)
    enabled, schedule, weight, curriculum = expected
    assert (config.deep_supervision_enabled, config.curriculum_enabled) == (enabled, curriculum)
    if enabled:
        assert (config.deep_supervision_schedule, config.deep_supervision_weight) == (schedule, weight)


def test_the_curriculum_ramps_from_1000_to_10000_unless_the_task_is_shorter():
    long, short = (
        load(f"task={task}", name="deep_supervision_curriculum") for task in ("sudoku9", "sudoku6")
    )
    assert (long.curriculum_start_step, long.curriculum_end_step) == (1000, 10000)
    assert (short.curriculum_start_step, short.curriculum_end_step) == (80, 480)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_says_how_to_supervise_and_nothing_about_data(name):
    keys = set(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")))
    assert {key for key in keys if not key.startswith(("deep_supervision_", "curriculum_"))} == {"task"}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_does_not_choose_the_supervision(name):
    keys = set(yaml.safe_load((CONFIGS / "task" / f"{name}.yaml").read_text(encoding="utf-8")))
    chosen = {key for key in keys if key.startswith(("deep_supervision_", "curriculum_"))}
    assert chosen <= {"curriculum_start_step", "curriculum_end_step"}


@pytest.mark.parametrize(("task", "steps", "clues"), [("sudoku6", 800, (9, 18)), ("sudoku4", 300, (4, 8))])
def test_a_short_task_ramps_its_curriculum_from_10_to_60_percent_of_its_steps(task, steps, clues):
    config = load(f"task={task}")
    assert config.max_steps == steps
    assert (config.curriculum_start_step, config.curriculum_end_step) == (steps * 0.1, steps * 0.6)
    assert config.generator is not None
    assert config.generator.clues == clues


def test_the_epochs_of_a_capped_task_last_longer_than_its_steps():
    for config in map(load, ("task=sudoku4", "task=sudoku6")):
        assert config.generator is not None
        assert config.epochs is not None
        assert config.max_steps is not None
        assert config.epochs * config.generator.train / config.global_batch_size > config.max_steps


def test_the_general_defaults_are_the_published_ones(tmp_path):
    write(tmp_path, plain="data_paths: d\nepochs: 1\n")
    values = flat(load_config("plain", config_dir=tmp_path))
    published = {
        "global_batch_size": 768, "eval_interval": 1000, "lr": 1e-4, "lr_warmup_steps": 2000, "beta1": 0.9,
        "beta2": 0.95, "weight_decay": 0.1, "grad_clip_norm": 1.0, "deep_supervision_weight": 0.5,
        "curriculum_start_step": 1000, "curriculum_end_step": 10000, "gradient_stats_interval": 500,
        "log_interval": 100, "arch.H_cycles": 3, "arch.L_cycles": 6, "arch.L_layers": 2,
        "arch.hidden_size": 512, "arch.num_heads": 8,
        "arch.expansion": 4.0, "arch.ffn_multiple_of": 256, "arch.halt_max_steps": 16,
    }  # fmt: skip
    assert {key: values[key] for key in published} == published


# ----------------------------------------------------------------------------------------- which layer wins


@pytest.fixture
def layers(tmp_path) -> Path:
    return write(
        tmp_path,
        scenario="task: short\nlr: 2e-3\nlog_interval: 7\nbeta1: 0.5\n",
        task__short="data_paths: data/short\nmax_steps: 10\nlr: 3e-3\nlr_min_ratio: 0.3\nlog_interval: 8\n",
        task__other="data_paths: [data/other]\nmax_steps: 20\n",
    )


def test_later_layers_win_key_by_key(layers):
    config = load_config(
        "scenario", ["log_interval=10"], config_dir=layers, extra={"lr_min_ratio": 0.4, "log_interval": 9}
    )
    assert config.beta2 == 0.95  # default
    assert config.beta1 == 0.5  # scenario
    assert config.lr == 3e-3  # task over scenario
    assert config.lr_min_ratio == 0.4  # trial over task
    assert config.log_interval == 10  # key=value over all


def test_another_task_replaces_the_scenario_s_task_as_a_whole(layers):
    config = load_config("scenario", ["task=other"], config_dir=layers)
    assert (config.data_paths, config.max_steps, config.lr) == (["data/other"], 20, 2e-3)
    assert load_config("scenario", config_dir=layers, extra={"task": "other"}) == config


def test_task_null_leaves_the_task_out(layers):
    config = load_config("scenario", ["task=null", "data_paths=x", "epochs=1"], config_dir=layers)
    assert (config.task, config.max_steps, config.lr) == (None, None, 2e-3)


def test_a_section_is_merged_key_by_key_and_null_takes_the_generator_away():
    config = load("arch.hidden_size=128", "ray={num_workers: 2}", "generator.test=64")
    assert (config.arch.hidden_size, config.arch.L_cycles, config.ray.num_workers) == (128, 3, 2)
    assert config.generator is not None
    assert (config.generator.test, config.generator.train) == (64, 20000)
    assert load("generator=null").generator is None
    fresh = load("generator=null", "generator.size=9").generator
    assert fresh is not None
    assert (fresh.size, fresh.clues) == (9, None)


def test_files_of_the_given_folder_come_before_configs_here_before_the_shipped_ones(tmp_path, monkeypatch):
    given = write(tmp_path / "given", **{LINEAR: "task: sudoku6\nseed: 1\n"})
    write(tmp_path / "configs", **{LINEAR: "task: sudoku6\nseed: 2\n", "task__sudoku4": "max_steps: 5\n"})
    monkeypatch.chdir(tmp_path)
    assert load_config(LINEAR, config_dir=given).seed == 1
    assert load_config(LINEAR).seed == 2
    assert load_config("deep_supervision_constant").deep_supervision_schedule == "constant"
    assert set(TASKS) <= set(config_names("task"))


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(LINEAR).config_name == LINEAR
    assert load_sweep("five_scenarios").name == "five_scenarios"


def test_a_config_may_be_named_by_its_path(tmp_path):
    write(tmp_path, mine="task: sudoku4\n")
    config = load_config(str(tmp_path / "mine.yaml"))
    assert (config.config_name, config.log_dir, config.max_steps) == ("mine", "runs/mine", 300)
    assert load_config(f"{LINEAR}.yaml").config_name == LINEAR


# --------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".0001", "0.0001", "'1e-4'"])
def test_a_float_may_be_written_in_any_usual_way(text):
    assert load(f"lr={text}").lr == 0.0001


def test_a_float_in_a_file_may_be_1e_minus_4(tmp_path):
    write(tmp_path, mine="task: sudoku6\narch: {rms_norm_eps: 1e-6}\nbeta1: 0\n")
    config = load_config("mine", config_dir=tmp_path)
    assert (config.arch.rms_norm_eps, config.beta1) == (1e-6, 0.0)
    assert isinstance(config.beta1, float)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("max_steps=1e3", "max_steps", 1000),
        ("max_steps=null", "max_steps", None),
        ("lr=1", "lr", 1.0),
        ("ema=True", "ema", True),
        ("data_paths=[a,b]", "data_paths", ["a", "b"]),
        ("data_paths=a", "data_paths", ["a"]),
        ("arch.pos_encodings=none", "arch.pos_encodings", "none"),
        ("generator.clues=[10,12]", "generator.clues", [10, 12]),
        ("generator.clues=null", "generator.clues", None),
        ("log_dir=2026-01-31", "log_dir", "2026-01-31"),
        ("ray.storage_path=/mnt/runs", "ray.storage_path", "/mnt/runs"),
    ],
)
def test_an_override_is_read_as_the_key_s_type(override, key, value):
    read = flat(load(override))[key]
    assert read == value
    assert type(read) is type(value)


def test_a_tilde_means_home():
    assert load("log_dir=~/runs").log_dir == os.path.expanduser("~/runs")


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().lr = 1.0  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------- mistakes

DID_YOU_MEAN = [
    ("deep_supervision_wieght=0.7", "deep_supervision_weight"),
    ("hidden_size=64", "arch.hidden_size"),
    ("H_cycles=2", "arch.H_cycles"),
    ("arch.h_cycles=2", "arch.H_cycles"),
    ("num_workers=2", "ray.num_workers"),
    ("ray.workers=2", "ray.num_workers"),
    ("arch.lr=1", "lr"),
    ("size=9", "generator.size"),
    ("batch_size=64", "global_batch_size"),
    ("learning_rate=1e-4", "lr"),
    ("max-steps=5", "max_steps"),
    ("++seed=5", "seed"),
]


@pytest.mark.parametrize(("override", "meant"), DID_YOU_MEAN)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(override, meant):
    key, _, value = override.partition("=")
    line = complaint(load, override)
    assert line.startswith(f"{key}=")
    assert line.endswith(f"has an unknown key; did you mean `{meant}`?")
    assert value.lstrip("1e-") in line


MISTAKES = [
    # wrong type
    ("lr=abc", "lr=abc must be a number above 0; the default is 0.0001"),
    ("lr=true", "lr=true must be a number above 0"),
    ("lr=", "lr=null must be a number above 0"),
    ("lr=[1]", "lr=[1] must be a number above 0"),
    ("lr=.nan", "lr=nan must be a number above 0"),
    ("lr=.inf", "lr=inf must be a number above 0"),
    ("weight_decay=1e400", "weight_decay=1e400 must be a number of at least 0"),
    ("max_steps=3.7", "max_steps=3.7 must be a whole number of at least 1 or null; use 3 or 4"),
    ("seed=true", "seed=true must be a whole number"),
    ("ema=1", "ema=1 must be true or false; the default is false"),
    ("ema=maybe", "ema=maybe must be true or false"),
    ("log_dir=5", "log_dir=5 must be text; quote it"),
    ("data_paths=3", "data_paths=3 must be a list of text"),
    ("data_paths=[a, 1]", "data_paths=[a, 1] must be a list of text"),
    ("arch=5", "arch=5 must be a section of keys; write arch.KEY=VALUE"),
    ("generator.clues=9", "generator.clues=9 must be null or [MIN, MAX]"),
    ("generator.clues=[9]", "generator.clues=[9] must be null or [MIN, MAX]"),
    ("seed=&a [*a]", "seed=[[[...]]] must be a whole number"),
    # impossible value
    ("lr=0", "lr=0 must be a number above 0"),
    ("lr=-1e-4", "lr=-1e-4 must be a number above 0"),
    ("lr_min_ratio=2", "lr_min_ratio=2 must be a number from 0 to 1"),
    ("lr_warmup_steps=-1", "lr_warmup_steps=-1 must be a whole number of at least 0"),
    ("beta1=1", "beta1=1 must be a number from 0 to below 1"),
    ("beta2=-0.1", "beta2=-0.1 must be a number from 0 to below 1"),
    (
        "deep_supervision_weight=1.5",
        "deep_supervision_weight=1.5 must be a number from 0 to 1; the default is 0.5",
    ),
    ("deep_supervision_weight=-1", "deep_supervision_weight=-1 must be a number from 0 to 1"),
    ("eval_interval=0", "eval_interval=0 must be a whole number of at least 1; the default is 1000"),
    ("log_interval=0", "log_interval=0 must be"),
    ("gradient_stats_interval=0", "gradient_stats_interval=0 must be"),
    ("global_batch_size=0", "global_batch_size=0 must be"),
    (
        "arch.halt_max_steps=0",
        "arch.halt_max_steps=0 must be a whole number of at least 1; the default is 16",
    ),
    ("arch.halt_exploration_prob=1.1", "arch.halt_exploration_prob=1.1 must be a number from 0 to 1"),
    ("arch.H_cycles=0", "arch.H_cycles=0 must be a whole number of at least 1"),
    ("ray.num_workers=-1", "ray.num_workers=-1 must be a whole number of at least 0"),
    ("ray.use_gpu=2", "ray.use_gpu=2 must be true or false"),
    ("generator.size=5", "generator.size=5 must be one of 4, 6, 9"),
    (
        "deep_supervision_schedule=linear",
        "deep_supervision_schedule=linear must be one of constant, linear_decay, exponential_decay; "
        "did you mean `linear_decay`?",
    ),
    ("device=gpu", "device=gpu must be one of auto, cpu, cuda"),
    ("optimizer=adam", "optimizer=adam must be one of adamw, adam_atan2; did you mean `adamw`?"),
    (
        "arch.pos_encodings=None",
        "arch.pos_encodings=None must be one of rope, learned, none; did you mean `none`?",
    ),
    # relations
    (
        "global_batch_size=100 ray.num_workers=8",
        "global_batch_size=100 must be divisible by ray.num_workers=8; use 96 or 104",
    ),
    (
        "global_batch_size=3 ray.num_workers=8",
        "global_batch_size=3 must be divisible by ray.num_workers=8; use 8",
    ),
    (
        "arch.mixer=attention arch.num_heads=5",
        "arch.hidden_size=64 must be divisible by arch.num_heads=5; use 60 or 65",
    ),
    (
        "arch.mixer=attention arch.pos_encodings=rope arch.hidden_size=60",
        "arch.hidden_size=60 gives arch.num_heads=4 an odd head size of 15",
    ),
    (
        "arch.pos_encodings=rope",
        "arch.pos_encodings=rope must not go with arch.mixer=mlp; use arch.pos_encodings=none",
    ),
    (
        "curriculum_enabled=true curriculum_start_step=500",
        "curriculum_start_step=500 must be less than curriculum_end_step=480; use curriculum_end_step=501",
    ),
    (
        "curriculum_enabled=true deep_supervision_enabled=false",
        "curriculum_enabled=true needs deep_supervision_enabled=true",
    ),
    ("max_steps=null epochs=null", "max_steps=null must be given when epochs=null"),
    ("data_paths=[]", "data_paths=[] must name a dataset folder"),
    ("generator.clues=[12,10]", "generator.clues=[12, 10] must be [MIN, MAX] with MIN <= MAX; use [10, 12]"),
    (
        "generator.clues=[2,50]",
        "generator.clues=[2, 50] must lie between 8 and 35 for generator.size=6",
    ),
    ("device=cpu ray.use_gpu=true", "ray.use_gpu=true must not go with device=cpu"),
    ("device=cuda", "device=cuda needs ray.use_gpu=true"),
    (
        "ray.gpus_per_worker=1.5",
        "ray.gpus_per_worker=1.5 must be a whole number when it is above 1; use 1 or 2",
    ),
    ("ray.storage_path=s3://b/x", "ray.storage_path=s3://b/x must be a folder, not a URL; mount the bucket"),
    ("log_dir=gs://b/x", "log_dir=gs://b/x must be a folder, not a URL; mount the bucket"),
    # form
    ("lr", "lr must be key=value"),
    ("=3", "=3 must be key=value"),
    ("lr=[1", "lr=[1 must be a YAML value"),
    ("lr=!!python/name:os.system", "lr=!!python/name:os.system must be a YAML value"),
    ("seed=" + "9" * 5000, "must be a YAML value"),
    ("seed=" + "[" * 2000, "must be a YAML value"),
    ("config_name=x", "config_name=x must not be overridden; use --config-name x"),
    ("task=sudoku5", "task=sudoku5 must name an existing task; did you mean `sudoku4`?"),
    ("task=five_scenarios", "task=five_scenarios must name an existing task, but it is a sweep"),
    ("task=3", "task=3 must be text or null"),
    ("task=../../etc/passwd", "task=../../etc/passwd must be a name of letters"),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES, ids=[item[0][:60] for item in MISTAKES])
def test_a_mistake_is_answered_with_key_value_rule_and_way_out(overrides, expected):
    arguments = [overrides] if overrides == "data_paths=[a, 1]" or "&a" in overrides else overrides.split(" ")
    assert expected in complaint(load, *arguments)


def test_several_mistakes_are_counted():
    assert complaint(load, "lr=x", "beta1=x", "arch.H_cycles=x").endswith("(and 2 more)")


def test_an_unknown_config_lists_those_that_exist_and_the_nearest():
    line = complaint(load, name="deep_supervision_liner")
    assert line.startswith("config_name=deep_supervision_liner must name an existing scenario")
    assert "did you mean `deep_supervision_linear`?" in line
    assert all(name in line for name in SCENARIOS)


def test_a_sweep_s_name_given_to_train_is_answered_with_the_right_command():
    assert "use `trm-ray sweep --config-name five_scenarios`" in complaint(load, name="five_scenarios")
    line = complaint(sweep, name=LINEAR)
    assert f"it is a scenario; use `trm-ray train --config-name {LINEAR}`" in line


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "ä", "x\n"])
def test_a_config_name_is_a_plain_name(name):
    assert "config_name=" in complaint(load, name=name)


def test_a_config_folder_that_does_not_exist_is_named(tmp_path):
    assert "config_dir=" in complaint(load_config, LINEAR, config_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("task: sudoku6\nlr: [1\n", 3, "must be valid YAML"),
        ("task: sudoku6\n\tlr: 1\n", 2, "must be valid YAML"),
        ("lr: 1\nseed: 1\nlr: 2\n", 3, "`lr` is given twice"),
        ("arch:\n  H_cycles: 1\n  H_cycles: 2\n", 3, "`H_cycles` is given twice"),
        ("- a\n- b\n", 1, "must be lines of `key: value`"),
        ("task: sudoku6\nlrr: 1\n", 2, "lrr=1 has an unknown key; did you mean `lr`?"),
        ("task: sudoku6\n\narch:\n  hiden_size: 1\n", 4, "arch.hiden_size=1 has an unknown key"),
        ("task: sudoku6\nseed: 1\nbeta1: abc\n", 3, "beta1=abc must be a number"),
        ("task: sudoku6\nray:\n  num_workers: -1\n", 3, "ray.num_workers=-1 must be"),
        (
            "data_paths: x\nepochs: 1\ncurriculum_start_step: 10000\ncurriculum_enabled: true\n",
            3,
            "must be less",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_and_line(tmp_path, text, line, problem):
    write(tmp_path, mine=text)
    message = complaint(load_config, "mine", config_dir=tmp_path)
    assert message.startswith(f"{tmp_path / 'mine.yaml'}:{line}: ")
    assert problem in message


def test_a_value_that_a_later_layer_mends_is_no_mistake(tmp_path):
    write(tmp_path, mine="task: sudoku6\nbeta1: abc\n")
    assert load_config("mine", ["beta1=0.8"], config_dir=tmp_path).beta1 == 0.8


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"lr: \xff\xfe\x00")
    assert str(tmp_path / "mine.yaml") in complaint(load_config, "mine", config_dir=tmp_path)


def test_a_task_file_may_not_name_another_task(tmp_path):
    write(tmp_path, mine="task: loop\n", task__loop="task: sudoku6\n")
    assert "must not stand in a task file" in complaint(load_config, "mine", config_dir=tmp_path)


def test_a_scenario_without_task_and_data_is_told_to_name_one(tmp_path):
    write(tmp_path, mine="lr: 1\n")
    assert "task=sudoku6" in complaint(load_config, "mine", config_dir=tmp_path)


# -------------------------------------------------------------------------------------- folders and writing


def test_a_run_s_folder_is_log_dir_below_the_working_directory_or_the_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_dir(load()) == tmp_path / "runs" / LINEAR
    assert run_dir(load("ray.storage_path=store", "log_dir=a/b")) == tmp_path / "store" / "a" / "b"
    assert run_dir(load("ray.storage_path=/mnt/store")) == Path("/mnt/store/runs") / LINEAR
    assert run_dir(load("ray.storage_path=/mnt/store", "log_dir=/else")) == Path("/else")


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_config_survives_its_own_yaml(name, tmp_path):
    config = load("lr=1e-5", "arch.rms_norm_eps=1e-12", "data_paths=['1e-4','null','ä: b']", name=name)
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert config_from_run(tmp_path) == config
    assert yaml.safe_load(to_yaml(config))["lr"] == 1e-5


def test_a_run_s_config_file_is_complete_and_can_be_trained_again(tmp_path):
    config = load("lr=5e-3", "max_steps=7")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = load_config(str(tmp_path / "config.yaml"), ["seed=4", "log_dir=elsewhere"])
    assert again == with_overrides(config, {"seed": 4, "log_dir": "elsewhere"})


def test_a_folder_without_a_run_is_named(tmp_path):
    assert f"{tmp_path} must be a run's folder" in complaint(config_from_run, tmp_path)


def test_a_config_of_another_format_is_refused(tmp_path):
    text = to_yaml(load()).replace("format_version: 1", "format_version: 99")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    assert "format_version=99 must be 1" in complaint(config_from_run, tmp_path)


def test_the_banner_has_a_title_a_rule_and_a_line_for_every_key():
    lines = banner(load("deep_supervision_weight=0.7", "lr=5e-5")).splitlines()
    assert lines[:2] == ["Training Configuration", "=" * 80]
    assert {
        "deep_supervision_enabled: True",
        "deep_supervision_weight: 0.7",
        "deep_supervision_schedule: linear_decay",
        "lr: 5e-05",
        "arch.hidden_size: 64",
        "eval_batch_size: None",
    } <= set(lines)
    assert [line.partition(":")[0] for line in lines[2:]] == list(known_keys())


def test_changed_values_are_checked_again():
    config = with_overrides(load(), {"ray.num_workers": 2, "lr": "1e-3", "arch": {"H_cycles": 2}})
    assert (config.ray.num_workers, config.lr, config.arch.H_cycles, config.arch.L_cycles) == (2, 1e-3, 2, 3)
    with pytest.raises(ConfigError, match=r"lr=0 must be .* above 0"):
        with_overrides(config, {"lr": 0})
    with pytest.raises(ConfigError, match=r"learning=1 .* did you mean"):
        with_overrides(config, {"learning": 1})
    with pytest.raises(ConfigError, match="task=sudoku4 must be chosen when"):
        with_overrides(config, {"task": "sudoku4"})


# --------------------------------------------------------------------------------------------------- sweeps


def test_the_five_scenarios_run_once_each_and_the_baseline_is_first_and_kept():
    loaded = sweep()
    assert [variant["config_name"] for variant in loaded.variants()] == list(FIVE_SCENARIOS)
    assert loaded.keep == ["deep_supervision_baseline"]
    assert (loaded.asha.metric, loaded.asha.mode) == ("eval/loss", "min")
    for config in trial_configs(loaded):
        assert config.lr_warmup_steps < loaded.asha.grace_period < (config.max_steps or 0)


def test_all_scenarios_of_the_first_seed_come_first():
    loaded = sweep("scenarios=[deep_supervision_baseline,deep_supervision_linear]", "seeds=[0,1]",
                   "search_space.lr=[1e-3,2e-3]")  # fmt: skip
    order = [(v["seed"], v["lr"], v["config_name"][17:]) for v in loaded.variants()]
    assert order == [
        (0, 0.001, "baseline"), (0, 0.001, "linear"), (0, 0.002, "baseline"), (0, 0.002, "linear"),
        (1, 0.001, "baseline"), (1, 0.001, "linear"), (1, 0.002, "baseline"), (1, 0.002, "linear"),
    ]  # fmt: skip


def test_the_schedule_variants_are_three_schedules_by_three_weights_by_the_ramp():
    configs = trial_configs(sweep(name="schedule_variants"))
    seen = {
        (config.deep_supervision_schedule, config.deep_supervision_weight, config.curriculum_enabled)
        for config in configs
    }
    assert len(configs) == len(seen) == 3 * 3 * 2
    assert {weight for _, weight, _ in seen} == {0.3, 0.5, 0.7}


def test_a_run_key_holds_for_all_trials_and_the_grid_wins_over_the_file():
    loaded = sweep("lr=1e-3", "arch.H_cycles=2", "task=sudoku4", "search_space.weight_decay=[0,0.5]")
    assert loaded.overrides == {"lr": 1e-3, "arch.H_cycles": 2, "task": "sudoku4"}
    configs = trial_configs(loaded)
    assert {(c.lr, c.arch.H_cycles, c.task, c.max_steps) for c in configs} == {(1e-3, 2, "sudoku4", 300)}
    assert [config.weight_decay for config in configs] == [0.0] * 5 + [0.5] * 5


def test_a_task_can_be_an_axis_of_the_grid():
    configs = trial_configs(sweep("search_space.task=[sudoku4,sudoku6]"))
    assert [config.max_steps for config in configs] == [300] * 5 + [800] * 5


def test_a_sweep_s_own_keys_change_the_sweep():
    loaded = sweep(
        "seeds=[0,1,2]", "asha.enabled=false", "threshold=0.9", "log_dir=x", "group_by=config_name"
    )
    assert (loaded.seeds, loaded.asha.enabled, loaded.threshold) == ([0, 1, 2], False, 0.9)
    assert (loaded.log_dir, loaded.group_by, loaded.overrides) == ("x", "config_name", {})
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
    (["asha.mode=max"], "asha.mode=max must be min for asha.metric=eval/loss"),
    (["asha.metric=eval/accuracy"], "asha.mode=min must be max for asha.metric=eval/accuracy"),
    (["asha.metric=train/total_loss"], "asha.metric=train/total_loss must be one of eval/loss"),
    (["asha.reduction_factor=1"], "asha.reduction_factor=1 must be a number above 1"),
    (["asha.max_t=100"], "asha.grace_period=400 must be at most asha.max_t=100; use asha.grace_period=50"),
    (["max_concurrent_trials=0"], "max_concurrent_trials=0 must be"),
    (["search_space=3"], "search_space=3 must be a mapping"),
    (["search_space.hidden_size=[1]"], "did you mean `search_space.arch.hidden_size`?"),
    (["search_space.seed=[1,2]"], "search_space.seed=[1, 2] must not be set; use seeds="),
    (["search_space.lr=1"], "search_space.lr=1 must be a list of values"),
    (["search_space.lr=[]"], "search_space.lr=[] must be a list of values"),
    (["search_space.lr=[1,abc]"], "search_space.lr=abc must be a number above 0"),
    (["search_space.lr={normal: [0,1]}"], "must have one of uniform, loguniform, choice, randint"),
    (["search_space.lr={uniform: [1]}"], "must have a list of two ends"),
    (["search_space.lr={uniform: [2,1]}"], "must be [LOW, HIGH] with LOW < HIGH"),
    (["search_space.max_steps={randint: [null,1]}"], "must be [LOW, HIGH] with LOW < HIGH"),
    (["search_space.lr={uniform: [a,b]}"], "search_space.lr=a must be a number above 0"),
    (["search_space.weight_decay={loguniform: [0,1]}"], "must start above 0 on a logarithmic scale"),
    (["search_space.arch.H_cycles={uniform: [1,3]}"], "uniform gives a number; use randint or choice"),
    (["search_space.optimizer={uniform: [1,3]}"], "uniform gives a number; use choice"),
    (["search_space.task={choice: [sudoku4]}"], "must be a list of tasks"),
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


@pytest.mark.parametrize(
    ("overrides", "expected"), SWEEP_MISTAKES, ids=[str(item[0]) for item in SWEEP_MISTAKES]
)
def test_a_mistake_in_a_sweep_is_found_before_a_trial_starts(overrides, expected):
    assert expected in complaint(sweep, *overrides)


def test_a_mistake_in_a_sweep_s_file_is_named_with_file_and_line(tmp_path):
    write(tmp_path, sweep__mine=f"scenarios: [{LINEAR}]\nsearch_space:\n  lr: [abc]\n")
    message = complaint(load_sweep, "mine", config_dir=tmp_path)
    assert message.startswith(f"{tmp_path / 'sweep' / 'mine.yaml'}:3: search_space.lr=abc must be a number")


# --------------------------------------------------------------------------------------------- architecture


def test_importing_config_loads_neither_torch_nor_ray():
    code = (
        "import sys, trm_ray.config; print(sorted({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
