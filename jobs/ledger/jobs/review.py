"""Find the images of a job whose predictions are most worth checking. Reads only."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Final

import sqlalchemy as sa

from jobs.ledger.database import Ledger
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import PREDICTIONS, job_status
from jobs.ledger.learning.corrections import is_corrected
from jobs.schema import predictions

#: How many images one statement reads. The database sorts them, so memory here does not depend on it.
_PAGE_IMAGES: Final = 100_000


def least_confident(
    ledger: Ledger, job_id: str, *, limit: int, on_progress: Callable[[int, int], None]
) -> list[Prediction]:
    """Return at most `limit` images with a label and without a correction, lowest confidence first.

    The job is read page by page, in constant memory and without a long transaction. `on_progress` is called
    with the number of images looked at and that of all images. Raises NotFound.
    """
    with ledger.reading() as connection:
        total = job_status(connection, job_id).total
    table = predictions.c
    corrected = is_corrected(job_id, table.index)
    query = PREDICTIONS.where(table.job_id == job_id, table.confidence.is_not(None), ~corrected)
    query = query.order_by(table.confidence, table.index).limit(limit)
    found: list[Prediction] = []
    for start in range(0, total, _PAGE_IMAGES):
        page = query.where(table.index >= start, table.index < start + _PAGE_IMAGES)
        if len(found) == limit:
            # As float32, like the column.
            page = page.where(table.confidence < sa.cast(found[-1].confidence, sa.REAL))
        with ledger.reading() as connection:
            found += [Prediction(*row) for row in connection.execute(page)]
        found = sorted(found, key=attrgetter("confidence", "index"))[:limit]
        on_progress(min(start + _PAGE_IMAGES, total), total)
    return found
