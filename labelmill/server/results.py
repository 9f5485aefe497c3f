"""`/v1/batches/{id}/results`: the outcomes of a batch's images, a page at a time or all in one stream."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from itertools import chain
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from jobs.ledger.jobs.outcomes import Prediction
from jobs.limits import MAX_GLOB_LENGTH
from labelmill.server.access import SubmitSession
from labelmill.server.batches import found_id
from labelmill.server.files import begun
from labelmill.server.problems import ApiError, ProblemCode, conflicts
from labelmill.server.schemas import MAX_NUMBER, NO_NUL, Result
from producer.export import Escape, pages_of, parquet_pages, spreadsheet_text, write_csv

router = APIRouter(prefix="/batches", tags=["batches"])

#: Results of a page in JSON if the request has no limit.
_PAGE: Final = 100

JSON: Final = "application/json"
PARQUET: Final = "application/vnd.apache.parquet"


def stream_jsonl(predictions: Iterable[Prediction]) -> Iterator[bytes]:
    """Yield results as JSON lines: the objects that a page in JSON has."""
    for page in pages_of(predictions):
        yield "".join(f"{Result.of(prediction).model_dump_json()}\n" for prediction in page).encode()


def stream_csv(predictions: Iterable[Prediction], escape: Escape | None = None) -> Iterator[bytes]:
    """Yield results as CSV, with the columns of the command `predictions`."""
    pages = pages_of(predictions)
    first = next(pages, [])
    for page in chain([first], pages):
        out = io.StringIO()
        write_csv(page, out, header=page is first, escape=escape)
        yield out.getvalue().encode()


def stream_parquet(predictions: Iterable[Prediction]) -> Iterator[bytes]:
    """Yield results as a Parquet file, with the columns of the command `predictions`."""
    out = io.BytesIO()
    for _ in parquet_pages(predictions, out):
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()


#: The formats other than JSON, by media type.
STREAMS: Final[dict[str, Callable[[Iterable[Prediction]], Iterator[bytes]]]] = {
    "application/jsonl": stream_jsonl,
    "application/x-ndjson": stream_jsonl,
    "text/csv": stream_csv,
    PARQUET: stream_parquet,
}

#: The media types of downloads.
_DOWNLOADS: Final = {"csv": "text/csv", "jsonl": "application/jsonl", "parquet": PARQUET}

_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.OK: {
        "description": "The results so far",
        "content": {
            media_type: {
                "schema": {"type": "string"} | ({"format": "binary"} if media_type == PARQUET else {})
            }
            for media_type in STREAMS
        },
    },
    HTTPStatus.NOT_ACCEPTABLE: {},
}


@router.get("/{batch_id}/results", response_model=list[Result], responses=_ANSWERS)
def list_results(
    batch_id: str,
    session: SubmitSession,
    request: Request,
    label: Annotated[
        str | None, Query(max_length=1024, pattern=NO_NUL, description="only images with this label")
    ] = None,
    below: Annotated[
        float | None, Query(ge=0, le=1, description="only labels with a confidence below this")
    ] = None,
    at_least: Annotated[
        float | None, Query(ge=0, le=1, description="only labels with this confidence or more")
    ] = None,
    errors: Annotated[bool, Query(description="only images with an error")] = False,
    error: Annotated[
        str | None, Query(max_length=32, pattern=NO_NUL, description="only images with this error code")
    ] = None,
    name: Annotated[
        str | None,
        Query(max_length=MAX_GLOB_LENGTH, pattern=NO_NUL, description="only names that match this glob"),
    ] = None,
    truth: Annotated[
        str | None,
        Query(
            max_length=1024,
            pattern=NO_NUL,
            description="only images of this true class: that of their correction, otherwise of their "
            "manifest, otherwise their folder",
        ),
    ] = None,
    mistakes: Annotated[
        bool,
        Query(description="only images whose label is not their true class"),
    ] = False,
    after: Annotated[
        int, Query(ge=-1, le=MAX_NUMBER, examples=[99], description="continue after this index")
    ] = -1,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="a page of this many results")] = None,
    spreadsheet: Annotated[
        bool,
        Query(description="CSV, escaped for spreadsheets: names then differ. Other formats need no escapes"),
    ] = False,
    format: Annotated[  # noqa: A002
        Literal["csv", "jsonl", "parquet"] | None,
        Query(description="download a file in this format, whatever `Accept` names"),
    ] = None,
) -> Response:
    """Return the results so far, in the order of the images, in the format that `Accept` names.

    With `limit`, return a page; the header `Link` names the next one. Without it, JSON has a page of 100
    results, and JSON lines, CSV and Parquet have all.
    """
    headers = {}
    accept = request.headers.get("accept")
    if format is not None:
        accept = _DOWNLOADS[format]
        headers["Content-Disposition"] = f'attachment; filename="{batch_id}.{format}"'
    media_type = choose_media_type(accept, csv_only=spreadsheet and format is None)
    stream = STREAMS.get(media_type)
    if spreadsheet and media_type == "text/csv":
        stream = partial(stream_csv, escape=spreadsheet_text)
    if stream is None and limit is None:
        limit = _PAGE
    with conflicts():
        predictions = session.client.predictions(
            found_id(session, batch_id),
            label=label,
            below=below,
            at_least=at_least,
            errors=errors,
            error=error,
            name=name,
            truth=truth,
            mistakes=mistakes,
            after=after,
            limit=limit,
        )
        if stream is not None and limit is None:
            return StreamingResponse(begun(stream(predictions)), media_type=media_type, headers=headers)
        found = list(predictions)
    if len(found) == limit:
        query = {**request.query_params, "after": found[-1].index, "limit": limit}
        headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    if stream is None:
        results = [Result.of(prediction).model_dump() for prediction in found]
        return JSONResponse(results, headers=headers)
    return Response(b"".join(stream(found)), media_type=media_type, headers=headers)


def choose_media_type(accept: str | None, *, csv_only: bool = False) -> str:
    """Return the media type that a header `Accept` prefers, JSON if it has no preference.

    With `csv_only`, nothing else is offered. Raises ApiError, 406, if it permits none.
    """
    offered = [JSON, *(each for each in STREAMS if each != PARQUET or find_spec("pyarrow") is not None)]
    if csv_only:
        offered = ["text/csv"]
    ranges = _ranges(accept or "*/*")
    # Of equals, `max` returns the first, which is JSON.
    best = max(offered, key=lambda each: _quality(each, ranges))
    if _quality(best, ranges) > 0:
        return best
    detail = f"Accept: choose one of {', '.join(offered)}."
    if PARQUET not in offered and not csv_only:
        detail += " For Parquet, install pyarrow on the server."
    raise ApiError(HTTPStatus.NOT_ACCEPTABLE, ProblemCode.NOT_ACCEPTABLE, detail)


def _ranges(accept: str) -> dict[str, float]:
    """Return the media ranges of a header `Accept`, with their weights."""
    found = {}
    for part in accept.split(","):
        media, *parameters = (each.strip().lower() for each in part.split(";"))
        weight = next((each.removeprefix("q=") for each in parameters if each.startswith("q=")), "1")
        try:
            found[media] = float(weight)
        except ValueError:  # a malformed weight: as if it was not accepted
            found[media] = 0.0
    return found


def _quality(media_type: str, ranges: dict[str, float]) -> float:
    """Return the weight of a media type: that of the most specific range that it belongs to."""
    for each in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        if each in ranges:
            return ranges[each]
    return 0.0
