"""What all tests share: one thread a process, since the tests' models are too small for more, and an S3 server."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_helpers import BUCKET, Gate, s3_server
from xdist.scheduler import LoadFileScheduling

from trm_ray.storage import as_path

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


_IN_A_SESSION = sorted(
    path.name for path in (Path(__file__).parent / "distributed").glob("test_*.py") if '"cluster"' in path.read_text()
)


class FilesTogether(LoadFileScheduling):
    """Where tests run in two processes, keep those of a file together, and those that share the Ray session."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "Ray session" if Path(file).name in _IN_A_SESSION else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    return FilesTogether(config, log)


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
