"""A very large job that runs while something else is measured, and another one after it."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy as sa

from benchmarks.pipeline import JOB_SECONDS
from benchmarks.producer import Producer, Submission
from jobs.errors import Conflict
from jobs.schema import UNFINISHED, jobs
from labelmill.client import Client

#: Seconds between two checks whether the workers have begun.
_LOOK_SECONDS: Final = 0.05

#: Its size distinguishes the large job from those of one image.
_OPEN: Final = sa.select(jobs.c.id, jobs.c.succeeded).where(jobs.c.state.in_(UNFINISHED), jobs.c.total > 1)


class Bulk:
    """Keep the workers busy with a large job, as a context manager."""

    def __init__(self, client: Client, folder: Path, images: int, *, model: str | None = None) -> None:
        """`model`: the id of the model that classifies it; if left out, the champion."""
        self.jobs = 0  # that were begun so far
        self._model = model
        self._client = client
        self._images = images
        self._producer = Producer(client.settings, folder)
        self._future: Future[Submission] | None = None

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def under_way(self) -> bool:
        """Return whether the large job runs. If it has ended, begin the next one first."""
        if self._open() is not None:
            return True
        self._begin()
        return False

    def stop(self) -> None:
        """Cancel the job."""
        if (found := self._open()) is not None:
            with contextlib.suppress(Conflict):  # it ended at this moment
                self._client.cancel(found.id)
        if self._future is not None:
            self._future.exception()  # a producer whose job is cancelled stops
        self._producer.__exit__()

    def _begin(self) -> None:
        """Begin a job and wait for its first results. Raises what the producer does, RuntimeError."""
        if self._future is not None:
            self._future.result()
        self._future = self._producer.submit(self._images, model=self._model)
        self.jobs += 1
        deadline = time.monotonic() + JOB_SECONDS
        while (found := self._open()) is None or not found.succeeded:
            if self._future.done():
                self._future.result()
                if self._open() is None:
                    return  # so small that it has ended already
            if time.monotonic() > deadline:
                raise RuntimeError(f"the large job has not begun after {JOB_SECONDS:g} seconds")
            time.sleep(_LOOK_SECONDS)

    def _open(self) -> sa.Row[Any, Any] | None:
        with self._client.ledger.reading() as connection:
            return connection.execute(_OPEN).first()
