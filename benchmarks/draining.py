"""Time workers on jobs of one image that all wait when the workers continue."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from benchmarks.check import WrongRows
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.schema import UNFINISHED, jobs, predictions

#: Seconds between two checks whether all jobs are done. The figures do not depend on it.
_LOOK_SECONDS: Final = 0.1

#: A job among so many that is not done after this time hangs.
_STANDSTILL_SECONDS: Final = 600.0

_OPEN: Final = sa.select(jobs.c.id).where(jobs.c.state.in_(UNFINISHED)).limit(1)


class Drained(NamedTuple):
    """Finished jobs, and their time."""

    jobs: int
    seconds: float  # from the moment at which the workers continue to the last row
    seconds_between_rows: float  # from the first row to the last
    labels: dict[str, str | None]  # by the image's name

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds


def make_mark() -> str:
    """Return an id that sorts before all that this machine makes from now on."""
    mark = new_id()
    time.sleep(0.002)  # ids of the same millisecond have no order
    return mark


def drained(ledger: Ledger, mark: str, began: datetime) -> Drained:
    """Wait until all jobs have ended; return what became of those after the mark.

    The ledger's times are by this machine's clock, like `began`. Raises WrongRows, and RuntimeError if the
    jobs hang.
    """
    deadline = time.monotonic() + _STANDSTILL_SECONDS
    while _are_open(ledger):
        if time.monotonic() > deadline:
            raise RuntimeError(f"there are open jobs after {_STANDSTILL_SECONDS:g} seconds")
        time.sleep(_LOOK_SECONDS)
    ends = sa.select(sa.func.count(), sa.func.min(jobs.c.finished_at), sa.func.max(jobs.c.finished_at))
    rows = sa.select(predictions.c.name, predictions.c.label).where(predictions.c.job_id > mark)
    with ledger.reading() as connection:
        number, first, last = connection.execute(ends.where(jobs.c.id > mark)).one()
        found = connection.execute(rows).all()
    if len(found) != number:
        raise WrongRows(f"{len(found):,} rows for {number:,} jobs of one image")
    labels = {row.name: row.label for row in found}
    return Drained(number, (last - began).total_seconds(), (last - first).total_seconds(), labels)


def check_drained(*expected: tuple[Drained, int]) -> None:
    """Check that there are so many jobs each, and one label for each image. Raises WrongRows."""
    known: dict[str, str | None] = {}
    for one, number in expected:
        if one.jobs != number or None in one.labels.values():
            raise WrongRows(f"{one.jobs:,} jobs instead of {number:,}, or some without a label")
        different = [name for name, label in one.labels.items() if known.get(name, label) != label]
        if different:
            raise WrongRows(f"{len(different)} images got two labels: {different[:3]}")
        known |= one.labels


def _are_open(ledger: Ledger) -> bool:
    with ledger.reading() as connection:
        return connection.scalar(_OPEN) is not None
