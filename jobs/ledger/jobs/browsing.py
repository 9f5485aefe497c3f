"""Browse the images of a job: pages of those that match, in a time that does not depend on the job's size."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import Ledger
from jobs.ledger.jobs.filters import Filter, corrected_class, known_class
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import PREDICTIONS
from jobs.schema import UNSURE, predictions

#: Images that one statement looks at, and the seconds after which no other one begins.
_SPAN: Final = 5_000
_SECONDS: Final = 0.05

#: The condition of the index on unsure labels. As text: no database sees that a parameter fulfils it.
IS_UNSURE: Final = predictions.c.confidence < sa.literal_column(str(UNSURE))


class ImagePage(NamedTuple):
    """Images that match, and where to go on."""

    images: list[Prediction]
    #: The cursor of the next page: it may have images. None: there are no more.
    after: str | None
    #: How far the job was looked through, as an index.
    seen: int


class ErrorCount(NamedTuple):
    """How many images of a job have an error code, and the first of them."""

    code: str
    images: int
    first_index: int


def browse_by_index(
    ledger: Ledger, job_id: str, total: int, wanted: Filter, *, after: str | None, limit: int
) -> ImagePage:
    """Return images that match, in the order of their indices.

    It looks for a limited time, so a page may have few images, or none, and still not be the last.
    """
    seen = -1 if after is None else int(after)
    found: list[Prediction] = []
    began = time.monotonic()
    while len(found) < limit and seen < total - 1:
        query = PREDICTIONS.where(predictions.c.job_id == job_id)
        query = query.where(predictions.c.index > seen, predictions.c.index <= seen + _SPAN)
        query = query.order_by(predictions.c.index).limit(limit - len(found))
        with ledger.reading() as connection:
            rows = connection.execute(wanted.apply(connection, query)).all()
        found += [Prediction(*row) for row in rows]
        seen = found[-1].index if len(found) == limit else min(seen + _SPAN, total - 1)
        if time.monotonic() - began > _SECONDS:
            break
    return ImagePage(found, None if seen >= total - 1 else str(seen), seen)


def browse_least_sure(
    ledger: Ledger, job_id: str, total: int, wanted: Filter, *, after: str | None, limit: int
) -> ImagePage:
    """Return images that match and whose confidence is below UNSURE, lowest confidence first."""
    with ledger.reading() as connection:
        query = least_sure(connection, job_id, wanted, after=after).limit(limit)
        found = [Prediction(*row) for row in connection.execute(query)]
    if len(found) < limit:
        return ImagePage(found, None, total - 1)
    return ImagePage(found, f"{found[-1].confidence!r},{found[-1].index}", found[-1].index)


def least_sure(connection: Connection, job_id: str, wanted: Filter, *, after: str | None) -> sa.Select[Any]:
    """Return the query for these images after a cursor."""
    table = predictions.c
    query = PREDICTIONS.where(table.job_id == job_id, IS_UNSURE).order_by(table.confidence, table.index)
    if after is not None:
        confidence, index = after.split(",")
        # As float32, like the column: PostgreSQL writes it with the fewest digits.
        place = sa.tuple_(sa.cast(float(confidence), sa.REAL), sa.literal(int(index), sa.BigInteger))
        query = query.where(sa.tuple_(table.confidence, table.index) > place)
    return wanted.apply(connection, query)


#: The orders of images, by name.
ORDERS: Final[dict[str, Callable[..., ImagePage]]] = {"index": browse_by_index, "unsure": browse_least_sure}


def count_errors(connection: Connection, job_id: str) -> list[ErrorCount]:
    """Return the job's error codes, the most frequent first."""
    table, count = predictions.c, sa.func.count()
    query = sa.select(table.error, count, sa.func.min(table.index))
    query = query.where(table.job_id == job_id, table.error.is_not(None))
    return [
        ErrorCount(*row) for row in connection.execute(query.group_by(table.error).order_by(count.desc()))
    ]


class Confusions(NamedTuple):
    """How many images of each true class got each label; the last column counts those without a label."""

    confusion: list[list[int]]
    corrected: int  # images whose true class is their correction


def count_confusions(
    connection: Connection, job_id: str, classes: tuple[str, ...], left_out: Collection[int] = ()
) -> Confusions:
    """Count the labels of the images whose known class is one of `classes`. Reads all images of the job.

    The images in `left_out`, by index, do not count.
    """
    table = predictions.c
    counted: sa.Select[Any] = sa.select(
        known_class().label("known"), corrected_class().label("corrected"), table.label.label("label")
    )
    # Written out, because they may be more than a statement can have parameters.
    others: sa.BindParameter[list[int]] = sa.bindparam(
        "left_out", sorted(left_out), expanding=True, literal_execute=True
    )
    rows = counted.where(table.job_id == job_id, table.index.not_in(others)).subquery().c
    truth = sa.func.coalesce(rows.corrected, rows.known)
    query = sa.select(truth, rows.label, sa.func.count(), sa.func.count(rows.corrected))
    query = query.where(rows.known.in_(classes)).group_by(truth, rows.label)
    places = {name: place for place, name in enumerate(classes)}
    confusion = [[0] * (len(classes) + 1) for _ in classes]
    all_corrected = 0
    for true, predicted, images, corrected in connection.execute(query):
        confusion[places[true]][places.get(predicted, len(classes))] += images
        all_corrected += corrected
    return Confusions(confusion, all_corrected)
