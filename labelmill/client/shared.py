"""The client's methods that are the same whether it uses the ledger or the HTTP API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Self, Unpack

from jobs.errors import SourceError, UserError
from jobs.ledger.jobs.queries import JobStatus
from jobs.options import JobKeywords
from jobs.reading import too_large
from jobs.settings import Settings
from producer.follow import follow
from producer.sources import SourceImage, Sources

if TYPE_CHECKING:
    from jobs.ledger.jobs.outcomes import Prediction
    from jobs.ledger.learning.corrections import Correction
    from labelmill.labels.correction_files import CorrectionRequest
    from producer.submit import Submitted


class CommonMethods(ABC):
    """Methods that need only `submission`, `status`, `predictions`, `undo_all` and `close`."""

    settings: Settings

    @abstractmethod
    def submission(self, *args: Any, **kwargs: Any) -> Submitted:
        """Submit images as one job."""

    @abstractmethod
    def status(self, job_id: str) -> JobStatus:
        """Return the job's state, counts, model, rate (images per second) and times. Raises NotFound."""

    @abstractmethod
    def predictions(self, job_id: str) -> Iterator[Prediction]:
        """Yield the job's predictions in index order. Raises NotFound."""

    @abstractmethod
    def undo_all(self, requests: Iterable[CorrectionRequest]) -> list[Correction]:
        """Take back what `correct_all` stored of these, and return it."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self,
        *sources: str | PathLike[str] | bytes,
        by_reference: bool = False,
        stdin: Iterable[str] | None = None,
        on_progress: Callable[[int], None] = lambda _images: None,
        **options: Unpack[JobKeywords],
    ) -> str:
        """Submit images as one job and return the job's id.

        Each source is a file, a folder (with everything below it), a glob, a ZIP or TAR archive, a manifest
        (`.csv`, `.jsonl`, `.parquet`), an MNIST IDX file, a URL such as `s3://bucket/photos/`, `-` for the
        paths and URLs that `stdin` yields, or the bytes of one image file. Bytes at position n (from 0)
        become the image `image-n`.

        `options` are the fields of `jobs.options.JobOptions`, such as `key`, `model` and `dataset`. Raises
        SourceError for a source of any other type, or for bytes together with `by_reference`. For the other
        arguments and errors, see `submission`. Examples::

            client.submit("photos/", "more.zip", key="june")
            client.submit(response.content)
        """
        images = self._images(sources, stdin=stdin, by_reference=by_reference)
        return self.submission(images, by_reference=by_reference, on_progress=on_progress, **options).job_id

    def sources(
        self, sources: Iterable[str | PathLike[str]], *, stdin: Iterable[str] | None = None
    ) -> Sources:
        """Return the images of these sources, to pass to `submission`.

        The images are read during iteration. Raises SourceError if a source does not exist or cannot be read,
        Unavailable if a URL cannot be reached.
        """
        return Sources(
            [fspath(source) for source in sources],
            stdin=stdin,
            max_bytes=self.settings.max_image_bytes,
            archives=self.settings.archive_limits,
            private_hosts=self.settings.private_hosts,
        )

    def follow(self, job_id: str, *, timeout: float | None = None) -> Iterator[JobStatus]:
        """Yield the job's status repeatedly until the job has finished.

        Raises NotFound, and NotFinished after `timeout` seconds; the job continues in any case.
        """
        return follow(self.status, job_id, timeout=timeout)

    def wait(self, job_id: str, *, timeout: float | None = None) -> JobStatus:
        """Wait until the job has finished, and return its final status.

        Raises NotFound, and NotFinished after `timeout` seconds; the job continues in any case.
        """
        for status in self.follow(job_id, timeout=timeout):
            if status.finished:
                break
        return status

    def undo_from(
        self,
        lines: Iterable[str],
        *,
        jsonl: bool = False,
        job_id: str | None = None,
        confirm_unchanged: bool = False,
    ) -> list[Correction]:
        """Take back what `correct_from` stored with the same arguments, and return it.

        Corrections that have a different label by now stay. Raises UserError with one line for each wrong
        row.
        """
        from labelmill.labels.correction_files import collect, requests_in, summarize_problems

        found = collect(
            requests_in(
                lines, self.predictions, jsonl=jsonl, job_id=job_id, confirm_unchanged=confirm_unchanged
            )
        )
        if found.problems:
            raise UserError(summarize_problems(found.problems))
        return self.undo_all(found.requests.values())

    def _images(
        self,
        sources: tuple[str | PathLike[str] | bytes, ...],
        *,
        stdin: Iterable[str] | None,
        by_reference: bool,
    ) -> Iterable[SourceImage]:
        """Return the images of paths, URLs and bytes, in order. Raises SourceError."""
        for source in sources:
            if not isinstance(source, (str, PathLike, bytes)):
                raise SourceError(
                    f"Cannot submit a {type(source).__name__}: pass paths, URLs, or the bytes of image files "
                    "(PNG, JPEG, ...), each as one argument. submit(*paths) passes a list."
                )
        if not any(isinstance(source, bytes) for source in sources):
            return self.sources([source for source in sources if not isinstance(source, bytes)], stdin=stdin)
        if by_reference:
            raise SourceError(
                "Bytes cannot be submitted by reference: pass the image's path or URL, or leave out "
                "by_reference."
            )
        limit = self.settings.max_image_bytes
        found: list[Iterable[SourceImage]] = []
        for place, source in enumerate(sources):
            if not isinstance(source, bytes):
                found.append(self.sources([source], stdin=stdin))
            elif len(source) > limit:
                found.append([SourceImage(f"image-{place}", None, too_large(limit))])
            else:
                found.append([SourceImage(f"image-{place}", source, None)])
        return _OneAfterTheOther(found)


class _OneAfterTheOther:
    """The images of several sources, which can be read again like those of one."""

    def __init__(self, sources: list[Iterable[SourceImage]]) -> None:
        self._sources = sources

    def __iter__(self) -> Iterator[SourceImage]:
        return chain.from_iterable(self._sources)
