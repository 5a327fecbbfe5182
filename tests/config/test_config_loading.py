"""Which layer wins, which file is found, what comes back from a written config."""

import os
from pathlib import Path

import pytest
import yaml
from config_helpers import LINEAR, SCENARIOS, TASKS, complaint, load, sweep, write

from trm_ray.config import ConfigError, config_from_run, config_names, load_config, load_sweep, to_yaml, with_overrides
from trm_ray.config.files import MOST_BYTES, find_configs


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
    assert (fresh.name, fresh.model_extra) == ("sudoku", {"size": 9})


def test_what_a_config_says_of_a_kind_of_puzzle_stays_as_it_was_read_and_knows_its_place(tmp_path):
    write(tmp_path, mine="task: sudoku6\ngenerator:\n  name: 010\n  flavour: {sour: [1, 1e1]}\n  hot: yes\n")
    made = load_config("mine", ["generator.hot=null", "generator.size='4'"], config_dir=tmp_path).generator
    assert made is not None
    extra = {"size": "4", "train": 20000, "test": 512, "clues": [9, 18], "seed": 0, "flavour": {"sour": [1, 10.0]}}
    assert (made.name, made.model_extra) == ("sudoku", {**extra, "hot": None})  # the task's name before the scenario's
    assert (made.origin("flavour"), made.origin("hot")) == (f"{tmp_path / 'mine.yaml'}:4", "")
    assert made.origin("train").endswith("task/sudoku6.yaml:6")
    assert made == made.model_copy() == load_config("mine", ["generator.hot=null", "generator.size='4'"],
                                                    config_dir=tmp_path).generator  # fmt: skip


def checks_existing(config):
    return config.generator.check_existing


@pytest.mark.parametrize(
    ("words", "checks"),
    [
        ([], True),
        (["data_paths=[data/sudoku6]"], True),
        (["data_paths=data/sudoku6"], True),
        (["data_paths=[data/mine]"], False),
        (["data_paths=[data/sudoku6,data/mine]"], False),
        (["data_paths=[data/mine]", "generator.size=6"], True),
        (["generator={train: 30}", "data_paths=[data/mine]"], True),
        (["data_paths=[data/mine]", "generator.check_existing=true"], True),
        (["data_paths_test=[data/mine]"], True),
    ],
)
def test_a_generator_is_checked_only_where_it_was_asked_for(words, checks):
    assert checks_existing(load(*words)) is checks


def test_no_generator_comes_of_a_folder_that_is_named():
    assert load("generator=null", "data_paths=[data/mine]").generator is None
    assert load("data_paths=[data/mine]", "task=sudoku_extreme").generator is None
    assert with_overrides(load("generator=null"), {"data_paths": ["data/mine"]}).generator is None


def test_a_generator_of_the_user_s_own_file_is_asked_for(tmp_path):
    own = write(
        tmp_path, mine="task: sudoku6\nlr: 1e-3\n", other="generator: {size: 4}\ndata_paths: [a]\nmax_steps: 1\n"
    )
    assert checks_existing(load_config("mine", config_dir=own))
    assert checks_existing(load_config("other", config_dir=own))
    assert checks_existing(load_config("other", ["data_paths=[b]"], config_dir=own))
    assert not checks_existing(load_config("mine", ["data_paths=[b]"], config_dir=own))


def test_a_run_s_config_keeps_what_it_said_and_another_folder_is_the_user_s(tmp_path):
    config = load("data_paths=[data/mine]")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    file = str(tmp_path / "config.yaml")
    assert load_config(file) == config_from_run(tmp_path) == config
    (tmp_path / "config.yaml").write_text(to_yaml(load()).replace("  check_existing: true\n", ""))  # an older release's
    assert checks_existing(load_config(file))
    assert not checks_existing(load_config(file, ["data_paths=[data/mine]"]))
    assert not checks_existing(with_overrides(load(), {"data_paths": ["data/mine"]}))
    assert checks_existing(with_overrides(load(), {"lr": 1e-3}))


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
        ("arch:\n  H_cycles: 1\n  H_cycles: 2\n", 3, "`arch.H_cycles` is given twice"),
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


def test_a_scenario_without_task_and_data_is_told_to_name_one(tmp_path):
    write(tmp_path, mine="lr: 1\n")
    assert "task=sudoku6" in complaint(load_config, "mine", config_dir=tmp_path)


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


def test_changed_values_are_checked_again():
    config = with_overrides(load(), {"ray.num_workers": 2, "lr": "1e-3", "arch": {"H_cycles": 2}})
    assert (config.ray.num_workers, config.lr, config.arch.H_cycles, config.arch.L_cycles) == (2, 1e-3, 2, 3)
    with pytest.raises(ConfigError, match=r"lr=0 must be .* above 0"):
        with_overrides(config, {"lr": 0})
    with pytest.raises(ConfigError, match=r"learning=1 .* did you mean"):
        with_overrides(config, {"learning": 1})
    with pytest.raises(ConfigError, match="task=sudoku4 must be chosen when"):
        with_overrides(config, {"task": "sudoku4"})


@pytest.fixture
def littered(tmp_path) -> Path:
    """Two configs among what has the name of one and is none."""
    folder = write(tmp_path, mine="lr: 2e-3\n", task__short="data_paths: [data/short]\nmax_steps: 10\n")
    (folder / "gone.yaml").symlink_to(tmp_path / "nowhere.yaml")
    (folder / "task" / "itself.yaml").symlink_to(folder / "task" / "itself.yaml")
    os.mkfifo(folder / "pipe.yaml")
    (folder / "folder.yaml").mkdir()
    (folder / "._mine.yaml").write_bytes(b"\x00\x05\x16\x07")
    (folder / "huge.yaml").write_text("#" * (MOST_BYTES + 1))
    return folder


def test_what_only_has_the_name_of_a_config_is_left_behind_in_one_line(littered, caplog):
    found = [str(path.relative_to(littered)) for path in find_configs(littered)]
    assert found == ["mine.yaml", "task/short.yaml"]
    (line,) = (record.getMessage() for record in caplog.records)
    for name in ("gone.yaml", "huge.yaml", "pipe.yaml"):
        assert f"{littered}/{name}" in line
    assert "and 1 more (a config is a readable file of up to 1 MiB)" in line


def test_what_only_has_the_name_of_a_config_is_not_offered(littered):
    names = set(config_names(config_dir=littered)) - set(config_names())
    assert names == {"mine", "huge"}
    with pytest.raises(ConfigError, match="config_name=gone must name an existing scenario"):
        load_config("gone", config_dir=littered)
