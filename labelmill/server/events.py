"""`/v1/batches/{id}/events`: the progress of a batch as server-sent events.

However many requests poll or follow a batch, it is read once for all of them. A stream holds no thread: each
reading of the ledger takes one for a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final
from weakref import WeakValueDictionary

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from jobs.errors import LabelmillError
from labelmill.server.access import KeyNeeded
from labelmill.server.reading import Reading
from labelmill.server.schemas import NO_NUL, BatchObject

router = APIRouter(prefix="/batches", tags=["batches"])

#: Seconds between two readings of a batch, however many clients follow it.
_POLL_SECONDS: Final = 1.0

#: For how many seconds a stream takes its key to be valid: longer than a request, because open streams would
#: have the keys read every second.
_KEY_SECONDS: Final = 2.0

#: Seconds without an event after which a comment is sent, so that no proxy ends the stream.
_SILENT_SECONDS: Final = 15.0

_MEDIA_TYPE: Final = "text/event-stream"

#: One event, in the OpenAPI description.
_EVENT: Final = {
    "type": "object",
    "required": ["event", "data", "id"],
    "properties": {
        "event": {"type": "string", "enum": ["progress", "completed", "failed", "cancelled"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/BatchObject"},
        },
        "id": {"type": "string"},
    },
}


class Readings:
    """The batches that requests are reading."""

    def __init__(self, read: Callable[[str, str], BatchObject]) -> None:
        """`read` returns a batch, given its project and its id. It runs in a thread."""
        self._read = read
        self._readings: WeakValueDictionary[tuple[str, str], Reading[BatchObject]] = WeakValueDictionary()

    def of(self, project: str, batch_id: str) -> Reading[BatchObject]:
        """Return the reading of a project's batch, which other requests may hold already."""
        found = self._readings.get((project, batch_id))
        if found is None:
            found = self._readings[project, batch_id] = Reading(partial(self._read, project, batch_id))
        return found


def reading_of(request: Request, batch_id: str) -> Reading[BatchObject]:
    """Return the reading of a batch of the request's project.

    For requests that only read a batch: a session would cost a short one a twelfth of its time.
    """
    readings: Readings = request.app.state.readings
    return readings.of(request.state.key.project, batch_id)


async def _events(
    reading: Reading[BatchObject], seen: str | None, goes_on: Callable[[], Awaitable[bool]]
) -> AsyncIterator[bytes]:
    """Yield an event for each new state of the batch, up to the last one, except the state `seen`."""
    sent_at = time.monotonic()
    try:
        while await goes_on():
            batch = await reading.latest(max_age=_POLL_SECONDS)
            if (state := _state_of(batch)) != seen:
                event = batch.status if batch.ended else "progress"
                yield format_sse_event(data_str=batch.model_dump_json(), event=event, id=state)
                seen, sent_at = state, time.monotonic()
            elif time.monotonic() - sent_at >= _SILENT_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = time.monotonic()
            if batch.ended:
                return
            await asyncio.sleep(_POLL_SECONDS)
    except LabelmillError:
        return  # the client connects again, and that request reports the reason


@router.get(
    "/{batch_id}/events",
    response_class=StreamingResponse,
    responses={
        HTTPStatus.OK: {"content": {_MEDIA_TYPE: {"itemSchema": _EVENT}}},
        HTTPStatus.NO_CONTENT: {"description": "The client has seen the final state."},
    },
)
async def follow_batch(
    batch_id: str,
    request: Request,
    _: KeyNeeded,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            max_length=200,
            pattern=NO_NUL,
            description="the latest event that the client has seen",
        ),
    ] = None,
) -> Response:
    """Follow a batch: an event `progress` for each change, then `completed`, `failed` or `cancelled`.

    The data is the batch. A client that connects again with `Last-Event-ID` is not sent that state again; if
    it was the last one, the answer is 204.
    """
    reading = reading_of(request, batch_id)
    batch = await reading.latest(max_age=_POLL_SECONDS)
    if batch.ended and last_event_id == _state_of(batch):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    state = request.app.state

    async def goes_on() -> bool:
        """Return whether the server still serves this client."""
        if state.is_stopping():
            return False
        return await state.keys.find(request.state.key_digest, max_age=_KEY_SECONDS) is not None

    found = _events(reading, last_event_id, goes_on)
    # Without this header, nginx would hold events back.
    return StreamingResponse(found, media_type=_MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})


def _state_of(batch: BatchObject) -> str:
    """Return the id of a batch's state. It is made of the state alone, so any server recognises it."""
    counts = batch.request_counts
    state = f"{counts.total}-{counts.completed}-{counts.failed}-{batch.status}"
    return f"{state}-paused" if batch.paused else state
