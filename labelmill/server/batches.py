"""`/v1/batches`: create, list, show and control batches.

A batch is a job. Those that were submitted with the command are listed, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Final

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, ImageError, NotFound
from jobs.ids import is_id, new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import (
    Batch,
    add_batch,
    add_retry,
    delete_unused,
    find_batch,
    find_batches,
    is_backlog_full,
)
from jobs.ledger.api.files import file_key, get_file
from jobs.ledger.api.webhooks import secret_of_batches
from jobs.ledger.api_objects import describe_batch
from jobs.ledger.jobs.queries import (
    JobStatus,
    check_is_retry,
    full_id,
    job_status,
    latest_jobs,
    model_named,
)
from jobs.ledger.jobs.submission import find_key, open_job
from jobs.ledger.learning.models import model_or_champion
from jobs.models.dataset import MNIST
from jobs.network.references import Roots
from jobs.options import JobOptions
from jobs.schema import JobState
from labelmill.client.purging import Purge
from labelmill.server.access import KeyNeeded, Session, SubmitSession
from labelmill.server.events import reading_of
from labelmill.server.files import id_in, require_store
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.schemas import (
    MAX_PAIR,
    NO_NUL,
    BatchDeleted,
    BatchObject,
    NewBatch,
    Page,
)
from labelmill.server.webhooks import check_address

router = APIRouter(prefix="/batches", tags=["batches"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="the same key and body give the same batch, so the request can be repeated",
    ),
]

#: Seconds after which a client may try again if too many batches wait.
_BACKLOG_RETRY_SECONDS: Final = 60

_one_at_a_time: Final = CapacityLimiter(1)

#: The name of the file's digest in a stored request.
_SHA256: Final = "input_sha256"


@router.post(
    "",
    status_code=HTTPStatus.ACCEPTED,
    responses={HTTPStatus.FORBIDDEN: {}, HTTPStatus.NOT_FOUND: {}, HTTPStatus.CONFLICT: {}},
)
def create_batch(
    wanted: NewBatch,
    session: SubmitSession,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> BatchObject:
    """Classify the images of an uploaded file, at URLs, or below a URL.

    Once this is answered, the batch is committed. A request with the same `Idempotency-Key` and the same body
    returns the same batch, even if it names another file with the same bytes.
    """
    key = job_key(session, "batch", idempotency_key)
    body = wanted.model_dump(mode="json", exclude_none=True)
    if wanted.urls is not None:  # they may be a megabyte, and may contain keys
        body["urls"] = hashlib.sha256("\0".join(wanted.urls).encode()).hexdigest()
    batch_id = _only_once(lambda: _existing(session, key, body), lambda: _created(session, wanted, key, body))
    response.headers["Location"] = str(request.url_for("show_batch", batch_id=batch_id).path)
    return read_batch(session.client.ledger, session.project, batch_id)


@router.get("", responses={HTTPStatus.NOT_FOUND: {}})
def list_batches(
    session: SubmitSession,
    limit: Annotated[int, Query(ge=1, le=100, description="at most this many")] = 20,
    after: Annotated[
        str | None, Query(max_length=64, pattern=NO_NUL, description="continue after the batch with this id")
    ] = None,
    state: Annotated[JobState | None, Query(description="only batches whose job is in this state")] = None,
    metadata: Annotated[
        str | None,
        Query(
            max_length=MAX_PAIR,
            pattern=r"^[^\x00=]+=[^\x00]*$",
            description="only batches with this pair in their metadata: the name, `=` and the whole value",
        ),
    ] = None,
    *,
    classifications: Annotated[
        bool, Query(description="also list the batches of `POST /v1/classifications`")
    ] = False,
) -> Page[BatchObject]:
    """List the batches, newest first; with `state` or `metadata`, only those that match.

    Those of `POST /v1/classifications` are listed only with `classifications`.
    """
    if after is not None:
        found_id(session, after)
    pair = None
    if metadata is not None:
        name, _, value = metadata.partition("=")
        pair = (name, value)
    with session.client.ledger.reading() as connection:
        found = latest_jobs(
            connection,
            limit=limit + 1,
            after=after,
            state=state,
            project=session.project,
            pair=pair,
            unlisted=classifications,
        )
        of_http = find_batches(connection, [status.id for status in found])
        objects = [_to_object(status, of_http.get(status.id)) for status in found]
    return Page.of(objects, limit)


@router.get("/{batch_id}")
async def show_batch(batch_id: str, request: Request, _: KeyNeeded) -> BatchObject:
    """Show a batch: its status, and how many of its images are done. The beginning of its id is enough."""
    # Async: FastAPI serializes the answer of any other function in a second thread, and this is the most
    # frequent request.
    return await reading_of(request, batch_id).latest()


@router.delete("/{batch_id}", name="delete_batch")
async def remove_batch(batch_id: str, session: SubmitSession) -> BatchDeleted:
    """Delete a batch that has ended: its images, its results, and the uploaded file if no other needs it.

    Corrections of its images stay, with copies of these images: delete them first, if they must go. If this
    request breaks, repeat it.
    """
    # One at a time: deleting a million results takes minutes. Requests that wait hold no thread.
    await to_thread.run_sync(_delete, session, batch_id, limiter=_one_at_a_time)
    return BatchDeleted(id=batch_id)


@router.post("/{batch_id}/cancel")
def cancel_batch(batch_id: str, session: SubmitSession) -> BatchObject:
    """Stop a batch. Images that are classified already keep their labels."""
    session.client.cancel(found_id(session, batch_id))
    return read_batch(session.client.ledger, session.project, batch_id)


@router.post("/{batch_id}/pause")
def pause_batch(batch_id: str, session: SubmitSession) -> BatchObject:
    """Pause a batch until it is resumed."""
    session.client.pause(found_id(session, batch_id))
    return read_batch(session.client.ledger, session.project, batch_id)


@router.post("/{batch_id}/resume")
def resume_batch(batch_id: str, session: SubmitSession) -> BatchObject:
    """Resume a paused batch."""
    session.client.resume(found_id(session, batch_id))
    return read_batch(session.client.ledger, session.project, batch_id)


@router.post("/{batch_id}/retry", status_code=HTTPStatus.ACCEPTED)
def retry_batch(
    batch_id: str,
    session: SubmitSession,
    request: Request,
    response: Response,
    *,
    failed_only: Annotated[bool, Query(description="skip images that a stopped batch never reached")] = False,
    idempotency_key: IdempotencyKey = None,
) -> BatchObject:
    """Submit the images of a batch that got no label once more, as a new batch.

    Once this is answered, the new batch is committed, and its images are copied. If the batch was stopped
    before all its images were read, the rest is read now, too. An image that could not be read gets its error
    again. With `failed_only`, leave out images that a stopped batch never reached. A request with the same
    `Idempotency-Key` returns the same new batch.
    """
    key = job_key(session, "retry", idempotency_key)
    found_id(session, batch_id)
    retry_id = _only_once(
        lambda: _existing_retry(session, key, batch_id),
        lambda: _retried(session, batch_id, key, failed_only=failed_only),
    )
    response.headers["Location"] = str(request.url_for("show_batch", batch_id=retry_id).path)
    return read_batch(session.client.ledger, session.project, retry_id)


def _only_once(find: Callable[[], str | None], create: Callable[[], str]) -> str:
    """Return the id of the batch that an earlier request with the same key has made, or of a new one."""
    batch_id = find()
    if batch_id is not None:
        return batch_id
    try:
        return create()
    except Conflict:  # perhaps another request with this key was faster
        batch_id = find()
        if batch_id is None:
            raise
        return batch_id


def _retried(session: Session, batch_id: str, key: str | None, *, failed_only: bool) -> str:
    """Commit a retry of a batch, and return its id."""
    retry_id = new_id()
    with session.client.ledger.transaction() as connection:
        _check_backlog(connection)
        if not add_retry(
            connection, batch_id, retry_id, key=key, failed_only=failed_only, key_id=session.key.id
        ):
            detail = f"Batch {batch_id} has no image to submit again: all that were asked for have labels."
            raise ApiError(HTTPStatus.CONFLICT, ProblemCode.NOTHING_TO_RETRY, detail)
        session.record(connection, "retry job", batch_id)
    return retry_id


def _existing_retry(session: Session, key: str | None, batch_id: str) -> str | None:
    """Return the retry with this key, or None. Raises Conflict if the key belongs to something else."""
    if key is None:
        return None
    with session.client.ledger.reading() as connection:
        holder = find_key(connection, session.project, key)
        if holder is None:
            return None
        check_is_retry(job_status(connection, holder.job_id), batch_id)
    return holder.job_id


def _delete(session: Session, batch_id: str) -> None:
    """Delete a batch and its uploaded file. Raises NotFound, Conflict, Unavailable."""
    client = session.client
    require_store(session)  # otherwise the rows would go, and the images stay
    with client.ledger.transaction() as connection:
        if not _found(connection, session.project, batch_id).finished:
            raise Conflict(f"Batch {batch_id} has not ended: cancel it first, or wait.")
        session.record(connection, "delete batch", batch_id)
        batch = find_batch(connection, batch_id)
        file_id = batch.file_id if batch is not None else None
        # First, because nothing says afterwards which file it was.
        is_unused = file_id is not None and delete_unused(connection, file_id)
    if file_id is not None and is_unused:
        client.store.remove(file_key(file_id))
    purge = Purge(client.ledger, client.store, dry_run=False, on_progress=lambda _purged: None)
    try:
        purge.one_job(batch_id)
    finally:
        purge.record({"job": batch_id})


def _created(session: Session, wanted: NewBatch, key: str | None, body: dict[str, object]) -> str:
    """Commit a new batch, and return its id."""
    options = JobOptions.from_request(wanted.model_dump(), project=session.project, key=key)
    _check_roots(session, wanted)
    if wanted.webhook_url is not None:
        check_address(session, "webhook_url", wanted.webhook_url)
    batch_id = new_id()
    digest: dict[str, object] = {}
    with session.client.ledger.transaction() as connection:
        _check_backlog(connection)
        if wanted.webhook_url is not None:
            secret_of_batches(connection, session.project)  # without a secret, nothing is sent
        file_id = None
        if wanted.input_file_id is not None:
            file = get_file(connection, id_in(wanted.input_file_id), project=session.project, keep=True)
            file_id, digest = file.id, {_SHA256: file.sha256}
        if wanted.model is not None:
            model = model_named(connection, wanted.model, wanted.dataset)
        else:
            model = model_or_champion(connection, None, wanted.dataset or MNIST)
        open_job(connection, batch_id, options, model_id=model.id)
        request = body | digest
        key_id = session.key.id
        add_batch(connection, batch_id, request=request, file_id=file_id, urls=wanted.urls, key_id=key_id)
        session.record(connection, "create batch", batch_id)
    return batch_id


def _check_backlog(connection: Connection) -> None:
    """Raise ApiError if too many batches wait."""
    if is_backlog_full(connection):
        raise ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            ProblemCode.UNAVAILABLE,
            "Too many batches wait for their images to be read: try again later.",
            {"Retry-After": str(_BACKLOG_RETRY_SECONDS)},
        )


def _check_roots(session: Session, wanted: NewBatch) -> None:
    """Raise ApiError if a source or a reference is outside the allowed roots."""
    roots = Roots(session.client.settings.reference_roots)
    reason = None
    if wanted.by_reference and not roots:
        reason = "by_reference: no folder or URL is allowed: set LABELMILL_REFERENCE_ROOTS on the server"
    elif wanted.source_url is not None:
        try:
            roots.check_folder(wanted.source_url)
        except ImageError as error:
            reason = f"source_url: {error.detail}"
    if reason is not None:
        raise ApiError(HTTPStatus.FORBIDDEN, ProblemCode.FORBIDDEN, f"{reason}.")


def job_key(session: Session, call: str, idempotency_key: str | None) -> str | None:
    """Return the job's submission key, which differs for each API key and call, and from the command's."""
    if idempotency_key is None:
        return None
    digest = hashlib.sha256(f"{session.key.id} {call} {idempotency_key}".encode()).hexdigest()
    return f"http {digest}"


def _existing(session: Session, key: str | None, body: dict[str, object]) -> str | None:
    """Return the batch with this key, or None. Raises Conflict if it was requested with another body."""
    if key is None:
        return None
    with session.client.ledger.reading() as connection:
        holder = find_key(connection, session.project, key)
        batch = find_batch(connection, holder.job_id) if holder is not None else None
        if batch is None:
            return None
        is_same = _is_same(connection, session.project, batch.request, body)
    if not is_same:
        raise Conflict(
            f"Batch {batch.job_id} has the same Idempotency-Key and another body: use another key."
        )
    return batch.job_id


def _is_same(
    connection: Connection, project: str, earlier: dict[str, object], body: dict[str, object]
) -> bool:
    """Return whether two requests want the same: the file may be another one with the same bytes."""
    digest = earlier.get(_SHA256)
    rest = {name: value for name, value in earlier.items() if name != _SHA256}
    if rest == body:
        return True
    file_id = body.get("input_file_id")
    if file_id is None or rest | {"input_file_id": file_id} != body:
        return False
    try:
        return get_file(connection, id_in(str(file_id)), project=project).sha256 == digest
    except NotFound:
        return False


def found_id(session: Session, batch_id: str) -> str:
    """Return the id of a batch. Raises NotFound if the session's project has no such batch."""
    with session.client.ledger.reading() as connection:
        _found(connection, session.project, batch_id)
    return batch_id


def read_batch(ledger: Ledger, project: str, batch_id: str) -> BatchObject:
    """Return a project's batch as it is now, given its id or the beginning of it.

    Raises NotFound, Conflict.
    """
    with ledger.reading() as connection:
        job_id = full_id(connection, "job", batch_id, project=project)
        return _to_object(_found(connection, project, job_id), find_batch(connection, job_id))


def _found(connection: Connection, project: str, batch_id: str) -> JobStatus:
    try:
        if is_id(batch_id):
            return job_status(connection, batch_id, project=project)
    except NotFound:  # its message is about jobs and commands
        pass
    raise NotFound(f"There is no batch {batch_id!r}: `GET /v1/batches` lists them.")


def _to_object(status: JobStatus, batch: Batch | None) -> BatchObject:
    request = batch.request if batch is not None else {}
    return BatchObject(
        **describe_batch(status, request, batch.file_id if batch is not None else None),
        endpoint=request.get("endpoint", "/v1/classifications"),
        completion_window=request.get("completion_window", "24h"),
        rate=status.rate,
        eta_seconds=status.eta_seconds,
        paused=status.paused,
        retry_of=status.retry_of,
        submitted_by=batch.submitted_by if batch is not None else None,
        job=status,
    )
