"""Files that were uploaded over HTTP. Their bytes are in the store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, NotFound
from jobs.schema import JobState, batches, db_now, files, jobs

#: The folder of the store that holds them.
FILES: Final = "files"


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded file."""

    id: str
    project: str
    name: str
    purpose: str
    size: int  # in bytes
    sha256: str
    created_at: datetime

    @property
    def key(self) -> str:
        """Return the key of its bytes in the store."""
        return file_key(self.id)


def file_key(file_id: str) -> str:
    """Return the key of a file's bytes in the store."""
    return f"{FILES}/{file_id}"


def add_file(
    connection: Connection, file_id: str, *, project: str, name: str, purpose: str, size: int, sha256: str
) -> File:
    """Add a file whose bytes are in the store already, and return it."""
    values = {
        "id": file_id,
        "project": project,
        "name": name,
        "purpose": purpose,
        "size": size,
        "sha256": sha256,
    }
    connection.execute(files.insert().values(**values, created_at=db_now()))
    return get_file(connection, file_id)


def get_file(connection: Connection, file_id: str, *, project: str | None = None, keep: bool = False) -> File:
    """Return the file; with `keep`, nobody can delete it until this transaction ends.

    Raises NotFound; with `project`, even for a file of another project.
    """
    query = sa.select(files).where(files.c.id == file_id)
    if keep:
        query = query.with_for_update(read=True)
    row = connection.execute(query).one_or_none()
    if row is None or project not in (None, row.project):
        raise no_file(file_id)
    return File(**row._mapping)


def list_files(
    connection: Connection, project: str, *, limit: int, after: str | None = None, purpose: str | None = None
) -> list[File]:
    """Return the project's latest files, newest first; with `after`, those that are older than this one."""
    query = sa.select(files).where(files.c.project == project).order_by(files.c.id.desc()).limit(limit)
    if after is not None:
        query = query.where(files.c.id < after)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    return [File(**row._mapping) for row in connection.execute(query)]


def delete_file(connection: Connection, file_id: str) -> None:
    """Remove the file's row. The caller then removes its bytes.

    Raises NotFound; Conflict while a batch still takes its images in.
    """
    if connection.execute(files.delete().where(files.c.id == file_id)).rowcount != 1:
        raise no_file(file_id)
    needed = (
        sa.select(batches.c.job_id)
        .join(jobs, jobs.c.id == batches.c.job_id)
        .where(batches.c.file_id == file_id, jobs.c.state == JobState.RECEIVING)
    )
    job_id = connection.scalar(needed.limit(1))
    if job_id is not None:
        raise Conflict(f"The file is still being read by batch {job_id}: wait, or cancel the batch.")


def known_files(connection: Connection, ids: Collection[str]) -> set[str]:
    """Return those of the ids that are files."""
    return set(connection.scalars(sa.select(files.c.id).where(files.c.id.in_(ids))))


def no_file(file_id: str) -> NotFound:
    """Return the error to raise if there is no such file."""
    return NotFound(f"There is no file {file_id!r}: `GET /v1/files` lists them.")
