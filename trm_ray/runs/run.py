"""One training run: its folder, its data, and the training loop in this process, whoever launched it."""

from __future__ import annotations

import functools
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_ray import __version__
from trm_ray.config import (
    Config,
    ConfigError,
    SudokuGenerator,
    config_from_run,
    config_from_values,
    flat,
    run_dir,
    to_yaml,
    with_overrides,
)
from trm_ray.config.surroundings import check_surroundings
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.schema import (
    DatasetInfo,
    RowHashes,
    Rows,
    check_same_identifiers,
    first_puzzles,
    is_dataset,
    open_datasets,
    read_identifiers,
    read_splits,
)
from trm_ray.ownership import FolderInUse, Ownership, refuse_if_held
from trm_ray.replacement import RUN, SWEEP, foreign_names, is_ours, set_aside, settled, told_names
from trm_ray.storage import as_path, check_is_folder, is_whole, resolved, write_whole

if TYPE_CHECKING:
    import torch

    from trm_ray.data.stream import Shard
    from trm_ray.interop.checkpoints import InitialWeights
    from trm_ray.training.session import LogRow, Session
    from trm_ray.training.state import TokenShape

_LOOK_EVERY_S = 0.5  # whether data that another process makes are there

# A resumed run may train longer, be watched differently and run elsewhere; anything else makes it another run.
RESUMABLE_KEYS = (
    "max_steps",
    "epochs",
    "eval_interval",
    "log_interval",
    "checkpoint_every_eval",
    "keep_last",
    "keep_best",
    "log_per_step_losses",
    "compute_gradient_stats",
    "gradient_stats_interval",
    "eval_batch_size",
    "eval_max_puzzles",
    "prepare_command",
    "generator.check_existing",
    "init_from",
    "log_dir",
    "device",
)


@dataclass(frozen=True)
class RunPlan:
    """A run that has passed all checks: what every worker needs to know of it. Paths are absolute, or URLs."""

    config: Config
    folder: Path
    train_paths: tuple[Path, ...]
    test_paths: tuple[Path, ...]
    info: DatasetInfo
    num_steps: int

    @property
    def shape(self) -> TokenShape:
        """The tokens that the model reads and writes."""
        from trm_ray.training.state import TokenShape

        return TokenShape(self.info.seq_len, self.info.vocab_size, self.info.num_puzzle_identifiers)

    def identifiers(self) -> PuzzleIdentifiers:
        """Read what the puzzle identifiers stand for."""
        return read_identifiers(*self.train_paths, *self.test_paths)

    def vary(self, config: Config, folder: Path) -> RunPlan:
        """Plan another run on the same data."""
        config = _with_absolute_paths(config)
        return replace(self, config=config, folder=folder, num_steps=_count_steps(config, self.info))


def plan_run(config: Config) -> RunPlan:
    """Check a run's data, making a missing dataset of a generated task; nothing is written to the run's folder.

    Raises:
        ValueError: the data is missing or bad, the config leaves nothing to train, or Ray could not start here.
        ConnectionError: the cluster to join does not answer.
    """
    folder = resolved(run_dir(config))
    check_device(config)
    if config.ray.most_workers:
        check_surroundings(config.ray.address)
    info, config = open_data(config), _with_absolute_paths(config)
    _tell_own_data(config)
    train = tuple(as_path(path).resolve() for path in config.data_paths)
    test = tuple(as_path(path).resolve() for path in config.data_paths_test) or train
    return RunPlan(config, folder, train, test, info, _count_steps(config, info))


def _with_absolute_paths(config: Config) -> Config:
    """Name files so that workers find them, who have working directories of their own."""
    if config.init_from is None:
        return config
    return with_overrides(config, {"init_from": str(as_path(config.init_from).resolve())})


def _count_steps(config: Config, info: DatasetInfo) -> int:
    from trm_ray.training.state import total_steps

    train = info.split("train")
    return total_steps(config, train.groups, train.mean_puzzle_examples)


