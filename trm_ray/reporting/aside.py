"""What a run can do without: where it fails, that is told once, and the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from trm_ray.config.errors import printable

_Result = TypeVar("_Result")


def aside(what: str, work: Callable[[], _Result]) -> _Result | None:
    """Do something that must not keep anything else from being done; None if it failed.

    Args:
        what: begins the line that says so: "no picture was drawn".
    """
    try:
        return work()
    except Exception as error:  # whatever it is, the numbers are there
        reason = printable(" ".join(str(error).split()))
        logging.getLogger("trm_ray").warning("%s (%s: %s)", what, type(error).__name__, reason)
        return None
