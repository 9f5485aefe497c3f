"""Looking at ledger and broker as they are: nothing is made or migrated, and nobody waits for long.

For whoever has to speak where they are away: `labelmill doctor`, `ready` and `metrics`. What talks to the
broker is imported where it is needed: a worker's health check asks the ledger alone, and has to be quick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.urls import without_secrets

if TYPE_CHECKING:
    import redis

#: How long a service may take to connect, and to answer; for the ledger, a statement or the wait for a lock.
ANSWER_SECONDS: Final = 3.0


class NoLedgerYet(LabelmillError):
    """There is no ledger yet."""


@contextmanager
def ledger_as_it_is(settings: Settings) -> Iterator[Ledger]:
    """The ledger. Raises NoLedgerYet, and OSError where its folder may not be entered."""
    check_there(settings)
    ledger = brief_ledger(settings)
    try:
        yield ledger
    finally:
        ledger.close()


def check_there(settings: Settings) -> None:
    """Raises NoLedgerYet where the ledger's file is not there, which opening it would make; OSError where its
    folder may not be entered.
    """
    url = make_url(settings.ledger)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise NoLedgerYet


def brief_ledger(settings: Settings, *, pooled: bool = True) -> Ledger:
    """A door to the ledger at which nobody waits for long."""
    ledger = Ledger(settings.ledger, pooled=pooled)
    sa.event.listen(ledger.engine, "connect", partial(_be_brief, ledger.is_sqlite), insert=True)
    return ledger


def _be_brief(is_sqlite: bool, connection: Any, _record: Any) -> None:
    if is_sqlite:
        connection.execute(f"PRAGMA busy_timeout = {ANSWER_SECONDS * 1000:.0f}")
    else:
        connection.execute(f"SET statement_timeout = {ANSWER_SECONDS * 1000:.0f}")
        connection.commit()


@contextmanager
def broker_client(settings: Settings) -> Iterator[redis.Redis]:
    """A client of the broker by the same way that Celery goes: the URL as kombu reads it.

    Raises kombu's OperationalError, redis.RedisError, OSError.
    """
    import redis
    from kombu import Connection

    options = {
        "max_retries": 1,
        "interval_start": 0,
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
    }
    connection = Connection(settings.broker, transport_options=options)
    try:
        channel: Any = connection.default_channel
        # kombu's own client knows few commands.
        yield redis.Redis(connection_pool=channel.client.connection_pool)
    finally:
        connection.close()


def words_of(error: BaseException, settings: Settings) -> str:
    """What somebody else's error says: its first line, without anything secret that the settings hold."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return without_secrets(text, settings.ledger_url, settings.broker_url, settings.store_url).rstrip(".")
