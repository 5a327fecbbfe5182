"""What all tests share: one thread a process, since the tests' models are too small for more, and an S3 server."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from s3_helpers import BUCKET, Gate, s3_server

from trm_ray.storage import as_path

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in two processes, keep those of a file together, and those of one Ray session."""
    for item in items:
        fixtures = item.fixturenames if isinstance(item, pytest.Function) else []
        item.add_marker(pytest.mark.xdist_group("cluster" if "cluster" in fixtures else str(item.path)))


@pytest.fixture(autouse=True)
def heard_again() -> None:
    """Ray raises the level of all loggers of the process that have none of their own."""
    logging.getLogger("trm_ray").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def gate() -> Iterator[Gate]:
    """The way to an S3 server."""
    with s3_server() as gate:
        yield gate


@pytest.fixture
def bucket(gate: Gate, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of this test's own on the S3 server."""
    yield as_path(f"s3://{BUCKET}") / request.node.name.replace("[", "-").replace("]", "")
    gate.open()
