"""The data bench for real: two workers that read."""

from pathlib import Path

import pytest
from run_helpers import run_config

from trm_ray.measure.data_rate import measure_data

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.mark.slow
def test_two_workers_read_from_memory_and_from_files(puzzles: Path, tmp_path: Path):
    words = ["ray.num_workers=2", "data_memory_gib=1e-5"]
    measured = measure_data(run_config(puzzles, tmp_path / "unused", *words), 7)
    assert min(*measured["held_per_s"], *measured["streamed_per_s"], measured["held_per_core_s"]) > 0
    assert len(measured["moments"]) >= 2
    assert all(moment["spilled_mib"] == 0 for moment in measured["moments"])
    assert min(min(moment["worker_mib"]) for moment in measured["moments"]) > 20
    assert not (tmp_path / "unused").exists()
