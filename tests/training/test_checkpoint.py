"""A checkpoint is there as a whole or not at all, and what cannot be read says why."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from trm_ray.training import checkpoint
from trm_ray.training.checkpoint import (
    checkpoint_name,
    final_step,
    find_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_identifiers,
    remove_leftovers,
    save_checkpoint,
)

STATE = {"step": 7, "model": {"w": torch.arange(3.0)}, "ema": None, "config": {"lr": 1e-4, "data_paths": ["a"]}}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_checkpoint_makes_a_round_trip_and_leaves_nothing_else_behind(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(7), STATE)
    assert folder == tmp_path / "checkpoint_step_7"
    assert files(tmp_path) == {"checkpoint_step_7"}
    assert files(folder) == {"state.pt", "run.json", "manifest.json"}
    state = load_checkpoint(folder)
    assert torch.equal(state["model"].pop("w"), torch.arange(3.0))
    assert state == {"format_version": 2, "step": 7, "model": {}, "ema": None, "config": STATE["config"]}


def test_the_map_of_the_puzzles_lies_with_the_checkpoint(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(7), STATE, b'{"names": []}')
    assert files(folder) == {"state.pt", "run.json", "identifiers.json", "manifest.json"}
    assert load_identifiers(folder) == b'{"names": []}'
    assert load_identifiers(save_checkpoint(tmp_path / checkpoint_name(8), STATE)) is None


def test_a_run_means_its_final_model_else_its_latest_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint yet; name the folder of a run that has saved one"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    for step in (2, 10):
        save_checkpoint(tmp_path / checkpoint_name(step), STATE)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint_step_10"
    assert find_checkpoint(tmp_path / "checkpoint_step_2") == tmp_path / "checkpoint_step_2"
    save_checkpoint(tmp_path / "final_model", STATE | {"step": 10})
    assert find_checkpoint(tmp_path) == tmp_path / "final_model"


def test_the_final_model_of_a_run_that_was_trained_further_is_passed_over(tmp_path):
    save_checkpoint(tmp_path / "final_model", STATE | {"step": 8})
    save_checkpoint(tmp_path / checkpoint_name(8), STATE | {"step": 8})
    assert find_checkpoint(tmp_path) == tmp_path / "final_model"
    save_checkpoint(tmp_path / checkpoint_name(12), STATE | {"step": 12})
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint_step_12"


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


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    parent = os.getppid()
    names = [
        f".checkpoint_step_8.{dead.pid}.tmp",
        f".final_model.{dead.pid}.old",
        f".checkpoint_step_8.{os.getpid()}.tmp",
    ]
    for name in (*names, f".checkpoint_step_9.{parent}.tmp", f".checkpoint_step_7.{parent}.tmp", ".mine.1.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").touch()
    two_days_ago = time.time() - 2 * 86400
    os.utime(tmp_path / f".checkpoint_step_7.{parent}.tmp", (two_days_ago, two_days_ago))
    remove_leftovers(tmp_path)
    assert files(tmp_path) == {f".checkpoint_step_9.{parent}.tmp", ".mine.1.tmp"}


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


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def damaged(kind: str, whole: bytes) -> bytes:
    return {
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "zeros": bytes(len(whole)),
        "text": b"<html>502 Bad Gateway</html>",
        "a flipped head": b"XX" + whole[2:],
        "a flipped bit of a weight": flipped(whole, whole.index(torch.arange(3.0).numpy().tobytes()) + 5),
    }[kind]


DAMAGES = ["empty", "cut short", "zeros", "text", "a flipped head", "a flipped bit of a weight"]


def test_the_manifest_tells_size_and_sha256_of_every_file(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(7), STATE, b'{"names": []}', score=0.25)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    told = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": len(path.read_bytes())}
        for path in (folder / "state.pt", folder / "run.json", folder / "identifiers.json")
    }
    assert manifest == {"format_version": 1, "files": told, "step": 7, "score": 0.25}


@pytest.mark.parametrize("manifest", [True, False], ids=["with a manifest", "of an earlier version"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_state_is_refused_with_the_way_out_and_passed_over_with_a_word(tmp_path, caplog, kind, manifest):
    before = save_checkpoint(tmp_path / checkpoint_name(3), {**STATE, "step": 3})
    folder = save_checkpoint(tmp_path / checkpoint_name(5), {**STATE, "step": 5})
    path = folder / "state.pt"
    path.write_bytes(damaged(kind, path.read_bytes()))
    if not manifest:
        (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint_step_5 is damaged: state\.pt (has|is) .*; remove .*step_5, then"):
        load_checkpoint(folder)
    for _ in range(2):
        assert latest_checkpoint(tmp_path, verified=True) == before
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{folder} is damaged: state.pt ")


def test_a_look_at_the_sizes_alone_finds_what_is_cut_short_and_not_what_is_flipped(tmp_path):
    before, cut, turned = (save_checkpoint(tmp_path / checkpoint_name(step), STATE) for step in (3, 4, 5))
    (turned / "state.pt").write_bytes(damaged(DAMAGES[-1], (turned / "state.pt").read_bytes()))
    assert latest_checkpoint(tmp_path) == turned
    assert latest_checkpoint(tmp_path, verified=True) == cut
    os.truncate(cut / "state.pt", 100)
    assert latest_checkpoint(tmp_path, verified=True) == before


def test_a_missing_map_of_the_puzzles_is_damage_too(tmp_path):
    folder = save_checkpoint(tmp_path / checkpoint_name(5), STATE, b'{"names": []}')
    (folder / "identifiers.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint_step_5 is damaged: identifiers\.json is missing"):
        load_checkpoint(folder)


def test_a_damaged_final_model_is_named_and_no_other_taken_for_it(tmp_path):
    save_checkpoint(tmp_path / checkpoint_name(5), STATE)
    final = save_checkpoint(tmp_path / "final_model", STATE)
    assert final_step(tmp_path) == 7
    os.truncate(final / "state.pt", 100)
    with pytest.raises(ValueError, match=r"final_model is damaged: state\.pt has 100 of \d+ bytes; .* --resume"):
        find_checkpoint(tmp_path)
    assert final_step(tmp_path) is None


def test_a_checkpoint_of_an_earlier_version_without_a_manifest_is_as_good_as_ever(tmp_path):
    for name in (checkpoint_name(5), "final_model"):
        (tmp_path / name).mkdir()
        torch.save({"format_version": 2, **STATE}, tmp_path / name / "state.pt")
    assert latest_checkpoint(tmp_path, verified=True) == tmp_path / "checkpoint_step_5"
    assert load_checkpoint(tmp_path / "checkpoint_step_5")["step"] == 7
    assert find_checkpoint(tmp_path) == tmp_path / "final_model"
    assert final_step(tmp_path) == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "is no manifest"),
        (b"[" * 100_000, "is no manifest"),
        (b"[1, 2]", "is no manifest"),
        (b'{"format_version": 1, "step": 1, "score": null, "files": {"state.pt": {}}}', "is no manifest"),
        (b'{"format_version": 7, "step": 1, "score": null, "files": {}}', "has format_version=7, this trm-ray reads 1"),
        (b'{"format_version": 1, "step": 1, "score": null, "files": {}}', "names other files than state.pt"),
        (
            b'{"format_version": 1, "step": 1, "score": null, "files": {"../x": {"sha256": "", "bytes": 0}}}',
            "names other files than state.pt",
        ),
    ],
)
def test_a_manifest_that_is_none_is_damage_by_name(tmp_path, text, told):
    folder = save_checkpoint(tmp_path / checkpoint_name(5), STATE)
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"checkpoint_step_5 is damaged: manifest.json {told}"):
        load_checkpoint(folder)


def test_another_format_version_is_refused(tmp_path):
    folder = tmp_path / checkpoint_name(5)
    folder.mkdir()
    torch.save({**STATE, "format_version": 99}, folder / "state.pt")
    with pytest.raises(ValueError, match=r"format_version=99, this trm-ray reads 2"):
        load_checkpoint(folder)


class Planted:
    """Code in a checkpoint; reading it must not run it."""

    def __reduce__(self):
        return (Path.touch, (Path("planted"),))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(tmp_path / checkpoint_name(5), {"step": 5, "planted": Planted()})
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(folder)
    assert not (tmp_path / "planted").exists()
