"""Claims: how a worker takes the next due chunk, and how it releases one without results.

A claim writes a fresh token into the chunk's row. Every later statement about the chunk carries the token and
changes nothing if the row has another one, so a worker that was declared dead and comes back does no harm.
`jobs.ledger.jobs.results` ends a claim with results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import ErrorCode
from jobs.ids import new_id
from jobs.ledger.counters import AttemptEnd, CounterName, count
from jobs.models.runtime import Runtime, RuntimeState
from jobs.schema import (
    CHUNK_IS_CLAIMED,
    CHUNK_IS_PENDING,
    SMALL_JOB_IMAGES,
    UNFINISHED,
    ChunkState,
    chunks,
    db_now,
    jobs,
    model_runtimes,
    projects,
)

#: Images of small chunks that are claimed together: a full batch (`worker.predicting.classifier.BATCH`).
COMBINED_CLAIM_IMAGES: Final = 512

#: A chunk that crashed this often is halved at its next claim. One crash may have any cause.
CRASHES_TO_SPLIT: Final = 2

#: An image that crashed this often while it was alone is not tried again. More than for a split, because this
#: is final: a good image that was near two unrelated deaths must still get its label.
CRASHES_TO_GIVE_UP: Final = 3

#: Seconds before a chunk is due again after a service was unavailable, by the releases before; then the last.
RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_BACK_OFF: Final = sa.case(dict(enumerate(RETRY_SECONDS)), value=chunks.c.releases, else_=RETRY_SECONDS[-1])

#: The condition for a chunk that waits for a worker, and whose back-off is over.
IS_DUE: Final = sa.and_(
    CHUNK_IS_PENDING, sa.or_(chunks.c.not_before.is_(None), chunks.c.not_before <= db_now())
)

#: The order in which a project's chunks are claimed: that of the index on pending chunks.
CLAIM_ORDER: Final = (chunks.c.priority.desc(), chunks.c.created_at, chunks.c.first_index)


class Reason(StrEnum):
    """Why a claim ended without results. From CRASHED on, it counts against the chunk as a crash."""

    INTERRUPTED = "interrupted"  # the worker was told to stop
    UNAVAILABLE = "unavailable"  # a service could not be reached; the chunk waits with back-off
    CRASHED = "crashed"  # the process died, or raised an error that no image explains
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    EXPIRED = "expired"  # the lease ran out without a word


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one chunk until its lease runs out."""

    chunk_id: str
    token: str
    job_id: str
    model_id: str
    first_index: int
    images: int
    payload: str
    payload_digest: str
    payload_offset: int
    attempts: int
    #: Attempts before this one that a service or a stopped worker ended, and that ended in a crash.
    releases: int
    crashes: int
    #: The `ErrorCode` of an image that crashes alone; None if nothing has crashed yet.
    crash_code: str | None
    #: How the latest attempt without results ended.
    error: str | None
    #: The trace that the job belongs to, if any (`jobs.traces`).
    traceparent: str | None
    #: How many of the most probable classes the job asked for.
    top_k: int | None = None
    #: The rest of a chunk that this claim has cut is pending.
    was_cut: bool = False

    @property
    def gives_up(self) -> bool:
        """Whether its only image gets its error code without another attempt."""
        return self.images == 1 and self.crashes >= CRASHES_TO_GIVE_UP


