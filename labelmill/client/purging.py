"""Remove old data, in an order that allows a purge to be killed at any point and run again.

A job's row says that its payloads are gone before the first file is removed. If files of such a job remain,
the next purge removes them. A job that is removed as a whole loses its chunks first, then its predictions in
parts, and its row last. If a job still has chunks, its readers know that no prediction is missing. On
PostgreSQL, the predictions of a week are removed at once if its last job can soon be purged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from jobs.errors import Conflict, Unavailable
from jobs.ids import id_seconds, is_id
from jobs.ledger import Ledger
from jobs.ledger.api.audit import old_entries
from jobs.ledger.api.deliveries import old_deliveries
from jobs.ledger.api.files import FILES, file_key, known_files
from jobs.ledger.database import batched
from jobs.ledger.jobs.control import could_be_settled, shadows_of, still_claimed
from jobs.ledger.jobs.queries import JobStatus, job_status
from jobs.ledger.maintenance import (
    count_predictions,
    delete_job,
    delete_rows,
    finished_jobs,
    mark_purged,
    payload_owners,
    record_purge,
)
from jobs.ledger.partitions import Partition, empty_partition, partitions_to_empty, partitions_to_leave
from jobs.models.dataset import DATASETS
from jobs.schema import JOB_PLACES, predictions
from jobs.storage.payloads import PAYLOADS, payload_folder
from jobs.storage.store import Store
from labelmill.datasets.removing import stray_folders
from labelmill.labels.image_copies import remove_copies, stray_copies

#: Payloads that no job names are kept this long, because their producer may be about to name them. The same
#: applies to copies of images that no correction names.
_STRAY_SECONDS: Final = 24 * 3600

#: Webhooks that were sent, or given up, are listed for so long.
_DELIVERY_DAYS: Final = 30

#: How many folders one statement looks up in the ledger.
_PAGE_FOLDERS: Final = 500


@dataclass
class Purged:
    """What a purge has removed; in a dry run, what it would remove."""

    #: Jobs whose payloads were removed, including jobs removed as a whole.
    payloads: int = 0
    #: Jobs removed as a whole.
    jobs: int = 0
    #: Predictions of the jobs removed as a whole.
    predictions: int = 0
    #: Folders and files that nothing needed, left by an interrupted purge, submission, upload or adding.
    strays: int = 0
    #: Copies of images that no correction needed, left by an interrupted correction or undo.
    copies: int = 0
    #: Rows of webhooks that were sent, or given up, long ago.
    deliveries: int = 0
    #: Old entries of the audit.
    audit: int = 0
    #: The size of all removed payloads.
    bytes: int = 0
    #: Ids of jobs that are old enough, but were kept because a worker still has a chunk of them.
    in_work: list[str] = field(default_factory=list)


class Purge:
    """One pass over the ledger and the store."""

    def __init__(
        self, ledger: Ledger, store: Store, *, dry_run: bool, on_progress: Callable[[Purged], None]
    ) -> None:
        """With `dry_run`, only count. `on_progress` is called after each step with the totals so far."""
        self.purged = Purged()
        self._ledger = ledger
        self._store = store
        self._dry_run = dry_run
        self._on_progress = on_progress
        self._seen: set[str] = set()
        self._left: list[Partition] = []

    @property
    def done(self) -> int:
        """The number of purged jobs, and of folders and copies that nothing needed."""
        return len(self._seen) - len(self.purged.in_work) + self.purged.strays + self.purged.copies

    def whole_jobs(self, *, days: float) -> None:
        """Remove jobs that finished more than this many days ago, with everything that belongs to them.

        Raises Unavailable.
        """
        with self._ledger.reading() as connection:
            job_ids = finished_jobs(connection, days=days)
            self._left = partitions_to_leave(connection, days=days)
        for job_id in job_ids:
            self._purge_job(job_id)
        if not self._dry_run:
            self._empty_partitions()

    def one_job(self, job_id: str) -> None:
        """Remove this job with everything that belongs to it, whenever it finished.

        Raises NotFound; Conflict if it has not finished or a worker still has images of it; Unavailable.
        """
        status = self._status(job_id)
        if not status.finished:
            raise Conflict(
                f"Job {job_id} has not finished, it is {status.state}: stop it first, "
                f"`labelmill cancel {job_id}`."
            )
        if not self._purge_job(job_id):
            self._status(job_id)  # raises NotFound if another purge has removed it
            raise still_claimed(job_id)

    def payloads(self, *, days: float) -> None:
        """Remove the payloads of jobs that finished more than this many days ago. Raises Unavailable."""
        with self._ledger.reading() as connection:
            job_ids = finished_jobs(connection, days=days, with_payloads=True)
        for job_id in job_ids:
            if job_id not in self._seen:
                self._purge_payloads(job_id)

    def strays(self) -> None:
        """Remove payloads that no job needs, images of no dataset, and copies that no correction needs.

        Killed processes leave them behind. Raises Unavailable.
        """
        oldest = time.time() - _STRAY_SECONDS
        self._stray_payloads(oldest)
        self._stray_files(oldest)
        for dataset in self._store.folders(DATASETS):
            for key in stray_folders(self._ledger, self._store, dataset):
                self._remove_stray(key)
        for names in stray_copies(self._ledger, self._store, before=oldest):
            if not self._dry_run:
                remove_copies(self._ledger, self._store, names)
            self.purged.copies += len(names)
            self._on_progress(self.purged)

    def deliveries(self) -> None:
        """Remove the rows of webhooks that ended more than 30 days ago. Raises Unavailable."""
        with self._ledger.transaction() as connection:
            self.purged.deliveries = old_deliveries(connection, days=_DELIVERY_DAYS, delete=not self._dry_run)
        self._on_progress(self.purged)

    def audit(self) -> None:
        """Remove the entries of the audit that are older than 90 days. Raises Unavailable."""
        with self._ledger.transaction() as connection:
            self.purged.audit = old_entries(connection, delete=not self._dry_run)
        self._on_progress(self.purged)

    def record(self, options: Mapping[str, Any]) -> None:
        """Record in the ledger what this purge has removed so far, if anything. Raises Unavailable."""
        if not self._dry_run and self.purged != Purged(in_work=self.purged.in_work):
            with self._ledger.transaction() as connection:
                record_purge(connection, options, asdict(self.purged))

    def _stray_payloads(self, oldest: float) -> None:
        # Folders are listed before rows are read: a listed folder has its job's row by then, or is young.
        folders = [name for name in self._store.folders(PAYLOADS) if is_id(name)]
        for start in range(0, len(folders), _PAGE_FOLDERS):
            page = folders[start : start + _PAGE_FOLDERS]
            with self._ledger.reading() as connection:
                owners = payload_owners(connection, page)
            for name in page:
                if owners.get(name, id_seconds(name) < oldest):
                    self._remove_stray(payload_folder(name))

    def _stray_files(self, oldest: float) -> None:
        """Remove uploaded files that have no row, or never got their name."""
        names = self._store.files(FILES)
        with self._ledger.reading() as connection:
            known = {name for some in batched(names) for name in known_files(connection, some)}
        for name in names:
            if name not in known and (self._store.written_at(file_key(name)) or oldest) < oldest:
                if not self._dry_run:
                    self._store.remove(file_key(name))
                self.purged.strays += 1
                self._on_progress(self.purged)

    def _remove_stray(self, key: str) -> None:
        self._remove_folder(key)
        self.purged.strays += 1
        self._on_progress(self.purged)

    def _status(self, job_id: str) -> JobStatus:
        """Return the job's status. Raises NotFound."""
        with self._ledger.reading() as connection:
            return job_status(connection, job_id)

    def _purge_job(self, job_id: str) -> bool:
        """Remove the job. Return False if a worker still has a chunk of it."""
        free = self._purge_payloads(job_id)
        if free:
            self._delete_job_rows(job_id)
            self.purged.jobs += 1
            self._on_progress(self.purged)
        return free

    def _purge_payloads(self, job_id: str) -> bool:
        """Remove the job's payloads. Return False if a worker still has a chunk of it."""
        self._seen.add(job_id)
        if self._dry_run:
            with self._ledger.reading() as connection:
                free = could_be_settled(connection, job_id)
        else:
            with self._ledger.transaction() as connection:
                free = mark_purged(connection, job_id)
        if not free:
            self.purged.in_work.append(job_id)
        elif self._remove_folder(payload_folder(job_id)):
            self.purged.payloads += 1
            self._on_progress(self.purged)
        return free

    def _remove_folder(self, key: str) -> int:
        """Remove a folder from the store. Return its size in bytes."""
        size = self._store.folder_bytes(key)
        if not self._dry_run:
            self._store.remove_folder(key)
        self.purged.bytes += size
        return size

    def _delete_job_rows(self, job_id: str) -> None:
        with self._ledger.reading() as connection:
            shadows = shadows_of(connection, job_id)
        left = sum(self._delete_results(each) for each in (*shadows, job_id))
        if not self._dry_run:
            with self._ledger.transaction() as connection:
                deleted = delete_job(connection, job_id)  # and its shadows
            if deleted:  # not by another purge
                self.purged.predictions += left

    def _empty_partitions(self) -> None:
        """Remove the predictions of the weeks whose jobs are all purged."""
        with self._ledger.reading() as connection:
            partitions = partitions_to_empty(connection)
        for partition in partitions:
            # If a reader holds it for too long, the next purge empties it.
            with contextlib.suppress(Unavailable), self._ledger.transaction() as connection:
                empty_partition(connection, partition)

    def _delete_results(self, job_id: str) -> int:
        """Delete the job's chunks and predictions. Return how many are left to `_empty_partitions`."""
        with self._ledger.reading() as connection:
            if self._dry_run:
                self.purged.predictions += count_predictions(connection, job_id)
                return 0
            is_left = any(partition.holds(job_id) for partition in self._left)
            left = count_predictions(connection, job_id) if is_left else 0
        for place in JOB_PLACES:
            is_result = place.table is predictions
            after: int | None = None if is_left and is_result else -1
            while after is not None:
                started = time.monotonic()
                with self._ledger.transaction() as connection:
                    gone, after = delete_rows(connection, place, job_id, after=after)
                self.purged.predictions += gone if is_result else 0
                self._on_progress(self.purged)
                # SQLite has one write lock and no queue for it: without a pause, others would never get it.
                time.sleep(time.monotonic() - started)
        return left
