"""How long workers take for jobs of one image that all wait when they go on."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final, NamedTuple

import sqlalchemy as sa

from benchmarks.check import WrongRows
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.schema import UNFINISHED, jobs, predictions

#: How often to look whether all jobs are done. The figures do not hang on it.
_LOOK_SECONDS: Final = 0.1

#: A job among so many that is not done after this time hangs.
_STANDSTILL_SECONDS: Final = 600.0

_OPEN: Final = sa.select(jobs.c.id).where(jobs.c.state.in_(UNFINISHED)).limit(1)


class Drained(NamedTuple):
    """So many jobs, done."""

    jobs: int
    seconds: float  # from the moment at which the workers go on to the last row
    seconds_between_rows: float  # from the first row to the last
    labels: dict[str, str | None]  # by the image's name

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds


def make_mark() -> str:
    """All ids that this machine makes from here on sort after it."""
    mark = new_id()
    time.sleep(0.002)  # those of one millisecond are in no order
    return mark


def drained(ledger: Ledger, mark: str, began: datetime) -> Drained:
    """Waits until no job is open; says what became of those after the mark. The ledger's times are by the
    clock of this machine, as `began` is. Raises RuntimeError where the jobs hang, WrongRows.
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
    """So many jobs each, all with labels, and for the same image the same one. Raises WrongRows."""
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
