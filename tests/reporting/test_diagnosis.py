"""Every rule shown true and false on series made for it, and what its remedies and anchors name."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_helpers import ROOT

from trm_ray.config import SweepConfig, known_keys, load_config
from trm_ray.reporting.marks import told_marks
from trm_ray.reporting.numbers import diagnosis
from trm_ray.reporting.numbers.diagnosis import (
    NO_DIFFERENCE,
    Finding,
    Onlooker,
    findings,
    group_findings,
    troubles,
)
from trm_ray.reporting.numbers.verdicts import Verdict
from trm_ray.reporting.rules.seen import Seen
from trm_ray.reporting.rules.table import RULES
from trm_ray.reporting.run_log import Run

CONFIG = {
    **{"max_steps": 400, "lr": 2e-3, "lr_warmup_steps": 50, "lr_min_ratio": 1.0, "grad_clip_norm": 1.0, "keep_last": 1},
    **{"deep_supervision_enabled": True, "deep_supervision_weight": 0.5, "deep_supervision_schedule": "constant"},
    **{"curriculum_enabled": False, "curriculum_start_step": 40, "curriculum_end_step": 240, "augment": False},
    **{"eval_interval": 100, "global_batch_size": 32, "data_memory_gib": 2.0, "generator": {"train": 16}},
    "arch": {"H_cycles": 3, "L_cycles": 3, "halt_max_steps": 8, "halt_exploration_prob": 0.1},
    "ray": {"num_workers": 4, "cpus_per_worker": 1.0},
}
FALLS, STANDS, FELL_AND_ROSE = [2.0, 1.5, 1.0, 0.5], [2.0, 2.01, 1.99, 2.0], [2.0, 0.5, 1.6, 1.7]
Columns = Mapping[str, Sequence[float]]


def a_run(columns: Columns, last_step: int = 400, **changes: Any) -> Run:
    """A run whose rows hold a value of each column, or fewer: the last ones, at steps that end with `last_step`."""
    length = max(map(len, columns.values()), default=0)
    rows = [{"step": last_step * (i + 1) // length, "wall_s": float(i)} for i in range(length)]
    for tag, values in columns.items():
        for row, value in zip(rows[length - len(values) :], values, strict=True):
            row[tag] = value
    arch = {**CONFIG["arch"], **changes.pop("arch", {})}
    return Run(Path("run"), "run", {**CONFIG, **changes, "arch": arch}, tuple(rows), finished=False)


def goes_on(columns: Columns, evaluations: int) -> Run:
    """A run half-way whose last evaluations all found the same."""
    repeated = {tag: [*values] * evaluations for tag, values in columns.items()}
    return a_run({"eval/loss": [0.5] * evaluations, **repeated}, last_step=200)


def training(losses: Sequence[float], **more: Sequence[float]) -> Columns:
    return {"train/lm_loss": losses, **{f"train/{tag}": values for tag, values in more.items()}}


def first_segment(losses: Sequence[float], solved: Sequence[float]) -> Columns:
    """What an evaluation finds after each H-cycle of the first segment."""
    names = {f"step_{i}_loss": [loss] for i, loss in enumerate(losses)}
    names |= {f"step_{i}_exact_accuracy": [share] for i, share in enumerate(solved)}
    return {f"eval/first_segment/{name}": values for name, values in names.items()}


def gradients(*norms: float | None) -> Columns:
    tags = {f"train/gradients/step_{i}_grad_norm_mean": norm for i, norm in enumerate(norms)}
    return {tag: [norm] for tag, norm in tags.items() if norm is not None}


def held_out(losses: Sequence[float], training_loss: float) -> Columns:
    """Held-out losses, of which the last was the same in the first segment, and the training puzzles' there."""
    return {
        "eval/loss": losses,
        "eval/first_segment/step_0_loss": losses[-1:],
        "train/first_segment/step_0_loss": [training_loss],
    }


