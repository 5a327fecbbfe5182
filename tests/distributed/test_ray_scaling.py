"""The scaling bench for real: workers of Ray Train in turns with a process without Ray."""

from pathlib import Path

import pytest
from run_helpers import run_config

from trm_ray.config import ConfigError
from trm_ray.measure.scaling import WEAK, Case, measure_scaling

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


@pytest.mark.slow
def test_two_workers_are_measured_against_the_plain_loop(puzzles: Path, tmp_path: Path):
    config = run_config(puzzles, tmp_path / "unused", "ray.cpus_per_worker=0.5")
    (result,) = measure_scaling(config, [Case(WEAK, 2)], num_turns=3, steps=4)
    assert (result.workers, result.batch_size, result.plain_batch_size, result.num_turns) == (2, 16, 8, 3)
    assert 0 < result.speed_up.low <= result.speed_up.median <= result.speed_up.high
    assert 0 < result.least_exchange <= result.exchange.median < 1
    assert result.cpu_ratio.median > 0
    assert 0 < result.report_ms < 5_000
    assert not (tmp_path / "unused").exists()


def test_a_loop_that_fails_ends_the_measurement(puzzles: Path, tmp_path: Path):
    config = run_config(puzzles, tmp_path / "unused", "ray.num_workers=2", "ray.gpus_per_worker=1", "ray.use_gpu=true")
    with pytest.raises(ConfigError, match=r"ray\.gpus_per_worker=1 needs 2 GPUs"):
        list(measure_scaling(config, [Case(WEAK, 2)], num_turns=1, steps=1))
