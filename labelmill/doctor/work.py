"""The work: whether somebody does it, and what does not move."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from sqlalchemy.engine import Connection

from jobs.ledger import diagnosis
from jobs.ledger.submission import ABANDONED_SECONDS
from jobs.settings import Settings
from labelmill.console import counted
from labelmill.doctor.findings import Area, Finding, duration
from labelmill.doctor.ledger import SEE_LEDGER, NotLookedAt, look_into_ledger
from labelmill.looking import NoLedgerYet

_area = Area("jobs")

#: A lease that ran out is taken up within seconds; after so many leases nobody is going to.
_LOST_LEASES: Final = 3

#: Given back so often, a chunk meets something that does not go away by itself.
_MANY_RELEASES: Final = 5

_LATELY_SECONDS: Final = 7 * 86_400.0
_LONG_PAUSE_SECONDS: Final = 86_400.0

#: The reconciler needs a moment of its own to fail a job whose producer is gone.
_SILENT_SECONDS: Final = ABANDONED_SECONDS + 30.0

#: Jobs are named up to so many.
_NAMED: Final = 3


def check_work(settings: Settings) -> Iterator[Finding]:
    """The reconciler, and jobs and chunks that wait for something that does not come."""
    try:
        with look_into_ledger(settings) as connection:
            yield from _work(connection, settings)
    except NoLedgerYet:
        yield _area.ok("there are none yet")
    except NotLookedAt as error:
        yield _area.warning(str(error), fix=SEE_LEDGER)


def _work(connection: Connection, settings: Settings) -> Iterator[Finding]:
    start = "labelmill up" if settings.embedded_broker else "labelmill worker"
    work = diagnosis.work(connection)
    silent = diagnosis.silent_jobs(connection, seconds=_SILENT_SECONDS)
    lost = diagnosis.lost_chunks(connection, seconds=_LOST_LEASES * settings.lease_seconds)
    yield _reconciler(
        diagnosis.reconciling(connection), waits=bool(work.waiting or silent or lost), start=start
    )
    yield _progress(work, settings, start=start)
    yield _lost(lost, start=start)
    yield _silent(silent, start=start)
    yield _crashing(diagnosis.crashing_chunks(connection))
    yield _returning(diagnosis.returning_chunks(connection, releases=_MANY_RELEASES))
    yield _given_up(diagnosis.given_up_images(connection, seconds=_LATELY_SECONDS))
    yield _paused(diagnosis.paused_jobs(connection, seconds=_LONG_PAUSE_SECONDS))


def _reconciler(found: diagnosis.Reconciling | None, *, waits: bool, start: str) -> Finding:
    if found is not None and found.over <= 0:
        return _area.ok(f"{found.holder} reconciles")
    since = "nobody ever has" if found is None else f"{found.holder} stopped {duration(found.over)} ago"
    what = f"no worker is running: nobody reconciles ({since})"
    if waits:
        return _area.problem(f"{what}, and there is work", fix=start)
    return _area.warning(what, fix=start)


def _progress(work: diagnosis.Work, settings: Settings, *, start: str) -> Finding:
    patience = _LOST_LEASES * settings.lease_seconds
    what = f"chunks: {work.waiting:,} waiting, {work.under_way:,} under way"
    waits_long = work.oldest_waiting is not None and work.oldest_waiting > patience
    stands_still = work.last_finished is None or work.last_finished > patience
    if work.under_way or not waits_long or not stands_still:
        return _area.ok(what)
    return _area.problem(
        f"{what}; none was finished for {duration(patience)}",
        fix=f"{start}; where one runs, its log says why it takes nothing, and restarting it is always safe",
    )


def _lost(found: dict[str, int], *, start: str) -> Finding:
    if not found:
        return _area.ok("no chunk's lease ran out long ago")
    chunks = counted(sum(found.values()), "chunk")
    return _area.problem(
        f"the worker of {chunks} vanished, and nobody took up its work: {_names(found)}",
        fix=f"{start}; where one runs, look at what is said of the broker",
    )


def _silent(found: list[str], *, start: str) -> Finding:
    if not found:
        return _area.ok("every job that is being received has its producer")
    return _area.warning(
        f"the producer of {counted(len(found), 'job')} vanished in mid-submission: {_names(found)}",
        fix=f"{start} (they fail by themselves then), or labelmill cancel {found[0]}; then submit again",
    )


def _crashing(found: dict[str, int]) -> Finding:
    if not found:
        return _area.ok("no chunk under way crashed before")
    return _area.warning(
        f"{counted(sum(found.values()), 'chunk')} crashed; trying again, in halves: {_names(found)}",
        fix="wait: the image that does it is found by itself. The worker's log has what it died of",
    )


def _returning(found: list[diagnosis.Returning]) -> Finding:
    if not found:
        return _area.ok("no chunk is given back again and again")
    worst = max(found, key=lambda chunk: chunk.releases)
    return _area.warning(
        f"chunks of {_names([chunk.job_id for chunk in found])} are given back again and again, "
        f"one {worst.releases} times: {worst.error}",
        fix="what that says: a service that was away comes back by itself, or see what is said of it here",
    )


def _given_up(found: dict[str, int]) -> Finding:
    if not found:
        return _area.ok("no image was given up in the last seven days")
    return _area.warning(
        f"given up after crashing all alone: {counted(sum(found.values()), 'image')}, in {_names(found)}",
        fix=f"labelmill predictions {next(iter(found))} --errors",
    )


def _paused(found: list[str]) -> Finding:
    if not found:
        return _area.ok("no job has been paused for long")
    return _area.warning(
        f"paused for over a day: {_names(found)}",
        fix=f"labelmill resume {found[0]}, or labelmill cancel {found[0]}",
    )


def _names(job_ids: Collection[str]) -> str:
    named = list(job_ids)[:_NAMED]
    more = len(job_ids) - len(named)
    return f"job {', '.join(named)}" + (f" and {more} more" if more else "")
