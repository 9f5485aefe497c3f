"""The broker: whether it can be used, and whether it keeps messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import redis
from kombu.exceptions import OperationalError

from jobs.ids import new_id
from jobs.queue import KEY_PREFIX
from jobs.settings import Settings
from labelmill.doctor.findings import Area, Finding
from labelmill.probes import broker_client, redacted_message

_area = Area("broker")

#: The keys that another Celery application uses in a database if it has no prefix.
_KEYS_OF_OTHERS: Final = ("unacked", "unacked_index", "unacked_mutex", "celery", "_kombu.binding.celery")

#: What helps, by a pattern in the reason, which is the server's or the library's own words.
_FIXES: Final = (
    (r"maxmemory", "raise maxmemory on the server; FLUSHDB is safe if only Labelmill uses the database"),
    (r"read only replica", "LABELMILL_BROKER_URL=the primary's URL"),
    (r"authentication required|username-password", "LABELMILL_BROKER_URL=redis://USER:PASSWORD@HOST:PORT/0"),
    (r"certificate|ssl", "LABELMILL_BROKER_URL=rediss://...?ssl_ca_certs=FILE, the CA of the server"),
    (r"db index", "end LABELMILL_BROKER_URL in a database that the server has, such as /0"),
    (r"misconf", "free space on the server's disk, and read its log"),
    (r"", "start Redis at LABELMILL_BROKER_URL, or correct the URL; test it: redis-cli -u URL ping"),
)


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Check the broker without disturbing it: one key is written, and removed in the same transaction."""
    try:
        with broker_client(settings) as client:
            client.ping()
            yield _accepts_messages(client, settings)
            yield from _policy(client, settings)
            yield _shared_database(client)
    except (OperationalError, redis.RedisError, OSError) as error:
        reason = redacted_message(error, settings)
        if settings.embedded_broker and "connecting to" in reason:
            yield _area.warning("the embedded broker is not running; jobs will wait", fix="labelmill up")
        else:
            yield _area.problem(f"the broker cannot be used: {reason}", fix=_fix(reason, settings))


def _accepts_messages(client: redis.Redis, settings: Settings) -> Finding:
    """Send a message that nobody receives: replicas, full servers and missing permissions refuse it."""
    key = f"{KEY_PREFIX}doctor.{new_id()}"
    try:
        # In one transaction: nothing is left even if the doctor is killed at this moment.
        with client.pipeline(transaction=True) as probe:
            probe.lpush(key, "")
            probe.delete(key)
            probe.execute()
    except redis.ResponseError as error:
        # redis-py puts the command before the server's own words.
        reason = redacted_message(error, settings).rpartition(" of pipeline caused error: ")[2]
        return _area.problem(f"accepts no messages: {reason}", fix=_fix(reason, settings))
    return _area.ok("answers and accepts messages")


def _policy(client: redis.Redis, settings: Settings) -> Iterator[Finding]:
    try:
        info = client.info()
    except redis.exceptions.NoPermissionError as error:
        fix = _fix(redacted_message(error, settings), settings)
        yield _area.warning("eviction and persistence not checked: the user cannot ask", fix=fix)
        return
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        yield _area.ok("maxmemory-policy is noeviction")
    else:
        yield _area.problem(
            f"maxmemory-policy is {policy}: messages are lost when memory is short",
            fix="redis-cli CONFIG SET maxmemory-policy noeviction; set it in its configuration, too",
        )
    failed = [name for name in ("rdb_last_bgsave_status", "aof_last_write_status") if info.get(name) == "err"]
    if failed:
        yield _area.problem(f"cannot save to its disk ({', '.join(failed)})", fix=_fix("misconf", settings))
    else:
        yield _area.ok("saves to its disk, or does not need to")


def _shared_database(client: redis.Redis) -> Finding:
    try:
        found = [key for key in _KEYS_OF_OTHERS if client.exists(key)]
    except redis.exceptions.NoPermissionError:
        return _area.ok("its user sees only Labelmill's keys")
    if not found:
        return _area.ok("no other Celery application in its database")
    return _area.warning(
        f"another Celery application uses the same database ({', '.join(found)})",
        fix="LABELMILL_BROKER_URL with another database number, such as /1, for every process",
    )


def _fix(reason: str, settings: Settings) -> str:
    if "permission" in reason:
        command = re.search(r"run the '([^']+)' command", reason)
        user = urlsplit(settings.broker).username or "default"
        return f"redis-cli ACL SETUSER {user} " + (f"'+{command[1]}'" if command else f"'~{KEY_PREFIX}*'")
    return next(fix for pattern, fix in _FIXES if re.search(pattern, reason, re.IGNORECASE))
