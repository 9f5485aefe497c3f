"""Shadows: the challenger classifies a share of each new job again, and the results are compared.

A shadow is a job like any other: its project takes its turn after all others, it is pinned to the challenger,
and its chunks point to the payloads of the job that it shadows. Workers do not know about shadows. A
comparison joins the predictions of both jobs on the image's index.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict
from jobs.ids import new_id
from jobs.ledger.learning.models import (
    SHADOW,
    check_dataset,
    find_alias,
    find_champion,
    get_model,
    point_alias,
)
from jobs.models.dataset import MNIST
from jobs.models.model import Model
from jobs.schema import (
    PAYLOAD_COLUMNS,
    SHADOWS,
    ChunkState,
    JobState,
    aliases,
    chunks,
    db_now,
    jobs,
    models,
    predictions,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How often a challenger agrees with the models of the jobs that it shadowed, or with one of them."""

    model: str
    chunks: int
    images: int  # to which both gave a label
    disagreements: int
    beside: str | None = None  # the model of the shadowed jobs; None for all

    @property
    def share(self) -> float | None:
        """Return the share of images on which they disagree, 0 to 1; None before the first image."""
        return self.disagreements / self.images if self.images else None


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image to which the job's model and the challenger gave different labels."""

    job: str
    index: int
    name: str
    label: str | None  # the job's
    confidence: float | None
    challenger_label: str
    challenger_confidence: float


def shadow_job(connection: Connection, job_id: str, *, share: float) -> str | None:
    """Add the shadow of a job that has just been sealed: a share of its chunks, for its dataset's challenger.

    `share` is 0 to 1. Return the shadow's id, or None if there is no challenger, it cannot be compared with
    the job's model, or no chunk falls into the share. Call it in the transaction that seals the job.
    """
    query = (
        sa.select(jobs.c.model_id, aliases.c.model_id)
        .join(models, models.c.id == jobs.c.model_id)
        .join(aliases, (aliases.c.dataset == models.c.dataset) & (aliases.c.name == SHADOW))
        .where(jobs.c.id == job_id, aliases.c.model_id != jobs.c.model_id)
    )
    found = connection.execute(query).one_or_none()
    if found is None:
        return None
    model_id, challenger_id = found
    if not comparable(get_model(connection, model_id), get_model(connection, challenger_id)):
        return None
    query = sa.select(chunks.c.id, *PAYLOAD_COLUMNS).where(chunks.c.job_id == job_id)
    rows = connection.execute(query).mappings()
    sampled = [dict(row) for row in rows if is_shadowed(share, row["id"])]
    if not sampled:
        return None
    shadow_id = new_id()
    connection.execute(
        jobs.insert().values(
            id=shadow_id,
            project=SHADOWS,
            state=JobState.RUNNING,
            model_id=challenger_id,
            shadow_of=job_id,
            total=sum(row["images"] for row in sampled),
            created_at=db_now(),
            touched_at=db_now(),
            submitted_at=db_now(),
        )
    )
    new = {"job_id": shadow_id, "project": SHADOWS, "state": ChunkState.PENDING}
    connection.execute(
        chunks.insert().values(created_at=db_now()), [row | new | {"id": new_id()} for row in sampled]
    )
    return shadow_id


def is_shadowed(share: float, chunk_id: str) -> bool:
    """Return whether the chunk falls into this share, 0 to 1. The answer for a chunk never changes."""
    drawn = int.from_bytes(hashlib.sha256(chunk_id.encode()).digest()[:8], "big")
    return drawn < share * 2**64


def begin_shadow(connection: Connection, model_id: str) -> Model:
    """Make the model its dataset's challenger, replacing the present one.

    Raises NotFound, or Conflict if there is nothing to compare it with.
    """
    model = get_model(connection, model_id)
    champion = require_champion(connection, model.dataset)
    if champion.id == model.id:
        raise Conflict(
            f"Model {model.id} is the champion, and would be compared with itself: name another model."
        )
    if not comparable(champion, model):
        raise Conflict(
            f"Model {model.id} and the champion {champion.id} have different classes or inputs, so their "
            "labels cannot be compared: name another model."
        )
    point_alias(connection, SHADOW, model.id)
    return model


