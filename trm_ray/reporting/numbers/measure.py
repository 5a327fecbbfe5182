"""What runs are ranked by: puzzles solved; or bits per byte, where no row of a text is ever right as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trm_ray.reporting.run_log import YARDSTICKS, Run

T = TypeVar("T", float, np.ndarray)


@dataclass(frozen=True)
class Unit:
    """How some numbers are written, and in what words two of them differ.

    scale, digits: of a number in a table; `rough_digits`: in a sentence, where `of` is behind the first one and
        `of_more` behind later ones.
    difference: unit of a difference; `axis`: of a picture.
    outcome: what a scenario does, with its own number as {ours} and the difference as {size} and one of two `ways`.
    """

    axis: str
    difference: str
    outcome: str
    ways: tuple[str, str]
    higher_is_better: bool = False
    scale: float = 1
    digits: int = 3
    rough_digits: int = 2
    of: str = ""
    of_more: str = ""

    def better(self, value: T) -> T:
        """Turn a number, or an array of them, so that more of it is better."""
        return value if self.higher_is_better else -value

    def rough(self, *values: float, more: bool = False) -> str:
        """Write some numbers with their unit behind the last; `more` where a sentence has had it."""
        numbers = " / ".join(f"{self.scale * value:.{self.rough_digits}f}" for value in values)
        return numbers + (self.of_more if more else self.of)


SHARE = Unit(
    axis="puzzles solved",
    difference="points",
    outcome="solves {size} points {way}",
    ways=("fewer", "more"),
    higher_is_better=True,
    scale=100,
    digits=1,
    rough_digits=0,
    of=" %",
    of_more=" %",
)
BITS = Unit(
    axis="bits per byte",
    difference="bits per byte",
    outcome="reaches {ours} bits per byte, {size} {way}",
    ways=("lower", "higher"),
    of=" bits per byte",
)
NATS = Unit(
    axis="cross-entropy, last H-cycle",
    difference="",
    outcome="has a loss {size} {way}",
    ways=("lower", "higher"),
)


@dataclass(frozen=True)
class Number:
    """A held-out number by which runs are compared.

    name, tag: in files, and in a log. title: of its picture; heading: of its column, with a | where a narrow one
    breaks; label: of its differences.
    """

    name: str
    tag: str
    unit: Unit
    title: str
    heading: str
    label: str


EXACT = Number("exact_accuracy", "eval/exact_accuracy", SHARE, "Exact accuracy", "Exact|%", "exact accuracy, points")
ANYTIME = Number(
    "anytime_accuracy", "eval/anytime_accuracy", SHARE, "Anytime accuracy", "Anytime|%", "anytime accuracy, points"
)
FIRST_CYCLE = Number(
    "first_cycle_exact_accuracy", "eval/first_segment/step_0_exact_accuracy", SHARE,
    "First H-cycle's accuracy", "1st|cycle|%", "first cycle, points",
)  # fmt: skip
BITS_PER_BYTE = Number("bits_per_byte", "eval/bits_per_byte", BITS, "Bits per byte", "Bits per|byte", "bits per byte")
ANYTIME_BITS = Number(
    "anytime_bits_per_byte", "eval/anytime_bits_per_byte", BITS,
    "Anytime bits per byte", "Anytime", "anytime bits per byte",
)  # fmt: skip
FIRST_CYCLE_BITS = Number(
    "first_cycle_bits_per_byte", "eval/first_segment/step_0_bits_per_byte", BITS,
    "First H-cycle's bits per byte", "1st|cycle", "first cycle, bits per byte",
)  # fmt: skip
LOSS = Number("loss", "eval/loss", NATS, "Held-out loss", "Loss", "loss")
# What is read off the number that ranks: what it took to get somewhere.
_WAIT = Unit(axis="", difference="", outcome="", ways=("fewer", "more"), digits=0)
STEPS_TO = Number("steps_to_threshold", "", _WAIT, "", "", "steps to threshold")
SECONDS_TO = Number("seconds_to_threshold", "", _WAIT, "", "", "seconds to threshold")


@dataclass(frozen=True)
class Measure:
    """What runs are ranked by, and its words.

    final, anytime, first_cycle: after the last H-cycle, averaged over depths, after the first H-cycle of all.
    others: numbers that verdicts are about besides; of a text the loss is the bits per byte in another unit.
    panels: what is drawn over steps and over time.
    items: what is held out, `item` one of them, `cells` its parts.
    by: what a ranking is by; `short`: the same, as what a depth has.
    does, does_better: of a model, and of better ones.
    loses: what is lost to a better one.
    noise: differences that a single seed cannot show; `noise_words` where that has been measured.
    worst: what is not finite counts as.
    threshold: what steps and seconds count to, if not to a yardstick.
    yardsticks: tags of what needs no model, the easiest to beat first.
    """

    final: Number
    anytime: Number
    first_cycle: Number
    others: tuple[Number, ...]
    panels: tuple[Number, ...]
    items: str
    item: str
    cells: str
    by: str
    short: str
    does: str
    does_better: str
    loses: str
    noise: float
    noise_words: str
    worst: float
    threshold: float | None
    yardsticks: Mapping[str, str]

    @property
    def numbers(self) -> tuple[Number, ...]:
        """All numbers that verdicts are about, the one that ranks first."""
        return (self.final, self.anytime, self.first_cycle, *self.others)

    @property
    def unit(self) -> Unit:
        """Unit of the number that ranks."""
        return self.final.unit

    @property
    def noun(self) -> str:
        """Name of the number that ranks, inside a sentence."""
        return self.final.name.replace("_", " ")

    @property
    def field_names(self) -> dict[str, str]:
        """Name in JSON what a summary's fields hold."""
        return {
            "final": f"final_{self.final.name}",
            "best": f"best_{self.final.name}",
            "final_anytime": f"final_{self.anytime.name}",
            "final_first_cycle": f"final_{self.first_cycle.name}",
            "value": self.final.name,
        }

    def goal_words(self, goal: float) -> str:
        """Write what steps and seconds count to."""
        return f"{self.unit.scale * goal:g} %" if self.unit is SHARE else f"{goal:.2f}"

    def is_logged_by(self, run: Run) -> bool:
        """Tell whether a run has the number that ranks."""
        return any(self.final.tag in row for row in run.rows)


