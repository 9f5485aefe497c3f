"""Access ledger and broker as they are: create and migrate nothing, and never wait for long.

For commands that must answer even if both are down: `labelmill doctor`, `ready` and `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from jobs.errors import SelfExplanatory
from jobs.ledger import Ledger
from jobs.network.urls import without_secrets
from jobs.settings import Settings

if TYPE_CHECKING:
    import redis

#: How long a service may take to connect, and to answer; for the ledger, a statement or the wait for a lock.
ANSWER_SECONDS: Final = 3.0


class NoLedgerYet(SelfExplanatory):
    """There is no ledger yet: `labelmill db upgrade` creates it."""


@contextmanager
def existing_ledger(settings: Settings) -> Iterator[Ledger]:
    """Yield the ledger. Raises NoLedgerYet, and OSError if its folder cannot be entered."""
    check_ledger_exists(settings)
    ledger = ledger_with_timeouts(settings)
    try:
        yield ledger
    finally:
        ledger.close()


def check_ledger_exists(settings: Settings) -> None:
    """Raise NoLedgerYet if the ledger's file does not exist, because opening it would create it.

    Raises OSError if its folder cannot be entered.
    """
    if settings.ledger_file is not None and not settings.ledger_file.exists():
        raise NoLedgerYet


def ledger_with_timeouts(settings: Settings, *, pooled: bool = True) -> Ledger:
    """Return the ledger, with ANSWER_SECONDS as the limit for a statement or the wait for a lock."""
    ledger = Ledger(settings.ledger, pooled=pooled)
    sa.event.listen(ledger.engine, "connect", partial(_set_timeouts, ledger.is_sqlite), insert=True)
    return ledger


def _set_timeouts(is_sqlite: bool, connection: Any, _record: Any) -> None:
    if is_sqlite:
        connection.execute(f"PRAGMA busy_timeout = {ANSWER_SECONDS * 1000:.0f}")
    else:
        connection.execute(f"SET statement_timeout = {ANSWER_SECONDS * 1000:.0f}")
        connection.commit()


@contextmanager
def broker_client(settings: Settings) -> Iterator[redis.Redis]:
    """Yield a client of the broker that connects as Celery does: kombu reads the URL.

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
        # kombu's own client has only a few commands.
        yield redis.Redis(connection_pool=channel.client.connection_pool)
    finally:
        connection.close()


def redacted_message(error: BaseException, settings: Settings) -> str:
    """Return the first line of another library's error, without the secrets in the settings."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return without_secrets(text, settings.ledger_url, settings.broker_url, settings.store_url).rstrip(".")
