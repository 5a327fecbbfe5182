"""What a run or a sweep will ask for, before any of it is spent: trials, machines, time, memory, disk.

Steps are measured on this machine, or told; everything else follows by counting. What had to be assumed is said.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from trm_ray.config import Config, ConfigError, Generator, SweepConfig, flat
from trm_ray.config.files import read_file
from trm_ray.data.chunk import smallest_type
from trm_ray.data.format import FORMAT_VERSION, DatasetInfo, SplitInfo, TextInfo, is_dataset
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID
from trm_ray.data.stored import rows_of_chunk
from trm_ray.data.stream import fits_in_memory
from trm_ray.kinds.registry import KINDS
from trm_ray.reporting.run_log import read_run
from trm_ray.reporting.terminal import number_table
from trm_ray.runs.data import complete, complete_trials, made_of, open_data
from trm_ray.runs.plan import count_steps, shape_of
from trm_ray.storage import as_path, tree_bytes

if TYPE_CHECKING:
    from trm_ray.measure.step_cost import StepCost
    from trm_ray.training.supervision import Supervision

_MIB = 2**20
# What the cost of a step depends on, besides `arch.*`, the rows a worker takes and the gradient's path.
_COST_KEYS = (
    *("optimizer", "loss_type", "ema", "freeze_weights", "device", "ray.use_gpu", "ray.cpus_per_worker"),
    *("segments_per_update", "checkpoint_cycles", "compile"),
)


@dataclass(frozen=True)
class Data:
    """The data of a plan. `disk_mib` is None for data that has yet to be made."""

    paths: tuple[str, ...]
    train_rows: int
    test_rows: int
    seq_len: int
    disk_mib: float | None
    object_store_mib: float
    worker_mib: float


@dataclass(frozen=True)
class Hours:
    """Hours of training; the three are equal without early stopping.

    least: all but the best of each group stop as soon as they may. halving: every rung stops its share. most: nobody is
    stopped.
    """

    least: float
    halving: float
    most: float

    def times(self, factor: float) -> Hours:
        """Multiply all three."""
        return Hours(self.least * factor, self.halving * factor, self.most * factor)

    def plus(self, other: Hours) -> Hours:
        """Add them one by one."""
        return Hours(self.least + other.least, self.halving + other.halving, self.most + other.most)


@dataclass(frozen=True)
class Trials:
    """Trials that cost the same.

    step_ms: mean over the steps, with its share of evaluations. weights_mib … carry_mib: a worker's memory; activations
    are None where no step was taken. checkpoints: what a trial leaves at most, for the best may be among the latest.
    hours: of all these trials.
    """

    scenario: str
    num_trials: int
    num_steps: int
    first_stop: int
    parameters: int
    step_ms: float
    weights_mib: float
    optimizer_mib: float
    average_mib: float
    carry_mib: float
    activations_mib: float | None
    checkpoint_mib: float
    checkpoints: int
    hours: Hours

    @property
    def memory_mib(self) -> float:
        """What a worker's tensors take, gradients included."""
        counted = self.weights_mib + self.optimizer_mib + self.average_mib + self.carry_mib
        return counted + self.weights_mib + (self.activations_mib or 0)

    @property
    def disk_mib(self) -> float:
        """What the checkpoints of all these trials take in the end."""
        return self.num_trials * self.checkpoints * self.checkpoint_mib

    @property
    def whole_run_h(self) -> float:
        """Hours of one of them that is not stopped."""
        return self.num_steps * self.step_ms / 3.6e6


@dataclass(frozen=True)
class SecondStage:
    """What a sweep trains after its first stage: the fewest and the most groups and trials, the latter not ended there.

    seeds: of each group. hours: beside those of the first stage, whose stopped trials go on from where they were.
    disk_mib: what checkpoints of new seeds take at most.
    """

    groups: tuple[int, int]
    seeds: int
    trials: tuple[int, int]
    hours: Hours
    disk_mib: float


