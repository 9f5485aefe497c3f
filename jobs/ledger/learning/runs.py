"""Training runs: requested, claimed by a trainer under a lease, followed epoch by epoch, and ended.

Three unique indexes enforce the rules, each per dataset. `active` is 1 while a run is pending or running and
empty afterwards, so there is one such run at a time. `slot` is the scheduled time that a run was made for,
and `corrections_seen` the time of the newest of the corrections that triggered it, so there is one run for
each, however many beats are running. A trainer holds its run as a worker holds a chunk
(`jobs.ledger.jobs.claims`): by a lease with a fencing token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, LabelmillError, NotFound
from jobs.ids import new_id
from jobs.ledger.api_objects import describe_run
from jobs.ledger.counters import CounterName, count
from jobs.ledger.database import Ledger, insert_into
from jobs.ledger.learning.models import StoredVerdict
from jobs.ledger.webhook_outbox import report
from jobs.ledger.workers import workers_by_queue
from jobs.messages import RETRAIN_QUEUE
from jobs.models.dataset import MNIST
from jobs.network.webhooks import Event
from jobs.schema import RunState, db_now, models, training_epochs, training_runs, verdicts

#: How long a trainer owns its run without a heartbeat.
RUN_LEASE_SECONDS: Final = 60.0

#: A scheduled run is skipped if no trainer claims it within this time: it must not start unexpectedly when a
#: trainer is started days later. The time during which a trainer executes another run, of another dataset,
#: does not count. A run that a person requested waits as long as it takes.
SLOT_PATIENCE_SECONDS: Final = 3600.0

#: Why a scheduled run is skipped whose images, corrections and settings are those of the last one.
_NOTHING_NEW: Final = "nothing is new since the last run"

#: Pending, or claimed by a trainer.
UNFINISHED_RUN: Final = (RunState.PENDING, RunState.RUNNING)


class RunLost(LabelmillError):
    """This trainer no longer owns the training run, so its results are discarded."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    id: str
    state: RunState
    recipe: dict[str, Any]
    slot: datetime | None  # its scheduled time; None if a person requested it
    data_source: str  # empty until the data is loaded
    data_fingerprint: str  # of training and evaluation data; empty until the data is loaded
    data: dict[str, Any] | None  # how many images of each kind
    owner: str | None  # the process that trains, or did
    requested_at: datetime
    started_at: datetime | None  # None until a trainer claims it
    finished_at: datetime | None
    model_id: str | None
    verdict: str | None  # the gate's reason, one sentence
    error: str | None  # why it produced no model
    accuracy: float | None  # the model's, on the evaluation images
    epochs_done: int
    expected_at: datetime | None = None  # when its last epoch ends at the latest; None until it is known
    silent_since: datetime | None = None  # its trainer's last heartbeat, if the lease has expired
    dataset: str = MNIST
    dataset_version: int | None = None  # None until the data is loaded
    input_file_id: str | None = None  # the uploaded archive whose images it adds first

    @property
    def finished(self) -> bool:
        """Return whether the run has ended."""
        return self.state not in UNFINISHED_RUN


@dataclass(frozen=True, slots=True)
class RunClaim:
    """The right to train for one run until its lease runs out."""

    run_id: str
    token: str
    recipe: dict[str, Any]
    dataset: str = MNIST
    input_file_id: str | None = None  # the uploaded archive whose images it adds first
    delete_input: bool | None = None  # once they have been read


# ---- requesting a run ---------------------------------------------------------------------------------


def request_run(
    connection: Connection,
    run_id: str,
    *,
    recipe: dict[str, Any],
    dataset: str = MNIST,
    slot: datetime | None = None,
    corrections_seen: datetime | None = None,
    input_file_id: str | None = None,
    delete_input: bool = False,
) -> RunState | None:
    """Add a run that waits for a trainer. Return its state, or None if nothing was stored.

    `slot` or `corrections_seen`, the time of the newest correction, is what a schedule requests the run for.
    Nothing is stored if it already has its run. If another run of the dataset is active, a person's request
    raises Conflict, a run for a slot is stored as `skipped`, with the reason, and a run for corrections is
    not stored: repeat the request later. A run whose trainer has died stays active until it is ended: call
    `clear_expired_run` first.
    """
    end_active_runs(connection, *STALE)
    asked = {
        "dataset": dataset,
        "recipe": recipe,
        "slot": slot,
        "corrections_seen": corrections_seen,
        "input_file_id": input_file_id,
        "delete_input": delete_input,
        "data_source": "",
        "data_fingerprint": "",
        "requested_at": db_now(),
    }
    while not _insert(connection, run_id, state=RunState.PENDING, active=1, **asked):
        if _has_run(connection, dataset, slot, corrections_seen):
            return None
        other = find_active_run(connection, dataset)
        if other is None:  # it has just finished
            continue
        if corrections_seen is not None:
            return None
        if slot is None:
            raise Conflict(
                f"Training run {other.id} is already {other.state}, on dataset {dataset}: follow it with "
                f"`labelmill runs show {other.id} --watch`, or stop it with "
                f"`labelmill runs cancel {other.id}`."
                f"{_missing_trainer_hint(connection, other)}"
            )
        skipped = _insert(
            connection,
            run_id,
            state=RunState.SKIPPED,
            error=f"training run {other.id} was active",
            finished_at=db_now(),
            **asked,
        )
        if not skipped:
            return None
        _report_end(connection, run_id, RunState.SKIPPED)
        return RunState.SKIPPED
    return RunState.PENDING


