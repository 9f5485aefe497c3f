"""All changes to the behaviour of Celery, kombu and billiard, each with its upstream issue.

Written against Celery 5.7, kombu 5.7 and billiard 4.3: look here first after an upgrade.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import celery.apps.worker as celery_worker
from billiard.pool import EX_OK, EX_RECYCLE
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool
from celery.signals import worker_shutting_down
from celery.worker import WorkController
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import COLLECT_SOCKET_TIMEOUT, bound_open_broker_sockets
from celery.worker.request import Request
from celery.worker.state import maybe_shutdown
from kombu.asynchronous import get_event_loop
from kombu.common import ignore_errors
from kombu.exceptions import OperationalError
from kombu.transport import virtual
from kombu.transport.redis import Channel, PrefixedStrictRedis, Transport

logger = logging.getLogger(__name__)

#: The pause between two attempts to reach the broker again.
RECONNECT_SECONDS: Final = 2.0

#: Far longer than a cold shutdown takes, because it does not wait for chunks.
COLD_SHUTDOWN_SECONDS: Final = 5

#: How long a worker that failed waits for its children, as long as docker-compose.yml lets a worker stop.
FAILED_SHUTDOWN_SECONDS: Final = 60


class SlotFreeingRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A request that frees its prefetch slot even if its acknowledgement failed.

    A worker has as many unacknowledged messages as processes. When Redis restarts, kombu often reconnects
    without telling Celery. Messages whose acknowledgement failed meanwhile then count as unacknowledged for
    ever, and the worker stays alive and connected but takes no more messages.
    https://github.com/celery/celery/issues/8030, https://github.com/celery/celery/issues/8990
    """

    acknowledged: bool

    def acknowledge(self) -> None:
        """Acknowledge the message, and free its slot even if that failed."""
        if not self.acknowledged:
            self._on_ack(_AckLogger(), self._connection_errors)
            self.acknowledged = True
        self._free_slot()

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, and free its slot even if that failed."""
        super().reject(requeue)
        self._free_slot()

    def _free_slot(self) -> None:
        channel, tag = self.message.channel, self.message.delivery_tag
        if channel is None:
            return
        with suppress(KeyError):  # it belonged to a channel that is gone
            channel.qos.get(tag)
            # The base class's `ack` only marks the tag locally, without a command to Redis.
            virtual.QoS.ack(channel.qos, tag)
        _wake_event_loop()  # a thread of a pool may call this, and the loop would wait for its next timer


class _AckLogger:
    """Logs failed acknowledgements at `debug`: when the broker answers again, it sends the wake-up once more.

    kombu logs each at `critical`, with a traceback (`kombu.Message.ack_log_error`).
    """

    def critical(self, _message: str, _tag: str, error: Exception, **_: Any) -> None:
        logger.debug("a message was not acknowledged: %s", error)


class OutageTolerantConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """A consumer that keeps its worker's event loop running while the broker cannot be reached.

    Celery's own sleeps until it is connected again, and logs every attempt as an error. Meanwhile the worker
    sends no heartbeat and does not notice chunks that end. Afterwards it enforces their time limits, which
    kills idle children (no issue known).
    """

    connection: Any

    def on_connection_error_after_connected(self, _error: Exception) -> None:
        """Close the lost connection, as the base class does, without its log lines."""
        bound_open_broker_sockets(self.connection, COLLECT_SOCKET_TIMEOUT)
        with suppress(Exception):
            self.connection.collect(socket_timeout=COLLECT_SOCKET_TIMEOUT)
        connection, self.connection = self.connection, None
        ignore_errors(connection, connection.close)

    def ensure_connected(self, connection: Any) -> Any:
        """Return the connection when the broker answers. Until then, log each new reason why it does not."""
        reasons: set[str] = set()
        while True:
            try:
                connection.ensure_connection(max_retries=0)
            except OperationalError as error:
                if not reasons:
                    self.controller.register_with_event_loop(self.hub)  # as Celery does once it is connected
                if str(error) not in reasons:
                    broker = connection.as_uri()  # without its password
                    logger.warning("the broker cannot be reached, this worker waits: %s: %s", broker, error)
                reasons.add(str(error))
            else:
                self.first_connection_attempt = False
                return connection
            self._run_event_loop(RECONNECT_SECONDS)

    def _run_event_loop(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            maybe_shutdown()
            next(self.hub.create_loop())  # one turn; the reconciler's timer ends it in time


class RecordingPool(AsynPool):  # type: ignore[misc]  # Celery has no types
    """A pool that records the exit codes of children that died. Celery only logs them (no issue known)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.died: list[int] = []
        super().__init__(*args, **options)

    def _join_exited_workers(self, shutdown: bool = False) -> Any:
        before = list(self._pool)
        try:
            return super()._join_exited_workers(shutdown)
        finally:
            gone = [process for process in before if process not in self._pool]
            self.died += [process.exitcode for process in gone if process.exitcode not in (EX_OK, EX_RECYCLE)]


