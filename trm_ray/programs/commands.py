"""Commands that do again what was done."""

from __future__ import annotations

import shlex

from trm_ray.config import Config, flat, load_config, typed
from trm_ray.runs.data import complete


def best_command(values: dict[str, object]) -> str:
    """Write the command that trains a run's config, from its scenario and whatever differs from that."""
    given = {key: value for key, value in values.items() if key != "format_version"}
    config = complete(Config(**given))
    task = [f"task={typed(config.task)}"]
    # Whoever has no task names data and length himself; they must be there for the scenario to load.
    own = ("data_paths", "max_steps", "epochs") if config.task is None else ()
    needed = [f"{key}={typed(flat(config)[key])}" for key in own]
    plain = flat(complete(load_config(config.config_name, [*task, *needed])))
    skipped = ("config_name", "task", "log_dir")
    values_now = {key: value for key, value in flat(config).items() if key not in skipped}
    if config.generator is not None and plain.keys() - flat(config).keys():  # another kind of puzzle than the task's
        needed, plain = [*needed, "generator=null"], {key: plain[key] for key in plain if "generator" not in key}
    different = [f"{key}={typed(value)}" for key, value in values_now.items() if plain.get(key, ...) != value]
    words = ["trm-ray", "train", "--config-name", config.config_name, *task, *needed, *different]
    return " ".join(map(shlex.quote, words))
