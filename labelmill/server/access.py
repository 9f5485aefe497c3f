"""Who may do what: the keys, and the client that answers a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from typing import Annotated, Final

from fastapi import Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from sqlalchemy.engine import Connection
from starlette.types import Scope

from jobs.ledger import Ledger
from jobs.ledger.api.audit import record_action
from jobs.ledger.api.keys import ApiKey, Role, digest_of, valid_keys
from jobs.ledger.api.sessions import session_keys
from labelmill.client import Client
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.reading import Reading
from labelmill.server.usage import address_of

#: How long the keys are taken to be valid after they were read.
_TRUST_SECONDS: Final = 1.0

_BEARER: Final = HTTPBearer(auto_error=False, description="A key that `labelmill keys create` has printed.")

#: It makes the OpenAPI description say that a key is needed. The guard has checked it.
KeyNeeded = Annotated[object, Security(_BEARER)]


class Session:
    """One request's client and key. What the client changes is written into the audit."""

    def __init__(self, client: Client, key: ApiKey, address: str | None) -> None:
        self.client = client
        self.key = key
        self.address = address
        self.project = key.project
        client.on_change = self.record

    def record(self, connection: Connection, action: str, changed: str) -> None:
        """Write a change by the key's owner into the audit. `changed` is the id of what is changed."""
        record_action(connection, action, changed, key_id=self.key.id, address=self.address)


class Keys:
    """Finds keys, and those of sessions. All are read together, so guesses cost no more than valid keys."""

    def __init__(self, ledger: Ledger) -> None:
        def read() -> dict[str, ApiKey]:
            with ledger.reading() as connection:
                return valid_keys(connection) | session_keys(connection)

        self._reading = Reading(read, own_thread=True)

    async def find(self, digest: str, *, max_age: float = _TRUST_SECONDS) -> ApiKey | None:
        """Return the valid key whose digest, or whose session's, this is, or None, `max_age` seconds ago."""
        return (await self._reading.latest(max_age)).get(digest)


def session_cookie(scope: Scope) -> str:
    """Return the name of the cookie that holds a browser's session.

    Browsers send cookies to all ports of a host, so that two servers on one machine need different names.
    """
    return f"labelmill_session_{(scope.get('server') or ('', 0))[1]}"


def csrf_token(secret: str) -> str:
    """Return what a browser's changes must contain: other sites cannot read it from our pages."""
    return digest_of(f"csrf {secret}")


def requires(role: Role) -> Callable[..., AsyncIterator[Session]]:
    """Return a dependency: the session of a request whose key may do what this role may."""

    async def session(request: Request, _: KeyNeeded) -> AsyncIterator[Session]:
        # Async: each change to another thread costs a short request a tenth of its time.
        key: ApiKey = request.state.key
        if not key.role.includes(role):
            detail = f"The key {key.name!r} has the role {key.role}, and this needs {role}: use another key."
            raise ApiError(HTTPStatus.FORBIDDEN, ProblemCode.FORBIDDEN, detail)
        # A client for this request alone: it must not be shared, but its ledger may be.
        client = Client(request.app.state.settings, ledger=request.app.state.ledger)
        try:
            yield Session(client, key, address_of(request.scope))
        finally:
            if client.is_open:
                await run_in_threadpool(client.close)

    return session


def check_place(key: ApiKey, address: str) -> None:
    """Raise ApiError if the key works only on the server's own machine, and the client is elsewhere."""
    if not key.only_local:
        return
    with suppress(ValueError):
        found = ip_address(address)
        if (getattr(found, "ipv4_mapped", None) or found).is_loopback:
            return
    raise ApiError(
        HTTPStatus.UNAUTHORIZED,
        ProblemCode.UNAUTHORIZED,
        "This key works only on the server's own machine: `labelmill keys create` makes one for others.",
        {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


#: Every key may read, and submit. The scopes are the roles in the OpenAPI description.
SubmitSession = Annotated[Session, Security(requires(Role.SUBMIT), scopes=[Role.SUBMIT])]
ReviewSession = Annotated[Session, Security(requires(Role.REVIEW), scopes=[Role.REVIEW])]
AdminSession = Annotated[Session, Security(requires(Role.ADMIN), scopes=[Role.ADMIN])]
