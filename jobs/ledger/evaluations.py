"""Evaluations as rows: one for each model and evaluation set.

`answers` holds two bytes per image, in the order of the evaluation set: the class that the model answered (or
`jobs.evaluation.NO_ANSWER`) and the true class. So two models can be compared image by image without the
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.evaluation import Evaluation
from jobs.ledger.database import insert_into
from jobs.schema import db_now, evaluations, models


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """An evaluation, and the data that it was made on."""

    data_fingerprint: str
    evaluation: Evaluation
    answers: bytes  # the answered and the true class of each image
    created_at: datetime


def save_evaluation(
    connection: Connection, model_id: str, data_fingerprint: str, evaluation: Evaluation, answers: bytes
) -> None:
    """Store an evaluation, replacing an earlier one of the same model on the same data.

    The model's accuracy becomes that of this evaluation. Raises ValueError unless `answers` are two bytes per
    image.
    """
    if len(answers) != 2 * evaluation.total:
        raise ValueError(f"{len(answers)} bytes are not the answers to {evaluation.total} images")
    row = {
        "measures": evaluation.to_json(),
        "answers": answers,
        "created_at": db_now(),
    }
    connection.execute(
        insert_into(connection, evaluations)
        .values(model_id=model_id, data_fingerprint=data_fingerprint, **row)
        .on_conflict_do_update(
            index_elements=[evaluations.c.model_id, evaluations.c.data_fingerprint], set_=row
        )
    )
    connection.execute(models.update().where(models.c.id == model_id).values(accuracy=evaluation.accuracy))


def find_evaluation(
    connection: Connection, model_id: str, data_fingerprint: str | None = None
) -> StoredEvaluation | None:
    """Return the model's evaluation on this data, or its latest on any data; None if there is none."""
    query = sa.select(evaluations).where(evaluations.c.model_id == model_id)
    if data_fingerprint is not None:
        query = query.where(evaluations.c.data_fingerprint == data_fingerprint)
    latest = query.order_by(evaluations.c.created_at.desc(), evaluations.c.data_fingerprint).limit(1)
    row = connection.execute(latest).one_or_none()
    if row is None:
        return None
    return StoredEvaluation(
        data_fingerprint=row.data_fingerprint,
        evaluation=Evaluation.from_json(row.measures),
        answers=bytes(row.answers),
        created_at=row.created_at,
    )
