import hashlib
import itertools
import json

import numpy as np
import pytest

from trm_ray.data.format import DatasetInfo, read_split
from trm_ray.kinds import generation
from trm_ray.kinds.sudoku import generate, read, rules
from trm_ray.kinds.sudoku.symmetry import canonical_forms

QUESTION = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
# Needs guessing: hidden and naked singles alone do not solve it.
HARD = "100007090030020008009600500005300900010080002600004000300000010040000007007000300"
HARD_ANSWER = "162857493534129678789643521475312986913586742628794135356478219241935867897261354"
HEADER = "source,question,answer,rating"


def boards(*texts):
    return np.stack([rules.parse_board(text) for text in texts])


def fits(board, cell, digit, box):
    size = box[0] * box[1]
    row, column = divmod(cell, size)
    for other in range(size * size):
        r, c = divmod(other, size)
        same_box = r // box[0] == row // box[0] and c // box[1] == column // box[1]
        if board[other] == digit and (r == row or c == column or same_box):
            return False
    return True


def count_by_trying(board, box):
    blanks = [cell for cell, digit in enumerate(board) if digit == 0]
    if not blanks:
        return 1
    total = 0
    for digit in range(1, box[0] * box[1] + 1):
        if fits(board, blanks[0], digit, box):
            board[blanks[0]] = digit
            total += count_by_trying(board, box)
            board[blanks[0]] = 0
    return total


def test_a_4x4_board_has_288_grids():
    # Source: OEIS A107739, number of n²×n² Sudoku grids.
    assert rules.solve(np.zeros((1, 16), np.uint8), limit=1000).counts.tolist() == [288]


def test_the_solver_counts_what_brute_force_counts_on_4x4():
    rng = np.random.default_rng(0)
    grids = generate.random_grids(60, 4, rng)
    puzzles = np.where(rng.random(grids.shape) < rng.uniform(0.2, 0.6, (60, 1)), grids, 0)
    puzzles[::5, 0] = rng.integers(1, 5, 12)  # some without any solution
    legal = [
        all(p[c] == 0 or fits(np.where(np.arange(16) == c, 0, p), c, p[c], (2, 2)) for c in range(16)) for p in puzzles
    ]
    expected = [count_by_trying(list(p), (2, 2)) if ok else 0 for p, ok in zip(puzzles, legal, strict=True)]
    assert {0, 1} < set(expected)
    assert rules.solve(puzzles, limit=300).counts.tolist() == expected


def test_known_9x9_puzzles_have_their_known_only_solution():
    solved = rules.solve(boards(QUESTION, HARD))
    assert solved.counts.tolist() == [1, 1]
    np.testing.assert_array_equal(solved.boards, boards(ANSWER, HARD_ANSWER))


def test_a_rectangle_of_two_digits_leaves_two_solutions():
    cells = list(ANSWER)
    rectangle = [3 * 9 + 5, 3 * 9 + 8, 4 * 9 + 5, 4 * 9 + 8]  # 1 3 over 3 1, in two boxes
    assert [cells[c] for c in rectangle] == ["1", "3", "3", "1"]
    for cell in rectangle:
        cells[cell] = "."
    assert rules.solve(boards("".join(cells)), limit=5).counts.tolist() == [2]


def test_the_solver_stops_at_its_limit():
    assert rules.solve(np.zeros((3, 81), np.uint8)).counts.tolist() == [2, 2, 2]


def test_a_contradiction_has_no_solution():
    assert rules.solve(boards("11" + "." * 79, "5" + QUESTION[1:-1] + "1")).counts[0] == 0


@pytest.mark.parametrize("size", [4, 6, 9])
def test_random_grids_are_valid(size):
    grids = generate.random_grids(50, size, np.random.default_rng(1))
    assert rules.is_solution(grids).all()
    height, width = rules.BOXES[size]
    everything = set(range(1, size + 1))
    for grid in grids.reshape(-1, size, size):
        for line in range(size):
            assert set(grid[line]) == set(grid[:, line]) == everything
        for r, c in itertools.product(range(0, size, height), range(0, size, width)):
            assert set(grid[r : r + height, c : c + width].ravel()) == everything


def test_random_4x4_grids_reach_all_288():
    grids = generate.random_grids(5000, 4, np.random.default_rng(0))
    assert len({grid.tobytes() for grid in grids}) == 288


def test_an_invalid_grid_is_seen():
    swapped = ANSWER[1] + ANSWER[0] + ANSWER[2:]
    assert rules.is_solution(boards(ANSWER, swapped)).tolist() == [True, False]


