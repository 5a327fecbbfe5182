"""Pictures come out the same whatever the user has set for his own, and his settings stay as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Draws a picture in a process of its own, and tells what matplotlib and the environment look like afterwards.
DRAW = """
import logging, os, sys
from pathlib import Path
{before}
settings = {{name: os.environ.get(name) for name in ("MPLBACKEND", "MATPLOTLIBRC")}}
from trm_ray.reporting.pictures import style
import matplotlib
from matplotlib.figure import Figure
look = lambda: {{key: str(matplotlib.rcParams._get(key)) for key in matplotlib.rcParams}}
had = look()
with style.styled():
    figure = Figure(figsize=(2, 1.5), dpi=50, layout="constrained")
    axes = figure.subplots()
    axes.plot([-1, 2, 3], label="loss $x_1$")
    axes.set_title("Loss")
    axes.legend()
style.save(figure, Path("picture.png"))
assert had == look()
assert settings == {{name: os.environ.get(name) for name in ("MPLBACKEND", "MATPLOTLIBRC")}}
assert "matplotlib.pyplot" not in sys.modules or {pyplot}
{after}
"""


def drawn(folder: Path, before: str = "", after: str = "", **environment: str) -> bytes:
    folder.mkdir(exist_ok=True)
    code = DRAW.format(before=before, after=after, pyplot="pyplot" in before)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB"))}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=clean | environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return (folder / "picture.png").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return drawn(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "TkAgg", "nonsense"])
def test_a_backend_that_is_not_there_changes_no_picture(tmp_path: Path, plain: bytes, backend: str):
    """A notebook's in a program that it started, one that needs a display, and a slip of the pen."""
    kept = f"assert matplotlib.rcParams._get('backend') == {backend!r}" if backend == "TkAgg" else ""
    assert drawn(tmp_path, after=kept, MPLBACKEND=backend) == plain


@pytest.mark.parametrize(
    "settings",
    [
        b"text.usetex: True\nfont.family: No Such Font\nsavefig.bbox: tight\nsavefig.transparent: True\n"
        b"axes.facecolor: black\nlines.linestyle: --\nfont.size: 40\npath.sketch: 1, 100, 2\n",
        b"no.such.key: 1\naxes.grid: perhaps\n",
    ],
    ids=["another look", "no keys"],
)
def test_a_matplotlibrc_in_the_folder_changes_no_picture(tmp_path: Path, plain: bytes, settings: bytes):
    (tmp_path / "matplotlibrc").write_bytes(settings)
    assert drawn(tmp_path, MPLBACKEND="nonsense" if b"usetex" in settings else "") == plain


def test_settings_that_are_no_text_change_no_picture(tmp_path: Path, plain: bytes):
    (tmp_path / "settings").write_bytes(b"\xff\xfe\x00 this is no text \x80\x81\n")
    assert drawn(tmp_path, MATPLOTLIBRC=str(tmp_path / "settings")) == plain


def test_a_program_keeps_its_style_and_its_open_figures(tmp_path: Path, plain: bytes):
    before = """
import matplotlib.pyplot as pyplot
pyplot.style.use("dark_background")
pyplot.rcParams.update({"text.usetex": True, "lines.linewidth": 9})
pyplot.figure(7)
"""
    after = "assert pyplot.get_fignums() == [7] and pyplot.rcParams['text.usetex'] and pyplot.get_backend() == 'agg'"
    assert drawn(tmp_path, before, after, MPLBACKEND="agg") == plain


def test_a_program_whose_own_import_failed_still_gets_our_pictures(tmp_path: Path, plain: bytes):
    before = """
try:
    import matplotlib
except ValueError:
    print("as expected")
"""
    assert drawn(tmp_path, before, MPLBACKEND="nonsense") == plain
