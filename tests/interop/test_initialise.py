"""Which weights may begin a run, and whose vectors go where."""

import pytest
import torch

from trm_ray.config import ArchConfig
from trm_ray.interop.initialise import averaged, carry_over_rows, differing_keys
from trm_ray.training.state import TokenShape

TABLE = torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 4.0]])  # mean (2, 2)


def test_puzzles_take_their_vectors_along_by_name_and_others_get_the_mean():
    new, told = carry_over_rows(TABLE, ["<blank>", "a", "b"], ["<blank>", "b", "c", "a"], 4)
    assert new.tolist() == [[0, 0], [5, 4], [2, 2], [1, 2]]
    assert told == "3 of 4 puzzle vectors, the mean for the rest"


def test_equal_maps_give_the_table_itself():
    new, told = carry_over_rows(TABLE, ["<blank>", "a", "b"], ["<blank>", "a", "b"], 3)
    assert torch.equal(new, TABLE)
    assert told == "3 of 3 puzzle vectors"
    assert new is TABLE


@pytest.mark.parametrize("names", [(None, None), (None, ["<blank>", "x", "y"]), (["<blank>", "x", "y"], None)])
def test_without_both_maps_a_table_of_the_same_size_is_taken_and_another_gets_the_mean(names):
    new, told = carry_over_rows(TABLE, *names, 3)
    assert torch.equal(new, TABLE)
    assert told.startswith("3 of 3 puzzle vectors, taken to be of the same puzzles")
    new, told = carry_over_rows(TABLE, *names, 2)
    assert new.tolist() == [[2, 2], [2, 2]]
    assert told == "0 of 2 puzzle vectors, the mean for the rest"


def test_a_single_vector_without_a_name_needs_no_word():
    assert carry_over_rows(TABLE[:1], None, ["<blank>"], 1)[1] == "1 of 1 puzzle vectors"


def test_maps_without_a_common_puzzle_give_the_mean_alone():
    new, told = carry_over_rows(TABLE, ["a", "b", "c"], ["d", "e"], 2)
    assert (new.tolist(), told[:6]) == ([[2, 2], [2, 2]], "0 of 2")


def test_differing_keys_are_named_with_both_values():
    here = ArchConfig(L_cycles=4, hidden_size=64, halt_max_steps=3, residual_init_scale=0.1)
    told = differing_keys(ArchConfig(), TokenShape(81, 11), here, TokenShape(900, 12))
    assert told == [
        "arch.L_cycles=6 there and 4 here",
        "arch.hidden_size=512 there and 64 here",
        "vocab_size=11 there and 12 here",
    ]


def test_a_length_counts_only_where_weights_know_positions():
    rope, mlp = ArchConfig(), ArchConfig(mixer="mlp", pos_encodings="none", num_heads=1)
    lengths = TokenShape(16, 6), TokenShape(36, 6)
    assert differing_keys(rope, lengths[0], rope, lengths[1]) == []
    assert differing_keys(mlp, lengths[0], mlp, lengths[1]) == ["seq_len=16 there and 36 here"]


def test_heads_do_not_matter_to_a_mixer_without_attention():
    one, other = (ArchConfig(mixer="mlp", pos_encodings="none", num_heads=heads) for heads in (1, 8))
    assert differing_keys(one, TokenShape(16, 6), other, TokenShape(16, 6)) == []


def test_averages_replace_weights_and_leave_buffers():
    state = {"model": {"w": torch.zeros(1), "answer_init": torch.ones(1)}, "ema": {"w": torch.full((1,), 2.0)}}
    assert {name: w.item() for name, w in averaged(state).items()} == {"w": 2.0, "answer_init": 1.0}
    assert averaged({**state, "ema": None}) == state["model"]
