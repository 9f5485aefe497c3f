"""Measure the seconds of each stage of a claim, for the log, the ledger's counters and traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.ledger.jobs.results import Spent


@dataclass(slots=True)
class Stage:
    """A stage of the work on a claim, in one piece or several."""

    began: int  # the first piece, in nanoseconds since 1970
    ended: int  # the last piece
    seconds: float = 0.0  # all pieces together


class Timings:
    """The stages of one claim, in the order in which they began."""

    def __init__(self) -> None:
        self.began = time.time_ns()
        self.stages: dict[str, Stage] = {}
        self._start = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the enclosed code as a piece of this stage. Stages do not nest."""
        stage = self.stages.setdefault(name, Stage(time.time_ns(), 0))
        start = time.perf_counter()
        try:
            yield
        finally:
            stage.seconds += time.perf_counter() - start
            stage.ended = time.time_ns()

    def of(self, *names: str) -> float:
        """Return the total seconds of these stages."""
        return sum(self.stages[name].seconds for name in names if name in self.stages)

    def longest(self) -> str:
        """Return the name of the stage that took the most time, or "" before the first stage."""
        return max(self.stages, key=lambda name: self.stages[name].seconds, default="")

    def spent(self) -> Spent:
        """Return the timings for the ledger's counters."""
        return Spent(self._start, {name: stage.seconds for name, stage in self.stages.items()})

    def seconds(self) -> dict[str, float]:
        """Return the seconds by stage, to the millisecond; `total` counts from this object's creation."""
        found = {name: round(stage.seconds, 3) for name, stage in self.stages.items()}
        return found | {"total": round(time.perf_counter() - self._start, 3)}
