"""Images that a model may have learnt from corrections: those that were corrected before its training run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.schema import corrections, models, predictions, training_runs


def learnt_hashes(connection: Connection, model_id: str) -> set[str]:
    """Return the hashes of the images that had been corrected before the model's training run."""
    return set(connection.scalars(_learnt(model_id, corrections.c.image_sha256)))


def perhaps_learnt(connection: Connection, job_id: str, model_id: str) -> dict[int, set[str]]:
    """Return the images of a job with the names of images that had been corrected before the training run.

    By index, with the hashes of the corrected images: other images may have the same names.
    """
    query = _learnt(model_id, predictions.c.index, corrections.c.image_sha256)
    query = query.join(predictions, predictions.c.name == corrections.c.name)
    found: defaultdict[int, set[str]] = defaultdict(set)
    for index, image_sha256 in connection.execute(query.where(predictions.c.job_id == job_id)):
        found[index].add(image_sha256)
    return dict(found)


def _learnt(model_id: str, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return (
        sa.select(*columns)
        .select_from(corrections)
        .join(models, models.c.id == corrections.c.model_id)
        .join(
            training_runs,
            sa.and_(
                training_runs.c.dataset == models.c.dataset,
                training_runs.c.started_at > corrections.c.created_at,
            ),
        )
        .where(training_runs.c.model_id == model_id)
    )
