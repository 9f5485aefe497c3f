"""Write predictions as a table, CSV, JSON lines or Parquet, in constant memory for a job of any size."""

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
from jobs.ledger.jobs.queries import PAGE_ROWS, Prediction

#: Maximum width of the column of names in a table, so that one long name does not widen every row.
NAME_WIDTH: Final = 60

#: The control characters that JSON does not escape.
_UNESCAPED_BY_JSON: Final = re.compile("[\x7f-\x9f]")

COLUMNS: Final = ("index", "name", "label", "confidence", "error", "detail", "model", "alternatives")
_row: Final = attrgetter(*COLUMNS)


class Format(StrEnum):
    """The formats in which predictions are written."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as a JSON object."""
    return dict(zip(COLUMNS, _row(prediction), strict=True))


def write_csv(predictions: Iterable[Prediction], out: IO[str], *, header: bool = True) -> int:
    """Write a header row and one row per prediction; missing values are empty, alternatives are JSON.

    Return the number of rows.
    """
    writer = csv.writer(out, lineterminator="\n")
    # Before Python 3.13, a lone carriage return is not quoted, and readers end the row there.
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    if header:
        writer.writerow(COLUMNS)

    def cells(prediction: Prediction) -> tuple[Any, ...]:
        *others, alternatives = _row(prediction)
        return (*others, alternatives and json.dumps(alternatives, ensure_ascii=False))

    count = 0
    for count, prediction in enumerate(predictions, 1):  # noqa: B007 -- it is the result
        (quoting if "\r" in prediction.name else writer).writerow(cells(prediction))
    return count


def write_jsonl(predictions: Iterable[Prediction], out: IO[str]) -> int:
    """Write one JSON object per line. Return the number of rows."""
    count = 0
    for count, prediction in enumerate(predictions, 1):  # noqa: B007 -- it is the result
        out.write(printable_json(json.dumps(as_json(prediction), ensure_ascii=False)) + "\n")
    return count


def write_table(predictions: Iterable[Prediction], out: IO[str]) -> int:
    """Write aligned columns for people. Return the number of rows.

    The first page of rows sets the width of the names, up to NAME_WIDTH, and whether there are alternatives.
    Longer names push their row to the right.
    """
    pages = pages_of(predictions)
    page = next(pages, [])
    width = min(NAME_WIDTH, max([4, *(len(printable(prediction.name)) for prediction in page)]))
    out.write(f"{'index':>8}  {'name':<{width}}  {'label':<12}  confidence")
    has_alternatives = any(len(prediction.alternatives or ()) > 1 for prediction in page)
    out.write("  alternatives\n" if has_alternatives else "\n")
    count = 0
    while page:
        for prediction in page:
            if prediction.error is not None:
                reason = f"{prediction.error}: {prediction.detail}" if prediction.detail else prediction.error
                outcome = f"{'-':<12}  {printable(reason)}"
            else:
                outcome = f"{printable(prediction.label or ''):<12}  {prediction.confidence:.4f}"
                # The first is the label.
                if others := (prediction.alternatives or [])[1:]:
                    listed = ", ".join(f"{each['label']} {each['confidence']:.4f}" for each in others)
                    outcome = f"{outcome}      {printable(listed)}"
            out.write(f"{prediction.index:>8}  {printable(prediction.name):<{width}}  {outcome}\n")
        count += len(page)
        page = next(pages, [])
    return count


def printable(text: str) -> str:
    """Return the text with control characters escaped: a file's or class's name must not move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_json(text: str) -> str:
    """Return the JSON document with those control characters escaped that JSON permits unescaped."""
    return _UNESCAPED_BY_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def check_parquet() -> None:
    """Raise UserError without pyarrow. Call it before opening the file to write."""
    try:
        import pyarrow.parquet  # noqa: F401 -- checks only that it is installed
    except ImportError:
        raise UserError(f"Parquet needs pyarrow: {install_hint('parquet')}.") from None


def write_parquet(predictions: Iterable[Prediction], out: IO[bytes]) -> int:
    """Write a Parquet file with one row group per page. Return the number of rows.

    Raises UserError without pyarrow.
    """
    return sum(parquet_pages(predictions, out))


def parquet_pages(predictions: Iterable[Prediction], out: IO[bytes]) -> Iterator[int]:
    """Write a Parquet file with one row group per page. Yield the number of rows after each page.

    The file is complete at the end of the iteration. Raises UserError without pyarrow.
    """
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    alternative = pa.struct([pa.field("label", pa.string()), pa.field("confidence", pa.float32())])
    schema = pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("confidence", pa.float32()),
            pa.field("error", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("model", pa.string(), nullable=False),
            pa.field("alternatives", pa.list_(alternative)),
        ]
    )
    with pq.ParquetWriter(out, schema) as writer:
        for page in pages_of(predictions):
            columns = [list(column) for column in zip(*map(_row, page), strict=True)]
            writer.write_table(pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=schema))
            yield len(page)


def pages_of(predictions: Iterable[Prediction]) -> Iterator[list[Prediction]]:
    """Yield the predictions in pages."""
    rows = iter(predictions)
    while page := list(islice(rows, PAGE_ROWS)):
        yield page
