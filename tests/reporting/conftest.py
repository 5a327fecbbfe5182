"""Run folders written by hand, line by line, without the writer under test."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from trm_ray.programs.compare import compare
from trm_ray.programs.report import Drawn, write_report
from trm_ray.reporting.page.figures import draw_figures
from trm_ray.reporting.page.gallery import Answer, Gallery, Puzzle, stages
from trm_ray.reporting.page.passage import Passage, Piece, Reader, Reading
from trm_ray.reporting.pictures.boards import Board
from trm_ray.reporting.run_log import Run, read_run

CONFIG = {
    "config_name": "deep_supervision_linear",
    "task": "sudoku6",
    "max_steps": 400,
    "eval_interval": 100,
    "lr": 2e-3,
    "lr_warmup_steps": 50,
    "grad_clip_norm": 1.0,
    "seed": 0,
    "deep_supervision_enabled": True,
    "deep_supervision_weight": 0.5,
    "deep_supervision_schedule": "linear_decay",
    "curriculum_enabled": False,
    "curriculum_start_step": 40,
    "curriculum_end_step": 240,
    "log_per_step_losses": True,
    "compute_gradient_stats": True,
    "gradient_stats_interval": 50,
    "log_interval": 10,
    "log_dir": "runs/deep_supervision_linear",
    "arch": {"H_cycles": 3, "L_cycles": 3, "halt_max_steps": 8},
    "ray": {"num_workers": 1},
}

MakeRun = Callable[..., Run]
FIRST_CYCLE = "eval/first_segment/step_0_exact_accuracy"


def depth_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Let the puzzles solved grow from those of the first cycle to all of the row's over eight segments of three.

    Of plain text, bits per byte fall over the three H-cycles of its segment.
    """
    if FIRST_CYCLE not in row:
        bits = [row[f"eval/first_segment/step_{i}_bits_per_byte"] for i in range(3)]
        return {"step": row["step"], "wall_s": row["wall_s"], "loss": bits, "accuracy": bits, "bits_per_byte": bits}
    solved = [row[FIRST_CYCLE] + (row["eval/exact_accuracy"] - row[FIRST_CYCLE]) * d / 23 for d in range(24)]
    return {"step": row["step"], "wall_s": row["wall_s"], "exact_accuracy": solved, "loss": solved, "accuracy": solved}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a run's folder and read it: `make_run(rows, name=…, seed=1, lr=1e-3, finished=False)`."""

    return lambda *values, **options: written_run(tmp_path, *values, **options)


