"""One Ray session for all tests of this folder, with more CPUs than a machine may have: they are only counted."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import some_puzzles
from s3_helpers import Gate

import trm_ray.distributed  # noqa: F401  # before Ray, whose import reads the settings that it makes

# Room for one trial of two workers and the process that waits for them, and not for what a stopped trial would keep.
NUM_CPUS = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Ray use what Ray deprecates."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."))


@pytest.fixture(scope="session")
def cluster(gate: Gate) -> Iterator[None]:  # whose address workers find in their environment
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    import ray

    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        object_store_memory=300_000_000,
        include_dashboard=True,
        logging_level="ERROR",
        logging_config=ray.LoggingConfig(log_level="ERROR"),
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose training rows lie in three files; 65 test rows, which two workers cannot halve."""
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles")
