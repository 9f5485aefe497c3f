"""Labelmill from Python: what the console command does, without TensorFlow on the path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from os import PathLike, fspath
from typing import TYPE_CHECKING, Self

from jobs.errors import Conflict
from jobs.ledger import Ledger
from jobs.ledger.claims import end_job
from jobs.ledger.models import list_models
from jobs.ledger.progress import (
    Filter,
    JobStatus,
    Prediction,
    job_status,
    latest_jobs,
    stream_predictions,
)
from jobs.model import Model
from jobs.schema import JobState
from jobs.settings import Settings
from jobs.store import Store
from labelmill.migrating import open_ledger
from producer.follow import follow
from producer.sources import Sources

if TYPE_CHECKING:
    from jobs.queue import Bell
    from producer.submit import Submitted


class Client:
    """One connection to one Labelmill. Not safe to share between threads.

    Every method raises Unavailable where the ledger or the store cannot be reached.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Reads LABELMILL_* where no settings are given. Raises SettingsError, LedgerNotReady."""
        self.settings = settings or Settings.load()
        self.ledger: Ledger = open_ledger(self.settings)
        self._bell: Bell | None = None

    def submit(
        self,
        *sources: str | PathLike[str],
        key: str | None = None,
        stdin: Iterable[str] | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> str:
        """Submits files, folders, globs, ZIP archives and IDX files as one job; gives back the job's id.

        See `submission` for what may go wrong.
        """
        return self.submission(self.sources(sources, stdin=stdin), key=key, on_progress=on_progress).job_id

    def sources(
        self, sources: Iterable[str | PathLike[str]], *, stdin: Iterable[str] | None = None
    ) -> Sources:
        """The images that are named, not read yet. Raises SourceError for what is not there."""
        return Sources([fspath(source) for source in sources], stdin=stdin)

    def submission(
        self,
        images: Sources,
        *,
        key: str | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
    ) -> Submitted:
        """Submits one job. With the `key` of an earlier submission of the same content, gives that one back.

        Raises SourceError where there is no image, NotFound where there is no model yet, Conflict where the
        key was used for other content.
        """
        # Imported where it is needed: Celery takes a sixth of a second, and most commands only read.
        from jobs.queue import Bell, make_app
        from producer.submit import submit

        self._bell = Bell(make_app(self.settings))
        with closing(self._bell):
            return submit(
                images,
                ledger=self.ledger,
                store=Store(self.settings.store),
                bell=self._bell,
                chunk_images=self.settings.chunk_images,
                key=key,
                on_progress=on_progress,
            )

    @property
    def broker_was_away(self) -> bool:
        """Whether the latest submission could not send its messages; a worker's reconciler will."""
        return self._bell is not None and self._bell.silent

    def status(self, job_id: str) -> JobStatus:
        """Where the job stands. Raises NotFound."""
        with self.ledger.reading() as connection:
            return job_status(connection, job_id)

    def jobs(self, *, limit: int = 20, state: JobState | None = None) -> list[JobStatus]:
        """The latest jobs, newest first."""
        with self.ledger.reading() as connection:
            return latest_jobs(connection, limit=limit, state=state)

    def follow(self, job_id: str, *, timeout: float | None = None) -> Iterator[JobStatus]:
        """The job's status again and again until it has finished. Raises NotFound, NotFinished."""
        return follow(self.ledger, job_id, timeout=timeout)

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobStatus:
        """Waits for the end, at most `timeout` seconds. Raises NotFound, NotFinished."""
        for status in self.follow(job_id, timeout=timeout):
            if status.finished:
                break
        return status

    def cancel(self, job_id: str) -> JobStatus:
        """Stops the job; what is classified stays. Raises NotFound, or Conflict where it had finished."""
        with self.ledger.transaction() as connection:
            stopped = end_job(connection, job_id, JobState.CANCELLED)
            status = job_status(connection, job_id)
        if not stopped:
            raise Conflict(f"Job {job_id} had finished before: it is {status.state}.")
        return status

    def predictions(
        self,
        job_id: str,
        *,
        label: str | None = None,
        below: float | None = None,
        errors: bool = False,
        name: str | None = None,
        after: int = -1,
        limit: int | None = None,
    ) -> Iterator[Prediction]:
        """The job's predictions in index order, read a page at a time.

        Only those with this `label`; with a confidence `below`; that are `errors`; whose `name` matches the
        glob; with an index over `after`; at most `limit` of them. Raises NotFound.
        """
        self.status(job_id)
        wanted = Filter(label=label, below=below, errors=errors, name=name)
        return stream_predictions(self.ledger, job_id, wanted, after=after, limit=limit)

    def models(self) -> list[Model]:
        """All models, newest first."""
        with self.ledger.reading() as connection:
            return list_models(connection)

    def close(self) -> None:
        """Gives the connections back."""
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
