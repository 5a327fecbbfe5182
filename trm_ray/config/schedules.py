"""Schedules by name: what share of the base weight each H-cycle's loss gets before the last one."""

from __future__ import annotations

from collections.abc import Callable

# The factor of cycle i of N, from 0 to 1. The last cycle weighs 1 in all of them, whatever its factor.
SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda i, n: 1.0,
    "linear_decay": lambda i, n: (i + 1) / n,
    "exponential_decay": lambda i, n: 2.0 ** (i - n + 1),
    "inverse_decay": lambda i, n: 0.7**i,  # the earliest is the heaviest: CGAR, arXiv 2511.08653
    "last_two": lambda i, n: float(i == n - 2),
    "first_and_last": lambda i, n: float(i == 0),
}
