"""Every key of a run, and how the keys must fit together."""

# ruff: noqa: RUF012  # pydantic copies defaults
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, PrivateAttr, field_validator, model_validator

from trm_ray.config.errors import OneOf, show
from trm_ray.config.keys import (
    Address,
    Count,
    CountOrNull,
    Decay,
    Depth,
    Folder,
    FolderOrNull,
    Folders,
    Name,
    NonNegative,
    Positive,
    PositiveNumber,
    PositiveNumberOrNull,
    PositiveOrNull,
    Seed,
    Settings,
    Share,
    SourceOrNull,
    StagesOrNull,
    TextOrNull,
    WeightsOrNull,
    Workers,
    check_address,
    flatten,
    section_of,
)
from trm_ray.config.schedules import SCHEDULES
from trm_ray.storage import as_path, join

Schedule = Annotated[str, OneOf(SCHEDULES)]
LossType = Literal["softmax_cross_entropy", "stablemax_cross_entropy", "stablemax_cross_entropy_float64"]


class ArchConfig(Settings):
    """Shape the model (`arch.*`)."""

    H_cycles: Positive = 3  # answer updates in a segment
    L_cycles: Count = 6  # latent updates before each answer update; 0 = none, the question goes into the answer's
    L_layers: Positive = 2  # blocks of the network that makes both updates
    hidden_size: Positive = 512  # width of the answer, the latent and the question at each position
    num_heads: Positive = 8  # attention's; the MLP mixer has none
    expansion: PositiveNumber = 4.0  # inner width of a feed-forward, as a multiple of its input
    ffn_multiple_of: Positive = 256  # the feed-forward width is rounded up to a multiple of it
    mixer: Literal["attention", "mlp"] = "attention"  # what mixes positions; mlp is for boards of one size
    mixer_norm: Literal["positions", "features"] = "positions"  # axis of the MLP mixer's norm; positions = the original
    pos_encodings: Literal["rope", "learned", "none"] = "rope"  # none goes with the MLP mixer
    rope_theta: PositiveNumber = 10000.0  # base of the rotary frequencies, with pos_encodings: rope
    rms_norm_eps: PositiveNumber = 1e-5  # added to the mean square before its root
    norm: Literal["post", "pre"] = "post"  # post = after each part, the original; pre = before, and at the stack's end
    causal: bool = False  # for text: no position sees a later one, tokens weigh alike, and nothing learns to halt
    document_mask: bool = True  # with causal: no document sees another; false = the faster attention, without a mask
    embedding_size: PositiveOrNull = None  # width of the token embedding, then projected; null = hidden_size
    pretrained_embeddings: TextOrNull = None  # FILE.safetensors[:TENSOR] to begin the token embedding with
    freeze_embeddings: bool = False  # leave pretrained_embeddings as they are
    tied_embeddings: bool = False  # the token embedding reads the answer too, in place of a head of its own
    puzzle_emb_ndim: Count = 0  # size of the vector that is learned for every puzzle identifier; 0 = none
    puzzle_emb_len: Count = 16  # positions that it takes before the board; 0 = as many as it fills
    residual_init_scale: NonNegative = 1.0  # of what each block adds: 1.0 = the original; 0.1 lets tiny models start
    halt_max_steps: Positive = 16  # most segments that a puzzle gets; with causal all get so many, 1 if not given
    halt_exploration_prob: Share = 0.1  # share of puzzles that must get a number of segments drawn at random
    forward_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations; weights are float32

    @model_validator(mode="before")
    @classmethod
    def _one_segment_of_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("causal") is True:
            return {"halt_max_steps": 1, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> ArchConfig:
        _check_text(self)
        _check_embeddings(self)
        room = self.puzzle_emb_len * self.hidden_size
        if self.puzzle_emb_len and self.puzzle_emb_ndim > room:
            rule = f"must be at most arch.puzzle_emb_len·arch.hidden_size={room}"
            raise ValueError(f"arch.puzzle_emb_ndim={self.puzzle_emb_ndim} {rule}; use arch.puzzle_emb_len=0")
        if self.mixer == "mlp" and self.pos_encodings == "rope":
            raise ValueError("arch.pos_encodings=rope must not go with arch.mixer=mlp; use arch.pos_encodings=none")
        rope = self.pos_encodings == "rope"  # which turns pairs: an even number of channels a head
        width, heads, unit = self.hidden_size, self.num_heads, self.num_heads * (2 if rope else 1)
        if self.mixer == "attention" and width % unit:
            rule = f"must be divisible by {'twice ' if rope else ''}arch.num_heads={heads}"
            raise ValueError(f"arch.hidden_size={width} {rule}; use {_multiples_near(width, unit)}")
        return self

    @property
    def prefix_len(self) -> int:
        """Count the positions before the board, which hold the puzzle's embedding."""
        if self.puzzle_emb_ndim == 0:
            return 0
        return self.puzzle_emb_len or -(-self.puzzle_emb_ndim // self.hidden_size)


def _check_text(arch: ArchConfig) -> None:
    if arch.mixer == "mlp" and (arch.causal or arch.norm == "pre"):
        given = "arch.causal=true" if arch.causal else "arch.norm=pre"
        why = "mixes every position with all others" if arch.causal else "has a norm of its own"
        raise ValueError(f"{given} must not go with arch.mixer=mlp, which {why}; use arch.mixer=attention")
    if not arch.causal:
        return
    if arch.pos_encodings != "rope":
        why = "a text's rows begin anywhere in a document, so that a position in the row means nothing"
        raise ValueError(f"arch.pos_encodings={arch.pos_encodings} must be rope with arch.causal=true: {why}")
    if arch.puzzle_emb_ndim:
        rule = "must be 0 with arch.causal=true: rows of a text are no puzzles with names of their own"
        raise ValueError(f"arch.puzzle_emb_ndim={arch.puzzle_emb_ndim} {rule}")


def _check_embeddings(arch: ArchConfig) -> None:
    width = arch.embedding_size
    if arch.tied_embeddings and width not in (None, arch.hidden_size):
        rule = f"must not go with arch.embedding_size={width}, which cannot read an answer of {arch.hidden_size}"
        raise ValueError(f"arch.tied_embeddings=true {rule}; set one of them")
    if arch.freeze_embeddings and arch.pretrained_embeddings is None:
        raise ValueError("arch.freeze_embeddings=true needs arch.pretrained_embeddings, which is null; name a file")


class RayConfig(Settings):
    """Say where a run computes and stores (`ray.*`)."""

    num_workers: Workers = 1  # 0 = without Ray; [FEWEST, MOST] = as many as there is room for, now and later
    use_gpu: bool = False  # a GPU, or a share of one, for each worker
    cpus_per_worker: PositiveNumber = 1.0  # CPUs that Ray reserves for each
    gpus_per_worker: PositiveNumberOrNull = None  # null = 1, or a share of gpus_per_trial; counts only with use_gpu
    gpus_per_trial: PositiveNumberOrNull = None  # of all workers of a run together; 0.2 = five trials share a GPU
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"  # of workers over nodes
    resize_check_s: PositiveNumber = 60.0  # how often a run of [FEWEST, MOST] workers looks for room for more
    storage_path: FolderOrNull = None  # what a relative log_dir lies below; null = the working directory
    max_failures: CountOrNull = None  # times that lost workers or nodes are replaced; null = 0, with a range 10
    start_timeout_s: PositiveNumber = 600.0  # how long workers may take to start once there is room for them
    address: Address = None  # the cluster to join; null = RAY_ADDRESS, else a cluster started for this run

    @field_validator("address")
    @classmethod
    def _check_address(cls, address: str | None) -> str | None:
        if address is not None:
            check_address("ray.address", address)
        return address

    @model_validator(mode="after")
    def _check(self) -> RayConfig:
        if self.gpus_per_trial is not None:
            _check_shared_gpus(self)
        amount, each = self.gpus_of_worker, f"ray.num_workers={show(self.num_workers)}"
        if amount > 1 and not amount.is_integer():
            raise ValueError(f"{self.gpus_told} gives a worker {amount:g} GPUs, and above 1 it takes whole ones")
        if self.use_gpu and amount < 1 and self.most_workers > 1:
            why = "workers that share one cannot exchange gradients; use ray.num_workers=1, or whole GPUs"
            raise ValueError(f"{self.gpus_told} with {each} leaves a worker {amount:g} of a GPU, and {why}")
        return self

    @property
    def fewest_workers(self) -> int:
        """Workers that a run needs to begin; 0 without Ray."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that a run can use; 0 without Ray."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while a run trains."""
        return self.fewest_workers < self.most_workers

    @property
    def failures_allowed(self) -> int:
        """How often workers are started anew after some were lost."""
        return self.max_failures if self.max_failures is not None else 10 if self.is_elastic else 0

    @property
    def gpus_of_worker(self) -> float:
        """GPUs that one worker takes where `use_gpu` is on."""
        if self.gpus_per_trial is None:
            return self.gpus_per_worker or 1.0
        return math.floor(1e4 * self.gpus_per_trial / max(1, self.most_workers)) / 1e4  # Ray's steps

    @property
    def gpus_told(self) -> str:
        """The key, with its value, that says how many GPUs a worker takes."""
        if self.gpus_per_trial is None:
            return f"ray.gpus_per_worker={self.gpus_of_worker:g}"
        return f"ray.gpus_per_trial={self.gpus_per_trial:g}"


def _check_shared_gpus(ray: RayConfig) -> None:
    share = f"ray.gpus_per_trial={ray.gpus_per_trial:g}"
    if ray.gpus_per_worker is not None:
        raise ValueError(f"{share} must not stand beside ray.gpus_per_worker={ray.gpus_per_worker:g}; set one to null")
    if not ray.use_gpu:
        raise ValueError(f"{share} needs ray.use_gpu=true, which is false; set it, or leave both")
    if ray.is_elastic:
        workers = f"ray.num_workers={show(ray.num_workers)}"
        raise ValueError(f"{share} cannot be divided among {workers}; use ray.gpus_per_worker")
    if ray.gpus_of_worker == 0:
        raise ValueError(f"{share} leaves a worker less than 0.0001 of a GPU, Ray's least; use more")


class Generator(Settings):
    """Make the dataset of a task when it is missing (`generator.*`); the kind of puzzle knows the other keys."""

    model_config = ConfigDict(extra="allow")

    name: Name = "sudoku"  # the kind of puzzle
    # Refuse a dataset that was made with other arguments. When loading, false for a folder that is named without any
    # other generator.*: it is the user's own, and the generator is there in case it is missing.
    check_existing: bool = True
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def model_post_init(self, origins: Mapping[str, str] | None) -> None:
        """Keep where keys were read: their kind is asked later than the config."""
        self._origins.update(origins or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Generator) and dict(self) == dict(other)  # wherever they were read

    def origin(self, key: str) -> str:
        """Say where a key was read (`file:line`); empty when no file says it."""
        return self._origins.get(f"generator.{key}", "")


class Config(Settings):
    """Hold everything that one run needs to know."""

    config_name: Name = "run"  # the scenario file's name
    task: TextOrNull = None  # names configs/task/NAME.yaml

    data_paths: Folders = []  # dataset folders to train on, of one kind and size
    data_paths_test: Folders = []  # folders to evaluate on; empty = those of data_paths, their test split
    generator: Generator | None = None  # null = the dataset must be there
    # Train splits up to this size, as int32 tokens, every worker holds in memory. Of larger ones it reads chunks of an
    # eighth of this, which are shuffled one by one.
    data_memory_gib: PositiveNumber = 2.0
    augment: bool = True  # draw the dataset's symmetries while training
    prepare_command: TextOrNull = None  # told to whoever lacks the dataset

    global_batch_size: Positive = 768  # puzzles in a segment, over all workers
    segments_per_update: Positive = 1  # segments, each with a batch, whose mean gradient makes one update: a step
    epochs: PositiveOrNull = None  # passes over the puzzles; null = until max_steps
    max_steps: PositiveOrNull = None  # most optimizer steps; null = as many as the epochs have
    max_flops: PositiveNumberOrNull = None  # most operations of all steps (train/flops); null = no bound
    eval_interval: Positive = 1000  # steps between evaluations, of which the last step always has one
    eval_batch_size: PositiveOrNull = None  # puzzles at once in an evaluation; null = global_batch_size
    eval_max_puzzles: PositiveOrNull = None  # evaluate on the first of the test split; null = all
    eval_quick_puzzles: PositiveOrNull = None  # the first of those before the last step; null = as at the last
    checkpoint_every_eval: bool = True  # save after each evaluation; false = only at the end and when stopped
    keep_last: PositiveOrNull = None  # checkpoints that stay, the latest; null = all
    keep_best: Count = 0  # more that stay: those with the lowest eval/loss
    init_from: SourceOrNull = None  # a run, checkpoint or file whose weights to begin with

    lr: PositiveNumber = 1e-4  # learning rate after the warm-up
    lr_min_ratio: Share = 1.0  # share of lr that the cosine ends at; 1.0 = constant
    lr_warmup_steps: Count = 2000  # steps in which the rate rises from 0
    beta1: Decay = 0.9  # decay of the optimizer's mean of gradients
    beta2: Decay = 0.95  # decay of its mean of squares
    weight_decay: NonNegative = 0.1  # decoupled, of all weights but the puzzle embeddings
    grad_clip_norm: PositiveNumberOrNull = 1.0  # largest norm of all gradients together; null = no clipping
    optimizer: Literal["adamw", "adam_atan2"] = "adamw"  # AdamW, or the original's Adam-atan2, which needs no clipping
    loss_type: LossType = "softmax_cross_entropy"  # of each cell; stablemax is the original's, there in float64
    puzzle_emb_lr: PositiveNumber = 1e-2  # sign-SGD's, on the rows of the batch; warmed up and decayed as lr
    puzzle_emb_weight_decay: NonNegative = 0.1  # of the rows of the batch
    freeze_weights: bool = False  # learn the puzzle embeddings alone
    ema: bool = False  # evaluate, predict and export averaged weights
    ema_rate: Decay = 0.999  # share of the average that stays at each step
    seed: Seed = 0  # of weights, puzzles' order, augmentations and halting

    deep_supervision_enabled: bool = True  # supervise every H-cycle; false = the last alone, the baseline
    deep_supervision_weight: Share = 0.5  # w, the base weight of the cycles before the last: 0.3 is light, 0.7 strong
    # w times which factor cycle i of N weighs, in their order: 1; (i+1)/N; 2^i/2^(N−1); 0.7^i; 1 for cycle N−2, else 0;
    # 1 for cycle 0, else 0
    deep_supervision_schedule: Schedule = "linear_decay"
    # One's own weights of the H-cycles, divided by the last, so that it weighs 1 as everywhere. They take the place of
    # w and the schedule, which then count for nothing. null = w and the schedule
    deep_supervision_weights: WeightsOrNull = None
    # Through how many of a segment's last H-cycles the gradient runs; all = every one, and those before it weigh
    # nothing. null = all if an earlier cycle is supervised, else 1.
    recurrent_grad_depth: Depth = None
    detach_cycles: bool = False  # each cycle's gradient ends where the cycle began: a backward pass and memory of one
    curriculum_enabled: bool = False  # let w, or the weights of one's own, grow from 0
    curriculum_start_step: Count = 1000  # last step, counted from 0, at which w is 0
    curriculum_end_step: Positive = 10000  # first step, counted from 0, at which w is whole

    # H_cycles and L_cycles that grow in stages, each from a share of the steps on. The last must come to those of arch,
    # which null stands for; evaluations always have these. null = the same at all steps
    depth_curriculum: StagesOrNull = None

    log_per_step_losses: bool = True  # log each H-cycle's loss
    compute_gradient_stats: bool = False  # log the gradient norms of each H-cycle's loss, at a backward pass each
    gradient_stats_interval: Positive = 500  # steps between two of them
    log_interval: Positive = 100  # steps between two rows of the log
    log_dir: Folder = "runs/run"  # filled in when loading: runs/CONFIG_NAME
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = a GPU where there is one
    # Recompute H-cycles in the backward pass: less memory for more time, and the same numbers; auto = where the
    # device has too little free memory when the run begins.
    checkpoint_cycles: Literal["auto", True, False] = False
    compile: Literal["auto", True, False] = "auto"  # each step's segment into one graph; auto = on a GPU

    arch: ArchConfig = ArchConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        _check_data_and_length(self)
        _check_curriculum(self)
        _check_weights(self)
        _check_gradients(self)
        _check_depths(self)
        _check_workers(self)
        if self.keep_best and self.keep_last is None:
            raise ValueError(f"keep_best={self.keep_best} needs keep_last, which is null: all stay; use keep_last=2")
        if self.freeze_weights and self.arch.puzzle_emb_ndim == 0:
            raise ValueError("freeze_weights=true leaves nothing to learn with arch.puzzle_emb_ndim=0; set one of them")
        return self

    @property
    def depths(self) -> list[tuple[float, int, int]]:
        """The stages of the depth curriculum, numbers throughout; none without one."""
        arch = self.arch
        return [(share, H or arch.H_cycles, L or arch.L_cycles) for share, H, L in self.depth_curriculum or ()]

    @property
    def train_folders(self) -> list[Path]:
        """Folders of the datasets to train on."""
        return [as_path(text) for text in self.data_paths]

    @property
    def test_folders(self) -> list[Path]:
        """Folders of the datasets to evaluate on."""
        return [as_path(text) for text in self.data_paths_test or self.data_paths]


def _check_data_and_length(config: Config) -> None:
    if not config.data_paths:
        raise ValueError("data_paths=[] must name a dataset folder; use data_paths=FOLDER or task=sudoku6")
    if config.epochs is None and config.max_steps is None:
        raise ValueError("max_steps=null must be given when epochs=null; use e.g. max_steps=800 or epochs=10")


def _check_curriculum(config: Config) -> None:
    start, end = config.curriculum_start_step, config.curriculum_end_step
    if config.curriculum_enabled and start >= end:
        rule = f"must be less than curriculum_end_step={end}"
        raise ValueError(f"curriculum_start_step={start} {rule}; use curriculum_end_step={start + 1} or more")
    if config.curriculum_enabled and not config.deep_supervision_enabled:
        raise ValueError("curriculum_enabled=true needs deep_supervision_enabled=true; set it, or leave both")


def _check_weights(config: Config) -> None:
    weights, cycles = config.deep_supervision_weights, config.arch.H_cycles
    if weights is None:
        return
    given = f"deep_supervision_weights={show(weights)}"
    if len(weights) != cycles:
        way_out = f"write {cycles} of them, or use arch.H_cycles={len(weights)}"
        raise ValueError(f"{given} must have one number for each of arch.H_cycles={cycles}; {way_out}")
    if not config.deep_supervision_enabled:
        raise ValueError(f"{given} needs deep_supervision_enabled=true; set it, or leave both")


def _check_gradients(config: Config) -> None:
    depth, most = config.recurrent_grad_depth, config.arch.H_cycles
    if isinstance(depth, int) and depth > most:
        rule = f"must be at most arch.H_cycles={most}, the cycles that there are"
        raise ValueError(f"recurrent_grad_depth={depth} {rule}; use {most} or less, or all")
    if config.detach_cycles and not config.deep_supervision_enabled:
        raise ValueError("detach_cycles=true needs deep_supervision_enabled=true; set it, or leave both")
    if config.detach_cycles and depth is not None:
        why = "must be null with detach_cycles=true, where a gradient runs through one cycle"
        raise ValueError(f"recurrent_grad_depth={depth} {why}; set one of them")


def _check_depths(config: Config) -> None:
    stages, arch = config.depths, config.arch
    if not stages:
        return
    given = f"depth_curriculum={show(config.depth_curriculum)}"
    if stages[-1][1:] != (arch.H_cycles, arch.L_cycles):
        whole = f"arch.H_cycles={arch.H_cycles} and arch.L_cycles={arch.L_cycles}"
        raise ValueError(f"{given} must end with {whole}; use [{stages[-1][0]:g}, null, null] as its last")
    for (_, *before), (share, *after) in itertools.pairwise(stages):
        if any(less < more for less, more in zip(after, before, strict=True)):
            rule = f"must not become shallower, and does at {share:g} from {before} to {after}"
            raise ValueError(f"{given} {rule}; let both numbers grow or stay")
    if config.deep_supervision_weights is not None:
        own = f"deep_supervision_weights={show(config.deep_supervision_weights)}"
        rule = f"must not stand beside {own}, which are for arch.H_cycles={arch.H_cycles} cycles at all steps"
        raise ValueError(f"{given} {rule}; use deep_supervision_schedule")


def _check_workers(config: Config) -> None:
    batch, workers = config.global_batch_size, max(config.ray.most_workers, 1)
    if config.ray.is_elastic and batch < workers:
        rule = f"must be at least as many as ray.num_workers={show(config.ray.num_workers)} names"
        raise ValueError(f"global_batch_size={batch} {rule}; use {workers} or more, or fewer workers")
    if batch % workers and not config.ray.is_elastic:
        rule = f"must be divisible by ray.num_workers={workers}"
        raise ValueError(f"global_batch_size={batch} {rule}; use {_multiples_near(batch, workers)}")
    if config.device == "cpu" and config.ray.use_gpu:
        raise ValueError("ray.use_gpu=true must not go with device=cpu; use device=auto or ray.use_gpu=false")
    if config.device == "cuda" and config.ray.most_workers and not config.ray.use_gpu:
        raise ValueError("device=cuda needs ray.use_gpu=true, else Ray hides the GPU; or use ray.num_workers=0")


def _multiples_near(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else str(divisor)


def known_keys(model: type[Settings] = Config) -> tuple[str, ...]:
    """List every key with its section, as the command line takes it."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = section_of(field)
        keys += [f"{name}.{key}" for key in section.model_fields] if section else [name]
    return tuple(keys)


def defaults(model: type[Settings] = Config) -> dict[str, Any]:
    """Return the value of every key that nobody sets, by dotted key."""
    flat: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        section = section_of(field)
        of_it = defaults(section) if section and field.default is not None else None
        flat |= {name: field.default} if of_it is None else {f"{name}.{key}": value for key, value in of_it.items()}
    return flat


def is_of_kind(key: str) -> bool:
    """Tell a key that its kind of puzzle knows, and no config: of `generator.*` all but those here."""
    return key.startswith("generator.") and key not in known_keys()


def flat(config: Config) -> dict[str, Any]:
    """Return all values by dotted key, in the order of the config."""
    return flatten(config.model_dump(mode="json"))


def run_dir(config: Config) -> Path:
    """Return the run's folder as an absolute path: `log_dir`, below `ray.storage_path` when that is given."""
    return join(config.ray.storage_path, config.log_dir)


def schedule_words(config: Config) -> str:
    """Name the schedule of a run, or the weights that stand in its place."""
    own = config.deep_supervision_weights
    return config.deep_supervision_schedule if own is None else show(own)


def banner(config: Config, overrides: Sequence[str] = ()) -> str:
    """Return lines to print before training: how cycles are supervised, on which task, and what was overridden."""
    told = ["deep_supervision_enabled"]
    if config.deep_supervision_weights is not None:
        told += ["deep_supervision_weights"]
    elif config.deep_supervision_enabled:
        told += ["deep_supervision_weight", "deep_supervision_schedule"]
    told += ["recurrent_grad_depth"] if config.recurrent_grad_depth is not None else []
    told += ["detach_cycles"] if config.detach_cycles else []
    told += ["depth_curriculum"] if config.depth_curriculum else []
    told += ["curriculum_start_step", "curriculum_end_step"] if config.curriculum_enabled else []
    told += ["config_name", "task", *(word.partition("=")[0] for word in overrides)]
    values = flat(config)
    keys = [key for name in told for key in values if f"{key}.".startswith(f"{name}.")]  # of a section all
    lines = [f"{key}: {values[key]}" for key in dict.fromkeys(keys)]
    return "\n".join(["Training Configuration", "=" * 80, *lines])