@pytest.mark.parametrize("difficulty", ["singles", "any"])
def test_digging_keeps_one_solution_and_stops_at_the_target(difficulty):
    rng = np.random.default_rng(2)
    grids = generate.random_grids(64, 9, rng)
    puzzles = generate.dig(grids, np.full(64, 30), difficulty, rng)
    solved = rules.solve(puzzles)
    assert ((puzzles > 0).sum(1) == 30).mean() > 0.9
    assert (solved.counts == 1).all()
    np.testing.assert_array_equal(solved.boards, grids)


@pytest.mark.parametrize(("difficulty", "count"), [("singles", 24), ("any", 10)])
def test_putting_clues_back_reaches_targets_that_one_order_of_cells_seldom_does(difficulty, count):
    rng = np.random.default_rng(5)
    grids, targets = generate.random_grids(count, 9, rng), rng.integers(22, 26, count)
    once = generate.dig(grids, targets, difficulty, rng)
    deeper = generate.dig_deeper(once.copy(), grids, targets, difficulty, rng)
    clues = [(puzzles > 0).sum(1) for puzzles in (once, deeper)]
    assert (clues[0] == targets).mean() < 0.7
    assert (clues[1] == targets).mean() >= 0.9
    assert (targets <= clues[1]).all()
    assert (clues[1] <= clues[0]).all()
    np.testing.assert_array_equal(np.where(deeper > 0, deeper, grids), grids)
    assert (rules.solve(deeper).counts == 1).all()


@pytest.mark.parametrize(("size", "digest"), [(4, "7bcf500f083f34f0"), (6, "9dab7bfa48583f78")])
def test_the_default_puzzles_are_those_of_the_first_release(size, digest):
    chunk = generate._chunk(generate._Recipe(size, generate.DEFAULT_CLUES[size], "singles", 0), 0)
    assert hashlib.sha256(chunk.questions.tobytes()).hexdigest().startswith(digest)


def generated(tmp_path, name="set", **changes):
    arguments = {"size": 6, "train": 300, "test": 50, "seed": 3, **changes}
    return tmp_path / name, generate.prepare_sudoku(tmp_path / name, **arguments)


@pytest.mark.parametrize(("size", "clues"), [(4, (4, 8)), (6, (9, 18)), (9, (26, 40))])
def test_generated_puzzles_have_one_solution_and_no_test_puzzle_is_a_training_puzzle(tmp_path, size, clues):
    folder, info = generated(tmp_path, size=size, train=120, test=30)
    assert (info.seq_len, info.vocab_size) == (size * size, size + 2)
    forms = {}
    for split in ("train", "test"):
        rows = read_split(folder, split)
        questions, answers = (rows.inputs - 1).astype(np.uint8), rows.labels - 1
        given = questions > 0
        assert clues[0] <= given.sum(1).min() <= given.sum(1).max() <= clues[1]
        solved = rules.solve(questions)
        assert (solved.counts == 1).all()
        np.testing.assert_array_equal(solved.boards, answers)
        forms[split] = canonical_forms(questions, rules.BOXES[size])
    assert not set(forms["train"]) & set(forms["test"])
    assert len(set(forms["train"])) == 120
    assert len(set(forms["test"])) == 30


def test_clue_numbers_are_spread_over_the_whole_range(tmp_path):
    folder, _ = generated(tmp_path, train=1000, test=0)
    clues = (read_split(folder, "train").inputs > 1).sum(1)
    counts = np.bincount(clues, minlength=19)[10:19]  # 9 clues are often out of reach
    assert counts.min() > 60


def test_the_clues_that_came_out_are_told(tmp_path, capsys):
    folder, _ = generated(tmp_path, clues=(8, 12))
    clues = np.concatenate([(read_split(folder, split).inputs > 1).sum(1) for split in ("train", "test")])
    told = ", ".join(f"{number}: {(clues == number).sum()}" for number in range(8, 13))
    assert f"Puzzles by their number of clues: {told}" in capsys.readouterr().out
    assert (clues == 9).sum() > 60  # 8 are out of reach, 9 are not


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_however_many_processes(tmp_path):
    changes = {"clues": (8, 14), "train": 400, "test": 200}  # more than one chunk, dug in rounds
    first = contents(generated(tmp_path, "first", **changes)[0])
    assert first == contents(generated(tmp_path, "second", **changes, processes=2)[0])
    assert first != contents(generated(tmp_path, "third", **changes, seed=4)[0])


def test_a_larger_training_split_leaves_the_test_split_as_it_is(tmp_path):
    small, _ = generated(tmp_path, "small", train=100)
    large, _ = generated(tmp_path, "large", train=900)
    np.testing.assert_array_equal(read_split(small, "test").inputs, read_split(large, "test").inputs)
    np.testing.assert_array_equal(read_split(small, "train").inputs, read_split(large, "train").inputs[:100])