def halting(exact: float, where_it_halts: float, segments: float) -> Columns:
    tags = {"exact_accuracy": exact, "exact_accuracy_halting": where_it_halts, "act_steps": segments}
    return {f"eval/{tag}": [value] for tag, value in tags.items()}


TEXT = {"arch": {"causal": True, "halt_max_steps": 1}}


def text(*bits: float, unigram: float | None = 4.8, xz: float | None = 2.7) -> Columns:
    """What evaluations find of plain text beside its yardsticks."""
    known = {"bits": bits, "unigram_bits": [unigram] * len(bits), "xz_bits": [xz] * len(bits)}
    return {f"eval/{name}_per_byte": values for name, values in known.items() if values[0] is not None}  # type: ignore[misc]


def text_cycles(*bits: float) -> Columns:
    """A text that is learned, and its bits per byte after each H-cycle of the first segment."""
    names = {f"eval/first_segment/step_{i}_bits_per_byte": [value] for i, value in enumerate(bits)}
    return {**training(FALLS), **text(bits[-1]), **names}


def spent(evaluation: float, steps: float, start: float = 1000.0) -> Columns:
    tags = {"evaluation": evaluation, "steps": steps, "start": start}
    return {f"core_seconds/{tag}": [value] for tag, value in tags.items()}


