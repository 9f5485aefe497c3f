"""Read the rows of manifests: CSV, JSON lines or Parquet, a few rows in memory at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO, Final

from jobs.errors import SourceError, UserError
from producer.export import check_parquet
from producer.sources.pages import UNBOUNDED, read_pages

_CSV: Final = (".csv",)
_JSON_LINES: Final = (".jsonl", ".ndjson")
_PARQUET: Final = (".parquet",)

#: Far more than the longest path, a signed URL and a label need.
MAX_LINE_BYTES: Final = 1024 * 1024

#: Maximum values of a row: each takes some 60 bytes of memory, and an image is a single one.
_MAX_VALUES: Final = 100_000

#: How many rows of a Parquet file are in memory at a time, and how many bytes: each row may have an image.
_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 16 * 1024 * 1024

#: A page of a Parquet file unpacks to at most so many bytes, or else to so many times its size. Writers make
#: pages of 1 MiB, or of 1,024 rows: with images, which hardly compress, those are larger.
_PAGE_BYTES: Final = 64 * 1024 * 1024
_PAGE_EXPANSION: Final = 4

#: Receives the names of a manifest's columns, and raises UserError if it lacks one.
CheckColumns = Callable[[Iterable[str]], None]


def is_manifest(name: str) -> bool:
    """Return whether a file is a manifest, by its name."""
    return name.lower().endswith((*_CSV, *_JSON_LINES, *_PARQUET))


def read_rows(
    file: BinaryIO,
    name: str,
    where: str,
    *,
    columns: Collection[str],
    check: CheckColumns,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a manifest, and its place in it, such as "line 3".

    `name` decides the format, `where` is the manifest in messages. Other columns than `columns` may be left
    out. Raises SourceError if it is not such a file, and what `check` raises.
    """
    kind = name.lower()
    if kind.endswith(_PARQUET):
        return _parquet_rows(file, where, columns, check)
    lines = _lines(file, where, max_line_bytes)
    if kind.endswith(_JSON_LINES):
        return _json_rows(lines, where, check)
    csv.field_size_limit(max(csv.field_size_limit(), max_line_bytes))
    return _csv_rows(lines, where, check, max_line_bytes)


def _csv_rows(
    lines: Iterator[str], where: str, check: CheckColumns, max_bytes: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    size = values = 0  # of the current row, which may have many lines

    def counted() -> Iterator[str]:
        nonlocal size, values
        for line in lines:
            size += len(line)
            values += line.count(",")
            if size > max_bytes or values > _MAX_VALUES:
                raise wrong(
                    f"{where}, line {reader.reader.line_num + 1}",
                    f"its row has more than {max_bytes:,} bytes or {_MAX_VALUES:,} values",
                )
            yield line

    reader = csv.DictReader(counted(), strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        check(reader.fieldnames)
        for row in reader:
            size = values = 0
            if row.pop(None, None):
                raise wrong(
                    f"{where}, line {reader.line_num}", "it has more cells than the first line has columns"
                )
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise wrong(f"{where}, line {reader.reader.line_num}", f"it is not CSV ({error})") from None


def _json_rows(lines: Iterator[str], where: str, check: CheckColumns) -> Iterator[tuple[str, dict[str, Any]]]:
    known = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(line) > MAX_LINE_BYTES and sum(map(line.count, ",[{")) > _MAX_VALUES:
            raise wrong(f"{where}, line {number}", f"it has more than {_MAX_VALUES:,} values")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise wrong(f"{where}, line {number}", "it is not a JSON object")
        if not known:
            check(row)
            known = True
        yield f"line {number}", row


def _parquet_rows(
    file: BinaryIO, where: str, columns: Collection[str], check: CheckColumns
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        check_parquet()
    except UserError as error:
        raise SourceError(str(error)) from None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        fields = [field for field in table.schema_arrow if field.name in columns]
        wanted = [field.name for field in fields]
        check(wanted)
        for field in fields:
            if pa.types.is_nested(field.type):  # one row of it may have any size
                raise wrong(f"{where}, column {field.name}", "it is nested: write text")
        number = 0
        for group in range(table.num_row_groups):
            # A value is at most as large as a page, but a page of a dictionary may be the value of every row.
            page = _largest_page(file, table.metadata.row_group(group), wanted, where)
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, page)))
            for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, OSError, ArithmeticError, ValueError, RecursionError) as error:
        raise SourceError(f"{where} cannot be read ({error}): write it again.") from None


def _largest_page(file: BinaryIO, group: Any, columns: Collection[str], where: str) -> int:
    """Return the unpacked size of the largest page of these columns. Raises SourceError if it is a bomb."""
    largest = 0
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema not in columns:
            continue
        place = f"{where}, column {column.path_in_schema}"
        for page in read_pages(file, column):
            if page.unpacked > max(_PAGE_BYTES, page.packed * _PAGE_EXPANSION):
                sizes = f"a page of {page.packed:,} bytes unpacks to {page.unpacked:,}"
                raise wrong(place, f"{sizes}: write smaller pages")
            for encoding in page.encodings:
                if encoding in UNBOUNDED:
                    raise wrong(place, f"it is encoded as {UNBOUNDED[encoding]}: write it as PLAIN")
            largest = max(largest, page.unpacked)
    return largest


def _lines(file: BinaryIO, where: str, max_bytes: int) -> Iterator[str]:
    """Yield the lines of a text in UTF-8. Raises SourceError."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise wrong(f"{where}, line {number}", f"it has more than {max_bytes:,} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise wrong(f"{where}, line {number}", "it is not UTF-8") from None


def wrong(place: str, what: str) -> SourceError:
    """Return the error for a manifest that cannot be used."""
    return SourceError(f"{place}: {what}.")
