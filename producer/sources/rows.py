"""Read the rows of manifests: CSV, JSON lines or Parquet, a few rows in memory at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, BinaryIO, Final

from jobs.errors import SourceError, UserError
from producer.export import check_parquet

_CSV: Final = (".csv",)
_JSON_LINES: Final = (".jsonl", ".ndjson")
_PARQUET: Final = (".parquet",)

#: Far more than the longest path, a signed URL and a label need.
MAX_LINE_BYTES: Final = 1024 * 1024

#: The number of rows of a Parquet file that are in memory at a time: each may contain an image.
_PARQUET_ROWS: Final = 64

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
    return _csv_rows(lines, where, check)


def _csv_rows(lines: Iterator[str], where: str, check: CheckColumns) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        check(reader.fieldnames)
        for row in reader:
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
        wanted = [name for name in table.schema_arrow.names if name in columns]
        check(wanted)
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{where} cannot be read ({error}): write it again.") from None


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
