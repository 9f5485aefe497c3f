"""The HTTP API: whether it answers, takes in its batches, and has keys that work."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import httpx
from sqlalchemy.engine import Connection

from jobs.ledger.api.batches import abandoned_seconds
from jobs.ledger.api.keys import list_keys
from jobs.ledger.clock import database_now
from jobs.settings import Settings
from labelmill.console.terminal import format_duration
from labelmill.operations.doctor.commands import Commands, commands_of
from labelmill.operations.doctor.findings import Finding, ok, problem, warning
from labelmill.operations.doctor.ledger import in_ledger
from labelmill.operations.probes import ANSWER_SECONDS
from labelmill.server.serving import API_URL_FILE

#: An intake process takes a batch within a second, unless it has just started.
_LONG_WAIT_SECONDS: Final = 60.0

#: Keys that expire within this time are reported.
_SOON: Final = timedelta(days=7)


def check_api(settings: Settings) -> Iterator[Finding]:
    """Check the API that is served from this state folder, the intake of batches, and the keys."""
    yield _address(settings)
    yield from _check_ledger(settings)


@in_ledger(if_none=ok("there is no key yet"))
def _check_ledger(settings: Settings, connection: Connection) -> Iterator[Finding]:
    commands, waited = commands_of(settings), abandoned_seconds(connection)
    if waited is not None and waited > _LONG_WAIT_SECONDS:
        yield problem(
            f"a batch has waited for {format_duration(waited)}, and no process takes in its images",
            fix=f"{commands.api}; if it runs, read its log",
        )
    yield from _keys(connection, commands)


def _address(settings: Settings) -> Finding:
    path = settings.home / API_URL_FILE
    try:
        url = path.read_text().strip()
    except OSError:
        return ok("none is served from this state folder")
    try:
        # Never through a proxy: the address is on this machine.
        httpx.get(f"{url}/healthz", timeout=ANSWER_SECONDS, trust_env=False)
    except (httpx.RequestError, httpx.InvalidURL):
        return problem(
            f"{url} does not answer", fix=f"{commands_of(settings).api}, or rm {shlex.quote(str(path))}"
        )
    return ok(f"{url} answers")


def _keys(connection: Connection, commands: Commands) -> Iterator[Finding]:
    """Yield a warning about each key that has expired or soon will."""
    now = database_now(connection)
    valid = [key for key in list_keys(connection) if key.revoked_at is None]
    expiring = [key for key in valid if key.expires_at is not None and key.expires_at < now + _SOON]
    for key in expiring:
        left = (key.expires_at - now).total_seconds() if key.expires_at else 0.0
        when = f"expires in {format_duration(left)}" if left > 0 else f"expired {format_duration(-left)} ago"
        yield warning(
            f"the key {key.name!r} {when}",
            fix=f"{commands.run} keys create {shlex.quote(key.name)} --role {key.role}; "
            f"{commands.run} keys revoke {key.id}",
        )
    if not expiring:
        yield ok(f"keys: {len(valid)}")
