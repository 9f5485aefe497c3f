"""The browsers that are signed in to the pages, each with an API key.

A session can do what its key can, and ends with it. Its secret is a cookie, or at first a link.
"""

from __future__ import annotations

import secrets
from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import NotFound
from jobs.ledger.api.keys import IS_VALID, KEYS, ApiKey, digest_of, new_secret, to_key
from jobs.schema import api_keys, db_now, sessions

#: How long a browser stays signed in.
SESSION_DAYS: Final = 7

#: How long a link for signing in can be used.
LINK_HOURS: Final = 1

_LINK_BYTES: Final = 16


def session_digest(secret: str) -> str:
    """Return the digest of a session's secret: not that of a key, so that neither can stand for the other."""
    return digest_of(f"session {secret}")


def begin_session(connection: Connection, key_id: str) -> str:
    """Begin a session with this key, and return its secret, which is stored nowhere."""
    return _add(connection, key_id, new_secret(), seconds=SESSION_DAYS * 86_400.0, is_link=False)


def make_link(connection: Connection, key_id: str) -> str:
    """Return the secret of a link with which one session can begin, with this key."""
    # Short, so that the address fits a line, and still too long to be guessed within an hour.
    secret = secrets.token_urlsafe(_LINK_BYTES)
    return _add(connection, key_id, secret, seconds=LINK_HOURS * 3_600.0, is_link=True)


def use_link(connection: Connection, secret: str) -> tuple[str, str]:
    """Begin a session with a link, which then no longer works. Return its secret, and the id of its key.

    Raises NotFound.
    """
    link = connection.execute(
        sessions.delete()
        .where(
            sessions.c.digest == session_digest(secret), sessions.c.is_link, sessions.c.expires_at > db_now()
        )
        .returning(sessions.c.key_id)
    ).one_or_none()
    if link is None:
        raise NotFound("This link was used already, or has expired: sign in with an API key.")
    return begin_session(connection, link.key_id), link.key_id


def end_session(connection: Connection, secret: str) -> None:
    """End a session."""
    connection.execute(sessions.delete().where(sessions.c.digest == session_digest(secret)))


def session_keys(connection: Connection) -> dict[str, ApiKey]:
    """Return the keys of the sessions that are valid now, by the digests of the sessions' secrets."""
    query = KEYS.add_columns(sessions.c.digest).join(sessions, sessions.c.key_id == api_keys.c.id)
    query = query.where(IS_VALID, ~sessions.c.is_link, sessions.c.expires_at > db_now())
    return {row.digest: to_key(row) for row in connection.execute(query)}


def _add(connection: Connection, key_id: str, secret: str, *, seconds: float, is_link: bool) -> str:
    connection.execute(sessions.delete().where(sessions.c.expires_at < db_now()))
    connection.execute(
        sessions.insert().values(
            digest=session_digest(secret), key_id=key_id, is_link=is_link, expires_at=db_now(seconds)
        )
    )
    return secret
