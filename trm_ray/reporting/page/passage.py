"""Held-out text as models read it: how much each token surprises them, depth by depth."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from trm_ray.reporting.page.links import csv_uri

KEPT_DEPTHS = (1, 2, 4, 8, 16, 32, 64)  # shown on paper, where nothing slides
EDGES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # bits at which the next colour begins
_VISIBLE = {"\n": "↵\n", "\t": "→\t"}


def visible(text: str) -> str:
    """Show the ends of lines, tabs and what is no letter."""
    return "".join(
        _VISIBLE.get(character) or (chr(0x2400 + ord(character)) if character < " " else character)
        for character in text
    )


@dataclass(frozen=True)
class Piece:
    """A token as text, or the few that make a character.

    bits: −log2 of its probability, a separator's too; None where it was not asked for.
    instead: what was held likelier; empty where nothing was.
    """

    text: str
    bits: float | None
    instead: str = ""

    @property
    def shown(self) -> str:
        """Show it so that nothing of it is invisible."""
        return visible(self.text)

    @property
    def look(self) -> str:
        """Name its look: a colour by its bits, and whether something else was likelier."""
        if self.bits is None:
            return "asked"
        return f"s{bisect_right(EDGES, self.bits)}" + (" missed" if self.instead else "")

    @property
    def words(self) -> str:
        """Say what the colour says."""
        if self.bits is None:
            return ""
        return f"{self.bits:.2f} bits" + (f", likelier: {self.instead}" if self.instead else "")


@dataclass(frozen=True)
class Reading:
    """A passage at a depth.

    num_wrong: of an answer to a prompt, how many tokens another was held likelier than; None of plain text.
    """

    depth: int
    pieces: tuple[Piece, ...]
    bits_per_byte: float
    num_wrong: int | None = None

    @property
    def is_kept(self) -> bool:
        """Tell whether it is shown where nothing slides."""
        return self.depth in KEPT_DEPTHS

    @property
    def is_wrong(self) -> bool:
        """Tell whether it is an answer that is wrong."""
        return bool(self.num_wrong)

    @property
    def words(self) -> str:
        """Say how well it is read."""
        told = f"{self.bits_per_byte:.3f} bits per byte"
        if self.num_wrong is None:
            return told
        return (f"✗ {self.num_wrong} wrong" if self.num_wrong else "✓ solved") + f", {told}"

    def stretches(self) -> Iterator[Piece]:
        """Give its pieces, what was not asked for in one."""
        for was_asked, pieces in groupby(self.pieces, key=lambda piece: piece.bits is not None):
            if was_asked:
                yield from pieces
            else:
                yield Piece("".join(piece.text for piece in pieces), None)


@dataclass(frozen=True)
class Reader:
    """What a scenario's model makes of a passage after 1, 2, … H-cycles."""

    label: str
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Passage:
    """A held-out text, and the readers of each scenario, in one order for all passages."""

    name: str
    readers: tuple[Reader, ...]

    @cached_property
    def csv_uri(self) -> str:
        """Write every number as a link that holds them."""
        return csv_uri([("scenario", "depth", "place", "text", "bits", "likelier"), *self._rows()])

    def _rows(self) -> Iterator[Sequence[str | int]]:
        for reader in self.readers:
            for reading in reader.readings:
                for place, piece in enumerate(reading.pieces):
                    if piece.bits is not None:
                        yield reader.label, reading.depth, place, piece.text, f"{piece.bits:.3f}", piece.instead


def legend() -> list[tuple[str, str]]:
    """Give the looks of the colours, from no surprise to the most, and what they mean."""
    low, *others = EDGES
    between = [f"{a:g}–{b:g}" for a, b in zip(EDGES, others, strict=False)]
    words = [f"under {low:g} bits", *between, f"{EDGES[-1]:g} and more"]
    return [(f"s{number}", told) for number, told in enumerate(words)]
