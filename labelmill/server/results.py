"""`/v1/batches/{id}/results`: the outcomes of a batch's images, a page at a time or all in one stream."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from labelmill.server.access import SubmitSession
from labelmill.server.batches import found_id
from labelmill.server.files import begun
from labelmill.server.formats import STREAMS, choose_media_type
from labelmill.server.problems import PROBLEMS, ApiError, conflicts
from labelmill.server.schemas import MAX_NUMBER, NO_NUL, Result

router = APIRouter(prefix="/batches", tags=["batches"], responses=PROBLEMS)

#: Maximum stars of a glob: on SQLite, each one multiplies the time that a name takes.
_MAX_STARS: Final = 3

#: Results of a page in JSON if the request has no limit.
_PAGE: Final = 100

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.OK: {"content": {media_type: {} for media_type in STREAMS}},
    HTTPStatus.NOT_ACCEPTABLE: PROBLEMS[HTTPStatus.NOT_FOUND] | {"description": "Not Acceptable"},
}


@router.get("/{batch_id}/results", response_model=list[Result], responses=_ANSWERS)
def list_results(
    batch_id: str,
    session: SubmitSession,
    request: Request,
    label: Annotated[str | None, Query(max_length=1024, pattern=NO_NUL)] = None,
    below: Annotated[float | None, Query(ge=0, le=1)] = None,
    errors: bool = False,
    name: Annotated[str | None, Query(max_length=1024, pattern=NO_NUL)] = None,
    after: Annotated[int, Query(ge=-1, le=MAX_NUMBER)] = -1,
    limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
) -> Response:
    """Return the results so far, in the order of the images, in the format that `Accept` names.

    With `limit`, return a page; the header `Link` names the next one. Without it, JSON has a page of 100
    results, and JSON lines, CSV and Parquet have all.
    """
    media_type = choose_media_type(request.headers.get("accept"))
    if name is not None and name.count("*") > _MAX_STARS:
        raise ApiError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", f"name: it may have at most {_MAX_STARS} stars."
        )
    stream = STREAMS.get(media_type)
    if stream is None and limit is None:
        limit = _PAGE
    with conflicts():
        predictions = session.client.predictions(
            found_id(session, batch_id),
            label=label,
            below=below,
            errors=errors,
            name=name,
            after=after,
            limit=limit,
        )
        if stream is not None and limit is None:
            return StreamingResponse(begun(stream(predictions)), media_type=media_type)
        found = list(predictions)
    headers = {}
    if len(found) == limit:
        query = {**request.query_params, "after": found[-1].index, "limit": limit}
        headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    if stream is None:
        results = [Result.of(prediction).model_dump() for prediction in found]
        return JSONResponse(results, headers=headers)
    return Response(b"".join(stream(found)), media_type=media_type, headers=headers)
