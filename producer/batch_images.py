"""The images of a batch, in a fixed order: those of an uploaded file, or below a URL."""
# Paths are strings, as in `producer.sources`.
# ruff: noqa: PTH112

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice

from jobs.errors import ImageError, NotFound, PayloadDamaged, SourceError
from jobs.ledger import Ledger
from jobs.ledger.api.batches import Intake, last_chunk, read_urls
from jobs.ledger.api.files import File, get_file
from jobs.network.objects import is_url, local_path, shown_url
from jobs.network.references import Roots
from jobs.settings import Settings
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from jobs.text import storable
from producer.sources import SourceImage, Sources
from producer.sources.files import shown
from producer.sources.image import Reading, Turn, check_name_length
from producer.sources.manifest import Manifest
from producer.sources.readers import file_reader
from producer.sources.remote import read_remote
from producer.sources.rows import is_manifest
from producer.sources.tars import is_packed, read_packed


@contextmanager
def batch_images(
    ledger: Ledger, store: Store, settings: Settings, intake: Intake, turn: Turn
) -> Iterator[Iterator[SourceImage]]:
    """Open the source of a batch, and provide the images that its job does not have yet.

    Raises SourceError if it cannot be read as a whole, also from the iterator; Unavailable; TurnOver.
    """
    with ledger.reading() as connection:
        urls = read_urls(connection, intake.job_id)
    if urls is not None:
        rows = "".join(f"{json.dumps({'url': url})}\n" for url in urls)
        found = _images_of_manifest(rows.encode(), "urls.jsonl", settings, turn, skip=intake.images)
        yield _in_turn(found, turn)
        return
    if intake.file_id is None:
        url = str(intake.request.get("source_url", ""))
        if not intake.images:
            yield _in_turn(_images_below(url, settings, turn, skip=0), turn)
        else:  # begin with the last image taken, to check that it is the same
            found = _images_below(url, settings, turn, skip=intake.images - 1)
            yield _in_turn(_continued(found, _last_name(ledger, store, intake.job_id)), turn)
        return
    with ledger.reading() as connection:
        try:
            file = get_file(connection, intake.file_id)
        except NotFound:
            raise SourceError(
                "The uploaded file was deleted before its images were read: upload it again."
            ) from None
    with ExitStack() as stack:
        try:
            path = stack.enter_context(store.local_copy(file.key))
        except FileNotFoundError:
            raise SourceError(f"{file.name} is missing from the store: upload it again.") from None
        yield _in_turn(_images_of_file(str(path), file, settings, turn, skip=intake.images), turn)


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
