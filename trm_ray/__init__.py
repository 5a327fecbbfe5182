"""Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison.

The Python API is `load_config`, `train`, `sweep`, `evaluate`, `load_model` and `solve`. Importing this package loads
nothing heavy; the first use of one of them does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_ray.api import evaluate, load_config, load_model, solve, sweep, train

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "load_config", "load_model", "solve", "sweep", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trm_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
