"""Text and tables on any terminal: as they are, in any encoding and width, and when nobody reads on."""

import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from test_console import append, recording, run_display, train_row

from trm_ray.reporting.console import SweepDisplay
from trm_ray.reporting.terminal import _Outlet, any_terminal, fitted, say, show

ODD = [
    "runs/[/x]",
    "runs/[a]",
    "[bold red]not red[/]",
    ":smile: :warning:",
    "https://x.y/z 12 'quoted' True",
    "\\[a]",
    "ä 漢字 😀 👩\u200d💻 می\u200cخواهم",
    "x" * 300,
    "a " * 200 + "b",
]


# ---- text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ODD, ids=[text[:20] for text in ODD])
def test_text_is_printed_as_it_is(text: str):
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=40, force_terminal=terminal, color_system="truecolor")
        say(console, text)
        say(console, ("warn", ""), f"  {text}")
        assert console.file.getvalue() == f"{text}\nwarn  {text}\n"  # type: ignore[attr-defined]


def test_a_style_is_of_its_part_alone():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    say(console, ("error:", "bold red"), " [red]x[/]")
    assert console.file.getvalue() == "\x1b[1;31merror:\x1b[0m [red]x[/]\n"  # type: ignore[attr-defined]


def test_a_terminal_obeys_nothing_that_text_says():
    console = recording()
    say(console, "caf\udce9")
    say(console, "a\x1b[2Jb\rc\x07d\u202ee\u2028f\nsecond")
    assert console.file.getvalue() == "caf\\xe9\na [2Jb c d e f\nsecond\n"  # type: ignore[attr-defined]


def test_odd_names_stand_in_a_sweep_s_table_and_lines(tmp_path: Path):
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=160, force_terminal=terminal, color_system=None)
        with SweepDisplay(console, {}) as display:
            display.started("[/x] :smile: [a]", tmp_path / "x", 10)
            display.ended("[/x] :smile: [a]", "failed")
        assert "[/x] :smile: [a]  failed" in " ".join(console.file.getvalue().splitlines())  # type: ignore[attr-defined]


# ---- tables ----------------------------------------------------------------------------------------------


def table(name: str = "exponential") -> Table:
    made = Table(box=None, pad_edge=False, caption="One seed only.")
    made.add_column("#")
    made.add_column("Scenario", overflow="fold")
    for heading in ("Held-out\nloss", "Exact\n%", "Steps to\n50 %", "para-\nmeters"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_row("1", Text(name), "0.127", "90.4", "never", "1,234,567")
    made.add_row("2", Text("linear"), "0.383", "69.5", "400", "73")
    return made


def printed(width: int, made: Table, names: int = 2) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(fitted(console, made, names))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_table_that_fits_is_a_table():
    assert printed(80, table())[2].split() == ["1", "exponential", "0.127", "90.4", "never", "1,234,567"]


@pytest.mark.parametrize("width", [20, 30, 40, 50])
@pytest.mark.parametrize("name", ["exponential", "linear · data_paths=[runs/[a]/x] · seed 漢字"])
def test_a_narrow_table_keeps_every_cell_in_lines_below_its_names(width: int, name: str):
    lines = printed(width, table(name))
    assert max(map(cell_len, lines)) <= width
    text = " ".join("".join(lines).split())
    assert "".join(f"1 {name}".split()) in "".join(text.split())
    for told in ("Held-out loss 0.127", "Exact % 90.4", "Steps to 50 % never", "parameters 1,234,567", "loss 0.383"):
        assert told in " ".join(lines).replace("  ", " ").replace("  ", " ")
    assert lines[-1] == "One seed only."


def test_a_long_name_alone_is_folded_and_makes_no_lines_of_a_table():
    lines = printed(70, table("data_paths=" + "x" * 90))
    assert lines[2].split()[-1] == "1,234,567"


def test_nothing_is_cut_where_nobody_s_terminal_limits_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = Console(file=io.StringIO())
    show(console, table("x" * 200))
    assert "x" * 200 in console.file.getvalue()  # type: ignore[attr-defined]


def test_columns_limit_what_is_piped_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    console = Console(file=io.StringIO())
    show(console, table(), names=2)
    assert max(map(len, console.file.getvalue().splitlines())) <= 40  # type: ignore[attr-defined]


def test_a_quiet_console_shows_no_table():
    console = Console(file=io.StringIO(), quiet=True)
    show(console, table())
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


# ---- encodings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"... - x ? ? Sum wi 1/2 caf\\xe9"),
        ("latin-1", r"... - × ä ? Sum wi ½ caf\xe9".encode("latin-1")),
        ("cp1252", r"… – × ä ? Sum wi ½ caf\xe9".encode("cp1252")),
        ("utf-8", r"… – × ä 漢 Sum wᵢ ½ caf\xe9".encode()),
    ],
)
def test_any_encoding_gets_what_it_has_and_something_for_the_rest(
    encoding: str, expected: bytes, monkeypatch: pytest.MonkeyPatch
):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with any_terminal():
        print("… – × ä 漢 Sum wᵢ ½ caf\udce9", end="")  # the last: a byte of a file's name that is no text
        sys.stdout.flush()
    assert raw.getvalue() == expected


