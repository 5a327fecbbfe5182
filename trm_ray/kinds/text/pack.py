"""Documents as rows: each row's labels are its inputs a place later, so that every token is predicted once.

The documents of a split stand one after the other, a separator before each and one behind the last, and are cut into
rows of L + 1 tokens that overlap by one, wherever documents end. Only the last row is padded. Prompts have a row each.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trm_ray.data.format import ROWS_PER_ROW_GROUP
from trm_ray.data.rows import IGNORED_LABEL, Rows
from trm_ray.data.write import MAX_PARTS, MIN_ROWS_PER_PART, write_part
from trm_ray.kinds.text.encode import DOCUMENT, token_type

_TOKENS_PER_PART = 1 << 24  # 128 MiB as inputs and labels
# Tokens are no words to be listed: this takes half the bytes and a quarter of the time.
_AS_BYTES = {"use_dictionary": False, "use_byte_stream_split": True}
# A document: the file that it lies in, by its number, and where; where it begins in its split, and what is known of it.
PLACE = np.dtype([("shard", "<i4"), ("first", "<i8"), ("begin", "<i8"), *DOCUMENT.descr])


def places(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Say of all documents, of which each file has a table of `DOCUMENT`, where they lie: (D,) of `PLACE`.

    There may be many millions of them, so nothing here holds them twice.
    """
    found = np.zeros(sum(map(len, tables)), PLACE)
    ends = np.cumsum([len(table) for table in tables])
    for shard, (table, some) in enumerate(zip(tables, np.split(found, ends[:-1]), strict=True)):
        for key in DOCUMENT.names or ():
            some[key] = table[key]
        some["shard"] = shard
        some["first"] = np.cumsum(some["tokens"], dtype=np.int64) - some["tokens"]
    return found


def first_of_each(documents: np.ndarray) -> np.ndarray:
    """Choose the documents (D,) whose content none before them has."""
    order = np.lexsort((documents["low"], documents["high"]))  # which leaves equal ones in their order
    chosen = np.ones(len(documents), bool)
    high, low = documents["high"][order], documents["low"][order]
    chosen[order[1:]] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return chosen


def held_out(documents: np.ndarray, taken: np.ndarray, share: float) -> np.ndarray:
    """Choose the test documents (D,) of those that are taken by what they hold.

    They are a `share` of them, and one at least if there are two.
    """
    chosen = taken & (documents["high"] < np.uint64(min(int(share * 2**64), 2**64 - 1)))
    if not chosen.any() and taken.sum() > 1:
        others = np.flatnonzero(taken)
        chosen[others[np.lexsort((documents["low"][others], documents["high"][others]))[0]]] = True
    return np.asarray(chosen)


def in_order(chosen: np.ndarray) -> np.ndarray:
    """Let the documents of a split (D,) of `PLACE` stand one after the other: says so in place."""
    chosen["begin"] = np.cumsum(chosen["tokens"], dtype=np.int64) - chosen["tokens"]
    return chosen


