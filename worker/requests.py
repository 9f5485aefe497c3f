"""Messages as the worker's main process sees them: what becomes of a lost child or acknowledgement."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.worker.request import Request
from kombu.transport import virtual
from sqlalchemy.engine import Connection
from structlog.contextvars import bound_contextvars

from jobs.errors import ErrorCode, LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.claims import bury_claim
from jobs.ledger.runs import interrupt_runs_of
from jobs.messages import Message, MessageError
from worker.bench import owner_name

logger = logging.getLogger(__name__)


class LastingRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A request that gives its place back even where the broker was away when it was to be acknowledged.

    A worker takes as many messages as it has processes, until it has acknowledged them. Where Redis is
    restarted, kombu 5.7 often reconnects without telling Celery; the acknowledgements that failed in between
    then count as outstanding for ever, and the worker is alive, connected, and takes no message any more.
    """

    def acknowledge(self) -> None:
        """Acknowledges; whatever becomes of that, the place is free."""
        super().acknowledge()
        self._free_place()

    def reject(self, requeue: bool = False) -> None:
        """Gives the message back; whatever becomes of that, the place is free."""
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


class ClaimingRequest(LastingRequest):
    """A message whose task claims what it names. When the child is dead, its claim is dead: that is written
    down in its name, so that nobody waits for the lease to run out.
    """

    #: What its message names, as the log calls it.
    kind: ClassVar[str]

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """The task raised, or its process died of whatever it was: a signal, the kernel out of memory."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):  # billiard's wrapping, even within one process
            error = error.exc
        with self._naming_it():
            if isinstance(error, WorkerLostError):
                self._bury(ErrorCode.QUARANTINED, _how_it_died(error))
            return super().on_failure(exc_info, *args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """The hard limit: the process hangs where no exception can reach it, and is killed now."""
        with self._naming_it():
            if not soft:
                # Killed here already: Celery does it when this has returned, and until then the process may
                # hold locked what is to be written.
                with suppress(ProcessLookupError):
                    os.kill(self.worker_pid, signal.SIGKILL)
                self._bury(ErrorCode.TIMEOUT, f"its process was killed after {timeout:g} s")
            return super().on_timeout(soft, timeout)

    @contextmanager
    def _naming_it(self) -> Iterator[None]:
        """Lines of the log are about what the message names: the main process says what became of it."""
        ids: dict[str, str] = {}
        with suppress(MessageError):
            ids[self.kind] = Message.decode(self.args, self.kwargs).id
        with bound_contextvars(**ids):
            yield

    def _bury(self, code: ErrorCode, error: str) -> None:
        if not self.worker_pid:
            return
        ledger = Ledger.of_a_main_loop(self.app.labelmill_settings.ledger)
        try:
            named = Message.decode(self.args, self.kwargs).id
            with ledger.transaction() as connection:
                self._end_claim(connection, named, owner_name(self.worker_pid), code, error)
        except LabelmillError as problem:
            logger.warning("the lease of a dead process has to run out by itself: %s", problem)
        finally:
            ledger.close()

    def _end_claim(self, connection: Connection, named: str, owner: str, code: ErrorCode, error: str) -> None:
        raise NotImplementedError


class ChunkRequest(ClaimingRequest):
    """A chunk's message: the chunk is given back."""

    kind = "chunk"

    def _end_claim(self, connection: Connection, named: str, owner: str, code: ErrorCode, error: str) -> None:
        bury_claim(connection, named, owner=owner, code=code, error=error)


class RunRequest(ClaimingRequest):
    """A training run's message: the run is interrupted. It has changed nothing, and is not begun again."""

    kind = "run"

    def _end_claim(
        self,
        connection: Connection,
        named: str,  # noqa: ARG002 -- a process is at one run at a time
        owner: str,
        code: ErrorCode,  # noqa: ARG002
        error: str,
    ) -> None:
        interrupt_runs_of(connection, [owner], error=error)


def _how_it_died(error: WorkerLostError) -> str:
    """Billiard's words without the job's number, which means nothing to anybody."""
    return f"its process died: {str(error).removeprefix('Worker exited prematurely: ').partition(' Job:')[0]}"
