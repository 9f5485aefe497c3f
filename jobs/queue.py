"""The queue: the Celery application that producer and worker share, and the publisher of its messages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs.messages import CLASSIFY_QUEUE, CLASSIFY_TASK, RETRAIN_QUEUE, RETRAIN_TASK
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: All our keys in Redis start with this, so that nobody else's application meets them.
KEY_PREFIX: Final = "labelmill:"

#: No more messages than this wait in Redis; more chunks wait in the ledger. Far more than workers can hold.
MAX_WAITING: Final = 1_000

#: A broker that does not answer for this long counts as gone. Longer than the second a waiting worker's
#: BRPOP takes by itself.
BROKER_TIMEOUT_SECONDS: Final = 5.0

#: A fresh process imports TensorFlow and loads the model before it says that it is alive; Celery's own
#: patience is 4 seconds.
CHILD_START_SECONDS: Final = 120.0

#: A process that holds more than this after a chunk is replaced by a fresh one, in KiB: 8 GiB, which neither
#: a model nor the largest image comes near. What leaks must not take the machine.
MAX_CHILD_KIB: Final = 8 * 1024 * 1024


def make_app(settings: Settings) -> Celery:
    """The Celery application. What each setting is for is told in docs/decisions.md."""
    app = Celery("labelmill", broker=settings.broker, set_as_current=False)
    app.conf.update(
        # Messages: ids in JSON, nothing that could be unpickled, nothing that outlives its use.
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_default_queue=CLASSIFY_QUEUE,
        task_queues=[_queue(CLASSIFY_QUEUE), _queue(RETRAIN_QUEUE)],
        task_routes={CLASSIFY_TASK: {"queue": CLASSIFY_QUEUE}, RETRAIN_TASK: {"queue": RETRAIN_QUEUE}},
        task_create_missing_queues=False,
        # A message is acknowledged when its chunk is recorded, and goes back when its process dies.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # Time limit < lease < visibility timeout.
        task_soft_time_limit=settings.soft_time_limit,
        task_time_limit=settings.time_limit,
        worker_proc_alive_timeout=CHILD_START_SECONDS,
        worker_max_memory_per_child=MAX_CHILD_KIB,
        # Celery waits so long for the last word of a child that died, before its message goes back.
        worker_lost_wait=1.0,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout,
            "global_keyprefix": KEY_PREFIX,
            "socket_timeout": BROKER_TIMEOUT_SECONDS,
            "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        broker_connection_timeout=BROKER_TIMEOUT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A message that cannot be sent is no loss, the reconciler sends it later: do not wait for it.
        task_publish_retry=False,
        # Nothing here asks workers anything through the broker; what is not there cannot leak keys.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        timezone="UTC",
        enable_utc=True,
    )
    return app


def _queue(name: str) -> Queue:
    # An exchange and a key of its own: queues that share both get a copy each of every message.
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


class Publisher:
    """Send wake-ups and the messages of training runs.

    Never raises when the broker cannot be reached: the ledger has everything, and a worker's reconciler sends
    later what is missing. After the first failure nothing is tried again until `reset`.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = app.connection_for_write()
        # Left alone, kombu tries again and again to connect, and a person who submits would wait for it.
        self._connection.transport_options |= {"max_retries": 1, "interval_start": 0}
        self.unavailable = False
        #: Why the broker is unavailable: no answer, a wrong password, a command that the user may not run.
        self.reason = ""

    def reset(self) -> Self:
        """Return the same publisher, which tries the broker again: it may be back."""
        self.unavailable, self.reason = False, ""
        return self

    def wake_up(self, count: int = 1) -> int:
        """Send up to `count` wake-ups, as long as fewer than MAX_WAITING wait. Return how many were sent."""
        sent = 0
        if self.unavailable:
            return sent
        with self._noting_failure():
            room = MAX_WAITING - self.waiting()
            while sent < min(count, room):
                self._send(CLASSIFY_TASK, ())
                sent += 1
        return sent

    def request_run(self, run_id: str) -> None:
        """Send the message of a training run."""
        if not self.unavailable:
            with self._noting_failure():
                self._send(RETRAIN_TASK, (run_id,))

    def waiting(self, queue: str = CLASSIFY_QUEUE) -> int:
        """Return how many messages wait on a queue. Raises OperationalError if the broker does not answer."""
        try:
            # Not passively: to see whether the queue exists, kombu 5.7 asks for its key without our prefix,
            # and never finds it. In Redis a declaration makes nothing.
            declared: Any = self._connection.default_channel.queue_declare(queue)
        except (*self._connection.recoverable_connection_errors, RedisError) as error:
            self._connection.close()
            raise OperationalError(str(error)) from error
        return int(declared.message_count)

    def _send(self, task: str, args: tuple[str, ...]) -> None:
        self._app.send_task(
            task,
            args=args,
            connection=self._connection,
            retry=False,
            # A worker would put its own in, and the message filter takes no message that sets any.
            time_limit=None,
            soft_time_limit=None,
        )

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, RedisError, OSError) as error:
            logger.debug("cannot publish: %s", error)
            self._connection.close()  # half of it may be open; the next message connects again
            self.unavailable, self.reason = True, str(error).strip().rstrip(".")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
