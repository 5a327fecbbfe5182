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
HEAVY = {"torch", "ray", "matplotlib", "pyarrow"}

# Each part of trm_ray, a package or a module, and the other parts that it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "storage": set(),
    "ownership": {"storage"},
    "replacement": {"storage", "ownership"},
    "config": {"storage"},
    "model": {"config"},
    "data": {"storage", "ownership", "replacement", "config"},
    "training": {"storage", "replacement", "config", "model"},
    "reporting": {"storage", "config"},
    "conversions": {"storage", "ownership", "replacement", "config", "data", "training"},
    "run": {
        *("storage", "ownership", "replacement", "config", "model", "data", "training", "reporting", "conversions"),
    },
    "results": {"storage"},
    "submission": {"storage", "config"},
    "distributed": {
        *("storage", "replacement", "config", "model", "data", "training", "reporting", "run", "results", "submission"),
    },
    "planning": {"storage", "config", "data", "training", "reporting", "run"},
    "sweeps": {"storage", "ownership", "replacement", "config", "training", "reporting", "run", "distributed"},
    "evaluations": {"storage", "replacement", "config", "model", "data", "training", "reporting", "run", "distributed"},
    "selftest": {"config", "data", "training", "run", "sweeps", "distributed"},
    "scaling": {"config", "training", "run", "distributed"},
    "projection": set(),
    "predictions": {"storage", "config", "model", "data", "training", "reporting"},
    "api": {"storage", "config", "model", "training", "reporting", "run", "distributed", "sweeps", "evaluations"},
    "cli": {
        *("storage", "config", "model", "data", "training", "reporting", "run", "distributed", "sweeps", "predictions"),
        *("evaluations", "conversions", "selftest", "planning", "submission", "scaling", "projection"),
    },
}
FORBIDDEN: dict[str, set[str]] = {
    "storage": {"torch", "ray", "numpy", "pyarrow", "matplotlib", "s3fs", "boto3", "botocore"},
    "ownership": {"torch", "ray", "numpy", "pyarrow", "matplotlib", "yaml"},
    "replacement": {"torch", "ray", "numpy", "pyarrow", "matplotlib"},
    "config": {"torch", "ray", "numpy", "pyarrow", "matplotlib"},
    "model": {"ray", "numpy", "pyarrow", "matplotlib", "tensorboard"},
    "training": {"ray", "numpy", "pyarrow", "matplotlib", "tensorboard"},
    "data": {"torch", "ray", "matplotlib"},
    "reporting": {"ray"},
    "conversions": {"ray", "numpy", "pyarrow", "matplotlib"},
    "run": {"ray"},
    "results": {"torch", "ray", "numpy", "pyarrow", "matplotlib"},
    "submission": {"torch", "ray", "numpy", "pyarrow", "matplotlib"},
    "sweeps": {"ray"},
    "planning": {"ray", "numpy", "pyarrow", "matplotlib"},
    "selftest": {"ray"},
    "scaling": {"ray"},
    "projection": {"ray", "torch", "numpy"},
    "predictions": {"ray", "matplotlib"},
    "api": {"ray"},
    "evaluations": {"ray"},
    "cli": {"ray"},
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


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_dependencies_point_one_way(part):
    strays = {
        str(path.relative_to(ROOT)): sorted(parts(path) - MAY_IMPORT[part] - {part})
        for path in sources(f"trm_ray/{part}")
        if parts(path) - MAY_IMPORT[part] - {part}
    }
    assert strays == {}


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
    assert found - {"__init__", "__main__"} == set(MAY_IMPORT)


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


@pytest.mark.skipif(importlib.util.find_spec("trm_ray.cli") is None, reason="there is no command line yet")
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sweep", "--help"], ["submit", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    assert heavy_after(HELP.format(arguments=arguments)) == []
