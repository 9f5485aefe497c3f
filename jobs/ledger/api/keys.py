"""The keys of the HTTP API, and the audit of what was changed with them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import NotFound, UserError
from jobs.ids import new_id
from jobs.ledger.api.projects import check_project
from jobs.limits import MAX_DAYS
from jobs.options import DEFAULT_PROJECT
from jobs.schema import api_keys, audit, db_now

#: Every key begins with this, so that scanners find keys in code and logs.
PREFIX: Final = "labelmill_"

_SECRET_BYTES: Final = 32

_MAX_NAME: Final = 64


#: A function that is called in the transaction of a change, with what is done and the id of what is changed:
#: the HTTP API gives one that calls `record_action`.
OnChange = Callable[[Connection, str, str], object]


class Role(StrEnum):
    """What a key may do. Each role includes those before it. Every key may read."""

    SUBMIT = "submit"  # upload files; create and control batches
    REVIEW = "review"  # correct labels
    ADMIN = "admin"  # promote models, request training runs, manage webhooks

    def includes(self, other: Role) -> bool:
        """Return whether a key of this role may do what the other role may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of the HTTP API, without its secret."""

    id: str
    project: str
    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def create_key(
    connection: Connection,
    name: str,
    role: Role,
    *,
    project: str = DEFAULT_PROJECT,
    days: float | None = None,
) -> tuple[ApiKey, str]:
    """Add a key that expires after `days`, or never. Return it, and its secret, which is stored nowhere.

    Raises UserError for an unusable name or time, NotFound if there is no such project.
    """
    check_project(connection, project)
    if days is not None and not 0 <= days <= MAX_DAYS:
        raise UserError(f"The days of a key must be from 0 to {MAX_DAYS:,}, got {days:g}.")
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise UserError(f"A key's name has 1 to {_MAX_NAME} printable characters, got {name!r}.")
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key_id = new_id()
    connection.execute(
        api_keys.insert().values(
            id=key_id,
            project=project,
            name=name,
            role=role,
            digest=digest_of(secret),
            created_at=db_now(),
            expires_at=None if days is None else db_now(days * 86_400),
        )
    )
    return _get(connection, api_keys.c.id == key_id), secret


def valid_keys(connection: Connection) -> dict[str, ApiKey]:
    """Return the keys that are valid now, by the digests of their secrets."""
    is_valid = sa.and_(
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > db_now()),
    )
    query = _QUERY.add_columns(api_keys.c.digest).where(is_valid)
    return {row.digest: _to_key(row) for row in connection.execute(query)}


def list_keys(connection: Connection, *, project: str | None = None) -> list[ApiKey]:
    """Return all keys, oldest first, those that expired or were revoked included.

    With `project`, return only its own.
    """
    query = _QUERY.order_by(api_keys.c.id)
    if project is not None:
        query = query.where(api_keys.c.project == project)
    return list(map(_to_key, connection.execute(query)))


def revoke_key(connection: Connection, key_id: str) -> ApiKey:
    """Revoke the key and return it; a revoked key keeps its time. Raises NotFound."""
    connection.execute(
        api_keys.update()
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=db_now())
    )
    return _get(connection, api_keys.c.id == key_id)


def record_action(connection: Connection, key_id: str, action: str, changed: str) -> None:
    """Record that something was changed with this key. `changed` is its id."""
    connection.execute(
        audit.insert().values(id=new_id(), key_id=key_id, action=action, object=changed, created_at=db_now())
    )


_QUERY: Final = sa.select(
    *(api_keys.c.id, api_keys.c.project, api_keys.c.name, api_keys.c.role),
    *(api_keys.c.created_at, api_keys.c.expires_at, api_keys.c.revoked_at),
)


def _get(connection: Connection, condition: sa.ColumnElement[bool]) -> ApiKey:
    row = connection.execute(_QUERY.where(condition)).one_or_none()
    if row is None:
        raise NotFound("There is no such key: `labelmill keys list` lists all.")
    return _to_key(row)


def _to_key(row: Any) -> ApiKey:
    values = {name: value for name, value in row._mapping.items() if name != "digest"}
    return ApiKey(**values | {"role": Role(row.role)})


def digest_of(secret: str) -> str:
    """Return what the ledger stores of a secret."""
    # A fast hash is enough: the secret is random and long, so it cannot be guessed from its hash.
    return hashlib.sha256(secret.encode()).hexdigest()
