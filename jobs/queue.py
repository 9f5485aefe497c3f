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

from jobs.messages import CLASSIFY_QUEUE, CLASSIFY_TASK, QUEUES, RETRAIN_TASK
from jobs.settings import Settings

logger = logging.getLogger(__name__)

#: All our keys in Redis start with this, so that they do not collide with another application's.
KEY_PREFIX: Final = "labelmill:"

#: At most this many messages wait in Redis; all other work waits in the ledger. Far more than workers can
#: hold.
MAX_WAITING: Final = 1_000

#: A broker that does not answer for this long counts as unavailable. It must exceed the second that a waiting
#: worker's BRPOP takes by itself.
BROKER_TIMEOUT_SECONDS: Final = 5.0

#: A new process imports TensorFlow and loads the model before it reports that it is alive, which takes longer
#: than Celery's default of 4 seconds.
CHILD_START_SECONDS: Final = 120.0

#: A process that holds more memory than this after a chunk is replaced, in KiB: 8 GiB, which neither a model
#: nor the largest image comes near. A leak must not exhaust the machine.
MAX_CHILD_KIB: Final = 8 * 1024 * 1024


def make_app(settings: Settings) -> Celery:
    """Return the Celery application.

    Each setting answers a failure seen in the field; c#, k# and tf# are issues of celery/celery, celery/kombu
    and tensorflow/tensorflow. Workers start without gossip, mingle and heartbeat, whose keys leak too.
    """
    app = Celery("labelmill", broker=settings.broker, set_as_current=False)
    app.conf.update(
        # Unpickling a message runs code, and results that nobody reads fill Redis.
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        # Named queues, because Redis priorities are hidden lists, and a mistyped name is an error.
        task_default_queue=CLASSIFY_QUEUE,
        task_queues=list(map(_queue, QUEUES.values())),
        task_routes={task: {"queue": queue} for task, queue in QUEUES.items()},
        task_create_missing_queues=False,
        # A message is acknowledged when its chunk is recorded, and requeued if its process dies, which late
        # acknowledgement alone does not do (c#1628). A worker must not hoard messages.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # Time limit < lease < visibility timeout: a hanging process must be gone before its lease ends, and
        # Redis delivers again what runs for longer than the visibility timeout (c#5306).
        task_soft_time_limit=settings.soft_time_limit,
        task_time_limit=settings.time_limit,
        worker_proc_alive_timeout=CHILD_START_SECONDS,  # c#1715
        worker_max_memory_per_child=MAX_CHILD_KIB,  # TensorFlow leaks (tf#44711)
        # How long Celery waits for the result of a child that died before it requeues the message.
        worker_lost_wait=1.0,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout,
            "global_keyprefix": KEY_PREFIX,
            # Half-open connections (c#10502).
            "socket_timeout": BROKER_TIMEOUT_SECONDS,
            "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        # Hosts that drop packets. A worker must outlive Redis.
        broker_connection_timeout=BROKER_TIMEOUT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A message that cannot be sent is not lost, because the reconciler sends it later: do not wait.
        task_publish_retry=False,
        # Nothing queries workers through the broker, and reply queues leak in Redis (c#6089, k#294).
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # Celery would remove other log handlers.
        worker_hijack_root_logger=False,
        # A cron line means the same everywhere.
        timezone="UTC",
        enable_utc=True,
    )
    return app


def _queue(name: str) -> Queue:
    # An exchange and a routing key of its own: queues that share both each get a copy of every message.
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


class Publisher:
    """Send wake-ups and the messages of training runs.

    It never raises if the broker cannot be reached: the ledger has everything, and a worker's reconciler
    sends the missing messages later. After the first failure it sends nothing until `reset`.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = app.connection_for_write()
        # By default kombu retries for long, and a person who submits would have to wait.
        self._connection.transport_options |= {"max_retries": 1, "interval_start": 0}
        self.unavailable = False
        #: Why the broker is unavailable: no answer, a wrong password, or a command that the user may not run.
        self.reason = ""

    def reset(self) -> Self:
        """Let the publisher try the broker again, and return it."""
        self.unavailable, self.reason = False, ""
        return self

    def wake_up(self, count: int = 1, *, task: str = CLASSIFY_TASK) -> int:
        """Send up to `count` wake-ups, while fewer than MAX_WAITING wait. Return how many were sent.

        They wake the workers that execute `task`.
        """
        sent = 0
        if self.unavailable:
            return sent
        with self._noting_failure():
            room = MAX_WAITING - self.waiting(QUEUES[task])
            while sent < min(count, room):
                self._send(task, ())
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
            # Not passively: to see whether the queue exists, kombu 5.7 looks for its key without our prefix
            # and never finds it. In Redis a declaration creates nothing.
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
            # Explicitly none: a worker would insert its own limits, and the message filter rejects a message
            # that sets any.
            time_limit=None,
            soft_time_limit=None,
        )

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, RedisError, OSError) as error:
            logger.debug("cannot publish: %s", error)
            self._connection.close()  # it may be half open; the next message reconnects
            self.unavailable, self.reason = True, str(error).strip().rstrip(".")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