@contextmanager
def owned_run(plan: RunPlan, *, resume: bool = False, overwrite: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the run's folder while this lasts, after all checks of what lies in it.

    Yields:
        What begins to write there, to be called when nothing else can keep the run from starting. An old run that is
        overwritten is back in its place afterwards unless a checkpoint of the new one has been saved.

    Raises:
        ValueError: as `check_folder`, or another process writes the folder.
    """
    from trm_ray.training.checkpoint import has_checkpoint

    told, way_out = f"log_dir={plan.config.log_dir}", "choose another log_dir"
    check_is_folder(plan.folder, told, way_out)
    check_folder(plan, resume=resume, overwrite=overwrite or not resume)
    with Ownership(plan.folder, told, way_out):
        _refuse_in_living_sweep(plan)
        with settled(plan.folder, RUN, has_checkpoint):
            check_folder(plan, resume=resume, overwrite=overwrite)
            yield lambda: begin_run(plan, overwrite=overwrite)


def claim_folder(plan: RunPlan, *, resume: bool = False, overwrite: bool = False) -> None:
    """Begin to write a run's folder, for whoever holds it already: `check_folder`, then `begin_run`."""
    check_folder(plan, resume=resume, overwrite=overwrite)
    begin_run(plan, overwrite=overwrite)


def check_folder(plan: RunPlan, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse a folder that the run must not be written into; nothing is changed.

    Raises:
        ValueError: the folder holds a run and neither `resume` nor `overwrite` was asked for, it holds something else,
            or a resumed run's config differs in what defines it.
    """
    from trm_ray.training.checkpoint import FINAL_MODEL, MANIFEST_FILE

    folder, config = plan.folder, plan.config
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    _check_not_foreign(plan, resume=resume)
    if overwrite or not is_ours(folder, RUN):
        return
    metrics = folder / "metrics.jsonl"
    begun = (metrics.is_file() and metrics.stat().st_size > 0) or any(folder.glob("checkpoint_step_*"))
    if not begun and is_whole(folder / FINAL_MODEL, MANIFEST_FILE):
        raise ConfigError(
            f"log_dir={config.log_dir} holds weights only, from an imported file, so no training can go on from it; "
            f"use --init-from {config.log_dir} with another log_dir"
        )
    if begun and not resume:
        raise ConfigError(
            f"log_dir={config.log_dir} already holds a run; go on with it with --resume, replace it with --overwrite, "
            "or choose another log_dir"
        )
    if begun:
        _check_same_run(config, before := config_from_run(folder))
        _check_checkpoint(plan)
        _tell_change_of_workers(plan, before)


def begin_run(plan: RunPlan, *, overwrite: bool = False) -> None:
    """Write `config.yaml` and `environment.json`; an old run that is to be overwritten is set aside."""
    if overwrite and is_ours(plan.folder, RUN):
        set_aside(plan.folder, RUN)
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_whole(plan.folder / "config.yaml", to_yaml(plan.config))
    environment = {**describe_environment(), "total_steps": plan.num_steps}
    write_whole(plan.folder / "environment.json", json.dumps(environment, indent=2) + "\n")


def _check_not_foreign(plan: RunPlan, *, resume: bool) -> None:
    names = foreign_names(plan.folder)
    if names and not is_ours(plan.folder, RUN):
        if resume and (plan.folder / "config.yaml").is_file():
            config_from_run(plan.folder)  # says what is wrong with it
        raise ConfigError(
            f"log_dir={plan.config.log_dir} holds files but no run ({told_names(names)}); choose another log_dir"
        )


def _refuse_in_living_sweep(plan: RunPlan) -> None:
    """Leave the trials of a sweep alone while it runs: they are its to write."""
    if is_ours(plan.folder.parent, SWEEP):
        told = f"log_dir={plan.config.log_dir} is a trial of a sweep that"
        refuse_if_held(plan.folder.parent, told, "wait for its end")


def open_data(config: Config) -> DatasetInfo:
    """Open the datasets of a config, all of them checked; make what a generated task lacks."""
    if config.generator is not None:
        _generate(config.generator, config.data_paths)
    hint = config.prepare_command
    splits = ["train"] if config.data_paths_test else ["train", "test"]
    hashes, folders = RowHashes(splits), [*config.data_paths, *config.data_paths_test]
    info = open_datasets(config.data_paths, command_hint=hint, require=splits, hashes=hashes)
    if config.data_paths_test:
        asked = RowHashes(["test"])
        test = open_datasets(config.data_paths_test, command_hint=hint, require=["test"], hashes=asked)
        hashes.join(asked)
        for key in ("seq_len", "vocab_size"):
            if getattr(info, key) != getattr(test, key):
                raise ConfigError(
                    f"data_paths_test={config.data_paths_test} has {key}={getattr(test, key)}, data_paths has "
                    f"{getattr(info, key)}; they must be equal"
                )
        check_same_identifiers({"data_paths": info, "data_paths_test": test})
        named = max(info, test, key=lambda info: info.num_puzzle_identifiers)
        info = replace(info, num_puzzle_identifiers=named.num_puzzle_identifiers, files=named.files)
    hashes.tell_shared(", ".join(folders))
    return info


def _generate(generator: SudokuGenerator, data_paths: list[str]) -> None:
    """Make each missing dataset of a generated task; check those that are there, where that is asked for."""
    from trm_ray.kinds.sudoku.generate import prepare_sudoku

    for path in map(as_path, data_paths):
        if not is_dataset(path):
            _made_once(path, functools.partial(prepare_sudoku, path, **_arguments(generator)))
        elif generator.check_existing and (differing := _differing(generator, path)):
            key, wanted, have = differing[0]
            raise ConfigError(
                f"generator.{key}={wanted} but {path} was made with {key}={have}; set data_paths to a new "
                "folder and it is made, or remove the old one"
            )


def _made_once(path: Path, make: Callable[[], object]) -> None:
    """Make a dataset, or wait for the process that is making it."""
    told = False
    while not is_dataset(path):
        try:
            make()
        except FolderInUse as error:
            if not told:
                logging.getLogger("trm_ray").warning("waiting for the data: %s", error)
            told = True
            time.sleep(_LOOK_EVERY_S)


def _arguments(generator: SudokuGenerator) -> dict[str, Any]:
    return generator.model_dump(exclude={"name", "check_existing"})


def _differing(generator: SudokuGenerator, path: Path) -> list[tuple[str, Any, Any]]:
    """List what the generator wants to be other than it was when a dataset was made: key, wanted, had."""
    info = DatasetInfo.load(path)
    have, wanted = {**info.arguments, "seed": info.seed}, _arguments(generator)
    given = [(key, value, have[key]) for key, value in wanted.items() if value is not None and key in have]
    return [(key, value, had) for key, value, had in given if _plain(value) != _plain(had)]


def _tell_own_data(config: Config) -> None:
    """Say that a dataset is the user's own, where the task's generator would have made another one."""
    if config.generator is None or config.generator.check_existing:
        return
    for path in config.data_paths:
        made_by = DatasetInfo.load(as_path(path)).generator
        differing = [f"{key}={had}, not {wanted}" for key, wanted, had in _differing(config.generator, as_path(path))]
        if made_by != config.generator.name or differing:
            told = f"made by {made_by}" + "".join(f"; {text}" for text in differing)
            logging.getLogger("trm_ray").warning("using data_paths=%s as it is (%s)", path, told)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _check_checkpoint(plan: RunPlan) -> None:
    """Refuse to go on from another run's checkpoint, or with identifiers that name other puzzles than its own.

    With other puzzles vectors would change owners.
    """
    from trm_ray.training.checkpoint import latest_checkpoint, load_identifiers, load_run_config

    latest, now = latest_checkpoint(plan.folder, verified=True), plan.identifiers()
    saved = None if latest is None else load_identifiers(latest)
    if latest is not None and (theirs := load_run_config(latest)) is not None:
        _check_same_run(plan.config, config_from_values(theirs, str(latest)), f"{latest}, which a run saved that")
    if saved not in (None, now.to_bytes()):
        then = PuzzleIdentifiers.from_bytes(saved)
        raise ConfigError(
            f"data_paths={plan.config.data_paths} has {len(now)} puzzle identifiers that are not the {len(then)} which "
            f"{latest} was trained with; prepare the dataset with the same puzzles, seed and augmentations"
        )


def _tell_change_of_workers(plan: RunPlan, before: Config) -> None:
    """Say what differs from here on when a run goes on with another number of workers."""
    from trm_ray.data.stream import fits_in_memory

    now, then = (max(1, config.ray.most_workers) for config in (plan.config, before))
    if now == then or plan.config.ray.is_elastic or before.ray.is_elastic:  # whose number the log tells
        return
    rounding = "the same batches from the same state, so that only the rounding of sums differs"
    order = "the train split is too large for one memory and is dealt out anew, so the order of its puzzles differs"
    told = rounding if fits_in_memory(plan.info, "train") else order
    logging.getLogger("trm_ray").warning("going on with %s instead of %s workers: %s", now, then, told)


def _check_same_run(config: Config, before: Config, place: str | None = None) -> None:
    now, then, place = flat(config), flat(before), place or f"the run in {before.log_dir}, which"
    for key, value in now.items():
        if key not in RESUMABLE_KEYS and not key.startswith("ray.") and value != then.get(key):
            raise ConfigError(
                f"{key}={value} differs from {place} has {key}={then.get(key)}; resume it with that value or choose "
                "another log_dir"
            )


def describe_environment() -> dict[str, Any]:
    """Name the software and hardware that a run's numbers come from."""
    from importlib.metadata import version

    import torch

    packages = ("torch", "ray", "numpy", "pyarrow")
    return {
        "trm_ray": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def execute(
    plan: RunPlan,
    *,
    train: Callable[[], Rows] | Shard,
    test_rows: Rows,
    device: torch.device,
    session_type: Callable[..., Session],
    stop_requested: Callable[[], bool],
) -> dict[str, float]:
    """Train in this process, whatever launched it; return the last evaluation.

    Args:
        train: reads the whole train split, for whoever had passed it on would hold it for the whole run; or where that
            does not fit into memory this worker's shard of it.
        test_rows: the whole test split; each worker takes its share.
        stop_requested: whether this worker was asked to save and stop.

    Raises:
        Interrupted: a worker was asked to.
    """
    import torch

    from trm_ray.data.stream import RowStream, Shard, test_batches
    from trm_ray.kinds.symmetries import symmetry_from
    from trm_ray.training.loop import run_training

    config = plan.config
    torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    rank, world_size = _place()
    symmetry = symmetry_from(plan.info.symmetry, plan.identifiers())
    test_rows = first_puzzles(test_rows, config.eval_max_puzzles)
    stream = RowStream(
        train if isinstance(train, Shard) else train(),
        batch_size=config.global_batch_size,
        seed=config.seed,
        symmetry=symmetry if config.augment else None,
        rank=rank,
        world_size=world_size,
    )
    eval_batch_size = (config.eval_batch_size or config.global_batch_size) // world_size

    def test_tokens() -> Iterator[Any]:
        return test_batches(test_rows, max(1, eval_batch_size), rank, world_size)

    def weights() -> dict[str, Any]:
        return beginning(plan).model

    begin_with = None if config.init_from is None else weights
    identifiers = plan.identifiers().to_bytes()
    with _open_log(plan.folder, rank) as (log_row, sync_log):
        session = session_type(
            plan.folder,
            device,
            stream.batches,
            test_tokens,
            log_row,
            sync_log=sync_log,
            identifiers=identifiers,
            stop_requested=stop_requested,
        )
        return run_training(config, plan.shape, plan.num_steps, session, begin_with)


def beginning(plan: RunPlan) -> InitialWeights:
    """Read the weights that a run with `init_from` begins with.

    Raises:
        ValueError: they are not there or are another network's.
    """
    from trm_ray.interop.checkpoints import initial_weights

    assert plan.config.init_from is not None
    return initial_weights(plan.config.init_from, plan.config, plan.shape, plan.identifiers().to_bytes())


def _place() -> tuple[int, int]:
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def _open_log(folder: Path, rank: int) -> Iterator[tuple[LogRow, Callable[[], None]]]:
    """Open the run's log on rank 0, from the checkpoint on that the run goes on from; yield its `write` and `sync`."""
    from trm_ray.reporting.mirrored_log import open_log
    from trm_ray.training.checkpoint import checkpoint_step, latest_checkpoint

    if rank != 0:
        yield _log_nothing, lambda: None
        return
    latest = latest_checkpoint(folder, verified=True)
    with open_log(folder, None if latest is None else checkpoint_step(latest)) as log:
        yield log.write, log.sync


def train_in_process(plan: RunPlan, session_type: Callable[..., Session] | None = None) -> dict[str, float]:
    """Train without Ray.

    Raises:
        Interrupted: Ctrl-C or another stop signal came, and a checkpoint of the step under way is there, if one was.
    """
    from trm_ray.training.session import Session
    from trm_ray.training.stopping import StopSignals
    from trm_ray.training.threads import num_threads_kept

    with num_threads_kept(), StopSignals() as signals:
        return execute(
            plan,
            train=lambda: read_splits(plan.train_paths, "train"),
            test_rows=read_splits(plan.test_paths, "test"),
            device=choose_device(plan.config),
            session_type=session_type or Session,
            stop_requested=signals.requested,
        )


def check_device(config: Config) -> None:
    """Refuse a GPU that this machine does not have; what Ray's nodes have is for Ray to tell.

    Raises:
        ConfigError: there is none.
    """
    import torch

    if config.device == "cuda" and config.ray.most_workers == 0 and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda needs a GPU, and torch finds none on this machine; use device=auto or device=cpu"
        )


def choose_device(config: Config) -> torch.device:
    """Take the device that the config names, or a GPU if there is one."""
    import torch

    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def start_step(plan: RunPlan) -> int:
    """Say after which step the run goes on: that of its latest checkpoint, else 0."""
    from trm_ray.training.checkpoint import checkpoint_step, latest_checkpoint

    latest = latest_checkpoint(plan.folder, verified=True)
    return 0 if latest is None else checkpoint_step(latest)


def is_finished(plan: RunPlan) -> bool:
    """Tell whether all steps have been taken and the final model is there: nothing is left to do."""
    from trm_ray.training.checkpoint import final_step

    step = start_step(plan)
    return step > plan.num_steps or (step == plan.num_steps and final_step(plan.folder) == step)


def _log_nothing(step: int, wall_s: float, metrics: Mapping[str, float]) -> None:
    """Stand in for the log where there is nothing to be logged."""
