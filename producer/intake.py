"""Take in the images of batches: jobs that were committed over HTTP before their images were read.

A batch is claimed under a lease (`jobs.ledger.api.batches`). Its images come in a fixed order, so a process
that continues after another one skips as many as are in the ledger: each image is taken exactly once.
"""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from functools import partial
from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import Conflict, LeaseLost, SourceError, Stopped, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.api.batches import (
    Intake,
    claim_intake,
    delete_input,
    finish_intake,
    hold_intake,
    is_batch_open,
    release_intake,
)
from jobs.ledger.api.files import file_key, known_files
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.shadows import shadow_job
from jobs.ledger.jobs.submission import add_chunk, seal_job, touch_job
from jobs.network.references import Roots
from jobs.options import JobOptions
from jobs.queue import Publisher
from jobs.schema import JobState
from jobs.settings import Settings
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from producer.batch_images import batch_images
from producer.chunking import choose_priority, chunks_of, enforce_limits, items_of, store_payload
from producer.heartbeat import ProducerHeartbeat

logger = logging.getLogger(__name__)

#: A batch whose store or ledger was unavailable is claimed again after so many seconds.
_RETRY_SECONDS: Final = 5.0


def take_in_next(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, *, owner: str
) -> bool:
    """Take in the images of the next batch that waits. Return False if none waits.

    Images that cannot be read become errors of their own. If the source as a whole cannot be read, the batch
    fails with the reason. Raises Unavailable; the batch is then claimed again some seconds later.
    """
    with ledger.reading() as connection:  # usually there is none, and a transaction would lock SQLite
        if not is_batch_open(connection):
            return False
    with ledger.transaction() as connection:
        intake = claim_intake(connection, owner=owner)
    if intake is None:
        return False
    logger.info("taking in batch %s", intake.job_id, extra={"job": intake.job_id})
    heartbeat = ProducerHeartbeat(ledger, partial(_touch, intake=intake))
    heartbeat.begin()
    try:
        _take_in_or_fail(ledger, store, publisher, settings, intake)
    except LeaseLost:
        logger.warning("batch %s was claimed by another process", intake.job_id)
    except (Unavailable, KeyboardInterrupt) as error:
        # The signal may have interrupted the end of a transaction. The traceback's frames then keep it open.
        traceback.clear_frames(error.__traceback__)
        heartbeat.end()  # the thread may be waiting for that transaction
        seconds = _RETRY_SECONDS if isinstance(error, Unavailable) else 0.0
        with suppress(LeaseLost, Unavailable), ledger.transaction() as connection:
            release_intake(connection, intake, seconds=seconds)
        raise
    finally:
        heartbeat.end()
    return True


def _take_in_or_fail(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, intake: Intake
) -> None:
    """Take in the batch, or let it fail if its source cannot be read. Raises LeaseLost, Unavailable."""
    try:
        _take_in(ledger, store, publisher, settings, intake)
    except (Stopped, SourceError) as error:  # Stopped: cancelled, or failed with too many errors
        with ledger.transaction() as connection:
            finish_intake(connection, intake)
            if isinstance(error, SourceError):
                end_job(connection, intake.job_id, JobState.FAILED, error=str(error))
            delete_input(connection, intake.request, intake.file_id)
    if intake.request.get("delete_input") and intake.file_id is not None:
        with ledger.reading() as connection:
            is_deleted = not known_files(connection, [intake.file_id])
        if is_deleted:  # if this process is killed before, a purge removes the bytes
            store.remove(file_key(intake.file_id))


def _touch(connection: Connection, *, intake: Intake) -> bool:
    """Renew the claim. Return False if it is lost or the job was stopped."""
    try:
        hold_intake(connection, intake)
    except LeaseLost:
        return False
    return touch_job(connection, intake.job_id)


def _take_in(ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, intake: Intake) -> None:
    try:
        check_store(ledger, store)
    except Conflict as error:  # this process is set up wrongly: another one may take the batch in
        raise Unavailable(str(error)) from None
    options = JobOptions.from_request(intake.request)
    by_reference = Roots(settings.reference_roots) if intake.request.get("by_reference") else None
    with batch_images(ledger, store, settings, intake) as images:
        chunks = enforce_limits(
            settings.job_limits,
            chunks_of(items_of(images, by_reference), settings.chunk_images),
            intake.images,
        )
        total = intake.images
        for chunk in chunks:
            priority = choose_priority(options.priority, chunk, first=total == 0)
            row = store_payload(store, intake.job_id, total, chunk, priority)
            with ledger.transaction() as connection:
                hold_intake(connection, intake, progress=True)
                add_chunk(connection, intake.job_id, row)
                if chunk.is_last:
                    _finish(connection, intake, settings)
            total += row.images
            publisher.wake_up()
            if chunk.is_last:
                return
    if not total:
        raise SourceError("The source contains no images: name another one.")
    with ledger.transaction() as connection:  # the process before was killed after the last image
        _finish(connection, intake, settings)


def _finish(connection: Connection, intake: Intake, settings: Settings) -> None:
    finish_intake(connection, intake)
    seal_job(connection, intake.job_id, fingerprint=None)
    delete_input(connection, intake.request, intake.file_id)
    shadow_job(connection, intake.job_id, share=settings.shadow_share)
