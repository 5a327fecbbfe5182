"""What a run is, decided and checked before anything is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trm_ray.config import Config, ConfigError, run_dir, with_overrides
from trm_ray.config.surroundings import LOCAL, check_surroundings, cluster_address
from trm_ray.data.format import DatasetInfo, read_identifiers, read_tokenizer
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.stream import fits_in_memory
from trm_ray.runs.data import complete, open_data, tell_own_data
from trm_ray.storage import as_path, resolved

if TYPE_CHECKING:
    from trm_ray.training.state import TokenShape


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
        return shape_of(self.info)

    @property
    def holds_train(self) -> bool:
        """Whether every worker holds the train split in memory.

        Raises:
            DatasetError: it is too large for that, and must be.
        """
        return fits_in_memory(self.info, "train", self.config.data_memory_gib)

    def identifiers(self) -> PuzzleIdentifiers:
        """Read what the puzzle identifiers stand for."""
        return read_identifiers(*self.train_paths, *self.test_paths)

    def tokenizer(self) -> bytes | None:
        """Read the tokenizer.json that spells a text; None for bytes, and where the data is no text."""
        return read_tokenizer(self.train_paths[0])

    def vary(self, config: Config, folder: Path) -> RunPlan:
        """Plan another run on the same data."""
        config = _with_absolute_paths(complete(config))
        return replace(self, config=config, folder=folder, num_steps=count_steps(config, self.info))


def plan_run(config: Config) -> RunPlan:
    """Check a run's data and config; nothing is written, so `make_missing` comes first where a task makes its data.

    Raises:
        ValueError: the data is missing or bad, the config leaves nothing to train, or Ray could not start here.
        ConnectionError: the cluster to join does not answer.
    """
    folder = resolved(run_dir(config))
    check_machine(config)
    info, config = open_data(config), _with_absolute_paths(complete(config))
    _check_embeddings(config, info)
    tell_own_data(config)
    train, test = (tuple(path.resolve() for path in of) for of in (config.train_folders, config.test_folders))
    return RunPlan(config, folder, train, test, info, count_steps(config, info))


def _with_absolute_paths(config: Config) -> Config:
    """Name files so that workers find them, who have working directories of their own."""
    named = {"init_from": config.init_from, "arch.pretrained_embeddings": config.arch.pretrained_embeddings}
    absolute = {key: str(as_path(file).resolve()) for key, file in named.items() if file is not None}
    return with_overrides(config, absolute) if absolute else config


def shape_of(info: DatasetInfo) -> TokenShape:
    """Say what a model needs to know of a dataset."""
    from trm_ray.training.state import TokenShape

    separator = None if info.text is None else info.text.separator
    return TokenShape(info.seq_len, info.vocab_size, info.num_puzzle_identifiers, separator)


def _check_embeddings(config: Config, info: DatasetInfo) -> None:
    """Refuse what the model could not be built of."""
    from trm_ray.interop.pretrained import token_embedding
    from trm_ray.training.state import check_text

    check_text(config.arch, shape_of(info))
    if config.arch.pretrained_embeddings is not None:
        token_embedding(config.arch, shape_of(info))


def count_steps(config: Config, info: DatasetInfo) -> int:
    """Count the optimizer steps of a run on a dataset, no more than `max_flops` pays for."""
    from trm_ray.training.flops import affordable_steps
    from trm_ray.training.state import total_steps

    train = info.split("train")
    num_steps = total_steps(config, train.groups, train.mean_puzzle_examples)
    return num_steps if config.max_flops is None else affordable_steps(config, shape_of(info), num_steps)


def check_machine(config: Config) -> None:
    """Refuse what cannot train here, before anything is made for it.

    Raises:
        ConfigError: this machine has no GPU (what a cluster's nodes have is for Ray to tell), or Ray could not start.
        ConnectionError: the cluster to join does not answer.
    """
    import torch

    if config.device == "cuda" and config.ray.most_workers == 0 and not torch.cuda.is_available():
        rule = "needs a GPU, and torch finds none on this machine; use device=auto or device=cpu"
        raise ConfigError(f"device=cuda {rule}")
    if config.ray.most_workers:
        check_surroundings(config.ray.address)
    if config.ray.use_gpu and _starts_ray_here(config) and not torch.cuda.device_count():
        way_out = "use ray.use_gpu=false, or ray.address of a cluster that has some"
        raise ConfigError(f"ray.use_gpu=true needs a GPU, and torch finds none on this machine; {way_out}")


def _starts_ray_here(config: Config) -> bool:
    """Tell whether a run's Ray will be of this machine alone; a caller's session, where there is one, may not be."""
    ray = sys.modules.get("ray")
    in_session = ray is not None and ray.is_initialized()
    return config.ray.most_workers > 0 and cluster_address(config.ray.address) == LOCAL and not in_session
