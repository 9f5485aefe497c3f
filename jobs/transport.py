"""The broker's transport: kombu's for Redis, and a way past all that waits.

A queue is a list in Redis. Messages enter it at one end and are taken from the other, so one that is put in
where they are taken is the next. kombu has priorities of its own, but each is a list beside the queue's,
which whoever counts what waits, in a shell or by a metric, would have to know of.
"""

from __future__ import annotations

from typing import Any, Final

from kombu.transport import redis
from kombu.utils.json import dumps

#: The priority of a message that is to be the next. All others have none.
AHEAD: Final = 9


class Channel(redis.Channel):  # type: ignore[misc]  # kombu has no types
    """A channel that puts what is urgent ahead of all that waits."""

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        if message["properties"].get("priority") != AHEAD:
            super()._put(queue, message, **kwargs)
            return
        with self.conn_or_acquire() as client:
            client.rpush(queue, dumps(message))


class Transport(redis.Transport):  # type: ignore[misc]  # kombu has no types
    """The same, with channels that can."""

    Channel = Channel
