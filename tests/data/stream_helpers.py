"""Rows that can be told apart, and what a stream makes of them."""

import itertools
from dataclasses import fields, replace

import numpy as np

from trm_ray.data.rows import Rows, TokenBatch
from trm_ray.data.stream import RowStream


def sudoku_rows(box, count):
    """Relabelled boards of one pattern with half of their cells blank; every row a puzzle by itself."""
    rng, size = np.random.default_rng(7), box[0] * box[1]
    line = np.arange(size)
    pattern = (line[:, None] % box[0] * box[1] + line[:, None] // box[0] + line).ravel() % size
    labels = np.stack([(rng.permutation(size) + 2)[pattern] for _ in range(count)]).astype(np.int32)
    return Rows.of_single_puzzles(np.where(rng.random(labels.shape) < 0.5, 1, labels).astype(np.int32), labels)


def rows_of(puzzles, groups):
    """Rows whose first token is their number, so that they can be told apart, and whose identifier is their puzzle."""
    numbers = np.arange(len(puzzles), dtype=np.int32)
    inputs = np.column_stack([numbers, np.full((len(numbers), 3), 7, np.int32)])
    puzzles, groups = np.array(puzzles, np.int32), np.array(groups, np.int32)
    return Rows(inputs, inputs + 1, puzzles.copy(), puzzles, groups)


# Three groups: three puzzles of two examples, one of three, two of one.
GROUPED = rows_of([0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 5], [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
ROWS_AN_EPOCH = 2 + 3 + 1


def stream_of(source, batch_size, symmetry=None, seed=3, **place):
    return RowStream(source, batch_size=batch_size, seed=seed, symmetry=symmetry, **place)


def batches(source, batch_size, count, start=0, **more):
    return list(itertools.islice(stream_of(source, batch_size, **more).batches(start), count))


def joined(parts):
    return TokenBatch(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(TokenBatch)))


def assert_same(found, expected):
    for one, two in zip(found, expected, strict=True):
        for field in fields(TokenBatch):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))


def numbers(found):
    return joined(found).inputs[:, 0].tolist()


class Marked:
    """Add what a symmetry is told of a row behind it."""

    def augment(self, rows, *, seed, epoch, puzzle_keys, row_keys):
        told = [
            np.broadcast_to(np.asarray(part), len(rows)).astype(np.int64) for part in (epoch, puzzle_keys, row_keys)
        ]
        return replace(rows, inputs=np.column_stack([rows.inputs, *told]))