@dataclass(frozen=True, slots=True)
class Served:
    """Which models a worker without TensorFlow can serve: those that passed for one of its runtimes."""

    runtimes: Sequence[Runtime]
    #: The SHA-256 of each artefact that did not load.
    broken: set[str] = field(default_factory=set)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of statements with the condition `_IS_SERVED`."""
        return {"runtimes": list(self.runtimes), "broken": list(self.broken)}


def claimed_as(claims: Sequence[Claim]) -> sa.ColumnElement[bool]:
    """Return the condition for the chunks of these claims, which are all under one token."""
    return sa.and_(chunks.c.id.in_([claim.chunk_id for claim in claims]), chunks.c.token == claims[0].token)


def claimed_under(token: str) -> sa.ColumnElement[bool]:
    """Return the condition for all chunks that were claimed under this token."""
    return chunks.c.token == token


def claimed_by(owner: str) -> sa.ColumnElement[bool]:
    """Return the condition for all chunks that this process has claimed."""
    return chunks.c.owner == owner


def next_of(project: sa.ColumnElement[str], limit: int) -> sa.Select[tuple[str]]:
    """Return the query for the ids of a project's first due chunks, in the order of their claims."""
    query = sa.select(chunks.c.id).where(chunks.c.project == project, IS_DUE)
    return query.order_by(*CLAIM_ORDER).limit(limit)


def job_was_stopped() -> sa.ColumnElement[bool]:
    """Return the condition for a chunk whose job failed, was cancelled, or is gone."""
    return ~sa.exists().where(jobs.c.id == chunks.c.job_id, jobs.c.state.in_(UNFINISHED)).correlate(chunks)


def _of_job(value: sa.ColumnElement[Any]) -> sa.ScalarSelect[Any]:
    """Return a value from the row of the chunk's job.

    A scalar subquery: for a join or EXISTS, PostgreSQL may choose to read and sort all pending chunks.
    """
    return sa.select(value).where(jobs.c.id == chunks.c.job_id).correlate(chunks).scalar_subquery()


# The statements are built once: SQLAlchemy takes longer to build them than the database takes to run them.

_JOB_IS_RUNNABLE: Final = _of_job(sa.and_(jobs.c.state.in_(UNFINISHED), jobs.c.paused_at.is_(None)))


