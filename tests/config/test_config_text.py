"""Text as users' machines write it."""

import gzip

import pytest

from trm_ray.config import ConfigError, load_config
from trm_ray.config.text import NotTextError, decoded, opened_text, read_text

TEXT = "größe: 1\n\nlast: 2 \n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_mark_and_every_end_of_line_gives_the_same_text(tmp_path, encoding, end):
    content = TEXT.replace("\n", end).encode(encoding)
    (tmp_path / "x").write_bytes(content)
    assert read_text(tmp_path / "x") == TEXT
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    for name in ("x", "x.gz"):
        with opened_text(tmp_path / name) as (text, file):
            assert [line.strip() for line in text] == ["größe: 1", "", "last: 2"]
            assert file.tell() == (tmp_path / name).stat().st_size


def test_big_endian_text_with_its_mark_is_read():
    assert decoded(b"\xfe\xff" + TEXT.encode("utf-16-be")) == TEXT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a\r\nb\r\n\xff\xfec", r"^it is no text \(line 3: byte 0xff is none of UTF-8\); save it as UTF-8$"),
        ("a\rgröße".encode("latin-1"), r"^it is no text \(line 2: byte 0xf6 is none of UTF-8\)"),
        (b"a\n\nPK\x03\x04\x00\x00", r"^it is no text \(line 3: a zero byte\)"),
        ("a\nb".encode("utf-16-le"), r"^it is no text \(line 1: a zero byte\)"),
        (b"\xff\xfea\x00\n\x00\x00\xd8", r"^it is no text \(line 2: byte 0x00 is none of UTF-16\)"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(content, told):
    with pytest.raises(NotTextError, match=told):
        decoded(content)


def test_a_config_is_read_in_any_of_them_and_its_lines_are_named(tmp_path):
    path = tmp_path / "mine.yaml"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes("lr: 0.5\r\n\r\nmax_steps: 7\r\ndata_paths: [x]\r\n".encode(encoding))
        assert load_config(str(path)).max_steps == 7
        path.write_bytes("lr: 0.5\r\n\r\nmax_step: 7\r\n".encode(encoding))
        with pytest.raises(ConfigError, match=r"mine.yaml:3: max_step=7"):
            load_config(str(path))
    path.write_bytes(b"lr: 0.5\n\x89PNG\r\n\x1a\n\x00")
    with pytest.raises(ConfigError, match=r"mine.yaml: must be valid YAML: it is no text .line 2"):
        load_config(str(path))