def skip_slot(
    connection: Connection, run_id: str, *, recipe: dict[str, Any], dataset: str, slot: datetime
) -> RunState | None:
    """Record that nothing was trained at this time, because nothing is new. Return the state of a new row.

    One row stands for all such times that follow each other: it moves on to the latest.
    """
    if _has_run(connection, dataset, slot, None):
        return None
    query = sa.select(*training_runs.c["id", "state", "error"]).where(training_runs.c.dataset == dataset)
    run = connection.execute(query.order_by(training_runs.c.requested_at.desc()).limit(1)).one_or_none()
    times = {"slot": slot, "requested_at": db_now(), "finished_at": db_now()}
    if run is not None and (run.state, run.error) == (RunState.SKIPPED, _NOTHING_NEW):
        connection.execute(training_runs.update().where(training_runs.c.id == run.id).values(times))
        return None
    empty = {"data_source": "", "data_fingerprint": "", "error": _NOTHING_NEW}
    if not _insert(
        connection, run_id, state=RunState.SKIPPED, dataset=dataset, recipe=recipe, **times, **empty
    ):
        return None
    _report_end(connection, run_id, RunState.SKIPPED)
    return RunState.SKIPPED


def _has_run(
    connection: Connection, dataset: str, slot: datetime | None, corrections_seen: datetime | None
) -> bool:
    """Return whether the slot, or the newest correction, has its run already."""
    if slot is None and corrections_seen is None:
        return False
    cause = training_runs.c.slot == slot if slot else training_runs.c.corrections_seen == corrections_seen
    query = sa.select(training_runs.c.id).where(training_runs.c.dataset == dataset, cause)
    return connection.scalar(query.limit(1)) is not None


def _missing_trainer_hint(connection: Connection, run: Run) -> str:
    """Return a sentence that says no trainer is running, or "" if the run does not wait for one."""
    if run.state != RunState.PENDING or RETRAIN_QUEUE in workers_by_queue(connection):
        return ""
    return (
        " It waits for a trainer, and none is running: `labelmill up` starts one, and in a deployment "
        "`labelmill worker --trainer` does."
    )


def _insert(connection: Connection, run_id: str, **values: Any) -> bool:
    """Insert the run. Return False if another run of the dataset is active or has the same cause."""
    inserted = (
        insert_into(connection, training_runs)
        .values(id=run_id, **values)
        .on_conflict_do_nothing()
        .returning(training_runs.c.id)
    )
    return connection.scalar(inserted) is not None


# ---- the trainer's statements -------------------------------------------------------------------------


def claim_run(connection: Connection, run_id: str, *, owner: str) -> RunClaim | None:
    """Claim the run. Return None if it is not pending, or is stale."""
    token = new_id()
    claimed = connection.execute(
        training_runs.update()
        .where(training_runs.c.id == run_id, training_runs.c.state == RunState.PENDING, ~is_stale())
        .values(
            state=RunState.RUNNING,
            token=token,
            owner=owner,
            lease_until=db_now(RUN_LEASE_SECONDS),
            started_at=db_now(),
        )
        .returning(*training_runs.c["recipe", "dataset", "input_file_id", "delete_input"])
    ).one_or_none()
    return None if claimed is None else RunClaim(run_id, token, *claimed)


def renew_run(connection: Connection, claim: RunClaim) -> None:
    """Renew the lease. Raises RunLost."""
    _change(connection, claim, lease_until=db_now(RUN_LEASE_SECONDS))


