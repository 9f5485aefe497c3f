"""Who may do what: the key of each request, and the client that answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from jobs.ledger.api_keys import ApiKey, Role, find_key, record_action
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.server.problems import ApiError

#: So that `/docs` asks for a key. A missing one is reported below, as a problem.
_BEARER: Final = HTTPBearer(auto_error=False, description="A key that `labelmill keys create` has printed.")


class Clients:
    """Clients that are not in use. A client must not be used by two requests at the same time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: list[Client] = []

    @contextmanager
    def borrowed(self) -> Iterator[Client]:
        """Yield an idle client, or a new one. Raises Unavailable, LedgerNotReady."""
        try:
            client = self._idle.pop()  # atomic, as append is
        except IndexError:
            client = Client(self._settings)
        try:
            yield client
        finally:
            self._idle.append(client)

    def close(self) -> None:
        """Close all clients. No request may be under way."""
        while self._idle:
            self._idle.pop().close()


class Session:
    """One request's client and key."""

    def __init__(self, client: Client, key: ApiKey) -> None:
        self.client = client
        self.key = key

    def record(self, action: str, changed: str) -> None:
        """Write into the audit that the key's owner has changed something. `changed` is its id."""
        with self.client.ledger.transaction() as connection:
            record_action(connection, self.key.id, action, changed)


def requires(role: Role) -> Callable[..., Iterator[Session]]:
    """Return a dependency: the session of a request whose key may do what this role may."""

    def session(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Iterator[Session]:
        with request.app.state.clients.borrowed() as client:
            yield Session(client, _allowed(client, credentials, role))

    return session


def _allowed(client: Client, credentials: HTTPAuthorizationCredentials | None, role: Role) -> ApiKey:
    """Return the request's key. Raises ApiError if there is none, or if it may not do this."""
    key = None
    if credentials is not None:
        with client.ledger.reading() as connection:
            key = find_key(connection, credentials.credentials)
    if key is None:
        raise ApiError(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "Send a valid key: `Authorization: Bearer KEY`. `labelmill keys create` makes one.",
            {"WWW-Authenticate": "Bearer"},
        )
    if not key.role.includes(role):
        detail = f"The key {key.name!r} has the role {key.role}, and this needs {role}."
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", detail)
    return key


#: Every key may read, and submit.
SubmitSession = Annotated[Session, Depends(requires(Role.SUBMIT))]
