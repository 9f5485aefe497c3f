"""The images of a batch, in a fixed order: of an uploaded file, below a URL, or without a label in a job."""
# Paths are strings, as in `producer.sources`.
# ruff: noqa: PTH112

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice

from jobs.errors import ImageError, NotFound, PayloadDamaged, SourceError
from jobs.ledger import Ledger
from jobs.ledger.api.batches import FAILED_ONLY, Batch, find_unread, last_chunk, read_urls
from jobs.ledger.api.files import File, get_file
from jobs.ledger.jobs.queries import Unlabelled, check_not_purged, images_without_label, job_status
from jobs.ledger.learning.known_labels import manifest_labels
from jobs.network.objects import is_url, local_path, shown_url
from jobs.network.references import Reference, Roots
from jobs.settings import Settings
from jobs.storage.payloads import Payload, read_payload
from jobs.storage.store import Store
from jobs.text import storable
from producer.chunking import Item, items_of
from producer.sources import SourceImage, SourceImages, Sources
from producer.sources.files import shown
from producer.sources.image import Reading, Turn, check_name_length
from producer.sources.manifest import Manifest
from producer.sources.readers import file_reader
from producer.sources.remote import read_remote
from producer.sources.rows import is_manifest
from producer.sources.tars import is_packed, read_packed


@dataclass(frozen=True, slots=True)
class BatchReader:
    """Reads the images of batches, each batch in a fixed order, until its turn is over."""

    ledger: Ledger
    store: Store
    settings: Settings
    turn: Turn = field(default_factory=Turn)

    def items(
        self, batch: Batch, *, skip: int, known_by: str | None = None
    ) -> Generator[Item | SourceImages, None, None]:
        """Yield the images of a batch, except the first `skip`, of which `known_by`, a job, has the last one.

        By default that is the batch's own job. Raises SourceError if the source cannot be read as a whole,
        TurnOver, Unavailable, and what `items_to_retry` raises.
        """
        with self.ledger.reading() as connection:
            retry_of = job_status(connection, batch.job_id).retry_of
        if retry_of is not None:
            failed_only = bool(batch.request.get(FAILED_ONLY))
            yield from self.items_to_retry(batch.job_id, retry_of, failed_only=failed_only, skip=skip)
            return
        by_reference = Roots(self.settings.reference_roots) if batch.request.get("by_reference") else None
        with self._images(batch, skip, known_by or batch.job_id) as images:
            yield from items_of(_in_turn(images, self.turn), by_reference)

    def items_to_retry(
        self, retry_id: str, job_id: str, *, failed_only: bool, skip: int = 0
    ) -> Iterator[Item | SourceImages]:
        """Yield the images of a finished job that got no label, as its payloads have them, except the first.

        An image that could not be read comes with its error again. If the job was stopped before all its
        images were read, the rest of its source follows, except with `failed_only`. `retry_id` is the job
        that has the first `skip` of these images. Raises Conflict if the job is purged meanwhile or if its
        source is gone, PayloadDamaged, and what `items` raises.
        """
        with self.ledger.reading() as connection:
            status = job_status(connection, job_id)
            unread = None if failed_only else find_unread(connection, status)
        for chunk in images_without_label(self.ledger, job_id, failed_only=failed_only):
            places, skip = chunk.places[skip:], max(0, skip - len(chunk.places))
            if not places:
                continue
            names, contents = self._payload(job_id, chunk)
            with self.ledger.reading() as connection:
                indices = [chunk.first_index + place for place in places]
                labels = manifest_labels(connection, job_id, indices)
            for place in places:
                content = contents[place]
                url = content.url if isinstance(content, Reference) else None
                yield names[place], content, url, labels.get(chunk.first_index + place)
                self.turn.check()
        if unread is not None:
            known_by = retry_id if skip else job_id
            yield from self.items(unread, skip=status.total + skip, known_by=known_by)

    def _payload(self, job_id: str, chunk: Unlabelled) -> Payload:
        try:
            payload = read_payload(self.store, chunk.payload, chunk.payload_digest)
            return payload.part(chunk.payload_offset, chunk.images)
        except PayloadDamaged:
            # If the payload was just purged, report that instead of damage.
            with self.ledger.reading() as connection:
                check_not_purged(connection, job_id)
            raise

    @contextmanager
    def _images(self, batch: Batch, skip: int, known_by: str) -> Iterator[Iterator[SourceImage]]:
        """Open the URLs, the folder or the uploaded file of a batch, and provide its images."""
        with self.ledger.reading() as connection:
            urls = read_urls(connection, batch.job_id)
        if urls is not None:
            rows = "".join(f"{json.dumps({'url': url})}\n" for url in urls)
            yield _images_of_manifest(rows.encode(), "urls.jsonl", self.settings, self.turn, skip=skip)
            return
        if batch.file_id is None:
            url = str(batch.request.get("source_url", ""))
            if not skip:
                yield _images_below(url, self.settings, self.turn, skip=0)
            else:  # begin with the last image taken, to check that it is the same
                found = _images_below(url, self.settings, self.turn, skip=skip - 1)
                yield _continued(found, _last_name(self.ledger, self.store, known_by))
            return
        with self.ledger.reading() as connection:
            try:
                file = get_file(connection, batch.file_id)
            except NotFound:
                raise SourceError(
                    "The uploaded file was deleted before its images were read: upload it again."
                ) from None
        with ExitStack() as stack:
            try:
                path = stack.enter_context(self.store.local_copy(file.key))
            except FileNotFoundError:
                raise SourceError(f"{file.name} is missing from the store: upload it again.") from None
            yield _images_of_file(str(path), file, self.settings, self.turn, skip=skip)


