"""ARC's evaluation: against the published rules, written down literally, and what those leave open."""

import pickle

import numpy as np
import pytest
from arc_helpers import augmented, canvas, cropped, needs_arc, public_tasks, random_task, turned

from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.kinds.arc.voting import Votes

INVERSE = [0, 3, 2, 1, 4, 5, 6, 7]
PASS_AT = (1, 2, 5, 10, 100, 1000)


def restored(grid, name):
    """Undo the augmentation that an identifier's name spells, as the original's inverse_aug does."""
    if "|||" not in name:
        return grid
    transform, colours = name.split("|||")[-2:]
    back = np.argsort([int(digit) for digit in colours]).astype(np.uint8)
    return back[turned(grid, INVERSE[int(transform[1:])])]


def published_rules(names, test_puzzles, predictions):
    """The original's evaluator: votes by puzzle and input, ranked by (count, mean halt probability)."""
    by_puzzle = {}
    for identifier, asked, predicted, halt in predictions:
        name = names[identifier]
        if name == "<blank>":
            continue
        asked, predicted = restored(cropped(asked), name), restored(cropped(predicted), name)
        key = (asked.shape, asked.tobytes())
        votes = by_puzzle.setdefault(name.split("|||")[0], {}).setdefault(key, [])
        votes.append((predicted.shape, predicted.tobytes(), float(halt)))
    correct, submission, missing = dict.fromkeys(PASS_AT, 0.0), {}, []
    for name, puzzle in test_puzzles.items():
        submission[name] = []
        right = dict.fromkeys(PASS_AT, 0)
        for number, pair in enumerate(puzzle["test"]):
            asked, answer = (np.array(pair[side], np.uint8) for side in ("input", "output"))
            stats = {}
            for shape, content, halt in by_puzzle.get(name, {}).get((asked.shape, asked.tobytes()), []):
                entry = stats.setdefault((shape, content), [0, 0])
                entry[0] += 1
                entry[1] += halt
            if not stats:
                missing.append(f"{name}[{number}]")
                submission[name].append({"attempt_1": [[0]], "attempt_2": [[0]]})
                continue
            for entry in stats.values():
                entry[1] /= entry[0]
            ranked = [grid for grid, _ in sorted(stats.items(), key=lambda item: item[1], reverse=True)]
            for k in PASS_AT:
                right[k] += (answer.shape, answer.tobytes()) in ranked[:k]
            grids = [np.frombuffer(content, np.uint8).reshape(shape).tolist() for shape, content in ranked[:2]]
            submission[name].append({"attempt_1": grids[0], "attempt_2": (grids + grids[:1])[1]})
        for k in PASS_AT:
            correct[k] += right[k] / len(puzzle["test"])
    return {k: total / len(test_puzzles) for k, total in correct.items()}, submission, missing


def noisy_predictions(identifiers, test_puzzles, rng, *, per_puzzle, silent=()):
    """Predictions as a model might make them: often right, sometimes nearly, sometimes nonsense, at random places."""
    rows = []
    for number, name in enumerate(identifiers.names):
        for pair in test_puzzles[name]["test"]:
            if name in silent:
                continue
            for identifier in identifiers.first[number] + rng.integers(0, identifiers.counts[number], per_puzzle):
                transform = identifiers.dihedral[identifier], identifiers.colours[identifier]
                guess = np.array(pair["output"], np.uint8)
                chance = rng.random()
                if chance < 0.7:
                    guess = guess.copy()
                    guess.flat[rng.integers(min(guess.size, 3))] = rng.integers(10)
                tokens = canvas(augmented(guess, *transform))
                if chance > 0.8:
                    tokens[rng.integers(0, 900, 20)] = rng.integers(0, 12, 20)
                rows.append((identifier, canvas(augmented(np.array(pair["input"], np.uint8), *transform)), tokens))
    order = rng.permutation(len(rows))
    halts = rng.random(len(rows))
    return [(*rows[row], halts[row]) for row in order]


def vote(identifiers, predictions, batch_size=64):
    votes = Votes(identifiers)
    for begin in range(0, len(predictions), batch_size):
        votes.add(*(np.array(column) for column in zip(*predictions[begin : begin + batch_size], strict=True)))
    return votes


def named(tasks, augmentations, seed=42):
    return PuzzleIdentifiers.drawn(seed, list(tasks), [np.arange(augmentations)] * len(tasks))


@needs_arc
def test_predictions_on_real_puzzles_come_to_what_the_published_rules_say():
    rng = np.random.default_rng(0)
    tasks = dict(list(public_tasks("evaluation").items())[::20])
    identifiers = named(tasks, 12)
    silent = list(tasks)[3]
    predictions = noisy_predictions(identifiers, tasks, rng, per_puzzle=25, silent=[silent])
    result = vote(identifiers, predictions).result(tasks)
    pass_at, submission, missing = published_rules(identifiers.all_names(), tasks, predictions)
    assert result.pass_at == pytest.approx(pass_at)
    assert result.submission == submission
    assert result.without_predictions == missing == [f"{silent}[0]"]
    assert 0 < result.pass_at[1] < result.pass_at[1000] < 1


