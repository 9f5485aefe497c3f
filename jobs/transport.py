"""The broker's transport: kombu's for Redis, and a way past all that waits.

A queue is a list in Redis. Messages enter it at one end and are taken from the other, so one that is put in
where they are taken is the next. kombu has priorities of its own, but each is a list beside the queue's,
which whoever counts what waits, in a shell or by a metric, would have to know of.
"""

from __future__ import annotations

from typing import Any, Final

from kombu.transport import redis
from kombu.utils.json import dumps, loads

#: The priority of a message that is to be the next. All others have none.
AHEAD: Final = 9


class Channel(redis.Channel):  # type: ignore[misc]  # kombu has no types
    """A channel that puts what is urgent ahead of all that waits."""

    _client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        # Left alone, kombu makes a client for each command, which takes longer than the command.
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._client is None or self._client.connection_pool is not self.pool:
            self._client = super()._create_client()
        return self._client

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if message["properties"].get("priority") != AHEAD:
            super()._put(queue, message, **kwargs)
            return
        with self.conn_or_acquire() as client:
            client.rpush(queue, dumps(message))

    def are_ahead(self, queue: str, number: int) -> bool:
        """Whether so many messages, or more, are ahead of all others on the queue."""
        with self.conn_or_acquire() as client:
            # By its whole name: kombu puts the prefix before those keys only whose commands it knows.
            last: bytes | None = client.lindex(self.global_keyprefix + queue, -number)
        if last is None:
            return False
        try:
            return bool(loads(last)["properties"].get("priority") == AHEAD)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False  # whatever lies there is no message of ours


class Transport(redis.Transport):  # type: ignore[misc]  # kombu has no types
    """The same, with channels that can."""

    Channel = Channel
