"""The formats of results: which one a request asks for, and how rows are streamed in it.

Rows are read and written a page at a time, so memory is constant for a batch of any size.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from importlib.util import find_spec
from itertools import chain
from typing import Final

from jobs.ledger.jobs.queries import Prediction
from labelmill.server.problems import ApiError
from labelmill.server.schemas import Result
from producer.export import pages_of, parquet_pages, write_csv

JSON: Final = "application/json"
PARQUET: Final = "application/vnd.apache.parquet"


def stream_jsonl(predictions: Iterable[Prediction]) -> Iterator[bytes]:
    """Yield results as JSON lines: the objects that a page in JSON has."""
    for page in pages_of(predictions):
        yield "".join(f"{Result.of(prediction).model_dump_json()}\n" for prediction in page).encode()


def stream_csv(predictions: Iterable[Prediction]) -> Iterator[bytes]:
    """Yield results as CSV, with the columns of the command `predictions`."""
    pages = pages_of(predictions)
    first = next(pages, [])
    for page in chain([first], pages):
        out = io.StringIO()
        write_csv(page, out, header=page is first)
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


def choose_media_type(accept: str | None) -> str:
    """Return the media type that a header `Accept` prefers, JSON if it has no preference.

    Raises ApiError, 406, if it permits none.
    """
    offered = [JSON, *(each for each in STREAMS if each != PARQUET or find_spec("pyarrow") is not None)]
    ranges = _ranges(accept or "*/*")
    # Of equals, `max` returns the first, which is JSON.
    best = max(offered, key=lambda each: _quality(each, ranges))
    if _quality(best, ranges) > 0:
        return best
    detail = f"Accept: choose one of {', '.join(offered)}."
    if PARQUET not in offered:
        detail += " For Parquet, install pyarrow beside the server."
    raise ApiError(HTTPStatus.NOT_ACCEPTABLE, "not_acceptable", detail)


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
