"""Corrections: what an image really is, by a person, beside what a model took it for.

The image's bytes lie in the store as well, as a copy of their own: a payload is purged, and what was learnt
from outlives its job. The copy is written before the row that names it. `labelmill.correcting` makes
corrections, `worker.learning.corrections` trains with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.ledger.database import insert_into
from jobs.outcomes import Outcome
from jobs.schema import ChunkState, chunks, corrections, db_now, predictions

#: Where the copies of all images lie in the store.
COPIES: Final = "corrections"

#: Rows that one statement asks for by their numbers.
_PAGE_ROWS: Final = 500

_VALUES: Final = tuple(column.name for column in corrections.c if column.name != "created_at")
_SELECT: Final = sa.select(corrections)


@dataclass(frozen=True, slots=True)
class NewCorrection:
    """One image and its true label."""

    job_id: str
    index: int
    name: str
    label: str  # what it is
    predicted: str | None  # what it was taken for; None where it got an error
    confidence: float | None
    model_id: str  # who took it for that
    image_sha256: str  # of its bytes, in hex


@dataclass(frozen=True, slots=True)
class Correction(NewCorrection):
    """One row of the table."""

    created_at: datetime  # when its label was said, or said anew


@dataclass(frozen=True, slots=True)
class LiveAccuracy:
    """How often a model was right, of the images whose true label people have said since.

    People look at what seems wrong, so it is mostly lower than the truth; a correction that says the same as
    the prediction confirms it, and counts. Images that got an error do not: the model gave no answer.
    """

    right: int
    labelled: int

    @property
    def accuracy(self) -> float | None:
        """The share of `labelled` that is right, 0 to 1; None where nothing is labelled."""
        return self.right / self.labelled if self.labelled else None


def correction_key(image_sha256: str) -> str:
    """Where the copy of an image's bytes lies in the store."""
    return f"{COPIES}/{image_sha256}"


def save_corrections(connection: Connection, rows: Iterable[NewCorrection]) -> list[Correction]:
    """Stores them; an image that has one gets the new label and the time of now. Gives them back as they are
    stored, by job and index.
    """
    # In key order: two who correct the same images in different orders wait for each other.
    rows = sorted(rows, key=lambda row: (row.job_id, row.index))
    if not rows:
        return []
    insert = insert_into(connection, corrections).values(
        {column: sa.bindparam(column) for column in _VALUES} | {"created_at": db_now()}
    )
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=[corrections.c.job_id, corrections.c.index],
            set_={"label": insert.excluded.label, "created_at": insert.excluded.created_at},
        ),
        [{column: getattr(row, column) for column in _VALUES} for row in rows],
    )
    found: list[Correction] = []
    for job_id, of_job in groupby(rows, key=attrgetter("job_id")):
        found += find_corrections(connection, job_id, [row.index for row in of_job]).values()
    return found


def find_corrections(connection: Connection, job_id: str, indices: Sequence[int]) -> dict[int, Correction]:
    """Those of these images that have one, by index, in the order of `indices`."""
    found: dict[int, Correction] = {}
    for start in range(0, len(indices), _PAGE_ROWS):
        page = indices[start : start + _PAGE_ROWS]
        query = _SELECT.where(corrections.c.job_id == job_id, corrections.c.index.in_(page))
        found |= {each.index: each for each in map(_to_correction, connection.execute(query))}
    return {index: found[index] for index in indices if index in found}


def any_correction(connection: Connection, job_id: str) -> bool:
    """Whether an image of the job has one. That of a job that was purged as a whole stays."""
    query = sa.select(corrections.c.index).where(corrections.c.job_id == job_id)
    return connection.scalar(query.limit(1)) is not None


def remove_correction(connection: Connection, job_id: str, index: int) -> Correction | None:
    """Takes it back; gives back what it was, None where there is none."""
    found = find_corrections(connection, job_id, [index]).get(index)
    if found is not None:
        connection.execute(
            corrections.delete().where(corrections.c.job_id == job_id, corrections.c.index == index)
        )
    return found


def all_corrections(connection: Connection) -> list[Correction]:
    """All of them, the latest first."""
    query = _SELECT.order_by(
        corrections.c.created_at.desc(), corrections.c.job_id.desc(), corrections.c.index.desc()
    )
    return [_to_correction(row) for row in connection.execute(query)]


def _to_correction(row: Row[Any]) -> Correction:
    return Correction(**row._mapping)


def without_correction(connection: Connection, image_sha256s: Iterable[str]) -> list[str]:
    """Those of these images that no correction is about."""
    wanted = list(image_sha256s)
    named: set[str] = set()
    for start in range(0, len(wanted), _PAGE_ROWS):
        page = wanted[start : start + _PAGE_ROWS]
        named.update(
            connection.scalars(
                sa.select(corrections.c.image_sha256).where(corrections.c.image_sha256.in_(page))
            )
        )
    return [each for each in wanted if each not in named]


def live_accuracy(connection: Connection, model_id: str) -> LiveAccuracy:
    """How often the model was right, by the corrections there are of its predictions."""
    right = sa.case((corrections.c.label == corrections.c.predicted, 1), else_=0)
    row = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(right), 0), sa.func.count()).where(
            corrections.c.model_id == model_id, corrections.c.predicted.is_not(None)
        )
    ).one()
    return LiveAccuracy(right=int(row[0]), labelled=int(row[1]))


# ---- what a correction is about -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """Where the images of a chunk are that has its outcomes."""

    first_index: int
    images: int
    payload: str
    payload_digest: str
    payload_offset: int


def outcomes_of(connection: Connection, job_id: str, indices: Sequence[int]) -> dict[int, Outcome]:
    """What became of these images of a job, by index; one that has no outcome yet is not there."""
    found: dict[int, Outcome] = {}
    columns = predictions.c
    for start in range(0, len(indices), _PAGE_ROWS):
        page = indices[start : start + _PAGE_ROWS]
        query = sa.select(
            columns.index, columns.name, columns.label, columns.confidence, columns.error, columns.detail
        ).where(columns.job_id == job_id, columns.index.in_(page))
        for index, *outcome in connection.execute(query):
            found[index] = Outcome(*outcome)
    return found


def chunk_of(connection: Connection, job_id: str, index: int) -> FinishedChunk | None:
    """The finished chunk that holds this image; None where there is none."""
    row = connection.execute(
        sa.select(
            chunks.c.first_index,
            chunks.c.images,
            chunks.c.payload,
            chunks.c.payload_sha256,
            chunks.c.payload_offset,
        )
        # In place of a chunk that was split stand its halves.
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.DONE, chunks.c.first_index <= index)
        .order_by(chunks.c.first_index.desc())
        .limit(1)
    ).one_or_none()
    if row is None or index >= row.first_index + row.images:
        return None
    return FinishedChunk(*row)
