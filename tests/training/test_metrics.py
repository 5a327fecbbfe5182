"""Metrics travel as sums and counts and are divided once."""

from dataclasses import replace

import pytest
import torch
from helpers import local_session, tiny_config
from test_supervision import random_output

from trm_ray.training.losses import softmax_cross_entropy
from trm_ray.training.metrics import MetricSums, gpu_row, segment_sums, step_sums, train_metric_names, train_row
from trm_ray.training.supervision import CycleWeights, segment_losses

CPU = torch.device("cpu")


def test_sums_add_up_and_start_again_after_they_are_drained(tmp_path):
    session = local_session(tmp_path, tiny_config())
    sums = MetricSums(("a", "b"), CPU)
    sums.add({"a": torch.tensor(1), "b": torch.tensor(0.5)})
    sums.add({"b": torch.tensor(2.0, dtype=torch.float64), "a": torch.tensor(True)})
    assert sums.drain(session) == {"a": 2.0, "b": 2.5}
    assert sums.drain(session) == {"a": 0.0, "b": 0.0}


def test_many_small_values_are_not_lost_beside_a_large_sum(tmp_path):
    sums = MetricSums(("a",), CPU)
    sums.add({"a": torch.tensor(2.0**25)})
    for _ in range(64):
        sums.add({"a": torch.tensor(0.25)})
    assert sums.drain(local_session(tmp_path, tiny_config())) == {"a": 2.0**25 + 16}


def one_step(halted: list[bool], world_size: int = 1) -> dict[str, float]:
    output = random_output()
    carry = replace(output.carry, halted=torch.tensor(halted), steps=torch.tensor([2, 5]))
    output = replace(output, carry=carry)
    losses = segment_losses(output, CycleWeights.of((0.5, 0.5, 1.0)), softmax_cross_entropy, 2)
    sums = step_sums(segment_sums(output, losses), torch.tensor(0.75), world_size)
    assert set(sums) == set(train_metric_names(3, staged=True)) > set(train_metric_names(3))
    return {name: value.item() for name, value in sums.items()}


def test_accuracies_and_steps_count_the_puzzles_that_halted():
    # The second puzzle is right where it counts and its halt logit says no; the first is not and says yes.
    both, second = one_step([True, True]), one_step([False, True])
    assert (both["halted"], both["steps"], both["exact_accuracy"], both["q_halt_accuracy"]) == (2, 7, 1, 0)
    assert (second["halted"], second["steps"], second["exact_accuracy"], second["accuracy"]) == (1, 5, 1, 1)
    assert one_step([False, False])["halted"] == 0


def test_losses_of_puzzles_at_their_first_segment_are_summed_apart():
    # The two have been given 2 and 5 segments; with 1 for the first, it alone counts.
    assert one_step([True, True])["first"] == 0
    output = random_output()
    carry = replace(output.carry, halted=torch.tensor([False, False]), steps=torch.tensor([1, 5]))
    losses = segment_losses(replace(output, carry=carry), CycleWeights.of((0.5, 0.5, 1.0)), softmax_cross_entropy, 2)
    sums = segment_sums(replace(output, carry=carry), losses)
    assert sums["first"] == 1
    labels = output.carry.puzzles.labels
    for i, logits in enumerate(output.cycle_logits):
        counted = labels[0] != -100
        alone = torch.nn.functional.cross_entropy(logits[0][counted], labels[0][counted].long())
        assert sums[f"first_step_{i}_loss"].item() == pytest.approx(alone.item(), rel=1e-5)


def test_what_is_the_same_on_every_worker_is_divided_by_their_number():
    alone, shared = one_step([True, True]), one_step([True, True], world_size=4)
    for name in ("count", "grad_norm"):
        assert shared[name] == alone[name] / 4
    assert shared["total_loss"] == alone["total_loss"]


SUMS = {
    "count": 4.0,
    "halted": 10.0,
    "total_loss": 8.0,
    "act_loss": 6.0,
    "supervised_loss": 2.0,
    "lm_loss": 5.0,
    "grad_norm": 3.0,
    "q_halt_loss": 1.0,
    "steps": 25.0,
    "accuracy": 9.0,
    "exact_accuracy": 4.0,
    "q_halt_accuracy": 7.0,
    "step_0_loss": 12.0,
    "step_1_loss": 5.0,
    "first": 2.0,
    "first_step_0_loss": 8.0,
    "first_step_1_loss": 3.0,
}


def test_a_row_divides_losses_by_steps_and_accuracies_by_halted_puzzles():
    assert train_row(SUMS, per_cycle=True) == pytest.approx(
        {
            "train/total_loss": 2.0,
            "train/act_loss": 1.5,
            "train/supervised_loss": 0.5,
            "train/lm_loss": 1.25,
            "train/grad_norm": 0.75,
            "train/act/q_halt_loss": 0.25,
            "train/act/steps": 2.5,
            "train/act/accuracy": 0.9,
            "train/act/exact_accuracy": 0.4,
            "train/act/q_halt_accuracy": 0.7,
            "train/deep_supervision/step_0_loss": 3.0,
            "train/deep_supervision/step_1_loss": 1.25,
            "train/first_segment/step_0_loss": 4.0,
            "train/first_segment/step_1_loss": 1.5,
        }
    )


def test_per_cycle_losses_are_left_out_on_request_and_accuracies_when_nothing_halted():
    row = train_row(SUMS | {"halted": 0.0}, per_cycle=False)
    assert not [tag for tag in row if "deep_supervision" in tag or "first_segment" in tag]
    assert not [tag for tag in train_row(SUMS | {"first": 0.0}, per_cycle=True) if "first_segment" in tag]
    assert [tag for tag in row if tag.startswith("train/act/")] == ["train/act/q_halt_loss"]


# -- the GPU ----------------------------------------------------------------------------------------------------------


def test_a_run_on_a_cpu_tells_nothing_of_a_gpu():
    assert gpu_row(CPU) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_tells_what_it_has_held_at_most():
    device = torch.device("cuda", 0)
    held = torch.empty(2**28, device=device)  # one GiB
    del held
    torch.cuda.empty_cache()
    row = gpu_row(device)
    assert 1 <= row["gpu/memory_gib"] < torch.cuda.get_device_properties(device).total_memory / 2**30
    assert 0 <= row.get("gpu/utilization", 0) <= 1
