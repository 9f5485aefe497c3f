"""Training runs, as rows: asked for, taken by a trainer under a lease, epoch by epoch, and how they ended.

Two unique indexes hold what is promised. `active` is 1 while a run waits or runs and empty afterwards: one
run at a time. `slot` is the time of the schedule that a run was made for: one run a slot, whatever the number
of beats. A trainer holds its run as a worker holds a chunk (`jobs.ledger.claims`): by a lease with a fencing
token.
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
from jobs.ledger.counters import CounterName, count
from jobs.ledger.database import Ledger, insert_into
from jobs.ledger.models import StoredVerdict
from jobs.ledger.workers import trainer_is_there
from jobs.schema import RunState, db_now, models, training_epochs, training_runs, verdicts

#: How long a trainer owns its run without a sign of life.
RUN_LEASE_SECONDS: Final = 60.0

#: A run of the schedule that no trainer took within this time is skipped: it must not begin by surprise when
#: one is started days later. What a person asked for waits for as long as it takes.
SLOT_PATIENCE_SECONDS: Final = 3600.0

#: It waits, or a trainer is at it.
UNFINISHED_RUN: Final = (RunState.PENDING, RunState.RUNNING)


class RunLost(LabelmillError):
    """The training run is not this trainer's any more; what was computed here is thrown away."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    id: str
    state: RunState
    recipe: dict[str, Any]
    slot: datetime | None  # the time of the schedule it was made for; None where a person asked for it
    data_source: str  # empty until the data is loaded
    data_fingerprint: str  # of training and evaluation data; empty as well
    data: dict[str, Any] | None  # how many images of each kind
    owner: str | None  # the process that trains, or did
    requested_at: datetime | None  # None of runs from before this was noted
    started_at: datetime | None  # None until a trainer takes it
    finished_at: datetime | None
    model_id: str | None
    verdict: str | None  # the gate's reason, one sentence
    error: str | None  # why it made no model
    accuracy: float | None  # the model's, on the evaluation images
    epochs_done: int
    silent_since: datetime | None = None  # its trainer's last sign of life, where the lease is over by now

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state not in UNFINISHED_RUN


@dataclass(frozen=True, slots=True)
class RunClaim:
    """The right to train for one run until its lease runs out."""

    run_id: str
    token: str
    recipe: dict[str, Any]


# ---- asking for one -----------------------------------------------------------------------------------


def request_run(
    connection: Connection, run_id: str, *, recipe: dict[str, Any], slot: datetime | None = None
) -> RunState | None:
    """A run that waits for a trainer; gives back its state.

    For a person, who has no slot: raises Conflict where another run is under way. For the schedule: None
    where the slot has its run already; `skipped`, with the reason in its row, where another is under way.
    So is one whose trainer is dead until somebody has ended it: call `jobs.ledger.runs.make_way` before.
    """
    end_active(connection, *STALE)
    asked = {
        "recipe": recipe,
        "slot": slot,
        "data_source": "",
        "data_fingerprint": "",
        "requested_at": db_now(),
        "started_at": db_now(),
    }
    while not _insert(connection, run_id, state=RunState.PENDING, active=1, **asked):
        if slot is not None and _has_run(connection, slot):
            return None
        other = find_active_run(connection)
        if other is None:  # it finished at this moment
            continue
        if slot is None:
            raise Conflict(
                f"Training run {other.id} is under way, it is {other.state}: follow it with `labelmill runs "
                f"show {other.id} --watch`, or stop it with `labelmill runs cancel {other.id}`."
                f"{_what_it_waits_for(connection, other)}"
            )
        skipped = _insert(
            connection,
            run_id,
            state=RunState.SKIPPED,
            error=f"training run {other.id} was under way",
            finished_at=db_now(),
            **asked,
        )
        if not skipped:
            return None
        _count_end(connection, RunState.SKIPPED)
        return RunState.SKIPPED
    return RunState.PENDING


def _what_it_waits_for(connection: Connection, run: Run) -> str:
    """A sentence on it, where following the run would be of no use."""
    if run.state != RunState.PENDING or trainer_is_there(connection):
        return ""
    return (
        " It waits for a trainer, and none is there: `labelmill up` has one, and so has `labelmill worker "
        "--trainer` in a deployment of your own."
    )


