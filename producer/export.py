"""Write predictions as a table, CSV, JSON lines or Parquet, in constant memory for a job of any size."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import IO, Any, Final, get_args, get_origin, get_type_hints

from jobs.errors import UserError
from jobs.extras import install_hint
from jobs.ledger.jobs.outcomes import COLUMN_NAMES, RESULT_COLUMNS, Prediction, as_json, values_of
from jobs.ledger.jobs.queries import PAGE_ROWS

#: Maximum width of the column of names in a table, so that one long name does not widen every row.
NAME_WIDTH: Final = 60

#: The control characters that JSON does not escape.
_UNESCAPED_BY_JSON: Final = re.compile("[\x7f-\x9f]")

#: The characters that begin a formula in a spreadsheet; the last four are full-width.
_FORMULA: Final = tuple("=+-@\uff1d\uff0b\uff0d\uff20")

#: The columns that are JSON in CSV, which has neither lists nor booleans.
_JSON_IN_CSV: Final = [
    place for place, column in enumerate(RESULT_COLUMNS) if column.type not in (int, float, str)
]


class Format(StrEnum):
    """The formats in which predictions are written."""

    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


#: Changes the text of a cell.
Escape = Callable[[str], str]


def write_csv(
    predictions: Iterable[Prediction], out: IO[str], *, header: bool = True, escape: Escape | None = None
) -> int:
    """Write a header row and one row per prediction; missing values are empty, lists are JSON.

    Texts are exact, or what `escape` makes of them. Return the number of rows.
    """
    writer = csv.writer(out, lineterminator="\n")
    # Before Python 3.13, a lone carriage return is not quoted, and readers end the row there.
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    if header:
        writer.writerow(COLUMN_NAMES)

    def cells(prediction: Prediction) -> list[Any]:
        row = list(values_of(prediction))
        for place in _JSON_IN_CSV:
            if row[place] is not None:
                row[place] = json.dumps(row[place], ensure_ascii=False)
        return row if escape is None else [escape(each) if isinstance(each, str) else each for each in row]

    count = 0
    for count, prediction in enumerate(predictions, 1):  # noqa: B007 -- it is the result
        # A spreadsheet may also separate cells at other characters than commas, unless they are quoted.
        (quoting if escape or "\r" in prediction.name else writer).writerow(cells(prediction))
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


def spreadsheet_text(text: str) -> str:
    """Return the text so that a spreadsheet shows it: one that begins like a formula would be calculated.

    As OWASP advises on CSV injection, such a text gets a single quote in front. Control characters, some of
    which begin a formula, too, are escaped.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


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

    schema = pa.schema(
        [pa.field(column.name, _to_arrow(column.type), column.nullable) for column in RESULT_COLUMNS]
    )
    with pq.ParquetWriter(out, schema) as writer:
        for page in pages_of(predictions):
            columns = [list(column) for column in zip(*map(values_of, page), strict=True)]
            writer.write_table(pa.table(dict(zip(COLUMN_NAMES, columns, strict=True)), schema=schema))
            yield len(page)


def _to_arrow(kind: Any) -> Any:
    """Return the Arrow type for a column's type in Python. Confidences are float32, as in the ledger."""
    import pyarrow as pa

    simple = {int: pa.int64(), str: pa.string(), float: pa.float32(), bool: pa.bool_()}
    if kind in simple:
        return simple[kind]
    if get_origin(kind) is list:
        return pa.list_(_to_arrow(get_args(kind)[0]))
    return pa.struct([pa.field(name, _to_arrow(each)) for name, each in get_type_hints(kind).items()])


def pages_of(predictions: Iterable[Prediction]) -> Iterator[list[Prediction]]:
    """Yield the predictions in pages."""
    rows = iter(predictions)
    while page := list(islice(rows, PAGE_ROWS)):
        yield page
