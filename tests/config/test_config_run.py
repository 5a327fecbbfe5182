"""Values of a run: how they are written, their defaults, the folder and the banner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from config_helpers import LINEAR, ROOT, load, write

from trm_ray.config import ConfigError, banner, config_from_run, flat, load_config, run_dir, to_yaml


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


def test_a_run_s_folder_is_log_dir_below_the_working_directory_or_the_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_dir(load()) == tmp_path / "runs" / LINEAR
    assert run_dir(load("ray.storage_path=store", "log_dir=a/b")) == tmp_path / "store" / "a" / "b"
    assert run_dir(load("ray.storage_path=/mnt/store")) == Path("/mnt/store/runs") / LINEAR
    assert run_dir(load("ray.storage_path=/mnt/store", "log_dir=/else")) == Path("/else")


TITLE = ["Training Configuration", "=" * 80]


def test_the_banner_has_a_title_a_rule_the_supervision_and_what_was_given():
    given = ["deep_supervision_weight=0.7", "lr=5e-5"]
    assert banner(load(*given), given).splitlines() == [
        *TITLE,
        "deep_supervision_enabled: True",
        "deep_supervision_weight: 0.7",
        "deep_supervision_schedule: linear_decay",
        f"config_name: {LINEAR}",
        "task: sudoku6",
        "lr: 5e-05",
    ]
    section = ["generator={size: 4}"]
    assert {"generator.size: 4", "generator.test: 512"} < set(banner(load(*section), section).splitlines())


def test_a_config_with_lists_of_every_kind_is_read_back_as_it_was(tmp_path):
    for words in (["deep_supervision_weights=[1,0.7,0.49]"], ["depth_curriculum=[[0,1,1],[0.6,null,null]]"]):
        config = load(*words)
        (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert config_from_run(tmp_path) == config


def test_null_in_a_depth_curriculum_stands_for_what_the_task_has():
    config = load("task=sudoku_extreme", name="depth_curriculum")
    assert config.depths == [(0.0, 1, 1), (0.3, 2, 2), (0.6, 3, 6)]
    assert "depth_curriculum: [[0.0, 1, 1], [0.3, 2, 2], [0.6, None, None]]" in banner(config).splitlines()
    assert load().depths == []


def test_the_banner_tells_weights_of_ones_own_in_place_of_weight_and_schedule():
    lines = banner(load("deep_supervision_weights=[0.1,0.3,1]")).splitlines()
    assert lines[2:4] == ["deep_supervision_enabled: True", "deep_supervision_weights: [0.1, 0.3, 1.0]"]
    assert not any(line.startswith(("deep_supervision_weight:", "deep_supervision_schedule")) for line in lines)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("deep_supervision_baseline", ["deep_supervision_enabled: False"]),
        ("bptt_last", ["deep_supervision_enabled: False", "recurrent_grad_depth: all"]),
        (
            "deep_supervision_curriculum",
            [
                "deep_supervision_enabled: True",
                "deep_supervision_weight: 0.7",
                "deep_supervision_schedule: linear_decay",
                "curriculum_start_step: 60",
                "curriculum_end_step: 360",
            ],
        ),
    ],
)
def test_the_banner_says_of_a_scenario_what_it_is_about(name: str, told: list[str]):
    lines = [*TITLE, *told, f"config_name: {name}", "task: sudoku6"]
    assert banner(load(name=name)).splitlines() == lines


def test_importing_config_loads_neither_torch_nor_ray():
    code = "import sys, trm_ray.config; print(sorted({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("word", "value"), [("auto", "auto"), ("true", True), ("false", False)])
def test_compile_is_a_switch_or_left_to_the_device(word, value):
    assert load_config("deep_supervision_linear", overrides=[f"compile={word}"]).compile == value


def test_a_switch_that_is_neither_on_off_nor_auto_is_refused():
    with pytest.raises(ConfigError, match="compile=maybe must be one of auto, true, false"):
        load_config("deep_supervision_linear", overrides=["compile=maybe"])
