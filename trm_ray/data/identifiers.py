"""The map from puzzle identifiers, the rows of the embedding table, to puzzles and their augmentations.

    0  <blank>      1  00576224      2  00576224|||t3|||0195372846      …      1002  009d5c81      …

It is saved beside every checkpoint: without it nobody can tell which learned vector belongs to which puzzle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trm_ray.data.counters import counter_draws, text_key

BLANK = "<blank>"
SEPARATOR = "|||"
NUM_COLOURS = 10
FORMAT_VERSION = 1
MOST_IDENTIFIERS = 100_000_000  # a hundred times those of ARC; each takes 15 bytes
_AUGMENTED = re.compile(r"\|\|\|t([0-7])\|\|\|([0-9]{10})$")
_IDENTITY = np.arange(-1, NUM_COLOURS).clip(0).astype(np.uint8)  # a transform: dihedral number, then ten colours


def draw_transforms(seed: int, name: str, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw the transforms that a puzzle's augmentations are chosen from; (seed, name, trial) alone decide each.

    Args:
        trials: (T,) numbers from 0 on.

    Returns:
        Dihedral transforms (T,) 0 to 7 and what each colour becomes (T, 10), both uint8; colour 0 stays.
    """
    draws = counter_draws(seed, text_key(name), trials, NUM_COLOURS)
    colours = np.zeros(draws.shape, np.uint8)
    colours[:, 1:] = np.argsort(draws[:, 1:], axis=1) + 1
    return (draws[:, 0] >> np.uint64(61)).astype(np.uint8), colours