@dataclass(frozen=True)
class Plan:
    """What will be asked for; hours count a trial's time, whatever it runs on, and those of both stages of a sweep."""

    name: str
    num_trials: int
    at_once: int
    workers: int
    cpus_of_trial: float
    gpus_of_trial: float
    data: tuple[Data, ...]
    trials: tuple[Trials, ...]
    hours: Hours
    longest_trial_h: float
    step_source: str
    assumed: tuple[str, ...] = field(default=())
    final: SecondStage | None = None

    @property
    def disk_mib(self) -> float:
        """What all checkpoints take in the end."""
        return sum(one.disk_mib for one in self.trials) + (self.final.disk_mib if self.final else 0)

    @property
    def unit(self) -> tuple[str, float]:
        """What is paid for, and how many of them a trial takes."""
        return ("GPU", self.gpus_of_trial) if self.gpus_of_trial else ("CPU", self.cpus_of_trial)


StepTimer = Callable[[Config, DatasetInfo], "StepCost"]


# ---- step times ------------------------------------------------------------------------------------------


def measured_here(num_steps: int) -> StepTimer:
    """Take `num_steps` steps of every distinct network in this process."""

    def measure(config: Config, info: DatasetInfo) -> StepCost:
        from trm_ray.measure.step_cost import measure_config

        return measure_config(config, shape_of(info), num_steps)

    return measure


def told_ms(step_ms: float) -> StepTimer:
    """Take a step time as the user gives it."""

    def tell(config: Config, info: DatasetInfo) -> StepCost:
        from trm_ray.measure.step_cost import StepCost

        return StepCost(step_ms, None, None)

    return tell


def run_step_ms(folder: Path) -> float:
    """Read the median step time of a run's log.

    Raises:
        ValueError: it is no run, or its log tells no rates yet.
    """
    rates = read_run(folder).series("throughput/steps_per_s").values
    if not len(rates):
        raise ValueError(f"--from-run {folder}: its log holds no throughput yet; name a run that has logged some steps")
    return 1e3 / statistics.median(rates.tolist())


# ---- planning --------------------------------------------------------------------------------------------


def plan_cost(
    asked: SweepConfig | Config,
    timer: StepTimer,
    step_source: str,
    progress: Callable[[Sequence[Config]], Iterator[Config]] = iter,
    told: DatasetInfo | None = None,
) -> Plan:
    """Work out what a sweep or a single run will ask for; makes no data and starts no Ray.

    Args:
        timer: gives the time of a step of a config.
        step_source: where that time comes from, in words.
        progress: walks over the configs to be timed, showing how far it is.
        told: what the data hold, in place of looking.

    Raises:
        ValueError: data that is not made by a generator is missing, or the config leaves nothing to train.
    """
    sweep = asked if isinstance(asked, SweepConfig) else None
    configs = complete_trials(asked) if isinstance(asked, SweepConfig) else [complete(asked)]
    if told is not None:  # of the test split too
        configs = [config.model_copy(update={"data_paths_test": []}) for config in configs]
    samples = sweep.num_samples if sweep else 1
    infos = Infos(told)
    cases: dict[str, tuple[Config, int]] = {}
    for config in configs:
        key = _case(config, infos.of(config)) + config.config_name
        cases[key] = (config, cases.get(key, (config, 0))[1] + samples)
    costs = _costs([config for config, _ in cases.values()], infos, timer, progress)
    trials = tuple(_trials(config, number, infos.of(config), costs, sweep) for config, number in cases.values())
    first, hours = configs[0], _total(trials, sweep)
    final = (
        None if sweep is None or sweep.final.top_k is None else _second_stage(sweep, sweep.final.top_k, trials, hours)
    )
    number = len(configs) * samples
    most = sweep.max_concurrent_trials if sweep else None
    workers = max(1, first.ray.most_workers)
    return Plan(
        name=asked.name if isinstance(asked, SweepConfig) else asked.config_name,
        num_trials=number,
        at_once=min(number, most or number),
        workers=workers,
        cpus_of_trial=first.ray.cpus_per_worker * workers,
        gpus_of_trial=first.ray.gpus_of_worker * workers if first.ray.use_gpu else 0.0,
        data=infos.sizes(),
        trials=trials,
        hours=hours if final is None else hours.plus(final.hours),
        longest_trial_h=max(one.hours.most / one.num_trials for one in trials),
        step_source=step_source,
        assumed=tuple(_assumptions(first, trials, infos)),
        final=final,
    )


