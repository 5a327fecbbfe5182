"""The H-cycles of a segment and the way of the gradient through them: a value, by which a step's graph is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class GradientPath:
    """Whose losses have a gradient, and how far back it runs.

    supervised: of each H-cycle, whether its loss has a gradient; the last one's always has.
    depth: through how many of the last cycles the gradient runs; of one cycle, its own, where they are detached.
    detached: every loss's gradient ends where its cycle began, so the segment falls into `stretches`.
    L_cycles: latent updates of each cycle; None = as many as the model has.
    """

    supervised: tuple[bool, ...]
    depth: int
    detached: bool = False
    L_cycles: int | None = None

    @classmethod
    def along(cls, weights: Sequence[float], depth: int | None = None, *, detached: bool = False) -> GradientPath:
        """Follow the weights of the cycles, of which one that weighs nothing is measured without gradient.

        What comes to the same is equal: without a weight before the last there is nothing to detach.

        Args:
            depth: by the weights if not given: through all cycles if one before the last weighs anything, else through
                the last alone.
        """
        supervised = tuple(weight > 0 for weight in weights)
        earlier = any(supervised[:-1])
        if detached and earlier:
            return cls(supervised, 1, detached=True)
        return cls(supervised, depth or (len(supervised) if earlier else 1))

    @classmethod
    def last(cls, num_cycles: int) -> GradientPath:
        """The baseline's: only the last cycle has a gradient."""
        return cls.along((0.0,) * (num_cycles - 1) + (1.0,))

    @classmethod
    def full(cls, num_cycles: int) -> GradientPath:
        """The supervised one: through all cycles, from all losses."""
        return cls.along((1.0,) * num_cycles)

    @property
    def with_gradient(self) -> tuple[bool, ...]:
        """Tell of each cycle whether it takes part in a backward pass."""
        if self.detached:
            return self.supervised
        num_cycles = len(self.supervised)
        return tuple(cycle >= num_cycles - self.depth for cycle in range(num_cycles))

    @property
    def stretches(self) -> tuple[GradientPath, ...]:
        """Cut the segment where no gradient passes: runs of cycles with a backward pass each, in their order."""
        return tuple(self._cut()) if self.detached else (self,)

    def _cut(self) -> Iterator[GradientPath]:
        begin = 0
        for end, supervised in enumerate(self.supervised, 1):
            if supervised:
                yield replace(GradientPath.last(end - begin), L_cycles=self.L_cycles)
                begin = end