RAMP = {"curriculum_enabled": True}
WEIGHT = {"train/curriculum_weight": [0.0, 0.25]}
RATE = {"train/learning_rate": [1e-4, 2e-4]}
# A rule, runs that it is true of, and runs that it is not; at the bounds where it has some.
CASES: dict[str, tuple[list[Run], list[Run]]] = {
    "non-finite": (
        [a_run(training([2.0, math.nan])), a_run({"eval/loss": [math.inf], "eval/accuracy": [0.1]})],
        [a_run(training(FALLS)), a_run({"eval/loss": [math.nan], "eval/accuracy": [math.nan]})],
    ),
    "diverging": (
        [a_run(training([2.0, 2.2, 2.4, 2.6])), a_run({**training(FELL_AND_ROSE), "eval/loss": [2.0, 0.5, 2.1, 2.2]})],
        [
            a_run(training([2.0, 2.05, 2.0, 2.09])),
            a_run({**training(FELL_AND_ROSE), "eval/loss": [2.0, 0.5, 1.9, 2.2]}),
            a_run({**training(FALLS), "eval/loss": [2.0, 0.5, 2.1, 2.2]}),  # that is overfitting
            a_run(training([2.0, 2.2, 2.4, 2.6]), last_step=100),  # four logs of a run that goes on tell no trend
            a_run(training([0.1, 0.2, 0.3, 0.4]), init_from="runs/a"),
        ],
    ),
    "not-learning": (
        [a_run(training(STANDS)), a_run(training([*STANDS, *STANDS]), last_step=51)],
        [
            a_run(training(FALLS)),
            a_run(training([2.0, 2.0, 2.0, 1.95])),
            a_run(training([*STANDS, *STANDS]), last_step=49),  # still warming up
            a_run(training(STANDS), init_from="runs/a"),
        ],
    ),
    "converging": ([a_run(training(FALLS))], [a_run(training(STANDS)), a_run(training([*FALLS, math.nan]))]),
    "clipped": (
        [a_run(training(STANDS, grad_norm=[3.0, 2.0, 1.5, 1.1]))],
        [
            a_run(training(FALLS, grad_norm=[3.0, 2.0, 1.5, 1.1])),
            a_run(training(STANDS, grad_norm=[3.0, 2.0, 1.5, 0.9])),
            a_run(training(STANDS, grad_norm=[3.0, 2.0, 1.5, 1.1]), grad_clip_norm=None),
            a_run(training(STANDS, grad_norm=[3.0, 2.0, 1.5, 1.1]), lr=1e-5),  # it is the rate that leads nowhere
        ],
    ),
    "warming-up": ([a_run(RATE, lr_warmup_steps=401)], [a_run(RATE, lr_warmup_steps=400), a_run(RATE, max_steps=None)]),
    "curriculum-not-begun": (
        [a_run(WEIGHT, **RAMP, curriculum_start_step=400, curriculum_end_step=500)],
        [
            a_run(WEIGHT, **RAMP, curriculum_start_step=399, curriculum_end_step=500),
            a_run(WEIGHT, curriculum_start_step=400, curriculum_end_step=500),
        ],
    ),
    "curriculum-cut-short": (
        [a_run(WEIGHT, **RAMP, curriculum_end_step=401)],
        [a_run(WEIGHT, **RAMP, curriculum_end_step=400), a_run(WEIGHT, curriculum_end_step=401)],
    ),
    "nothing-supervised": (
        [
            a_run({"train/curriculum_weight": [0.0]}, deep_supervision_weight=0.0),
            a_run({"train/curriculum_weight": [0.5]}, arch={"H_cycles": 1}),
        ],
        [
            a_run({"train/curriculum_weight": [0.5]}),
            a_run({"train/curriculum_weight": [0.0]}, deep_supervision_weight=0.0, deep_supervision_enabled=False),
        ],
    ),
    "no-refinement": (
        [a_run(first_segment([0.5, 0.5, 0.5], [0.3, 0.3, 0.31])), a_run(text_cycles(2.4, 2.4, 2.39), **TEXT)],
        [
            a_run(first_segment([0.5, 0.4, 0.3], [0.3, 0.4, 0.5])),
            a_run(first_segment([1.4, 1.4, 1.4], [0.0, 0.0, 0.0])),  # nothing is learned that could be refined
            goes_on(first_segment([0.5, 0.5, 0.5], [0.05, 0.05, 0.05]), 3),  # too early to tell
            a_run(first_segment([1e-4, 1e-4], [0.99, 0.99])),  # there was nothing left to refine
            a_run(first_segment([0.5], [0.3])),
            a_run({"eval/step_0_loss": [0.5], "eval/step_1_loss": [0.5]}),  # at the last segment cycles always agree
            a_run(text_cycles(2.4, 2.3, 2.2), **TEXT),
            a_run(text_cycles(2.7, 2.7, 2.7), **TEXT),  # no better than xz
            a_run({**text_cycles(2.4, 2.4, 2.4), **training(STANDS)}, **TEXT),
        ],
    ),
    "reversed-refinement": (
        [
            a_run(first_segment([0.5, 0.6, 0.7], [0.3, 0.3, 0.3])),
            a_run(first_segment([0.5, 0.5, 0.5], [0.3, 0.28, 0.25])),
            a_run(text_cycles(2.4, 2.4, 2.43), **TEXT),
        ],
        [
            a_run(first_segment([0.5, 0.5, 0.54], [0.3, 0.3, 0.3])),
            a_run(first_segment([1e-4, 1e-3], [0.99, 0.99])),
            a_run(text_cycles(2.4, 2.3, 2.41), **TEXT),
        ],
    ),
    "u-shape": (
        [a_run(first_segment([0.5, 0.3, 0.4], [0.3, 0.5, 0.4])), a_run(text_cycles(2.4, 2.35, 2.38), **TEXT)],
        [
            a_run(text_cycles(2.4, 2.35, 2.36), **TEXT),
            a_run(first_segment([0.5, 0.4, 0.3], [0.3, 0.4, 0.5])),
            a_run(first_segment([0.5, 0.3, 0.31], [0.3, 0.5, 0.49])),
            goes_on(first_segment([0.5, 0.3, 0.4], [0.01, 0.05, 0.02]), 3),
        ],
    ),
    "refining": (
        [a_run(first_segment([0.5, 0.4, 0.3], [0.3, 0.4, 0.5])), a_run(text_cycles(2.4, 2.39, 2.38), **TEXT)],
        [
            a_run(text_cycles(2.4, 2.395, 2.39), **TEXT),
            a_run(first_segment([0.5, 0.5, 0.5], [0.3, 0.3, 0.3])),
            a_run(first_segment([0.5, 0.3, 0.4], [0.3, 0.5, 0.4])),
        ],
    ),
    "starved-cycles": (
        [a_run(gradients(0.9e-7, 0.1, 0.1))],
        [a_run(gradients(1.1e-7, 0.1, 0.1)), a_run(gradients(None, None, 0.1))],  # the baseline's
    ),
    "exploding-cycles": (
        [a_run(gradients(10.1, 0.1, 0.1)), a_run(gradients(0.1, 0.1, 10.1))],
        [
            a_run(gradients(9.9, 0.1, 0.1)),
            a_run(gradients(0.9e-7, 0.1, 0.1)),
            a_run(gradients(1.0, 1e-3, 1e-3)),  # later cycles have solved the batch
        ],
    ),
    "overfitting": (
        [a_run(held_out([0.5, 0.4, 0.5], 0.1)), a_run(held_out([0.5, 0.4, 0.7], 0.1))],
        [
            a_run(held_out([0.5, 0.4, 0.43], 0.1)),
            a_run(held_out([0.5, 0.4, 0.5], 0.5)),  # training rose as much
            a_run(held_out([0.5, 0.01, 0.03], 0.001)),  # next to nothing
        ],
    ),
    "generalising": (
        [a_run({**training(FALLS), "eval/loss": [0.5, 0.4, 0.43]})],
        [
            a_run({**training(FALLS), "eval/loss": [0.5, 0.4, 0.6]}),
            a_run({**training(STANDS), "eval/loss": [2.0, 2.0, 2.0]}),  # nothing is learned that could hold
        ],
    ),
    "nothing-solved": (
        [a_run({"eval/exact_accuracy": [0.0, 0.0]})],
        [
            a_run({"eval/exact_accuracy": [0.0, 0.01]}),
            a_run({"eval/exact_accuracy": [0.0, 0.0]}, last_step=399),
            a_run(
                {"eval/exact_accuracy": [0.0, 0.0], **training([2.0, 2.2, 2.4, 2.6])}
            ),  # told already, and longer does not help
        ],
    ),
    "past-its-best": (
        [
            a_run({"eval/exact_accuracy": [0.9, 0.84]}),
            a_run(text(2.0, 2.05), **TEXT),
            a_run(text(2.0, 2.05, 1.5), eval_quick_puzzles=64, **TEXT),
        ],
        [
            a_run(text(2.0, 2.03), **TEXT),
            a_run(text(2.0, 2.05), last_step=399, **TEXT),
            a_run(text(2.0, 2.03, 2.5), eval_quick_puzzles=64, **TEXT),  # the last one is of other text
            a_run({"eval/exact_accuracy": [0.9, 0.86]}),
            a_run({"eval/exact_accuracy": [0.9, 0.84]}, last_step=399),
            a_run({"eval/exact_accuracy": [0.9, 0.84]}, eval_quick_puzzles=64),  # 2·√(0.9·0.1 / 64) = 0.075
        ],
    ),
    "solving": ([a_run({"eval/exact_accuracy": [0.5]})], [a_run({"eval/exact_accuracy": [0.0]})]),
    "worse-than-unigram": (
        [a_run(text(5.0, 4.8), **TEXT)],
        [
            a_run(text(5.0, 4.79), **TEXT),
            a_run(text(5.0, 4.9, unigram=None), **TEXT),
            a_run(text(5.0, 4.8), lr_warmup_steps=401, **TEXT),
        ],
    ),
    "leak": (
        [
            a_run(text(2.0, 0.49), **TEXT),
            a_run(text(2.0, 0.24, xz=1.0), **TEXT),  # a quarter of what xz takes
            a_run(text(2.0, 0.29, xz=None), **TEXT),
        ],
        [
            a_run(text(2.0, 0.51), **TEXT),
            a_run(text(2.0, 0.26, xz=1.0), **TEXT),
            a_run(text(2.0, 0.31, xz=None), **TEXT),
            a_run({**text(2.0, 0.01, unigram=None, xz=None), "eval/exact_accuracy": [0.9, 1.0]}, **TEXT),  # prompts
        ],
    ),
    "halting-collapsed": (
        [a_run(halting(0.4, 0.4, 1.05))],
        [a_run(halting(0.9, 0.9, 1.05)), a_run(halting(0.4, 0.4, 1.2))],
    ),
    "halting-too-early": (
        [a_run(halting(0.9, 0.74, 2.0))],
        [a_run(halting(0.9, 0.76, 2.0)), a_run(halting(0.9, 0.74, 2.0), last_step=399), a_run(halting(0.9, 0.74, 1.0))],
    ),
    "halting-never": (
        [a_run(halting(0.9, 0.9, 7.7))],
        [
            a_run(halting(0.9, 0.9, 7.5)),
            a_run(halting(0.4, 0.4, 8.0)),  # it is right not to halt
            a_run(halting(0.9, 0.9, 1.0), arch={"halt_max_steps": 1}),
        ],
    ),
    "segments-hurt": (
        [
            a_run({"eval/exact_accuracy_first": [0.998], "eval/exact_accuracy": [0.945]}),
            a_run({**text_cycles(2.4, 2.3, 2.2), **text(2.23)}, arch={"causal": True}),
        ],
        [
            a_run({**text_cycles(2.4, 2.3, 2.2), **text(2.21)}, arch={"causal": True}),
            a_run({**text_cycles(3.4, 3.3, 3.2), **text(3.4)}, arch={"causal": True}),  # no better than xz
            a_run({"eval/exact_accuracy_first": [0.96], "eval/exact_accuracy": [0.945]}),
            a_run({"eval/exact_accuracy_first": [0.09], "eval/exact_accuracy": [0.03]}),  # hardly any is solved
            # 2·√(0.5·0.5 / 64) = 0.125
            a_run({"eval/exact_accuracy_first": [0.5], "eval/exact_accuracy": [0.4]}, eval_max_puzzles=64),
        ],
    ),
    "halting-saves": ([a_run(halting(0.9, 0.86, 2.0))], [a_run(halting(0.9, 0.9, 8.0)), a_run(halting(0.1, 0.1, 2.0))]),
    "data-starved": (
        [a_run({"throughput/data_wait_fraction": [0.0, 0.1, 0.11, 0.12]})],
        [
            a_run({"throughput/data_wait_fraction": [0.9, 0.09, 0.09, 0.1]}),  # the loader starts in the first log
            a_run({"throughput/data_wait_fraction": [0.9, 0.9]}),
        ],
    ),
    "exchange-bound": (
        [a_run({"throughput/exchange_fraction": [0.1, 0.26, 0.26, 0.26], "throughput/num_workers": [4.0] * 4})],
        [a_run({"throughput/exchange_fraction": [0.9, 0.24, 0.24, 0.24], "throughput/num_workers": [4.0] * 4})],
    ),
    "evaluation-heavy": (
        [a_run(spent(260, 740))],
        [
            a_run(spent(240, 760)),
            a_run(spent(260, 740), last_step=399),  # the first of a run that goes on
            a_run(spent(100, 100)),  # too little to be worth a word
        ],
    ),
}