def _insert(connection: Connection, run_id: str, **values: Any) -> bool:
    """False where another run stands in its way: an active one, or one of the same slot."""
    inserted = (
        insert_into(connection, training_runs)
        .values(id=run_id, **values)
        .on_conflict_do_nothing()
        .returning(training_runs.c.id)
    )
    return connection.scalar(inserted) is not None


def _has_run(connection: Connection, slot: datetime) -> bool:
    return connection.scalar(sa.select(training_runs.c.id).where(training_runs.c.slot == slot)) is not None


def pending_run(connection: Connection) -> str | None:
    """Return the id of the run that waits for a trainer, or None."""
    run_id: str | None = connection.scalar(
        sa.select(training_runs.c.id).where(
            training_runs.c.active == 1, training_runs.c.state == RunState.PENDING
        )
    )
    return run_id


# ---- a trainer at work --------------------------------------------------------------------------------


def claim_run(connection: Connection, run_id: str, *, owner: str) -> RunClaim | None:
    """Takes the run if it waits for a trainer; None where there is nothing to do."""
    token = new_id()
    recipe = connection.execute(
        training_runs.update()
        .where(training_runs.c.id == run_id, training_runs.c.state == RunState.PENDING, ~is_stale())
        .values(
            state=RunState.RUNNING,
            token=token,
            owner=owner,
            lease_until=db_now(RUN_LEASE_SECONDS),
            started_at=db_now(),
        )
        .returning(training_runs.c.recipe)
    ).scalar_one_or_none()
    return None if recipe is None else RunClaim(run_id, token, recipe)


def renew_run(connection: Connection, claim: RunClaim) -> None:
    """A fresh lease. Raises RunLost."""
    _change(connection, claim, lease_until=db_now(RUN_LEASE_SECONDS))


def describe_data(
    connection: Connection, claim: RunClaim, *, source: str, fingerprint: str, data: dict[str, Any]
) -> None:
    """What the run trains on. Raises RunLost."""
    _change(connection, claim, data_source=source, data_fingerprint=fingerprint, data=data)


def add_epoch(connection: Connection, claim: RunClaim, epoch: dict[str, float]) -> None:
    """One finished epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy, seconds. The first time it
    is told counts. Raises RunLost.
    """
    renew_run(connection, claim)
    connection.execute(
        insert_into(connection, training_epochs).values(run_id=claim.run_id, **epoch).on_conflict_do_nothing()
    )


def finish_run(connection: Connection, claim: RunClaim, *, model_id: str, verdict: str) -> None:
    """The run made a model; the verdict says what became of it. Raises RunLost, and the caller's transaction
    must roll back: the champion's move is in it.
    """
    _change(connection, claim, model_id=model_id, verdict=verdict, **_ended(RunState.DONE))
    _count_end(connection, RunState.DONE)


def fail_run(
    connection: Connection, claim: RunClaim, error: str, *, state: RunState = RunState.FAILED
) -> None:
    """The run ended without a model: `failed`, or `interrupted` where its trainer was told to stop. Raises
    RunLost.
    """
    _change(connection, claim, **_ended(state, error))
    _count_end(connection, state)


def was_finished_by(connection: Connection, claim: RunClaim) -> bool:
    """Whether this very claim finished the run: the answer after a COMMIT that broke off."""
    done = sa.select(training_runs.c.id).where(
        training_runs.c.id == claim.run_id,
        training_runs.c.token == claim.token,
        training_runs.c.state == RunState.DONE,
    )
    return connection.scalar(done) is not None


def _change(connection: Connection, claim: RunClaim, **values: Any) -> None:
    """Changes the row, where it is the claim's own: the fence."""
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
        raise RunLost(f"Training run {claim.run_id} is {_what_became_of(connection, claim.run_id)}.")


def _what_became_of(connection: Connection, run_id: str) -> str:
    row = connection.execute(
        sa.select(training_runs.c.state, training_runs.c.error).where(training_runs.c.id == run_id)
    ).one_or_none()
    if row is None:
        return "gone"
    return f"{row.state}: {row.error}" if row.error else str(row.state)


def _ended(state: RunState, error: str | None = None) -> dict[str, Any]:
    return {"state": state, "active": None, "lease_until": None, "finished_at": db_now(), "error": error}


def _count_end(connection: Connection, state: RunState, *, runs: int = 1) -> None:
    count(connection, {(CounterName.TRAINING_RUNS, state): runs})


