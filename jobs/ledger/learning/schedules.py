"""Schedules: when a dataset's model is trained. `worker.schedule` requests the runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ledger.database import insert_into
from jobs.schema import RunState, corrections, dataset_versions, db_now, models, schedules, training_runs


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a dataset's model is trained, and how."""

    dataset: str
    cron: str | None  # five fields, in UTC; None: at no fixed time
    after_corrections: int | None  # as soon as this many corrections are new; None: never for that reason
    request: dict[str, Any]  # what to train, as a person would request it
    changed_at: datetime
    always: bool  # train at the times of `cron` even if nothing is new


def set_schedule(
    connection: Connection,
    dataset: str,
    *,
    cron: str | None,
    after_corrections: int | None,
    request: dict[str, Any],
    always: bool = False,
) -> Schedule:
    """Store the dataset's schedule in place of its present one, and return it."""
    values = {
        "cron": cron,
        "after_corrections": after_corrections,
        "request": request,
        "changed_at": db_now(),
        "always": always,
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


def is_anything_new(connection: Connection, schedule: Schedule) -> bool:
    """Return whether a run of this schedule would train on other data, or in another way, than its last one.

    That is a new version of the dataset, a new correction, one that was removed, or a change of the schedule.
    A run that did not finish has trained on nothing.
    """
    runs = training_runs.c
    by_schedule = sa.or_(runs.slot.is_not(None), runs.corrections_seen.is_not(None))
    last = connection.execute(
        sa.select(runs.dataset_version, runs.started_at, runs.data)
        .where(runs.dataset == schedule.dataset, runs.state == RunState.DONE, by_schedule)
        .where(runs.requested_at >= schedule.changed_at)
        .order_by(runs.requested_at.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        return True
    version = sa.select(sa.func.max(dataset_versions.c.version))
    if (
        connection.scalar(version.where(dataset_versions.c.dataset == schedule.dataset))
        != last.dataset_version
    ):
        return True
    images, newest = connection.execute(
        sa.select(sa.func.count(corrections.c.image_sha256.distinct()), sa.func.max(corrections.c.created_at))
        .join(models, models.c.id == corrections.c.model_id)
        .where(models.c.dataset == schedule.dataset)
    ).one()
    used = sum((last.data or {}).get(each, 0) for each in ("corrections", "live_images", "left_out"))
    return images < used or bool(newest is not None and newest > last.started_at)


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
