"""Store corrections: find the image, check the label, and copy the image's bytes.

Corrections come one at a time or as a file. Either all rows of a file are stored or none. The copies are
written to the store before the rows that name them (`jobs.ledger.learning.corrections`). Each payload is read
once, however many of its images are corrected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from typing import Final, NamedTuple

from sqlalchemy.engine import Connection

from jobs.errors import Conflict, ErrorCode, ImageError, NotFound, PayloadDamaged, Unavailable, UserError
from jobs.ids import is_id
from jobs.ledger import Ledger
from jobs.ledger.api.audit import OnChange
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import JobStatus, job_status, no_job, predictions_of
from jobs.ledger.learning.corrections import (
    Correction,
    FinishedChunk,
    NewCorrection,
    any_correction,
    chunk_of,
    correction_key,
    find_corrections,
    remove_correction,
    save_corrections,
)
from jobs.ledger.learning.models import get_model
from jobs.models.model import Model
from jobs.network.references import Reference, Roots
from jobs.settings import Settings
from jobs.storage.payloads import Content, read_payload
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from labelmill.labels.correction_files import (
    MAX_INDEX,
    CorrectionRequest,
    collect,
    summarize_problems,
)
from labelmill.labels.image_copies import remove_copies

#: Images with these errors stopped a worker, and would stop the trainer.
_DANGEROUS: Final = (ErrorCode.QUARANTINED, ErrorCode.TIMEOUT)

#: Images with these errors cannot be decoded by the trainer either.
_NOT_DECODABLE: Final = (ErrorCode.UNIDENTIFIED, ErrorCode.FORMAT_NOT_ALLOWED, ErrorCode.CORRUPT)


class Corrector:
    """Stores corrections, and removes them."""

    def __init__(
        self, ledger: Ledger, store: Store, settings: Settings, on_change: OnChange = lambda *_: None
    ) -> None:
        """Prepare for corrections. Raises SettingsError if a root for references is malformed.

        `on_change` is called in the transaction of each change.
        """
        self._ledger = ledger
        self._store = store
        self._on_change = on_change
        self._roots = Roots(settings.reference_roots, settings.private_hosts)
        self._max_bytes = settings.max_image_bytes

    def correct(self, request: CorrectionRequest) -> Correction:
        """Store one correction; a second one of the same image replaces the label.

        Raises NotFound if there is no such image or it has no result yet, UserError if the label is not a
        class of the job's model, Conflict if the image was purged or must not be decoded again, Unavailable.
        """
        with self._batch() as batch:
            batch.look_up([request])
            for error in batch.problems.values():
                raise error
            return batch.save()[0]

    def correct_rows(
        self,
        rows: Iterable[tuple[int, CorrectionRequest | UserError | None]],
        *,
        on_skip: Callable[[int], None] = lambda _rows: None,
        on_unchanged: Callable[[int], None] = lambda _rows: None,
    ) -> list[Correction]:
        """Store the corrections in these rows, as `requests_in` yields them: all of them, or none.

        `on_skip` is called with the number of rows without a label, `on_unchanged` with the number of
        unchanged rows that were ignored. Raises UserError with a line for each wrong row, Unavailable.
        """
        with self._batch() as batch:
            found = collect(rows)
            batch.problems = found.problems
            batch.look_up(list(found.requests.values()))
            if batch.problems:
                raise UserError(summarize_problems(batch.problems))
            stored = batch.save()
        on_skip(found.skipped)
        on_unchanged(len(found.requests) - len(stored))
        return stored

    def undo(self, job_id: str, index: int) -> Correction:
        """Remove a correction, and the copy of the image's bytes unless another correction needs it.

        Raises NotFound, and Unavailable, also if only the copy could not be removed.
        """
        if not is_id(job_id):
            raise no_job(job_id)
        removed = self._remove({(job_id, index): None})
        if not removed:
            with self._ledger.reading() as connection:
                # A job that was purged as a whole still has its corrections.
                if not any_correction(connection, job_id):
                    job_status(connection, job_id)
            raise NotFound(f"Image {index} of job {job_id!r} has no correction: `labelmill correct --list`.")
        try:
            remove_copies(self._ledger, self._store, [removed[0].image_sha256])
        except Unavailable as error:
            # Running it again would not help: the correction is gone already.
            raise Unavailable(
                f"Image {index} of job {job_id} no longer has a correction, but its copy stays until "
                f"`labelmill purge` removes it. {error}"
            ) from None
        return removed[0]

    def undo_all(
        self, images: Iterable[tuple[str, int]] = (), *, stored: Iterable[CorrectionRequest] = ()
    ) -> list[Correction]:
        """Remove the corrections that these images have, each by its job and index, and return them.

        Also take back what storing these requests has `stored`; corrections with a different label stay.
        Raises Unavailable, also if only a copy could not be removed: `labelmill purge` removes it.
        """
        requests = {(each.job_id, each.index): each for each in stored}
        removed = self._remove(dict.fromkeys(images) | requests)
        remove_copies(self._ledger, self._store, [each.image_sha256 for each in removed])
        return removed

    def _remove(self, images: Mapping[tuple[str, int], CorrectionRequest | None]) -> list[Correction]:
        """Remove the corrections of these images, or only what these requests have stored; return them."""
        removed: list[Correction] = []
        with self._ledger.transaction() as connection:
            # In key order, so that two people who undo the same corrections do not deadlock.
            for (job_id, index), request in sorted(images.items(), key=lambda image: image[0]):
                if not 0 <= index <= MAX_INDEX:
                    continue
                found = remove_correction(
                    connection,
                    job_id,
                    index,
                    label=None if request is None else request.label,
                    confirmation=request is None or request.confirms,
                )
                if found is not None:
                    self._on_change(connection, "undo correction", f"{job_id}/{index}")
                    removed.append(found)
        return removed

    @contextmanager
    def _batch(self) -> Iterator[_Batch]:
        check_store(self._ledger, self._store)
        batch = _Batch(self._ledger, self._store, self._roots, self._max_bytes, self._on_change)
        try:
            yield batch
        except BaseException:
            # No copy may stay without a correction. If this fails, a purge removes it later.
            with suppress(Unavailable):
                remove_copies(self._ledger, self._store, batch.copied)
            raise


class _Batch:
    """The corrections of one call: what will be stored, and what is wrong."""

    def __init__(
        self, ledger: Ledger, store: Store, roots: Roots, max_bytes: int, on_change: OnChange
    ) -> None:
        self.problems: dict[int, UserError] = {}  # by line
        self.copied: list[str] = []
        self._made: list[NewCorrection] = []
        self._ledger = ledger
        self._store = store
        self._roots = roots
        self._max_bytes = max_bytes
        self._on_change = on_change
        self._models: dict[str, Model] = {}

    def look_up(self, requests: list[CorrectionRequest]) -> None:
        """Find the images, and copy those that have no copy yet. Raises Unavailable."""
        copying: list[_CopyTask] = []
        for job_id, of_job in groupby(sorted(requests), key=lambda request: request.job_id):
            requests_of_job = list(of_job)
            with self._collecting_errors(*requests_of_job), self._ledger.reading() as connection:
                copying += self._look_up_job(connection, job_id, requests_of_job)
        # Last, because copying takes most of the time, and nothing is stored if any row is wrong.
        for each in copying:
            self._copy(each)

    def save(self) -> list[Correction]:
        """Store the rows. Raises Unavailable."""
        with self._ledger.transaction() as connection:
            saved = save_corrections(connection, self._made)
            for each in saved:
                self._on_change(connection, "correct image", f"{each.job_id}/{each.index}")
        for correction in saved:
            self._restore_copy(correction)
        return saved

    def _restore_copy(self, correction: Correction) -> None:
        """Write the copy again if another process removed it before the row was stored.

        That happens if a correction of the same bytes is removed meanwhile. Raises Unavailable.
        """
        key = correction_key(correction.image_sha256)
        try:
            self._store.get(key, limit=0)
            return
        except FileNotFoundError:
            pass
        with self._ledger.reading() as connection:
            chunk = chunk_of(connection, correction.job_id, correction.index)
        if chunk is None:
            return
        # If the image is gone as well, nothing can be done: the training run skips it and says so.
        with suppress(Conflict):
            request = CorrectionRequest(correction.job_id, correction.index, correction.label)
            data = self._read(request, self._contents(chunk)[correction.index - chunk.first_index])
            if hashlib.sha256(data).hexdigest() == correction.image_sha256:
                self._store.put(key, data)

    @contextmanager
    def _collecting_errors(self, *requests: CorrectionRequest) -> Iterator[None]:
        """Note a UserError as the problem of these requests."""
        try:
            yield
        except UserError as error:
            self.problems |= {request.line: error for request in requests}

    def _look_up_job(
        self, connection: Connection, job_id: str, requests: list[CorrectionRequest]
    ) -> list[_CopyTask]:
        """Return the images to copy, by chunk, in the order of the images. Earlier copies are reused."""
        if not is_id(job_id):
            raise no_job(job_id)
        indices = [request.index for request in requests if 0 <= request.index <= MAX_INDEX]
        # First, because a job that was purged as a whole still has its corrections.
        before = find_corrections(connection, job_id, indices)
        for request in requests:
            if request.index in before:
                known = before[request.index]
                # An export has the prediction, so its untouched row must not revert the correction either.
                if not request.confirms and request.label in (known.label, known.predicted):
                    continue
                with self._collecting_errors(request):
                    self._check_label(connection, request, known.model_id)
                    self._made.append(replace(known, label=request.label))
        new = [request for request in requests if request.index not in before]
        with self._collecting_errors(*new):
            return self._look_up_new(connection, job_id, new) if new else []
        return []

    def _look_up_new(
        self, connection: Connection, job_id: str, requests: list[CorrectionRequest]
    ) -> list[_CopyTask]:
        """Return the images to copy for new corrections. Raises NotFound if there is no such job."""
        found: list[_CopyTask] = []
        status = job_status(connection, job_id)
        indices = [request.index for request in requests if 0 <= request.index < status.total]
        predictions = predictions_of(connection, job_id, indices)
        for request in requests:
            prediction = predictions.get(request.index)
            if not request.confirms and prediction is not None and request.label == prediction.label:
                continue
            with self._collecting_errors(request):
                correction = self._correction(connection, request, status, prediction)
                if not found or request.index >= found[-1].chunk.first_index + found[-1].chunk.images:
                    found.append(_CopyTask(_chunk(connection, request), []))
                found[-1].images.append((request, correction))
        return found

    def _correction(
        self,
        connection: Connection,
        request: CorrectionRequest,
        status: JobStatus,
        prediction: Prediction | None,
    ) -> NewCorrection:
        """Return the correction without the hash of the image's bytes. Raises UserError."""
        if prediction is None:
            raise NotFound(
                f"Image {request.index} of job {status.id} has no prediction."
                if 0 <= request.index < status.total
                else f"Job {status.id} has no image {request.index}: it has {status.total:,}, counted from 0."
            )
        self._check_label(connection, request, status.model)
        if prediction.error in _DANGEROUS:
            raise Conflict(
                f"Image {request.index} of job {status.id} stopped its worker ({prediction.error}): "
                "it would stop the trainer, too."
            )
        if prediction.error in _NOT_DECODABLE:
            raise Conflict(
                f"Image {request.index} of job {status.id} cannot be decoded ({prediction.error}): there is "
                "nothing to learn from."
            )
        if status.purged_at is not None:
            raise Conflict(
                f"The images of job {status.id} were purged on {status.purged_at:%Y-%m-%d}: there is nothing "
                "left to learn from."
            )
        return NewCorrection(
            job_id=status.id,
            index=request.index,
            name=prediction.name,
            label=request.label,
            predicted=prediction.label,
            confidence=prediction.confidence,
            model_id=status.model,
            image_sha256="",
        )

    def _check_label(self, connection: Connection, request: CorrectionRequest, model_id: str) -> None:
        """Raise UserError if the label is not a class of the model."""
        if model_id not in self._models:
            self._models[model_id] = get_model(connection, model_id)
        self._models[model_id].check_class(request.label)

    def _copy(self, copying: _CopyTask) -> None:
        """Copy the images of one chunk into the store. Raises Unavailable.

        If some row is already known to be wrong, only read the images, to find what else is wrong.
        """
        chunk, images = copying
        with self._collecting_errors(*(request for request, _ in images)):
            contents = self._contents(chunk)
            for request, correction in images:
                with self._collecting_errors(request):
                    data = self._read(request, contents[request.index - chunk.first_index])
                    if self.problems:
                        continue
                    sha256 = hashlib.sha256(data).hexdigest()
                    self.copied.append(sha256)
                    self._store.put(correction_key(sha256), data)
                    self._made.append(replace(correction, image_sha256=sha256))

    def _contents(self, chunk: FinishedChunk) -> list[Content]:
        try:
            payload = read_payload(self._store, chunk.payload, chunk.payload_digest)
            return payload.part(chunk.payload_offset, chunk.images).contents
        except PayloadDamaged as error:
            raise Conflict(str(error)) from None

    def _read(self, request: CorrectionRequest, content: Content) -> bytes:
        """Return the bytes of the image. Raises Conflict, Unavailable."""
        try:
            if isinstance(content, Reference):
                return self._roots.read(content, max_bytes=self._max_bytes)
        except ImageError as error:
            content = error
        if isinstance(content, ImageError):
            raise Conflict(
                f"Image {request.index} of job {request.job_id} cannot be read ({content.code}): there is "
                "nothing to learn from."
            )
        return content


class _CopyTask(NamedTuple):
    """Images of one chunk, with the corrections to store."""

    chunk: FinishedChunk
    images: list[tuple[CorrectionRequest, NewCorrection]]


def _chunk(connection: Connection, request: CorrectionRequest) -> FinishedChunk:
    chunk = chunk_of(connection, request.job_id, request.index)
    if chunk is None:  # its job is being purged right now
        raise no_job(request.job_id)
    return chunk
