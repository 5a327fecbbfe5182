"""Let the models of some runs solve the same held-out puzzles, or read the same text, and keep it depth by depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trm_ray.config.errors import printable
from trm_ray.data.format import DatasetInfo, read_identifiers, row_groups, rows_of_table
from trm_ray.data.progress import Advance, progress
from trm_ray.data.rows import IGNORED_LABEL, Rows
from trm_ray.interop.loading import LoadedModel, load_model
from trm_ray.kinds.kind import Kind
from trm_ray.kinds.registry import check_kind, kind_named, kind_of
from trm_ray.model.gradient_path import GradientPath
from trm_ray.model.trm import Batch
from trm_ray.programs.evaluate import embedding_rows
from trm_ray.programs.passages import Guesses, Script, guesses
from trm_ray.reporting.numbers.groups import Group
from trm_ray.reporting.page.gallery import Answer, Gallery, Puzzle, stages
from trm_ray.reporting.page.passage import Passage, Reader
from trm_ray.reporting.pictures.boards import Board
from trm_ray.reporting.run_log import Run
from trm_ray.storage import as_path
from trm_ray.training.checkpoint import has_checkpoint
from trm_ray.training.flops import step_flops
from trm_ray.training.inference import run_segments

NUM_PUZZLES = 6
MOST_SCENARIOS = 8  # beside each other
MOST_LOOKED_AT = 128  # puzzles that the shown ones are chosen from
MOST_CELLS = 300_000  # of all boards of a gallery: about two megabytes of page
MOST_PIECES = 20_000  # of all passages of a gallery, each token at each depth: about two megabytes, too
LEAST_TOKENS, MOST_TOKENS = 64, 384  # of a passage
LOOKING_FLOPS = 3e10  # for choosing puzzles: a few seconds of a processor


@dataclass(frozen=True)
class _Shelf:
    """Runs of one dataset, by the label of their group in the order in which they are shown; the first one chooses."""

    folders: tuple[Path, ...]
    runs: Mapping[str, Run]

    @property
    def title(self) -> str:
        """Name the task, or the data where there is none."""
        task = next(iter(self.runs.values())).config.get("task")
        return str(task or ", ".join(folder.name for folder in self.folders))


def galleries(groups: Sequence[Group], most_flops: float | None = None) -> list[Gallery]:
    """Show what runs of each dataset make of the same held-out puzzles; words say what cannot be shown.

    Args:
        groups: in the order in which they are shown; puzzles are chosen by the first one.
        most_flops: leave out what takes a processor more.
    """
    by_data: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        config = group.runs[0].config
        by_data.setdefault(tuple(config.get("data_paths_test") or config.get("data_paths") or ()), []).append(group)
    return [_gallery(tuple(map(as_path, paths)), members, most_flops) for paths, members in by_data.items()]


def _gallery(folders: tuple[Path, ...], groups: Sequence[Group], most_flops: float | None) -> Gallery:
    shelf, words = _chosen(folders, groups)
    try:
        if not shelf.runs:
            raise ValueError("no run here has a checkpoint")
        return _shown(shelf, words, most_flops)
    except (ValueError, OSError) as error:
        return Gallery(shelf.title if shelf.runs else "", (*words, f"There is no gallery: {printable(str(error))}."))


# ---- which runs ------------------------------------------------------------------------------------------


def _chosen(folders: tuple[Path, ...], groups: Sequence[Group]) -> tuple[_Shelf, list[str]]:
    """Choose a run of each group: of the first seed that all have, since runs of one seed begin alike."""
    usable = {group.label: [run for run in group.runs if has_checkpoint(run.folder)] for group in groups}
    shown = {label: runs for label, runs in usable.items() if runs}
    seeds = set.intersection(*({run.seed for run in runs} for runs in shown.values())) if shown else set()
    words = [f"No checkpoint is left of {_listed([label for label in usable if label not in shown])}."]
    kept = dict(list(shown.items())[:MOST_SCENARIOS])
    words = (words if len(shown) < len(usable) else []) + (
        [f"Of {len(shown)} scenarios the first {MOST_SCENARIOS} of the ranking are shown."] if kept != shown else []
    )
    seed = min(seeds, default=None)
    runs = {label: next((run for run in runs if run.seed == seed), runs[0]) for label, runs in kept.items()}
    return _Shelf(folders, runs), words


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


# ---- which puzzles, and the answers ----------------------------------------------------------------------


def _shown(shelf: _Shelf, words: Sequence[str], most_flops: float | None) -> Gallery:
    if not shelf.folders:
        raise ValueError("nothing here tells which puzzles the runs are of")
    if missing := [folder for folder in shelf.folders if not (folder / "dataset.json").is_file()]:
        what = "text is" if any(run.is_text for run in shelf.runs.values()) else "puzzles are"
        raise ValueError(f"the held-out {what} not in {missing[0]}; write the report where the runs were started")
    info = DatasetInfo.load(shelf.folders[0])  # not all of it is checked, as training does: it would take minutes
    check_kind(info)
    models = {label: load_model(run.folder) for label, run in shelf.runs.items()}
    if any(
        (model.shape.seq_len, model.shape.vocab_size) != (info.seq_len, info.vocab_size) for model in models.values()
    ):
        what = "rows" if info.text else "boards"
        raise ValueError(f"{shelf.folders[0]} holds other {what} than the models were trained on")
    first = next(iter(models.values()))
    cost = sum(map(_puzzle_flops, models.values()))
    looked_at = int(np.clip(LOOKING_FLOPS / _puzzle_flops(first), NUM_PUZZLES, MOST_LOOKED_AT))
    if torch.cuda.is_available():
        models = {label: model.to("cuda") for label, model in models.items()}
    elif most_flops is not None and looked_at * _puzzle_flops(first) + NUM_PUZZLES * cost > most_flops:
        raise ValueError("on this machine it would take minutes; trm-ray report draws it all the same")
    rows = _first_rows(shelf.folders[0], info, looked_at)
    with progress("models", len(models)) as advance:
        if info.text is not None:
            return _read(shelf, words, models, rows, Script.of(shelf.folders[0], info), advance)
        return _solved(shelf, words, models, rows, _kind(info, shelf), advance)


def _puzzle_flops(model: LoadedModel) -> float:
    """Count what a puzzle takes at all depths: of a training step's operations what goes forward."""
    config = model.config
    step = step_flops(config, model.shape, GradientPath.last(model.H_cycles))
    step /= config.global_batch_size * config.segments_per_update
    return step * model.H_cycles / (model.H_cycles + 2) * model.halt_max_steps