def record_deaths() -> None:
    """Let the prefork pool of this process record the deaths of its children."""
    TaskPool.Pool = RecordingPool


def filter_messages(rebuild: Callable[[bytes], bytes | None]) -> None:
    """Let this process receive only what `rebuild` returns; None drops the item.

    Otherwise an item that is not a Celery message ends the worker, or every worker in turn.
    https://github.com/celery/celery/issues/7975, https://github.com/celery/kombu/issues/2421
    """

    class FilteredRedis(PrefixedStrictRedis):  # type: ignore[misc]  # kombu has no types
        def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
            found = super().parse_response(connection, command_name, **options)
            if command_name != "BRPOP" or not found:
                return found
            queue, item = found
            rebuilt = rebuild(item)
            return None if rebuilt is None else (queue, rebuilt)  # None means a timeout to kombu

    class FilteredChannel(Channel):  # type: ignore[misc]  # kombu has no types
        def _get_client(self) -> Any:
            super()._get_client()  # it checks redis-py's version
            return functools.partial(FilteredRedis, global_keyprefix=self.global_keyprefix)

    Transport.Channel = FilteredChannel


def limit_cold_shutdown() -> None:
    """Make a worker of this process end within seconds of a cold shutdown. Call it before the worker starts.

    SIGQUIT or a second Ctrl-C is a cold shutdown. Celery then stops its pool inside the signal handler,
    wherever the main process was interrupted, and waits for its children; about one worker in fifty waits for
    ever. Nothing is lost, since the leases run out, but such a worker takes no messages until it is killed.
    https://github.com/celery/celery/issues/10271 has the same cause: work inside the signal's handler.
    """
    shut_down = celery_worker.on_cold_shutdown

    def shut_down_or_die(worker: Any) -> None:
        # The alarm has no handler on purpose: the kernel ends the process whatever it is doing. Its children
        # end when their pipe closes.
        signal.alarm(COLD_SHUTDOWN_SECONDS)
        shut_down(worker)

    celery_worker.install_worker_term_hard_handler = functools.partial(
        celery_worker.install_worker_term_hard_handler, callback=shut_down_or_die
    )


def limit_failed_shutdown() -> None:
    """Make a worker of this process end within a minute of an error that Celery cannot recover from.

    A full Redis is such an error. Celery then waits for its children without a limit, and a worker can wait
    for ever (seen once; no issue known). It takes no messages, and nobody restarts it, because it still runs.
    What its children had claimed comes back when the leases expire.
    """
    stop = WorkController.stop

    def stop_or_die(worker: Any, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        if exitcode:
            signal.alarm(FAILED_SHUTDOWN_SECONDS)  # without a handler, as above
        stop(worker, in_sighandler, exitcode)

    WorkController.stop = stop_or_die


@worker_shutting_down.connect
def _wake_event_loop(**_: Any) -> None:
    """Wake the event loop, which otherwise checks SIGTERM's flag only at its next timer, in up to 2 s.

    Since https://github.com/celery/celery/pull/7339 the signal handler only sets a flag. `call_soon` is not
    used here, because it takes a lock that the interrupted code may hold.
    """
    loop = get_event_loop()
    waker = loop and loop._waker  # None before the loop runs, or if the pool has no loop
    if waker is not None:
        waker.wake()


def exit_at_once(exitcode: int) -> None:
    """End a child that stops normally without billiard's last message and its sleep of one second.

    After the result of `classify` or `retrain --wait` is shown, the command would mostly wait for that
    second. A child that is replaced ends as billiard does it (`billiard.pool.Worker._do_exit`; no issue
    known).
    """
    if exitcode == os.EX_OK:
        os._exit(exitcode)
