"""The house: who may import whom, read off the source, and what an import costs."""

import ast
import graphlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "ray", "matplotlib", "pyarrow", "scipy"}

# The floors of trm_ray, packages and modules, from the top down: each imports only what lies below it.
FLOORS = (
    "cli",
    "api",
    "measure",
    "programs",
    "distributed",
    "runs",
    "interop",
    "kinds",
    "data",
    "training",
    "reporting",
)
FLOORS += ("model", "replacement", "ownership", "config", "storage")
# What neighbours have nothing to do with, though they lie above it.
APART = {"data": {"training", "reporting", "model"}, "training": {"reporting"}, "reporting": {"model", "ownership"}}
FORBIDDEN: dict[str, set[str]] = {
    **{floor: {"ray"} for floor in FLOORS},
    "distributed": set(),
    "data": {"torch", "ray", "matplotlib"},
    "kinds": {"torch", "ray", "matplotlib"},
    "training": {"ray", "numpy", "pyarrow", "matplotlib", "tensorboard"},
    "model": {"ray", "numpy", "pyarrow", "matplotlib", "tensorboard"},
    "replacement": {"torch", "ray", "numpy", "pyarrow", "matplotlib"},
    "ownership": {"torch", "ray", "numpy", "pyarrow", "matplotlib", "yaml"},
    "config": {"torch", "ray", "numpy", "pyarrow", "matplotlib"},
    "storage": {"torch", "ray", "numpy", "pyarrow", "matplotlib", "s3fs", "boto3", "botocore"},
}


def sources(*names: str) -> list[Path]:
    """The files of packages and modules, by their paths from the root without suffix."""
    found = [ROOT / f"{name}.py" for name in names if (ROOT / f"{name}.py").exists()]
    found += [path for name in names for path in sorted((ROOT / name).rglob("*.py"))]
    assert found
    return found


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, in functions too, by its full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here, so that this test can read them"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def parts(path: Path) -> set[str]:
    """The parts of trm_ray that a file imports."""
    found = {name.split(".")[1] for name in imported(path) if name.startswith("trm_ray.")}
    return found - {"__version__"}


def test_ray_is_imported_in_distributed_in_jobs_and_in_their_tests_alone():
    homes = [ROOT / "trm_ray" / "distributed", ROOT / "jobs", ROOT / "tests" / "distributed"]
    strays = [
        str(path.relative_to(ROOT))
        for path in sources("trm_ray", "tests", "jobs")
        if "ray" in packages(path) and not any(home in path.parents for home in homes)
    ]
    assert strays == []


@pytest.mark.parametrize("part", FLOORS)
def test_dependencies_point_downwards(part):
    allowed = set(FLOORS[FLOORS.index(part) :]) - APART.get(part, set())
    strays = {str(path.relative_to(ROOT)): sorted(parts(path) - allowed) for path in sources(f"trm_ray/{part}")}
    assert {path: found for path, found in strays.items() if found} == {}


@pytest.mark.parametrize("part", FORBIDDEN)
def test_each_part_keeps_to_its_own_libraries(part):
    strays = {
        str(path.relative_to(ROOT)): sorted(packages(path) & FORBIDDEN[part])
        for path in sources(f"trm_ray/{part}")
        if packages(path) & FORBIDDEN[part]
    }
    assert strays == {}


def test_no_module_imports_one_that_builds_on_it():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sources("trm_ray")}
    needs = {
        name: {part for found in imported(path) for part in (found, found.rpartition(".")[0])} & names.keys() - {name}
        for name, path in names.items()
    }
    graphlib.TopologicalSorter(needs).prepare()  # raises a CycleError that names the circle


def test_every_part_of_the_package_is_known_to_this_test():
    package = ROOT / "trm_ray"
    found = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(FLOORS)


def heavy_after(code: str) -> list[str]:
    """The heavy libraries that are loaded once `code` has run in a fresh interpreter."""
    tail = f"import json, sys; print(json.dumps(sorted({HEAVY!r} & sys.modules.keys())))"
    command = [sys.executable, "-c", f"{code}\n{tail}"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("module", ["trm_ray", "trm_ray.config"])
def test_an_import_loads_nothing_heavy(module):
    assert heavy_after(f"import {module}") == []


def test_naming_the_python_api_loads_nothing_heavy_and_neither_does_a_config():
    assert (
        heavy_after("import trm_ray; dir(trm_ray); trm_ray.solve; trm_ray.load_config('deep_supervision_linear')") == []
    )


HELP = """
import sys
from trm_ray.cli import app
sys.argv = ["trm-ray", *{arguments!r}]
try:
    app()
except SystemExit as end:
    assert not end.code, end.code
"""


MISTAKE = """
from trm_ray.cli import app
try:
    app({arguments!r})
except SystemExit as end:
    assert end.code == 2, end.code
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "lrr=1"],
        ["train", "--config-name", "deep_supervision_liner"],
        ["train", "generator.trian=9"],
        ["train", "lr=1e-3", "lr=2e-3"],
        ["sweep", "lrr=1"],
        ["sweep", "generator.trian=9"],
        ["plan", "five_scenarios", "lrr=1"],
        ["schedule", "five_scenarios", "lrr=1"],
        ["bench", "scaling", "lrr=1"],
        ["submit", "train", "lrr=1"],
        ["evaluate", "runs/a", "--segments", "a"],
        ["predict", "runs/a", "nowhere.txt"],
        ["generate", "runs/a", "--cycles", "0"],
        ["generate", "runs/a", "--file", "nowhere.txt"],
    ],
    ids=" ".join,
)
def test_a_mistyped_command_is_refused_before_anything_heavy_is_loaded(arguments):
    assert heavy_after(MISTAKE.format(arguments=arguments)) == []


@pytest.mark.skipif(importlib.util.find_spec("trm_ray.cli") is None, reason="there is no command line yet")
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sweep", "--help"], ["submit", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    assert heavy_after(HELP.format(arguments=arguments)) == []