def describe_data(
    connection: Connection,
    claim: RunClaim,
    *,
    source: str,
    fingerprint: str,
    data: dict[str, Any],
    version: int | None = None,
    recipe: dict[str, Any] | None = None,
) -> None:
    """Record what the run trains on: `version` is its dataset's. Raises RunLost.

    `recipe` replaces the run's recipe, because parts of it are chosen when the data is known.
    """
    _change(
        connection,
        claim,
        **({} if recipe is None else {"recipe": recipe}),
        data_source=source,
        data_fingerprint=fingerprint,
        data=data,
        dataset_version=version,
    )


def expect_end(connection: Connection, claim: RunClaim, seconds: float) -> None:
    """Record that the last epoch ends in so many seconds, or earlier. Raises RunLost."""
    _change(connection, claim, expected_at=db_now(seconds))


def add_epoch(connection: Connection, claim: RunClaim, epoch: dict[str, float]) -> None:
    """Record a finished epoch and renew the lease. Raises RunLost.

    `epoch` holds epoch (from 1), loss, accuracy, val_loss, val_accuracy and seconds. An epoch that is already
    recorded is left unchanged.
    """
    renew_run(connection, claim)
    connection.execute(
        insert_into(connection, training_epochs).values(run_id=claim.run_id, **epoch).on_conflict_do_nothing()
    )


def finish_run(connection: Connection, claim: RunClaim, *, model_id: str, verdict: str) -> None:
    """Record that the run produced a model, and what the gate decided about it.

    Raises RunLost; the caller's transaction must then roll back, because it also moves the champion.
    """
    _change(connection, claim, model_id=model_id, verdict=verdict, **_ended(RunState.DONE))
    _report_end(connection, claim.run_id, RunState.DONE)


def fail_run(
    connection: Connection, claim: RunClaim, error: str, *, state: RunState = RunState.FAILED
) -> None:
    """End the run without a model. Raises RunLost.

    The state is `failed`, or `interrupted` if the trainer was told to stop.
    """
    _change(connection, claim, **_ended(state, error))
    _report_end(connection, claim.run_id, state)


def was_finished_by(connection: Connection, claim: RunClaim) -> bool:
    """Return whether this claim finished the run; resolves a COMMIT whose outcome is unknown."""
    done = sa.select(training_runs.c.id).where(
        training_runs.c.id == claim.run_id,
        training_runs.c.token == claim.token,
        training_runs.c.state == RunState.DONE,
    )
    return connection.scalar(done) is not None


def _change(connection: Connection, claim: RunClaim, **values: Any) -> None:
    """Change the row if this claim still holds it: the fence. Raises RunLost."""
    changed = connection.execute(
        training_runs.update()
        .where(
            training_runs.c.id == claim.run_id,
            training_runs.c.token == claim.token,
            training_runs.c.state == RunState.RUNNING,
        )
        .values(**values)
    )
    if changed.rowcount != 1:
        run = get_run(connection, claim.run_id)
        why = f": {run.error}" if run.error else ""
        raise RunLost(f"Training run {run.id} is {run.state}{why}.")


def _ended(state: RunState, error: str | None = None) -> dict[str, Any]:
    return {"state": state, "active": None, "lease_until": None, "finished_at": db_now(), "error": error}


def _report_end(connection: Connection, run_id: str, state: RunState) -> None:
    """Count a run that has ended, and report it to webhooks."""
    count(connection, {(CounterName.TRAINING_RUNS, state): 1})
    report(connection, Event.RUN_FINISHED, lambda: describe_run(get_run(connection, run_id)))


# ---- ending a run from outside ------------------------------------------------------------------------


def cancel_run(connection: Connection, run_id: str, *, by: str | None = None) -> Run:
    """Cancel the run, and note by whom. Its trainer notices within seconds, and its results are discarded.

    Raises NotFound, or Conflict if the run had finished.
    """
    this = training_runs.c.id == run_id
    cancelled = end_active_runs(connection, this, RunState.CANCELLED, by and f"stopped by {by}")
    if not cancelled:
        raise Conflict(
            f"Training run {run_id} has already finished: it is {get_run(connection, run_id).state}."
        )
    return cancelled[0]


def interrupt_runs_of(connection: Connection, owners: Iterable[str], *, error: str) -> list[Run]:
    """End the active runs of these processes, which are dead or were told to stop. Return them.

    Without this, the dataset's next run would have to wait for the lease to expire.
    """
    theirs = sa.and_(training_runs.c.state == RunState.RUNNING, training_runs.c.owner.in_(list(owners)))
    return end_active_runs(connection, theirs, RunState.INTERRUPTED, error)