def test_training_puzzles_repeat_when_a_small_board_has_no_more(tmp_path, capsys):
    folder, info = generated(tmp_path, size=4, train=300, test=4, clues=(4, 4))
    # Source: Wikipedia, Mathematics of Sudoku: 13 puzzles of 4 clues on 4×4 differ under symmetry.
    forms = {s: set(canonical_forms((read_split(folder, s).inputs - 1).astype(np.uint8), (2, 2))) for s in info.splits}
    assert (len(forms["test"]), len(forms["train"])) == (4, 9)
    assert not forms["test"] & forms["train"]
    assert "291 training puzzles repeat" in capsys.readouterr().out


def test_too_many_test_puzzles_for_a_small_board_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"test=100: only 13 puzzles that differ"):
        generated(tmp_path, size=4, train=10, test=100, clues=(4, 4))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 8}, r"size=8 .* 4, 6, 9"),
        ({"train": 0}, "train=0 must be at least 1"),
        ({"test": -1}, "test=-1 must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"clues": (12, 10)}, "clues=12 10 must be MIN ≤ MAX between 8 and 35"),
        ({"clues": (7, 10)}, "clues=7 10"),
        ({"difficulty": "hard"}, "difficulty='hard' must be singles or any"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        generated(tmp_path, **changes)


def test_clues_that_hardly_any_puzzle_reaches_are_refused_rather_than_searched_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "BARREN_CHUNKS", 1)
    monkeypatch.setattr(generate, "_REDIGS", 1)
    with pytest.raises(ValueError, match="ask for fewer test puzzles or widen --clues"):
        generated(tmp_path, size=9, train=100, test=10, clues=(17, 17))


@pytest.mark.parametrize(("text", "message"), [("12", "got 2"), ("5" * 16, "'5' is no digit of a 4×4 board")])
def test_unreadable_boards_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        rules.parse_board(text)


def csv_lines(seed, count):
    rng = np.random.default_rng(seed)
    grids = generate.random_grids(count, 9, rng)
    questions = generate.dig(grids, np.full(count, 32), "singles", rng)
    texts = [["".join(map(str, board)) for board in part] for part in (questions, grids)]
    return [f"made,{q.replace('0', '.')},{a},{n % 4}" for n, (q, a) in enumerate(zip(*texts, strict=True))]


def write_csv(path, lines):
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def transposed(line):
    source, *texts, rating = line.split(",")
    turned = ["".join(text[c * 9 + r] for r in range(9) for c in range(9)) for text in texts]
    return ",".join([source, *turned, rating])


def test_a_folder_of_public_csv_files_becomes_a_dataset_without_leaks(tmp_path):
    train, test = csv_lines(0, 20), csv_lines(1, 5)
    write_csv(tmp_path / "train.csv", [*train, transposed(test[2])])
    write_csv(tmp_path / "test.csv", test)
    info = read.prepare_sudoku_from_csv(tmp_path, tmp_path / "set")
    chosen = chosen_rows(tmp_path / "set")
    assert (chosen["train"]["lines"], chosen["test"]["lines"]) == (list(range(2, 22)), None)
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 20, "test": 5}
    rows = read_split(tmp_path / "set", "train")
    np.testing.assert_array_equal(rows.inputs[3] - 1, rules.parse_board(train[3].split(",")[1]))
    np.testing.assert_array_equal(rows.labels[3] - 1, rules.parse_board(train[3].split(",")[2]))


