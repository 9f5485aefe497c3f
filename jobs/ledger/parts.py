"""A part of a chunk becomes a chunk of its own, which waits: some of the images of the same payload."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger.claims import RETRY_SECONDS, Claim, finish_chunks, ours
from jobs.ledger.intake import QUIET_SECONDS
from jobs.schema import ChunkState, JobState, chunks, db_now, jobs


def add_part(
    connection: Connection, claim: Claim, *, offset: int, images: int, id_: str | None = None, **values: Any
) -> None:
    """A chunk of so many of the claim's images, from the one at `offset`. That the job has one more is the
    caller's to write.
    """
    connection.execute(
        chunks.insert().values(
            id=id_ or new_id(),
            job_id=claim.job_id,
            first_index=claim.first_index + offset,
            images=images,
            payload=claim.payload,
            payload_sha256=claim.payload_digest,
            payload_offset=claim.payload_offset + offset,
            state=ChunkState.PENDING,
            **({"created_at": db_now()} | values),
        )
    )


def split_in_two(
    connection: Connection, claim: Claim, *, at: int, first: dict[str, Any], others: dict[str, Any]
) -> None:
    """Ends the claim with two chunks in the chunk's place, its first `at` images and the others, with these
    values each. Raises LeaseLost where the claim is somebody else's by now; the transaction must then roll
    back.
    """
    finish_chunks(connection, [claim], ChunkState.SPLIT)
    add_part(connection, claim, offset=0, images=at, **first)
    add_part(connection, claim, offset=at, images=claim.images - at, **others)
    # The hot row last, as where outcomes are recorded. Two came, and the one that went is not to be done.
    connection.execute(jobs.update().where(jobs.c.id == claim.job_id).values(chunks=jobs.c.chunks + 1))


def set_first_aside(connection: Connection, claim: Claim, *, error: str, rest_id: str) -> None:
    """Ends the claim with two chunks in the chunk's place: its first image, of which `error` says what keeps
    it, and the others, for which the caller rings. Raises LeaseLost where the claim is somebody else's by
    now; the transaction must then roll back.
    """
    split_in_two(
        connection,
        claim,
        at=1,
        first={"error": error, "ring_after": db_now(RETRY_SECONDS)},
        others={"id_": rest_id} | _rung_by_the_caller(),
    )


def cut_chunk(connection: Connection, claim: Claim, *, done: int, rest_id: str) -> None:
    """Of a chunk that is finished in the same transaction, only the first `done` images are: the others
    become a chunk of their own, as old as this one, and the caller rings for it.
    """
    connection.execute(chunks.update().where(chunks.c.id == claim.chunk_id).values(images=done))
    _add_rest(connection, claim, offset=done, rest_id=rest_id)


def give_away(connection: Connection, claim: Claim, *, keep: int, rest_id: str) -> bool:
    """In the middle of a claim: it keeps the first `keep` images, and the others become a chunk of their own,
    as old as this one, for which the caller rings. False, and nothing happens, where the chunk is somebody
    else's by now or has other images than the claim says; and where its job is to go no further, or has still
    chunks to come: whoever is idle will get one of these.
    """
    goes_on = sa.exists().where(
        jobs.c.id == claim.job_id, jobs.c.state == JobState.RUNNING, jobs.c.paused_at.is_(None)
    )
    kept = connection.execute(
        chunks.update().where(ours([claim]), chunks.c.images == claim.images, goes_on).values(images=keep)
    )
    if kept.rowcount != 1:
        return False
    _add_rest(connection, claim, offset=keep, rest_id=rest_id)
    connection.execute(jobs.update().where(jobs.c.id == claim.job_id).values(chunks=jobs.c.chunks + 1))
    return True


def _add_rest(connection: Connection, claim: Claim, *, offset: int, rest_id: str) -> None:
    """The images from the one at `offset` on: a chunk as old as the one that they were a part of."""
    add_part(
        connection,
        claim,
        offset=offset,
        images=claim.images - offset,
        id_=rest_id,
        created_at=sa.select(chunks.c.created_at).where(chunks.c.id == claim.chunk_id).scalar_subquery(),
        **_rung_by_the_caller(),
    )


def _rung_by_the_caller() -> dict[str, Any]:
    return {"rung_at": db_now(), "ring_after": db_now(QUIET_SECONDS)}
