"""Runs under Ray Train are the runs without Ray; `test_ray_stop.py` has one worker, who arrives at the same bytes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from endpoint import grafana_expressions, scraped
from helpers import metric_rows
from run_helpers import final_weights, run_config

from trm_ray.config import ConfigError
from trm_ray.distributed.cluster import check_resources
from trm_ray.distributed.gauges import GAUGES, RunGauges
from trm_ray.distributed.trainer import train_on_ray
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import RunPlan, plan_run

TOGETHER = "zusammen größer, 实验 🎉"

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def claimed(data: Path, folder: Path, *words: str) -> RunPlan:
    plan = plan_run(run_config(data, folder, *words))
    claim_folder(plan)
    return plan


@pytest.fixture(scope="module")
def alone_and_together(puzzles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same run in this process and by two workers, who each take half of every batch of augmented puzzles."""
    folder, words = tmp_path_factory.mktemp("runs"), ["arch.halt_exploration_prob=0.5", "ema=true"]
    alone = claimed(puzzles, folder / "alone", *words)
    together = claimed(puzzles, folder / TOGETHER, *words, "ray.num_workers=2", "ray.cpus_per_worker=0.5")
    train_in_process(alone)
    train_on_ray(together)
    return alone.folder, together.folder


def test_two_workers_log_every_row_once(alone_and_together: tuple[Path, Path]):
    _, together = alone_and_together
    lines = (together / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert len(list(together.glob("events.out.tfevents.*"))) == 1
    assert sorted(path.name for path in together.glob("*_*")) == [
        "checkpoint_step_3",
        "checkpoint_step_6",
        "final_model",
    ]


def test_two_workers_take_the_steps_of_one(alone_and_together: tuple[Path, Path]):
    assert_close(*alone_and_together)


def assert_close(alone: Path, together: Path) -> None:
    one, two = final_weights(alone), final_weights(together)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    rows_of_two = metric_rows(together)
    for step, row in metric_rows(alone).items():
        assert rows_of_two[step] == pytest.approx(row, rel=1e-5, abs=1e-5)


def test_two_workers_count_every_test_row_once(alone_and_together: tuple[Path, Path]):
    """65 rows of 16 cells: a row left out or counted twice would give other fractions, or other means."""
    alone, together = alone_and_together
    row, expected = metric_rows(together)[3], metric_rows(alone)[3]
    assert row["eval/accuracy"] * 65 == pytest.approx(round(row["eval/accuracy"] * 65 * 16) / 16, abs=1e-4)
    for tag in ("eval/exact_accuracy", "eval/exact_accuracy_first", "eval/act_steps", "eval/q_halt_accuracy"):
        assert row[tag] * 65 == pytest.approx(round(row[tag] * 65), abs=1e-4)
        assert row[tag] == pytest.approx(expected[tag])


def test_the_nodes_prometheus_endpoint_shows_a_runs_last_numbers(alone_and_together: tuple[Path, Path]):
    _, together = alone_and_together
    last: dict[str, float] = {}
    for line in (together / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    expected = {f"ray_{name}": last[tag] for tag, (name, _) in GAUGES.items() if tag in last}
    labels = {
        "experiment": together.parent.name,
        "run": TOGETHER,
        "scenario": "deep_supervision_linear",
        "seed": "0",
    }
    assert {"ray_trm_step", "ray_trm_eval_loss", "ray_trm_exchange_fraction"} < expected.keys()
    assert scraped(labels, expected.keys()) == pytest.approx(expected)


def test_gauges_that_fail_are_told_once_and_end_nothing(
    puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A name that Ray warns of, and warnings are errors here."""
    gauges = RunGauges(plan_run(run_config(puzzles, tmp_path / "run")))
    monkeypatch.setitem(GAUGES, "step", ("no name", "what it tells"))
    for step in (1, 2):
        gauges.show(step, {"eval/loss": 0.5})
    (told,) = caplog.messages
    assert re.match(r"Prometheus will not show this run's numbers \(UserWarning: Invalid metric name", told)


def test_the_grafana_dashboard_asks_for_numbers_that_there_are(alone_and_together: tuple[Path, Path]):
    asked = {
        word
        for expression in grafana_expressions()
        for word in re.findall(r"\bray_[a-z_]+\b", re.sub(r'"[^"]*"|by \([^)]*\)', "", expression))
    }
    ours = {f"ray_{name}" for name, _ in GAUGES.values()}
    assert asked & ours == ours
    assert scraped({}, asked - ours).keys() == asked - ours


def test_two_workers_on_all_cpus_train_on_a_split_that_does_not_fit_as_one_does_without_ray(
    puzzles: Path, tmp_path: Path
):
    """The tasks that read it have no CPU left; and the run ends as one that reads it by itself."""
    cpus = f"ray.cpus_per_worker={ray.cluster_resources()['CPU'] / 2}"
    plans = [
        claimed(puzzles, tmp_path / name, "data_memory_gib=1e-5", *words)
        for name, words in (("alone", ["ray.num_workers=0"]), ("together", ["ray.num_workers=2", cpus]))
    ]
    assert not any(plan.holds_train for plan in plans)
    train_in_process(plans[0])
    train_on_ray(plans[1])
    assert_close(plans[0].folder, plans[1].folder)


def test_more_workers_than_the_machine_holds_are_refused_at_once(puzzles: Path, tmp_path: Path):
    plan = claimed(puzzles, tmp_path / "run", "ray.num_workers=8")
    with pytest.raises(ConfigError, match=r"ray\.num_workers=8 with ray\.cpus_per_worker=1 needs 8 CPUs.* has 3; use"):
        train_on_ray(plan)


def test_a_gpu_that_is_not_there_is_refused_at_once(puzzles: Path, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    plan = claimed(puzzles, tmp_path / "run", "ray.use_gpu=true")
    with pytest.raises(
        ConfigError, match=r"ray\.gpus_per_worker=1 needs 1 GPU, this machine has 0; use ray\.use_gpu=false"
    ):
        train_on_ray(plan)


def test_a_node_for_each_worker_is_refused_on_one_machine(puzzles: Path, tmp_path: Path):
    words = ["ray.num_workers=2", "ray.cpus_per_worker=0.5", "ray.placement_strategy=STRICT_SPREAD"]
    with pytest.raises(
        ConfigError, match=r"STRICT_SPREAD needs a node for each of ray\.num_workers=2, .*use .*=SPREAD"
    ):
        train_on_ray(claimed(puzzles, tmp_path / "run", *words))


def test_a_range_of_workers_needs_room_for_the_fewest_alone(puzzles: Path, tmp_path: Path):
    plan = claimed(puzzles, tmp_path / "run", "ray.num_workers=[4,8]")
    with pytest.raises(
        ConfigError, match=r"ray\.num_workers=\[4, 8\] with ray\.cpus_per_worker=1 needs 4 CPUs.* has 3"
    ):
        train_on_ray(plan)
    check_resources(run_config(puzzles, tmp_path / "other", "ray.num_workers=[3,8]"))
