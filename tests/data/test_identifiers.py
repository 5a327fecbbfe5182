"""Puzzle identifiers: who owns which row of the embedding table, and how the map is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from trm_ray.data.identifiers import BLANK, PuzzleIdentifiers, draw_transforms

ORIGINAL = [
    "<blank>",
    "007bbfb7",
    "007bbfb7|||t3|||0912345678",
    "007bbfb7|||t0|||0213456789",
    "<blank>",
    "ExtractObjects10",
    "00d62c1b",
    "00d62c1b|||t7|||0123456789",
]


def drawn(seed=42, names=("a", "b", "c"), trials=((0, 1, 2, 3), (1, 4), ())):
    return PuzzleIdentifiers.drawn(seed, names, [np.array(chosen, np.int64) for chosen in trials])


def test_names_are_spelled_as_in_the_original_and_survive_the_round_trip():
    identifiers = PuzzleIdentifiers.from_names(ORIGINAL)
    assert identifiers.all_names() == ORIGINAL
    assert [identifiers.name(number) for number in range(len(identifiers))] == ORIGINAL
    assert PuzzleIdentifiers.from_bytes(identifiers.to_bytes()).all_names() == ORIGINAL


def test_each_identifier_belongs_to_its_puzzle_and_blanks_to_none():
    identifiers = PuzzleIdentifiers.from_names(ORIGINAL)
    assert identifiers.names == ("007bbfb7", "ExtractObjects10", "00d62c1b")
    assert identifiers.puzzle_of(np.arange(8)).tolist() == [-1, 0, 0, 0, -1, 1, 2, 2]
    assert identifiers.first.tolist() == [1, 5, 6]
    assert identifiers.counts.tolist() == [3, 1, 2]


def test_a_puzzle_whose_augmentations_come_in_two_runs_keeps_all_its_identifiers():
    names = [BLANK, "a", "a|||t1|||0123456789", "b", "a|||t2|||0123456789"]
    identifiers = PuzzleIdentifiers.from_bytes(PuzzleIdentifiers.from_names(names).to_bytes())
    assert identifiers.all_names() == names
    assert [identifiers.names[p] for p in identifiers.puzzle_of(np.arange(1, 5))] == ["a", "a", "b", "a"]


def test_the_blank_map_has_one_identifier_and_no_puzzle():
    identifiers = PuzzleIdentifiers.blank()
    assert (len(identifiers), identifiers.names, identifiers.all_names()) == (1, (), [BLANK])
    assert identifiers.puzzle_of(np.array([0, 0])).tolist() == [-1, -1]
    assert len(PuzzleIdentifiers.from_bytes(identifiers.to_bytes())) == 1


def test_plain_puzzles_have_one_identifier_each():
    identifiers = PuzzleIdentifiers.plain(["x", "y"])
    assert identifiers.all_names() == [BLANK, "x", "y"]
    assert identifiers.puzzle_of(np.arange(3)).tolist() == [-1, 0, 1]


def test_drawn_augmentations_come_back_from_the_file_though_it_holds_only_which_trials_they_are(tmp_path):
    identifiers = drawn()
    identifiers.save(tmp_path / "identifiers.json")
    read = PuzzleIdentifiers.load(tmp_path / "identifiers.json")
    assert read.all_names() == identifiers.all_names()
    assert read.digest() == identifiers.digest()
    assert read.counts.tolist() == [5, 3, 1]
    assert "0123456789" not in (tmp_path / "identifiers.json").read_text()


def test_a_thousand_augmentations_of_a_puzzle_take_less_than_two_hundred_bytes():
    many = drawn(names=("a", "b"), trials=(range(1000), range(1000)))
    assert len(many.to_bytes()) < 2 * 200 + 200


def test_a_transform_depends_on_seed_name_and_trial_alone():
    dihedral, colours = draw_transforms(42, "a", np.arange(100))
    again = draw_transforms(42, "a", np.array([7, 3]))
    np.testing.assert_array_equal(again[0], dihedral[[7, 3]])
    np.testing.assert_array_equal(again[1], colours[[7, 3]])
    for other in (draw_transforms(43, "a", np.arange(100)), draw_transforms(42, "b", np.arange(100))):
        assert (other[1] != colours).any()


def test_transforms_are_uniform_and_keep_black():
    dihedral, colours = draw_transforms(0, "a", np.arange(8000))
    assert (colours[:, 0] == 0).all()
    assert (np.sort(colours, axis=1) == np.arange(10)).all()
    # Means of binomial counts, 8000 / 8 ± 5 standard deviations of 30 and 8000 / 9 ± 5 of 28.
    assert np.abs(np.bincount(dihedral, minlength=8) - 1000).max() < 150
    for colour in range(1, 10):
        assert np.abs(np.bincount(colours[:, colour], minlength=10)[1:] - 8000 / 9).max() < 140


def test_equal_maps_give_equal_bytes_and_others_do_not():
    assert drawn().to_bytes() == drawn().to_bytes()
    assert drawn().digest() != drawn(seed=43).digest()


def test_a_list_that_does_not_begin_with_the_blank_identifier_is_refused():
    with pytest.raises(ValueError, match="identifier 0 is 'a'; it must be '<blank>'"):
        PuzzleIdentifiers.from_names(["a"])


def test_an_augmentation_that_merges_colours_is_refused():
    with pytest.raises(ValueError, match=r"a\|\|\|t0\|\|\|0113456789"):
        PuzzleIdentifiers.from_names([BLANK, "a|||t0|||0113456789"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[]", "no map of puzzle identifiers"),
        (b"{", "no map of puzzle identifiers"),
        (b"{}", "no map of puzzle identifiers"),
        (json.dumps({"format_version": 9}).encode(), "format_version=9 is unknown, this release reads 1"),
    ],
)
def test_a_file_that_is_no_map_is_refused_in_one_line(content, told, tmp_path):
    (tmp_path / "identifiers.json").write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        PuzzleIdentifiers.load(tmp_path / "identifiers.json")
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told():
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        PuzzleIdentifiers.load(Path("nowhere.json"))