# ---- ending one from outside --------------------------------------------------------------------------


def cancel_run(connection: Connection, run_id: str) -> Run:
    """Stops the run; its trainer notices within seconds, and nothing it did counts. Raises NotFound, or
    Conflict where it had finished.
    """
    stopped = connection.execute(
        training_runs.update()
        .where(training_runs.c.id == run_id, training_runs.c.state.in_(UNFINISHED_RUN))
        .values(**_ended(RunState.CANCELLED))
    )
    run = get_run(connection, run_id)
    if stopped.rowcount != 1:
        raise Conflict(f"Training run {run_id} had finished before: it is {run.state}.")
    _count_end(connection, RunState.CANCELLED)
    return run


def interrupt_runs_of(connection: Connection, owners: Iterable[str], *, error: str) -> list[str]:
    """Ends the runs of processes that are dead, or told to stop, so that nobody waits for their leases to run
    out; gives back their ids.
    """
    ended = list(
        connection.scalars(
            training_runs.update()
            .where(
                training_runs.c.active == 1,
                training_runs.c.state == RunState.RUNNING,
                training_runs.c.owner.in_(list(owners)),
            )
            .values(**_ended(RunState.INTERRUPTED, error))
            .returning(training_runs.c.id)
        )
    )
    if ended:
        _count_end(connection, RunState.INTERRUPTED, runs=len(ended))
    return ended


def end_active(
    connection: Connection, which: sa.ColumnElement[bool], state: RunState, error: str
) -> list[Run]:
    """The run that is so at this very moment, whatever it was when somebody looked; ended."""
    ended = connection.scalar(
        training_runs.update()
        .where(training_runs.c.active == 1, which)
        .values(**_ended(state, error))
        .returning(training_runs.c.id)
    )
    if ended is None:
        return []
    _count_end(connection, state)
    return [get_run(connection, ended)]


def is_lost() -> sa.ColumnElement[bool]:
    """A trainer has the run, and its lease is over."""
    return sa.and_(training_runs.c.state == RunState.RUNNING, training_runs.c.lease_until < db_now())


def is_stale() -> sa.ColumnElement[bool]:
    """No trainer took this run of the schedule in time."""
    return sa.and_(
        training_runs.c.state == RunState.PENDING,
        training_runs.c.slot.is_not(None),
        training_runs.c.requested_at < db_now(-SLOT_PATIENCE_SECONDS),
    )


# Which runs nobody will bring to an end, what becomes of them, and why.
LOST: Final = (is_lost(), RunState.INTERRUPTED, "its trainer vanished without a word")
STALE: Final = (is_stale(), RunState.SKIPPED, "no trainer took it within an hour of its slot")


# ---- looking ------------------------------------------------------------------------------------------

_RUNS: Final = sa.select(
    training_runs,
    models.c.accuracy,
    sa.case((is_lost(), training_runs.c.lease_until)).label("lost_at"),
    sa.select(sa.func.count())
    .where(training_epochs.c.run_id == training_runs.c.id)
    .scalar_subquery()
    .label("epochs_done"),
).outerjoin_from(training_runs, models, models.c.id == training_runs.c.model_id)


