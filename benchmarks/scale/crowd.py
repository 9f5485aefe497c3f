"""Processes that finish chunks as workers do, without images: two transactions a chunk, and nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from threading import Barrier
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from benchmarks.scale.ground import image_name
from jobs.ledger import Ledger
from jobs.ledger.claims import claim_chunk
from jobs.ledger.results import Classified, Spent, record_results
from jobs.outcomes import Outcome

_LEASE_SECONDS: Final = 600.0

#: A worker notes where its time went, and so do we: the counters are a part of what a chunk costs.
_STAGES: Final = {"claim": 0.001, "read": 0.001, "load": 0.0, "decode": 0.02, "predict": 0.02}

#: How long processes wait for each other, to begin at the same moment.
_START_SECONDS: Final = 60.0


class Finished(NamedTuple):
    """What a crowd has done."""

    chunks_per_second: float
    claim_ms: float  # the median transaction
    record_ms: float
    #: From the statement that locks the job's row to the end of the COMMIT: the median where nobody waits.
    row_held_ms: float


class _Share(NamedTuple):
    """One process's part, by `time.perf_counter`, which all processes of a Linux machine share."""

    began: float
    ended: float
    claims: list[float]
    records: list[float]
    held: list[float]


def finish(url: str, shares: Sequence[Sequence[str]]) -> Finished:
    """Takes each share of chunks, of images in the thousands or one, through in a process of its own. Raises
    what the ledger does.
    """
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(len(shares), timeout=_START_SECONDS)
    with ProcessPoolExecutor(len(shares), mp_context=context, initializer=_begin, initargs=(start,)) as pool:
        done = list(pool.map(_finish_share, [url] * len(shares), shares))
    seconds = max(one.ended for one in done) - min(one.began for one in done)

    def middle(times: Iterator[list[float]]) -> float:
        return round(1000 * median(second for one in times for second in one), 3)

    return Finished(
        round(sum(map(len, shares)) / seconds, 1),
        middle(one.claims for one in done),
        middle(one.records for one in done),
        middle(one.held for one in done),
    )


_start: Barrier | None = None


def _begin(start: Barrier) -> None:
    global _start
    _start = start
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent, which then ends us


def _finish_share(url: str, chunk_ids: Sequence[str]) -> _Share:
    assert _start is not None
    share = _Share(0.0, 0.0, [], [], [])
    with contextlib.closing(Ledger(url)) as ledger:
        ledger.check()  # connects
        locked_at = _when_job_is_locked(ledger)
        _start.wait()
        began = time.perf_counter()
        for chunk_id in chunk_ids:
            _finish_chunk(ledger, chunk_id, share, locked_at)
        return share._replace(began=began, ended=time.perf_counter())


def _finish_chunk(ledger: Ledger, chunk_id: str, share: _Share, locked_at: list[float]) -> None:
    began = time.perf_counter()
    with ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk_id, lease_seconds=_LEASE_SECONDS, owner="benchmark")
    assert claim is not None
    share.claims.append(time.perf_counter() - began)
    indices = range(claim.first_index, claim.first_index + claim.images)
    outcomes = [Outcome(image_name(index), str(index % 10), 0.9921875) for index in indices]
    began = time.perf_counter()
    with ledger.transaction() as connection:
        record_results(connection, [Classified(claim, outcomes)], Spent(began, _STAGES))
    ended = time.perf_counter()
    share.records.append(ended - began)
    share.held.append(ended - locked_at[-1])


def _when_job_is_locked(ledger: Ledger) -> list[float]:
    """A list that gets the time at which each statement is done that moves a job's counters."""
    times: list[float] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE jobs"):
            times.append(time.perf_counter())

    # Afterwards, not before: with others about, the statement waits for the row first.
    sa.event.listen(ledger.engine, "after_cursor_execute", listen)
    return times
