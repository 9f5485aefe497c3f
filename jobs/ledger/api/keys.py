"""The keys of the HTTP API."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, NotFound, UserError
from jobs.ids import new_id
from jobs.ledger.api.audit import record_action
from jobs.ledger.api.projects import check_project
from jobs.limits import MAX_DAYS
from jobs.options import DEFAULT_PROJECT
from jobs.schema import api_keys, db_now, sessions

#: Every key begins with this, so that scanners find keys in code and logs.
PREFIX: Final = "labelmill_"

_SECRET_BYTES: Final = 32

_MAX_NAME: Final = 64

#: How long a key works after it was replaced, unless another time is named.
OVERLAP_HOURS: Final = 24.0


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
    last_used_at: datetime | None  # to within a minute
    old_until: datetime | None  # until when its previous secret works, too
    only_local: bool  # it works from loopback addresses alone


def create_key(
    connection: Connection,
    name: str,
    role: Role,
    *,
    project: str = DEFAULT_PROJECT,
    days: float | None = None,
    only_local: bool = False,
) -> tuple[ApiKey, str]:
    """Add a key that expires after `days`, or never. Return it, and its secret, which is stored nowhere.

    With `only_local`, the server accepts it from loopback addresses alone.

    Raises UserError for an unusable name or time, NotFound if there is no such project.
    """
    check_project(connection, project)
    if days is not None and not 0 <= days <= MAX_DAYS:
        raise UserError(f"The days of a key must be from 0 to {MAX_DAYS:,}, got {days:g}.")
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise UserError(f"A key's name has 1 to {_MAX_NAME} printable characters, got {name!r}.")
    key_id, secret = new_id(), new_secret()
    connection.execute(
        api_keys.insert().values(
            id=key_id,
            project=project,
            name=name,
            role=role,
            digest=digest_of(secret),
            created_at=db_now(),
            expires_at=None if days is None else db_now(days * 86_400),
            only_local=only_local,
        )
    )
    record_action(connection, "create key", key_id)
    return _get(connection, api_keys.c.id == key_id), secret


def valid_keys(connection: Connection) -> dict[str, ApiKey]:
    """Return the keys that are valid now, by the digests of their secrets: two while a key is rotated."""
    old = sa.case((api_keys.c.old_until > db_now(), api_keys.c.old_digest)).label("old")
    rows = connection.execute(KEYS.add_columns(api_keys.c.digest, old).where(IS_VALID)).all()
    return {digest: to_key(row) for row in rows for digest in (row.digest, row.old) if digest is not None}


def list_keys(connection: Connection, *, project: str | None = None) -> list[ApiKey]:
    """Return all keys, oldest first, those that expired or were revoked included.

    With `project`, return only its own.
    """
    query = KEYS.order_by(api_keys.c.id)
    if project is not None:
        query = query.where(api_keys.c.project == project)
    return list(map(to_key, connection.execute(query)))


def revoke_key(connection: Connection, key_id: str) -> ApiKey:
    """Revoke the key and return it; a revoked key keeps its time. Raises NotFound."""
    revoked = connection.execute(
        api_keys.update()
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=db_now())
    )
    if revoked.rowcount:
        record_action(connection, "revoke key", key_id)
    return _get(connection, api_keys.c.id == key_id)


def rotate_key(
    connection: Connection, key_id: str, *, overlap_hours: float = OVERLAP_HOURS
) -> tuple[ApiKey, str]:
    """Give the key a new secret, and return both. The old one works, too, for `overlap_hours`.

    Browsers must sign in again: with the old secret, nobody stays signed in.

    Raises NotFound; Conflict if the key is not valid any more.
    """
    secret = new_secret()
    rotated = connection.execute(
        api_keys.update()
        .where(api_keys.c.id == key_id, IS_VALID)
        .values(
            digest=digest_of(secret), old_digest=api_keys.c.digest, old_until=db_now(overlap_hours * 3_600)
        )
    )
    key = _get(connection, api_keys.c.id == key_id)
    if not rotated.rowcount:
        raise Conflict(f"Key {key_id} is revoked or has expired: create another one.")
    connection.execute(sessions.delete().where(sessions.c.key_id == key_id))
    record_action(connection, "rotate key", key_id)
    return key, secret


def note_use(connection: Connection, key_ids: Collection[str]) -> None:
    """Record that these keys were used now."""
    connection.execute(api_keys.update().where(api_keys.c.id.in_(key_ids)).values(last_used_at=db_now()))


#: The query for keys.
KEYS: Final = sa.select(
    *(api_keys.c.id, api_keys.c.project, api_keys.c.name, api_keys.c.role),
    *api_keys.c["created_at", "expires_at", "revoked_at", "last_used_at", "old_until", "only_local"],
)

#: Whether a key is valid now.
IS_VALID: Final = sa.and_(
    api_keys.c.revoked_at.is_(None),
    sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > db_now()),
)


def _get(connection: Connection, condition: sa.ColumnElement[bool]) -> ApiKey:
    row = connection.execute(KEYS.where(condition)).one_or_none()
    if row is None:
        raise NotFound("There is no such key: `labelmill keys list` lists all.")
    return to_key(row)


def to_key(row: Any) -> ApiKey:
    """Return the key of a row of `KEYS`."""
    values = {each.name: row._mapping[each.name] for each in fields(ApiKey)}
    return ApiKey(**values | {"role": Role(row.role)})


def new_secret() -> str:
    """Return the secret of a new key or session."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def digest_of(secret: str) -> str:
    """Return what the ledger stores of a secret."""
    # A fast hash is enough: the secret is random and long, so it cannot be guessed from its hash.
    return hashlib.sha256(secret.encode()).hexdigest()
