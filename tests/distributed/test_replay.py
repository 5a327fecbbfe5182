"""Early stopping replayed: the sweep's own scheduler, fed from the logs of runs whose best scenario is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replay_helpers import ANYTIME, FIRST_CYCLE, SOLVED, STEPS, rows_of, write_run, write_sweep

import trm_ray
from trm_ray.config import AshaConfig
from trm_ray.distributed.replay import Entrant, last_steps
from trm_ray.distributed.scheduler import Contender
from trm_ray.programs.replay import replay
from trm_ray.reporting.numbers.replay import omens_table, replay_lines, settings_table

BASELINE = "deep_supervision_baseline"
ASHA = AshaConfig(grace_period=100, reduction_factor=2)
# Three seeds each; `best` and `good` differ by less than their seeds do.
QUALITIES = {
    "best": (0.90, 0.86, 0.91),
    "good": (0.88, 0.90, 0.85),
    "bad": (0.30, 0.31, 0.33),
    "worse": (0.2, 0.1, 0.2),
}


def entrants(*qualities: float, kept: int | None = None) -> list[Entrant]:
    return [Entrant(Contender("", kept == number), rows_of(quality)) for number, quality in enumerate(qualities)]


# ---- one order, worked by hand -----------------------------------------------------------------------------


def test_one_after_the_other_the_first_passes_every_rung_and_others_meet_the_median_of_those_before():
    """Rungs at 100, 200 and 400. The last passes the first rung (0.5, 0.4, 0.9), and not the second (0.5, 0.9)."""
    assert last_steps(ASHA, entrants(0.5, 0.4, 0.9, 0.6), slots=1) == [600, 100, 600, 200]


def test_two_at_a_time_meet_at_the_rungs():
    """The one that comes second stops if it is the worse; the one that always comes first never does."""
    assert last_steps(ASHA, entrants(0.9, 0.1, 0.4), slots=2) == [600, 100, 100]
    assert last_steps(ASHA, entrants(0.1, 0.9, 0.4), slots=2) == [600, 600, 100]


def test_a_slot_that_is_free_earlier_begins_the_next_trial_earlier():
    """A slow trial is overtaken: it is compared with two that came after it."""
    slow = Entrant(Contender("", False), [{**row, "wall_s": 10 * row["wall_s"]} for row in rows_of(0.5)])
    assert last_steps(ASHA, [slow, *entrants(0.9, 0.8)], slots=2)[0] == 100


def test_a_kept_trial_is_trained_to_its_end():
    assert last_steps(ASHA, entrants(0.9, 0.1, kept=1), slots=1) == [600, 600]


def test_leagues_do_not_compete():
    league = [Entrant(Contender(name, False), rows_of(quality)) for name, quality in (("a", 0.9), ("b", 0.1))]
    assert last_steps(ASHA, league, slots=1) == [600, 600]


GROUPS = AshaConfig(grace_period=100, reduction_factor=2, unit="group")


def team(name: str, *qualities: float, rows: int = 6) -> list[Entrant]:
    contender = Contender("", False, name, len(qualities))
    return [Entrant(contender, rows_of(quality)[:rows]) for quality in qualities]


def test_a_group_is_judged_when_its_last_seed_is_there():
    """With a slot each, the seed that is there last stops at the rung, and the other at its next report."""
    both = [*team("good", 0.9, 0.8), *team("bad", 0.3, 0.7)]
    assert last_steps(GROUPS, both, slots=4) == [600, 600, 200, 100]
    assert last_steps(ASHA, both, slots=4) == [600, 100, 100, 100]


def test_with_one_slot_the_first_seed_of_a_group_is_at_its_end_before_the_last_is_judged():
    both = [*team("good", 0.9, 0.8), *team("bad", 0.3, 0.7)]
    assert last_steps(GROUPS, both, slots=1) == [600, 600, 600, 100]


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 20])
def test_groups_come_to_their_end_with_any_number_of_slots_and_with_seeds_that_break_off(slots: int):
    random = np.random.default_rng(slots)
    for _ in range(20):
        whole = [one for name in "abcd" for one in team(name, *random.random(3))]
        broken = [Entrant(one.contender, one.evaluations[: random.integers(1, 7)]) for one in whole]
        order = [broken[number] for number in random.permutation(len(broken))]
        assert all(step >= 100 for step in last_steps(GROUPS, order, slots))


# ---- sweeps ------------------------------------------------------------------------------------------------


def test_the_best_its_equal_and_what_a_setting_saves_are_found(tmp_path: Path):
    found = replay([write_sweep(tmp_path / "sweep", QUALITIES)], orders=20)
    labels = found.finals.labels
    assert labels[found.finals.winner] == "best"
    assert {labels[number] for number in found.finals.equals} == {"best", "good"}
    assert found.finals.means[found.finals.winner] == pytest.approx((0.90 + 0.86 + 0.91) / 3)
    assert found.advised is not None
    assert (found.advised.mean.equal, found.num_orders) == (1.0, 21)
    assert found.advised.mean.saved_steps > 0.2
    assert found.advised.mean.saved_flops == pytest.approx(found.advised.mean.saved_steps)


def test_as_the_sweep_came_the_numbers_are_those_worked_by_hand(tmp_path: Path):
    """One trial at a time: `a` to its end and `b` to step 100, of both seeds: 1,400 of 2,400 steps."""
    sweep = write_sweep(tmp_path / "sweep", {"a": (0.8, 0.9), "b": (0.4, 0.3)})
    found = replay([sweep], grace=[100], reduction=[2.0], metrics=["eval/loss"], slots=1, orders=0)
    setting, by_groups = found.settings
    assert setting.as_they_came == setting.mean
    assert setting.mean.saved_steps == pytest.approx(5 / 12)
    assert (setting.mean.winner, setting.mean.equal, setting.mean.regret) == (1, 1, 0)
    assert by_groups.mean.saved_steps == pytest.approx(500 / 2400)  # `b` is judged when its second seed is there


def test_a_loss_that_misleads_early_costs_regret_and_the_advice_takes_another_number(tmp_path: Path):
    """At steps 100 and 200 the loss shows the best as the worst."""
    lies = {100: -0.5, 200: -0.5}
    sweep = write_sweep(tmp_path / "sweep", QUALITIES, best=lies, good=lies)
    found = replay([sweep], grace=[100], reduction=[4.0], orders=20)
    by_metric = {one.asha.metric: one.mean for one in found.settings if one.asha.unit == "trial"}
    assert by_metric["eval/loss"].regret > 0.3
    assert by_metric[ANYTIME].regret < 0.05
    assert found.advised is not None
    assert found.advised.asha.metric != "eval/loss"
    told = {(omen.tag, omen.step): omen.trials for omen in found.omens}
    assert told["eval/loss", 100] < 0 < told["eval/loss", 300] == pytest.approx(1)
    assert told[ANYTIME, 100] == pytest.approx(1)


def test_text_is_replayed_as_the_puzzles_that_it_mirrors(tmp_path: Path):
    """Runs that log 5 − x bits per byte instead of a share x: the same is saved, kept and lost."""
    places = [write_sweep(tmp_path / name, QUALITIES) for name in ("puzzles", "text")]
    mirrored = {
        SOLVED: "bits_per_byte",
        ANYTIME: "anytime_bits_per_byte",
        FIRST_CYCLE: "first_segment/step_0_bits_per_byte",
    }
    for file in places[1].glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        turned = [{f"eval/{mirrored[tag]}" if tag in mirrored else tag: 5 - value if tag in mirrored else value
                   for tag, value in row.items()} for row in rows]  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in turned))
    exact, bits = (
        replay([place], grace=[100], reduction=[2.0], metrics=[tag], units=["trial"], orders=3)
        for place, tag in zip(places, (ANYTIME, "eval/anytime_bits_per_byte"), strict=True)
    )
    assert (bits.finals.winner, bits.finals.equals) == (exact.finals.winner, exact.finals.equals)
    for name in ("saved_steps", "winner", "equal", "regret"):
        assert getattr(bits.settings[0].mean, name) == pytest.approx(getattr(exact.settings[0].mean, name))
    assert bits.settings[0].asha.mode == "min"
    told = {(omen.tag, omen.step): omen.trials for omen in exact.omens}
    for omen in (omen for omen in bits.omens if omen.tag == "eval/bits_per_byte"):
        assert omen.trials == pytest.approx(told[SOLVED, omen.step])
    assert "bits per byte at the end" in " ".join(replay_lines(bits))


def test_where_only_chance_is_left_no_setting_is_advised(tmp_path: Path):
    """The best one looks worst until the last evaluation."""
    lies = dict.fromkeys(STEPS[:-1], -1.0)
    sweep = write_sweep(tmp_path / "sweep", {**QUALITIES, "good": (0.4, 0.4, 0.4)}, best=lies)
    found = replay([sweep], metrics=["eval/loss"], grace=[100], reduction=[4.0], orders=20)
    assert found.advised is None


def test_where_no_group_can_be_told_from_the_best_no_setting_is_advised(tmp_path: Path):
    sweep = write_sweep(tmp_path / "sweep", {"a": (0.9, 0.8, 0.7), "b": (0.8, 0.9, 0.69), "c": (0.7, 0.85, 0.8)})
    found = replay([sweep], metrics=["eval/loss"], grace=[100], reduction=[4.0], orders=5)
    assert found.settings[0].mean.saved_steps > 0
    assert found.advised is None
    assert replay_lines(found)[-1].startswith("No group can be told from the best")


def test_the_tables_say_what_their_columns_mean(tmp_path: Path):
    found = replay([write_sweep(tmp_path / "sweep", QUALITIES)], grace=[100], metrics=[ANYTIME], orders=3)
    settings, foretold = settings_table(found), omens_table(found)
    headings = [str(column.header) for column in settings.columns[-3:]]
    assert headings == ["best kept", "as good kept", "regret"]
    assert all(f"{heading}: " in str(settings.caption) for heading in headings)
    assert "over 4 orders" in str(settings.caption)
    assert "rank correlation" in str(foretold.caption)


def test_the_picture_speaks_of_a_ring_only_where_one_is_drawn(tmp_path: Path):
    from matplotlib.text import Text

    from trm_ray.reporting.pictures.replay import draw_replay

    found = replay([write_sweep(tmp_path / "sweep", QUALITIES)], grace=[100], metrics=[ANYTIME], orders=3)
    for shown, rings in ((found, 1), (replace(found, settings=found.settings[:0]), 0)):
        assert (shown.advised is not None) == bool(rings)
        words = [text.get_text() for text in draw_replay(shown).findobj(Text)]
        assert sum("ring: take" in word for word in words) == rings


def test_the_sweep_s_own_keep_holds(tmp_path: Path):
    sweep = write_sweep(tmp_path / "sweep", {BASELINE: (0.1,), "best": (0.9,)}, keep=[BASELINE])
    asked = {"grace": [100], "reduction": [2.0], "metrics": ["eval/loss"], "orders": 5}
    kept, free = replay([sweep], **asked), replay([sweep], keep=[], **asked)
    assert (kept.kept, free.kept) == (("baseline",), ())
    assert kept.settings[0].mean.saved_steps == 0 < free.settings[0].mean.saved_steps


def test_runs_that_lack_the_new_numbers_are_replayed_by_the_old(tmp_path: Path):
    for name, quality in (("a", 0.9), ("b", 0.5)):
        rows = [{k: v for k, v in row.items() if k not in (ANYTIME, "train/flops")} for row in rows_of(quality)]
        write_run(tmp_path / name, name, 0, rows)
    found = replay([tmp_path], orders=0)
    assert ANYTIME not in {one.asha.metric for one in found.settings}
    assert {one.mean.saved_flops for one in found.settings} == {None}


def test_the_same_seed_gives_the_same_numbers_from_python_too(tmp_path: Path):
    sweep = write_sweep(tmp_path / "sweep", QUALITIES)
    asked = {"grace": [100], "metrics": [ANYTIME], "orders": 5}
    assert trm_ray.replay([sweep], **asked) == replay([sweep], **asked)
    assert trm_ray.replay([str(sweep)], seed=1, **asked) != replay([sweep], **asked)


def test_a_group_is_told_apart_by_its_seeds_and_a_single_seed_by_five_points(tmp_path: Path):
    write_sweep(tmp_path / "one", {"a": (0.90,), "b": (0.86,), "c": (0.84,)})
    found = replay([tmp_path / "one"], orders=0)
    assert [found.finals.labels[number] for number in sorted(found.finals.equals)] == ["a", "b"]
    assert all(math.isfinite(omen.trials) for omen in found.omens)


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_tells_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from trm_ray.cli import app

    sweep = write_sweep(tmp_path / "sweep", QUALITIES)
    words = ["--grace", "100,200", "--reduction", "2", "--metric", f"eval/loss,{ANYTIME}", "--orders", "3"]
    picture, numbers = tmp_path / "r.png", tmp_path / "r.json"
    app(["replay", str(sweep), *words, "--save", str(picture), "--json", str(numbers)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "12 trials in 4 groups, 600 steps each" in printed
    assert "Take asha.unit=" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())
    assert (len(content["settings"]), content["format_version"]) == (8, 1)
    assert content["settings"][content["advised"]]["mean"]["equal"] >= 0.95
