"""How workers, GPUs and nodes are asked for, and what cannot be asked for together."""

import pytest
from config_helpers import complaint, load, sweep

from trm_ray.config import config_from_values, flat, with_overrides


@pytest.mark.parametrize(
    ("told", "fewest", "most", "elastic"),
    [("0", 0, 0, False), ("3", 3, 3, False), ("[1,8]", 1, 8, True), ("[4,4]", 4, 4, False), ("[1e0,2]", 1, 2, True)],
)
def test_workers_are_a_number_or_a_range(told: str, fewest: int, most: int, elastic: bool):
    ray = load(f"ray.num_workers={told}", "global_batch_size=24").ray
    assert (ray.fewest_workers, ray.most_workers, ray.is_elastic) == (fewest, most, elastic)


def test_a_range_of_workers_survives_being_written_and_read():
    config = load("ray.num_workers=[1,8]")
    assert flat(config)["ray.num_workers"] == [1, 8]
    assert config_from_values(config.model_dump(mode="json"), "a file") == config
    assert with_overrides(config, {"lr": 1e-3}).ray == config.ray
    assert sweep("ray.num_workers=[1,2]").overrides["ray.num_workers"] == (1, 2)


def test_only_a_range_may_leave_the_workers_uneven_shares():
    assert load("global_batch_size=100", "ray.num_workers=[1,8]").ray.most_workers == 8
    told = complaint(load, "global_batch_size=100", "ray.num_workers=8")
    assert told.startswith("global_batch_size=100 must be divisible by ray.num_workers=8")


@pytest.mark.parametrize(
    ("words", "worker"),
    [
        ("", 1.0),
        ("ray.gpus_per_worker=2", 2.0),
        ("ray.gpus_per_worker=0.5", 0.5),
        ("ray.gpus_per_trial=0.2", 0.2),
        ("ray.gpus_per_trial=4 ray.num_workers=2", 2.0),
        ("ray.gpus_per_trial=0.33333", 0.3333),
    ],
)
def test_a_worker_takes_its_share_of_the_trial_s_gpus(words: str, worker: float):
    assert load("ray.use_gpu=true", *words.split()).ray.gpus_of_worker == worker


@pytest.mark.parametrize(
    ("told", "failures"),
    [
        ("", 0),
        ("ray.max_failures=3", 3),
        ("ray.num_workers=[1,2]", 10),
        ("ray.num_workers=[1,2] ray.max_failures=0", 0),
    ],
)
def test_a_range_of_workers_outlives_the_loss_of_some(told: str, failures: int):
    assert load(*told.split()).ray.failures_allowed == failures


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ray.num_workers=[2,1]", "ray.num_workers=[2, 1] must be a whole number of at least 0, or [FEWEST, MOST]"),
        ("ray.num_workers=[0,2]", "ray.num_workers=[0, 2] must be"),
        ("ray.num_workers=[1,2,3]", "ray.num_workers=[1, 2, 3] must be"),
        ("ray.num_workers=[1,many]", "ray.num_workers=[1, many] must be"),
        ("ray.num_workers=true", "ray.num_workers=true must be"),
        ("ray.num_workers=null", "ray.num_workers=null must be"),
        (
            "ray.num_workers=[1,64] global_batch_size=32",
            "global_batch_size=32 must be at least as many as ray.num_workers=[1, 64] names; use 64 or more",
        ),
        (
            "ray.use_gpu=true ray.gpus_per_trial=0.2 ray.gpus_per_worker=1",
            "ray.gpus_per_trial=0.2 must not stand beside ray.gpus_per_worker=1; set one to null",
        ),
        ("ray.gpus_per_trial=0.2", "ray.gpus_per_trial=0.2 needs ray.use_gpu=true, which is false"),
        (
            "ray.use_gpu=true ray.gpus_per_trial=2 ray.num_workers=[1,2]",
            "ray.gpus_per_trial=2 cannot be divided among ray.num_workers=[1, 2]; use ray.gpus_per_worker",
        ),
        (
            "ray.use_gpu=true ray.gpus_per_trial=3 ray.num_workers=2",
            "ray.gpus_per_trial=3 gives a worker 1.5 GPUs, and above 1 it takes whole ones",
        ),
        ("ray.gpus_per_worker=1.5", "ray.gpus_per_worker=1.5 gives a worker 1.5 GPUs"),
        (
            "ray.use_gpu=true ray.gpus_per_trial=1 ray.num_workers=2",
            "ray.gpus_per_trial=1 with ray.num_workers=2 leaves a worker 0.5 of a GPU",
        ),
        ("ray.use_gpu=true ray.gpus_per_trial=0.00001", "ray.gpus_per_trial=1e-05 leaves a worker less than 0.0001"),
        (
            "ray.placement_strategy=SPRED",
            "ray.placement_strategy=SPRED must be one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD; "
            "did you mean `SPREAD`?",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(words: str, expected: str):
    assert complaint(load, *words.split()).startswith(expected)
