"""Projects: each owns its jobs, files, API keys and webhooks, and sees nothing of the others'.

Datasets, models and training are shared. Projects with work take turns (`jobs.ledger.jobs.claims`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, NotFound
from jobs.ledger.database import insert_into
from jobs.models.dataset import check_name
from jobs.schema import SHADOWS, UNFINISHED, JobState, api_keys, db_now, files, jobs, projects


@dataclass(frozen=True, slots=True)
class Project:
    """A project, with what it has."""

    name: str
    created_at: datetime
    keys: int  # API keys that are not revoked
    validating: int  # jobs whose images are still being read
    running: int  # other jobs that have not finished
    waiting: int  # images of these jobs that have no outcome yet
    jobs: int  # all jobs that are stored
    images: int  # and their images
    file_bytes: int  # uploaded files


def create_project(connection: Connection, name: str) -> None:
    """Add a project. Raises UserError for an unusable name, Conflict if there is one with this name."""
    check_name(name, "project")
    added = connection.execute(
        insert_into(connection, projects).values(name=name, created_at=db_now()).on_conflict_do_nothing()
    )
    if not added.rowcount:
        raise Conflict(f"There is a project {name!r} already: choose another name.")


def check_project(connection: Connection, name: str | None) -> None:
    """Raise NotFound if a project is named and there is none with this name."""
    if name is None:
        return
    found = sa.select(projects.c.name).where(projects.c.name == name, projects.c.name != SHADOWS)
    if connection.scalar(found) is None:
        raise NotFound(f"There is no project {name!r}: `labelmill projects create {name}` makes it.")


def list_projects(connection: Connection, *, name: str | None = None) -> list[Project]:
    """Return all projects by name, or only the one with this name, with what each has running and stored."""
    is_open = jobs.c.state.in_(UNFINISHED)
    of_jobs = (
        sa.select(
            jobs.c.project,
            sa.func.count().filter(jobs.c.state == JobState.RECEIVING).label("validating"),
            sa.func.count().filter(jobs.c.state == JobState.RUNNING).label("running"),
            sa.func.sum(jobs.c.total - jobs.c.succeeded - jobs.c.failed).filter(is_open).label("waiting"),
            sa.func.count().label("jobs"),
            sa.func.sum(jobs.c.total).label("images"),
        )
        .where(_is(jobs.c.project, name))
        .group_by(jobs.c.project)
        .subquery()
    )
    keys = sa.select(sa.func.count()).where(
        api_keys.c.project == projects.c.name, api_keys.c.revoked_at.is_(None)
    )
    file_bytes = sa.select(sa.func.sum(files.c.size)).where(files.c.project == projects.c.name)
    query = (
        sa.select(
            projects.c.name,
            projects.c.created_at,
            keys.scalar_subquery().label("keys"),
            file_bytes.scalar_subquery().label("file_bytes"),
            *of_jobs.c["validating", "running", "waiting", "jobs", "images"],
        )
        .outerjoin(of_jobs, of_jobs.c.project == projects.c.name)
        .where(projects.c.name != SHADOWS, _is(projects.c.name, name))
        .order_by(projects.c.name)
    )
    counts = ("keys", "validating", "running", "waiting", "jobs", "images", "file_bytes")
    return [
        Project(row.name, row.created_at, **{name: int(row._mapping[name] or 0) for name in counts})
        for row in connection.execute(query)
    ]


def _is(column: sa.ColumnElement[str], name: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if name is None else column == name
