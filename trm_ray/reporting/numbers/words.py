"""A comparison in words: what may be claimed of each scenario, what it would take to claim more, what to mind."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from trm_ray.reporting.numbers.curves import AXES
from trm_ray.reporting.numbers.measure import LOSS, NUMBERS, Measure, Unit
from trm_ray.reporting.numbers.statistics import MIN_SEEDS
from trm_ray.reporting.numbers.summary import Comparison, ScenarioSummary
from trm_ray.reporting.numbers.verdicts import Verdict

MOST_TOLD = 8  # scenarios; the files have all of them
_WORTH_ADDING = 20  # seeds
_DEPTHS = (1, 2, 4, 8, 16, 32, 64)
_UNEVEN = 1.2  # times the seconds of the baseline: from here on a remark is worth its lines
_TRIAL = re.compile(r"-seed\d+[^/]*$")  # how the folders of a sweep's trials end
_AXIS_WORDS = {"steps": "at equal steps", "seconds": "at equal seconds", "flops": "at equal FLOPs"}

Told = dict[str, Verdict]  # the verdicts of one number of one scenario, by axis


def sentences(comparison: Comparison) -> list[str]:
    """Say for each scenario what its runs tell about it against the baseline, the best first."""
    told = [line for summary in comparison.ranking if (line := _of_scenario(summary, comparison))]
    if len(told) > MOST_TOLD:
        told[MOST_TOLD:] = [f"{len(told) - MOST_TOLD} more are in the JSON (--json FILE, report/summary.json)."]
    return told or [why] if (why := _why_no_verdict(comparison)) else told


def _why_no_verdict(comparison: Comparison) -> str | None:
    """Say why nothing is compared with the baseline, where something could be."""
    ranked, name = [summary for summary in comparison.ranking if summary.is_ranked], comparison.baseline
    if len(ranked) < 2 or comparison.verdicts:
        return None
    if not any(name in (summary.scenario, summary.label) for summary in ranked):
        return f"No finished run is of {name}: `--baseline NAME` compares with another scenario."
    return f"No scenario shares task and seed with a finished run of {name}: there is nothing to pair."


def _of_scenario(summary: ScenarioSummary, comparison: Comparison) -> str | None:
    numbers: dict[str, Told] = {}
    measure = comparison.measure
    for verdict in comparison.verdicts:
        if verdict.scenario == summary.label:
            numbers.setdefault(verdict.number, {})[verdict.at] = verdict
    main = numbers.get(measure.final.name) or numbers.get(LOSS.name)
    if main is None:
        return None
    parts = [_main(summary.label, main), _first_cycle(numbers.get(measure.first_cycle.name, {}), measure)]
    parts += [_anytime(numbers.get(measure.anytime.name, {}), measure), _by_depth(summary, main, comparison)]
    return " ".join(part for part in (*parts, _to_add(main), _left_out(main)) if part)


# ---- parts of what is said of a scenario -----------------------------------------------------------------


def _main(label: str, told: Told) -> str:
    """Say axis by axis how much better a scenario is; without the number that ranks, how its loss differs."""
    first, *rest = (told[at] for at in AXES if at in told)
    if all(map(_is_open, told.values())):
        sizes = ", ".join(f"{_size(one, signed=True)} {_AXIS_WORDS[one.at]}" for one in (first, *rest))
        unit = _unit(first).difference
        sizes = f"{unit}: {sizes}" if unit else sizes
        return f"{label} and {first.baseline} cannot be told apart ({sizes}; {_seeds(first)}, {_p(first.p)})."
    lead = f"{label} against {first.baseline}:" if _is_open(first) else label
    words = [_on_axis(first, f" than {first.baseline}"), *map(_on_axis, rest)]
    return f"{lead} {'; '.join(words)}."


def _on_axis(verdict: Verdict, than: str = "") -> str:
    where = _AXIS_WORDS[verdict.at]
    if _is_open(verdict):
        return f"{where} no difference can be claimed ({_size(verdict, signed=True)})"
    return f"{_outcome(verdict)}{than} {where} ({_basis(verdict)})"


def _outcome(verdict: Verdict) -> str:
    unit = _unit(verdict)
    ours, way = f"{unit.scale * verdict.ours:.{unit.digits}f}", unit.ways[verdict.difference >= 0]
    return unit.outcome.format(ours=ours, size=_size(verdict), way=way)


def _unit(verdict: Verdict) -> Unit:
    return NUMBERS[verdict.number].unit


def _basis(verdict: Verdict) -> str:
    """Say what a difference rests on."""
    if math.isfinite(verdict.p):
        return f"{_seeds(verdict)}, {_p(verdict.p)}"
    return f"{_seeds(verdict)}, one of them diverged" if verdict.n >= MIN_SEEDS else f"{_seeds(verdict)}: no verdict"


def _is_open(verdict: Verdict) -> bool:
    """Tell whether there were seeds enough for a claim, and none can be made."""
    return verdict.claim == "none" and math.isfinite(verdict.p)


def _seeds(verdict: Verdict) -> str:
    return f"{verdict.n} seed{'s' * (verdict.n != 1)}"


def _size(verdict: Verdict, signed: bool = False) -> str:
    """Write a difference with the half of its interval, accuracies in points."""
    scale, digits = _unit(verdict).scale, _unit(verdict).digits
    value = scale * verdict.difference
    half = f" ± {scale * (verdict.high - verdict.low) / 2:.{digits}f}" if math.isfinite(verdict.high) else ""
    return f"{value:+.{digits}f}{half}".replace("-", "−") if signed else f"{abs(value):.{digits}f}{half}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.095 else f"p = {p:.2f}"


def _first_cycle(told: Told, measure: Measure) -> str:
    """Say what the very first H-cycle comes to, on both sides."""
    if not told:
        return ""
    first, *rest = (told[at] for at in AXES if at in told and at != "flops")
    already = "already " if first.claim == "better" else ""
    theirs = f"{first.baseline}'s" if " " not in first.baseline else f"that of {first.baseline}"
    does, rough = measure.does, measure.unit.rough
    words = (
        f"Its first cycle {already}{does} {rough(first.ours)} where {theirs} {does} {rough(first.theirs, more=True)}"
    )
    others = [
        f"{_AXIS_WORDS[one.at]} {rough(one.ours, more=True)} and {rough(one.theirs, more=True)}{_doubt(one)}"
        for one in rest
    ]
    return "; ".join([words + _doubt(first), *others]) + "."


def _doubt(verdict: Verdict) -> str:
    return " (no claim)" if _is_open(verdict) else ""


def _anytime(told: Told, measure: Measure) -> str:
    """Say how the mean over depths differs."""
    shown = [told[at] for at in AXES if at in told and at != "flops"]
    words = [f"{_size(one, signed=True)} {_AXIS_WORDS[one.at]}{_doubt(one)}" for one in shown]
    return f"{measure.anytime.title}: {', '.join(words)}." if words else ""


def _by_depth(summary: ScenarioSummary, told: Told, comparison: Comparison) -> str:
    """Say what both come to with equally many H-cycles: what an answer costs once the training is over."""
    baseline = next(iter(told.values())).baseline
    theirs = next((other for other in comparison.ranking if other.label == baseline), None)
    if theirs is None or summary.depths is None or theirs.depths is None:
        return ""
    sides = [one.depths.value[-1] for one in (summary, theirs) if one.depths is not None]
    deepest = min(map(len, sides))
    if not deepest:  # of other material than the others
        return ""
    depths = [depth for depth in _DEPTHS if depth < deepest] + [deepest]
    measure = comparison.measure
    ours, others = (
        measure.unit.rough(*(side[depth - 1] for depth in depths), more=side is not sides[0]) for side in sides
    )
    return f"After {' / '.join(map(str, depths))} H-cycles it {measure.does} {ours}, {baseline} {others}."


def _to_add(told: Told) -> str:
    """Say how many more seeds would decide what is open, where that is worth training them."""
    open_ones = [told[at] for at in AXES if at in told and told[at].more_seeds is not None]
    worth = [one for one in open_ones if one.more_seeds is not None and one.more_seeds <= _WORTH_ADDING]
    if not worth:
        return ""
    words = ", ".join(f"{one.more_seeds} {_AXIS_WORDS[one.at]}" for one in worth)
    return f"To claim a difference of that size would take about so many more seeds: {words}."


def _left_out(told: Told) -> str:
    """Name the seeds that are in no pair."""
    first, *rest = (told[at] for at in AXES if at in told)
    words = [f"In no pair, as only one side has them: {_seeds_named(first.unpaired_seeds)}."] * bool(
        first.unpaired_seeds
    )
    for one in rest:
        if more := sorted({*one.unpaired_seeds} - {*first.unpaired_seeds}):
            where = _AXIS_WORDS[one.at].capitalize().replace("flops", "FLOPs")
            words.append(f"{where} in no pair, as one side has no number there: {_seeds_named(more)}.")
    return " ".join(words)


def _seeds_named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {_listed(seeds)}"


def _listed(items: Sequence[object], most: int = 6) -> str:
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")


# ---- notes -----------------------------------------------------------------------------------------------


def notes(comparison: Comparison) -> list[str]:
    """Say in words what a reader of the table has to know."""
    ranked = [summary for summary in comparison.ranking if summary.is_ranked]
    found = ["Held-out numbers of finished runs at their last evaluation; mean ± sd over n seeds."] if ranked else []
    if any(math.isfinite(one.p) for one in comparison.verdicts):
        found.append(
            "Claims: paired t test over the seeds, p corrected for all scenarios (Holm); ±: 95 % of one alone."
        )
    found += [*_about_ranks(ranked, comparison.measure), *_about_yardsticks(comparison), *_about_threshold(ranked)]
    found += [*_about_loss(ranked, comparison.measure), *_about_seconds(comparison)]
    found += [*_about_stops(comparison), *_about_folders(comparison)]
    return [*found, *filter(None, [comparison.spending.told()])]


def _about_ranks(ranked: Sequence[ScenarioSummary], measure: Measure) -> Iterator[str]:
    if any(summary.num_seeds < MIN_SEEDS for summary in ranked):
        noise = f": gaps {measure.noise_words} are noise" if measure.noise_words else ""
        yield f"Fewer than 3 seeds get no rank and no verdict{noise}."
    ranks = [summary.rank for summary in ranked if summary.rank is not None]
    if len(set(ranks)) < len(ranks):
        better = measure.does_better
        yield f"#: 1 + how many are shown to {better} (95 %, all pairs); who shares a rank cannot be told apart."
    if len({round(summary.training_steps.mean) for summary in ranked}) > 1:
        yield "The runs are not equally long: the table has them at their ends, the words above at equal cost."


def _about_yardsticks(comparison: Comparison) -> Iterator[str]:
    """Say what the same takes without a model, and who is better than the best of that."""
    if comparison.elsewhere:
        why = "measured in bits per byte alone, which is not to be compared with puzzles solved"
        yield f"Not ranked here: {_listed(comparison.elsewhere)}: {why}; compare them by themselves."
    if not comparison.yardsticks:
        return
    told = ", ".join(f"{name} {value:.3f}" for name, value in comparison.yardsticks.items())
    name, hardest = min(comparison.yardsticks.items(), key=lambda item: item[1])
    below = [one.label for one in comparison.ranking if one.final.mean < hardest]
    yield f"Without a model the same text takes, in bits per byte: {told}. Below {name}: {_listed(below) or 'none'}."
    for name in (name for name, value in comparison.yardsticks.items() if value == comparison.threshold):
        yield f"Steps and seconds count to what {name} takes{'' if name == 'xz' else ', as no run is below xz'}."


def _about_threshold(ranked: Sequence[ScenarioSummary]) -> Iterator[str]:
    if any(summary.steps_to_threshold.censored for summary in ranked):
        yield "(k/n): k of n seeds got there, medians count the others as longer; >: half of them did not."


def _about_loss(ranked: Sequence[ScenarioSummary], measure: Measure) -> Iterator[str]:
    """Say where loss and accuracy name different winners, and why that can be."""
    both = [one for one in ranked if math.isfinite(one.final_loss.mean) and math.isfinite(one.final.mean)]
    if len(both) < 2 or LOSS not in measure.numbers:
        return
    by_loss, by_exact = min(both, key=lambda one: one.final_loss.mean), both[0]
    if by_loss is not by_exact and by_loss.final.mean < by_exact.final.mean:
        yield (
            f"By loss {by_loss.label} comes first ({by_loss.final_loss.mean:.3f}), by {measure.by} {by_exact.label} "
            f"(loss {by_exact.final_loss.mean:.3f}): a wrong answer costs the more loss the surer the model is of it."
        )


def _about_seconds(comparison: Comparison) -> Iterator[str]:
    """Say that who is read before its end is read with a high learning rate, and what would be fair."""
    groups = {summary.label: summary for summary in comparison.ranking}
    read = [one for one in comparison.verdicts if (one.at, one.number) == ("seconds", comparison.measure.final.name)]
    pairs = [(groups[one.scenario], groups[one.baseline]) for one in read]
    pairs = [(ours, theirs) for ours, theirs in pairs if theirs.training_seconds.mean > 0]
    if not pairs:
        return
    ratios = [ours.training_seconds.mean / theirs.training_seconds.mean for ours, theirs in pairs]
    ratio, (ours, theirs) = max(zip(ratios, pairs, strict=True), key=lambda entry: entry[0])
    if ratio > _UNEVEN:
        steps = round(ratio * theirs.training_steps.mean, -1)
        yield (
            f"{ours.label} takes {ratio:.1f} times the seconds of {theirs.label}: at equal seconds it is read before "
            f"its end, its learning rate still high. A {theirs.scenario} of max_steps={steps:.0f} would be as long."
        )


def _about_stops(comparison: Comparison) -> Iterator[str]:
    stopped = sum(summary.num_stopped_early for summary in comparison.ranking)
    saved, planned = (
        sum(getattr(one, name) for one in comparison.ranking) for name in ("saved_steps", "planned_steps")
    )
    if stopped:
        yield f"Stopped early: {_runs(stopped)}, which saves {saved:,} of {planned:,} steps."
    if any(one.is_ranked and one.num_stopped_early for one in comparison.ranking):
        yield "Where some seeds of a scenario were stopped, the others flatter it."
    if running := sum(summary.num_running for summary in comparison.ranking):
        yield f"{_runs(running)} not finished: still running."
    if interrupted := sum(summary.num_interrupted for summary in comparison.ranking):
        yield f"{_runs(interrupted)} not finished: interrupted or failed."


def _about_folders(comparison: Comparison) -> Iterator[str]:
    """Say where the variants of a scenario lie, but for trials, whose folders a sweep has named after them."""
    scenarios = [one.scenario for one in comparison.ranking]
    several = [one for one in comparison.ranking if scenarios.count(one.scenario) > 1]
    own = {one.label: [path for path in one.folders if not _TRIAL.search(path)] for one in several}
    found = [f"{label}: {_listed(paths)}" for label, paths in own.items() if paths]
    yield from found[:MOST_TOLD]


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
