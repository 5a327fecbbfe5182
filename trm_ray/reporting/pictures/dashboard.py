"""The picture of one run: twelve panels, from its losses to a summary with health marks."""

from __future__ import annotations

import trm_ray.reporting.pictures.matplotlib_at_hand  # noqa: F401  # isort: skip  # before anything of matplotlib

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from trm_ray.config.errors import show
from trm_ray.reporting.numbers.diagnosis import findings
from trm_ray.reporting.numbers.groups import scenario_name
from trm_ray.reporting.pictures import style
from trm_ray.reporting.pictures.style import INK, MUTED
from trm_ray.reporting.run_log import (
    EVAL_FIRST_BITS,
    EVAL_FIRST_EXACT,
    EVAL_FIRST_LOSS,
    TRAIN_CYCLE_LOSS,
    TRAIN_FIRST_LOSS,
    YARDSTICKS,
    DepthRow,
    Run,
    Series,
)

GRADIENT_NORM = "train/gradients/step_{i}_grad_norm_"
MAX_DEPTH_LINES = 5  # evaluations whose curves are drawn
SMOOTH_FROM = 40  # fewer points are drawn as they are
SUMMARY_CHARACTERS, SUMMARY_HEIGHT = 51, 225  # of a line of the summary panel, and of all of them in points
MAX_NUMBERS, MAX_FLAT_NUMBERS = 16, 6  # bars that get a number, and that have room for one lying flat

PERCENT = PercentFormatter(1.0, decimals=0, symbol=" %")
BITS = "bits per byte"
YARDSTICK_LOOKS = {"unigram": (0, (1, 1.5)), "xz": (0, (5, 2))}


