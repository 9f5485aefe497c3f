"""Rows: their bytes, their log, how fast they are written; and how many chunks a job's row lets through."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.large_job import fill_predictions
from benchmarks.scale.crowd import finish
from benchmarks.scale.ground import CHUNK_IMAGES, Ground, make_job, noting, sizes
from jobs.ids import new_id
from labelmill.console import say

#: How many processes write into jobs of their own.
_WRITERS: Final = (1, 2, 4)

#: How many finish chunks of one job.
_CROWDS: Final = (1, 2, 4, 8)


def measure_rows(where: Ground, *, first: int, more: int) -> dict[str, Any]:
    """Writes some `first` rows as workers do, in three parts, and has PostgreSQL make them up to `more`."""
    chunks = max(max(_WRITERS), first // len(_WRITERS) // CHUNK_IMAGES)
    writers = {str(number): write_rows(where, number, chunks) for number in _WRITERS}
    at_first = sizes(where.ledger)
    say(f"rows: {at_first}, {writers}")
    left = more - int(at_first["rows"])
    if left > 0:
        say(f"writing {left:,} rows more")
        with where.ledger.transaction() as connection:
            fill_predictions(connection, new_id(), left)
    at_last = sizes(where.ledger)
    afterwards = write_rows(where, 1, chunks)
    say(f"rows: {at_last}, then {afterwards}")
    return {"bytes_a_row": [at_first, at_last], "writers": writers, "one_writer_afterwards": afterwards}


def measure_hot_row(where: Ground, *, chunks: int) -> dict[str, Any]:
    """Chunks of one image a second in one job, and beside it in as many jobs as there are processes."""
    found = {}
    for number in _CROWDS:
        one, many = (_finish_small(where, number, chunks, apart=apart) for apart in (False, True))
        say(f"{number} processes: one job {one}, a job each {many}")
        found[str(number)] = {"one_job": one, "a_job_each": many}
    return found


def write_rows(where: Ground, processes: int, chunks: int) -> dict[str, Any]:
    """Rows a second and their log, from so many processes into jobs of their own; so many chunks in all."""
    with where.ledger.transaction() as connection:
        shares = [
            make_job(connection, where.model_id, chunks=chunks // processes, images=CHUNK_IMAGES)[1]
            for _ in range(processes)
        ]
    rows = CHUNK_IMAGES * sum(map(len, shares))
    where.settle()
    with noting(where.ledger) as noted:
        done = finish(_url(where), shares)
    return {
        "rows": rows,
        "rows_per_second": round(done.chunks_per_second * CHUNK_IMAGES),
        "wal_bytes_a_row": round(noted["wal_bytes"] / rows, 1),
        "claim_ms": done.claim_ms,
        "record_ms": done.record_ms,
        "row_held_ms": done.row_held_ms,
    }


def _finish_small(where: Ground, processes: int, chunks: int, *, apart: bool) -> dict[str, float]:
    each = chunks // processes
    with where.ledger.transaction() as connection:
        if apart:
            made = [make_job(connection, where.model_id, chunks=each, images=1) for _ in range(processes)]
            shares = [ids for _, ids in made]
        else:
            _, ids = make_job(connection, where.model_id, chunks=each * processes, images=1)
            shares = [ids[number::processes] for number in range(processes)]
    where.settle()
    return finish(_url(where), shares)._asdict()


def _url(where: Ground) -> str:
    return where.ledger.engine.url.render_as_string(hide_password=False)
