"""Who may do what: the key of each request, and the client that answers it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.engine import Connection

from jobs.ledger import Ledger
from jobs.ledger.api.keys import ApiKey, Role, find_key, record_action
from labelmill.client import Client
from labelmill.server.guards import address_of
from labelmill.server.problems import ApiError, ProblemCode

#: How long a key is taken to be valid after it was read.
_TRUST_SECONDS: Final = 1.0

#: It makes the OpenAPI description say that a key is needed. A missing key is reported below, as a problem.
_BEARER: Final = HTTPBearer(auto_error=False, description="A key that `labelmill keys create` has printed.")

#: The key that a request sends, if any.
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]


class Session:
    """One request's client and key. What the client changes is written into the audit."""

    def __init__(self, client: Client, key: ApiKey) -> None:
        self.client = client
        self.key = key
        self.project = key.project
        client.on_change = self.record

    def record(self, connection: Connection, action: str, changed: str) -> None:
        """Write a change by the key's owner into the audit. `changed` is the id of what is changed."""
        record_action(connection, self.key.id, action, changed)


class Keys:
    """Finds keys in the ledger, and trusts each for a second: reading it is a third of a short request."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._trusted: dict[str, tuple[ApiKey, float]] = {}

    async def find(self, secret: str) -> ApiKey | None:
        """Return the key with this secret, or None if there is none that is valid."""
        key, until = self._trusted.get(secret, (None, 0.0))
        if time.monotonic() < until:
            return key
        return await run_in_threadpool(self._read, secret)

    def _read(self, secret: str) -> ApiKey | None:
        until = time.monotonic() + _TRUST_SECONDS
        with self._ledger.reading() as connection:
            key = find_key(connection, secret)
        if key is None:
            self._trusted.pop(secret, None)
        else:
            self._trusted[secret] = key, until
        return key


def requires(role: Role) -> Callable[..., AsyncIterator[Session]]:
    """Return a dependency: the session of a request whose key may do what this role may."""

    async def session(request: Request, credentials: Credentials) -> AsyncIterator[Session]:
        key = await check_key(request, credentials, role)
        # A client for this request alone: it must not be shared, but its ledger may be.
        client = Client(request.app.state.settings, ledger=request.app.state.ledger)
        try:
            yield Session(client, key)
        finally:
            if client.is_open:
                await run_in_threadpool(client.close)

    return session


async def check_key(request: Request, credentials: Credentials, role: Role) -> ApiKey:
    """Return the request's key. Raises ApiError if it is not valid, or may not do what this role may."""
    # Async, like its callers: each change to another thread costs a short request a tenth of its time.
    state, key = request.app.state, None
    if credentials is not None:
        secret = credentials.credentials
        key = await state.keys.find(secret)
        state.limits.note(address_of(request), secret, valid=key is not None)
    return _allowed(key, credentials, role)


def _allowed(key: ApiKey | None, credentials: Credentials, role: Role) -> ApiKey:
    """Return the key. Raises ApiError if it is None, or may not do this."""
    if key is None:
        raise ApiError(
            HTTPStatus.UNAUTHORIZED,
            ProblemCode.UNAUTHORIZED,
            "Send a valid key: `Authorization: Bearer KEY`. `labelmill keys create` makes one.",
            {"WWW-Authenticate": "Bearer" if credentials is None else 'Bearer error="invalid_token"'},
        )
    if not key.role.includes(role):
        detail = f"The key {key.name!r} has the role {key.role}, and this needs {role}: use another key."
        raise ApiError(HTTPStatus.FORBIDDEN, ProblemCode.FORBIDDEN, detail)
    return key


#: Every key may read, and submit. The scopes are the roles in the OpenAPI description.
SubmitSession = Annotated[Session, Security(requires(Role.SUBMIT), scopes=[Role.SUBMIT])]
ReviewSession = Annotated[Session, Security(requires(Role.REVIEW), scopes=[Role.REVIEW])]
AdminSession = Annotated[Session, Security(requires(Role.ADMIN), scopes=[Role.ADMIN])]
