"""What is said of CPUs and GPUs that a cluster lacks, by arithmetic alone."""

from typing import Any

import pytest
from run_helpers import ROOT

from trm_ray.config import Config, load_config
from trm_ray.distributed.cluster import missing_room, worker_resources


def config(*words: str) -> Config:
    return load_config("deep_supervision_linear", words, config_dir=ROOT / "configs")


@pytest.mark.parametrize(
    ("words", "there", "num_runs", "told"),
    [
        ("", {"CPU": 0.0}, 5, "waiting for 5 CPUs (the cluster has 0 of 5)"),
        ("ray.cpus_per_worker=2", {"CPU": 4.0}, 3, "waiting for 2 CPUs (the cluster has 4 of 6)"),
        ("ray.num_workers=2", {"CPU": 4.0}, 2, None),
        ("ray.num_workers=[1,4]", {"CPU": 1.0}, 1, None),
        ("ray.use_gpu=true ray.gpus_per_trial=0.2", {"CPU": 5.0, "GPU": 1.0}, 5, None),
        ("ray.use_gpu=true ray.gpus_per_trial=0.3333", {"CPU": 8.0, "GPU": 1.0}, 3, None),
        (
            "ray.use_gpu=true ray.num_workers=2",
            {"CPU": 1.0},
            1,
            "waiting for 1 CPUs (the cluster has 1 of 2) and 2 GPUs (the cluster has 0 of 2)",
        ),
    ],
)
def test_a_run_waits_for_what_the_cluster_lacks(words: str, there: dict[str, Any], num_runs: int, told: str | None):
    assert missing_room(config(*words.split()), there, num_runs) == told


def test_five_trials_of_a_fifth_share_a_gpu():
    asked = worker_resources(config("ray.use_gpu=true", "ray.gpus_per_trial=0.2"))
    assert asked == {"CPU": 1.0, "GPU": 0.2}
