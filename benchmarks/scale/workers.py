"""Processes that finish chunks as workers do, without images: two transactions per chunk, nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from threading import Barrier
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from benchmarks.producer import ignore_ctrl_c
from benchmarks.scale.ledgers import image_name
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import claim_next
from jobs.ledger.jobs.outcomes import Outcomes
from jobs.ledger.jobs.results import Classified, Spent, record_results

_LEASE_SECONDS: Final = 600.0

#: A worker records its timings, and so do these: the counters are a part of what a chunk costs.
_TIMINGS: Final = {"claim": 0.001, "read": 0.001, "load": 0.0, "decode": 0.02, "predict": 0.02}

#: How long processes wait for each other, to begin at the same moment.
_START_SECONDS: Final = 60.0


class Finished(NamedTuple):
    """How fast the processes were."""

    chunks_per_second: float
    claim_ms: float  # the median transaction
    record_ms: float
    #: Median from the statement that locks the job's row to the end of the COMMIT.
    row_held_ms: float


class _Share(NamedTuple):
    """One process's part, by `time.perf_counter`, which all processes of a Linux machine share."""

    began: float
    ended: float
    claims: list[float]
    records: list[float]
    held: list[float]


def finish(url: str, *, processes: int, chunks: int, images: int) -> Finished:
    """Finish so many chunks per process, of so many images each. They must be all that wait in the ledger.

    Raises what the ledger does.
    """
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(processes, timeout=_START_SECONDS)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(start,)) as pool:
        done = list(pool.map(_finish_share, *zip(*[(url, chunks, images)] * processes, strict=True)))
    seconds = max(one.ended for one in done) - min(one.began for one in done)

    def middle(times: Iterator[list[float]]) -> float:
        return round(1000 * median(second for one in times for second in one), 3)

    return Finished(
        round(processes * chunks / seconds, 1),
        middle(one.claims for one in done),
        middle(one.records for one in done),
        middle(one.held for one in done),
    )


_start: Barrier | None = None


def _begin(start: Barrier) -> None:
    global _start
    _start = start
    ignore_ctrl_c()


def _finish_share(url: str, chunks: int, images: int) -> _Share:
    assert _start is not None
    share = _Share(0.0, 0.0, [], [], [])
    with contextlib.closing(Ledger(url)) as ledger:
        ledger.check()  # connects
        locked_at = _when_job_is_locked(ledger)
        _start.wait()
        began = time.perf_counter()
        for _ in range(chunks):
            _finish_chunk(ledger, images, share, locked_at)
        return share._replace(began=began, ended=time.perf_counter())


def _finish_chunk(ledger: Ledger, images: int, share: _Share, locked_at: list[float]) -> None:
    began = time.perf_counter()
    with ledger.transaction(durable=False) as connection:  # like a worker's claim
        [claim] = claim_next(
            connection,
            owner="benchmark",
            token=new_id(),
            lease_seconds=_LEASE_SECONDS,
            images_for=lambda _model_id: images,
        )
    share.claims.append(time.perf_counter() - began)
    indices = range(claim.first_index, claim.first_index + claim.images)
    outcomes = Outcomes(
        list(map(image_name, indices)), [str(index % 10) for index in indices], [0.9921875] * images
    )
    began = time.perf_counter()
    with ledger.transaction() as connection:
        record_results(connection, [Classified(claim, outcomes)], Spent(began, _TIMINGS))
    ended = time.perf_counter()
    share.records.append(ended - began)
    share.held.append(ended - locked_at[-1])


def _when_job_is_locked(ledger: Ledger) -> list[float]:
    """Return a list that gets the time of each statement that moved a job's counters."""
    times: list[float] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE jobs"):
            times.append(time.perf_counter())

    # Afterwards, not before: if other processes write, the statement waits for the row first.
    sa.event.listen(ledger.engine, "after_cursor_execute", listen)
    return times