def written_run(
    parent: Path,
    rows: Iterable[Mapping[str, Any]],
    name: str = "run",
    finished: bool = True,
    environment: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Run:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    written = [dict(row) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    depths = [depth_row(row) for row in written if FIRST_CYCLE in row or "eval/bits_per_byte" in row]
    (folder / "depths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in depths))
    if environment is not None:
        (folder / "environment.json").write_text(json.dumps(dict(environment)))
    if finished:
        (folder / "final_model").mkdir()
    return read_run(folder)


def falling_rows(
    last_step: int = 400,
    supervised: bool = True,
    scale: float = 1.0,
    num_cycles: int = 3,
    with_eval: bool = True,
) -> list[dict[str, float]]:
    """A healthy run: every loss falls geometrically, the later cycles are better, puzzles get solved."""
    rows = []
    for step in range(10, last_step + 1, 10):
        loss = scale * 1.8 * 0.993**step
        row: dict[str, float] = {"step": step, "wall_s": 0.1 * step}
        for i in range(num_cycles):
            row[f"train/deep_supervision/step_{i}_loss"] = loss * (1 + 0.2 * (num_cycles - 1 - i))
            row[f"train/first_segment/step_{i}_loss"] = 1.5 * loss * (1 + 0.2 * (num_cycles - 1 - i))
        share = 0.6 * loss if supervised else 0.0
        row.update(
            {
                "train/total_loss": loss + share,
                "train/act_loss": loss,
                "train/supervised_loss": share,
                "train/lm_loss": loss,
                "train/curriculum_weight": 0.5 if supervised else 0.0,
                "train/grad_norm": 2.0 * 0.995**step,
                "train/learning_rate": 2e-3 * min(1, step / 50),
                "train/act/steps": 8 - step / 100,
                "throughput/steps_per_s": 10.0,
                "throughput/data_wait_fraction": 0.01,
            }
        )
        if step % 50 == 0:
            for i in range(num_cycles):
                row.update(
                    {
                        f"train/gradients/step_{i}_grad_norm_{k}": (i + 1) * f
                        for k, f in (("mean", 1), ("min", 0.5), ("max", 2))
                    }
                )
        if with_eval and step % 100 == 0:
            for i in range(num_cycles):
                row[f"eval/step_{i}_loss"] = 1.1 * loss * (1 + 0.2 * (num_cycles - 1 - i))
                row[f"eval/first_segment/step_{i}_loss"] = 1.6 * loss * (1 + 0.2 * (num_cycles - 1 - i))
                row[f"eval/first_segment/step_{i}_exact_accuracy"] = step / 400 * (i + 1) / num_cycles
            solved = step / 400
            row.update({"eval/loss": 1.1 * loss, "eval/accuracy": 0.9, "eval/exact_accuracy": solved})
            row.update({"eval/exact_accuracy_first": solved, "eval/exact_accuracy_halting": solved})
            row["eval/act_steps"] = 8 - step / 100
        rows.append(row)
    return rows


@pytest.fixture
def healthy_rows() -> Callable[..., list[dict[str, float]]]:
    return falling_rows


TEXT = {"task": "text_bytes_tiny", "arch": {"H_cycles": 3, "L_cycles": 3, "halt_max_steps": 1, "causal": True}}


def text_rows(**changes: Any) -> list[dict[str, float]]:
    """A healthy run of plain text: what says nothing of it is not logged, and bits per byte fall to below xz's."""
    said = ("exact_accuracy", "act_steps", "train/act/steps", "anytime_accuracy", "q_halt")
    rows = [
        {tag: value for tag, value in row.items() if not any(word in tag for word in said)}
        for row in falling_rows(**changes)
    ]
    for row in (row for row in rows if "eval/loss" in row):
        bits = row["eval/loss"] + 2
        row |= {f"eval/first_segment/step_{i}_bits_per_byte": bits * (1.1 - 0.05 * i) for i in range(3)}
        row |= {"eval/bits_per_byte": bits, "eval/anytime_bits_per_byte": 1.05 * bits, "eval/perplexity": 4.0}
        row |= {"eval/unigram_bits_per_byte": 4.8, "eval/xz_bits_per_byte": 2.71}
    return rows


@pytest.fixture
def text_run(make_run: MakeRun) -> Run:
    return make_run(text_rows(), **TEXT)


@pytest.fixture
def make_text_run(make_run: MakeRun) -> MakeRun:
    """Write the folder of a run of plain text and read it: `make_text_run(1.5, name=…)`, with 1.5 times the loss."""
    return lambda scale, name, **options: make_run(text_rows(scale=scale), name, **TEXT, **options)


# ---- a report: 25 runs of five scenarios, one of which does its best to break the page

EVIL = """deep_supervision_<script>alert('it "ran"')</script>&amp;"""
SCENARIOS = ("deep_supervision_baseline", "deep_supervision_constant", "deep_supervision_linear", "mine", EVIL)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of runs and boards that are made by hand: no model solves anything."""
    folder = tmp_path_factory.mktemp("page")
    environment = {"torch": "2.13.0", "total_steps": 400}
    for number, name in enumerate(SCENARIOS):
        for seed in range(5):
            rows, is_done = rows_of_page(number, seed), (number, seed) != (3, 4)
            options: dict[str, Any] = {"finished": is_done, "environment": environment, "config_name": name}
            options["deep_supervision_weight"] = 0.1 * number
            written_run(folder / "runs", rows if is_done else rows[:20], f"{number}-{seed}", seed=seed, **options)
    compared = compare([folder / "runs"])
    drawn = Drawn(draw_figures(compared.runs, 0.5), [gallery_of_hand(), Gallery("maze", ("There is none: <b>",))])
    return write_report(compared, drawn, folder / "report.html", [folder / "runs"])


def rows_of_page(number: int, seed: int) -> list[dict[str, float]]:
    """Let each scenario solve ten points fewer than the one before it, each seed one point."""
    rows = falling_rows(scale=1 + 0.1 * number + 0.01 * seed)
    rows[-1] |= {"core_seconds/steps": 30.0 + number, "core_seconds/evaluation": 10.0, "core_seconds/start": 2.0}
    for row in (row for row in rows if "eval/exact_accuracy" in row):
        row["eval/exact_accuracy"] *= 1 - 0.01 * seed - 0.1 * number
    return rows


def gallery_of_hand() -> Gallery:
    """A 2×2 board under two scenarios: one has it right after three H-cycles, the other never."""

    def board(symbols: str, wrong: str = "0000") -> Board:
        cells = np.array(list(symbols)).reshape(2, 2)
        given, marked = cells == "1", np.array(list(wrong)).reshape(2, 2) == "1"
        return Board("sudoku", cells, given, np.zeros((2, 2), bool), marked, (1, 2))

    bad, good = (board("1331", "0110"), 2), (board("1221"), 0)
    answers = (Answer("baseline", stages([bad] * 6)), Answer(EVIL, stages([bad, bad, good, good, good, good])))
    return Gallery("sudoku2", ("By hand.",), (Puzzle("Puzzle 1", board("1..1"), answers),), 6, 3)


@pytest.fixture(scope="session")
def text_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of two scenarios of a text, and of a passage that is made by hand."""
    folder = tmp_path_factory.mktemp("text_page")
    for name in SCENARIOS[:2]:
        written_run(folder / "runs", text_rows(), name, config_name=name, **TEXT)
    compared = compare([folder / "runs"])
    return write_report(compared, Drawn(None, [passages_of_hand()]), folder / "report.html", [folder / "runs"])


def passages_of_hand() -> Gallery:
    """A line break and a tag after a beginning that was not asked for; at each depth a bit is saved."""

    def reading(depth: int, num_wrong: int | None) -> Reading:
        asked = [Piece("¶", None), Piece("a", None)]
        pieces = [Piece("<b>", 9.5 - depth, "”<i>"), Piece("\n", 3 - depth), Piece("’", 0.25)]
        return Reading(depth, (*asked, *pieces), 4.25 - depth, num_wrong)

    plain = Reader("baseline", tuple(reading(depth, None) for depth in (1, 2, 3)))
    answer = Reader(EVIL, tuple(reading(depth, wrong) for depth, wrong in ((1, 2), (2, 1), (3, 0))))
    return Gallery("text", ("By hand.",), (), 3, 3, (Passage("Passage 1", (plain, answer)),))