def draw_dashboard(run: Run) -> Figure:
    """Draw everything that a run logged; a panel without data says why."""
    with style.styled(), style.room_for_notes():
        figure = Figure(figsize=(18, 12), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (heading, draw) in zip(figure.subplots(3, 4).flat, panels_of(run).items(), strict=True):
            axes.set_title(heading)
            draw(axes, run)
        title = " · ".join(filter(None, (scenario_name(run), run.config.get("task"), f"seed {run.seed}")))
        figure.text(0.010, 0.988, title, va="top", fontsize=15, fontweight="bold")
        figure.text(0.990, 0.985, _tail(str(run.folder), 90), va="top", ha="right", color=MUTED)
        style.lay_out(figure, (0.004, 0.004, 0.992, 0.95), wspace=0.03, hspace=0.05)
        return figure


def save_dashboard(run: Run, path: Path) -> Path:
    """Draw the dashboard into a file; its ending (`.png`, `.svg`, `.pdf`) chooses the format."""
    return style.save(draw_dashboard(run), path)


# ---- panels, in their order ------------------------------------------------------------------------------


def draw_losses(axes: Axes, run: Run) -> None:
    """Draw total, ACT and supervised training loss; no logarithm shows the baseline's supervised 0."""
    parts = [
        ("total", "train/total_loss", INK),
        ("ACT", "train/act_loss", "#D55E00"),
        ("supervised", "train/supervised_loss", "#56B4E9"),
    ]
    drawn = [(name, run.series(tag), colour) for name, tag, colour in parts]
    if not any(np.isfinite(series.values).any() for _, series, _ in drawn):
        style.say(axes, _why_nothing(run))
        return
    for name, series, colour in drawn:
        if len(series.values) and not np.any(series.values > 0):
            axes.plot([], [], color=colour, label=f"{name}: always 0")
        else:
            # The baseline's ACT loss is its total: the wider line shows at both sides of the other.
            _line(axes, _positive(series), colour, name, width=3.6 if name == "total" else 1.5)
    _mark_not_finite(axes, drawn[0][1])
    _finish_lines(axes, "loss", log=True)


def draw_cycle_losses(axes: Axes, run: Run) -> None:
    """Draw the first segment's loss of each H-cycle, with its held-out loss as rings; all segments' of older runs."""
    training, held_out = run.cycle_series(TRAIN_FIRST_LOSS), run.cycle_series(EVAL_FIRST_LOSS)
    what = "cross-entropy" if training or held_out else "cross-entropy, all segments together"
    if not training and not held_out and not (training := run.cycle_series(TRAIN_CYCLE_LOSS)):
        style.say(axes, _why_no_cycles(run))
        return
    colours = style.cycle_colours(max(len(training), len(held_out)))
    for i, series in enumerate(training):
        _line(axes, series, colours[i], _cycle_name(i, len(training)))
    for i, series in enumerate(held_out):
        axes.plot(series.steps, series.values, "o", color=colours[i], markerfacecolor="white", zorder=4)
    if held_out:
        axes.plot([], [], "o", color=MUTED, markerfacecolor="white", label="held out")
    _finish_lines(axes, what, log=True)


def draw_refinement(axes: Axes, run: Run) -> None:
    """Draw the held-out puzzles that each H-cycle of the first segment has solved; the later ones refine."""
    cycles = run.cycle_series(EVAL_FIRST_EXACT)
    if not cycles:
        style.say(axes, _why_no_depths(run))
        return
    for i, (series, colour) in enumerate(zip(cycles, style.cycle_colours(len(cycles)), strict=True)):
        axes.plot(series.steps, series.values, "o-", color=colour, markersize=4, label=_cycle_name(i, len(cycles)))
    _finish_shares(axes, run)
    style.step_axis(axes)


def draw_bits_by_cycle(axes: Axes, run: Run) -> None:
    """Draw the bits per byte of held-out text after each H-cycle of the first segment."""
    cycles = run.cycle_series(EVAL_FIRST_BITS)
    if not cycles:
        style.say(axes, _why_no_depths(run))
        return
    for i, (series, colour) in enumerate(zip(cycles, style.cycle_colours(len(cycles)), strict=True)):
        axes.plot(series.steps, series.values, "o-", color=colour, markersize=4, label=_cycle_name(i, len(cycles)))
    _finish_lines(axes, BITS)


def draw_bits(axes: Axes, run: Run) -> None:
    """Draw the bits per byte of held-out text beside those that know nothing of it: token frequencies, and xz."""
    bits = run.series("eval/bits_per_byte")
    if not np.isfinite(bits.values).any():
        style.say(axes, _why_no_depths(run))
        return
    axes.plot(bits.steps, bits.values, "o-", color=_colour(run), markersize=4, label="held out")
    for name, tag in YARDSTICKS.items():
        if len(values := run.series(tag).values):
            label = f"{name} {values[-1]:.2f}"
            axes.axhline(values[-1], color=MUTED, linewidth=1.2, linestyle=YARDSTICK_LOOKS[name], label=label)
    _finish_lines(axes, BITS)


def draw_curriculum(axes: Axes, run: Run) -> None:
    """Draw the effective base weight of the supervised loss."""
    weight = run.series("train/curriculum_weight")
    if not len(weight.steps):
        style.say(axes, _why_nothing(run))
        return
    axes.plot(weight.steps, weight.values, color=_colour(run), marker=_dot(weight), linewidth=2.2)
    axes.fill_between(weight.steps, 0, weight.values, color=_colour(run), alpha=0.12, linewidth=0)
    axes.set_ylim(-0.02, max(1.25 * float(np.nanmax(weight.values)), 0.6))
    style.note(axes, _curriculum_words(run))
    _finish_lines(axes, "base weight")


def draw_gradient_norm(axes: Axes, run: Run) -> None:
    """Draw the gradient norm before clipping, and where it is clipped."""
    norm = run.series("train/grad_norm")
    if not np.isfinite(norm.values).any():
        style.say(axes, _why_nothing(run))
        return
    _line(axes, norm, _colour(run), "before clipping")
    _mark_not_finite(axes, norm)
    clip = run.config.get("grad_clip_norm")
    if clip:
        axes.axhline(clip, color="#C2260C", linewidth=1.2, linestyle=(0, (4, 3)), label=f"clip at {clip:g}")
    _finish_lines(axes, "norm", log=True)


def draw_cycle_gradients(axes: Axes, run: Run) -> None:
    """Draw the mean gradient norm that each H-cycle causes, in a band from the smallest to the largest."""
    means = run.cycle_series(GRADIENT_NORM + "mean")
    if not means:
        style.say(axes, _why_no_gradients(run))
        return
    for i, (series, colour) in enumerate(zip(means, style.cycle_colours(len(means)), strict=True)):
        axes.plot(series.steps, series.values, color=colour, marker=_dot(series), label=_cycle_name(i, len(means)))
        low, high = (run.series((GRADIENT_NORM + end).replace("{i}", str(i))) for end in ("min", "max"))
        if len(low.steps) == len(high.steps) == len(series.steps):
            axes.fill_between(series.steps, low.values, high.values, color=colour, alpha=0.14, linewidth=0)
    _finish_lines(axes, "mean norm (band: min to max)")


def draw_learning_rate(axes: Axes, run: Run) -> None:
    """Draw the learning rate."""
    rate = run.series("train/learning_rate")
    if not len(rate.steps):
        style.say(axes, _why_nothing(run))
        return
    axes.plot(rate.steps, rate.values, color=_colour(run), marker=_dot(rate))
    axes.set_ylim(0, 1.1 * max(float(np.nanmax(rate.values)), 1e-12))
    if "lr" in run.config:
        style.note(axes, f"highest {run.config['lr']:g}, warm-up of {run.config.get('lr_warmup_steps', 0):,} steps")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))  # no step whose labels need a third digit
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _exponent(value)))
    _finish_lines(axes, "lr")


