"""What is installed: one tested set of versions, lower bounds that were tried, a word on what each package is for."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from run_helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [
    Requirement(line)
    for line in (*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra))
    if not line.startswith("trm-ray[")
]
TESTED, LOWEST = (ROOT / "jobs" / name for name in ("constraints.txt", "lowest.txt"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pinned(path: Path, python: str) -> dict[str, str]:
    """The version of each package on Linux."""
    told = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    asked = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in asked
        if one.marker is None or one.marker.evaluate(told)
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_versions_are_ones_that_are_allowed_and_of_all_that_is_needed(python: str):
    versions = pinned(TESTED, python)
    for needed in NEEDED:
        assert needed.specifier.contains(versions[canonicalize_name(needed.name)]), needed


@pytest.mark.parametrize("path", [TESTED, LOWEST], ids=lambda path: path.name)
def test_versions_are_pinned_for_every_machine(path: Path):
    """No package of one machine or one registry: neither a local version nor a place."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.match(r"[a-z0-9][a-z0-9.-]*==[0-9][a-z0-9.]*( ;|$)", line)] == []


def test_the_lower_bounds_are_the_versions_that_the_lowest_tests_install():
    versions = pinned(LOWEST, "3.11")
    bounds = {
        canonicalize_name(one.name): next(part.version for part in one.specifier if part.operator == ">=")
        for one in NEEDED
        if one.name != "gcsfs"  # what Google's storage needs is not tested
    }
    lowest = {name: versions[name] for name in bounds}
    assert {
        name: Requirement(f"{name}=={bound}").specifier.contains(lowest[name]) for name, bound in bounds.items()
    } == (dict.fromkeys(bounds, True)), lowest


def test_whatever_installs_takes_the_tested_versions():
    for name in ("Makefile", "cluster.yaml", "jobs/Dockerfile"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("$(TESTED)", str(TESTED)).replace("\\\n", "")
        installs = re.findall(r"pip install[^\n]*(?:\n +[^-\s#][^\n]*)?", text)
        assert installs
        assert [line for line in installs if "constraints.txt" not in line and not line.endswith(" uv")] == [], name
    assert "jobs/Dockerfile" in (ROOT / "jobs" / "kuberay.yaml").read_text(encoding="utf-8")
    assert "make check package test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_clusters_run_the_tested_ray():
    version = pinned(TESTED, "3.11")["ray"]
    for name in ("cluster.yaml", "jobs/Dockerfile"):
        assert f"rayproject/ray:{version}-py311-gpu" in (ROOT / name).read_text(encoding="utf-8")
    assert f'rayVersion: "{version}"' in (ROOT / "jobs" / "kuberay.yaml").read_text(encoding="utf-8")


def test_the_docs_tell_what_each_package_is_for():
    table = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    told = {name for row in re.findall(r"^\|([^|]*)\|", table, re.M) for name in re.findall(r"`([\w-]+)`", row)}
    assert {one.name for one in NEEDED} - told == set()