def end_active_runs(
    connection: Connection, which: sa.ColumnElement[bool], state: RunState, error: str | None = None
) -> list[Run]:
    """End the active runs that satisfy `which`. Return them.

    The condition is checked again by the UPDATE itself, because an earlier read may be out of date.
    """
    ended = connection.scalars(
        training_runs.update()
        .where(training_runs.c.active == 1, which)
        .values(**_ended(state, error))
        .returning(training_runs.c.id)
    ).all()
    for each in ended:
        _report_end(connection, each, state)
    return [get_run(connection, each) for each in ended]


def lease_is_expired() -> sa.ColumnElement[bool]:
    """Return the condition for a run that is claimed under an expired lease."""
    return sa.and_(training_runs.c.state == RunState.RUNNING, training_runs.c.lease_until < db_now())


def is_stale() -> sa.ColumnElement[bool]:
    """Return the condition for a scheduled run that no trainer claimed in time.

    A trainer executes one run at a time, so a run must not be skipped because others are executed before it:
    the time starts again when one of them ends.
    """
    other, limit = training_runs.alias("other"), db_now(-SLOT_PATIENCE_SECONDS)
    executed = sa.or_(
        other.c.state == RunState.RUNNING, sa.and_(other.c.owner.is_not(None), other.c.finished_at > limit)
    )
    return sa.and_(
        training_runs.c.state == RunState.PENDING,
        training_runs.c.slot.is_not(None),
        training_runs.c.requested_at < limit,
        ~sa.exists(sa.select(other.c.id).where(executed)),
    )


# Runs that no trainer will finish: the condition, the state they get, and the reason.
LOST: Final = (lease_is_expired(), RunState.INTERRUPTED, "its trainer stopped sending heartbeats")
STALE: Final = (is_stale(), RunState.SKIPPED, "no trainer claimed it within an hour")


# ---- queries ------------------------------------------------------------------------------------------

_RUNS: Final[sa.Select[Any]] = sa.select(
    *(training_runs.c.id, training_runs.c.state, training_runs.c.recipe, training_runs.c.slot),
    *(training_runs.c.data_source, training_runs.c.data_fingerprint, training_runs.c.data),
    *training_runs.c["dataset", "dataset_version", "input_file_id"],
    *(training_runs.c.owner, training_runs.c.requested_at),
    *training_runs.c["started_at", "expected_at", "finished_at"],
    *(training_runs.c.model_id, training_runs.c.verdict, training_runs.c.error, models.c.accuracy),
    sa.case((lease_is_expired(), training_runs.c.lease_until)).label("silent_since"),
    sa.select(sa.func.count())
    .where(training_epochs.c.run_id == training_runs.c.id)
    .scalar_subquery()
    .label("epochs_done"),
).outerjoin_from(training_runs, models, models.c.id == training_runs.c.model_id)