def draw_act_steps(axes: Axes, run: Run) -> None:
    """Draw the mean number of segments that a puzzle gets."""
    training, held_out = run.series("train/act/steps"), run.series("eval/act_steps")
    if not np.isfinite(np.concatenate([training.values, held_out.values])).any():
        style.say(axes, _why_nothing(run))
        return
    _line(axes, training, _colour(run), "training")
    _held_out_line(axes, held_out)
    most = run.arch.get("halt_max_steps")
    if most:
        axes.axhline(most, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"most: {most}")
    axes.set_ylim(0, 1.1 * max(most or 0, axes.dataLim.y1))
    _finish_lines(axes, "segments a puzzle")


def draw_depth_map(axes: Axes, run: Run) -> None:
    """Draw the held-out puzzles solved, or the bits per byte, as a map: a column an evaluation, a row a depth."""
    if not (rows := _measured(run)):
        style.say(axes, _why_no_depths(run))
        return
    values = np.array([_by_depth(run, row) for row in rows]).T
    # Of bits the early steps have so many that the later ones would all look alike.
    look: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1}
    if run.is_plain_text:
        look = {"cmap": "cividis_r", "vmin": np.nanmin(values), "vmax": np.nanpercentile(values, 90)}
    since = "row" if run.is_text else "puzzle"
    style.note(axes, f"depth: H-cycles since the {since} was taken up, {run.arch.get('H_cycles', '?')} a segment")
    # Drawn inside the panel: a colour bar beside it would narrow every panel of the column.
    axes.set_axis_off()
    panel, bar = axes.inset_axes((0, 0, 0.84, 1)), axes.inset_axes((0.87, 0, 0.035, 1))
    image = panel.imshow(values, aspect="auto", interpolation="nearest", origin="lower", **look)
    _name_map_axes(panel, [row.step for row in rows], len(values))
    axes.figure.colorbar(image, cax=bar, extend="max" if run.is_plain_text else "neither").outline.set_visible(False)
    if not run.is_plain_text:
        bar.yaxis.set_major_formatter(PERCENT)


def draw_depth_curves(axes: Axes, run: Run) -> None:
    """Draw the held-out puzzles solved, or the bits per byte, over depth: from the first evaluation to the last."""
    if not (rows := _measured(run)):
        style.say(axes, _why_no_depths(run))
        return
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(MAX_DEPTH_LINES, len(rows))).round().astype(int))
    for index, colour in zip(chosen, style.cycle_colours(len(chosen)), strict=True):
        row, values = rows[index], _by_depth(run, rows[index])
        label = f"{row.step:,}" if index else f"step {row.step:,}"
        axes.plot(np.arange(1, len(values) + 1), values, color=colour, marker="o", markersize=3, label=label)
    if run.is_plain_text:
        axes.set_ylabel(BITS)
        style.legend_above(axes)
    else:
        _finish_shares(axes, run)
    style.depth_axis(axes, len(_by_depth(run, rows[-1])))
    if run.is_text:
        axes.set_xlabel("depth: H-cycles since the row was taken up")


