"""Imports matplotlib, whatever the user has set for his own pictures; our modules do so before they import from it.

A notebook names its backend in MPLBACKEND for all that it starts, and where that backend is not installed, matplotlib
cannot be imported; neither can it with a matplotlibrc that is no text. We draw with Agg and with a look of our own, and
need neither.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from trm_ray.config.surroundings import environment

_BACKEND, _SETTINGS = "MPLBACKEND", "MATPLOTLIBRC"


def matplotlib_at_hand() -> Any:
    """Import matplotlib as it imports itself, but for what would keep it from that; the environment stays as it is."""
    if "matplotlib" in sys.modules:
        return importlib.import_module("matplotlib")
    backend = os.environ.get(_BACKEND)
    with environment({_BACKEND: None}):
        try:
            module = _imported()
        except (OSError, ValueError):  # of the user's settings
            package = importlib.util.find_spec("matplotlib")
            assert package is not None
            with environment({_SETTINGS: str(Path(package.origin or "").with_name("mpl-data") / "matplotlibrc")}):
                module = _imported()
    if backend:
        with suppress(ValueError):  # what is not installed nobody can draw with
            module.rcParams["backend"] = backend
    return module


def _imported() -> Any:
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:  # what an import that failed has left
        del sys.modules[name]
    return importlib.import_module("matplotlib")


matplotlib_at_hand()
