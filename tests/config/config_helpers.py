"""Short ways to load a config, and to be refused."""

from pathlib import Path

import pytest

from trm_ray.config import Config, ConfigError, SweepConfig, load_config, load_sweep

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SCENARIOS = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))
SWEEPS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml"))
LINEAR = "deep_supervision_linear"


def load(*overrides: str, name: str = LINEAR, **options) -> Config:
    return load_config(name, overrides, config_dir=CONFIGS, **options)


def sweep(*overrides: str, name: str = "five_scenarios") -> SweepConfig:
    return load_sweep(name, overrides, config_dir=CONFIGS)


def complaint(call, *arguments: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
