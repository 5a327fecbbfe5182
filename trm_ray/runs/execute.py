"""A run's training in this process, whoever launched it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from trm_ray.config import Config, flat
from trm_ray.data.format import DatasetInfo, read_splits, read_token_bytes
from trm_ray.data.rows import Rows, first_puzzles
from trm_ray.data.stored import InOrder, StoredSplit
from trm_ray.data.stream import RowStream, test_batches
from trm_ray.interop.checkpoints import InitialWeights, initial_weights
from trm_ray.interop.pretrained import token_embedding
from trm_ray.kinds.registry import symmetry_from
from trm_ray.reporting.board import Material, identity_of
from trm_ray.reporting.mirrored_log import open_log
from trm_ray.runs.plan import RunPlan
from trm_ray.storage import as_path
from trm_ray.training.checkpoint import checkpoint_step
from trm_ray.training.loop import run_training
from trm_ray.training.session import LogRow, Session, place
from trm_ray.training.state import build_model
from trm_ray.training.stopping import StopSignals
from trm_ray.training.text import TextMeasure


def execute(
    plan: RunPlan,
    latest: Path | None,
    *,
    read_train: Callable[[], Rows],
    in_order: InOrder = map,
    test_rows: Rows,
    device: torch.device,
    session_type: Callable[..., Session],
    stop_requested: Callable[[], bool],
) -> dict[str, float]:
    """Train in this process, whatever launched it; return the last evaluation.

    Args:
        latest: the checkpoint to go on from, which rank 0 has looked for; None begins anew.
        read_train: reads the train split if it is to be held in memory. It is not passed on itself, for whoever did
            would hold it for the whole run.
        in_order: reads the chunks of a train split that does not fit into memory.
        test_rows: the whole test split; each worker takes its share.
        stop_requested: whether this worker was asked to save and stop.

    Raises:
        Interrupted: a worker was asked to.
    """
    config, identifiers = plan.config, plan.identifiers()
    torch.set_num_threads(max(1, int(config.ray.cpus_per_worker)))
    if device.type == "cuda":  # this process may have trained another run before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    rank, world_size = place()
    symmetry = symmetry_from(plan.info.symmetry, identifiers)
    test_rows = first_puzzles(test_rows, config.eval_max_puzzles)
    quick_rows = first_puzzles(test_rows, config.eval_quick_puzzles)
    stream = RowStream(
        read_train() if plan.holds_train else stored_train(plan, in_order),
        batch_size=config.global_batch_size,
        seed=config.seed,
        symmetry=symmetry if config.augment else None,
        rank=rank,
        world_size=world_size,
    )
    eval_batch_size = max(1, (config.eval_batch_size or config.global_batch_size) // world_size)
    begin_with = (
        functools.partial(_first_weights, plan) if config.init_from or config.arch.pretrained_embeddings else None
    )
    with _open_log(plan, rank, latest) as (log_row, sync_log):
        session = session_type(
            plan.folder,
            device,
            stream.batches,
            lambda whole: test_batches(test_rows if whole else quick_rows, eval_batch_size, rank, world_size),
            log_row,
            sync_log=sync_log,
            identifiers=identifiers.to_bytes(),
            tokenizer=plan.tokenizer(),
            stop_requested=stop_requested,
            latest=latest,
            text=text_measure(plan.test_paths) if config.arch.causal else None,
        )
        return run_training(config, plan.shape, plan.num_steps, session, begin_with)


def text_measure(folders: Sequence[Path]) -> TextMeasure | None:
    """Read how the test split of datasets is measured where it is a text; the yardsticks of one are not of several.

    Raises:
        DatasetError: it does not say how many bytes its tokens stand for.
    """
    info = DatasetInfo.load(folders[0])
    if info.text is None:
        return None
    found = {"unigram": info.text.unigram_bits_per_byte, "xz": info.text.xz_bits_per_byte} if len(folders) == 1 else {}
    return TextMeasure(
        torch.from_numpy(read_token_bytes(folders[0], info)),
        whole_rows=info.text.packing == "prompt",
        yardsticks={name: value for name, value in found.items() if value is not None},
    )


def stored_train(plan: RunPlan, in_order: InOrder = map) -> StoredSplit:
    """Find the train split of a run that does not hold it in memory."""
    return StoredSplit.of(plan.train_paths, "train", memory_gib=plan.config.data_memory_gib, in_order=in_order)


def beginning(plan: RunPlan) -> InitialWeights:
    """Read the weights that a run with `init_from` begins with.

    Raises:
        ValueError: they are not there or are another network's.
    """
    assert plan.config.init_from is not None
    source, identifiers = as_path(plan.config.init_from), plan.identifiers().to_bytes()
    return initial_weights(source, plan.config, plan.shape, identifiers, plan.tokenizer())


def _first_weights(plan: RunPlan) -> dict[str, Tensor]:
    """Take the weights of `init_from`, or those drawn from the seed with a token embedding from a file."""
    if plan.config.init_from is not None:
        return beginning(plan).model
    drawn = build_model(plan.config, plan.shape).state_dict()
    return {**drawn, "embed_tokens": token_embedding(plan.config.arch, plan.shape)}


@contextmanager
def _open_log(plan: RunPlan, rank: int, latest: Path | None) -> Iterator[tuple[LogRow, Callable[[], None]]]:
    """Open the run's log on rank 0, from the checkpoint on that the run goes on from; yield its `write` and `sync`."""
    if rank != 0:
        yield lambda *row: None, lambda: None
        return
    text = plan.info.text
    material: Material = "puzzles" if text is None else "text" if text.packing == "running" else "prompts"
    identity = identity_of(plan.folder, flat(plan.config), material)
    with open_log(plan.folder, None if latest is None else checkpoint_step(latest), identity) as log:
        yield log.write, log.sync


def train_in_process(
    plan: RunPlan, latest: Path | None = None, session_type: Callable[..., Session] = Session
) -> dict[str, float]:
    """Train without Ray, on from the checkpoint that `claim_folder` has found, if there is one.

    Raises:
        Interrupted: Ctrl-C or another stop signal came, and a checkpoint of the step under way is there, if one was.
    """
    with num_threads_kept(), StopSignals() as signals:
        return execute(
            plan,
            latest,
            read_train=lambda: read_splits(plan.train_paths, "train"),
            test_rows=read_splits(plan.test_paths, "test"),
            device=choose_device(plan.config),
            session_type=session_type,
            stop_requested=signals.requested,
        )


@contextmanager
def num_threads_kept() -> Iterator[None]:
    """Have torch compute with as many threads afterwards as before: their number belongs to the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(config: Config) -> torch.device:
    """Take the device that the config names, or a GPU if there is one."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)
