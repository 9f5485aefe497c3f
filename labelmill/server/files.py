"""`/v1/files`: upload, list, read and delete files.

The output and the errors of a batch are files, too: JSON lines, as OpenAI's Batch API writes them. They are
not stored: each line is made from a row of the ledger when it is read.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.responses import StreamingResponse

from jobs.errors import Conflict, NotFound, Unavailable
from jobs.ids import is_id, new_id
from jobs.ledger.api.files import File, add_file, delete_file, file_key, get_file, list_files, no_file
from jobs.ledger.api_objects import ERRORS, FILE_PREFIX, OUTPUT
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.queries import JobStatus, job_status
from jobs.storage.store_identity import check_store
from jobs.text import storable
from labelmill.client import Client
from labelmill.server.access import Session, SubmitSession
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.schemas import (
    BINARY,
    NO_NUL,
    FileDeleted,
    FileObject,
    Page,
    describe_result,
)
from labelmill.server.uploads import MAX_FORM_BYTES, Upload, body_blocks, too_large
from producer.export import pages_of

router = APIRouter(prefix="/files", tags=["files"])

_MAX_NAME: Final = 255

#: The fields of a result that a line of an output has outside of its body, or not at all.
_BESIDES: Final = {"custom_id", "name", "index", "error", "model"}

#: What the content of a file is: an uploaded file may be anything, and an output is JSON lines.
_BYTES: Final = "application/octet-stream"
_JSONL: Final = "application/jsonl"

#: A header `Range` with one range. Longer numbers than the size of any file are malformed.
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)

#: Sizes that were counted before, by batch, kind and number of rows: counting reads all rows of a batch.
_sizes: Final[dict[tuple[str, bool, int], int]] = {}

_MAX_SIZES: Final = 10_000

_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file", "purpose"],
    "properties": {
        "file": {
            **BINARY,
            "description": "an image, an archive of images, or a manifest; the part needs a file name",
        },
        "purpose": {
            "type": "string",
            "enum": ["batch"],
            "description": "what the file is for: `batch`",
            "examples": ["batch"],
        },
    },
}


@router.post(
    "",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def upload_file(request: Request, session: SubmitSession) -> FileObject:
    """Upload an image, a ZIP or TAR archive of images, or a manifest. It is streamed into the store."""
    client, file_id = session.client, new_id()
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > client.settings.max_job_bytes + MAX_FORM_BYTES:
        raise too_large()
    await run_in_threadpool(require_store, session)
    async with (
        request.app.state.limits.uploads.place(session.key.id),
        contextmanager_in_threadpool(client.store.writer(file_key(file_id))) as write,
    ):
        file = _Counting(write)
        content_type = request.headers.get("content-type", "")
        upload = Upload(
            content_type,
            file.write,
            fields=_FORM["properties"],
            max_bytes=client.settings.max_job_bytes,
        )
        async for block in body_blocks(request):
            await run_in_threadpool(upload.write, block)
        name = checked_name(upload.finish())
        if upload.fields.get("purpose") != "batch":
            raise ApiError(
                HTTPStatus.UNPROCESSABLE_ENTITY, ProblemCode.INVALID, "purpose: it must be `batch`."
            )

    def add() -> File:
        digest = file.digest.hexdigest()
        with client.ledger.transaction() as connection:
            session.record(connection, "upload file", file_id)
            return add_file(
                connection,
                file_id,
                project=session.project,
                name=name,
                purpose="batch",
                size=file.size,
                sha256=digest,
            )

    return _to_object(await run_in_threadpool(add))


def require_store(session: Session) -> None:
    """Raise Unavailable if this server does not use the store of the workers."""
    try:
        check_store(session.client.ledger, session.client.store)
    except Conflict as error:  # its text names hosts and paths
        raise Unavailable(str(error)) from None


@router.get("", name="list_files", responses={HTTPStatus.NOT_FOUND: {}})
def list_all(
    session: SubmitSession,
    limit: Annotated[int, Query(ge=1, le=10_000, description="at most this many")] = 100,
    after: Annotated[
        str | None, Query(max_length=64, pattern=NO_NUL, description="continue after the file with this id")
    ] = None,
    order: Annotated[Literal["desc"] | None, Query(description="the only order: newest first")] = None,  # noqa: ARG001 -- the only order, which OpenAI's clients may ask for
    purpose: Annotated[
        str | None, Query(max_length=32, pattern=NO_NUL, description="only files with this purpose")
    ] = None,
) -> Page[FileObject]:
    """List the uploaded files, newest first. The outputs of batches are left out."""
    below = None if after is None else id_in(after)
    with session.client.ledger.reading() as connection:
        found = list_files(connection, session.project, limit=limit + 1, after=below, purpose=purpose)
    return Page.of(list(map(_to_object, found)), limit)


@router.get("/{file_id}")
def show_file(file_id: str, session: SubmitSession) -> FileObject:
    """Show a file: its name, its size and its SHA-256."""
    output = find_output(session, file_id)
    if output is not None:
        return output.to_object()
    return _to_object(_found(session, file_id))


@router.delete("/{file_id}", name="delete_file")
def remove_file(file_id: str, session: SubmitSession) -> FileDeleted:
    """Delete an uploaded file. Batches that have its images already keep them."""
    if find_output(session, file_id) is not None:
        raise Conflict(
            f"File {file_id!r} cannot be deleted: it is made from its batch's results. Purge the batch "
            "instead."
        )
    file = _found(session, file_id)
    with session.client.ledger.transaction() as connection:
        delete_file(connection, file.id)
        session.record(connection, "delete file", file.id)
    session.client.store.remove(file.key)
    return FileDeleted(id=file_id)


_CONTENT: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.OK: {
        "description": "All bytes",
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "application/jsonl": {"schema": {"type": "string"}},
        },
    },
    HTTPStatus.PARTIAL_CONTENT: {
        "description": "The bytes that `Range` asks for",
        "content": {"application/octet-stream": {"schema": BINARY}},
    },
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: {},
}


@router.head("/{file_id}/content", name="describe_content", response_class=Response)
def describe_content(file_id: str, session: SubmitSession) -> Response:
    """Return the headers of the file's bytes. The length of a batch's output is not known in advance."""
    if find_output(session, file_id) is not None:
        return Response(media_type=_JSONL)
    file = _found(session, file_id)
    return Response(media_type=_BYTES, headers=_content_headers(file) | {"Content-Length": str(file.size)})


@router.get("/{file_id}/content", response_class=StreamingResponse, responses=_CONTENT)
def read_file(
    file_id: str,
    session: SubmitSession,
    byte_range: Annotated[
        str | None,
        Header(alias="Range", max_length=64, description="one range of an uploaded file's bytes to return"),
    ] = None,
    if_range: Annotated[
        str | None,
        Header(
            alias="If-Range", max_length=128, description="return all bytes unless this is the file's `ETag`"
        ),
    ] = None,
) -> StreamingResponse:
    """Return the bytes of a file. The output of a batch has a JSON object per line."""
    output: Output | None = find_output(session, file_id)
    if output is not None:
        return StreamingResponse(begun(output.pieces()), media_type=_JSONL)
    file = _found(session, file_id)
    headers = _content_headers(file)
    if if_range not in (None, headers["ETag"]):
        byte_range = None
    part = parse_range(byte_range, file.size)
    start, stop = part or (0, file.size)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    try:
        pieces = begun(session.client.store.pieces(file.key, start=start, stop=stop))
    except FileNotFoundError:
        raise NotFound(
            f"The bytes of file {file_id!r} are missing from the store: upload it again."
        ) from None
    return StreamingResponse(
        pieces,
        status_code=HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT,
        media_type=_BYTES,
        headers=headers | {"Content-Length": str(stop - start)},
    )


def _content_headers(file: File) -> dict[str, str]:
    # An attachment, so that no browser shows it, whatever it contains.
    return {"Content-Disposition": "attachment", "Accept-Ranges": "bytes", "ETag": f'"{file.sha256}"'}


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the first byte that a header `Range` asks for, and the one after the last; None if all.

    A header that asks for several ranges, or is malformed, is ignored, as RFC 9110 allows. Raises ApiError,
    416, if the file ends before the range.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < start:
        return None
    if start >= stop:
        raise ApiError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            ProblemCode.INVALID,
            f"Range: the file has {size:,} bytes: ask for some of them.",
            {"Content-Range": f"bytes */{size}"},
        )
    return start, stop


def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Return the same pieces, but read the first one now: its error can still become an answer."""
    return chain([next(pieces, b"")], pieces)


