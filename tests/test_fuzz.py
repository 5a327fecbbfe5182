"""Random and spoilt input: whatever it is, a reader gives a value or one line of `ValueError`, and runs nothing."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import SHAPE, tiny_config
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from prediction_helpers import checkpoint
from run_helpers import some_puzzles
from safetensors.torch import save_file

from trm_ray.config import Config, config_from_values, known_keys, load_config, load_sweep, to_yaml
from trm_ray.data.check import open_dataset
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.interop.datasets import import_original
from trm_ray.interop.loading import load_model
from trm_ray.kinds.arc.read import parse_puzzle
from trm_ray.kinds.maze.rules import parse_maze
from trm_ray.kinds.registry import kind_of
from trm_ray.kinds.sudoku.rules import parse_board
from trm_ray.reporting.run_log import read_run

bounded = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # what is found is small anyway, and making it smaller takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FEW, MANY = settings(bounded, max_examples=40), settings(bounded, max_examples=100)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**30, -1, 2**63])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


def refuses_or_reads(read: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader; nothing but one line of a `ValueError` may come instead of its value."""
    try:
        return read(*arguments)
    except ValueError as error:
        told = str(error)
    assert len(told.splitlines()) == 1, told
    return None


def spoilt(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """Draw a mapping that differs in a few keys, also of mappings inside it."""
    told: dict[str, Any] = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        inside, key = told, draw(st.sampled_from([*told]))
        while isinstance(inside.get(key), dict) and inside[key] and draw(st.booleans()):
            inside = inside[key]
            key = draw(st.sampled_from([*inside]))
        if draw(st.booleans()):
            inside[key] = draw(values)
        else:
            inside.pop(key, None)
            inside[draw(st.sampled_from([key, "more", "../x"]))] = draw(values)
        if not told:
            return told
    return told


def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a file that is cut short or has some bits flipped."""
    spoilt = bytearray(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)
    for _ in range(draw(st.integers(0, 4)) if spoilt else 0):
        spoilt[draw(st.integers(0, len(spoilt) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(spoilt)


# ---- configs ---------------------------------------------------------------------------------------------


@MANY
@given(key=st.sampled_from(known_keys()) | st.text(max_size=12), value=values | st.text(max_size=30))
@example(key="lr", value="!!python/object/apply:os.system [true]")
@example(key="", value="x")
def test_any_override_is_read_or_refused(key: str, value: Any):
    word = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
    refuses_or_reads(load_config, "deep_supervision_linear", [word])


@FEW
@given(
    key=st.sampled_from(known_keys()) | st.sampled_from(["seeds", "search_space", "asha.mode", "keep"]), value=values
)
def test_any_override_of_a_sweep_is_read_or_refused(key: str, value: Any):
    refuses_or_reads(load_sweep, "five_scenarios", [f"{key}={json.dumps(value)}"])


@MANY
@given(content=st.binary(max_size=60) | st.text(alphabet=string.printable, max_size=60).map(str.encode))
@example(content=b"? [a]\n: b")
@example(content=b"<<: 3")
@example(content=b"a: 0x_")
@example(content=b"a: !!int x")
@example(content=b"= : 1")
def test_any_config_file_is_read_or_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    refuses_or_reads(load_config, str(path))


@MANY
@given(st.data())
def test_any_values_of_a_file_are_a_config_or_refused(data: st.DataObject):
    whole = tiny_config().model_dump(mode="json")
    found = refuses_or_reads(config_from_values, data.draw(values) if data.draw(st.booleans()) else None, "x")
    assert found is None or isinstance(found, Config)
    refuses_or_reads(config_from_values, spoilt(data.draw, whole), "x")


# ---- datasets --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles", train=8, test=3)


@MANY
@given(st.data())
def test_any_dataset_json_is_read_or_refused(dataset: Path, data: st.DataObject):
    path = dataset / "dataset.json"
    good = path.read_text()
    try:
        path.write_text(json.dumps(spoilt(data.draw, json.loads(good))))
        refuses_or_reads(open_dataset, dataset)
        path.write_bytes(damaged(data.draw, good.encode()))
        refuses_or_reads(open_dataset, dataset)
    finally:
        path.write_text(good)


@FEW
@given(st.data())
def test_a_damaged_file_of_a_dataset_is_refused(dataset: Path, data: st.DataObject):
    path = data.draw(st.sampled_from([*sorted(dataset.rglob("*.parquet")), dataset / "identifiers.json"]))
    good = path.read_bytes()
    bad = damaged(data.draw, good)
    try:
        path.write_bytes(bad)
        assert (refuses_or_reads(open_dataset, dataset) is None) == (bad != good)
    finally:
        path.write_bytes(good)


MAPS = [
    PuzzleIdentifiers.plain(["one", "two"]),
    PuzzleIdentifiers.drawn(7, ["one", "two"], [np.array([0, 3]), np.array([1])]),
    PuzzleIdentifiers.from_names(["<blank>", "one", "one|||t3|||0195372846"]),
]


@MANY
@given(st.data())
def test_any_map_of_identifiers_is_whole_or_refused(data: st.DataObject):
    good = data.draw(st.sampled_from(MAPS)).to_bytes()
    raw = json.loads(good)
    choice = data.draw(st.sampled_from(["spoilt", "entry", "damaged", "bytes"]))
    if choice == "entry":
        raw["puzzles"][0] = spoilt(data.draw, raw["puzzles"][0])
    told = {
        "spoilt": lambda: json.dumps(spoilt(data.draw, raw)).encode(),
        "entry": lambda: json.dumps(raw).encode(),
        "damaged": lambda: damaged(data.draw, good),
        "bytes": lambda: data.draw(st.binary(max_size=60)),
    }[choice]()
    found = refuses_or_reads(PuzzleIdentifiers.from_bytes, told)
    if found is not None:
        assert found.dihedral.max() <= 7
        assert (np.sort(found.colours, axis=1) == np.arange(10)).all()
        assert found.all_names()[0] == "<blank>"
        found.to_bytes()


@FEW
@given(st.data())
def test_a_damaged_folder_of_the_original_is_imported_or_refused(tmp_path: Path, data: st.DataObject):
    from test_bad_input import _write_original

    source = tmp_path / "original"
    if not source.exists():
        _write_original(source)
    path = data.draw(st.sampled_from([*sorted(source.rglob("*.npy")), source / "identifiers.json"]))
    good = path.read_bytes()
    try:
        path.write_bytes(damaged(data.draw, good) if data.draw(st.booleans()) else data.draw(st.binary(max_size=90)))
        refuses_or_reads(lambda: import_original(source, tmp_path / "new", overwrite=True))
    finally:
        path.write_bytes(good)


# ---- puzzles as text -------------------------------------------------------------------------------------

boards = st.text(alphabet="0123456789. \n#SGox", max_size=90) | st.text(max_size=40)


@MANY
@given(boards)
@example("²" * 16)
@example("٣" * 81)
def test_any_board_is_read_or_refused(text: str):
    board = refuses_or_reads(parse_board, text)
    assert board is None or (len(board) in (16, 36, 81) and board.max() <= 9)
    maze = refuses_or_reads(parse_maze, text)
    assert maze is None or 1 <= maze.min() <= maze.max() <= 5


@MANY
@given(st.sampled_from([(16, 6), (81, 11), (25, 6), (900, 12), (7, 9)]), boards | st.text(alphabet="0123456789, \n"))
def test_any_text_is_a_puzzle_of_its_kind_or_refused(shape: tuple[int, int], text: str):
    kind = kind_of(*shape)
    for question in refuses_or_reads(kind.read, text, "it", "puzzle") or []:
        assert question.inputs.shape == (shape[0],)
        assert 0 <= question.inputs.min() <= question.inputs.max() < shape[1]


@MANY
@given(st.data())
def test_any_arc_task_is_read_or_refused(data: st.DataObject):
    pair = {"input": [[0, 1]], "output": [[1, 0]]}
    task = spoilt(data.draw, {"train": [pair], "test": [pair]})
    refuses_or_reads(parse_puzzle, "it", "task", task if data.draw(st.booleans()) else data.draw(values))
    refuses_or_reads(kind_of(900, 12).read, json.dumps({"train": [data.draw(values)], "test": [pair]}), "it", "task")


# ---- checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    checkpoint(root / "final_model")
    return root


@FEW
@given(st.data())
def test_a_damaged_checkpoint_is_refused(run: Path, data: st.DataObject):
    path = data.draw(st.sampled_from(sorted((run / "final_model").iterdir())))
    good = path.read_bytes()
    bad = damaged(data.draw, good) if data.draw(st.booleans()) else data.draw(st.binary(max_size=99))
    try:
        path.write_bytes(bad)
        loaded = refuses_or_reads(load_model, run)
        assert loaded is None or bad == good or path.name == "manifest.json"
    finally:
        path.write_bytes(good)


@FEW
@given(st.data())
def test_any_state_is_a_model_or_refused(tmp_path: Path, data: st.DataObject):
    whole = {"config": tiny_config().model_dump(mode="json"), "shape": vars(SHAPE), "step": 1, "ema": None}
    state = spoilt(data.draw, whole) | {"format_version": 2}
    state["model"] = data.draw(values | st.dictionaries(st.text(max_size=3), st.just(torch.zeros(2))))
    folder = tmp_path / "x"
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "state.pt")
    assert refuses_or_reads(load_model, folder) is None


class Runs:
    """A pickle of this runs a command when it is loaded."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, zipped: bool):
    folder, mark = tmp_path / "final_model", tmp_path / "ran"
    folder.mkdir()
    hostile = {"format_version": 2, "model": Runs(f"touch {mark}")}
    torch.save(hostile, folder / "state.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"state\.pt"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="architecture"):
        load_model(folder / "state.pt")
    assert not mark.exists()


@FEW
@given(st.data())
def test_any_metadata_of_a_safetensors_file_is_read_or_refused(tmp_path: Path, data: st.DataObject):
    good = {"trm_ray_format_version": "1", "config": to_yaml(tiny_config()), "shape": json.dumps(vars(SHAPE))}
    told = {key: str(value) for key, value in spoilt(data.draw, {**good, "step": "1", "identifiers": "{}"}).items()}
    path = tmp_path / "x.safetensors"
    save_file({"embed_tokens": torch.zeros(6, 8)}, path, {**told, data.draw(st.sampled_from([*good])): "[x"})
    assert refuses_or_reads(load_model, path) is None
    path.write_bytes(damaged(data.draw, path.read_bytes()))
    assert refuses_or_reads(load_model, path) is None


# ---- runs ------------------------------------------------------------------------------------------------


@MANY
@given(rows=st.lists(values | st.just({"step": 1, "wall_s": 2.0}), max_size=4), config=values)
def test_any_log_of_a_run_is_read_or_refused(tmp_path: Path, rows: list[Any], config: Any):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = refuses_or_reads(read_run, tmp_path)
    if found is not None:
        found.series("train/total_loss")
        assert found.wall_s == found.wall_s or found.rows