PUZZLES = Measure(
    final=EXACT,
    anytime=ANYTIME,
    first_cycle=FIRST_CYCLE,
    others=(LOSS,),
    panels=(LOSS, EXACT, FIRST_CYCLE),
    items="puzzles",
    item="puzzle",
    cells="cells",
    by="puzzles solved",
    short="the accuracy",
    does="solves",
    does_better="solve more",
    loses="points of exact accuracy",
    noise=0.05,
    noise_words="under 3 to 5 points",
    worst=0.0,
    threshold=0.5,
    yardsticks={},
)
TEXT = Measure(
    final=BITS_PER_BYTE,
    anytime=ANYTIME_BITS,
    first_cycle=FIRST_CYCLE_BITS,
    others=(),
    panels=(ANYTIME_BITS, BITS_PER_BYTE, FIRST_CYCLE_BITS),
    items="text",
    item="row",
    cells="tokens",
    by="bits per byte",
    short="bits per byte",
    does="reaches",
    does_better="reach less",
    loses="bits per byte",
    noise=0.1,  # runs of two minutes spread by 0.08
    noise_words="",
    worst=8.0,  # who knows nothing of a byte
    threshold=None,
    yardsticks=YARDSTICKS,
)
MEASURES = (PUZZLES, TEXT)
LOGGED = tuple(number for measure in MEASURES for number in measure.numbers)
NUMBERS = {number.name: number for number in (*LOGGED, STEPS_TO, SECONDS_TO)}


def measure_of(runs: Iterable[Run]) -> Measure:
    """Choose what runs are ranked by: puzzles solved where any of them logs that, else bits per byte where any does."""
    runs = list(runs)
    unknown = TEXT if runs and all(run.is_text for run in runs) else PUZZLES
    return next((measure for measure in MEASURES if any(map(measure.is_logged_by, runs))), unknown)


def yardsticks_of(measure: Measure, runs: Sequence[Run]) -> dict[str, float]:
    """Read the yardsticks that are the same for all runs that have them, the easiest to beat first."""
    found = {
        name: {row[tag] for run in runs for row in run.rows if tag in row} for name, tag in measure.yardsticks.items()
    }
    return {name: next(iter(values)) for name, values in found.items() if len(values) == 1}


def goal_of(measure: Measure, runs: Sequence[Run], asked: float | None) -> float | None:
    """Choose what steps and seconds count to: what is asked for, else the hardest yardstick that some run has reached.

    Raises:
        ValueError: it is beyond what the measure can be.
    """
    if asked is not None:
        if measure.unit is SHARE and not 0 <= asked <= 1:
            rule = "must be from 0 to 1, as these runs are ranked by the share of puzzles that they solve"
            raise ValueError(f"--threshold {asked:g} {rule}; use e.g. --threshold 0.5")
        return asked
    best = min(
        (value for run in runs for value in run.series(measure.final.tag).values if math.isfinite(value)),
        default=math.inf,
    )
    reached = [value for value in yardsticks_of(measure, runs).values() if best <= value]
    return min(reached, default=measure.threshold)


def best_of(number: Number, values: np.ndarray) -> float:
    """Take the best of (n,) values; NaN without a finite one."""
    finite = values[np.isfinite(values)]
    return float(finite.max() if number.unit.higher_is_better else finite.min()) if len(finite) else math.nan
