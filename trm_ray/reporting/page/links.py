"""Links that hold what they lead to, so that a page has all of it in one file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote


def csv_uri(rows: Iterable[Sequence[Any]]) -> str:
    """Write rows as a link to a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return f"data:text/csv;charset=utf-8,{quote(text.getvalue(), safe=',-._~')}"
