"""Predictions as a table, CSV, JSON lines or Parquet, row by row: a job of any size in constant memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from operator import attrgetter
from typing import IO, Any, Final

from jobs.errors import UserError
from jobs.extras import install_hint
from jobs.ledger.queries import PAGE_ROWS, Prediction

#: The most characters that a column of names is given in a table: one long name would part all others from
#: what is said of them.
NAME_WIDTH: Final = 60

#: Of the control characters those that JSON does not write out.
_TAKEN_BY_JSON: Final = re.compile("[\x7f-\x9f]")

COLUMNS: Final = ("index", "name", "label", "confidence", "error", "detail", "model")
_row: Final = attrgetter(*COLUMNS)


class Format(StrEnum):
    """How predictions are written."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def as_json(prediction: Prediction) -> dict[str, Any]:
    """One prediction as a JSON object."""
    return dict(zip(COLUMNS, _row(prediction), strict=True))


def write_csv(predictions: Iterable[Prediction], out: IO[str]) -> int:
    """A header row, then a row a prediction; empty where there is no value. Gives back the number of rows."""
    writer = csv.writer(out, lineterminator="\n")
    # Before Python 3.13 a lone carriage return is not quoted, and readers take it for the end of a row.
    careful = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(COLUMNS)
    count = 0
    for count, prediction in enumerate(predictions, 1):  # noqa: B007 -- it is the result
        (careful if "\r" in prediction.name else writer).writerow(_row(prediction))
    return count


def write_jsonl(predictions: Iterable[Prediction], out: IO[str]) -> int:
    """A JSON object a line. Gives back the number of rows."""
    count = 0
    for count, prediction in enumerate(predictions, 1):  # noqa: B007 -- it is the result
        out.write(printable_json(json.dumps(as_json(prediction), ensure_ascii=False)) + "\n")
    return count


def write_table(predictions: Iterable[Prediction], out: IO[str]) -> int:
    """Aligned columns for people. The first page of rows sets the widths, up to NAME_WIDTH; what is longer
    sticks out.
    """
    pages = _pages(predictions)
    page = next(pages, [])
    width = name_width(prediction.name for prediction in page)
    out.write(f"{'index':>8}  {'name':<{width}}  {'label':<12}  confidence\n")
    count = 0
    while page:
        for prediction in page:
            if prediction.error is not None:
                reason = f"{prediction.error}: {prediction.detail}" if prediction.detail else prediction.error
                outcome = f"{'-':<12}  {printable(reason)}"
            else:
                outcome = f"{printable(prediction.label or ''):<12}  {prediction.confidence:.4f}"
            out.write(f"{prediction.index:>8}  {printable(prediction.name):<{width}}  {outcome}\n")
        count += len(page)
        page = next(pages, [])
    return count


def name_width(names: Iterable[str]) -> int:
    """How wide a table's column for these names is."""
    return min(NAME_WIDTH, max([4, *(len(printable(name)) for name in names)]))


def printable(text: str) -> str:
    """Control characters written out: a name, of a file or a class, must not move the cursor of whoever looks
    at it.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_json(text: str) -> str:
    """The same document with those control characters written out that JSON takes as they are."""
    return _TAKEN_BY_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def check_parquet() -> None:
    """Raises UserError without pyarrow: for who opens a file only where something can be written."""
    try:
        import pyarrow.parquet  # noqa: F401 -- only whether it is there
    except ImportError:
        raise UserError(f"Parquet needs pyarrow: {install_hint('parquet')}.") from None


def write_parquet(predictions: Iterable[Prediction], out: IO[bytes]) -> int:
    """A Parquet file, a row group a page. Gives back the number of rows. Raises UserError without pyarrow."""
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("error", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("model", pa.string(), nullable=False),
        ]
    )
    count = 0
    with pq.ParquetWriter(out, schema) as writer:
        for page in _pages(predictions):
            columns = [list(column) for column in zip(*map(_row, page), strict=True)]
            writer.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=schema))
            count += len(page)
    return count


def _pages(predictions: Iterable[Prediction]) -> Iterator[list[Prediction]]:
    rows = iter(predictions)
    while page := list(islice(rows, PAGE_ROWS)):
        yield page
