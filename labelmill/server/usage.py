"""Write down which keys are used and which requests are refused, without delaying any request."""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Final

from fastapi.concurrency import run_in_threadpool
from starlette.types import Scope

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.api.audit import record_action
from jobs.ledger.api.keys import ApiKey, note_use

logger = logging.getLogger(__name__)

#: How often new notes are written.
_WRITE_SECONDS: Final = 1.0

#: A key's use, and a client's refused requests with one status, are written once in this time.
_REPEAT_SECONDS: Final = 60.0

#: Maximum refused clients that are written in this time: strangers must not fill the ledger.
_MAX_REFUSED: Final = 100

#: Maximum characters of a refused request's method and path.
_MAX_REQUEST: Final = 100

_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS)

#: Who was refused: the key's id, the address, and the status.
_Client = tuple[str | None, str | None, int]


class Usage:
    """What the clients of one server do with keys."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._began = time.monotonic()
        self._used: set[str] = set()  # keys, since `_began`
        self._refused: set[_Client] = set()
        self._unwritten: tuple[set[str], dict[_Client, str]] = set(), {}

    def note(self, scope: Scope, status: int) -> None:
        """Note a request that is answered with this status."""
        used, refused = self._unwritten
        key: ApiKey | None = scope.get("state", {}).get("key")
        if key is not None and key.id not in self._used:
            self._used.add(key.id)
            used.add(key.id)
        if status in _REFUSED:
            client = (None if key is None else key.id, address_of(scope), status)
            if client not in self._refused and len(self._refused) < _MAX_REFUSED:
                self._refused.add(client)
                refused[client] = f"{scope['method']} {scope['raw_path'].decode()}"[:_MAX_REQUEST]

    async def write_regularly(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write what is noted since the last time. If the ledger cannot be written to, it is lost."""
        if time.monotonic() - self._began >= _REPEAT_SECONDS:
            self._began, self._used, self._refused = time.monotonic(), set(), set()
        if any(self._unwritten):
            (used, refused), self._unwritten = self._unwritten, (set(), {})
            await run_in_threadpool(self._write, used, refused)

    def _write(self, used: set[str], refused: dict[_Client, str]) -> None:
        try:
            with self._ledger.transaction() as connection:
                if used:
                    note_use(connection, used)
                for (key_id, address, status), request in refused.items():
                    record_action(connection, f"refused {status}", request, key_id=key_id, address=address)
        except LabelmillError as error:
            logger.warning("the use of keys is not recorded: %s", error)


def address_of(scope: Scope) -> str | None:
    """Return the address of a request's client; that of the last proxy, unless uvicorn trusts it."""
    client = scope.get("client")
    return client[0] if client else None
