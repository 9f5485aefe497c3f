"""Take in the images of batches: jobs that were committed over HTTP before their images were read.

A batch is claimed under a lease (`jobs.ledger.api.batches`). Its images come in a fixed order, so a process
that continues after another one skips as many as are in the ledger: each image is taken exactly once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sqlalchemy.engine import Connection

from jobs.errors import Conflict, LeaseLost, NotFound, PayloadDamaged, SourceError, Stopped, Unavailable
from jobs.ledger import Ledger
from jobs.ledger.api.batches import (
    Batch,
    Intake,
    claim_intake,
    delete_input,
    fail_intake,
    finish_intake,
    hold_intake,
    is_batch_free,
    is_held,
    note_progress,
    postpone_intake,
    release_intake,
)
from jobs.ledger.api.files import file_key, known_files
from jobs.ledger.jobs.shadows import shadow_job
from jobs.ledger.jobs.submission import add_chunk, seal_job, touch_job
from jobs.options import JobOptions
from jobs.queue import Publisher
from jobs.settings import Settings
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from producer.batch_images import BatchReader
from producer.chunking import choose_priority, chunks_of, enforce_limits, store_payload
from producer.heartbeat import ProducerHeartbeat
from producer.sources.image import Turn, TurnOver

logger = logging.getLogger(__name__)

#: Batches that a process takes in at the same time. Each may hold about 100 MB, and most wait for a network.
SEATS: Final = 4

#: How long a batch has its seat at least, if another project waits for one: longer than a link may take, so
#: that each turn adds an image.
SEAT_SECONDS: Final = 45.0

#: A batch fails when no link has answered for this long. A link takes up to 41 seconds, and 32 are read at a
#: time: so more than 400 have failed in a row, and the others will hardly do better.
MAX_UNANSWERED_SECONDS: Final = 600.0

#: Seconds between two looks for a batch that waits.
_POLL_SECONDS: Final = 0.5

#: How long threads may take to release their batches when the process is stopped.
_STOP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Seat:
    """A batch that is being taken in, by a thread."""

    intake: Intake
    turn: Turn
    thread: threading.Thread
    began: float = field(default_factory=time.monotonic)


class IntakeProcess:
    """Takes in batches of several projects at the same time, one of each.

    So a project whose links do not answer keeps no other one waiting. If more projects wait than there are
    seats, they take turns.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        make_publisher: Callable[[], Publisher],
        settings: Settings,
        *,
        owner: str,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._settings = settings
        self._owner = owner
        self._seats: list[_Seat] = []
        #: A publisher is used by one thread at a time.
        self._publishers = [make_publisher() for _ in range(SEATS)]
        self._ended = threading.Event()  # set when a seat has become free

    def run(self, stop: threading.Event) -> None:
        """Take in all batches, until `stop` is set, which may happen in a signal handler.

        Raises LabelmillError.
        """
        while not stop.is_set():  # not `wait`: it has a lock that the handler needs
            try:
                while self.begin_next():
                    pass
            except Unavailable as error:
                logger.warning("no batch can be claimed: %s", error)
            self._ended.wait(_POLL_SECONDS)
            self._ended.clear()

    def begin_next(self) -> bool:
        """Begin to take in the next batch of a project that has no seat. Return False if there is none.

        If one waits and no seat is free, the batch that has had its seat for longest gives it up.
        """
        self._seats = [seat for seat in self._seats if seat.thread.is_alive()]
        busy = [seat.intake.project for seat in self._seats]
        with self._ledger.reading() as connection:  # a transaction would lock SQLite
            if not is_batch_free(connection, busy=busy):
                return False
        if len(self._seats) == SEATS:
            if time.monotonic() - self._seats[0].began >= SEAT_SECONDS:
                self._seats[0].turn.over.set()
            return False
        with self._ledger.transaction() as connection:
            intake = claim_intake(connection, owner=self._owner, busy=busy)
        if intake is None:
            return False
        turn = begin_turn(intake)
        # A daemon, so that a server that does not answer cannot keep the process alive.
        thread = threading.Thread(target=self._take_in, args=(intake, turn), name="intake", daemon=True)
        self._seats.append(_Seat(intake, turn, thread))
        thread.start()
        return True

    def _take_in(self, intake: Intake, turn: Turn) -> None:
        publisher = self._publishers.pop()
        try:
            take_in(self._ledger, self._store, publisher.reset(), self._settings, intake, turn)
        except Exception:  # the claim runs out, and the attempt counts
            logger.exception("batch %s could not be taken in", intake.job_id)
        finally:
            self._publishers.append(publisher)
            self._ended.set()

    def close(self) -> None:
        """Release all batches, and wait a few seconds for that. Their next process continues."""
        for seat in self._seats:
            seat.turn.over.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for seat in self._seats:
            seat.thread.join(max(0.0, deadline - time.monotonic()))
        for publisher in self._publishers:
            publisher.close()