class Infos:
    """What the datasets of configs hold, each read once; those that a generator would make are described.

    Args:
        told: what all of them hold, so that none is read.
    """

    def __init__(self, told: DatasetInfo | None = None) -> None:
        self.told = told
        self._found: dict[str, tuple[Config, DatasetInfo, bool]] = {}

    def of(self, config: Config) -> DatasetInfo:
        """Open the data of a config, or describe what its generator would make."""
        key = str((config.data_paths, config.data_paths_test, config.generator))
        if key not in self._found:
            made = config.generator is not None and not all(map(is_dataset, config.train_folders))
            found = described(config.generator, config) if made and config.generator else None
            info = self.told or found or open_data(config)
            self._found[key] = (config, info, made or self.told is not None)
        return self._found[key][1]

    def to_be_made(self) -> list[str]:
        """List the folders that are missing."""
        if self.told is not None:
            return []
        return [path for config, _, missing in self._found.values() if missing for path in config.data_paths]

    def sizes(self) -> tuple[Data, ...]:
        """Say how large each is."""
        return tuple(_data(*found) for found in self._found.values())


def described(generator: Generator, config: Config) -> DatasetInfo:
    """Describe the data that a generator makes for a config, whether they are there or not."""
    made, folders = made_of(generator), len(config.data_paths)
    arguments = made.model_dump()
    kind = KINDS[generator.name]
    rows = {"train": made.train * folders, "test": made.test * folders}
    return _info(generator.name, rows, *kind.shape_made(arguments), text=kind.text_made(arguments), seed=made.seed)


def told_data(numbers: str) -> DatasetInfo:
    """Describe data by four numbers: training rows, test rows, tokens a row, vocabulary.

    Its last token is taken for the separator, which matters to text alone.

    Raises:
        ValueError: they are not four whole numbers of at least 1.
    """
    parts = numbers.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) for part in parts):
        rule = "must be four whole numbers of at least 1: training rows, test rows, tokens a row, vocabulary"
        raise ValueError(f"--data {numbers} {rule}; use e.g. --data 1000000,1000,128,32000")
    train, test, seq_len, vocab_size = map(int, parts)
    text = TextInfo(vocab_size - 1, "told", "", "running", {}, {}, {}, {}, [])
    return _info("told", {"train": train, "test": test}, seq_len, vocab_size, text=text)


def _info(
    name: str, rows: dict[str, int], seq_len: int, vocab_size: int, text: TextInfo | None, seed: int | None = None
) -> DatasetInfo:
    splits = {split: SplitInfo(number, number, 1.0, {}) for split, number in rows.items()}
    told: dict[str, Any] = {"format_version": FORMAT_VERSION, "pad_id": PAD_ID, "ignored_label": IGNORED_LABEL}
    told |= {"seq_len": seq_len, "vocab_size": vocab_size, "num_puzzle_identifiers": 1, "splits": splits}
    told |= {"generator": name, "kind": name, "seed": seed, "symmetry": None, "arguments": {}, "files": {}}
    return DatasetInfo(**told, text=text)


def _data(config: Config, info: DatasetInfo, missing: bool) -> Data:
    train, test = info.split("train").rows, _test_rows(config, info)
    paths = (*config.data_paths, *config.data_paths_test)
    disk = None if missing else sum(tree_bytes(as_path(path)) for path in paths) / _MIB
    row_bytes = 4 * (2 * info.seq_len + 3)
    whole = fits_in_memory(info, "train", config.data_memory_gib)
    held_rows = train if whole else 2 * rows_of_chunk(info.seq_len, config.data_memory_gib)  # one used, one being read
    token_bytes = sum(smallest_type(least, info.vocab_size - 1).itemsize for least in (0, IGNORED_LABEL))
    held = (info.seq_len * token_bytes * held_rows + row_bytes * test) / _MIB
    return Data(paths, train, test, info.seq_len, disk, row_bytes * (train + test) / _MIB, held)