def count_rows(chosen: np.ndarray, seq_len: int, prompts: bool) -> int:
    """Count the rows of a split: the first of its tokens, a separator, is no label, and the one behind the last is."""
    return len(chosen) if prompts else -(-int(chosen["tokens"].sum()) // seq_len)


def part_bounds(num_rows: int, seq_len: int) -> list[tuple[int, int]]:
    """Deal rows out to files: the first row of each, and the one after its last."""
    whole = max(1, _TOKENS_PER_PART // seq_len // ROWS_PER_ROW_GROUP) * ROWS_PER_ROW_GROUP
    number = max(min(MAX_PARTS, num_rows // MIN_ROWS_PER_PART), -(-num_rows // whole), 1)
    bounds = [num_rows * part // number for part in range(number + 1)]
    return list(itertools.pairwise(bounds))


def running_rows(stream: np.ndarray, num_labels: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut tokens (N · L + 1,) into inputs and labels (N, L), of which the first `num_labels` are to be predicted."""
    inputs, labels = stream[:-1].reshape(-1, seq_len), stream[1:].reshape(-1, seq_len).copy()
    labels.reshape(-1)[max(0, num_labels) :] = IGNORED_LABEL
    return inputs, labels


def prompt_rows(
    documents: Iterable[tuple[np.ndarray, int]], count: int, seq_len: int, separator: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give each document a row (N, L), of which what comes after the prompt is to be predicted, its end included.

    Args:
        documents: of each its tokens after a separator, at most L, and how many of them are the prompt's.
        count: how many documents there are.
    """
    stream = np.full((count, seq_len + 1), separator, np.int32)
    labels = np.full((count, seq_len), IGNORED_LABEL, np.int32)
    for row, (tokens, prompt) in enumerate(documents):
        stream[row, : len(tokens)] = tokens
        labels[row, prompt : len(tokens)] = stream[row, prompt + 1 : len(tokens) + 1]
    return np.ascontiguousarray(stream[:, :-1]), labels


@dataclass(frozen=True)
class Packing:
    """How a split's documents become rows.

    Args:
        folders: of the files' tokens, by their numbers.
        plan: the file that holds the split's documents, of `PLACE`.
    """

    folders: tuple[Path, ...]
    plan: Path
    seq_len: int
    vocab_size: int
    separator: int
    prompts: bool

    def rows(self, first: int, last: int) -> Rows:
        """Make rows `first` to before `last`."""
        inputs, labels = (self._prompted if self.prompts else self._running)(first, last)
        numbers = np.arange(first, last, dtype=np.int32)
        return Rows(inputs, labels, np.zeros_like(numbers), numbers, numbers)

    def documents(self) -> Iterator[np.ndarray]:
        """Read the tokens of each document, without separators."""
        return (self._tokens(document)[1:] for document in self._documents)

    def _running(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the stream of documents; beyond its end stand separators that are no labels."""
        begin, end = first * self.seq_len, last * self.seq_len + 1
        stream = np.full(end - begin, self.separator, np.int32)
        known = self._documents
        inside = slice(
            int(np.searchsorted(known["begin"], begin, "right")) - 1, int(np.searchsorted(known["begin"], end))
        )
        for document in known[inside]:
            skipped = max(0, begin - int(document["begin"]))
            at = int(document["begin"]) + skipped - begin
            tokens = self._tokens(document)[skipped : skipped + end - begin - at]
            stream[at : at + len(tokens)] = tokens
        final = int(known["begin"][-1]) + int(known["tokens"][-1])  # the separator behind the last document
        return running_rows(stream, final - begin, self.seq_len)

    def _prompted(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Give each document a row."""
        documents = ((self._tokens(one), int(one["prompt"])) for one in self._documents[first:last])
        return prompt_rows(documents, last - first, self.seq_len, self.separator)

    def _tokens(self, document: np.ndarray) -> np.ndarray:
        first = int(document["first"])
        return self._shards[int(document["shard"])][first : first + int(document["tokens"])]

    @cached_property
    def _documents(self) -> np.ndarray:
        return np.lib.format.open_memmap(self.plan, mode="r")

    @cached_property
    def _shards(self) -> _Shards:
        return _Shards(self.folders, token_type(self.vocab_size))


class _Shards:
    """Map the file of tokens that is asked for: documents are read in its order, so that it is mostly the same."""

    def __init__(self, folders: Sequence[Path], kind: np.dtype):
        self._folders, self._kind = folders, kind
        self._number, self._mapped = -1, np.zeros(0, kind)

    def __getitem__(self, number: int) -> np.ndarray:
        if number != self._number:
            self._number, self._mapped = number, np.memmap(self._folders[number] / "tokens.bin", self._kind, "r")
        return self._mapped


@dataclass(frozen=True)
class Part:
    """A file of rows that is to be written."""

    packing: Packing
    path: Path
    first: int
    last: int

    @property
    def counts(self) -> Path:
        """Name the file that says how often each token (V,) is a label in it."""
        return self.packing.plan.with_name(f"{self.packing.plan.stem}-{self.path.stem}.npy")

    def write(self) -> None:
        """Write the file of rows, unless it is there."""
        if self.path.is_file():
            return
        rows = self.packing.rows(self.first, self.last)
        np.save(self.counts, count_labels(rows.labels, self.packing.vocab_size))
        temporary = self.counts.with_suffix(f".{os.getpid()}")
        write_part(temporary, rows, **_AS_BYTES)
        temporary.replace(self.path)


def count_labels(labels: np.ndarray, vocab_size: int) -> np.ndarray:
    """Count how often each token (V,) is one of labels (N, L), some million of them at once."""
    counts = np.zeros(vocab_size, np.int64)
    for some in np.array_split(labels, 1 + (labels.size >> 20)):
        counts += np.bincount(some[some != IGNORED_LABEL], minlength=vocab_size)
    return counts
