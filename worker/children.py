"""A worker's child processes, for its main process: release what a dead one had claimed, and count deaths.

A child that dies is replaced immediately. So a worker whose children all die, for example for lack of memory,
looks busy; only the number of deaths shows it.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from structlog.contextvars import bound_contextvars

from jobs.errors import LabelmillError
from jobs.ledger import Ledger
from jobs.ledger.counters import DEATHS
from jobs.ledger.jobs.claims import Reason, claimed_by, release_claims
from jobs.ledger.learning.runs import interrupt_runs_of
from jobs.ledger.workers import Problem, owner_name
from jobs.messages import MessageError, run_id_of
from worker.celery_patches import SlotFreeingRequest

logger = logging.getLogger(__name__)

#: So many deaths within so many seconds are a problem. One image that kills its process causes two or three
#: deaths in a short time, and is then isolated.
MANY_DEATHS: Final = 5
DEATHS_SECONDS: Final = 300.0

#: Where the kernel counts the processes of this container that it killed for lack of memory: cgroup 2 and 1.
_OOM_COUNTS: Final = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)


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


class Deaths:
    """The recent deaths of one worker's children."""

    def __init__(self, oom_counts: Sequence[Path] = _OOM_COUNTS) -> None:
        """Remember how many processes the kernel has killed so far."""
        self._oom_counts = oom_counts
        self._oom_kills = count_oom_kills(oom_counts)
        self._oom_left = 0  # kills that the kernel has counted, but whose deaths were not added yet
        self._recent: deque[float] = deque()
        self._cause = ""

    def add(self, exit_codes: Sequence[int]) -> None:
        """Add the deaths of children that ended with these exit codes."""
        now = time.monotonic()
        self._recent.extend(now for _ in exit_codes)
        while self._recent and self._recent[0] < now - DEATHS_SECONDS:
            self._recent.popleft()
        if exit_codes:
            before, self._oom_kills = self._oom_kills, count_oom_kills(self._oom_counts)
            # If two are killed before the number is read, it includes the death that is added later.
            self._oom_left += self._oom_kills - before
            is_oom = self._oom_left > 0
            self._oom_left = max(0, self._oom_left - list(exit_codes).count(-signal.SIGKILL))
            self._cause = _cause(death_name(exit_codes[-1]), is_oom=is_oom)

    def problem(self) -> str | None:
        """Return what the children keep dying of and what to do, if many died in a short time."""
        return self._cause if len(self._recent) >= MANY_DEATHS else None


def _cause(name: str, *, is_oom: bool) -> str:
    more = "give it more memory, or run fewer processes"
    if name == "SIGKILL":
        if is_oom:
            return f"{Problem.MEMORY}: {more}"
        return f"{Problem.DEATHS}, killed by SIGKILL, perhaps for lack of memory: {more}"
    return f"{Problem.DEATHS}, the latest of {name}: its log says more"


def death_name(exit_code: int) -> str:
    """Return which of `DEATHS` this exit code means."""
    with suppress(ValueError):
        name = signal.Signals(-exit_code).name
        if name in DEATHS:
            return name
    return "other"


def count_oom_kills(files: Sequence[Path]) -> int:
    """Return how many processes of this container the kernel killed for lack of memory; 0 if unknown."""
    for file in files:
        with suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE):
                return int(found[1])
    return 0