def _kind(info: DatasetInfo, shelf: _Shelf) -> Kind:
    if info.kind is not None:
        return kind_named(info.kind, info.seq_len, info.vocab_size)
    return kind_of(info.seq_len, info.vocab_size, names=f"{shelf.title} {shelf.folders}")


def _first_rows(folder: Path, info: DatasetInfo, most: int) -> Rows:
    """Read the first held-out puzzles that have an answer, of a file no more than its first group of rows."""
    name, table = next(row_groups(folder, info.split("test")))
    rows = rows_of_table(folder, name, table, info.seq_len)
    known = np.flatnonzero((rows.labels != IGNORED_LABEL).any(1))[:most]
    if not len(known):
        raise ValueError(f"no held-out puzzle of {folder} has a known answer")
    return rows[known]


def _solved(
    shelf: _Shelf, words: Sequence[str], models: Mapping[str, LoadedModel], rows: Rows, kind: Kind, advance: Advance
) -> Gallery:
    """Choose puzzles by the first model, let the others solve the same, and lay all of it out."""
    leader = next(iter(models))
    answers = _answers(models[leader], rows, shelf.folders)
    needed = solved_at(answers, rows.labels)
    chosen = spread_out(needed, min(NUM_PUZZLES, len(rows)))
    by_label = {leader: answers[:, chosen]}
    advance(1)
    for label, model in list(models.items())[1:]:
        by_label[label] = _answers(model, rows[chosen], shelf.folders)
        advance(1)
    puzzles = [
        _puzzle(kind, rows[chosen], number, {label: found[:, number] for label, found in by_label.items()},
                f"{leader} {_told(int(needed[at]), len(answers))}")
        for number, at in enumerate(chosen)
    ]  # fmt: skip
    cycles = {model.H_cycles for model in models.values()}
    told = [*words, _about(shelf, models, leader, len(rows))]
    deepest = max(len(found) for found in by_label.values())
    return Gallery(
        shelf.title, tuple(told), tuple(_within(puzzles)), deepest, cycles.pop() if len(cycles) == 1 else None
    )