@dataclass(frozen=True, eq=False)
class PuzzleIdentifiers:
    """Name N identifiers; 0 is `<blank>`, and so is every one that no puzzle owns.

    Args:
        names: of the P puzzles, in the order of their identifiers.
        first: (P,) the identifier of each puzzle as it is; its k-th augmentation is k above it.
        counts: (P,) identifiers of each puzzle, itself included.
        dihedral: (N,) uint8, the transform of each identifier, numbered as `arc.DIHEDRAL` says.
        colours: (N, 10) uint8, what each colour becomes.
        seed: what drawn augmentations were drawn with.
        trials: (N,) which draw each identifier is, −1 where it is none.
    """

    names: tuple[str, ...]
    first: np.ndarray
    counts: np.ndarray
    dihedral: np.ndarray
    colours: np.ndarray
    seed: int | None = None
    trials: np.ndarray | None = None

    @classmethod
    def blank(cls) -> PuzzleIdentifiers:
        """Make the map of a dataset whose puzzles have no identifiers of their own."""
        return cls.plain(())

    @classmethod
    def plain(cls, names: Sequence[str]) -> PuzzleIdentifiers:
        """Give each puzzle one identifier, from 1 on, and no augmentations."""
        first = np.arange(1, len(names) + 1)
        return _assembled(1 + len(names), names, first, [_IDENTITY[None]] * len(names))

    @classmethod
    def drawn(cls, seed: int, names: Sequence[str], trials: Sequence[np.ndarray]) -> PuzzleIdentifiers:
        """Give each puzzle an identifier and one for each of the trials that augment it.

        Args:
            trials: for each puzzle, in rising order, the numbers of its `draw_transforms`.
        """
        counts = np.array([1 + len(chosen) for chosen in trials], np.int64)
        first = 1 + np.cumsum(counts) - counts
        transforms = [_drawn_transforms(seed, name, chosen) for name, chosen in zip(names, trials, strict=True)]
        return _assembled(int(1 + counts.sum()), names, first, transforms, seed, trials)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> PuzzleIdentifiers:
        """Read the original's list of names, one an identifier.

        Raises:
            ValueError: the first is not `<blank>`, or a name maps two colours to one.
        """
        if not names or names[0] != BLANK:
            raise ValueError(f"identifier 0 is {names[0] if names else None!r}; it must be {BLANK!r}")
        runs: list[tuple[str, int, list[np.ndarray]]] = []
        current = None
        for identifier, spelled in enumerate(names):
            name, transform = _parsed(spelled)
            if spelled != BLANK:
                if name != current or transform is _IDENTITY:
                    runs.append((name, identifier, []))
                runs[-1][2].append(transform)
            current = name
        first = np.array([begin for _, begin, _ in runs], np.int64)
        return _assembled(len(names), [name for name, _, _ in runs], first, [np.stack(rows) for _, _, rows in runs])

    @classmethod
    def from_bytes(cls, content: bytes) -> PuzzleIdentifiers:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is no such map, or one of another format.
        """
        try:
            raw = json.loads(content)
            if raw["format_version"] != FORMAT_VERSION:
                known = f"this release reads {FORMAT_VERSION}"
                raise ValueError(f"format_version={raw['format_version']!r} is unknown, {known}")
            return _from_json(raw)
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
            mistake = error if type(error) is ValueError else repr(error)
            raise ValueError(f"identifiers.json is no map of puzzle identifiers: {mistake}") from error

    @classmethod
    def load(cls, path: Path) -> PuzzleIdentifiers:
        """Read a file that `save` wrote.

        Raises:
            ValueError: it cannot be read or is no such map.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the map to a file."""
        path.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Write the map as JSON; equal maps give equal bytes. Drawn augmentations take one bit a trial."""
        head = {"format_version": FORMAT_VERSION, "num_identifiers": len(self), "seed": self.seed}
        raw = {**head, "puzzles": [*self._entries()]}
        return (json.dumps(raw, separators=(",", ":")) + "\n").encode()

    def digest(self) -> str:
        """Hash the map, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.dihedral)

    def puzzle_of(self, identifiers: np.ndarray) -> np.ndarray:
        """Find the number of the puzzle that owns each identifier, −1 for a blank one."""
        identifiers = np.asarray(identifiers, np.int64)
        if not self.names:
            return np.full(identifiers.shape, -1)
        puzzles = np.searchsorted(self.first, identifiers, side="right") - 1
        owned = (puzzles >= 0) & (identifiers < self.first[puzzles] + self.counts[puzzles])
        return np.where(owned, puzzles, -1)

    def name(self, identifier: int) -> str:
        """Spell an identifier as the original does: NAME, or NAME|||tK|||0123456789 for an augmentation."""
        puzzle = int(self.puzzle_of(np.array(identifier)))
        if puzzle < 0:
            return BLANK
        return _spelled(self.names[puzzle], int(self.dihedral[identifier]), self.colours[identifier])

    def all_names(self) -> list[str]:
        """Spell all identifiers, in order: the original's identifiers.json."""
        names = [BLANK] * len(self)
        for name, first, count in zip(self.names, self.first.tolist(), self.counts.tolist(), strict=True):
            for k in range(first, first + count):
                names[k] = _spelled(name, int(self.dihedral[k]), self.colours[k])
        return names

    def _entries(self) -> Iterator[dict[str, Any]]:
        table = np.column_stack([self.dihedral, self.colours])
        is_plain = (self.counts == 1) & (table[self.first] == _IDENTITY).all(1)
        runs = zip(self.names, self.first.tolist(), self.counts.tolist(), is_plain.tolist(), strict=True)
        for name, first, count, plain in runs:
            entry = {"name": name, "first": first}
            if self.trials is not None:
                yield {**entry, "trials": _bits(self.trials[first + 1 : first + count])}
            else:
                yield entry if plain else {**entry, "transforms": _digits(table[first : first + count])}


def _assembled(
    size: int,
    names: Sequence[str],
    first: np.ndarray,
    transforms: Sequence[np.ndarray],
    seed: int | None = None,
    trials: Sequence[np.ndarray] | None = None,
) -> PuzzleIdentifiers:
    """Lay out the transforms (identifiers, 11) of each puzzle from its first identifier on."""
    table = np.tile(_IDENTITY, (size, 1))
    numbers = np.full(size, -1, np.int32)
    for number, (begin, rows) in enumerate(zip(first.tolist(), transforms, strict=True)):
        table[begin : begin + len(rows)] = rows
        if trials is not None:
            numbers[begin + 1 : begin + len(rows)] = trials[number]
    counts = np.array([len(rows) for rows in transforms], np.int64)
    dihedral, colours = table[:, 0].copy(), table[:, 1:].copy()
    drawn = None if trials is None else numbers
    return PuzzleIdentifiers(tuple(names), first.astype(np.int64), counts, dihedral, colours, seed, drawn)


