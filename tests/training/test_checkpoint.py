"""A checkpoint is there as a whole or not at all, and what cannot be read says why."""

from pathlib import Path

import pytest
import torch

from trm_ray.training import checkpoint
from trm_ray.training.checkpoint import (
    checkpoint_name,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_identifiers,
    save_checkpoint,
)

STATE = {"step": 7, "model": {"w": torch.arange(3.0)}, "ema": None, "config": {"lr": 1e-4, "data_paths": ["a"]}}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_makes_a_round_trip_and_leaves_nothing_else_behind(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(7), STATE)
    assert folder == tmp_path / "checkpoint_step_7"
    assert files(tmp_path) == {"checkpoint_step_7"}
    assert files(folder) == {"state.pt"}
    state = load_checkpoint(folder)
    assert torch.equal(state["model"].pop("w"), torch.arange(3.0))
    assert state == {"format_version": 2, "step": 7, "model": {}, "ema": None, "config": STATE["config"]}


def test_the_map_of_the_puzzles_lies_with_the_checkpoint(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(7), STATE, b'{"names": []}')
    assert files(folder) == {"state.pt", "identifiers.json"}
    assert load_identifiers(folder) == b'{"names": []}'
    assert load_identifiers(save_checkpoint(tmp_path / checkpoint_name(8), STATE)) is None


def test_a_run_means_its_final_model_else_its_latest_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint yet; name a run's folder after its first evaluation"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    for step in (2, 10):
        save_checkpoint(tmp_path / checkpoint_name(step), STATE)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint_step_10"
    assert find_checkpoint(tmp_path / "checkpoint_step_2") == tmp_path / "checkpoint_step_2"
    save_checkpoint(tmp_path / "final_model", STATE)
    assert find_checkpoint(tmp_path) == tmp_path / "final_model"


def test_a_run_that_dies_while_saving_leaves_the_earlier_checkpoint_and_no_half_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / checkpoint_name(3), STATE)

    def half(state, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    for step in (3, 6):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path / checkpoint_name(step), STATE)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_step_3"
    assert load_checkpoint(tmp_path / "checkpoint_step_3")["step"] == 7


def test_the_same_step_again_replaces_the_first(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path / "final_model", {"step": step})
    assert load_checkpoint(tmp_path / "final_model")["step"] == 2
    assert files(tmp_path) == {"final_model"}


def test_the_latest_is_the_highest_step_and_not_the_last_in_the_alphabet(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (1000, 200, 90):
        save_checkpoint(tmp_path / checkpoint_name(step), STATE)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_step_1000"


def test_folders_that_are_no_whole_checkpoint_are_passed_over(tmp_path):
    save_checkpoint(tmp_path / checkpoint_name(5), STATE)
    (tmp_path / "checkpoint_step_9").mkdir()  # no state in it
    for name in (".checkpoint_step_8.123.tmp", "final_model", "report"):
        save_checkpoint(tmp_path / name, STATE)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_step_5"


def test_somebodys_copy_under_another_name_is_passed_over(tmp_path):
    save_checkpoint(tmp_path / checkpoint_name(5), STATE)
    save_checkpoint(tmp_path / "checkpoint_step_9_backup", STATE)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_step_5"


# -- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_folder_without_a_state_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"elsewhere holds no state\.pt; name a checkpoint_step_N or final_model"):
        load_checkpoint(tmp_path / "elsewhere")


def damaged(kind: str, whole: bytes) -> bytes:
    return {
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "zeros": bytes(len(whole)),
        "text": b"<html>502 Bad Gateway</html>",
        "a flipped head": b"XX" + whole[2:],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "cut short", "zeros", "text", "a flipped head"])
def test_a_damaged_state_is_refused_with_the_way_out(tmp_path, kind):
    folder = save_checkpoint(tmp_path / checkpoint_name(5), STATE)
    path = folder / "state.pt"
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(ValueError, match=r"(?s)state\.pt cannot be read .*remove .*checkpoint_step_5"):
        load_checkpoint(folder)


def test_another_format_version_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(5), STATE)
    torch.save({**STATE, "format_version": 99}, folder / "state.pt")
    with pytest.raises(ValueError, match=r"format_version=99, this trm-ray reads 2"):
        load_checkpoint(folder)


class Planted:
    """Code in a checkpoint; reading it must not run it."""

    def __reduce__(self):
        return (Path.touch, (Path("planted"),))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(tmp_path / checkpoint_name(5), {"step": Planted()})
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(folder)
    assert not (tmp_path / "planted").exists()
