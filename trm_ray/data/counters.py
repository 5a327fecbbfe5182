"""Random numbers that are a hash of what they are drawn for: no generator, no order of drawing, all rows at once."""

from __future__ import annotations

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def counter_draws(seed: int, epoch: int | np.ndarray, index: np.ndarray, num_draws: int) -> np.ndarray:
    """Draw uniform 64-bit numbers (B, num_draws) that depend on each row's (seed, epoch, index) alone.

    Source: splitmix64 (Steele, Lea, Flood, 2014), its state started from a hash of the three.
    """
    index = np.asarray(index).astype(np.uint64)
    epochs = np.broadcast_to(np.asarray(epoch), index.shape).astype(np.uint64)
    state = np.full(index.shape, seed % 2**64, np.uint64)
    for part in (epochs, index):
        state = mixed(state + GOLDEN) ^ part
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * GOLDEN
    return mixed(mixed(state + GOLDEN)[:, None] + counters)


def mixed(z: np.ndarray) -> np.ndarray:
    """Spread each 64-bit number over all its bits, one to one."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def below(draws: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Turn 64-bit draws into numbers from 0 to `limits` − 1 (limits below 2^32), int64."""
    return ((draws >> np.uint64(32)) * limits.astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def text_key(text: str) -> int:
    """Name a text by a 64-bit number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
