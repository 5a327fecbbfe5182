"""Train Tiny Recursive Models with deep supervision: one run, a sweep on Ray, the comparison.

The Python API is `load_config`, `train`, `sweep`, `replay`, `diagnose`, `compare`, `report`, `evaluate`, `load_model`,
`solve` and `generate`.
Importing this package loads nothing heavy; the first use of one of them does.
"""

import sys

if sys.argv[:1] == ["-m"] and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    # `python -m trm_ray` looks into the working directory first, where a `random.py` of the user's would stand for
    # Python's own. What a checkout holds is found there all the same.
    sys.path.append(sys.path.pop(0))

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trm_ray.api import (
        compare,
        diagnose,
        evaluate,
        generate,
        load_config,
        load_model,
        replay,
        report,
        solve,
        sweep,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "compare",
    "diagnose",
    "evaluate",
    "generate",
    "load_config",
    "load_model",
    "replay",
    "report",
    "solve",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from trm_ray import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
