"""Tasks that Ray Data runs make what they make without it, and tell an error in one line."""

import hashlib
import json
from pathlib import Path

import pytest

from trm_ray.kinds.text.prepare import prepare_text as prepare_here
from trm_ray.programs.prepare_text import prepare_text

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def corpus(folder: Path, last: str) -> Path:
    folder.mkdir()
    for number in range(5):
        lines = (json.dumps({"text": f"text {text} of file {number} " * 9}) + "\n" for text in range(40))
        (folder / f"{number}.jsonl").write_text("".join(lines) + last)
    return folder


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path):
    inputs = [corpus(tmp_path / "corpus", "")]
    for workers in (1, 2):
        prepare_text(tmp_path / f"by {workers}", inputs=inputs, seq_len=16, workers=workers)
    prepare_here(tmp_path / "here", inputs=inputs, seq_len=16)
    found = [
        {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.rglob("*")
            if file.is_file()
        }
        for folder in (tmp_path / "by 1", tmp_path / "by 2", tmp_path / "here")
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 9


def test_a_bad_file_is_told_in_one_line(tmp_path: Path):
    inputs = [corpus(tmp_path / "corpus", "no JSON\n")]
    with pytest.raises(ValueError, match=r"\d\.jsonl, line 41, is no JSON") as found:
        prepare_text(tmp_path / "made", inputs=inputs, workers=2)
    assert "\n" not in str(found.value)