def test_a_subsample_is_seeded_and_recorded(tmp_path):
    lines = csv_lines(0, 40)
    file = write_csv(tmp_path / "all.csv", lines)
    arguments = {"test": 6, "subsample": 10, "min_difficulty": 2}
    info = read.prepare_sudoku_from_csv(file, tmp_path / "a", **arguments)
    read.prepare_sudoku_from_csv(file, tmp_path / "b", **arguments)
    read.prepare_sudoku_from_csv(file, tmp_path / "c", **arguments, seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    chosen, other = (chosen_rows(tmp_path / name) for name in "ac")
    train, test = (chosen[split]["lines"] for split in ("train", "test"))
    assert (chosen["seed"], len(train), len(test), other["train"]["lines"] == train) == (0, 10, 6, False)
    assert not set(train) & set(test)
    ratings = [int(lines[line - 2].rsplit(",", 1)[1]) for line in train + test]
    assert min(ratings) == 2
    assert info.arguments == {**arguments, "files": {"all.csv": hashlib.sha256(file.read_bytes()).hexdigest()}}
    assert DatasetInfo.load(tmp_path / "a") == info


def chosen_rows(folder):
    return json.loads((folder / "chosen_rows.json").read_text())


def test_the_recorded_lines_alone_give_the_subset_again(tmp_path):
    write_csv(tmp_path / "train.csv", csv_lines(0, 40))
    write_csv(tmp_path / "test.csv", csv_lines(1, 9))
    read.prepare_sudoku_from_csv(tmp_path, tmp_path / "set", subsample=8, test=3, seed=5)
    chosen = chosen_rows(tmp_path / "set")
    for split in ("train", "test"):
        file = tmp_path / chosen[split]["file"]
        assert chosen[split]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        lines = file.read_text().splitlines()
        questions = boards(*(lines[line - 1].split(",")[1] for line in chosen[split]["lines"]))
        np.testing.assert_array_equal(read_split(tmp_path / "set", split).inputs - 1, questions)


def test_which_rows_a_seed_chooses_does_not_depend_on_other_rows_or_the_release_of_numpy(tmp_path):
    lines = csv_lines(0, 40)
    for name, count in (("short", 30), ("long", 40)):
        file = write_csv(tmp_path / f"{name}.csv", lines[:count])
        write_csv(tmp_path / f"{name}_test.csv", csv_lines(1, 2))
        held_out = tmp_path / f"{name}_test.csv"
        read.prepare_sudoku_from_csv(file, tmp_path / name, test_csv=held_out, subsample=5, seed=7)
    short, long = (chosen_rows(tmp_path / name)["train"]["lines"] for name in ("short", "long"))
    assert set(long) <= set(short) | set(range(32, 42))
    assert short == sorted(sorted(range(2, 32), key=lambda line: splitmix64(7, line))[:5])


def splitmix64(seed, line):
    """The documented hash, in whole numbers: seed, epoch 0 and line are mixed in one after the other."""
    golden, state = 0x9E3779B97F4A7C15, seed

    def mixed(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    for part in (0, line):
        state = mixed((state + golden) % 2**64) ^ part
    return mixed((mixed((state + golden) % 2**64) + golden) % 2**64)


LONG = f"made,{QUESTION},{ANSWER},1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"made,{QUESTION[:-1]},{ANSWER},1", r":3: question has 80 characters, '53007"),
        (f"made,{QUESTION},{ANSWER}9,1", r":3: answer has 82 characters"),
        (f"made,{QUESTION},1", r":3: 3 fields; it must have 4"),
        (f"made,{QUESTION},{ANSWER},easy", r":3: rating 'easy' must be a number"),
        (f"made,x{QUESTION[1:]},{ANSWER},1", r":3: x30.*the characters 0–9"),
        (f"made,é{QUESTION[1:]},{ANSWER},1", r":3: é30.*the characters 0–9"),
        (f"made,{QUESTION},{ANSWER[1]}{ANSWER[0]}{ANSWER[2:]},1", r":3: 35467.*no valid grid"),
        (f"made,{QUESTION},{ANSWER[:-1]}.,1", r":3: 534678.*no valid grid"),
        (f"made,1{QUESTION[1:]},{ANSWER},1", r":3: 130.*does not agree with the question"),
        (f"made,{'.' * 65}{ANSWER[65:]},{ANSWER},1", r":3: .*less than 17 clues"),
    ],
)
def test_a_malformed_csv_line_is_named(tmp_path, line, message):
    file = write_csv(tmp_path / "all.csv", [LONG, line])
    with pytest.raises(ValueError, match=message):
        read.prepare_sudoku_from_csv(file, tmp_path / "set", test=1)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": None}, "pass --test N"),
        ({"test": 99}, "test=99 is more than the 12 puzzles"),
        ({"test": 0}, "test=0 must be at least 1"),
        ({"test": 2, "subsample": 11}, "subsample=11 is more than the 10"),
        ({"test": 12}, "no training puzzle is left"),
        ({"test": 1, "min_difficulty": 9}, "no puzzle with a rating of at least 9"),
        ({"test": 1, "test_csv": "none.csv"}, "none.csv does not exist"),
    ],
)
def test_an_impossible_choice_from_a_csv_is_refused(tmp_path, arguments, message):
    file = write_csv(tmp_path / "all.csv", csv_lines(0, 12))
    with pytest.raises(ValueError, match=message):
        read.prepare_sudoku_from_csv(file, tmp_path / "set", **arguments)


def test_another_header_is_refused(tmp_path):
    (tmp_path / "all.csv").write_text("boards,grids\n")
    with pytest.raises(ValueError, match=r"all.csv:1: the header is 'boards,grids'; it must name the columns question"):
        read.prepare_sudoku_from_csv(tmp_path / "all.csv", tmp_path / "set", test=1)