def _measured(run: Run) -> list[DepthRow]:
    """Take the evaluations that have what measures a run."""
    return [row for row in run.depths if len(_by_depth(run, row))]


def _by_depth(run: Run, row: DepthRow) -> np.ndarray:
    """Take what measures a run, at every depth."""
    return row.bits_per_byte if run.is_plain_text else row.exact_accuracy


def draw_latest(axes: Axes, run: Run) -> None:
    """Draw the latest loss of each H-cycle of the first segment, in training and held out."""
    training, held_out = run.cycle_series(TRAIN_FIRST_LOSS), run.cycle_series(EVAL_FIRST_LOSS)
    both = (("training", training, 1.0), ("held out", held_out, 0.45))
    sets = [(name, series, shade) for name, series, shade in both if series]
    if not sets:
        style.say(axes, _why_no_cycles(run))
        return
    width = 0.8 / len(sets)
    for index, (name, cycles, shade) in enumerate(sets):
        at = np.arange(len(cycles)) + (index - (len(sets) - 1) / 2) * width
        latest = np.array([series.values[-1] for series in cycles])
        label = f"{name}, step {cycles[0].steps[-1]:,}"
        axes.bar(at, latest, 0.92 * width, color=_colour(run), alpha=shade, label=label)
        _write_values(axes, at, latest, len(sets) * len(cycles))
    axes.set_xticks(range(len(sets[0][1])))
    axes.grid(False, axis="x")
    axes.set_xlabel("H-cycle")
    axes.set_ylabel("cross-entropy")
    axes.margins(y=0.18 if len(sets) * len(sets[0][1]) > MAX_FLAT_NUMBERS else 0.1)
    style.legend_above(axes)


def draw_summary(axes: Axes, run: Run) -> None:
    """Write what the run reached, and a mark for each thing that is right or wrong with it."""
    axes.set_axis_off()
    height = -18.0  # in points from the top of the panel: the line under the title is free here
    for text, sign, colour in _summary_lines(run):
        wrapped = textwrap.wrap(text, SUMMARY_CHARACTERS) or [""]
        if height + 12.5 * len(wrapped) > SUMMARY_HEIGHT:
            _write_line(axes, "… and more: trm-ray diagnose", "", INK, height)
            break
        for number, line in enumerate(wrapped):
            _write_line(axes, line, sign if number == 0 else "", colour, height)
            height += 12.5
        height += 2


PANELS = {
    "Training loss": draw_losses,
    "Loss of each H-cycle, first segment": draw_cycle_losses,
    "Refinement: solved by each H-cycle": draw_refinement,
    "Supervision weight": draw_curriculum,
    "Gradient norm": draw_gradient_norm,
    "Gradient norm of each H-cycle": draw_cycle_gradients,
    "Learning rate": draw_learning_rate,
    "Mean ACT steps": draw_act_steps,
    "Solved by depth and step": draw_depth_map,
    "Solved by depth": draw_depth_curves,
    "Latest loss of each H-cycle": draw_latest,
    "Summary": draw_summary,
}
# What stands in the place of panels that say nothing of a text: it has no halting, and plain text no right answers.
TEXT_PANELS = {"Mean ACT steps": ("Bits per byte", draw_bits)}
PLAIN_TEXT_PANELS = {
    **TEXT_PANELS,
    "Refinement: solved by each H-cycle": ("Refinement: bits per byte by each H-cycle", draw_bits_by_cycle),
    "Solved by depth and step": ("Bits per byte by depth and step", draw_depth_map),
    "Solved by depth": ("Bits per byte by depth", draw_depth_curves),
}


def panels_of(run: Run) -> dict[str, Callable[[Axes, Run], None]]:
    """Choose a run's panels, by their headings."""
    others = PLAIN_TEXT_PANELS if run.is_plain_text else TEXT_PANELS if run.is_text else {}
    return dict(others.get(heading, (heading, draw)) for heading, draw in PANELS.items())


