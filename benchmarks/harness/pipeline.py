"""Labelmill as users run it: the stack's own broker and workers, and one submission after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import redis
import sqlalchemy as sa

from benchmarks.harness.model import make_champion
from benchmarks.harness.setup import Setup
from jobs.ledger import Ledger
from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX
from jobs.schema import UNFINISHED, JobState, chunks
from labelmill.client import Client
from labelmill.local.stack import Stack
from producer.sources import Sources
from worker.predicting.context import CLAIM_SECONDS

#: Seconds between two questions to the ledger whether the job is done. At most, because asking takes time
#: from the workers; and at the end, because a round may be measured too long by so much.
POLL_SECONDS: Final = 0.25
POLL_SECONDS_AT_THE_END: Final = 0.005

#: More images do not make a worker process warmer.
_WARM_UP_IMAGES: Final = 70_000

#: A job that takes longer than this hangs.
JOB_SECONDS: Final = 600.0

#: A job's state, its images, and how many of these are done.
_PROGRESS: Final = "SELECT state, total, succeeded + failed FROM jobs WHERE id = ?"

#: Returns the first row of the answer about the job with this id, or None.
Probe = Callable[[str], Any]


class Classified(NamedTuple):
    """One job, measured from the start of the submission to the commit of the last row."""

    job_id: str
    seconds: float
    submit_seconds: float  # until the producer had finished; the workers begin with its first chunk


class Pipeline:
    """Run the stack with warm workers, as a context manager."""

    def __init__(self, setup: Setup, **stack: Any) -> None:
        """`stack`: options of `Stack`, whose logs lie in the state folder."""
        self._settings = setup.settings
        self._model = setup.model
        self._stack = Stack(setup.settings, **stack)
        self.client = Client(setup.settings)

    def __enter__(self) -> Self:
        try:
            make_champion(self._model, self.client.ledger, self._settings)
            self._stack.__enter__()
        except BaseException:
            self.client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.stop()
        self.client.close()

    def warm_up(self, folder: Path) -> None:
        """Classify the folder until every worker process has taken part: it then knows the model's speed."""
        while len(self.processes()) < self._settings.processes:
            # Several jobs together: the first process would take each of them if a folder makes one chunk.
            for job_id in [self._submit_to_warm_up(folder) for _ in range(self._settings.processes)]:
                self.client.wait(job_id, timeout=JOB_SECONDS)

    def _submit_to_warm_up(self, folder: Path) -> str:
        return self.client.submission(islice(Sources([str(folder)]), _WARM_UP_IMAGES)).job_id

    def wait_until_idle(self) -> None:
        """Wait until no message waits or is being worked on, which may last longer than the jobs.

        Raises RuntimeError if that takes too long.
        """
        deadline = time.monotonic() + JOB_SECONDS
        with redis.Redis(unix_socket_path=str(self._settings.broker_socket)) as broker:
            while broker.llen(KEY_PREFIX + CLASSIFY_QUEUE) or broker.hlen(KEY_PREFIX + "unacked"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"there are messages left after {JOB_SECONDS:g} seconds")
                time.sleep(POLL_SECONDS_AT_THE_END)

    def classify(self, folder: Path) -> Classified:
        """Submit the folder and wait until its job is done. Raises RuntimeError if that fails."""
        began = time.perf_counter()
        job_id = self.client.submit(folder)
        return self.wait(job_id, began=began, submitted=time.perf_counter())

    def wait(self, job_id: str, *, began: float, submitted: float) -> Classified:
        """Wait until the job is done, which was begun and submitted at these times of `time.perf_counter`.

        Raises RuntimeError if that fails.
        """
        with open_probe(self.client.ledger, _PROGRESS) as probe:
            while True:
                state, total, done = probe(job_id)
                seconds = time.perf_counter() - began
                if state not in UNFINISHED:
                    break
                if seconds > JOB_SECONDS:
                    raise RuntimeError(f"the job has not ended after {JOB_SECONDS:g} seconds")
                time.sleep(_pause(seconds, total, done))
        status = self.client.status(job_id)
        if status.state != JobState.DONE or status.failed:
            raise RuntimeError(f"the job ended {status.state} with {status.failed} errors: {status.error}")
        return Classified(job_id, seconds, submitted - began)

    def processes(self) -> list[int]:
        """Return the ids of the worker processes that have taken part so far."""
        with self.client.ledger.reading() as connection:
            owners = connection.scalars(
                sa.select(chunks.c.owner).where(chunks.c.owner.is_not(None)).distinct()
            )
            return sorted(int(owner.rpartition("/")[2]) for owner in owners)


@contextlib.contextmanager
def open_probe(ledger: Ledger, question: str) -> Iterator[Probe]:
    """Open a connection for one query: `question`, SQL with one `?` for a job's id.

    It uses the driver directly, so that the workers hardly notice the measurement.
    """
    connection = ledger.engine.raw_connection()
    try:
        driver: Any = connection.driver_connection
        if not ledger.is_sqlite:
            driver.autocommit = True  # each query sees what is committed by then, as it does on SQLite
            question = question.replace("?", "%s")
        cursor = driver.cursor()  # kept: with a new one each time, a query takes half as long again
        yield lambda job_id: cursor.execute(question, (job_id,)).fetchone()
    finally:
        connection.invalidate()  # not back into the pool: it commits by itself


def _pause(seconds: float, total: int, done: int) -> float:
    """Return how long to wait before asking again about a job that has run for so many seconds."""
    if not done:
        return POLL_SECONDS_AT_THE_END
    # The images of the claims under way are not done yet, and may all be done at any moment.
    left = seconds * (total - done) / done - CLAIM_SECONDS
    return min(max(POLL_SECONDS_AT_THE_END, left), POLL_SECONDS)