def require_champion(connection: Connection, dataset: str = MNIST) -> Model:
    """Return the dataset's champion, to compare a challenger with. Raises Conflict if there is none."""
    champion = find_champion(connection, dataset)
    if champion is None:
        raise Conflict(
            f"Dataset {dataset} has no champion to compare it with: promote a model with `labelmill models "
            "promote MODEL`, with --force if it was not evaluated."
        )
    return champion


def comparable(one: Model, other: Model) -> bool:
    """Return whether both models have the same classes and the same input."""
    return set(one.classes) == set(other.classes) and one.input_spec == other.input_spec


def require_challenger(connection: Connection, dataset: str = MNIST) -> str:
    """Return the id of the dataset's challenger. Raises NotFound, or Conflict if there is none."""
    check_dataset(connection, dataset)
    model_id = find_alias(connection, SHADOW, dataset)
    if model_id is None:
        raise Conflict(
            f"Dataset {dataset} has no challenger: `labelmill models shadow MODEL` sets one, for the "
            "dataset of MODEL."
        )
    return model_id


def end_shadow(connection: Connection, dataset: str = MNIST) -> None:
    """Remove the alias of the dataset's challenger; its results stay.

    Raises NotFound, or Conflict if there is none.
    """
    require_challenger(connection, dataset)
    alias = aliases.delete().where(aliases.c.dataset == dataset, aliases.c.name == SHADOW)
    connection.execute(alias)


def compare(connection: Connection, model_id: str, *, beside: str | None = None) -> Comparison:
    """Compare a challenger with the models of the jobs that it shadowed, or only with the model `beside`.

    Agreement with one champion says nothing about the next.
    """
    images, disagreements = connection.execute(
        _compared(
            model_id,
            beside,
            sa.func.count(),
            sa.func.coalesce(
                sa.func.sum(sa.case((_CHALLENGER.c.label != predictions.c.label, 1), else_=0)), 0
            ),
        )
    ).one()
    done = (
        sa.select(sa.func.count())
        .select_from(chunks)
        .join(jobs, jobs.c.id == chunks.c.job_id)
        .join(_SHADOWED, _SHADOWED.c.id == jobs.c.shadow_of)
        .where(jobs.c.model_id == model_id, chunks.c.state == ChunkState.DONE)
    )
    if beside is not None:
        done = done.where(_SHADOWED.c.model_id == beside)
    return Comparison(model_id, connection.scalar(done) or 0, int(images), int(disagreements), beside)


def first_disagreements(
    connection: Connection, model_id: str, *, beside: str, limit: int
) -> list[Disagreement]:
    """Return at most `limit` images on which the challenger and this model disagree, latest jobs first."""
    query = (
        _compared(
            model_id,
            beside,
            predictions.c.job_id,
            predictions.c.index,
            predictions.c.name,
            predictions.c.label,
            predictions.c.confidence,
            _CHALLENGER.c.label,
            _CHALLENGER.c.confidence,
        )
        .where(_CHALLENGER.c.label != predictions.c.label)
        .order_by(predictions.c.job_id.desc(), predictions.c.index)
        .limit(limit)
    )
    return [Disagreement(*row) for row in connection.execute(query)]


_SHADOWED: Final = jobs.alias("shadowed")
_CHALLENGER: Final = predictions.alias("challenger")


def _compared(model_id: str, beside: str | None, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return a query of these columns for all images to which both models gave a label."""
    query = (
        sa.select(*columns)
        .select_from(jobs)
        .join(_SHADOWED, _SHADOWED.c.id == jobs.c.shadow_of)
        .join(_CHALLENGER, _CHALLENGER.c.job_id == jobs.c.id)
        .join(
            predictions,
            sa.and_(predictions.c.job_id == _SHADOWED.c.id, predictions.c.index == _CHALLENGER.c.index),
        )
        .where(
            jobs.c.model_id == model_id,
            _CHALLENGER.c.label.is_not(None),
            predictions.c.label.is_not(None),
        )
    )
    return query if beside is None else query.where(_SHADOWED.c.model_id == beside)
