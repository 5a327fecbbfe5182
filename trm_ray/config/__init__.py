"""Read, check and write what a run or a sweep is to do.

A run's values come from five layers; a later one wins, key by key:

    defaults in code < scenario file < task file < values of a sweep's trial < key=value

Keys are flat; `arch.*`, `ray.*` and `generator.*` are the only sections and are written with dots on the
command line and in sweeps. Whatever a user gets wrong ends in one `ConfigError` line that names the key, the
value, the rule and the way out, and the file and line where the value came from.
"""

from trm_ray.config.errors import ConfigError
from trm_ray.config.files import FORMAT_VERSION, config_names, to_yaml
from trm_ray.config.loading import (
    config_from_run,
    config_from_values,
    load_config,
    load_sweep,
    trial_configs,
    with_overrides,
)
from trm_ray.config.run import (
    ArchConfig,
    Config,
    Generator,
    RayConfig,
    banner,
    defaults,
    flat,
    known_keys,
    run_dir,
    schedule_words,
)
from trm_ray.config.sweep import AshaConfig, Distribution, SweepConfig
from trm_ray.config.values import UNREADABLE, load_yaml, read_value, typed