def _drawn_transforms(seed: int, name: str, trials: np.ndarray) -> np.ndarray:
    return np.vstack([_IDENTITY, np.column_stack(draw_transforms(seed, name, trials))])


def _from_json(raw: dict[str, Any]) -> PuzzleIdentifiers:
    seed, puzzles = raw["seed"], raw["puzzles"]
    names = [entry["name"] for entry in puzzles]
    first = np.array([entry["first"] for entry in puzzles], np.int64)
    trials = None if seed is None else [_trials(entry["trials"]) for entry in puzzles]
    transforms = [
        _drawn_transforms(seed, name, _trials(entry["trials"])) if "trials" in entry else _transforms(entry)
        for name, entry in zip(names, puzzles, strict=True)
    ]
    _check_places(raw["num_identifiers"], names, first, transforms)
    return _assembled(raw["num_identifiers"], names, first, transforms, seed, trials)


def _check_places(size: Any, names: list[Any], first: np.ndarray, transforms: Sequence[np.ndarray]) -> None:
    """Check that each puzzle has room for its transforms, from 1 on and before the next one begins."""
    if type(size) is not int or not 1 <= size <= MOST_IDENTIFIERS:
        raise ValueError(f"num_identifiers={size!r} must be a whole number from 1 to {MOST_IDENTIFIERS:,}")
    begins = [*first.tolist(), size]
    for name, begin, end, rows in zip(names, begins, begins[1:], transforms, strict=False):
        if not isinstance(name, str):
            raise ValueError(f"name={name!r} must be text")
        if begin < 1 or begin + len(rows) > end:
            raise ValueError(f"puzzle {name!r} has identifiers from {begin} on; {len(rows)} must fit in before {end}")
        if (rows[:, 0] > 7).any() or (np.sort(rows[:, 1:], axis=1) != np.arange(NUM_COLOURS)).any():
            raise ValueError(f"puzzle {name!r}: a transform must be 0 to 7 and a permutation of ten digits")


def _transforms(entry: dict[str, Any]) -> np.ndarray:
    spelled = entry.get("transforms")
    if spelled is None:
        return _IDENTITY[None]
    return np.frombuffer(f"{spelled} ".encode(), np.uint8).reshape(-1, NUM_COLOURS + 2)[:, :-1] - ord("0")


def _digits(transforms: np.ndarray) -> str:
    """Spell transforms (n, 11) as n numbers of eleven digits."""
    characters = np.full((len(transforms), NUM_COLOURS + 2), ord(" "), np.uint8)
    characters[:, :-1] = transforms + ord("0")
    return characters.tobytes().decode().rstrip()


def _bits(trials: np.ndarray) -> str:
    """Pack a set of trials: bit t of the text's bytes says whether trial t is one of them."""
    taken = np.zeros(int(trials.max(initial=-1)) + 1, bool)
    taken[trials] = True
    return base64.b64encode(np.packbits(taken).tobytes()).decode()


def _trials(bits: str) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8)))


def _spelled(name: str, dihedral: int, colours: np.ndarray) -> str:
    digits = "".join(map(str, colours.tolist()))
    return name if (dihedral, digits) == (0, "0123456789") else f"{name}{SEPARATOR}t{dihedral}{SEPARATOR}{digits}"


def _parsed(spelled: str) -> tuple[str, np.ndarray]:
    match = _AUGMENTED.search(spelled)
    if match is None:
        return spelled, _IDENTITY
    if len(set(match[2])) < NUM_COLOURS:
        raise ValueError(f"identifier {spelled!r} gives two colours one colour; its digits must be a permutation")
    return spelled.split(SEPARATOR)[0], np.array([int(digit) for digit in match[1] + match[2]], np.uint8)
