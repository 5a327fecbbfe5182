"""The table of rules. docs/diagnosis.md has a section for each, and the runs that their bounds were tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trm_ray.reporting.rules import cost, cycles, halting, held_out, learning, recipe
from trm_ray.reporting.rules.seen import Seen
from trm_ray.reporting.run_log import Run


@dataclass(frozen=True)
class Rule:
    """A rule: its name, which stays what it is, what it means when it fires, and how it looks at a run.

    of_text: what it means of a text, where that has other words.
    """

    id: str
    meaning: str
    see: Callable[[Run], Seen | None]
    of_text: str = ""

    def meaning_of(self, run: Run) -> str:
        """Say what it means of a run."""
        return (run.is_text and self.of_text) or self.meaning


RULES = (
    Rule("non-finite", "A number overflowed: no weight was updated any more, and the run ended.", learning.non_finite),
    Rule("diverging", "The run unlearns: its steps are too long for where it is.", learning.diverging),
    Rule("not-learning", "The network gives the answers that it gave at the start.", learning.not_learning),
    Rule("converging", "The run learns.", learning.converging),
    Rule("clipped", "Every step goes in a direction that was cut to length, and leads nowhere.", learning.clipped),
    Rule("warming-up", "The run ends before its learning rate is reached.", recipe.warming_up),
    Rule(
        "curriculum-not-begun",
        "It ends before anything is supervised: the baseline.",
        recipe.curriculum_not_begun,
    ),
    Rule("curriculum-cut-short", "The run never has the supervision that it was given.", recipe.curriculum_cut_short),
    Rule("nothing-supervised", "The run is the baseline under another name.", recipe.nothing_supervised),
    Rule("no-refinement", "The H-cycles after the first do not improve the answer.", cycles.no_refinement),
    Rule("reversed-refinement", "The later H-cycles make the answer worse.", cycles.reversed_refinement),
    Rule("u-shape", "The answer is best in the middle of a segment, and its end undoes that.", cycles.u_shape),
    Rule("refining", "Each segment improves the answer from its first H-cycle to its last.", cycles.refining),
    Rule("starved-cycles", "An early H-cycle is supervised, but its loss moves no weight.", cycles.starved_cycles),
    Rule("exploding-cycles", "One H-cycle's loss drowns those of the others.", cycles.exploding_cycles),
    Rule(
        "overfitting",
        "The network learns its training puzzles by heart.",
        held_out.overfitting,
        "The network learns its training text by heart.",
    ),
    Rule(
        "generalising",
        "What is learned holds for puzzles that were never seen.",
        held_out.generalising,
        "What is learned holds for text that was never seen.",
    ),
    Rule(
        "nothing-solved",
        "Cells may be right, but no puzzle is.",
        held_out.nothing_solved,
        "Tokens may be right, but no whole answer is.",
    ),
    Rule("past-its-best", "The last checkpoint is not the best one.", held_out.past_its_best),
    Rule("solving", "Whole puzzles come out right.", held_out.solving, "Whole answers come out right."),
    Rule("worse-than-unigram", "Nothing is learned of what follows on what.", held_out.worse_than_unigram),
    Rule("leak", "The model knows beforehand what it is asked for.", held_out.leak),
    Rule(
        "halting-collapsed",
        "The halt head calls wrong answers right, and refines none.",
        halting.halting_collapsed,
    ),
    Rule("halting-too-early", "The halt head stops where more segments would solve.", halting.halting_too_early),
    Rule("halting-never", "The halt head does not trust any answer, so halting saves nothing.", halting.halting_never),
    Rule(
        "segments-hurt",
        "Later segments spoil answers that are right.",
        halting.segments_hurt,
        "Later segments make the guesses worse.",
    ),
    Rule("halting-saves", "The halt head stops where puzzles are solved.", halting.halting_saves),
    Rule("data-starved", "The network waits for its puzzles.", cost.data_starved, "The network waits for its text."),
    Rule("exchange-bound", "More workers spend their time on each other.", cost.exchange_bound),
    Rule("evaluation-heavy", "Much of what the run costs is looking at it.", cost.evaluation_heavy),
)
