"""Who may do what: the key of each request, and the client that answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.engine import Connection

from jobs.ledger.api_keys import ApiKey, Role, find_key, record_action
from labelmill.client import Client
from labelmill.server.guards import address_of
from labelmill.server.problems import ApiError

#: It makes the OpenAPI description say that a key is needed. A missing key is reported below, as a problem.
_BEARER: Final = HTTPBearer(auto_error=False, description="A key that `labelmill keys create` has printed.")


class Session:
    """One request's client and key. What the client changes is written into the audit."""

    def __init__(self, client: Client, key: ApiKey) -> None:
        self.client = client
        self.key = key
        client.on_change = self.record

    def record(self, connection: Connection, action: str, changed: str) -> None:
        """Write a change by the key's owner into the audit. `changed` is the id of what is changed."""
        record_action(connection, self.key.id, action, changed)


def requires(role: Role) -> Callable[..., Iterator[Session]]:
    """Return a dependency: the session of a request whose key may do what this role may."""

    def session(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Iterator[Session]:
        state = request.app.state
        # A client for this request alone: it must not be shared, but its ledger may be.
        with Client(state.settings, ledger=state.ledger) as client:
            key = _find(client, credentials)
            if credentials is not None:
                address, secret = address_of(request), credentials.credentials
                state.limits.note(address, secret, valid=key is not None)
            yield Session(client, _allowed(key, credentials, role))

    return session


def _find(client: Client, credentials: HTTPAuthorizationCredentials | None) -> ApiKey | None:
    """Return the request's key, or None if it has none that is valid."""
    if credentials is None:
        return None
    with client.ledger.reading() as connection:
        return find_key(connection, credentials.credentials)


def _allowed(key: ApiKey | None, credentials: HTTPAuthorizationCredentials | None, role: Role) -> ApiKey:
    """Return the key. Raises ApiError if it is None, or may not do this."""
    if key is None:
        raise ApiError(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "Send a valid key: `Authorization: Bearer KEY`. `labelmill keys create` makes one.",
            {"WWW-Authenticate": "Bearer" if credentials is None else 'Bearer error="invalid_token"'},
        )
    if not key.role.includes(role):
        detail = f"The key {key.name!r} has the role {key.role}, and this needs {role}."
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", detail)
    return key


#: Every key may read, and submit.
SubmitSession = Annotated[Session, Depends(requires(Role.SUBMIT))]
ReviewSession = Annotated[Session, Depends(requires(Role.REVIEW))]
AdminSession = Annotated[Session, Depends(requires(Role.ADMIN))]
