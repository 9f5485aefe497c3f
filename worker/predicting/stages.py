"""Where a chunk's time goes: the seconds of each stage.

Timed once a chunk or batch, and once an image only where that takes far longer: where it has to be fetched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.ledger.outcomes import Spent


@dataclass(slots=True)
class Stage:
    """A part of the work on one chunk, in one piece or in several."""

    began: int  # the first of its pieces, in nanoseconds since 1970
    ended: int  # the last one
    seconds: float = 0.0  # all pieces together, without what was timed inside them
    nested: float = 0.0  # of these, the seconds of the pieces that were inside another stage


class Stages:
    """The stages of one chunk, in the order in which they began."""

    def __init__(self, *, within: Stages | None = None) -> None:
        """`within`: of the chunk in the middle of which this one is worked on."""
        self.began = time.time_ns()
        self._outer = within
        self.found: dict[str, Stage] = {}
        self._start = time.perf_counter()
        self._inside = 0.0  # seconds timed within the piece that is under way
        self._under_way = False

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times what happens inside. A stage may be inside another, which is then not counted for it."""
        stage = self.found.get(name)
        if stage is None:
            stage = self.found[name] = Stage(time.time_ns(), 0)
        outside, self._inside = self._inside, 0.0
        is_nested, self._under_way = self._under_way, True
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            stage.seconds += took - self._inside
            if is_nested:
                stage.nested += took - self._inside
            stage.ended = time.time_ns()
            self._inside = outside + took
            self._under_way = is_nested

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What happens inside is another chunk's: it counts for no stage of this one."""
        start = time.perf_counter()
        outside = self._inside
        try:
            yield
        finally:
            self._inside = outside + time.perf_counter() - start

    def elapsed(self) -> float:
        """Seconds since this was made."""
        return time.perf_counter() - self._start

    def task_elapsed(self) -> float:
        """Seconds since the process began what it is at: this, or what this is within."""
        return self.elapsed() if self._outer is None else self._outer.task_elapsed()

    def longest(self) -> str:
        """The stage that took the most time; empty before the first."""
        return max(self.found, key=lambda name: self.found[name].seconds, default="")

    def spent(self) -> Spent:
        """For the ledger's counters."""
        return Spent(self._start, {name: stage.seconds for name, stage in self.found.items()})

    def seconds(self) -> dict[str, float]:
        """By stage, to the millisecond; `total` is what went by since this was made."""
        found = {name: round(stage.seconds, 3) for name, stage in self.found.items()}
        return found | {"total": round(self.elapsed(), 3)}