# What passes, too, unless the run ends with it.
LASTING = {
    "no-refinement": first_segment([0.5, 0.5, 0.5], [0.3, 0.3, 0.31]),
    "reversed-refinement": first_segment([0.5, 0.6, 0.7], [0.3, 0.3, 0.3]),
    "u-shape": first_segment([0.5, 0.3, 0.4], [0.3, 0.5, 0.4]),
    "halting-collapsed": halting(0.4, 0.4, 1.05),
    "halting-never": halting(0.9, 0.9, 7.7),
    "segments-hurt": {"eval/exact_accuracy_first": [0.998], "eval/exact_accuracy": [0.945]},
    "worse-than-unigram": text(5.0),
}
# Rules of what text does not have: whole right answers, and a halt head.
NOT_OF_TEXT = {"nothing-solved", "solving", *(rule.id for rule in RULES if rule.id.startswith("halting"))}


def of_rule(name: str, run: Run) -> Seen | None:
    return next(rule for rule in RULES if rule.id == name).see(run)


def test_every_rule_has_a_name_of_its_own_and_is_in_the_table_of_cases() -> None:
    assert [rule.id for rule in RULES] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_true_of_what_it_is_about_and_of_nothing_else(name: str) -> None:
    true, false = CASES[name]
    assert [of_rule(name, run) is not None for run in true] == [True] * len(true)
    assert [of_rule(name, run) is not None for run in false] == [False] * len(false)


