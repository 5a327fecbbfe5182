"""The projection's formulas by hand, and its recipes against the configs that they stand for."""

from dataclasses import fields, replace

import pytest
import torch

from trm_ray.config import load_config
from trm_ray.measure.projection import (
    ASSUMED,
    GROWING,
    LIMITS,
    RECIPES,
    SHARED,
    SOURCES,
    SWEEP,
    Cluster,
    Limit,
    Work,
    all_gather_s,
    all_reduce_s,
    gives_out_at,
    limit_lines,
    project,
    source_lines,
    with_larger_batch,
)
from trm_ray.training.state import TokenShape, build_model

# Numbers to reckon with in one's head.
WORK = Work(
    batch_size=1000,
    num_steps=100,
    eval_interval=50,
    puzzles_per_s=500.0,
    operations=1000,
    forward_share=0.5,
    parameters=250_000,
    embedding_rows=0,
    embedding_size=0,
    carry_bytes=1000,
    test_rows=400,
    segments=5,
)
CLUSTER = Cluster(
    gpus_per_node=4,
    node_latency_s=1e-6,
    node_bandwidth=100e9,
    network_latency_s=1e-3,
    network_bandwidth=1e9,
    launch_s=1e-5,
    host_bandwidth=10e9,
    storage_bandwidth=1e9,
    data_rows_per_s=10_000,
    start_s=10.0,
)


# -- exchange ----------------------------------------------------------------------------------------------------------


def test_two_gpus_add_up_a_megabyte_by_a_ring_of_two_latencies_and_one_message():
    # Ring: 2·1·1 ms + 2·1 MB·½ / 1 GB/s = 2 + 1 ms. Tree: 2·1·1 ms + 2 ms = 4 ms.
    assert all_reduce_s(1e6, 2, 1e-3, 1e9) == pytest.approx(3e-3)


def test_many_gpus_use_a_tree_since_a_ring_has_a_latency_a_gpu():
    # Tree: 2·10·1 ms + 2 ms = 22 ms; the ring would take over 2 s.
    assert all_reduce_s(1e6, 1024, 1e-3, 1e9) == pytest.approx(22e-3)


def test_one_gpu_exchanges_nothing():
    assert all_reduce_s(1e9, 1, 1.0, 1.0) == 0
    assert all_gather_s(1e9, 1, 1.0, 1.0) == 0


def test_gathering_takes_every_other_gpus_part():
    assert all_gather_s(2e6, 5, 1e-3, 1e9) == pytest.approx(4 * (1e-3 + 2e-3))


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_on_one_gpu():
    run = project(WORK, CLUSTER, 1)
    assert run.compute_s == pytest.approx(2.0)  # 1000 / 500
    assert run.host_s == pytest.approx(0.11)  # 1000 launches of 10 µs, 1000 rows at 10,000/s
    assert run.step_s == pytest.approx(2.0)
    assert run.puzzles_per_s == pytest.approx(500)
    assert run.evaluation_s == pytest.approx(2.0)  # 400·5 forward passes at 1000/s
    assert run.write_s == pytest.approx(5e-3)  # 4 MB of weights, moments and average, 1 MB of carry, at 1 GB/s
    assert run.stall_s == pytest.approx(5e-4)
    assert run.total_s == pytest.approx(10 + 100 * 2 + 2 * (2.0 + 5e-4))
    assert run.gpu_hours == pytest.approx(run.total_s / 3600)


def test_a_run_on_ten_gpus_of_several_nodes():
    run = project(WORK, CLUSTER, 10)
    assert run.compute_s == pytest.approx(0.2)
    assert run.host_s == pytest.approx(0.02)
    assert run.all_reduce_s == pytest.approx(2 * 4 * 1e-3 + 2e-3)  # a tree of four levels
    assert run.gather_s == 0  # no embedding
    assert run.step_s == pytest.approx(0.21)
    assert run.exchange_share == pytest.approx(0.01 / 0.21)
    assert run.gpu_hours == pytest.approx(10 * run.total_s / 3600)


def test_gpus_with_too_few_puzzles_wait_for_their_hosts():
    run = project(WORK, CLUSTER, 500)
    assert run.compute_s == pytest.approx(0.004)
    assert run.host_s == pytest.approx(0.0102)
    assert run.step_s == pytest.approx(0.0102 + run.all_reduce_s)


def test_a_puzzle_embedding_gathers_gradients_and_identifiers():
    run = project(replace(WORK, embedding_rows=10, embedding_size=99), CLUSTER, 10)
    # 100 rows a GPU of 99 numbers and an identifier: 40 kB, from nine others, and two messages' latencies.
    assert run.gather_s == pytest.approx(9 * 40e-6 + 2 * 9 * 1e-3)


def test_a_larger_batch_means_as_many_puzzles_in_fewer_steps():
    grown = with_larger_batch(WORK, 40, base_gpus=4)
    assert (grown.batch_size, grown.num_steps, grown.eval_interval) == (10_000, 10, 5)
    assert with_larger_batch(WORK, 2, base_gpus=4) == WORK


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_limit_gives_out_at_the_first_power_of_two_beyond_it():
    limit = Limit("more than five GPUs", lambda work, cluster, run: run.gpus / 5)
    for mode in (SHARED, GROWING, SWEEP):
        assert gives_out_at(WORK, CLUSTER, mode, limit) == 8
    assert gives_out_at(WORK, CLUSTER, SHARED, limit, most=4) is None


def test_every_limit_is_told_once():
    lines = list(limit_lines(WORK, CLUSTER))
    assert len(lines) == len(LIMITS) + sum(len(limits) for limits in LIMITS.values())
    hosts = next(line for line in lines if "its host is slower" in line)
    # 10 ms of launches against 2 s / n, and rows that are made faster than they are trained on: beyond 190 GPUs.
    assert hosts.startswith("  at 256 GPUs")


# -- what goes in ------------------------------------------------------------------------------------------------------


def test_every_number_says_where_it_comes_from():
    names = {field.name for part in (Work, Cluster) for field in fields(part)}
    assert names >= SOURCES.keys()
    lines = list(source_lines(WORK, CLUSTER))
    assert len(lines) == len(names)
    assert "  puzzles_per_s = 500  (published: time of the whole run, README of the original code)" in lines
    assert f"  network_latency_s = 0.001  ({ASSUMED})" in lines


# Cells of a board, tokens, puzzle identifiers, and the seconds, steps and GPUs that were published.
BOARDS = {"arc1": (TokenShape(900, 12, 876_405), 3 * 86_400, 4), "sudoku_extreme": (TokenShape(81, 11, 1), 72_000, 1)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_tasks_config(name: str):
    work, config = RECIPES[name], load_config("deep_supervision_baseline", [f"task={name}"])
    tokens, seconds, gpus = BOARDS[name]
    arch, positions = config.arch, config.arch.prefix_len + tokens.seq_len
    with torch.device("meta"):
        model = build_model(config, replace(tokens, num_puzzle_identifiers=1))
    assert work.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (work.batch_size, work.eval_interval) == (config.global_batch_size, config.eval_interval)
    assert (work.embedding_rows, work.embedding_size) == (tokens.num_puzzle_identifiers, arch.puzzle_emb_ndim)
    assert work.carry_bytes == 2 * positions * arch.hidden_size * torch.bfloat16.itemsize
    assert work.forward_share == arch.H_cycles / (arch.H_cycles + 2)
    assert work.segments == arch.halt_max_steps
    assert work.puzzles_per_s == pytest.approx(work.num_steps * work.batch_size / seconds / gpus, rel=0.01)
