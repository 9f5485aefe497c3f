"""Where a job waits: the Celery application that producer and worker share, and the doorbell."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs.messages import CLASSIFY_QUEUE as CLASSIFY_QUEUE
from jobs.messages import RETRAIN_QUEUE as RETRAIN_QUEUE
from jobs.messages import Message
from jobs.settings import Settings
from jobs.transport import AHEAD, Transport

logger = logging.getLogger(__name__)

CLASSIFY_TASK: Final = "labelmill.classify"
RETRAIN_TASK: Final = "labelmill.retrain"

#: All our keys in Redis start with this, so that nobody else's application meets them.
KEY_PREFIX: Final = "labelmill:"

#: No more messages than this wait in Redis; more chunks wait in the ledger. Far more than workers can hold.
MAX_OUTSTANDING: Final = 1_000

#: But so many more of those that go ahead: a small job does not wait until there is room behind a large one.
#: No more, since each but the first few would find its chunk done with others: who takes a message rings for
#: the next small job that waits.
MAX_AHEAD: Final = 32

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


class Bell:
    """Rings for chunks and training runs: sends their messages. A broker that is away is noted once, not
    waited for again.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection = app.connection_for_write()
        # Not by `broker_transport`: a URL that names its transport goes before it, as `redis+socket://` does.
        self._connection.transport_cls = Transport
        # Left alone, kombu tries again and again to connect, and whoever submits would wait for it.
        self._connection.transport_options |= {"max_retries": 1, "interval_start": 0}
        self.silent = False
        #: Why the bell is silent: no answer, a wrong password or certificate, a command the user may not run.
        self.reason = ""

    def anew(self) -> Self:
        """The same bell, which asks the broker again: its silence may be of another time."""
        self.silent, self.reason = False, ""
        return self

    def ring(self, chunk_ids: Iterable[str], *, ahead: bool = False) -> int:
        """Sends a message for each chunk, as long as there is room for them; gives back how many were sent.
        `ahead`: of all messages that wait. Never raises: the reconciler rings later for what was not.
        """
        sent = 0
        for chunk_id in chunk_ids:
            if self.silent:
                break
            with self._noting_silence():
                if sent == 0:
                    room = MAX_OUTSTANDING + (MAX_AHEAD if ahead else 0) - self.waiting()
                if sent >= room:
                    break
                self._send(CLASSIFY_TASK, chunk_id, ahead=ahead)
                sent += 1
        return sent

    def ring_for_small(self, chunk_id: str) -> int:
        """Sends the message of a small job ahead of all that wait, unless enough of them wait: whoever takes
        one sees that this job waits, too. Gives back how many were sent, 0 or 1. Never raises.
        """
        if self.silent:
            return 0
        with self._noting_silence():
            channel: Any = self._connection.default_channel
            if not channel.are_ahead(CLASSIFY_QUEUE, MAX_AHEAD):
                self._send(CLASSIFY_TASK, chunk_id, ahead=True)
                return 1
        return 0

    def ring_for(self, waiting: Sequence[tuple[str, bool]]) -> int:
        """Rings for chunks, each by its id and whether it goes ahead of all messages that wait."""
        ahead = self.ring((chunk_id for chunk_id, is_ahead in waiting if is_ahead), ahead=True)
        return ahead + self.ring(chunk_id for chunk_id, is_ahead in waiting if not is_ahead)

    def ring_for_run(self, run_id: str) -> None:
        """Sends the message of a training run. Never raises: the reconciler rings later for what was not."""
        with self._noting_silence():
            self._send(RETRAIN_TASK, run_id)

    def waiting(self, queue: str = CLASSIFY_QUEUE) -> int:
        """How many messages wait on a queue. Raises OperationalError where the broker does not say."""
        try:
            # Not passively: to see whether the queue is there at all, kombu 5.7 asks for its key without
            # our prefix, and never finds it. In Redis a declaration makes nothing.
            declared: Any = self._connection.default_channel.queue_declare(queue)
        except (*self._connection.recoverable_connection_errors, RedisError) as error:
            self._connection.close()
            raise OperationalError(str(error)) from error
        return int(declared.message_count)

    def _send(self, task: str, identifier: str, *, ahead: bool = False) -> None:
        self._app.send_task(
            task,
            args=Message(identifier).encode(),
            connection=self._connection,
            retry=False,
            priority=AHEAD if ahead else None,
            # A worker would put its own in, and the gate takes no message that sets any.
            time_limit=None,
            soft_time_limit=None,
        )

    @contextmanager
    def _noting_silence(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, RedisError, OSError) as error:
            logger.debug("cannot ring: %s", error)
            self._connection.close()  # half of it may be open; the next ring begins anew
            self.silent, self.reason = True, str(error).strip().rstrip(".")

    def close(self) -> None:
        """Gives the connection back."""
        self._connection.close()