def _in_turn(images: Iterator[SourceImage], turn: Turn) -> Iterator[SourceImage]:
    """Yield the images until the turn is over. Raises TurnOver."""
    for image in images:
        yield image
        turn.check()


def _images_of_file(
    path: str, file: File, settings: Settings, turn: Turn, *, skip: int
) -> Iterator[SourceImage]:
    """Return the images of an uploaded file under their owner's names, except the first ones."""
    if is_manifest(file.name):
        return _images_of_manifest(path, file.name, settings, turn, skip=skip)
    return islice(_members(path, file, settings), skip, None)


def _images_of_manifest(
    file: str | bytes, name: str, settings: Settings, turn: Turn, *, skip: int
) -> Iterator[SourceImage]:
    """Return the images that a manifest names, except the first ones."""
    manifest = Manifest(
        file,
        name,
        settings.max_image_bytes,
        roots=Roots(settings.reference_roots),
        private_hosts=settings.private_hosts,
        max_rows=settings.max_job_images,
        turn=turn,
    )
    manifest.check()
    return manifest.images(skip)


def _members(path: str, file: File, settings: Settings) -> Iterator[SourceImage]:
    """Yield the images of an uploaded file: of an archive, those of its members."""
    inside = f"{shown(path)}/"
    try:
        if is_packed(path):  # a job's own limits bound its members
            limits = replace(settings.archive_limits, max_members=sys.maxsize)
            yield from read_packed(path, max_bytes=settings.max_image_bytes, limits=limits)
            return
        reading = Reading(settings.max_image_bytes, settings.archive_limits)
        for image in map(check_name_length, file_reader(path, file.name, reading)(path, reading)):
            name = image.name
            name = name.removeprefix(inside) if name.startswith(inside) else file.name
            yield image._replace(name=name, url=None)
    except SourceError as error:
        # Its message names our own path.
        raise SourceError(str(error).replace(shown(path), file.name)) from None


def _images_below(url: str, settings: Settings, turn: Turn, *, skip: int) -> Iterator[SourceImage]:
    """Yield the images below a URL, except the first `skip`. Their names begin after the URL.

    Raises SourceError, Unavailable.
    """
    try:
        Roots(settings.reference_roots).check_folder(url)  # the setting may have changed since the request
    except ImageError as error:
        raise SourceError(f"{shown_url(url)} cannot be read: {error.detail}.") from None
    source = local_path(url)
    if is_url(source):
        source = f"{source.rstrip('/')}/"
        prefix = storable(shown_url(source))
        reading = Reading(settings.max_image_bytes, settings.archive_limits, turn)
        found: Iterator[SourceImage] = map(check_name_length, read_remote(source, reading, skip=skip))
    elif os.path.isdir(source):
        prefix = f"{shown(source).rstrip('/')}/"
        found = islice(Sources([source], max_bytes=settings.max_image_bytes), skip, None)
    else:
        raise SourceError(f"{shown_url(url)} is not a folder: name one, or name each image in `urls`.")
    for image in found:
        yield image._replace(name=image.name.removeprefix(prefix))


def _continued(found: Iterator[SourceImage], last_name: str) -> Iterator[SourceImage]:
    """Yield all images but the first. Raises SourceError if the first has another name."""
    first = next(found, None)
    if first is None or first.name != last_name:
        raise SourceError(
            "Files below source_url were added or removed while they were read: create the batch again."
        )
    yield from found


def _last_name(ledger: Ledger, store: Store, job_id: str) -> str:
    """Return the name of the job's last image. Raises SourceError if it cannot be read."""
    with ledger.reading() as connection:
        chunk = last_chunk(connection, job_id)
    try:
        payload = read_payload(store, chunk.payload, chunk.payload_digest)
        return payload.part(chunk.payload_offset, chunk.images).names[-1]
    except PayloadDamaged as error:
        raise SourceError(str(error)) from None