def get_run(connection: Connection, run_id: str) -> Run:
    """Return the run with this id. Raises NotFound."""
    row = connection.execute(_RUNS.where(training_runs.c.id == run_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no training run {run_id!r}: `labelmill runs` lists them.")
    return _to_run(row)


def classes_learnt(connection: Connection, dataset: str = MNIST) -> tuple[str, ...] | None:
    """Return the classes of the latest model that a training run of the dataset produced, or None."""
    found: list[str] | None = connection.scalar(
        sa.select(models.c.classes)
        .join(training_runs, training_runs.c.model_id == models.c.id)
        .where(training_runs.c.dataset == dataset)
        .order_by(training_runs.c.id.desc())
        .limit(1)
    )
    return None if found is None else tuple(found)


def was_trained_on(connection: Connection, model_id: str, dataset: str) -> bool:
    """Return whether a training run on this dataset has made the model."""
    made = sa.select(training_runs.c.id).where(
        training_runs.c.model_id == model_id, training_runs.c.dataset == dataset
    )
    return connection.scalar(made.limit(1)) is not None


def active_runs(connection: Connection) -> list[Run]:
    """Return the runs that are pending or running, at most one per dataset, oldest first."""
    query = _RUNS.where(training_runs.c.active == 1).order_by(training_runs.c.id)
    return [_to_run(row) for row in connection.execute(query)]


def find_active_run(connection: Connection, dataset: str = MNIST) -> Run | None:
    """Return the dataset's run that is pending or running, or None."""
    row = connection.execute(
        _RUNS.where(training_runs.c.dataset == dataset, training_runs.c.active == 1)
    ).one_or_none()
    return None if row is None else _to_run(row)


def latest_runs(connection: Connection, *, limit: int) -> list[Run]:
    """Return the latest runs, newest first."""
    query = _RUNS.order_by(training_runs.c.id.desc()).limit(limit)
    return [_to_run(row) for row in connection.execute(query)]


def latest_scheduled_runs(connection: Connection, *, limit: int) -> list[Run]:
    """Return the latest runs that the schedules requested, newest first: of each dataset at most `limit`."""
    place = sa.func.row_number().over(
        partition_by=training_runs.c.dataset, order_by=training_runs.c.id.desc()
    )
    is_scheduled = sa.or_(training_runs.c.slot.is_not(None), training_runs.c.corrections_seen.is_not(None))
    found = sa.select(training_runs.c.id, place.label("place")).where(is_scheduled).subquery()
    latest = training_runs.c.id.in_(sa.select(found.c.id).where(found.c.place <= limit))
    query = _RUNS.where(latest).order_by(training_runs.c.id.desc())
    return [_to_run(row) for row in connection.execute(query)]


def epochs_of(connection: Connection, run_id: str) -> list[Row[Any]]:
    """Return a run's epochs, in order."""
    query = sa.select(training_epochs).where(training_epochs.c.run_id == run_id)
    return list(connection.execute(query.order_by(training_epochs.c.epoch)))


def verdict_on(connection: Connection, run_id: str) -> StoredVerdict | None:
    """Return the gate's verdict on the model that the run produced, or None."""
    row = connection.execute(sa.select(verdicts).where(verdicts.c.run_id == run_id)).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def _to_run(row: Row[Any]) -> Run:
    silent_since = row.silent_since and row.silent_since - timedelta(seconds=RUN_LEASE_SECONDS)
    return Run(**{**row._mapping, "state": RunState(row.state), "silent_since": silent_since})


# ---- runs whose trainer is gone -------------------------------------------------------------------

#: How long a trainer's lease must have been observed as expired before the trainer counts as dead: several
#: heartbeats.
RUN_GRACE_SECONDS: Final = 10.0

#: The time between two observations counts as at most this: slightly more than the reconciler's interval.
_MAX_COUNTED_GAP_SECONDS: Final = 3.0

#: How often `clear_expired_run` checks.
_POLL_SECONDS: Final = 0.5


class FailureDetector:
    """Decide whether trainers are dead, by observing their runs' leases repeatedly.

    An expired lease does not prove that the trainer is dead. The database's clock may have been set, the
    machine may have slept, or the ledger may have been unavailable; a living trainer renews the lease with
    its next heartbeat. So the same lease must be observed as expired for RUN_GRACE_SECONDS by the observer's
    own clock, and a long gap between two observations counts only in part.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By run and last heartbeat: when the lease was last observed, and how long it has been expired.
        self._expired: dict[tuple[str, datetime], tuple[float, float]] = {}

    def failed(self, leases: Iterable[tuple[str, datetime]]) -> list[str]:
        """Note that exactly these leases are expired now: each run with its trainer's last heartbeat.

        Return the runs whose lease has been expired for RUN_GRACE_SECONDS.
        """
        now = self._clock()
        expired = {}
        for lease in leases:
            observed_at, seconds = self._expired.get(lease, (now, 0.0))
            expired[lease] = now, seconds + min(now - observed_at, _MAX_COUNTED_GAP_SECONDS)
        self._expired = expired
        return [run_id for (run_id, _), (_, seconds) in expired.items() if seconds >= RUN_GRACE_SECONDS]


def end_lost_runs(connection: Connection, detector: FailureDetector) -> list[Run]:
    """End the active runs that no trainer will finish. Return them as they are now.

    A run whose lease expired is interrupted once the lease has been observed as expired for long enough: pass
    the same `detector` at each call. A scheduled run that no trainer claimed in time is skipped.
    """
    runs = active_runs(connection)
    failed = detector.failed((run.id, run.silent_since) for run in runs if run.silent_since is not None)
    expired, state, reason = LOST
    lost = sa.and_(expired, training_runs.c.id.in_(failed))
    ended = end_active_runs(connection, lost, state, reason) if failed else []
    return ended + (end_active_runs(connection, *STALE) if runs else [])


def clear_expired_run(
    ledger: Ledger, dataset: str = MNIST, *, on_wait: Callable[[Run], None] = lambda _run: None
) -> None:
    """Wait until the dataset has no active run with an expired lease.

    Call it before `request_run`, outside a transaction. The run's trainer renews the lease, or the run is
    ended after about RUN_GRACE_SECONDS. `on_wait` is called once, with the run, if there is anything to wait
    for. Raises Unavailable.
    """
    detector, told = FailureDetector(), False
    while True:
        with ledger.reading() as connection:
            run = find_active_run(connection, dataset)
        if run is None or run.silent_since is None:
            return
        if not told:
            on_wait(run)
            told = True
        with ledger.transaction() as connection:
            if any(each.id == run.id for each in end_lost_runs(connection, detector)):
                return
        time.sleep(_POLL_SECONDS)
