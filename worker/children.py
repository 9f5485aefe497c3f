"""Release what a dead child process had claimed, in the worker's main process."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from structlog.contextvars import bound_contextvars

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import Reason, claimed_by, release_claims
from jobs.ledger.learning.runs import interrupt_runs_of
from jobs.messages import MessageError, run_id_of
from worker.celery_patches import SlotFreeingRequest
from worker.context import owner_name

logger = logging.getLogger(__name__)


class ClaimingRequest(SlotFreeingRequest):
    """A request whose task claims chunks or a training run in the ledger.

    If the child process dies, the main process releases its chunks and interrupts its run, which is not
    restarted. Otherwise their leases would have to expire.
    """

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Release the claims of a child that died, for example of a signal or the out-of-memory killer.

        Celery also calls this if the task raised an exception; then nothing is released.
        """
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):  # billiard wraps errors, even within one process
            error = error.exc
        with self._run_bound():
            if isinstance(error, WorkerLostError):
                self._release(Reason.CRASHED, _cause_of_death(error))
            return super().on_failure(exc_info, *args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """Kill the child at the hard time limit, when no exception can reach it, and release its claims."""
        with self._run_bound():
            if not soft:
                # Celery kills the process only after this method, and until then it may hold locks on the
                # rows to be changed. So it is killed here.
                with suppress(ProcessLookupError):
                    os.kill(self.worker_pid, signal.SIGKILL)
                self._release(Reason.TIMED_OUT, f"its process was killed after {timeout:g} s")
            return super().on_timeout(soft, timeout)

    @contextmanager
    def _run_bound(self) -> Iterator[None]:
        """Add the run that the message names, if any, to the log lines."""
        ids: dict[str, str] = {}
        with suppress(MessageError):
            ids["run"] = run_id_of(self.args, self.kwargs)
        with bound_contextvars(**ids):
            yield

    def _release(self, reason: Reason, error: str) -> None:
        if not self.worker_pid:
            return
        owner = owner_name(self.worker_pid)
        settings = self.app.labelmill_settings
        try:
            with (
                closing(Ledger.for_main_process(settings.ledger)) as ledger,
                ledger.transaction() as connection,
            ):
                release_claims(connection, claimed_by(owner), reason, error)
                interrupt_runs_of(connection, [owner], error=error)
        except LabelmillError as problem:
            logger.warning("not released; the dead process's lease will expire: %s", problem)


def _cause_of_death(error: WorkerLostError) -> str:
    """Return billiard's message without its internal job number."""
    return f"its process died: {str(error).removeprefix('Worker exited prematurely: ').partition(' Job:')[0]}"
