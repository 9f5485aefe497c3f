"""Training: the schedule, its runs, and whether its data is at hand on a machine that can train."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import DataUnavailable, SettingsError
from jobs.ledger.diagnosis import now
from jobs.ledger.runs import find_active_run, latest_runs
from jobs.schema import RunState
from jobs.settings import Settings
from labelmill.doctor.findings import Area, Finding, duration
from labelmill.doctor.ledger import SEE_LEDGER, NotLookedAt, look_into_ledger
from labelmill.looking import NoLedgerYet, words_of
from worker.schedule import beat_schedule

_area = Area("training")

#: A trainer that is there takes a run within seconds, unless it has just begun to start.
_WAITING_SECONDS: Final = 300.0


def check_training(settings: Settings) -> Iterator[Finding]:
    """The cron line, the run under way and the latest one, and MNIST."""
    yield _schedule(settings)
    try:
        with look_into_ledger(settings) as connection:
            yield _under_way(connection, settings)
            yield _latest(connection)
    except NoLedgerYet:
        yield _area.ok("there was no training run yet")
    except NotLookedAt as error:
        yield _area.warning(str(error), fix=SEE_LEDGER)
    if find_spec("tensorflow") is not None:
        yield _data(settings)


def _schedule(settings: Settings) -> Finding:
    try:
        schedule = beat_schedule(settings)
    except SettingsError as error:
        return _area.problem(words_of(error, settings), fix="LABELMILL_RETRAIN_CRON='0 3 * * 0', or never")
    if not schedule:
        return _area.ok("retraining is switched off")
    return _area.ok(f"retraining at {settings.retrain_cron} (cron, UTC)")


def _under_way(connection: Connection, settings: Settings) -> Finding:
    run = find_active_run(connection)
    if run is None:
        return _area.ok("no training run is under way")
    if run.silent_since is not None:
        silent = (now(connection) - run.silent_since).total_seconds()
        return _area.warning(
            f"training run {run.id} is under way, but its trainer {run.owner} gave no sign of life for "
            f"{duration(silent)}, and nobody has ended it",
            fix=f"labelmill runs show {run.id} --watch, which ends it where the trainer is dead",
        )
    if run.state == RunState.RUNNING:
        return _area.ok(f"training run {run.id} is under way: {run.owner} trains")
    waits = (now(connection) - run.requested_at).total_seconds() if run.requested_at else 0.0
    if waits < _WAITING_SECONDS:
        return _area.ok(f"training run {run.id} waits for a trainer")
    start = "labelmill up" if settings.embedded_broker else "labelmill worker --trainer"
    return _area.warning(
        f"training run {run.id} has been waiting for a trainer for {duration(waits)}",
        fix=f"{start}, or labelmill runs cancel {run.id}",
    )


def _latest(connection: Connection) -> Finding:
    # Of two: one at most is under way.
    run = next((run for run in latest_runs(connection, limit=2) if run.finished), None)
    if run is None:
        return _area.ok("no training run has finished yet")
    what = f"the latest training run {run.id} is {run.state}"
    if run.state == RunState.DONE:
        return _area.ok(f"{what}: {run.verdict}")
    if run.state == RunState.FAILED:
        return _area.warning(f"{what}: {run.error}", fix=f"labelmill runs show {run.id}; labelmill retrain")
    return _area.ok(what + (f": {run.error}" if run.error else ""))


def _data(settings: Settings) -> Finding:
    from worker.learning import mnist  # needs NumPy

    if settings.mnist_dir is not None:
        try:
            mnist.read_folder(settings.mnist_dir, lambda _line: None)
        except DataUnavailable as error:
            return _area.warning(
                f"cannot train: {words_of(error, settings)}",
                fix="LABELMILL_MNIST_DIR=a folder with MNIST's four IDX files, or left out for a download",
            )
        return _area.ok(f"MNIST is in {settings.mnist_dir}")
    if (settings.cache_dir / mnist.CACHED).exists():
        return _area.ok("MNIST was downloaded before")
    return _area.ok("MNIST is not here yet; the first training downloads it")
