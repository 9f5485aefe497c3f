"""The work: whether workers are running, and which jobs and training runs are stuck."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from jobs.ledger import metrics
from jobs.ledger.metrics import OpenJob
from jobs.ledger.runs import Run, find_active_run, latest_runs
from jobs.schema import RunState
from jobs.settings import Settings
from labelmill.console import counted
from labelmill.doctor.findings import Area, Finding, duration
from labelmill.doctor.ledger import check_in_ledger

_jobs = Area("jobs")
_training = Area("training")

#: Workers take over an expired lease within seconds. After this many lease times, none will.
_STUCK_LEASES: Final = 3

#: A chunk that was released this often meets a fault that does not go away by itself.
_MANY_RELEASES: Final = 5

_LONG_PAUSE_SECONDS: Final = 86_400.0

#: A trainer takes a run within seconds, unless it has just started.
_LONG_WAIT_SECONDS: Final = 300.0

#: A finding names at most this many jobs.
_NAMED: Final = 3


def check_jobs(settings: Settings) -> Iterator[Finding]:
    """Check the reconciler, and look for jobs that make no progress."""
    start = "labelmill up" if settings.embedded_broker else "labelmill worker"
    patience = _STUCK_LEASES * settings.lease_seconds

    def check(connection: Connection) -> Iterator[Finding]:
        jobs = metrics.open_jobs(connection, lost_seconds=patience, many_releases=_MANY_RELEASES)
        running = [job for job in jobs if job.paused_seconds is None]
        yield _reconciler(metrics.reconciler_lock(connection), has_work=bool(running), start=start)
        yield _progress(running, metrics.seconds_since_last_result(connection), patience, start=start)
        yield _returning(running)
        yield _paused(jobs)

    yield from check_in_ledger(_jobs, settings, check, if_none=_jobs.ok("there are none yet"))


def _reconciler(found: metrics.ReconcilerLock | None, *, has_work: bool, start: str) -> Finding:
    if found is not None and found.expired_seconds <= 0:
        return _jobs.ok(f"the reconciler runs in {found.holder}")
    since = (
        "none has ever run" if found is None else f"the last one ended {duration(found.expired_seconds)} ago"
    )
    if has_work:
        return _jobs.problem(f"no worker is running ({since}), and jobs are waiting", fix=start)
    return _jobs.warning(f"no worker is running ({since})", fix=start)


def _progress(jobs: list[OpenJob], last_result: float | None, patience: float, *, start: str) -> Finding:
    pending, working = sum(job.pending for job in jobs), sum(job.working for job in jobs)
    what = f"chunks: {pending:,} pending, {working:,} in work"
    lost = [job for job in jobs if job.lost]
    waiting = [job for job in jobs if job.pending_seconds is not None and job.pending_seconds > patience]
    fix = f"{start}; if one runs, read its log and restart it, which is always safe"
    if lost:
        return _jobs.problem(f"nobody took over the chunks of a dead worker: {_names(lost)}", fix=fix)
    if waiting and not working and (last_result is None or last_result > patience):
        return _jobs.problem(f"{what}, and none done for {duration(patience)}: {_names(waiting)}", fix=fix)
    return _jobs.ok(what)


def _returning(jobs: list[OpenJob]) -> Finding:
    found = [job for job in jobs if job.releases >= _MANY_RELEASES]
    if not found:
        return _jobs.ok("no chunk is given back again and again")
    worst = max(found, key=lambda job: job.releases)
    return _jobs.warning(
        f"chunks were given back up to {worst.releases} times ({worst.error}): {_names(found)}",
        fix="repair the service that this names; the chunks then go on by themselves",
    )


def _paused(jobs: list[OpenJob]) -> Finding:
    found = [job for job in jobs if (job.paused_seconds or 0.0) > _LONG_PAUSE_SECONDS]
    if not found:
        return _jobs.ok("no job has been paused for more than a day")
    return _jobs.warning(
        f"paused for more than a day: {_names(found)}",
        fix=f"labelmill resume {found[0].id}, or labelmill cancel {found[0].id}",
    )


def _names(jobs: list[OpenJob]) -> str:
    more = f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
    return f"{counted(len(jobs), 'job')}, {', '.join(job.id for job in jobs[:_NAMED])}{more}"


def check_training(settings: Settings) -> Iterator[Finding]:
    """Check the training run that has not finished, and the latest one that has."""
    start = "labelmill up" if settings.embedded_broker else "labelmill worker --trainer"

    def check(connection: Connection) -> Iterator[Finding]:
        yield _unfinished(find_active_run(connection), metrics.now(connection), start=start)
        # Two are enough: at most one has not finished.
        yield _latest(next((run for run in latest_runs(connection, limit=2) if run.finished), None))

    yield from check_in_ledger(
        _training, settings, check, if_none=_training.ok("there was no training run yet")
    )


def _unfinished(run: Run | None, now: datetime, *, start: str) -> Finding:
    if run is None:
        return _training.ok("no training run is waiting or running")
    if run.silent_since is not None:
        silent = duration((now - run.silent_since).total_seconds())
        return _training.warning(
            f"training run {run.id}: no sign of life of its trainer {run.owner} for {silent}",
            fix=f"labelmill runs show {run.id} --watch (it ends the run if the trainer is dead)",
        )
    waited = (now - run.requested_at).total_seconds() if run.requested_at else 0.0
    if run.state == RunState.PENDING and waited > _LONG_WAIT_SECONDS:
        return _training.warning(
            f"training run {run.id} has waited for a trainer for {duration(waited)}",
            fix=f"{start}, or labelmill runs cancel {run.id}",
        )
    return _training.ok(f"training run {run.id} is {run.state}")


def _latest(run: Run | None) -> Finding:
    if run is None:
        return _training.ok("no training run has finished yet")
    what = f"the latest training run {run.id} is {run.state}"
    if run.state != RunState.FAILED:
        return _training.ok(what)
    if "MNIST" in (run.error or "") and not run.data_source:  # it ended before it had its data
        return _training.warning(
            f"{what}: MNIST could not be loaded",
            fix="LABELMILL_MNIST_DIR=a folder with MNIST's four IDX files; then labelmill retrain",
        )
    return _training.warning(f"{what}: {run.error}", fix=f"labelmill runs show {run.id}; labelmill retrain")
