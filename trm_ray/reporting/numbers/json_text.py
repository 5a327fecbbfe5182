"""Numbers as JSON, which has neither NaN nor infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(content: Mapping[str, Any]) -> str:
    """Write JSON to be read by people too; a number that is not finite becomes null."""
    return json.dumps(_with_null(content), indent=2, allow_nan=False) + "\n"


def _with_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
