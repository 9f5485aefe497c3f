"""The broker: whether it answers, takes messages, keeps them, and who else may come."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import redis
from kombu.exceptions import OperationalError

from jobs.ids import new_id
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.queue import KEY_PREFIX
from jobs.settings import Settings
from labelmill.doctor.configuration import is_elsewhere
from labelmill.doctor.findings import Area, Finding
from labelmill.looking import broker_client, words_of

_area = Area("broker")

#: kombu 5.7 asks for unacknowledged messages by ZRANGE ... BYSCORE, which is younger than Redis 6.0. Valkey
#: began at 7.2.
_OLDEST: Final = (6, 2)

#: Of `maxmemory`: from here on it is time to look.
_FULL_SHARE: Final = 0.8

#: What other Celery applications leave in a database when they use no prefix.
_KEYS_OF_OTHERS: Final = ("unacked", "unacked_index", "unacked_mutex", "celery", "_kombu.binding.celery")


def check_broker(settings: Settings) -> Iterator[Finding]:
    """All that a broker can be asked without disturbing it; one probe key is written, and gone at once."""
    try:
        with broker_client(settings) as client:
            yield from _answers(client)
            yield _takes_messages(client, settings)
            yield from _server(client, settings)
            yield _queues(client, settings)
            yield _company(client)
    except (OperationalError, redis.RedisError, OSError) as error:
        yield _away(settings, words_of(error, settings))
    if not settings.embedded_broker:
        yield _protection(settings)


def _away(settings: Settings, reason: str) -> Finding:
    if settings.embedded_broker and "connecting to" in reason:
        return _area.warning(
            "the embedded broker is not running; jobs are accepted, and wait", fix="labelmill up"
        )
    return _area.problem(f"the broker cannot be used: {reason}", fix=_fix(reason, settings))


def _fix(reason: str, settings: Settings) -> str:
    lowered = reason.lower()
    if "authentication required" in lowered or "username-password" in lowered:
        return (
            "LABELMILL_BROKER_URL=redis://USER:PASSWORD@HOST:PORT/0 with the server's password; "
            "without a user, redis://:PASSWORD@..."
        )
    if "permission" in lowered:
        return f"{_grant(settings, _rights(reason))}; docs/operations.md has all that a user needs"
    if "certificate" in lowered or "ssl" in lowered:
        return "LABELMILL_BROKER_URL=rediss://...?ssl_ca_certs=FILE with the CA that signed the server's"
    if "db index" in lowered:
        return "LABELMILL_BROKER_URL: end it in a database that the server has, such as /0"
    return "start Redis where LABELMILL_BROKER_URL says, or say where it is; `redis-cli -u URL ping` tells"


def _grant(settings: Settings, rights: str) -> str:
    return f"redis-cli ACL SETUSER {urlsplit(settings.broker).username or 'default'} {rights}"


def _rights(reason: str) -> str:
    """What the user lacks: a command, or Labelmill's keys."""
    found = re.search(r"run the '([^']+)' command", reason)
    return f"'+{found[1]}'" if found else f"'~{KEY_PREFIX}*'"


def _answers(client: redis.Redis) -> Iterator[Finding]:
    began = time.perf_counter()
    client.ping()
    yield _area.ok(f"answers within {(time.perf_counter() - began) * 1000:.1f} ms")


def _takes_messages(client: redis.Redis, settings: Settings) -> Finding:
    """Sends a message to nobody: what a standby, a full server or a user without the right refuses."""
    key = f"{KEY_PREFIX}doctor.{new_id()}"
    try:
        # In one transaction: nothing is left even where we are killed at this moment.
        with client.pipeline(transaction=True) as probe:
            probe.lpush(key, "")
            probe.delete(key)
            probe.execute()
    except redis.OutOfMemoryError:
        return _area.problem(
            "takes no messages: its memory is full",
            fix="on the server: raise maxmemory, or remove what is not Labelmill's. "
            "FLUSHDB is safe where the database is Labelmill's alone: the reconciler rings again",
        )
    except redis.ReadOnlyError:
        return _area.problem(
            "takes no messages: it is a read-only replica", fix="LABELMILL_BROKER_URL=the primary's URL"
        )
    except redis.ResponseError as error:
        # redis-py puts the command before the server's own words.
        reason = words_of(error, settings).rpartition(" of pipeline caused error: ")[2]
        fix = (
            _fix(reason, settings)
            if "permission" in reason
            else "see `redis-cli INFO persistence`, and its log"
        )
        return _area.problem(f"takes no messages: {reason}", fix=fix)
    return _area.ok("takes messages")


