"""Two runs that train in turns on one machine, so that whatever else it does hits both alike."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trm_ray.model.trm import Batch
from trm_ray.training.session import Depths, Session

_LOOK_EVERY_S = 0.002
# Made in the folder of the two runs once one of them is over, so that the other does not wait for ever.
ENDED = "ended"


@dataclass
class _Turn:
    """The turn that a worker is at, and what it has taken so far."""

    number: int
    cpu_began_s: float = 0.0
    cpu_s: float | None = None
    report_s: float = 0.0


@dataclass(frozen=True)
class TurnSession(Session):
    """Trains one logging window a turn. The two runs are folders beside each other, `0`, which begins, and `1`.

    Each worker leaves what its turns took in its run's folder (`read_turns`). Evaluations, checkpoints and reports are
    in no turn's time.
    """

    turn: _Turn = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turn", _Turn(int(self.run_dir.name)))

    def train_batches(self, start: int) -> Iterator[Batch]:
        """Wait for the first turn, then give the batches."""
        self._begin()
        return super().train_batches(start)

    def test_batches(self, whole: bool = True) -> Iterator[Batch]:
        """Stop the turn's processor time, since an evaluation begins."""
        self._stop()
        return super().test_batches(whole)

    def log(self, step: int, wall_s: float, metrics: Mapping[str, float], depths: Depths | None = None) -> None:
        """Note what the turn took, let the other run have its own, and wait for the next."""
        self._stop()
        super().log(step, wall_s, metrics, depths)
        row = {"step": step, "cpu_s": self.turn.cpu_s, "report_s": self.turn.report_s, **metrics}
        with (self.run_dir / f"turns_{self.rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.rank == 0:
            self._pass(self.turn.number + 1).touch()
        self.turn.number += 2
        self._begin()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report, and note how long that took."""
        began = time.perf_counter()
        super().report(step, metrics)
        self.turn.report_s = time.perf_counter() - began
        self.turn.cpu_began_s = time.process_time()

    def _begin(self) -> None:
        ended = self.run_dir.parent / ENDED
        while self.turn.number and not self._pass(self.turn.number).exists() and not ended.exists():
            time.sleep(_LOOK_EVERY_S)
        self.turn.cpu_s, self.turn.cpu_began_s = None, time.process_time()

    def _stop(self) -> None:
        if self.turn.cpu_s is None:
            self.turn.cpu_s = time.process_time() - self.turn.cpu_began_s

    def _pass(self, number: int) -> Path:
        return self.run_dir.parent / f"turn_{number}"


def read_turns(run_dir: Path) -> list[list[dict[str, float]]]:
    """Read what each worker's turns took: by rank, rows in order of `cpu_s`, `report_s` and the logged metrics."""
    files = sorted(run_dir.glob("turns_*.jsonl"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files]
