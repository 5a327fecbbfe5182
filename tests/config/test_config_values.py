"""How values are read: text as it was typed, numbers in decimal, nothing dropped; and back from what is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_helpers import LINEAR, complaint, load, sweep, write
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_ray.config import config_from_run, flat, load_config, load_sweep, load_yaml, read_value, to_yaml, typed
from trm_ray.config.values import dump_yaml

AS_TYPED = [
    "runs/try #2",
    "#2",
    "2026-11-25",
    "20261125",
    "010",
    "1:30",
    "0x10",
    "1e-4",
    "1_000",
    "true",
    "no",
    "~tilde~",
    "a: b",
    "{a: b}",
    "[a] and [b",
    "runs/[a]",
    "a=b=c",
    "a, b",
    "-5",
    "- a",
    "&a b",
    "*a",
    "!x",
    "%x",
    "@x",
    "`x`",
    "|",
    "it's",
    'say "x"',
    " blanks around ",
    "tab\there",
    "two\nlines",
    "ä 漢字 😀",
    "C:\\runs\\x",
    "Null",
    "x" * 300,
]


@pytest.mark.parametrize("text", [text for text in AS_TYPED if not text.startswith("~")])
def test_a_key_of_text_takes_what_stands_after_the_first_equals_sign(text: str):
    config = load(f"log_dir={text}", f"init_from={text}", f"data_paths={text}", f"prepare_command={text}")
    assert (config.log_dir, config.init_from, config.data_paths, config.prepare_command) == (text, text, [text], text)
    assert sweep(f"data_paths={text}", f"log_dir={text}").overrides["data_paths"] == [text]


@pytest.mark.parametrize("text", AS_TYPED)
def test_an_option_is_never_yaml(text: str):
    assert load("init_from=other", options={"init_from": text}).init_from == text
    for quoted in ("'x'", "[x]", "null", '"x"'):
        assert load(options={"init_from": quoted}).init_from == quoted


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("null", None),
        ("'runs/x'", "runs/x"),
        ('"runs/x #2"', "runs/x #2"),
        ("'it''s'", "it's"),
        ('"null"', "null"),
        ("'[a]'", "[a]"),
    ],
)
def test_null_and_quotes_are_what_they_are_in_yaml(written: str, meant: str | None):
    assert load(f"init_from={written}").init_from == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("[a, b]", ["a", "b"]),
        ("[2026-11-25, 010, 1:30, 1e-4, true]", ["2026-11-25", "010", "1:30", "1e-4", "true"]),
        ("['a, b', \"c #1\"]", ["a, b", "c #1"]),
        ("[s3://BUCKET/a, /mnt/b c]", ["s3://BUCKET/a", "/mnt/b c"]),
    ],
)
def test_elements_of_a_list_of_text_are_text(written: str, meant: list[str], tmp_path: Path):
    assert load(f"data_paths={written}").data_paths == meant
    assert sweep(f"search_space.data_paths=[{written}]").search_space["data_paths"] == [meant]
    write(tmp_path, mine=f"task: sudoku4\ndata_paths_test: {written}\n")
    assert load_config("mine", config_dir=tmp_path).data_paths_test == meant


NO_NUMBERS = [
    ("seed=010", "seed=010: 010 is 10 in decimal and 8 in YAML 1.1 (octal); write 10 or 8"),
    ("seed=008", "seed=008: 008 is 8 in decimal and text in YAML 1.1; write 8"),
    ("max_steps=0100", "max_steps=0100: 0100 is 100 in decimal and 64 in YAML 1.1 (octal); write 100 or 64"),
    ("max_steps=1:30", "max_steps=1:30: 1:30 is 90 in YAML 1.1 (base 60) and text in YAML 1.2; write 90"),
    ("seed=0x1F", "seed=0x1F: 0x1F is 31 in YAML 1.1 (hexadecimal) and text in YAML 1.2; write 31"),
    ("seed=0b11", "is 3 in YAML 1.1 (binary)"),
    ("seed=0o17", "seed=0o17: 0o17 is 15 in octal"),
    ("seed=1_000", "seed=1_000: 1_000 is 1000 in YAML 1.1 and text in YAML 1.2; write 1000"),
    ("lr=1_0.5", "1_0.5 is 10.5 in YAML 1.1"),
    ("seed='010'", "010 is 10 in decimal and 8 in YAML 1.1"),
    ("ray.num_workers=[01, 2]", "ray.num_workers=[01, 2]: 01 is 1 in decimal"),
    ("seed=2026-11-25", "seed=2026-11-25 must be a whole number"),
    ("seed=٣", "seed=٣ must be a whole number"),
    ("lr=1e-3 # fast", "lr=1e-3 # fast would be read as 1e-3, for YAML drops `# fast`; leave that out"),
    ("generator.clues=[4, 8] # few", "would be read as [4, 8], for YAML drops `# few`"),
    ("seed=&a 5", "seed=&a 5 would be read as 5, for YAML drops `&a`"),
    ("seed=--- 5", "would be read as 5, for YAML drops `---`"),
    ("log_dir='a' # b", "would be read as 'a', for YAML drops `# b`"),
    ("log_dir='a", "log_dir='a begins like quoted text or a list and does not go on like it; put it in quotes"),
    ("data_paths=[a #1]", "begins like quoted text or a list"),
    ("data_paths=[a\nb]", "has a line end, of which YAML makes a blank"),
    ("arch={H_cycles: 1, H_cycles: 2}", "gives `H_cycles` twice; remove one"),
    ("log_dir=", "log_dir= has no value; write log_dir=VALUE, or log_dir=null where none is meant"),
    ("max_steps=", "max_steps= has no value"),
    ("lr =1", "lr =1 must be key=value, without spaces around `=`"),
    (
        "log_dir=~nobody-here/x",
        "log_dir=~nobody-here/x: no user nobody-here is known here; write the whole path, or ./~",
    ),
]


@pytest.mark.parametrize(("override", "told"), NO_NUMBERS, ids=[word for word, _ in NO_NUMBERS])
def test_what_can_be_read_in_two_ways_is_refused_with_both(override: str, told: str):
    assert told in complaint(load, override)


@pytest.mark.parametrize(
    ("told", "number"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("+2", 2.0),
        ("1e3", 1e3),
        ("'0.5'", 0.5),
        ("00.5", 0.5),
    ],
)
def test_decimal_numbers_are_read_however_they_are_written(told: str, number: float):
    assert load(f"lr={told}").lr == number


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 010\n", "mine.yaml:2: seed=010: 010 is 10 in decimal and 8 in YAML 1.1 (octal)"),
        ("beta2: 1:30\n", "mine.yaml:2: beta2=1:30: 1:30 is 90"),
        ("ray: {num_workers: 0x2}\n", "mine.yaml:2: ray.num_workers=0x2: 0x2 is 2"),
        ("beta1: 2026-11-25\n", "mine.yaml:2: beta1=2026-11-25 must be a number"),
    ],
)
def test_numbers_of_a_file_are_decimal_too(text: str, told: str, tmp_path: Path):
    write(tmp_path, mine=f"task: sudoku4\n{text}")
    assert told in complaint(load_config, "mine", config_dir=tmp_path)


def test_numbers_of_a_sweep_are_decimal_too(tmp_path: Path):
    assert "seeds=[001, 010]: 001 is 1 in decimal" in complaint(sweep, "seeds=[001,010]")
    assert "search_space.lr=1:30: 1:30 is 90" in complaint(sweep, "search_space.lr=[1:30]")
    write(tmp_path, sweep__mine=f"scenarios: [{LINEAR}]\noverrides:\n  max_steps: 0100\n")
    assert "mine.yaml:3: max_steps=0100: 0100 is 100" in complaint(load_sweep, "mine", config_dir=tmp_path)


def test_a_file_s_text_is_text_and_its_truth_values_are_as_ever(tmp_path: Path):
    write(
        tmp_path,
        mine="task: sudoku4\nlog_dir: 2026-11-25\ndata_paths: 010\nema: on\naugment: no\nlr: 1E-3\ninit_from:\n",
    )
    config = load_config("mine", config_dir=tmp_path)
    assert (config.log_dir, config.ema, config.augment, config.init_from) == ("2026-11-25", True, False, None)
    write(
        tmp_path, mine="data_paths: 010\nprepare_command: yes\nmax_steps: 3\nseed: &n 7\nlog_interval: *n\nlr: 1E-3\n"
    )
    config = load_config("mine", config_dir=tmp_path)
    assert (config.data_paths, config.prepare_command, config.log_interval, config.lr) == (["010"], "yes", 7, 1e-3)


# ---- written and read ------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(AS_TYPED)


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(texts, st.floats(1e-300, 1e300) | st.integers(1, 2**70))
def test_what_is_written_is_read_back_by_this_and_by_any_reader(text: str, number: float):
    values: dict[str, Any] = {"log_dir": text, "data_paths": [text, "1e-4"], "lr": number, "unknown": text}
    assert load_yaml(dump_yaml(values)) == values
    assert yaml.safe_load(dump_yaml(values)) == values
    earlier = {key: value for key, value in values.items() if key != "unknown"}  # PyYAML leaves `1e-4` unquoted
    assert load_yaml(yaml.safe_dump(earlier, allow_unicode=True)) == earlier


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(texts)
def test_a_value_written_for_the_command_line_is_read_back_from_it(text: str):
    assert read_value("log_dir", typed(text)) == text
    if all(character.isprintable() for character in text):
        assert read_value("data_paths", typed([text, "010"])) == [text, "010"]


@pytest.mark.parametrize("text", [text for text in AS_TYPED if text != "~tilde~"])
def test_a_run_s_own_config_holds_the_text_that_was_typed(text: str, tmp_path: Path):
    config = load(f"log_dir={text}", f"data_paths={text}", f"init_from={text}")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert flat(config_from_run(tmp_path)) == flat(config)


def test_a_sweep_s_own_file_holds_the_text_that_was_typed(tmp_path: Path):
    loaded = sweep(
        "data_paths=010", "prepare_command=1e-4 # x", "log_dir=1:30", "search_space.data_paths_test=[[1e-4],[yes]]"
    )
    (tmp_path / "sweep.yaml").write_text(to_yaml(loaded), encoding="utf-8")
    assert load_sweep(str(tmp_path / "sweep.yaml")) == loaded


# ---- what earlier versions wrote -------------------------------------------------------------------------


def test_the_files_of_earlier_runs_and_sweeps_are_read(tmp_path: Path):
    """As PyYAML wrote them: `1e-4` is a path here, unquoted, and 1.0e-05 a number."""
    values = {"format_version": 1, **load("lr=1e-5").model_dump(mode="json"), "data_paths": ["1e-4", "2026-11-25"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    assert "- 1e-4\n" in (tmp_path / "config.yaml").read_text()
    config = config_from_run(tmp_path)
    assert (config.data_paths, config.lr) == (["1e-4", "2026-11-25"], 1e-5)
    told = {"format_version": 1, **sweep("data_paths=x").model_dump(mode="json")}
    told["overrides"]["data_paths"] = ["1e-4"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    assert load_sweep(str(tmp_path / "sweep.yaml")).overrides["data_paths"] == ["1e-4"]