@pytest.mark.parametrize("name", LASTING)
def test_what_may_pass_is_told_of_a_run_that_goes_on_once_three_evaluations_found_it(name: str) -> None:
    found = [of_rule(name, goes_on(LASTING[name], evaluations)) is not None for evaluations in (1, 2, 3)]
    assert found == [False, False, True]


@pytest.mark.parametrize("name", LASTING)
def test_where_evaluations_are_many_what_may_pass_must_last_a_quarter_of_the_run(name: str) -> None:
    def told(first_step: int) -> bool:
        """Half-way, evaluated every tenth step, found wrong from some step on."""
        wrong = {tag: values[0] for tag, values in LASTING[name].items()}
        steps = [{"step": step, "wall_s": 0.0, "eval/loss": 0.5} for step in range(10, 201, 10)]
        rows = tuple(row | (wrong if row["step"] >= first_step else {}) for row in steps)
        return of_rule(name, Run(Path("run"), "run", CONFIG, rows, finished=False)) is not None

    assert (told(110), told(100)) == (False, True)


def test_of_a_text_that_is_learned_all_is_well_and_nothing_is_said_of_answers_and_halting() -> None:
    columns = {**text_cycles(2.6, 2.5, 2.4), **text(3.2, 2.7, 2.4), "eval/loss": [2.2, 1.9, 1.7]}
    told = {finding.id: finding.mark for finding in findings(a_run(columns, **TEXT))}
    assert told == {"converging": "ok", "refining": "ok", "generalising": "ok"}
    ill = [run for name, (true, _) in CASES.items() for run in true if name not in NOT_OF_TEXT]
    as_text = [replace(run, config=run.config | {"arch": run.arch | TEXT["arch"]}) for run in ill]
    assert not NOT_OF_TEXT & {one.id for run in as_text if run.is_plain_text for one in findings(run)}