def _server(client: redis.Redis, settings: Settings) -> Iterator[Finding]:
    try:
        info: dict[str, Any] = client.info()
    except redis.exceptions.NoPermissionError:
        yield _area.warning(
            "its version and memory are not checked: the user may not ask",
            fix=_grant(settings, "+info"),
        )
        return
    yield _version(info)
    yield _eviction(info)
    yield _memory(info)


def _version(info: dict[str, Any]) -> Finding:
    # Valkey gives its own version beside the version of Redis that it stands for.
    valkey = info.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"
    oldest = ".".join(map(str, _OLDEST))
    if tuple(map(int, re.findall(r"\d+", info["redis_version"])[:2])) >= _OLDEST:
        return _area.ok(f"{name}, {oldest} or newer is needed")
    return _area.problem(
        f"{name} is too old: messages of workers that died are never handed out again",
        fix=f"upgrade it to Redis {oldest} or newer, or to any Valkey",
    )


def _eviction(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return _area.ok("maxmemory-policy is noeviction")
    return _area.problem(
        f"maxmemory-policy is {policy}: where memory is short, messages vanish without a word",
        fix="redis-cli CONFIG SET maxmemory-policy noeviction, and the same line in its configuration",
    )


def _memory(info: dict[str, Any]) -> Finding:
    used, limit = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if not limit:
        return _area.ok(f"uses {used / 1024**2:,.1f} MiB, without a limit")
    what = f"uses {used / 1024**2:,.1f} of {limit / 1024**2:,.1f} MiB"
    if used < _FULL_SHARE * limit:
        return _area.ok(what)
    return _area.warning(
        f"{what}: when it is full it takes no more messages",
        fix=f"redis-cli CONFIG SET maxmemory {2 * used}, and the same in its configuration",
    )


def _queues(client: redis.Redis, settings: Settings) -> Finding:
    try:
        classify = client.llen(KEY_PREFIX + CLASSIFY_QUEUE)
        retrain = client.llen(KEY_PREFIX + RETRAIN_QUEUE)
    except redis.exceptions.NoPermissionError as error:
        reason = words_of(error, settings)
        return _area.problem(f"does not say how many messages wait: {reason}", fix=_fix(reason, settings))
    return _area.ok(f"messages that wait: {classify} to classify, {retrain} to retrain")


def _company(client: redis.Redis) -> Finding:
    try:
        found = [key for key in _KEYS_OF_OTHERS if client.exists(key)]
    except redis.exceptions.NoPermissionError:
        return _area.ok("its user sees no keys but Labelmill's")
    if not found:
        return _area.ok("no other Celery application in its database")
    return _area.warning(
        f"another Celery application keeps messages in the same database ({', '.join(found)}): "
        "each suffers where the other fills or flushes it, and from the shorter visibility timeout",
        fix="LABELMILL_BROKER_URL with a database number of its own, such as /1, for every process",
    )


def _protection(settings: Settings) -> Finding:
    """What anybody on the network could read or send. Raises nothing: asks nobody."""
    url = urlsplit(settings.broker)
    if not is_elsewhere(url.hostname):
        return _area.ok("is on this machine")
    missing, fix = [], "rediss://USER:PASSWORD@..."
    if not url.password:
        missing.append("no password")
    if url.scheme != "rediss":
        missing.append("no TLS")
    elif parse_qs(url.query).get("ssl_cert_reqs") == ["none"]:
        missing.append("no check of the server's certificate")
        fix += "?ssl_cert_reqs=required"
    if not missing:
        return _area.ok("is reached by TLS, with a password")
    return _area.warning(
        f"is reached over a network with {' and '.join(missing)}", fix=f"LABELMILL_BROKER_URL={fix}"
    )