class _Counting:
    """Counts and hashes what is written."""

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        self.digest.update(data)
        self._write(data)


def checked_name(name: str) -> str:
    """Return a file's name without folders. It is only a name: nothing is opened with it."""
    base = storable(posixpath.basename(name.replace("\\", "/")))
    if not base or base in (".", "..") or len(base) > _MAX_NAME or not base.isprintable():
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            ProblemCode.INVALID,
            f"file: its name must have 1 to {_MAX_NAME} characters.",
        )
    return base


def id_in(file_id: str) -> str:
    """Return a file's id in the ledger. Raises NotFound if there can be no such file."""
    found = file_id.removeprefix(FILE_PREFIX)
    if not is_id(found):
        raise no_file(file_id)
    return found


def _found(session: Session, file_id: str) -> File:
    with session.client.ledger.reading() as connection:
        return get_file(connection, id_in(file_id), project=session.project)


def _to_object(file: File) -> FileObject:
    return FileObject(
        id=FILE_PREFIX + file.id,
        bytes=file.size,
        created_at=int(file.created_at.timestamp()),
        filename=file.name,
        purpose="batch",
        sha256=file.sha256,
    )


# ---- the output files of batches ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Output:
    """The labels, or the errors, of a finished batch."""

    client: Client
    status: JobStatus
    errors: bool

    def pieces(self) -> Iterator[bytes]:
        """Yield a line for each image with a label, or for each with an error: many at a time, in order."""
        found = self.client.predictions(self.status.id, errors=self.errors)
        for page in pages_of(each for each in found if self.errors or each.error is None):
            lines = (json.dumps(_line(self.status.id, each), ensure_ascii=False) for each in page)
            yield "".join(f"{line}\n" for line in lines).encode()

    def to_object(self) -> FileObject:
        """Return the file's description."""
        ending = ERRORS if self.errors else OUTPUT
        finished = self.status.finished_at or self.status.created_at
        return FileObject(
            id=f"{FILE_PREFIX}{self.status.id}{ending}",
            bytes=self._size(),
            created_at=int(finished.timestamp()),
            filename=f"{self.status.id}{ending}.jsonl",
            purpose="batch_output",
        )

    def _size(self) -> int:
        """Return the file's size in bytes. The first call makes all lines."""
        # Workers may still add rows to a batch that was stopped.
        key = (self.status.id, self.errors, self.status.done)
        if key not in _sizes:
            if len(_sizes) >= _MAX_SIZES:
                _sizes.clear()
            _sizes[key] = sum(map(len, self.pieces()))
        return _sizes[key]


