"""The work: whether workers are running, and which jobs and training runs are stuck."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy.engine import Connection

from jobs.ledger import metrics
from jobs.ledger.clock import database_now
from jobs.ledger.learning.runs import active_runs
from jobs.ledger.learning.schedules import list_schedules
from jobs.ledger.metrics import OpenJob
from jobs.ledger.workers import BEAT, list_workers, workers_by_queue
from jobs.messages import RETRAIN_QUEUE
from jobs.schema import RunState
from jobs.settings import Settings
from labelmill.console.terminal import format_duration, pluralize
from labelmill.operations.doctor.commands import commands_of
from labelmill.operations.doctor.findings import Finding, ok, problem, warning
from labelmill.operations.doctor.ledger import in_ledger
from worker.schedule import overdue_slots

#: Workers take over an expired lease within seconds. After this many lease times, none will.
_STUCK_LEASES: Final = 3

#: A chunk that was released this often meets a fault that does not go away by itself.
_MANY_RELEASES: Final = 5

#: A trainer takes a run within seconds, unless it has just started.
_LONG_WAIT_SECONDS: Final = 300.0

#: A finding names at most this many jobs.
_MAX_NAMED: Final = 3


@in_ledger(if_none=ok("there are none yet"))
def check_jobs(settings: Settings, connection: Connection) -> Iterator[Finding]:
    """Check the reconciler, and look for jobs that make no progress."""
    commands, limit = commands_of(settings), _STUCK_LEASES * settings.lease_seconds
    jobs = metrics.open_jobs(connection, lost_seconds=limit, many_releases=_MANY_RELEASES)
    yield _reconciler(metrics.reconciler_lock(connection), has_work=bool(jobs), start=commands.worker)
    yield _progress(jobs, metrics.seconds_since_last_result(connection), limit, start=commands.worker)
    yield _releases(jobs)
    for worker in list_workers(connection):
        if worker.alive and worker.problem is not None:
            fix = f"{commands.run} workers, then read its log"
            yield problem(f"the worker {worker.name}: {worker.problem}", fix=fix)


def _reconciler(found: metrics.ReconcilerLock | None, *, has_work: bool, start: str) -> Finding:
    if found is not None and found.expired_seconds <= 0:
        return ok(f"the reconciler runs in {found.holder}")
    since = (
        "none has ever run"
        if found is None
        else f"the last one ended {format_duration(found.expired_seconds)} ago"
    )
    if has_work:
        return problem(f"no worker is running ({since}), and jobs are waiting", fix=start)
    return warning(f"no worker is running ({since})", fix=start)


def _progress(jobs: list[OpenJob], last_result: float | None, limit: float, *, start: str) -> Finding:
    pending, working = sum(job.pending for job in jobs), sum(job.working for job in jobs)
    what = f"chunks: {pending:,} pending, {working:,} in work"
    lost = [job for job in jobs if job.lost]
    waiting = [job for job in jobs if job.pending_seconds is not None and job.pending_seconds > limit]
    fix = f"{start}; if one runs, read its log and restart it, which is always safe"
    if lost:
        return problem(f"no worker took over the chunks of a dead worker: {_names(lost)}", fix=fix)
    if waiting and not working and (last_result is None or last_result > limit):
        return problem(f"{what}, and none done for {format_duration(limit)}: {_names(waiting)}", fix=fix)
    return ok(what)


def _releases(jobs: list[OpenJob]) -> Finding:
    found = [job for job in jobs if job.releases >= _MANY_RELEASES]
    if not found:
        return ok("no chunk was released again and again")
    worst = max(found, key=lambda job: job.releases)
    return warning(
        f"chunks were released up to {worst.releases} times ({worst.error}): {_names(found)}",
        fix="repair the service that the error names; then the chunks are retried by themselves",
    )


def _names(jobs: list[OpenJob]) -> str:
    more = f" and {len(jobs) - _MAX_NAMED} more" if len(jobs) > _MAX_NAMED else ""
    return f"{pluralize(len(jobs), 'job')}, {', '.join(job.id for job in jobs[:_MAX_NAMED])}{more}"


@in_ledger(if_none=ok("there was no training run yet"))
def check_training(settings: Settings, connection: Connection) -> Iterator[Finding]:
    """Check whether a training run waits in vain. The reconciler ends a run whose trainer is dead."""
    commands, runs, alive = commands_of(settings), active_runs(connection), workers_by_queue(connection)
    if not runs:
        yield ok("no training run is waiting or running")
    for run in runs:
        fix = f"{commands.trainer}, or {commands.run} runs cancel {run.id}"
        waited = 0.0
        if run.state == RunState.PENDING:
            waited = (database_now(connection) - run.requested_at).total_seconds()
        if run.state == RunState.PENDING and RETRAIN_QUEUE not in alive:
            yield warning(f"no trainer is running, and training run {run.id} waits", fix=fix)
        elif waited > _LONG_WAIT_SECONDS and not any(run.state == RunState.RUNNING for run in runs):
            what = f"training run {run.id} has waited for a trainer for {format_duration(waited)}"
            yield warning(what, fix=fix)
        else:
            yield ok(f"training run {run.id} of dataset {run.dataset} is {run.state}")
    yield from _schedules(connection, settings, has_beat=BEAT in alive)


def _schedules(connection: Connection, settings: Settings, *, has_beat: bool) -> Iterator[Finding]:
    """Yield which trainings are overdue, and a warning if beat is needed but not running."""
    commands = commands_of(settings)
    schedules = list_schedules(connection)
    if not has_beat and any(schedule.cron or schedule.after_corrections for schedule in schedules):
        yield warning("beat is not running, so no scheduled training starts", fix=commands.beat)
    for dataset, slot in overdue_slots(connection, schedules).items():
        yield warning(
            f"the training of {dataset} at {slot:%Y-%m-%d %H:%M} UTC was not requested",
            fix=f"{commands.run} retrain --dataset {dataset}; if beat is running, read its log",
        )