def test_tables_and_bars_have_no_other_characters_in_ascii(monkeypatch: pytest.MonkeyPatch):
    from rich import box

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with any_terminal():
        made = table()
        made.box = box.SIMPLE_HEAD
        show(Console(), made)
        sys.stdout.flush()
    assert b"?" not in raw.getvalue()
    assert b"exponential" in raw.getvalue()


# ---- readers that go away ----------------------------------------------------------------------------------

PROGRAM = """
import sys
from trm_ray.reporting.terminal import any_terminal, go_on_without_reader
with any_terminal():
    if {goes_on}:
        go_on_without_reader()
    print("first", flush=True)
    sys.stdin.read()  # until the reader is gone
    for number in range(20_000):
        print(number)
    open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize(("goes_on", "code"), [(False, 141), (True, 0)])
def test_without_a_reader_a_command_ends_quietly_or_goes_on(goes_on: bool, code: int, tmp_path: Path):
    words = [sys.executable, "-c", PROGRAM.format(goes_on=goes_on), str(tmp_path / "end")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == code
    assert (tmp_path / "end").exists() == goes_on


@pytest.fixture
def abandoned() -> Iterator[_Outlet]:
    """A stream whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    outlet = _Outlet(io.BufferedWriter(io.FileIO(writer, "w")), encoding="utf-8")
    yield outlet
    outlet.close()


def test_a_display_shows_a_run_to_its_end_to_nobody(abandoned: _Outlet, tmp_path: Path):
    abandoned.goes_on = True
    display = run_display(tmp_path, Console(file=abandoned))
    with display:
        append(tmp_path, train_row(10))
    assert not display._thread.is_alive()
    assert display._seen == 10


def test_a_stream_without_a_reader_ends_the_program_as_sigpipe_would(abandoned: _Outlet):
    with pytest.raises(SystemExit) as ended:
        print("x", file=abandoned, flush=True)
    assert ended.value.code == 141
    print("y", file=abandoned, flush=True)  # what is written on the way out goes nowhere


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_and_ends_only_what_does_not_go_on():
    with open("/dev/full", "wb", buffering=0) as full:
        outlet = _Outlet(io.BufferedWriter(io.FileIO(os.dup(full.fileno()), "w")), encoding="utf-8")
    with pytest.raises(OSError) as told:
        print("x", file=outlet, flush=True)
    assert told.value.errno == errno.ENOSPC
    outlet.close()


def test_a_display_that_fails_says_so_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    append(tmp_path, {"step": 10, "wall_s": 1.0, "train/act_loss": 1.0})  # not all that a line tells
    with run_display(tmp_path, recording()) as display:
        while display._thread.is_alive():
            threading.Event().wait(0.01)
    assert "nothing more is shown (KeyError:" in caplog.text
    assert str(tmp_path / "metrics.jsonl") in caplog.text
