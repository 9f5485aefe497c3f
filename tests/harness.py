"""A harness for the processing core: one worker process's context in the test's own process.

Payloads, ledger and store are real; no message is needed, because `classify` asks the ledger what is next.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Unpack

import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.filters import Filter
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import JobStatus, job_status, stream_predictions
from jobs.ledger.jobs.submission import (
    DEFAULT_PRIORITY,
    SMALL_JOB_PRIORITY,
    NewChunk,
    add_chunk,
    open_job,
    seal_job,
)
from jobs.models.model import Model
from jobs.options import JobKeywords, JobOptions
from jobs.schema import SMALL_JOB_IMAGES, chunks
from jobs.storage.payloads import Content, pack_payload, payload_digest, payload_key
from jobs.storage.store import Store
from tests.faults.pictures import pictures
from tests.registering import register_digits
from worker.predicting.context import WorkerContext
from worker.predicting.pipeline import classify_next


def digits(count: int) -> list[bytes]:
    """Pictures of 28 x 28 pixels, each with other bytes. `tests.faults.light` labels them 0 to 9 in turn."""
    return [picture.data for picture in pictures(count)]


def strike_after(seconds: float) -> Callable[..., Any]:
    """Return a function that hangs until the time limit strikes, as Celery lets it: by a signal.

    It may run in any thread; the main one must be in `time_limit`.
    """
    strikes = iter([True])

    def hang(*_: object, **__: object) -> Any:
        time.sleep(seconds)
        if next(strikes, False):  # once: a second signal would come too late, and end the process
            os.kill(os.getpid(), SIG_SOFT_TIMEOUT)
        time.sleep(5)  # interrupted in the main thread
        raise AssertionError("the time limit was not heard")

    return hang


@contextmanager
def time_limit() -> Iterator[None]:
    """Handle Celery's signal for the soft time limit as a child process does."""

    def strike(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(SIG_SOFT_TIMEOUT, strike)
    try:
        yield
    finally:
        signal.signal(SIG_SOFT_TIMEOUT, before)


def fail_at(monkeypatch: pytest.MonkeyPatch, poison: bytes, error: Callable[[], BaseException]) -> None:
    """Let decoding of this image raise an error from now on."""
    from worker.predicting import decode as module

    real = module.decode

    def decode(data: bytes, *arguments: Any) -> Any:
        if data == poison:
            raise error()
        return real(data, *arguments)

    monkeypatch.setattr(module, "decode", decode)


def make_harness(ledger: Ledger, store: Store, context: WorkerContext, model_file: bytes) -> Harness:
    """Return a harness whose champion has this file. A claim takes whole chunks."""
    harness = Harness(ledger, store, context, register_digits(ledger, store, model_file, champion=True))
    harness.claim_at_most(16_384)
    return harness


@dataclass
class Harness:
    """A ledger, a store and a worker's context."""

    ledger: Ledger
    store: Store
    context: WorkerContext
    model: Model
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def claim_at_most(self, images: int) -> None:
        """Let claims have at most so many images, whatever speed was measured."""
        self.context.images_per_claim = lambda _model_id: images  # type: ignore[method-assign]

    def submit(
        self,
        contents: Sequence[Content],
        *,
        sizes: Sequence[int] | None = None,
        model: Model | None = None,
        lose_payload: bool = False,
        **options: Unpack[JobKeywords],
    ) -> str:
        """Submit a job of one chunk, or of chunks of these sizes; return its id. Images are `0.png`, ..."""
        job_id, first = new_id(), 0
        is_small = len(contents) <= SMALL_JOB_IMAGES and sizes is None
        priority = SMALL_JOB_PRIORITY if is_small else DEFAULT_PRIORITY
        with self.ledger.transaction() as connection:
            open_job(connection, job_id, JobOptions(**options), model_id=(model or self.model).id)
            for size in sizes or [len(contents)]:
                chunk_id = new_id()
                names = [f"{index}.png" for index in range(first, first + size)]
                pieces = pack_payload(names, contents[first : first + size])
                key = payload_key(job_id, chunk_id)
                if not lose_payload:
                    self.store.put(key, *pieces)
                chunk = NewChunk(chunk_id, first, size, key, payload_digest(*pieces), priority)
                add_chunk(connection, job_id, chunk)
                first += size
            seal_job(connection, job_id, fingerprint=None)
        return job_id

    def classify(self) -> int:
        """Classify what is due next; return the number of images recorded."""
        return classify_next(self.context)

    def classify_all(self, *, ignore: type[BaseException] = LookupError) -> int:
        """Classify until nothing is pending, without waiting for back-offs. Return the number of attempts.

        `ignore`: an error that an attempt may raise.
        """
        for attempts in range(200):
            self.make_due()
            if not self.pending():
                return attempts
            try:
                self.classify()
            except ignore:
                continue
        raise AssertionError("it does not end")

    def make_due(self) -> None:
        """End all back-offs."""
        with self.ledger.transaction() as connection:
            connection.execute(chunks.update().values(not_before=None))

    def pending(self) -> int:
        """Return how many chunks are pending."""
        with self.ledger.reading() as connection:
            query = sa.select(sa.func.count()).select_from(chunks).where(chunks.c.state == "pending")
            return connection.scalar(query) or 0

    def chunks(self, job_id: str) -> list[sa.Row[Any]]:
        """Return the rows of a job's chunks, in order."""
        with self.ledger.reading() as connection:
            query = sa.select(chunks).where(chunks.c.job_id == job_id).order_by(chunks.c.first_index)
            return list(connection.execute(query))

    def chunk(self, job_id: str) -> sa.Row[Any]:
        """Return the row of a job's only chunk."""
        (row,) = self.chunks(job_id)
        return row

    def status(self, job_id: str) -> JobStatus:
        with self.ledger.reading() as connection:
            return job_status(connection, job_id)

    def predictions(self, job_id: str) -> list[Prediction]:
        return list(stream_predictions(self.ledger, job_id, Filter()))

    def labels(self, job_id: str) -> list[str | None]:
        """Return what became of each image: its label, or its error."""
        return [row.error or row.label for row in self.predictions(job_id)]
