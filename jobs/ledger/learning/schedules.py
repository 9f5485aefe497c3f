"""Schedules: when a dataset's model is trained. `worker.schedule` requests the runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import insert_into
from jobs.schema import RunState, corrections, db_now, models, schedules, training_runs


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a dataset's model is trained, and how."""

    dataset: str
    cron: str | None  # five fields, in UTC; None: at no fixed time
    after_corrections: int | None  # as soon as this many corrections are new; None: never for that reason
    request: dict[str, Any]  # what to train, as a person would request it
    changed_at: datetime


def set_schedule(
    connection: Connection,
    dataset: str,
    *,
    cron: str | None,
    after_corrections: int | None,
    request: dict[str, Any],
) -> Schedule:
    """Store the dataset's schedule in place of its present one, and return it."""
    values = {
        "cron": cron,
        "after_corrections": after_corrections,
        "request": request,
        "changed_at": db_now(),
    }
    row = connection.execute(
        insert_into(connection, schedules)
        .values(dataset=dataset, **values)
        .on_conflict_do_update(index_elements=[schedules.c.dataset], set_=values)
        .returning(schedules)
    ).one()
    return Schedule(**row._mapping)


def find_schedule(connection: Connection, dataset: str) -> Schedule | None:
    """Return the dataset's schedule, or None."""
    row = connection.execute(sa.select(schedules).where(schedules.c.dataset == dataset)).one_or_none()
    return None if row is None else Schedule(**row._mapping)


def list_schedules(connection: Connection) -> list[Schedule]:
    """Return the schedules of all datasets that have one, by name."""
    query = sa.select(schedules).order_by(schedules.c.dataset)
    return [Schedule(**row._mapping) for row in connection.execute(query)]


def new_corrections(connection: Connection, dataset: str) -> tuple[int, datetime | None]:
    """Return how many corrections of the dataset are new, and when the newest one was made.

    A correction is new if no run was requested after it. Skipped runs do not count.
    """
    latest_request = (
        sa.select(sa.func.max(training_runs.c.requested_at))
        .where(training_runs.c.dataset == dataset, training_runs.c.state != RunState.SKIPPED)
        .scalar_subquery()
    )
    is_new = sa.or_(latest_request.is_(None), corrections.c.created_at > latest_request)
    row = connection.execute(
        sa.select(sa.func.count(), sa.func.max(corrections.c.created_at))
        .select_from(corrections)
        .join(models, models.c.id == corrections.c.model_id)
        .where(models.c.dataset == dataset, is_new)
    ).one()
    return int(row[0]), row[1]