def begin_turn(intake: Intake) -> Turn:
    """Return the turn of a claimed batch. Who sets its event `over` ends it."""
    return Turn(unanswered=intake.unanswered, max_unanswered=MAX_UNANSWERED_SECONDS)


def take_in(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, intake: Intake, turn: Turn
) -> None:
    """Take in the images of a claimed batch until its turn is over.

    Images that cannot be read become errors of their own. If the source as a whole cannot be read, the batch
    fails with the reason. If something is unavailable, the batch is postponed.
    """
    logger.info("taking in batch %s", intake.job_id, extra={"job": intake.job_id})
    touch, look = partial(_touch, intake=intake), partial(is_held, intake=intake)
    heartbeat = ProducerHeartbeat(ledger, touch, look=look, stopped=turn.over)
    heartbeat.begin()
    try:
        _take_in_or_fail(ledger, store, publisher, settings, intake, turn)
    except LeaseLost:
        logger.warning("batch %s was claimed by another process", intake.job_id)
    except Unavailable as error:
        logger.warning("batch %s waits: %s", intake.job_id, error)
        with suppress(LeaseLost, Unavailable), ledger.transaction() as connection:
            postpone_intake(connection, intake, str(error))
    finally:
        heartbeat.end()


def _take_in_or_fail(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, intake: Intake, turn: Turn
) -> None:
    """Take in the batch, or let it fail if its source cannot be read. Raises LeaseLost, Unavailable."""
    try:
        _take_in(ledger, store, publisher, settings, intake, turn)
    except (SourceError, Conflict, NotFound, PayloadDamaged) as error:  # after SourceError: of a retry
        with ledger.transaction() as connection:
            fail_intake(connection, intake, str(error))
    except Stopped:  # cancelled, or failed with too many errors
        with ledger.transaction() as connection:
            finish_intake(connection, intake)
            delete_input(connection, intake.request, intake.file_id)
    except TurnOver:
        with ledger.transaction() as connection:
            if turn.is_in_vain:
                minutes = turn.max_unanswered / 60
                why = f"No server of its links has answered for {minutes:g} minutes: check the other links"
                fail_intake(connection, intake, f"{why}, and submit them as a new batch.")
            elif touch_job(connection, intake.job_id):
                release_intake(connection, intake, unanswered=turn.unanswered)
                return
            else:  # it was stopped
                finish_intake(connection, intake)
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


def _take_in(
    ledger: Ledger, store: Store, publisher: Publisher, settings: Settings, intake: Intake, turn: Turn
) -> None:
    try:
        check_store(ledger, store)
    except Conflict as error:  # this process is set up wrongly: another one may take the batch in
        raise Unavailable(str(error)) from None
    options = JobOptions.from_request(intake.request)
    batch = Batch(intake.job_id, intake.request, intake.file_id)
    total = intake.images
    with closing(BatchReader(ledger, store, settings, turn).items(batch, skip=total)) as items:
        chunks = chunks_of(items, settings.chunk_images)
        for chunk in enforce_limits(settings.job_limits, chunks, total):
            priority = choose_priority(options.priority, chunk, first=total == 0)
            row = store_payload(store, intake.job_id, total, chunk, priority)
            with ledger.transaction() as connection:
                note_progress(connection, intake, unanswered=turn.unanswered)
                add_chunk(connection, intake.job_id, row, chunk.labels)
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
