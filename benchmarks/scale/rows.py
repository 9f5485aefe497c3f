"""Rows: their bytes, their log, how fast they are written; and how many chunks a job's row allows."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.large_job import fill_predictions
from benchmarks.scale.ledgers import CHUNK_IMAGES, PreparedLedger, make_jobs, noting, sizes
from benchmarks.scale.workers import finish
from jobs.ids import new_id
from labelmill.console.terminal import say

#: How many processes write into jobs of their own.
_WRITERS: Final = (1, 2, 4)

#: How many finish chunks of one job.
_FINISHERS: Final = (1, 2, 4, 8)


def measure_rows(prepared: PreparedLedger, *, first: int, more: int) -> dict[str, Any]:
    """Write about `first` rows as workers do, in three parts, and let PostgreSQL add rows up to `more`."""
    chunks = max(max(_WRITERS), first // len(_WRITERS) // CHUNK_IMAGES)
    writers = {str(number): write_rows(prepared, number, chunks) for number in _WRITERS}
    at_first = sizes(prepared.ledger)
    say(f"rows: {at_first}, {writers}")
    left = more - int(at_first["rows"])
    if left > 0:
        say(f"writing {left:,} more rows")
        with prepared.ledger.transaction() as connection:
            fill_predictions(connection, new_id(), left)
    at_last = sizes(prepared.ledger)
    afterwards = write_rows(prepared, 1, chunks)
    say(f"rows: {at_last}, then {afterwards}")
    return {"bytes_per_row": [at_first, at_last], "writers": writers, "one_writer_afterwards": afterwards}


def measure_hot_row(prepared: PreparedLedger, *, chunks: int) -> dict[str, Any]:
    """Return chunks of one image per second, of one job, and of as many jobs as there are processes."""
    found = {}
    for number in _FINISHERS:
        one, many = (_finish_small(prepared, number, chunks, apart=apart) for apart in (False, True))
        say(f"{number} processes: one job {one}, one job each {many}")
        found[str(number)] = {"one_job": one, "one_job_each": many}
    return found


def write_rows(prepared: PreparedLedger, processes: int, chunks: int) -> dict[str, Any]:
    """Return rows per second and their log, from so many processes and jobs; so many chunks in all."""
    each = chunks // processes
    with prepared.ledger.transaction() as connection:
        make_jobs(connection, prepared.model_id, jobs=processes, chunks=each, images=CHUNK_IMAGES)
    rows = CHUNK_IMAGES * processes * each
    prepared.settle()
    with noting(prepared.ledger) as noted:
        done = finish(_url(prepared), processes=processes, chunks=each, images=CHUNK_IMAGES)
    return {
        "rows": rows,
        "rows_per_second": round(done.chunks_per_second * CHUNK_IMAGES),
        "wal_bytes_per_row": round(noted["wal_bytes"] / rows, 1),
        "claim_ms": done.claim_ms,
        "record_ms": done.record_ms,
        "row_held_ms": done.row_held_ms,
    }


def _finish_small(prepared: PreparedLedger, processes: int, chunks: int, *, apart: bool) -> dict[str, float]:
    each = chunks // processes
    with prepared.ledger.transaction() as connection:
        jobs = processes if apart else 1
        make_jobs(connection, prepared.model_id, jobs=jobs, chunks=each * processes // jobs, images=1)
    prepared.settle()
    return finish(_url(prepared), processes=processes, chunks=each, images=1)._asdict()


def _url(prepared: PreparedLedger) -> str:
    return prepared.ledger.engine.url.render_as_string(hide_password=False)