# ---- lines -----------------------------------------------------------------------------------------------


def _line(axes: Axes, series: Series, colour: str, label: str, width: float = 1.8) -> None:
    """Draw a series; a long one pale, with its moving mean on top."""
    if len(series.steps) < SMOOTH_FROM:
        axes.plot(series.steps, series.values, color=colour, marker=_dot(series), label=label, linewidth=width)
        return
    axes.plot(series.steps, series.values, color=colour, alpha=0.28, linewidth=0.9)
    axes.plot(series.steps, _moving_mean(series.values), color=colour, label=label, linewidth=width)


def _mark_not_finite(axes: Axes, series: Series) -> None:
    broken = series.steps[~np.isfinite(series.values)]
    if len(broken):
        axes.axvline(broken[0], color=style.MARK_COLOURS["bad"], linewidth=1.6, label="not finite")


def _held_out_line(axes: Axes, series: Series) -> None:
    if len(series.steps):
        axes.plot(series.steps, series.values, "o-", color=INK, markerfacecolor="white", linewidth=1, label="held out")


def _exponent(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def _moving_mean(values: np.ndarray) -> np.ndarray:
    """Average over the finite neighbours, a thirtieth of the run to each side; a gap stays a gap."""
    reach = max(2, len(values) // 30)
    window = np.ones(2 * reach + 1)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, "same")
    counts = np.convolve(finite.astype(np.float64), window, "same")
    return np.where(finite, sums / np.maximum(counts, 1.0), np.nan)


def _positive(series: Series) -> Series:
    """Leave gaps where a loss is 0, as the supervised one is before a curriculum starts."""
    return series._replace(values=np.where(series.values > 0, series.values, np.nan))


def _dot(series: Series) -> str:
    """A lone point or a few need a marker to be seen."""
    return "o" if len(series.steps) <= 12 else ""


def _finish_lines(axes: Axes, label: str, log: bool = False) -> None:
    style.step_axis(axes)
    if log:
        style.log_axis(axes)
    axes.set_ylabel(label)
    style.legend_above(axes)


def _finish_shares(axes: Axes, run: Run) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel(f"held-out {run.material} solved")
    style.legend_above(axes)


def _colour(run: Run) -> str:
    name = scenario_name(run)
    return style.scenario_colours([name])[name]


def _cycle_name(index: int, count: int) -> str:
    """Name a cycle in a legend of one line: `H-cycle 0`, then `1`, `2`; of many, the first and the last."""
    if index == 0:
        return "H-cycle 0"
    if count > 4:
        return f"… {index}" if index == count - 1 else "_"
    return str(index)


# ---- map and bars ----------------------------------------------------------------------------------------


def _name_map_axes(axes: Axes, steps: Sequence[int], num_depths: int) -> None:
    axes.grid(False)
    columns, rows = (np.linspace(0, n - 1, min(5, n)).round().astype(int) for n in (len(steps), num_depths))
    axes.set_xticks(np.unique(columns), [f"{steps[i]:,}" for i in np.unique(columns)])
    axes.set_yticks(np.unique(rows), [str(i + 1) for i in np.unique(rows)])
    axes.set_xlabel("step")
    axes.set_ylabel("depth")


def _write_values(axes: Axes, at: np.ndarray, values: np.ndarray, num_bars: int) -> None:
    """Write each bar's number above it, upright where bars are narrow."""
    if num_bars > MAX_NUMBERS:
        return
    for x, value in zip(at, values, strict=True):
        words = f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if np.isfinite(value) else "NaN"
        axes.annotate(
            words, (x, value if np.isfinite(value) else 0), (0, 3), textcoords="offset points", ha="center",
            rotation=90 if num_bars > MAX_FLAT_NUMBERS else 0,
        )  # fmt: skip


# ---- words -----------------------------------------------------------------------------------------------


def _why_nothing(run: Run) -> str:
    if not run.rows:
        return f"Nothing logged yet.\nThe first row is due at step {run.config.get('log_interval', '?')}."
    return "No training row has been logged yet."


def _why_no_cycles(run: Run) -> str:
    if run.arch.get("H_cycles") == 1:
        return "One H-cycle (arch.H_cycles=1):\nthere is nothing to compare."
    if run.config.get("log_per_step_losses") is False:
        return "log_per_step_losses is off:\nset it to true to see each H-cycle."
    return _why_nothing(run)


def _why_no_depths(run: Run) -> str:
    """Tell why there is nothing by depth: not evaluated yet, or by a release that did not measure it."""
    if len(run.series("eval/loss").steps):
        return "Evaluated by a release that\nmeasured no depth: evaluate it\nwith `trm-ray evaluate`."
    return f"No evaluation yet: the first is due\nat step {run.config.get('eval_interval', '?')}."


def _why_no_gradients(run: Run) -> str:
    if not run.config.get("compute_gradient_stats"):
        return "compute_gradient_stats is off:\nset it to true to see which H-cycle\ndrives the update."
    interval = int(run.config.get("gradient_stats_interval") or 500)
    return f"The first is due at step {interval:,},\nthe run is at step {run.last_step:,}\n(gradient_stats_interval)."


def _curriculum_words(run: Run) -> str:
    config = run.config
    if not config.get("deep_supervision_enabled", True):
        return "baseline: only the last H-cycle is supervised"
    named, own = config.get("deep_supervision_schedule", "constant"), config.get("deep_supervision_weights")
    schedule = str(named if own is None else show(own)).replace("_", " ")
    if not config.get("curriculum_enabled"):
        return f"no curriculum, schedule {schedule}"
    start, end = (config.get(f"curriculum_{name}_step", 0) for name in ("start", "end"))
    return f"ramp from step {start:,} to {end:,}, schedule {schedule}"


def _summary_lines(run: Run) -> list[tuple[str, str, str]]:
    """Text, sign in front and colour of each line."""
    planned = f" of {run.planned_steps:,}" if run.planned_steps else ""
    state = "finished" if run.finished else "not finished"
    progress = f"step {run.last_step:,}{planned} · {run.wall_s:,.0f} s · {state}"
    lines = [(text, "", INK) for text in (progress, *_result_words(run), " ")]
    found = [(one.line, style.MARK_SIGNS[one.mark], style.MARK_COLOURS[one.mark]) for one in findings(run)]
    return lines + found


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]