def _test_rows(config: Config, info: DatasetInfo) -> int:
    own = DatasetInfo.load(config.test_folders[0]) if config.data_paths_test else info
    return own.split("test").rows


def _case(config: Config, info: DatasetInfo) -> str:
    """Name what the cost of a config's step depends on, and how many there are."""
    steps = (count_steps(config, info), config.eval_interval, config.keep_last, config.keep_best)
    phases = [(_network(one), number) for one, number in _phases(config, info)]
    return str((phases, steps))


def _cost_values(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat(config).items() if key in _COST_KEYS or key.startswith("arch.")}


def _rows_of_worker(config: Config) -> int:
    return -(-config.global_batch_size // max(1, config.ray.most_workers))


def _phases(config: Config, info: DatasetInfo) -> list[tuple[Config, int]]:
    """Split the steps where their path may change, each part with a config whose steps are all like its own."""
    from trm_ray.training.state import build_supervision

    steps = count_steps(config, info)
    supervision = build_supervision(config, steps)
    return [(_as_measured(config, supervision, begin), end - begin) for begin, end in supervision.phases(steps)]


# ---- time ------------------------------------------------------------------------------------------------


def _costs(
    configs: Sequence[Config], infos: Infos, timer: StepTimer, progress: Callable[[Sequence[Config]], Iterator[Config]]
) -> dict[str, StepCost]:
    """Time the steps of every network that is to be trained, along each path of its gradient."""
    wanted: dict[str, tuple[Config, DatasetInfo]] = {}
    for config in configs:
        info = infos.of(config)
        for one, _ in _phases(config, info):
            wanted.setdefault(_network(one), (one, info))
    timed = progress([config for config, _ in wanted.values()])
    return {_network(config): timer(config, wanted[_network(config)][1]) for config in timed}


def _as_measured(config: Config, supervision: Supervision, step: int) -> Config:
    """Take the share of one worker, and one kind of step."""
    _, H_cycles, L_cycles = supervision.stage(step)
    arch = config.arch.model_copy(update={"H_cycles": H_cycles, "L_cycles": L_cycles or config.arch.L_cycles})
    changes = {"global_batch_size": _rows_of_worker(config), "arch": arch, "depth_curriculum": None}
    changes |= {"deep_supervision_enabled": supervision.base_weight(step) > 0}
    ray = config.ray.model_copy(update={"num_workers": 1, "gpus_per_trial": None, "gpus_per_worker": None})
    return config.model_copy(update={**changes, "curriculum_enabled": False, "ray": ray})


def _network(config: Config) -> str:
    from trm_ray.training.state import build_supervision

    path = build_supervision(config).path(0)
    return str((_cost_values(config), config.global_batch_size, path, config.data_paths))


def _is_as_deep(one: Config, other: Config) -> bool:
    return (one.arch.H_cycles, one.arch.L_cycles) == (other.arch.H_cycles, other.arch.L_cycles)


def _trials(
    config: Config, number: int, info: DatasetInfo, costs: dict[str, StepCost], sweep: SweepConfig | None
) -> Trials:
    steps, parameters, state = count_steps(config, info), *_state_mib(config, info)
    phases = [(one, costs[_network(one)], number) for one, number in _phases(config, info)]
    step_ms = sum(cost.step_ms * number for _, cost, number in phases) / steps
    whole = next(cost for one, cost, _ in phases if _is_as_deep(one, config))
    step_ms += _evaluation_ms(config, info, whole) / config.eval_interval
    full = phases[-1][1]
    rungs = stopping_steps(sweep, config, steps) if sweep else [steps]
    kept = sweep is not None and config.config_name in sweep.keep
    factor = sweep.asha.reduction_factor if sweep else 1.0
    taken = (float(rungs[-1]), float(rungs[-1])) if kept else (float(rungs[0]), halved_steps(rungs, factor))
    hours = Hours(*taken, float(rungs[-1])).times(number * step_ms / 3.6e6)
    saved = None if full.activation_bytes is None else full.activation_bytes / _MIB
    return Trials(
        scenario=config.config_name,
        num_trials=number,
        num_steps=steps,
        first_stop=rungs[-1] if kept else rungs[0],
        parameters=parameters,
        step_ms=step_ms,
        **state,
        activations_mib=saved,
        checkpoint_mib=_checkpoint_mib(config, state),
        checkpoints=checkpoints_left(config, steps),
        hours=hours,
    )


def _evaluation_ms(config: Config, info: DatasetInfo, cost: StepCost) -> float:
    """Estimate an evaluation before the last from the forward pass: every segment of a worker's share of its rows."""
    if cost.forward_ms is None:
        return 0.0
    most = min(config.eval_max_puzzles or math.inf, config.eval_quick_puzzles or math.inf)
    rows = min(_test_rows(config, info), most) / max(1, config.ray.most_workers)
    return config.arch.halt_max_steps * cost.forward_ms * rows / _rows_of_worker(config)


def stopping_steps(sweep: SweepConfig, config: Config, num_steps: int) -> list[int]:
    """List the steps at which ASHA may stop a trial, which it looks at when it evaluates, and the last step."""
    if not sweep.asha.enabled:
        return [num_steps]

    def looked_at(step: float) -> int:
        return min(num_steps, math.ceil(step / config.eval_interval) * config.eval_interval)

    end = looked_at((sweep.asha.max_t or num_steps) + 1)
    rungs, rung = [], float(sweep.asha.grace_period)
    while looked_at(rung) < end:
        rungs.append(looked_at(rung))
        rung *= sweep.asha.reduction_factor
    return [*dict.fromkeys(rungs), end]


def halved_steps(rungs: Sequence[int], factor: float) -> float:
    """Give the mean steps of a trial if every rung but the last stops all but 1 in `factor`."""
    steps, alive = float(rungs[0]), 1.0
    for before, after in itertools.pairwise(rungs):
        alive /= factor
        steps += alive * (after - before)
    return steps


def _total(trials: Sequence[Trials], sweep: SweepConfig | None) -> Hours:
    """Add up; ASHA lets the best of those that compete train to the end, whoever that is."""
    least, halving, most = (sum(getattr(one.hours, name) for one in trials) for name in ("least", "halving", "most"))
    if sweep and not any(one.first_stop == one.num_steps for one in trials):
        rest = min((one.hours.most - one.hours.least) / one.num_trials for one in trials)
        key = sweep.group_by
        groups = len({str(flat(config)[key]) for config in complete_trials(sweep)}) if key is not None else 1
        least, halving = least + groups * rest, max(halving, least + groups * rest)
    return Hours(least, min(halving, most), most)


def _second_stage(sweep: SweepConfig, top_k: int, trials: Sequence[Trials], first: Hours) -> SecondStage:
    """Bound what the second stage adds: which groups are the best is not known, only what each would take."""
    before, seeds = len(sweep.seeds), sweep.final.seeds or len(sweep.seeds)
    groups = [one for one in trials for _ in range(one.num_trials // before)]
    kept = [one for one in groups if one.scenario in sweep.keep]
    others = sorted((one for one in groups if one not in kept), key=lambda one: one.whole_run_h)
    few, many = [*kept, *others[: max(0, top_k - len(kept))]], [*kept, *others[-top_k:]]

    def left(chosen: Sequence[Trials], name: str) -> float:
        done = sum(getattr(one.hours, name) * before / one.num_trials for one in chosen)
        return sum(seeds * one.whole_run_h for one in chosen) - done

    goes_on = first.least - sum(one.hours.least for one in trials)  # the best, which is one of them, and ends at once
    new = seeds - before
    return SecondStage(
        groups=(len(few), len(many)),
        seeds=seeds,
        trials=(new * len(few), new * len(many) + (before * (len(many) - len(kept)) if sweep.asha.enabled else 0)),
        hours=Hours(left(few, "least") - goes_on, left(many, "halving"), left(many, "most")),
        disk_mib=sum(new * one.disk_mib / one.num_trials for one in many),
    )


# ---- memory and disk -------------------------------------------------------------------------------------


def _state_mib(config: Config, info: DatasetInfo) -> tuple[int, dict[str, float]]:
    """Count what a worker holds from step to step; the weights are built for it."""
    from trm_ray.training.state import build_model

    model = build_model(config, shape_of(info))
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    trained = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    places = config.arch.prefix_len + info.seq_len
    row = 2 * places * config.arch.hidden_size * (2 if config.arch.forward_dtype == "bfloat16" else 4)
    row += 4 * (2 * info.seq_len + 2) + 1  # the puzzle, its identifier, how many segments it had, whether it halted
    sizes = {
        "weights_mib": held,
        "optimizer_mib": 0 if config.freeze_weights else 2 * trained,
        "average_mib": weights if config.ema else 0,
        "carry_mib": row * _rows_of_worker(config),
    }
    return sum(weight.numel() for weight in model.parameters()), {key: size / _MIB for key, size in sizes.items()}


def _checkpoint_mib(config: Config, state: dict[str, float]) -> float:
    """Add up what a checkpoint holds: a worker's state, and the carry of all of them."""
    return sum(state.values()) + state["carry_mib"] * (config.global_batch_size / _rows_of_worker(config) - 1)


def checkpoints_left(config: Config, num_steps: int) -> int:
    """Count the checkpoints that a finished run leaves at most, its final model included."""
    evaluations = -(-num_steps // config.eval_interval) if config.checkpoint_every_eval else 1
    kept = evaluations if config.keep_last is None else min(evaluations, config.keep_last + config.keep_best)
    return kept + 1


# ---- telling ---------------------------------------------------------------------------------------------


def _assumptions(config: Config, trials: Sequence[Trials], infos: Infos) -> Iterator[str]:
    ray = config.ray
    if infos.told is not None:
        yield "the data hold what --data says, with one puzzle identifier, or none in a text"
    if made := infos.to_be_made():
        yield f"{', '.join(made)} will be made when the training starts; its rows are those of the generator's keys"
    if ray.is_elastic:
        yield f"all {ray.most_workers} workers are there all the time"
    if ray.most_workers > 1:
        yield "exchanging gradients takes no time, and neither does waiting for other workers"
    if ray.use_gpu and ray.gpus_of_worker < 1:
        yield "trials that share a GPU do not slow each other down"
    measured = any(one.activations_mib is not None for one in trials)
    if measured and ray.use_gpu and not _gpu_here():
        yield "steps on a GPU take as long as here on a CPU, which no GPU does: give --step-ms or --from-run"
    if not measured:
        yield "activations and evaluations are left out, for no step was taken"
    else:
        yield "an evaluation takes the forward pass of all its segments; activations are what autograd keeps of a step"
    yield "starting, saving and waiting for nodes take no time"


def how_measured(num_steps: int) -> str:
    """Say how steps are measured here."""
    clock = "on its GPU" if _gpu_here() else "in processor time of a CPU"
    return f"measured on this machine {clock}, {num_steps} steps of every network"


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def plan_json(plan: Plan, price_per_hour: float | None) -> str:
    """Write a plan as JSON."""
    kind, amount = plan.unit
    hours = {"trial_hours": asdict(plan.hours), f"{kind.lower()}_hours": asdict(plan.hours.times(amount))}
    cost = {"price": asdict(plan.hours.times(amount * price_per_hour))} if price_per_hour is not None else {}
    trials = [{**asdict(one), "memory_mib": one.memory_mib, "disk_mib": one.disk_mib} for one in plan.trials]
    values: dict[str, Any] = {"format_version": 1, **asdict(plan), "trials": trials, **hours, **cost}
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def plan_table(plan: Plan) -> Table:
    """Lay out the trials of a plan."""
    work = ("\ntrials", "\nsteps", "ms\na step", "hours,\nleast", "hours,\nmost", "para-\nmeters")
    space = ("MiB in\nmemory", "of it acti-\nvations", "MiB a\ncheckpoint", "check-\npoints", "MiB on\ndisk")
    table = number_table("\nscenario", work + space)
    for one in plan.trials:
        activations = "–" if one.activations_mib is None else f"{one.activations_mib:,.1f}"
        table.add_row(
            one.scenario, f"{one.num_trials}", f"{one.num_steps:,}", f"{one.step_ms:,.1f}",
            f"{one.hours.least:.3g}", f"{one.hours.most:.3g}", f"{one.parameters:,}", f"{one.memory_mib:,.1f}",
            activations, f"{one.checkpoint_mib:,.1f}", f"{one.checkpoints}", f"{one.disk_mib:,.0f}",
        )  # fmt: skip
    return table


def plan_lines(plan: Plan, price_per_hour: float | None) -> Iterator[str]:
    """Say what a plan comes to, line by line."""
    each, number = _machines(plan.cpus_of_trial, plan.gpus_of_trial), plan.at_once
    together = _machines(number * plan.cpus_of_trial, math.ceil(number * plan.gpus_of_trial))
    shared = f" ({plan.workers} workers)" if plan.workers > 1 else ""
    yield f"{plan.name}: {_amount(plan.num_trials, 'trial')}, each {each}{shared}"
    yield f"At once: {number} of them, {together}; this machine has {os.cpu_count()} CPUs"
    for data in plan.data:
        disk = "not made yet" if data.disk_mib is None else f"{data.disk_mib:,.1f} MiB on disk"
        yield (
            f"Data {', '.join(data.paths)}: {data.train_rows:,} training and {data.test_rows:,} test rows "
            f"of {data.seq_len:,} tokens, {disk}, "
            f"{data.object_store_mib:,.1f} MiB in the object store, {data.worker_mib:,.1f} MiB in each worker"
        )
    kind, amount = plan.unit
    hours = plan.hours.times(amount)
    yield f"{kind}-hours: {_range(hours)}; all at once, the longest trial takes {plan.longest_trial_h:.3g} h"
    if price_per_hour is not None:
        yield f"At {price_per_hour:g} a {kind}-hour: {_range(hours.times(price_per_hour))}"
    if plan.final is not None:
        yield _second_stage_line(plan.final, kind, amount)
    yield f"Checkpoints: {plan.disk_mib:,.0f} MiB on disk in the end"
    yield f"Step times: {plan.step_source}"
    yield from (f"Assumed: {one}" for one in plan.assumed)


def _second_stage_line(final: SecondStage, kind: str, amount: float) -> str:
    hours = sorted(asdict(final.hours.times(amount)).values())
    trials, groups = (_span(*pair, unit) for pair, unit in ((final.trials, "trial"), (final.groups, "group")))
    told = " to ".join(dict.fromkeys(f"{one:.3g}" for one in (hours[0], hours[-1])))
    return f"Second stage: {trials}, for {_amount(final.seeds, 'seed')} of {groups}: {told} of these {kind}-hours"


def _span(low: int, high: int, unit: str) -> str:
    return f"{f'{low} to ' if low < high else ''}{_amount(high, unit)}"


def _machines(cpus: float, gpus: float) -> str:
    return _amount(cpus, "CPU") + (f" and {_amount(gpus, 'GPU')}" if gpus else "")


def _amount(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _range(hours: Hours) -> str:
    if hours.least == hours.most:
        return f"{hours.most:.3g}"
    return f"{hours.least:.3g} to {hours.most:.3g} (about {hours.halving:.3g} if ASHA stops its share at every rung)"


def planned(name: str, overrides: Sequence[str]) -> SweepConfig | Config:
    """Load a sweep, or else a scenario, by its name or path.

    Raises:
        ConfigError: there is neither.
    """
    from trm_ray.config import config_names, load_config, load_sweep

    path = as_path(name)
    is_sweep = "scenarios" in read_file(path) if path.is_file() else name in config_names("sweep")
    if not is_sweep and not path.is_file() and name not in config_names():
        there = ", ".join([*config_names("sweep"), *config_names()])
        raise ConfigError(f"{name} must name a sweep or a scenario; there are {there}")
    return load_sweep(name, overrides) if is_sweep else load_config(name, overrides)