def _is_served(model_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return the condition for a model that is among the served ones."""
    return sa.exists().where(
        model_runtimes.c.model_id == model_id,
        model_runtimes.c.state == RuntimeState.PASSED,
        model_runtimes.c.runtime.in_(sa.bindparam("runtimes", expanding=True)),
        model_runtimes.c.sha256.not_in(sa.bindparam("broken", expanding=True)),
    )


_IS_SERVED: Final = _of_job(_is_served(jobs.c.model_id))


_PROJECT: Final = sa.bindparam("of_project", type_=chunks.c.project.type)


def _turns(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return the query for two projects: the one whose turn it is, and the one that waits for longest then.

    Both have a due chunk under these conditions.
    """
    due = next_of(projects.c.name, 1).where(*conditions).correlate(projects)
    return (
        sa.select(projects.c.name, projects.c.turn)
        .where(
            due.scalar_subquery().is_not(None),
            projects.c.name.not_in(sa.bindparam("tried", expanding=True)),
        )
        .order_by(projects.c.turn.nulls_last())
        .limit(2)
    )


_TURNS: Final = _turns(_JOB_IS_RUNNABLE)

_COUNT_TURN: Final = (
    projects.update()
    .where(projects.c.name == _PROJECT)
    .values(
        turn=sa.case((projects.c.turn < sa.bindparam("least"), sa.bindparam("least")), else_=projects.c.turn)
        + sa.bindparam("more")
    )
)

_NEXT: Final = (
    sa.select(chunks, _of_job(jobs.c.model_id).label("model_id"))
    .where(chunks.c.project == _PROJECT, IS_DUE, _JOB_IS_RUNNABLE)
    .order_by(*CLAIM_ORDER)
    .limit(1)
    .with_for_update(of=chunks, skip_locked=True)
)

# For workers without TensorFlow; the others need not look at a model's runtimes.
_TURNS_SERVED: Final = _turns(_JOB_IS_RUNNABLE, _IS_SERVED)
_NEXT_SERVED: Final = _NEXT.where(_IS_SERVED)

_MODELS_LEFT: Final = (
    sa.select(jobs.c.model_id)
    .distinct()
    .where(
        jobs.c.state.in_(UNFINISHED),
        jobs.c.paused_at.is_(None),
        ~_is_served(jobs.c.model_id),
        sa.exists().where(chunks.c.job_id == jobs.c.id, IS_DUE),
    )
)

# Among those that come next, so that a million large chunks are not searched for small ones. Only chunks that
# were never tried: one that crashed or was released is claimed alone, so that others do not pay for it twice.
_SMALL: Final = (
    sa.select(chunks.c.id, chunks.c.images)
    .where(
        chunks.c.id.in_(next_of(_PROJECT, COMBINED_CLAIM_IMAGES)),
        chunks.c.id != sa.bindparam("not_id"),
        IS_DUE,
        chunks.c.attempts == 0,
        chunks.c.images <= SMALL_JOB_IMAGES,
        _of_job(jobs.c.model_id == sa.bindparam("of_model")),
        _JOB_IS_RUNNABLE,
    )
    .order_by(*CLAIM_ORDER)
    .limit(sa.bindparam("most"))  # no more rows are locked than can be taken
    .with_for_update(of=chunks, skip_locked=True)
)

_TAKE: Final = (
    chunks.update()
    .where(chunks.c.id.in_(sa.bindparam("ids", expanding=True)))
    .values(
        state=ChunkState.CLAIMED,
        token=sa.bindparam("by_token"),
        owner=sa.bindparam("by_owner"),
        attempts=chunks.c.attempts + 1,
        not_before=None,
        lease_until=db_now("for_seconds"),
    )
    .returning(
        chunks.c.id.label("chunk_id"),
        *chunks.c["token", "job_id", "first_index", "images"],
        *chunks.c["payload", "payload_digest", "payload_offset"],
        *chunks.c["attempts", "releases", "crashes", "crash_code", "error"],
        _of_job(jobs.c.model_id).label("model_id"),
        _of_job(jobs.c.traceparent).label("traceparent"),
        _of_job(jobs.c.top_k).label("top_k"),
    )
)


def claim_next(
    connection: Connection,
    *,
    owner: str,
    token: str,
    lease_seconds: float,
    images_for: Callable[[str], int],
    served: Served | None = None,
) -> list[Claim]:
    """Claim the next due chunk, and other small ones with it if it is small; [] if nothing is due.

    `images_for` says how many images of a model, by its id, one claim may have: a larger chunk is cut. With
    `served`, only chunks of these models are claimed. Projects take turns by the work that was claimed for
    them, where this many images count 1. The caller commits before it reads a byte: a chunk that kills its
    worker has then been counted. All claims carry the token.
    """
    turns_query, next_query = (_TURNS, _NEXT) if served is None else (_TURNS_SERVED, _NEXT_SERVED)
    parameters = {} if served is None else served.parameters()
    tried: list[str] = []
    chunk = None
    while chunk is None:
        turns = connection.execute(turns_query, parameters | {"tried": tried}).all()
        if not turns:
            return []
        chunk = connection.execute(next_query, parameters | {"of_project": turns[0].name}).one_or_none()
        tried.append(turns[0].name)  # if there is none, other workers are claiming all that it has
    limit = full = images_for(chunk.model_id)
    crashes = chunk.crashes
    if crashes >= CRASHES_TO_SPLIT:
        # Both parts are suspected: one more crash splits them again.
        limit, crashes = min(limit, max(1, chunk.images // 2)), CRASHES_TO_SPLIT - 1
    ids, was_cut = [chunk.id], chunk.images > limit
    if was_cut:
        cut(connection, chunk, keep=limit, crashes=crashes)
    elif chunk.images <= SMALL_JOB_IMAGES and not chunk.attempts:
        room = min(limit, COMBINED_CLAIM_IMAGES) - chunk.images
        small = {"of_project": chunk.project, "not_id": chunk.id, "of_model": chunk.model_id, "most": room}
        for row in connection.execute(_SMALL, small):
            room -= row.images
            if room < 0:
                break
            ids.append(row.id)
    taken = connection.execute(
        _TAKE, {"ids": ids, "by_owner": owner, "by_token": token, "for_seconds": lease_seconds}
    )
    claims = [Claim(**row._asdict(), was_cut=was_cut) for row in taken]
    if len(turns) > 1 and turns[1].turn is not None:  # otherwise no other project waits
        # A project that is behind by more than a full claim had no work for a while: that earns it nothing.
        more = sum(claim.images for claim in claims) / full
        count_turn = {"of_project": chunk.project, "least": turns[1].turn - 1, "more": more}
        connection.execute(_COUNT_TURN, count_turn)
    return sorted(claims, key=lambda claim: ids.index(claim.chunk_id))


def is_served(connection: Connection, model_id: str, served: Served) -> bool:
    """Return whether a model is among the served ones."""
    query = sa.select(_is_served(sa.literal(model_id)))
    return bool(connection.scalar(query, served.parameters()))


def models_left(connection: Connection, served: Served) -> list[str]:
    """Return the ids of the models that are not among the served ones, and that chunks are due for."""
    return list(connection.scalars(_MODELS_LEFT, served.parameters()))


def cut(connection: Connection, chunk: sa.Row[Any], *, keep: int, crashes: int) -> None:
    """Leave the first `keep` images to the pending chunk, and make the rest a pending chunk of the same age.

    Both start with `crashes`; an image that is alone starts with none, since its neighbour may have crashed.
    """
    rest = {column.name: chunk._mapping[column] for column in chunks.c} | {
        "id": new_id(),
        "first_index": chunk.first_index + keep,
        "images": chunk.images - keep,
        "payload_offset": chunk.payload_offset + keep,
        "crashes": crashes if chunk.images - keep > 1 else 0,
        "token": None,
        "owner": None,
        "not_before": None,
    }
    connection.execute(chunks.insert().values(rest))
    connection.execute(
        chunks.update().where(chunks.c.id == chunk.id).values(images=keep, crashes=crashes if keep > 1 else 0)
    )


def release_claims(connection: Connection, which: sa.ColumnElement[bool], reason: Reason, error: str) -> int:
    """Release claims without results; return how many there were.

    `which` is `claimed_under`, `claimed_as`, `claimed_by`, or a narrower condition than CHUNK_IS_CLAIMED.
    Nothing happens to a chunk that another worker has claimed meanwhile. The chunk is pending again, or
    dropped if its job was stopped.
    """
    values: dict[str, Any] = {}
    if reason in (Reason.INTERRUPTED, Reason.UNAVAILABLE):
        end = AttemptEnd.RELEASED
        values["releases"] = chunks.c.releases + 1
    else:
        end = AttemptEnd.EXPIRED if reason is Reason.EXPIRED else AttemptEnd.CRASHED
        values["crashes"] = chunks.c.crashes + 1
        values["crash_code"] = ErrorCode.TIMEOUT if reason is Reason.TIMED_OUT else ErrorCode.QUARANTINED
    if reason is Reason.UNAVAILABLE:
        values["not_before"] = db_now(_BACK_OFF)
    released = connection.execute(
        chunks.update()
        .where(CHUNK_IS_CLAIMED, which)
        .values(
            # A paused job's chunk is not held here: the job may be resumed at this moment, which would pass
            # this chunk over. Nobody can claim it, and the reconciler holds it (`jobs.ledger.jobs.control`).
            state=sa.case((job_was_stopped(), ChunkState.DROPPED), else_=ChunkState.PENDING),
            finished_at=sa.case((job_was_stopped(), db_now()), else_=None),
            lease_until=None,
            error=error,
            **values,
        )
    ).rowcount
    if released:
        count(connection, {(CounterName.ATTEMPTS, end): released})
    return released
