"""All changes to the behaviour of Celery, kombu and billiard, each with the upstream issue that it is about.

Written against Celery 5.7, kombu 5.7 and billiard 4.3: look here first after an upgrade.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import celery.apps.worker as celery_worker
from celery.signals import worker_shutting_down
from celery.worker.request import Request
from kombu.asynchronous import get_event_loop
from kombu.transport import virtual
from kombu.transport.redis import Channel, PrefixedStrictRedis, Transport

#: Far longer than a cold shutdown takes, which waits for no chunk.
COLD_SHUTDOWN_SECONDS: Final = 5


class LastingRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A request that gives its place back even if the broker was unavailable when it was to be acknowledged.

    A worker takes as many messages as it has processes, until it has acknowledged them. When Redis restarts,
    kombu often reconnects without telling Celery; the acknowledgements that failed in between then count as
    outstanding for ever, and the worker is alive, connected, and takes no message any more.
    https://github.com/celery/celery/issues/8030, https://github.com/celery/celery/issues/8990
    """

    def acknowledge(self) -> None:
        """Acknowledge; the place is free, whether that worked or not."""
        super().acknowledge()
        self._free_place()

    def reject(self, requeue: bool = False) -> None:
        """Give the message back; the place is free, whether that worked or not."""
        super().reject(requeue)
        self._free_place()

    def _free_place(self) -> None:
        channel, tag = self.message.channel, self.message.delivery_tag
        if channel is None:
            return
        with suppress(KeyError):  # it belonged to a channel that is gone
            channel.qos.get(tag)
            # The base class's: it notes the tag as dealt with, here, and asks Redis nothing.
            virtual.QoS.ack(channel.qos, tag)


def filter_messages(rebuild: Callable[[bytes], bytes | None]) -> None:
    """Let this process receive only what `rebuild` returns; None drops the item.

    An item that is not a message of Celery's otherwise ends the worker, or every worker in turn.
    https://github.com/celery/celery/issues/7975, https://github.com/celery/kombu/issues/2421
    """

    class FilteredRedis(PrefixedStrictRedis):  # type: ignore[misc]  # kombu has no types
        def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
            found = super().parse_response(connection, command_name, **options)
            if command_name != "BRPOP" or not found:
                return found
            queue, item = found
            rebuilt = rebuild(item)
            return None if rebuilt is None else (queue, rebuilt)  # None: as if the wait had timed out

    class FilteredChannel(Channel):  # type: ignore[misc]  # kombu has no types
        def _get_client(self) -> Any:
            super()._get_client()  # it checks redis-py's version
            return functools.partial(FilteredRedis, global_keyprefix=self.global_keyprefix)

    Transport.Channel = FilteredChannel


def limit_cold_shutdown() -> None:
    """Let a worker of this process end some seconds after a cold shutdown. Call it before it starts.

    A cold shutdown is SIGQUIT, or Ctrl-C a second time. Celery then stops its pool from within the signal's
    handler, wherever the main process was interrupted, and waits for its children; about one in fifty waits
    for ever. Nothing is lost, since the leases run out, but the worker takes no message until it is killed.
    https://github.com/celery/celery/issues/10271 has the same cause: work inside the signal's handler.
    """
    shut_down = celery_worker.on_cold_shutdown

    def shut_down_or_die(worker: Any) -> None:
        # The alarm has no handler on purpose: the kernel ends the process whatever it is at. Its children
        # find their pipe closed, and end.
        signal.alarm(COLD_SHUTDOWN_SECONDS)
        shut_down(worker)

    celery_worker.install_worker_term_hard_handler = functools.partial(
        celery_worker.install_worker_term_hard_handler, callback=shut_down_or_die
    )


@worker_shutting_down.connect
def _stop_at_once(**_: Any) -> None:
    """Wake the loop up, which otherwise sees SIGTERM's flag when its next timer is due, in up to 2 s.

    https://github.com/celery/celery/pull/7339 made the handler set a flag only. Not by `call_soon`: it takes
    a lock that the code which the signal has interrupted may hold.
    """
    loop = get_event_loop()
    waker = loop and loop._waker  # there is none before the loop runs, nor if the pool has no loop
    if waker is not None:
        waker.wake()


def exit_at_once(exitcode: int) -> None:
    """End a child that stops in good order without billiard's last message and its sleep of a second.

    That second is most of what a person waits for who has the result of `classify` or `retrain --wait`. A
    child that is replaced ends in billiard's way (`billiard.pool.Worker._do_exit`; no issue known).
    """
    if exitcode == os.EX_OK:
        os._exit(exitcode)
