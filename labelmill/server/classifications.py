"""`/v1/classifications`: classify a few images, and wait for their labels.

They become a job like any other before the wait, so a client that was cut off finds the labels in the batch.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, Unpack

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from jobs.errors import Conflict
from jobs.options import JobKeywords
from jobs.reading import too_large
from labelmill.client import Client
from labelmill.server.access import Session, SubmitSession
from labelmill.server.batches import IdempotencyKey, job_key, read_batch
from labelmill.server.files import checked_name
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.schemas import BINARY, BatchObject, Classification, Name, Result, TopK
from labelmill.server.uploads import Upload, body_blocks
from producer.follow import pauses
from producer.sources import SourceImage

router = APIRouter(prefix="/classifications", tags=["classifications"])

#: Images of one request. They are one chunk, which is committed at once.
_MAX_IMAGES: Final = 16

#: Maximum bytes of a request: it is in memory as a whole.
_MAX_BYTES: Final = 32 * 1024 * 1024

#: A larger body counts as an upload, because it is held in memory.
_SMALL_BYTES: Final = 1024 * 1024

_MAX_WAIT_SECONDS: Final = 60.0

#: The image's name if the body is the image itself.
_NAME: Final = "image"

_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["file"],
    "properties": {
        "file": {
            "type": "array",
            "items": BINARY,
            "minItems": 1,
            "maxItems": _MAX_IMAGES,
            "description": "the images; each part needs a file name",
        }
    },
}
_BODY: Final = {"image/*": {"schema": BINARY}, "multipart/form-data": {"schema": _FORM}}


@router.post(
    "",
    response_model=Classification,
    responses={
        HTTPStatus.ACCEPTED: {"model": BatchObject, "description": "The labels are not there yet."},
        HTTPStatus.NOT_FOUND: {},
        HTTPStatus.CONFLICT: {},
    },
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def classify(
    request: Request,
    session: SubmitSession,
    wait: Annotated[
        float, Query(ge=0, le=_MAX_WAIT_SECONDS, description="seconds to wait for the labels")
    ] = 10.0,
    model: Annotated[Name | None, Query(description="the model. Default: the champion")] = None,
    dataset: Annotated[
        Name | None, Query(description="the dataset whose champion classifies. Default: `mnist`")
    ] = None,
    top_k: Annotated[
        TopK | None, Query(description="also return this many of the most probable classes")
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Classify an image (the body), or up to 16 (a form with parts `file`), and wait for the labels.

    If they take longer than `wait` seconds, the answer is 202 with the batch, which will have them. No
    webhook reports the batch, and `GET /v1/batches` lists it only with `classifications`.
    """
    key = job_key(session, "classification", idempotency_key)
    options = JobKeywords(
        project=session.project, key=key, model=model, dataset=dataset, top_k=top_k, unlisted=True
    )
    batch_id = await _submit(request, session, **options)
    await _wait(session.client, batch_id, wait, request)
    batch = await run_in_threadpool(read_batch, session.client.ledger, session.project, batch_id)
    headers = {"Location": str(request.url_for("show_batch", batch_id=batch_id).path)}
    if batch.status != "completed":
        return JSONResponse(batch.model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)
    predictions = await run_in_threadpool(lambda: list(session.client.predictions(batch_id)))
    found = Classification(id=batch_id, model=batch.model, results=list(map(Result.of, predictions)))
    return JSONResponse(found.model_dump(), headers=headers)


async def _submit(request: Request, session: Session, **options: Unpack[JobKeywords]) -> str:
    """Commit a job of the images in the body, and return its id. They are in memory only until then."""
    length = request.headers.get("content-length", "")
    is_small = length.isdecimal() and int(length) <= _SMALL_BYTES
    uploading = request.app.state.limits.uploads.place(session.key.id)
    async with nullcontext() if is_small else uploading:
        images = await _read_images(request, session.client.settings.max_image_bytes)
        submit = partial(session.client.submission, images, on_wait=_refuse, **options)
        submitted = await run_in_threadpool(submit)
    return submitted.job_id


def _refuse(batch_id: str) -> None:
    raise Conflict(f"Batch {batch_id} has the same Idempotency-Key: use another key.")


async def _wait(client: Client, batch_id: str, seconds: float, request: Request) -> None:
    """Wait until the batch has ended, for at most `seconds`. No thread is held."""
    deadline = time.monotonic() + seconds
    for pause in pauses():
        left = deadline - time.monotonic()
        if left <= 0 or request.app.state.is_stopping():
            return
        await asyncio.sleep(min(pause, left))
        if (await run_in_threadpool(client.status, batch_id)).finished:
            return


class _Images:
    """Collects the images of a body."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.contents: list[bytearray] = []
        self._size = 0

    def begin(self, name: str) -> None:
        """Begin the next image."""
        if len(self.names) == _MAX_IMAGES:
            detail = f"The form has more than {_MAX_IMAGES} images: upload them as a file, for a batch."
            raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, ProblemCode.INVALID, detail)
        self.names.append(checked_name(name))
        self.contents.append(bytearray())

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes to the image."""
        self._size += len(data)
        _check_size(self._size)
        self.contents[-1] += data


async def _read_images(request: Request, max_bytes: int) -> list[SourceImage]:
    """Return the images of the body. One with more than `max_bytes` becomes an error. Raises ApiError."""
    length = request.headers.get("content-length", "")
    _check_size(int(length) if length.isdecimal() else 0)
    images = _Images()
    content_type = request.headers.get("content-type", "")
    form = None
    if content_type.startswith("image/"):
        images.begin(_NAME)
    elif content_type.startswith("multipart/form-data"):
        form = Upload(
            content_type,
            images.write,
            fields=_FORM["properties"],
            max_bytes=_MAX_BYTES,
            begin_file=images.begin,
        )
    else:
        detail = "Send an image with its `Content-Type`, such as image/png, or a form with parts `file`."
        raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ProblemCode.UNSUPPORTED_MEDIA_TYPE, detail)
    async for block in body_blocks(request):
        await run_in_threadpool(form.write if form is not None else images.write, block)
    if form is not None:
        form.finish()
    elif not images.contents[0]:
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY, ProblemCode.INVALID, "The body is empty: send an image."
        )
    return [
        SourceImage(name, bytes(content), None)
        if len(content) <= max_bytes
        else SourceImage(name, None, too_large(max_bytes))
        for name, content in zip(images.names, images.contents, strict=True)
    ]


def _check_size(size: int) -> None:
    """Raise ApiError, 413, if a request has more than _MAX_BYTES."""
    if size > _MAX_BYTES:
        detail = f"The images have more than {_MAX_BYTES:,} bytes: upload them as a file, for a batch."
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, ProblemCode.TOO_LARGE, detail)
