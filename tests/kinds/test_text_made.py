"""Text that needs no files: sums and words as prompts with answers, and the documentation of Python."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from trm_ray.data.check import open_datasets
from trm_ray.data.format import read_split
from trm_ray.kinds.registry import check_kind
from trm_ray.kinds.text.generate import generate_text


def prompts_of(folder: Path, split: str) -> dict[str, str]:
    """What is asked and what is to be learnt in each row: whatever has no label is given."""
    found = {}
    for inputs, labels in zip(
        *(getattr(read_split(folder, split), name) for name in ("inputs", "labels")), strict=True
    ):
        learnt = np.flatnonzero(labels >= 0)
        assert (inputs[0], labels[learnt[-1]]) == (256, 256)
        assert np.array_equal(inputs[learnt[1:]], labels[learnt[:-1]])
        found[bytes(inputs[1 : learnt[0] + 1].tolist()).decode()] = bytes(labels[learnt[:-1]].tolist()).decode()
    return found


def test_sums_are_right_and_no_prompt_comes_twice(tmp_path: Path):
    generate_text(tmp_path / "sums", source="addition", train=300, test=50, seq_len=13)
    train, test = (prompts_of(tmp_path / "sums", split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.keys() & test.keys())) == (300, 50, 0)
    for asked, answer in {**train, **test}.items():
        one, other = asked.removesuffix("=").split("+")
        assert int(one) + int(other) == int(answer)
    assert {len(asked) for asked in train} == set(range(len("1+1="), len("111+111=") + 1))
    generate_text(tmp_path / "more", source="addition", train=600, test=50, seq_len=13)
    assert prompts_of(tmp_path / "more", "test") == test


def test_words_are_turned_around(tmp_path: Path):
    info = generate_text(tmp_path / "words", source="reverse", train=90, test=9, size=5, seq_len=12, seed=1)
    assert all(asked[:-1] == answer[::-1] for asked, answer in prompts_of(tmp_path / "words", "train").items())
    assert info.text is not None
    assert (info.text.packing, info.text.documents) == ("prompt", {"train": 90, "test": 9})


def test_the_documentation_of_python_is_running_text_of_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(Path(json.__file__).parent))  # all of it takes seconds
    info = generate_text(tmp_path / "docs", source="stdlib", train=200, test=20, seq_len=32)
    assert info.text is not None
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 200, "test": 20}
    assert info.text.tokens == {"train": 200 * 32, "test": 20 * 32}
    rows, held_out = (read_split(tmp_path / "docs", split) for split in ("train", "test"))
    text = held_out.labels.ravel()
    text = np.where(text == 256, 0, text).astype(np.uint8).tobytes().rstrip(b"\0")
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    assert info.text.xz_bits_per_byte == pytest.approx(8 * len(packed) / info.text.bytes["test"], abs=1e-6)
    assert info.text.unigram_bits_per_byte is not None
    assert 3 < info.text.unigram_bits_per_byte < 8
    assert np.array_equal(rows.inputs.ravel()[1:], rows.labels.ravel()[:-1])
    assert open_datasets([tmp_path / "docs"], also=check_kind).kind == "text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "chess"}, "source=chess must be one of addition, reverse, stdlib"),
        ({"source": "addition", "size": 1, "train": 99}, "only 100 prompts of size=1 were found that differ"),
        ({"source": "addition", "seq_len": 9}, "seq_len=9 must be at least 1[0-3]"),
        ({"source": "addition", "size": 19}, "size=19 must be at most 18"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        generate_text(tmp_path / "made", **{"train": 50, "test": 10, **arguments})
    assert not (tmp_path / "made").exists()