def test_a_held_out_loss_that_comes_down_again_was_no_overfitting() -> None:
    def told(*losses: float) -> bool:
        columns = {**held_out(losses, 0.1), "eval/first_segment/step_0_loss": losses}
        columns["train/first_segment/step_0_loss"] = [0.1] * len(losses)
        return of_rule("overfitting", a_run(columns, last_step=200)) is not None

    assert (told(0.5, 0.2, 0.4, 0.4), told(0.5, 0.2, 0.4, 0.4, 0.4), told(0.5, 0.2, 0.4, 0.4, 0.21)) == (
        False,
        True,
        False,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_rule_tells_its_step_and_what_is_wrong_tells_a_way_out(name: str) -> None:
    for run in CASES[name][0]:
        found = of_rule(name, run)
        assert found is not None
        assert found.step in [row["step"] for row in run.rows]
        assert re.search(r"\d", found.evidence)
        assert bool(found.remedy) == (found.mark != "ok")
        assert found.changes or found.mark == "ok" or name == "leak"  # no key of a run mends its data


@pytest.mark.parametrize("name", CASES)
def test_remedies_are_words_that_the_command_line_takes(name: str) -> None:
    for run in CASES[name][0]:
        words = of_rule(name, run).changes  # type: ignore[union-attr]
        assert {key for key, _, _ in (word.partition("=") for word in words)} <= {*known_keys(), "generator.train"}
        kept = ["keep_last=1"] if "keep_best=1" in words else []  # as in the run
        load_config("deep_supervision_linear", ["task=sudoku6", *kept, *words])


def test_remedies_are_computed_from_the_runs_own_config() -> None:
    def changes(name: str, which: int = 0) -> tuple[str, ...]:
        return of_rule(name, CASES[name][0][which]).changes  # type: ignore[union-attr]

    assert changes("diverging") == ("lr=0.0004",)  # a fifth of 2e-3
    assert changes("not-learning") == ("lr=0.0004",)
    assert of_rule("not-learning", a_run(training(STANDS), lr=1e-5)).changes == ("lr=0.0001",)  # type: ignore[union-attr]
    assert changes("warming-up") == ("lr_warmup_steps=40",)  # a tenth of 400 steps
    assert changes("curriculum-not-begun") == ("curriculum_start_step=40", "curriculum_end_step=240")
    assert changes("no-refinement") == ("arch.L_cycles=6",)
    assert changes("overfitting") == ("generator.train=128", "augment=true", "keep_best=1")
    assert changes("exchange-bound") == ("ray.num_workers=2", "global_batch_size=64")
    assert changes("evaluation-heavy") == ("eval_interval=200",)  # ⌈4·260/740⌉ = 2 times as rare


def test_a_remedy_of_a_run_without_config_names_no_key_that_it_would_have_to_guess() -> None:
    found = findings(replace(CASES["diverging"][0][1], config={}))
    assert [(one.id, one.changes) for one in found if one.is_trouble] == [("diverging", ())]


def test_how_far_a_held_out_loss_rose_says_how_bad_it_is() -> None:
    warn, bad = (of_rule("overfitting", run) for run in CASES["overfitting"][0])
    assert (warn.mark, bad.mark) == ("warn", "bad")  # type: ignore[union-attr]
    told = "held-out loss 0.4 (step 266) → 0.7 (step 400); in the first segment it is 7.0 times the training loss"
    assert bad.evidence == told  # type: ignore[union-attr]


def test_the_training_loss_is_told_by_its_name() -> None:
    """The total is another number, and would not fall in every good run."""
    found = of_rule("converging", CASES["converging"][0][0])
    told = "training loss (last cycle's cross-entropy) 2 → 0.5, steps 100 to 400"
    assert found == ("ok", told, 400, "", ())


def test_a_healthy_run_has_only_good_marks(make_run: Callable[..., Run], healthy_rows: Callable[..., Any]) -> None:
    found = findings(make_run(healthy_rows()))
    told = ["converging", "refining", "generalising", "solving", "halting-saves"]
    assert [(one.id, one.mark) for one in found] == [(name, "ok") for name in told]


def test_at_no_step_of_a_healthy_run_is_there_anything_to_do(
    make_run: Callable[..., Run], healthy_rows: Callable[..., Any]
) -> None:
    run = make_run(healthy_rows(), finished=False)
    parts = [replace(run, rows=run.rows[:length]) for length in range(len(run.rows) + 1)]
    assert [finding.line for part in parts for finding in troubles(findings(part))] == []


def test_what_is_bad_stands_first() -> None:
    columns = {**training(STANDS), "eval/exact_accuracy": [0.5], **first_segment([0.5, 0.6], [0.3, 0.3])}
    assert [one.mark for one in findings(a_run(columns))] == ["bad", "warn", "ok"]


def test_a_finding_is_a_line_and_plain_data() -> None:
    found = Finding("warming-up", "warn", "lr 1e-3 of 2e-3", "It ends.", 5, "warm up less", ("lr_warmup_steps=40",))
    assert found.line == "warming-up: lr 1e-3 of 2e-3; warm up less: lr_warmup_steps=40"
    assert found.content() == {
        **{"id": "warming-up", "mark": "warn", "evidence": "lr 1e-3 of 2e-3", "meaning": "It ends.", "step": 5},
        **{"remedy": "warm up less", "changes": ("lr_warmup_steps=40",), "docs": "docs/diagnosis.md#warming-up"},
    }


def test_a_sweep_says_in_a_line_what_is_wrong_with_how_many_trials() -> None:
    ill = [replace(CASES["warming-up"][0][0], name=f"trial_{number}") for number in range(3)]
    worse = replace(CASES["nothing-solved"][0][0], name="worse")
    assert told_marks([*ill, worse]) == "To look at: warming-up in 3; nothing-solved in worse"
    assert told_marks([CASES["solving"][0][0]]) == ""


def test_whoever_sees_the_rows_of_a_run_hears_of_each_thing_once() -> None:
    run = a_run({**training(STANDS * 2), "eval/loss": [1.0] * 8}, lr_warmup_steps=0)
    onlooker = Onlooker(run.config, 400)
    heard = [[finding.id for finding in onlooker.see(row)] for row in run.rows]
    assert heard == [[], [], [], [], [], [], [], ["not-learning"]]
    assert [finding.id for finding in onlooker.found] == ["not-learning"]


def test_a_run_of_many_rows_is_looked_at_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(diagnosis, "findings", lambda run: looks.append(len(run.rows)) or [])
    onlooker = Onlooker({}, 10**6)
    for step in range(1, 2001):
        onlooker.see({"step": step, "wall_s": 0.0})
    assert looks[:101] == [*range(1, 101), 102]
    assert len(looks) < 50 * (1 + sum(1 / k for k in range(1, 41))) + 40  # 50 for every doubling, and a rest each


# ---- groups ----------------------------------------------------------------------------------------------------------


def verdict(number: str, claim: str, p: float = 0.6, n: int = 3, at: str = "steps") -> Verdict:
    rest: dict[str, Any] = {"ours": 0.8, "theirs": 0.79, "sd": 0.01, "p_uncorrected": p, "p_permutation": p}
    told: Any = ("linear", "baseline", number, at, 0.01, -0.02, 0.04, p, n, claim)
    return Verdict(*told, more_seeds=4, **rest)


def test_a_scenario_that_differs_in_no_number_is_told_with_the_seeds_that_would_show_it() -> None:
    found = group_findings(
        [verdict("exact_accuracy", "none"), verdict("loss", "none"), verdict("loss", "worse", at="flops")]
    )
    told = "no-difference: +1.0 points of exact accuracy at equal steps (3 seeds, p = 0.6) against baseline, "
    told += "and no difference in loss; "
    told += "4 more seeds would show a difference of this size; without them, take the cheaper of the two"
    assert {label: [one.line for one in all_of_it] for label, all_of_it in found.items()} == {"linear": [told]}


@pytest.mark.parametrize(
    "verdicts",
    [
        [verdict("exact_accuracy", "better", 0.01)],
        [verdict("exact_accuracy", "none"), verdict("anytime_accuracy", "better", 0.01)],
        [verdict("exact_accuracy", "none", math.nan, n=2)],  # too few seeds to say anything
        [],
    ],
)
def test_a_scenario_that_differs_or_has_too_few_seeds_is_not(verdicts: list[Verdict]) -> None:
    assert group_findings(verdicts) == {}


# ---- the page --------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_section_and_every_section_a_rule() -> None:
    text = (ROOT / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (\S+)$", text, re.M) == [*(rule.id for rule in RULES), NO_DIFFERENCE]


def test_the_keys_that_remedies_name_in_words_exist() -> None:
    told = [of_rule(name, run).remedy for name in CASES for run in CASES[name][0]]  # type: ignore[union-attr]
    names = {word for remedy in told for word in re.findall(r"\b\w+_\w+\b", remedy)}
    assert "eval_quick_puzzles" in names
    assert names <= {*known_keys(), *known_keys(SweepConfig)}


def test_a_ramp_of_weights_of_ones_own_is_told_as_a_share_of_them():
    run = a_run(WEIGHT, **RAMP, curriculum_end_step=401, deep_supervision_weights=[1, 0.7, 0.49])
    (found,) = [one for one in findings(run) if one.id == "curriculum-cut-short"]
    assert " of 1 at step 400" in found.evidence
