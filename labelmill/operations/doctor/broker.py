"""The broker: whether it can be used, and whether it keeps messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import redis
from kombu.exceptions import OperationalError

from jobs.ids import new_id
from jobs.network.certificates import broker_certificate_end
from jobs.queue import KEY_PREFIX
from jobs.settings import Settings
from labelmill.operations.doctor.certificates import check_certificate
from labelmill.operations.doctor.commands import commands_of
from labelmill.operations.doctor.findings import Finding, ok, problem, warning
from labelmill.operations.probes import broker_client, redacted_message

#: The fix for each pattern in an error message of the server or of the library. The first match counts.
_FIXES: Final = (
    (r"maxmemory", "raise maxmemory on the server; FLUSHDB is safe if only Labelmill uses the database"),
    (r"read only replica", "LABELMILL_BROKER_URL=the primary's URL"),
    (r"authentication required|username-password", "LABELMILL_BROKER_URL=redis://USER:PASSWORD@HOST:PORT/0"),
    (r"certificate has expired", "renew the certificate of the broker's server"),
    (r"certificate|ssl", "LABELMILL_BROKER_URL=rediss://...?ssl_ca_certs=FILE, the CA of the server"),
    (r"db index", "end LABELMILL_BROKER_URL in a database that the server has, such as /0"),
    (r"misconf", "free space on the server's disk, and read its log"),
    (r"", "{start}"),
)


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Check the broker without disturbing it: one key is written, and removed in the same transaction."""
    try:
        with broker_client(settings) as client:
            client.ping()
            yield _accepts_messages(client, settings)
            yield _policy(client, settings)
            yield from check_certificate(broker_certificate_end(settings.broker), "broker")
    except (OperationalError, redis.RedisError, OSError) as error:
        reason = redacted_message(error, settings)
        if settings.embedded_broker and "connecting to" in reason:
            yield warning(
                "the embedded broker is not running; jobs will wait", fix=commands_of(settings).worker
            )
        else:
            yield problem(f"the broker cannot be used: {reason}", fix=_fix(reason, settings))


def _accepts_messages(client: redis.Redis, settings: Settings) -> Finding:
    """Send a message to no queue: a replica, a full server and missing permissions refuse it."""
    key = f"{KEY_PREFIX}doctor.{new_id()}"
    try:
        # In one transaction: nothing is left even if the doctor is killed at this moment.
        with client.pipeline(transaction=True) as probe:
            probe.lpush(key, "")
            probe.delete(key)
            probe.execute()
    except redis.ResponseError as error:
        # redis-py puts the command before the server's own message.
        reason = redacted_message(error, settings).rpartition(" of pipeline caused error: ")[2]
        return problem(f"accepts no messages: {reason}", fix=_fix(reason, settings))
    return ok("answers and accepts messages")


def _policy(client: redis.Redis, settings: Settings) -> Finding:
    try:
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    except redis.exceptions.NoPermissionError as error:
        fix = _fix(redacted_message(error, settings), settings)
        return warning("maxmemory-policy was not checked: the user may not run INFO", fix=fix)
    if policy == "noeviction":
        return ok("maxmemory-policy is noeviction")
    return problem(
        f"maxmemory-policy is {policy}: messages are lost when memory is short",
        fix="redis-cli CONFIG SET maxmemory-policy noeviction; set it in its configuration, too",
    )


def _fix(reason: str, settings: Settings) -> str:
    if "permission" in reason:
        command = re.search(r"run the '([^']+)' command", reason)
        user = urlsplit(settings.broker).username or "default"
        return f"redis-cli ACL SETUSER {user} " + (f"'+{command[1]}'" if command else f"'~{KEY_PREFIX}*'")
    fix = next(fix for pattern, fix in _FIXES if re.search(pattern, reason, re.IGNORECASE))
    return fix.format(start=commands_of(settings).redis)
