"""What a config's schedule weighs and costs, worked out without training, data or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trm_ray.config import Config, SweepConfig
from trm_ray.config.errors import show
from trm_ray.data.rows import DatasetError
from trm_ray.measure.budget import Infos, described, planned
from trm_ray.reporting.numbers.schedules import Phase, ScheduleView
from trm_ray.runs.data import complete, complete_trials
from trm_ray.runs.plan import count_steps, shape_of

if TYPE_CHECKING:
    from trm_ray.model.gradient_path import GradientPath
    from trm_ray.training.state import TokenShape
    from trm_ray.training.supervision import Supervision

_POINTS = 33  # at which a ramp is looked at


def schedule_views(names: Sequence[str], overrides: Sequence[str]) -> list[ScheduleView]:
    """Work out the schedules of scenarios, and of the scenarios and variants of sweeps.

    Raises:
        ValueError: there is no such scenario or sweep, or a key does not fit.
    """
    named = [one for name in names for one in _configs(planned(name, overrides))]
    infos = Infos()
    return [schedule_view(config, label, infos) for label, config in named]


def _configs(asked: SweepConfig | Config) -> Iterator[tuple[str, Config]]:
    """Yield each config once, whatever its seeds, with a name that tells it apart."""
    if isinstance(asked, Config):
        yield _short(asked), complete(asked)
        return
    for variant, config in zip(asked.variants(), complete_trials(asked), strict=True):
        if config.seed == asked.seeds[0]:
            apart = [f"{key.removeprefix('deep_supervision_')}={show(variant[key])}" for key in [*variant][2:]]
            yield " · ".join([_short(config), *apart]), config


def _short(config: Config) -> str:
    return config.config_name.removeprefix("deep_supervision_")


def schedule_view(config: Config, name: str, infos: Infos) -> ScheduleView:
    """Work out one config's schedule."""
    from trm_ray.training.state import build_supervision

    tokens, num_steps, notes = _sizes(config, infos)
    supervision = build_supervision(config, num_steps)
    phases = tuple(_phase(config, supervision, tokens, *part) for part in _parts(supervision, num_steps))
    return ScheduleView(name, num_steps, phases, notes)


def _sizes(config: Config, infos: Infos) -> tuple[TokenShape | None, int, tuple[str, ...]]:
    """Find the shape of the data and the number of steps, as far as either is known without the data."""
    generator = config.generator
    try:  # what is made as asked need not be read
        info = described(generator, config) if generator and generator.check_existing else infos.of(config)
    except DatasetError:
        num_steps = config.max_steps or 2 * config.curriculum_end_step
        instead = "" if config.max_steps else f", drawn over {num_steps:,} steps instead of {config.epochs} epochs"
        notes = f"the data of {config.task or show(config.data_paths)} are not there: costs leave the head out{instead}"
        return None, num_steps, (notes,)
    return shape_of(info), count_steps(config, info), ()


def _parts(supervision: Supervision, num_steps: int) -> Iterator[tuple[int, int]]:
    """Cut the steps where the path changes, and where a ramp ends."""
    ends = () if supervision.curriculum is None else supervision.curriculum[1:]
    for begin, end in supervision.phases(num_steps):
        cuts = [cut for cut in ends if begin < cut < end]
        yield from zip((begin, *cuts), (*cuts, end), strict=True)


def _phase(config: Config, supervision: Supervision, tokens: TokenShape | None, begin: int, end: int) -> Phase:
    from trm_ray.model.gradient_path import GradientPath

    path, stage = supervision.path(begin), supervision.stage(begin)
    at = tuple(dict.fromkeys(begin + round(i / (_POINTS - 1) * (end - 1 - begin)) for i in range(_POINTS)))
    weights = tuple(supervision.weights(step) for step in at)
    if len(set(weights)) == 1:
        at, weights = at[:1], weights[:1]
    plain = config.model_copy(update={"segments_per_update": 1})
    flops, baseline = _flops(config, tokens, path), _flops(plain, tokens, GradientPath.last(config.arch.H_cycles))
    L_cycles = stage.L_cycles or config.arch.L_cycles
    told = None if tokens is None else flops
    return Phase(begin, end, stage.H_cycles, L_cycles, _words(path), at, weights, told, flops / baseline)


def _flops(config: Config, tokens: TokenShape | None, path: GradientPath) -> float:
    """Count a step's operations; without a shape those of one position, without the head, good for ratios."""
    from trm_ray.training.flops import step_flops
    from trm_ray.training.state import TokenShape

    return step_flops(config, tokens or TokenShape(seq_len=1, vocab_size=0), path)


def _words(path: GradientPath) -> str:
    num_cycles = len(path.supervised)
    if path.detached:
        return "each cycle's own"
    if path.depth == num_cycles > 1:
        return "all cycles"
    return "last cycle" if path.depth == 1 else f"last {path.depth} cycles"