def test_predictions_on_random_puzzles_with_several_test_inputs_come_to_what_the_published_rules_say():
    rng = np.random.default_rng(1)
    tasks = {f"task{number}": random_task(rng, test=1 + number % 3) for number in range(12)}
    identifiers = named(tasks, 30)
    predictions = noisy_predictions(identifiers, tasks, rng, per_puzzle=12)
    result = vote(identifiers, predictions).result(tasks)
    pass_at, submission, _ = published_rules(identifiers.all_names(), tasks, predictions)
    assert result.pass_at == pytest.approx(pass_at)
    assert result.submission == submission
    assert (result.num_puzzles, result.num_scored) == (12, 12)


def test_identifiers_of_the_original_spelling_are_mapped_back_too():
    rng = np.random.default_rng(2)
    tasks = {"a": random_task(rng, test=1)}
    names = ["<blank>", "a", "a|||t3|||0912345678", "a|||t7|||0213456789"]
    identifiers = PuzzleIdentifiers.from_names(names)
    predictions = noisy_predictions(identifiers, tasks, rng, per_puzzle=30)
    pass_at, submission, _ = published_rules(names, tasks, predictions)
    result = vote(identifiers, predictions).result(tasks)
    assert (result.pass_at, result.submission) == (pass_at, submission)


# ---- one puzzle by hand ------------------------------------------------------------------------------------

ASKED, RIGHT, WRONG, OTHER = ([[1, 2]], [[3]], [[4]], [[5]])
PUZZLE = {"p": {"train": [], "test": [{"input": ASKED, "output": RIGHT}]}}


def told(*guesses):
    """Votes for (grid, halt probability) on the one puzzle."""
    rows = [(1, canvas(np.array(ASKED)), canvas(np.array(grid)), halt) for grid, halt in guesses]
    return vote(PuzzleIdentifiers.plain(["p"]), rows, batch_size=2)


def test_votes_count_first_and_the_mean_halt_probability_breaks_ties():
    result = told((WRONG, 0.1), (WRONG, 0.1), (RIGHT, 0.9), (OTHER, 0.8)).result(PUZZLE)
    assert result.pass_at == {1: 0.0, 2: 1.0, 5: 1.0, 10: 1.0, 100: 1.0, 1000: 1.0}
    assert result.submission == {"p": [{"attempt_1": WRONG, "attempt_2": RIGHT}]}


def test_a_single_candidate_is_both_attempts():
    assert told((RIGHT, 0.5)).result(PUZZLE).submission == {"p": [{"attempt_1": RIGHT, "attempt_2": RIGHT}]}


def test_a_test_input_without_predictions_counts_as_wrong_and_is_named_and_the_submission_stays_valid():
    two = {"p": {"test": [*PUZZLE["p"]["test"], {"input": [[9]], "output": [[9]]}]}, "q": PUZZLE["p"]}
    result = told((RIGHT, 0.5)).result(two)
    assert result.without_predictions == ["p[1]", "q[0]"]
    assert result.pass_at[1] == (0.5 + 0) / 2
    nothing = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert result.submission == {"p": [{"attempt_1": RIGHT, "attempt_2": RIGHT}, nothing], "q": [nothing]}


def test_an_empty_prediction_has_its_vote_and_is_a_valid_attempt():
    rows = [(1, canvas(np.array(ASKED)), np.zeros(900, int), 0.5)]
    result = vote(PuzzleIdentifiers.plain(["p"]), rows).result(PUZZLE)
    assert result.without_predictions == []
    assert result.submission == {"p": [{"attempt_1": [[0]], "attempt_2": [[0]]}]}


def test_padding_rows_do_not_vote():
    votes = Votes(PuzzleIdentifiers.plain(["p"]))
    votes.add(np.zeros(3, int), np.zeros((3, 900), int), np.full((3, 900), 2), np.ones(3))
    assert votes.counts == {}


def test_hidden_outputs_are_left_out_of_the_score_and_in_the_submission():
    hidden = {"input": [[7]]}
    puzzles = {"p": {"test": [*PUZZLE["p"]["test"], hidden]}, "q": {"test": [hidden]}}
    result = told((RIGHT, 0.5)).result(puzzles)
    assert result.pass_at[1] == 1.0
    assert (result.num_puzzles, result.num_scored) == (2, 1)
    assert list(result.submission) == ["p", "q"]
    unknown = told((RIGHT, 0.5)).result({"q": {"test": [hidden]}})
    assert (unknown.pass_at, unknown.num_scored) == (None, 0)


def test_however_many_workers_counted_the_result_is_the_same():
    rng = np.random.default_rng(3)
    tasks = {f"task{number}": random_task(rng, test=2) for number in range(3)}
    identifiers = named(tasks, 5)
    predictions = noisy_predictions(identifiers, tasks, rng, per_puzzle=40)
    # Equal probabilities leave many ties, thirds and tenths many sums that depend on their order in floating point.
    predictions = [(*row[:3], round(row[3] * 3) / 3 + 0.1 * (row[3] < 0.2)) for row in predictions]
    whole = vote(identifiers, predictions)
    for workers in (2, 3):
        merged = Votes(identifiers)
        for worker in reversed(range(workers)):
            merged.merge(pickle.loads(pickle.dumps(vote(identifiers, predictions[worker::workers]).counts)))
        one, other = whole.result(tasks), merged.result(tasks)
        assert merged.counts == whole.counts
        assert (one.pass_at, one.submission) == (other.pass_at, other.submission)
