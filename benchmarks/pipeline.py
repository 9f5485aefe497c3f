"""Labelmill as its users have it: the stack's own broker and workers, and one submission after another.

Beside it stands `benchmarks.bare_loop`; both read what `benchmarks.images` wrote.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple, Self

import redis
import sqlalchemy as sa

from benchmarks.asking import asking
from benchmarks.model import TrainedModel, make_champion
from jobs.messages import CLASSIFY_QUEUE
from jobs.queue import KEY_PREFIX
from jobs.schema import UNFINISHED, JobState, chunks
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.stack import Stack

#: How long to wait before the ledger is asked again whether the job is done: this many seconds times the
#: share of its chunks that nobody has in hand, because asking takes time from the workers, but never less
#: than the other figure, by which a round may be measured too long.
POLL_SECONDS: Final = 0.25
POLL_SECONDS_AT_THE_END: Final = 0.005

#: A job that takes longer than this hangs.
JOB_SECONDS: Final = 600.0

#: A job's state, its chunks, and how many of these are done.
_PROGRESS: Final = "SELECT state, chunks, chunks_done FROM jobs WHERE id = ?"


class Classified(NamedTuple):
    """One job, measured from the first file that is looked for to the last row that is committed."""

    job_id: str
    seconds: float
    submit_seconds: float  # until the producer was through; the workers are at it from its first chunk on


class Pipeline:
    """A context manager: inside it the stack runs, and its workers are warm."""

    def __init__(self, settings: Settings, model: TrainedModel) -> None:
        """The ledger must be migrated. The stack's logs lie in the state folder."""
        self._settings = settings
        self._model = model
        self._stack = Stack(settings, logs=settings.home / "logs")
        self.client = Client(settings)

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
        """Classifies the folder until every worker process has taken part, which it does once it is warm."""
        while len(self.processes()) < self._settings.processes:
            # As many at once: where a folder makes a single chunk, the first process would take each of them.
            for job_id in [self.client.submit(folder) for _ in range(self._settings.processes)]:
                self.client.wait(job_id, timeout=JOB_SECONDS)

    def wait_until_idle(self) -> None:
        """Waits until no message is left and none is under way, as there may be when the last job is done.
        Raises RuntimeError where that takes too long.
        """
        deadline = time.monotonic() + JOB_SECONDS
        with redis.Redis(unix_socket_path=str(self._settings.broker_socket)) as broker:
            while broker.llen(KEY_PREFIX + CLASSIFY_QUEUE) or broker.hlen(KEY_PREFIX + "unacked"):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"there are messages left after {JOB_SECONDS:g} seconds")
                time.sleep(POLL_SECONDS_AT_THE_END)

    def classify(self, folder: Path) -> Classified:
        """Submits the folder and waits until its job is done. Raises RuntimeError where that goes wrong."""
        began = time.perf_counter()
        job_id = self.client.submit(folder)
        return self.wait(job_id, began=began, submitted=time.perf_counter())

    def wait(self, job_id: str, *, began: float, submitted: float) -> Classified:
        """Waits until the job is done, which was begun and submitted at these times of `time.perf_counter`.
        Raises RuntimeError where that goes wrong.
        """
        with asking(self.client.ledger, _PROGRESS) as ask:
            while (waiting := self._share_that_waits(ask(job_id))) is not None:
                if time.perf_counter() - began > JOB_SECONDS:
                    raise RuntimeError(f"the job has not ended after {JOB_SECONDS:g} seconds")
                time.sleep(max(POLL_SECONDS_AT_THE_END, POLL_SECONDS * waiting))
            ended = time.perf_counter()
        status = self.client.status(job_id)
        if status.state != JobState.DONE or status.failed:
            raise RuntimeError(f"the job ended {status.state} with {status.failed} errors: {status.error}")
        return Classified(job_id, ended - began, submitted - began)

    def _share_that_waits(self, job: tuple[str, int, int]) -> float | None:
        """Of a job's chunks, if each process is at one; None where the job has ended."""
        state, chunks, done = job
        return (chunks - done - self._settings.processes) / chunks if state in UNFINISHED else None

    def processes(self) -> list[int]:
        """The ids of the worker processes that have taken part so far."""
        with self.client.ledger.reading() as connection:
            owners = connection.scalars(
                sa.select(chunks.c.owner).where(chunks.c.owner.is_not(None)).distinct()
            )
            return sorted(int(owner.rpartition("/")[2]) for owner in owners)
