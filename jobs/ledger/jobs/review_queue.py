"""The images that are most worth a person's look, across the latest jobs of a project.

A person who is given images keeps them for some minutes, so that two people who review see different ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.described import DescribedEnum
from jobs.ledger.database import insert_into
from jobs.ledger.jobs.browsing import IS_UNSURE
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import predictions_of
from jobs.ledger.jobs.shadows import first_disagreements
from jobs.ledger.learning.corrections import is_corrected
from jobs.ledger.learning.models import SHADOW, find_alias, find_champion
from jobs.schema import (
    UNSURE,
    JobState,
    db_now,
    jobs,
    models,
    predictions,
    review_claims,
)

#: The latest jobs of the dataset, to which the images belong.
_JOBS: Final = 20

#: How long images are kept for one person.
CLAIM_SECONDS: Final = 600.0

#: Random images are drawn so many times as often as wanted: some have no label, or are reviewed already.
_DRAWS: Final = 4

#: An image: its job, and its index there.
Place = tuple[str, int]


class ReviewKind(DescribedEnum):
    """Which images are reviewed."""

    UNSURE = "unsure", f"labels with a confidence below {UNSURE}, least sure first"
    DISAGREEMENT = "disagreement", "champion and challenger have different labels"
    RANDOM = "random", "drawn from all, so that the share of right labels is an estimate for all"


class ReviewItem(NamedTuple):
    """An image to review."""

    job_id: str
    prediction: Prediction


def claim_images(
    connection: Connection,
    kind: ReviewKind,
    *,
    project: str,
    dataset: str,
    job_id: str | None,
    holder: str,
    limit: int,
) -> list[ReviewItem]:
    """Return at most `limit` images without a correction, and keep them for this holder for CLAIM_SECONDS.

    With `job_id`, only images of this job. Images that anybody keeps are left out.
    """
    connection.execute(review_claims.delete().where(review_claims.c.until < db_now()))
    candidates = _SEARCHES[kind](
        connection, _latest_jobs(connection, project, dataset, job_id), dataset, limit
    )
    mine = set(_claim(connection, candidates, holder))
    places = [place for place in candidates if place in mine][:limit]
    found: list[ReviewItem] = []
    of_job: dict[str, dict[int, Prediction]] = {}
    for each in {job for job, _ in places}:
        of_job[each] = predictions_of(connection, each, [index for job, index in places if job == each])
    for job, index in places:
        if index in of_job[job]:
            found.append(ReviewItem(job, of_job[job][index]))
    return found


def count_unsure(connection: Connection, *, project: str, dataset: str, most: int) -> int:
    """Return how many unsure labels of the latest jobs nobody has corrected or confirmed, at most `most`."""
    table = predictions.c
    found = 0
    for job_id, _ in _latest_jobs(connection, project, dataset, None):
        # Counted in a subquery with a limit: a job may have millions.
        query = sa.select(table.index).where(
            table.job_id == job_id, IS_UNSURE, ~is_corrected(job_id, table.index)
        )
        limited = query.limit(most - found).subquery()
        found += connection.scalar(sa.select(sa.func.count()).select_from(limited)) or 0
        if found >= most:
            break
    return found


def release_images(connection: Connection, holder: str) -> None:
    """Let others have the images that this holder keeps."""
    connection.execute(review_claims.delete().where(review_claims.c.holder == holder))


def _latest_jobs(
    connection: Connection, project: str, dataset: str, job_id: str | None
) -> list[tuple[str, int]]:
    """Return the ids and sizes of the latest jobs of the project whose images can be shown."""
    query = (
        sa.select(jobs.c.id, jobs.c.total)
        .join(models, models.c.id == jobs.c.model_id)
        .where(
            jobs.c.project == project,
            models.c.dataset == dataset,
            jobs.c.shadow_of.is_(None),
            jobs.c.purged_at.is_(None),
            jobs.c.succeeded > 0,
            jobs.c.state != JobState.RECEIVING,
        )
        .order_by(jobs.c.created_at.desc())
        .limit(_JOBS)
    )
    if job_id is not None:
        query = query.where(jobs.c.id == job_id)
    return [(job, total) for job, total in connection.execute(query)]


def _is_free(job: Any, index: Any) -> sa.ColumnElement[bool]:
    """Return the condition that nobody has corrected this image, nor keeps it."""
    claimed = sa.exists().where(review_claims.c.job_id == job, review_claims.c.index == index)
    return sa.and_(~is_corrected(job, index), ~claimed)


def _unsure(connection: Connection, latest: list[tuple[str, int]], _dataset: str, limit: int) -> list[Place]:
    table = predictions.c
    found: list[tuple[float, str, int]] = []
    for job_id, _ in latest:
        query = sa.select(table.confidence, table.job_id, table.index).where(
            table.job_id == job_id,
            IS_UNSURE,
            _is_free(table.job_id, table.index),
        )
        query = query.order_by(table.confidence, table.index).limit(limit)
        found += [(confidence, job, index) for confidence, job, index in connection.execute(query)]
    return [(job, index) for _, job, index in sorted(found)[:limit]]


def _random(connection: Connection, latest: list[tuple[str, int]], _dataset: str, limit: int) -> list[Place]:
    drawn: dict[str, set[int]] = {}
    sizes = [total for _, total in latest]
    for job_id, total in random.choices(latest, sizes, k=_DRAWS * limit) if latest else []:  # noqa: S311
        drawn.setdefault(job_id, set()).add(random.randrange(total))  # noqa: S311 -- a sample, no secret
    table = predictions.c
    found: list[Place] = []
    for job_id, indices in drawn.items():
        query = sa.select(table.job_id, table.index).where(
            table.job_id == job_id,
            table.index.in_(indices),
            table.label.is_not(None),
            _is_free(table.job_id, table.index),
        )
        found += [(job, index) for job, index in connection.execute(query)]
    random.shuffle(found)
    return found[:limit]


def _disagreements(
    connection: Connection, latest: list[tuple[str, int]], dataset: str, limit: int
) -> list[Place]:
    challenger = find_alias(connection, SHADOW, dataset)
    champion = find_champion(connection, dataset)
    if challenger is None or champion is None:
        return []
    known = {job_id for job_id, _ in latest}
    rows = first_disagreements(connection, challenger, beside=champion.id, limit=_DRAWS * limit)
    places = [(each.job, each.index) for each in rows if each.job in known]
    return [place for place in places if connection.scalar(sa.select(_is_free(*place)))][:limit]


_SEARCHES: Final[dict[ReviewKind, Callable[..., list[Place]]]] = {
    ReviewKind.UNSURE: _unsure,
    ReviewKind.DISAGREEMENT: _disagreements,
    ReviewKind.RANDOM: _random,
}


def _claim(connection: Connection, places: list[Place], holder: str) -> list[Place]:
    """Keep these images for the holder, and return those that nobody else has taken in the meantime."""
    # In key order, so that two people who claim the same images do not deadlock.
    rows: list[dict[str, Any]] = [{"job_id": job, "index": index} for job, index in sorted(places)]
    if not rows:
        return []
    insert = insert_into(connection, review_claims).values(
        [row | {"holder": holder, "until": db_now(CLAIM_SECONDS)} for row in rows]
    )
    added = insert.on_conflict_do_nothing().returning(review_claims.c.job_id, review_claims.c.index)
    return [(job, index) for job, index in connection.execute(added)]
