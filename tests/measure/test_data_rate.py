"""What the data bench reckons from what workers found, without Ray; the real thing is in tests/distributed."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from run_helpers import run_config, some_puzzles

from trm_ray.config import ConfigError
from trm_ray.measure.data_rate import data_json, data_table, measure_data, told
from trm_ray.reporting.pictures.data_rate import draw_data
from trm_ray.runs.plan import plan_run
from trm_ray.runs.readings import Moment, Pace, Readings

MIB = 2**20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_puzzles(tmp_path_factory.mktemp("data") / "puzzles")


@pytest.fixture
def measured(data: Path, tmp_path: Path) -> dict[str, Any]:
    """Two workers; the first moment warms up. From there on 200 and 100 rows a second, at 0.5 s of processor each."""
    moments = [
        Moment(
            seconds=at,
            paces=[Pace(first, 1.0, 0.1), Pace(second, 1.0, 0.1)],
            cpu_s=cpu,
            worker_bytes=[100 * MIB, 110 * MIB],
            task_bytes=held * MIB,
            store_bytes=40 * MIB,
            spilled_bytes=0,
        )
        for at, first, second, cpu, held in [(0, 1, 1, 9, 50), (6, 200, 100, 10, 300), (7, 200, 100, 10.5, 200)]
    ]
    plan = plan_run(run_config(data, tmp_path / "run"))
    return told(plan, Readings([Pace(900, 3.0, 2.0), Pace(300, 1.0, 1.0)], [1.5, 2.5], moments, 286 * MIB))


def test_rates_are_of_a_worker_and_of_a_second_of_processor_time(measured: dict[str, Any]):
    assert measured["held_per_s"] == [300, 300]
    assert measured["streamed_per_s"] == [200, 100]
    assert measured["held_per_core_s"] == 400  # 1,200 rows in 3 s
    assert measured["streamed_per_core_s"] == 600  # 300 rows in 0.5 s, whoever spent them
    assert (measured["rows"], measured["workers"]) == (768, 2)
    assert measured["gib"] == pytest.approx(768 * 16 * 2 * 4 / 2**30)


def test_the_table_and_the_file_tell_the_numbers_and_the_most_memory(measured: dict[str, Any]):
    console = Console(file=io.StringIO(), width=140)
    console.print(data_table(measured))
    row = next(line for line in console.file.getvalue().splitlines() if line.startswith("2 "))  # type: ignore[attr-defined]
    assert row.split() == ["2", "300", "150", "400", "600", "110", "300", "40", "0"]
    assert json.loads(data_json(measured)) == measured


def test_the_figure_shows_rate_memory_and_store_over_time(measured: dict[str, Any]):
    rate, memory, store = draw_data(measured).axes
    lines = {line.get_label(): list(line.get_ydata()) for axes in (rate, memory, store) for line in axes.get_lines()}
    assert lines["from memory"] == [0.3, 0.3]
    assert lines["all that read for them"] == [50, 300, 200]
    assert lines["in use"] == [40, 40, 40]
    assert lines["spilled to disk"] == [0, 0, 0]


def test_a_run_that_does_not_stream_is_told_how_it_would(data: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data_memory_gib=2 holds the train split of 9\.16e-05 GiB in memory; use"):
        measure_data(run_config(data, tmp_path / "run"), 2)
    with pytest.raises(ConfigError, match=r"ray\.num_workers=0 has no workers"):
        measure_data(run_config(data, tmp_path / "run", "ray.num_workers=0"), 2)
