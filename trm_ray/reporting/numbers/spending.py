"""Where the CPU seconds of some runs, or of a whole sweep, went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trm_ray.reporting.run_log import Run

_TAG = "core_seconds/"
PART_WORDS = {"gradient_stats": "gradient statistics"}


@dataclass(frozen=True)
class Spending:
    """CPU seconds by what they went into.

    parts: what the runs counted themselves (`training.clock.PARTS`), the most first; empty where none did.
    total: of all processes, as the operating system counts them; None where not all can be seen.
    available: what the machine had in that time; None where it was not one machine.
    """

    parts: Mapping[str, float]
    total: float | None = None
    available: float | None = None

    @classmethod
    def of(cls, runs: Iterable[Run], total: float | None = None, available: float | None = None) -> Spending:
        """Add up what some runs have logged."""
        parts: dict[str, float] = {}
        for run in runs:
            last = next((row for row in reversed(run.rows) if f"{_TAG}steps" in row), {})
            for tag in (tag for tag in last if tag.startswith(_TAG)):
                part = tag.removeprefix(_TAG)
                parts[part] = parts.get(part, 0.0) + last[tag]
        return cls(dict(sorted(parts.items(), key=lambda item: -item[1])), total, available)

    @property
    def other(self) -> float | None:
        """What no run counted: Ray's own processes, the one that started all, the report."""
        return None if self.total is None else max(0.0, self.total - sum(self.parts.values()))

    def content(self) -> dict[str, float | None]:
        """Give what the JSON of a comparison holds of it."""
        return {**self.parts, "other": self.other, "total": self.total, "available": self.available}

    def told(self) -> str:
        """Write a sentence; empty where nothing was counted."""
        if not self.parts:
            return ""
        whole = self.total or sum(self.parts.values())
        parts = {**self.parts, **({} if self.other is None else {"other": self.other})}
        shares = (f"{PART_WORDS.get(part, part)} {100 * seconds / whole:.1f} %" for part, seconds in parts.items())
        at_hand = "" if self.available is None else f" of {self.available:,.0f} at hand"
        return f"{whole:,.0f} core-seconds{at_hand}: {', '.join(shares)}."
