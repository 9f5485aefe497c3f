"""Corrections: the true label of an image, given by a person, next to the label that a model predicted.

Each corrected image is also copied in the store, because its payload may be purged and training needs the
image longer than that. The copy is written before the row that names it. `labelmill.labels.correcting` makes
corrections; `worker.learning.corrections` trains with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import batched, insert_into
from jobs.models.dataset import MNIST
from jobs.schema import PAYLOAD_COLUMNS, ChunkState, chunks, corrections, db_now, models

#: The folder of all copies in the store.
COPIES: Final = "corrections"

_VALUES: Final = tuple(column.name for column in corrections.c if column.name != "created_at")


@dataclass(frozen=True, slots=True)
class NewCorrection:
    """One image and its true label."""

    job_id: str
    index: int
    name: str
    label: str  # the true label
    predicted: str | None  # the model's label; None if the image got an error
    confidence: float | None
    model_id: str  # the model that predicted
    image_sha256: str  # of its bytes, in hex


@dataclass(frozen=True, slots=True)
class Correction(NewCorrection):
    """One row of the table."""

    created_at: datetime  # when the label was given, or last changed


@dataclass(frozen=True, slots=True)
class LiveAccuracy:
    """How often a model was right, among the predictions that people have corrected or confirmed.

    People check what looks wrong, so this is usually lower than the true accuracy. A correction that repeats
    the prediction confirms it and counts as right. Images that got an error do not count: the model gave no
    answer.
    """

    right: int
    labelled: int

    @property
    def accuracy(self) -> float | None:
        """Return `right` as a share of `labelled`, 0 to 1; None if nothing is labelled."""
        return self.right / self.labelled if self.labelled else None


def correction_key(image_sha256: str) -> str:
    """Return the key of the copy of an image's bytes in the store."""
    return f"{COPIES}/{image_sha256}"


def save_corrections(connection: Connection, rows: Iterable[NewCorrection]) -> list[Correction]:
    """Store corrections and return them as stored, by job and index.

    An image that has a correction gets the new label and the current time.
    """
    # In key order, so that two people who correct the same images do not deadlock.
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
    """Return the corrections of these images, by index, in the order of `indices`.

    An image without a correction is left out.
    """
    found: dict[int, Correction] = {}
    for some in batched(indices):
        query = sa.select(corrections).where(corrections.c.job_id == job_id, corrections.c.index.in_(some))
        rows = [Correction(**row._mapping) for row in connection.execute(query)]
        found |= {row.index: row for row in rows}
    return {index: found[index] for index in indices if index in found}


def is_corrected(job_id: Any, index: Any) -> sa.ColumnElement[bool]:
    """Return the condition that this image has a correction."""
    return sa.exists().where(corrections.c.job_id == job_id, corrections.c.index == index)


def corrected_labels(connection: Connection, job_id: str) -> dict[int, str]:
    """Return the true labels of the job's corrected images, by index."""
    query = sa.select(corrections.c.index, corrections.c.label).where(corrections.c.job_id == job_id)
    return dict(connection.execute(query).all())


def latest_corrected_images(
    connection: Connection, job_id: str, *, limit: int
) -> list[tuple[str, str | None]]:
    """Return the hashes and predicted labels of the job's corrected images, latest correction first."""
    query = sa.select(corrections.c.image_sha256, corrections.c.predicted)
    query = query.where(corrections.c.job_id == job_id).order_by(corrections.c.created_at.desc())
    return [(sha256, predicted) for sha256, predicted in connection.execute(query.limit(limit))]


def any_correction(connection: Connection, job_id: str) -> bool:
    """Return whether an image of the job has a correction. Corrections outlive a purged job."""
    query = sa.select(corrections.c.index).where(corrections.c.job_id == job_id)
    return connection.scalar(query.limit(1)) is not None


def remove_correction(
    connection: Connection, job_id: str, index: int, label: str | None = None, *, confirmation: bool = True
) -> Correction | None:
    """Remove a correction and return it, or return None if there is none.

    Only a correction with this label is removed, if one is given, and a confirmation only if that is allowed.
    """
    found = corrections.delete().where(corrections.c.job_id == job_id, corrections.c.index == index)
    if label is not None:
        found = found.where(corrections.c.label == label)
    if not confirmation:
        found = found.where(corrections.c.label.is_distinct_from(corrections.c.predicted))
    row = connection.execute(found.returning(corrections)).one_or_none()
    return None if row is None else Correction(**row._mapping)


def all_corrections(connection: Connection, dataset: str | None = MNIST) -> list[Correction]:
    """Return all corrections of predictions by models of this dataset, or of any, latest first."""
    query = sa.select(corrections).order_by(
        corrections.c.created_at.desc(), corrections.c.job_id.desc(), corrections.c.index.desc()
    )
    if dataset is not None:
        query = query.join(models, models.c.id == corrections.c.model_id).where(models.c.dataset == dataset)
    return [Correction(**row._mapping) for row in connection.execute(query)]


def count_corrections(connection: Connection, dataset: str) -> int:
    """Return how many corrections there are of predictions by models of this dataset."""
    query = sa.select(sa.func.count()).select_from(corrections)
    query = query.join(models, models.c.id == corrections.c.model_id).where(models.c.dataset == dataset)
    return connection.scalar(query) or 0


def without_correction(connection: Connection, image_sha256s: Iterable[str]) -> list[str]:
    """Return those of these hashes that no correction refers to, in the same order."""
    wanted = list(image_sha256s)
    named: set[str] = set()
    for some in batched(wanted):
        query = sa.select(corrections.c.image_sha256).where(corrections.c.image_sha256.in_(some))
        named.update(connection.scalars(query))
    return [each for each in wanted if each not in named]


def lock_corrections(connection: Connection) -> None:
    """Let nobody else store or remove corrections until this transaction ends. Readers do not wait."""
    if connection.dialect.name == "postgresql":  # on SQLite, the transaction is the lock
        connection.execute(sa.text("LOCK TABLE corrections IN SHARE MODE"))


def live_accuracy(connection: Connection, model_id: str) -> LiveAccuracy:
    """Return how often the model was right, by the corrections of its predictions."""
    right = sa.case((corrections.c.label == corrections.c.predicted, 1), else_=0)
    row = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(right), 0), sa.func.count()).where(
            corrections.c.model_id == model_id, corrections.c.predicted.is_not(None)
        )
    ).one()
    return LiveAccuracy(right=int(row[0]), labelled=int(row[1]))


# ---- the image that is corrected ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """A chunk that is done: its images, and the payload that holds them."""

    first_index: int
    images: int
    payload: str
    payload_digest: str
    payload_offset: int


def chunk_of(connection: Connection, job_id: str, index: int) -> FinishedChunk | None:
    """Return the finished chunk that holds this image, or None."""
    row = connection.execute(
        sa.select(*PAYLOAD_COLUMNS)
        # A chunk that was split has become several, so the last one that begins at or before the image holds
        # it.
        .where(chunks.c.job_id == job_id, chunks.c.state == ChunkState.DONE, chunks.c.first_index <= index)
        .order_by(chunks.c.first_index.desc())
        .limit(1)
    ).one_or_none()
    if row is None or index >= row.first_index + row.images:
        return None
    return FinishedChunk(*row)