def _result_words(run: Run) -> list[str]:
    loss, exact = run.series("eval/loss"), run.series("eval/exact_accuracy")
    if run.is_plain_text and len(run.series("eval/bits_per_byte").steps):
        return _bits_words(run)
    if not len(loss.steps) or not len(exact.steps):
        return [f"no evaluation yet: the first is due at step {run.config.get('eval_interval', '?')}"]
    best = int(np.nanargmax(exact.values)) if np.isfinite(exact.values).any() else 0
    return [
        f"held-out loss {loss.values[-1]:.4f}, exact accuracy {100 * exact.values[-1]:.1f} %",
        f"best exact accuracy {100 * exact.values[best]:.1f} % at step {exact.steps[best]:,}",
    ]


def _bits_words(run: Run) -> list[str]:
    bits = run.series("eval/bits_per_byte")
    best = int(np.nanargmin(bits.values)) if np.isfinite(bits.values).any() else 0
    known = {name: run.series(tag).values for name, tag in YARDSTICKS.items()}
    beside = ", ".join(f"{name} {values[-1]:.2f}" for name, values in known.items() if len(values))
    return [
        f"held-out bits per byte {bits.values[-1]:.3f}" + (f" ({beside})" if beside else ""),
        f"best {bits.values[best]:.3f} at step {bits.steps[best]:,}",
    ]


def _write_line(axes: Axes, text: str, sign: str, colour: str, height: float) -> None:
    """Write a line at a fixed distance in points below the title, so that no line meets another."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "fontsize": 9}
    drawn = [axes.annotate(text, (0, 1), (14, -height), color=INK, **place)]
    if sign:
        drawn.append(axes.annotate(sign, (0, 1), (0, -height), color=colour, fontweight="bold", **place))
    for one in drawn:
        one.set_in_layout(False)  # a long line shall not push the other panels aside