def find_output(session: Session, file_id: str) -> Output | None:
    """Return the output that a file's id means, or None if it means an uploaded file.

    Raises NotFound if the session's project has no such batch, or it has not finished.
    """
    for ending in (OUTPUT, ERRORS):
        job_id = file_id.removeprefix(FILE_PREFIX).removesuffix(ending)
        if file_id == f"{FILE_PREFIX}{job_id}{ending}" and is_id(job_id):
            try:
                with session.client.ledger.reading() as connection:
                    status = job_status(connection, job_id, project=session.project)
            except NotFound:  # its message is about jobs and commands
                raise no_file(file_id) from None
            if not status.finished:
                raise NotFound(
                    f"Batch {job_id} has not finished, so there is no file {file_id!r} yet: wait for its end."
                )
            return Output(session.client, status, errors=ending == ERRORS)
    return None


def _line(job_id: str, prediction: Prediction) -> dict[str, Any]:
    result = describe_result(prediction)
    line: dict[str, Any] = {
        "id": f"{job_id}-{prediction.index}",
        "custom_id": prediction.name,
        "response": None,
        "error": result["error"],
    }
    if prediction.error is None:
        body = {name: value for name, value in result.items() if name not in _BESIDES and value is not None}
        line["response"] = {"status_code": HTTPStatus.OK, "body": body}
    return line