def get_run(connection: Connection, run_id: str) -> Run:
    """The run with this id. Raises NotFound."""
    row = connection.execute(_RUNS.where(training_runs.c.id == run_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no training run {run_id!r}: `labelmill runs` lists them.")
    return _to_run(row)


def classes_learnt(connection: Connection) -> tuple[str, ...] | None:
    """The classes of the model that the latest training run made; None where none has made one."""
    found: list[str] | None = connection.scalar(
        sa.select(models.c.classes)
        .join(training_runs, training_runs.c.model_id == models.c.id)
        .order_by(training_runs.c.id.desc())
        .limit(1)
    )
    return None if found is None else tuple(found)


def find_active_run(connection: Connection) -> Run | None:
    """The one that waits or runs."""
    row = connection.execute(_RUNS.where(training_runs.c.active == 1)).one_or_none()
    return None if row is None else _to_run(row)


def latest_runs(connection: Connection, *, limit: int) -> list[Run]:
    """The latest runs, newest first."""
    query = _RUNS.order_by(training_runs.c.id.desc()).limit(limit)
    return [_to_run(row) for row in connection.execute(query)]


def epochs_of(connection: Connection, run_id: str) -> list[Row[Any]]:
    """A run's epochs, in order."""
    return list(
        connection.execute(
            sa.select(training_epochs)
            .where(training_epochs.c.run_id == run_id)
            .order_by(training_epochs.c.epoch)
        )
    )


def verdict_on(connection: Connection, run_id: str) -> StoredVerdict | None:
    """What the gate said of the model that the run made."""
    row = connection.execute(sa.select(verdicts).where(verdicts.c.run_id == run_id)).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def _to_run(row: Row[Any]) -> Run:
    # Until a trainer takes it, `started_at` is when it was asked for: the column may not be empty.
    never_started = row.owner is None and row.requested_at is not None
    return Run(
        id=row.id,
        state=RunState(row.state),
        recipe=row.recipe,
        slot=row.slot,
        data_source=row.data_source,
        data_fingerprint=row.data_fingerprint,
        data=row.data,
        owner=row.owner,
        requested_at=row.requested_at,
        started_at=None if never_started else row.started_at,
        finished_at=row.finished_at,
        model_id=row.model_id,
        verdict=row.verdict,
        error=row.error,
        accuracy=row.accuracy,
        epochs_done=row.epochs_done,
        silent_since=row.lost_at and row.lost_at - timedelta(seconds=RUN_LEASE_SECONDS),
    )


# ---- runs that nobody will end --------------------------------------------------------------------

#: For how long a trainer's lease has to be seen to be over until it is taken for dead: some heartbeats.
RUN_GRACE_SECONDS: Final = 10.0

#: What is between two looks counts for no more of it: a little more than a reconciler lets pass.
_MOST_BETWEEN_LOOKS: Final = 3.0

#: How often who waits for that looks.
_LOOK_SECONDS: Final = 0.5


class Silence:
    """How long a run's lease has been seen to be over, by one who looks again and again.

    A lease that is over is no proof. The database's clock may have been set, the machine may have slept, or
    the ledger was away; a trainer that lives renews it with its next heartbeat. So nobody ends a run at their
    first look: the same lease has to be over for RUN_GRACE_SECONDS by their own clock, and of that only what
    they were awake and in touch for counts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lease: tuple[str, datetime] | None = None
        self._looked_at = 0.0
        self._seconds = 0.0

    def lasts(self, run_id: str, lease_until: datetime) -> bool:
        """Whether it has lasted for long enough now that this lease is seen to be over."""
        now, lease = self._clock(), (run_id, lease_until)
        if self._lease == lease:
            self._seconds += min(now - self._looked_at, _MOST_BETWEEN_LOOKS)
        else:
            self._lease, self._seconds = lease, 0.0
        self._looked_at = now
        return self._seconds >= RUN_GRACE_SECONDS


def end_lost_runs(connection: Connection, silence: Silence) -> list[Run]:
    """Ends what nobody will bring to an end: a run whose trainer gave no sign of life for its whole lease,
    and none for as long as `silence` takes after that, is interrupted; one of the schedule that no trainer
    took in time is skipped. Gives them back as they are now. `silence` is the same at each of the caller's
    looks.
    """
    # One row at most, by the index on `active`: every reconciler asks this every few seconds.
    active = connection.execute(
        sa.select(training_runs.c.id, training_runs.c.state, training_runs.c.lease_until).where(
            training_runs.c.active == 1, sa.or_(is_lost(), is_stale())
        )
    ).one_or_none()
    if active is None:
        return []
    if active.state != RunState.RUNNING:
        return end_active(connection, *STALE)
    if not silence.lasts(active.id, active.lease_until):
        return []
    return end_active(connection, *LOST)


def make_way(ledger: Ledger, *, on_wait: Callable[[Run], None] = lambda _run: None) -> None:
    """For who is about to ask for a run, and not in a transaction: where the lease of the one under way is
    over, waits until its trainer is heard of again or, some RUN_GRACE_SECONDS later, the run is ended.
    `on_wait` is told which one. Raises Unavailable.
    """
    silence, told = Silence(), False
    while True:
        with ledger.reading() as connection:
            run = find_active_run(connection)
        if run is None or run.silent_since is None:
            return
        if not told:
            on_wait(run)
            told = True
        with ledger.transaction() as connection:
            if end_lost_runs(connection, silence):
                return
        time.sleep(_LOOK_SECONDS)