def _read(
    shelf: _Shelf, words: Sequence[str], models: Mapping[str, LoadedModel], rows: Rows, script: Script, advance: Advance
) -> Gallery:
    """Choose passages by the first model, let the others read the same, and lay all of it out."""
    (leader, first), deepest = next(iter(models.items())), max(map(_num_depths, models.values()))
    found = guesses(first, _batch(first, rows, shelf.folders))
    needed, told = _needed(script, leader, found, rows.labels)
    room = MOST_PIECES // (deepest * len(models))
    length = min(rows.inputs.shape[1], int(np.clip(room, LEAST_TOKENS, MOST_TOKENS)))
    chosen = spread_out(needed, min(int(np.clip(room // length, 1, NUM_PUZZLES)), len(rows)))
    by_label = {leader: found.of(chosen)}
    advance(1)
    for label, model in list(models.items())[1:]:
        by_label[label] = guesses(model, _batch(model, rows[chosen], shelf.folders))
        advance(1)
    passages = []
    for number, at in enumerate(chosen):
        row = rows.inputs[at], rows.labels[at]
        readers = (Reader(label, script.readings(*row, one.of(number), length)) for label, one in by_label.items())
        passages.append(
            Passage(f"{'Prompt' if script.prompts else 'Passage'} {number + 1}: {told[at]}", tuple(readers))
        )
    cycles = {model.H_cycles for model in models.values()}
    told_of = _about(shelf, models, leader, len(rows), "prompts" if script.prompts else "rows")
    num_cycles = cycles.pop() if len(cycles) == 1 else None
    return Gallery(shelf.title, (*words, told_of), (), deepest, num_cycles, tuple(passages))


def _needed(script: Script, leader: str, found: Guesses, labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Say what a model needs for each row (B,), and in words: H-cycles to solve a prompt, bits per byte of a text."""
    if script.prompts:
        needed = solved_at(found.likeliest, labels)
        return needed, [f"{leader} {_told(int(depth), len(found.bits))}" for depth in needed]
    needed = script.bits_per_byte(found.bits[-1], labels)
    return needed, [f"{leader} needs {bits:.2f} bits per byte" for bits in needed]


def _num_depths(model: LoadedModel) -> int:
    return model.halt_max_steps * model.H_cycles


@torch.inference_mode()
def _answers(model: LoadedModel, rows: Rows, folders: Sequence[Path]) -> np.ndarray:
    """Solve puzzles: their tokens (D, B, L) after each H-cycle."""
    outputs = run_segments(model, _batch(model, rows, folders))
    return np.stack([logits.argmax(-1).cpu().numpy() for output in outputs for logits in output.cycle_logits])


def _batch(model: LoadedModel, rows: Rows, folders: Sequence[Path]) -> Batch:
    embedded = embedding_rows(model, read_identifiers(*folders), folders)[rows.puzzle_identifiers]
    return Batch(*map(torch.from_numpy, (rows.inputs, rows.labels, embedded))).to(model.device)


def _wrong(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logical_and(answers != labels, labels != IGNORED_LABEL)


def solved_at(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find from which depth on each puzzle (B,) is solved and stays so; D + 1 where it is not at the end."""
    solved = np.asarray(~_wrong(answers, labels).any(-1))
    stays = np.logical_and.accumulate(solved[::-1])[::-1]
    return np.where(stays.any(0), stays.argmax(0), len(stays)) + 1


def spread_out(needed: np.ndarray, number: int) -> np.ndarray:
    """Choose puzzles at equal distances, from those that are solved first to those that are not."""
    order = np.argsort(needed, kind="stable")
    return order[np.linspace(0, len(order) - 1, number).round().astype(int)]


def _told(depth: int, deepest: int) -> str:
    if depth > deepest:
        return "does not solve it"
    return f"solves it after {depth} H-cycle{'s' * (depth != 1)}"


def _about(shelf: _Shelf, models: Mapping[str, LoadedModel], leader: str, num_rows: int, what: str = "puzzles") -> str:
    seeds = sorted({run.seed for run in shelf.runs.values()})
    weights = "averaged weights" if any(model.averaged for model in models.values()) else "weights as they are"
    steps = sorted({model.step for model in models.values()})
    by = (
        f"bits per byte {leader} needs for them"
        if what == "rows"
        else f"H-cycles {leader} needs to solve them for good"
    )
    return (
        f"Of the first {num_rows} held-out {what}, ordered by how many {by}, these stand at equal distances, from the "
        f"first to the last. Models of seed "
        f"{_listed([*map(str, seeds)])} after {_listed([f'{step:,}' for step in steps])} steps, {weights}."
    )


# ---- boards ----------------------------------------------------------------------------------------------


def _puzzle(kind: Kind, rows: Rows, number: int, by_label: Mapping[str, np.ndarray], told: str) -> Puzzle:
    inputs, labels = rows.inputs[number], rows.labels[number]
    question = _board(kind, inputs, inputs, np.zeros(inputs.shape, bool))
    answers = (Answer(label, stages(list(_boards(kind, inputs, labels, found)))) for label, found in by_label.items())
    return Puzzle(f"Puzzle {number + 1}: {told}", question, tuple(answers))


def _boards(kind: Kind, inputs: np.ndarray, labels: np.ndarray, answers: np.ndarray) -> Iterator[tuple[Board, int]]:
    for tokens in answers:
        wrong = _wrong(tokens, labels)
        yield _board(kind, tokens, inputs, wrong), int(wrong.sum())


def _board(kind: Kind, tokens: np.ndarray, inputs: np.ndarray, wrong: np.ndarray) -> Board:
    cells = kind.layout(tokens)
    nothing = np.zeros(cells.shape, bool)
    return Board(kind.name, kind.symbols(tokens)[cells], kind.given(inputs)[cells], nothing, wrong[cells], kind.box)


def _within(puzzles: Iterable[Puzzle]) -> Iterator[Puzzle]:
    """Take as many puzzles as the page has room for, at least one."""
    num_cells = 0
    for number, puzzle in enumerate(puzzles):
        num_cells += sum(stage.board.symbols.size for answer in puzzle.answers for stage in answer.stages)
        if number and num_cells > MOST_CELLS:
            return
        yield puzzle
