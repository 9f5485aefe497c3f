"""Read manifests: CSV, JSON lines or Parquet with `path` or `url`, `label`, and optionally `split`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from jobs.errors import UserError
from jobs.reading import why
from jobs.text import storable
from labelmill.datasets.labels import SPLITS, Label, check_class_count, to_label
from producer.export import check_parquet
from producer.sources.files import shown

_CSV: Final = (".csv",)
_JSON_LINES: Final = (".jsonl", ".ndjson")
_PARQUET: Final = (".parquet",)

#: Far more than the longest path, a signed URL and a label need.
_MAX_LINE_BYTES: Final = 1024 * 1024

#: The number of rows of a Parquet file that are in memory at a time.
_PARQUET_ROWS: Final = 4_096

_COLUMNS: Final = ("path", "url", "label", "split")


class ManifestFile(NamedTuple):
    """A manifest in an archive."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest."""

    where: str  # the manifest and the row, for messages
    path: str | None  # relative to the manifest's folder
    url: str | None  # if there is no path
    label: Label

    def wrong(self, what: str) -> UserError:
        """Return the error for this row."""
        return _wrong(self.where, what)


def is_manifest(path: str) -> bool:
    """Return whether a file is a manifest, by its name."""
    return path.lower().endswith((*_CSV, *_JSON_LINES, *_PARQUET))


def read_manifest_file(path: str) -> Iterator[Row]:
    """Yield the rows of a manifest, one at a time. Raises UserError."""
    try:
        with Path(path).open("rb") as file:
            yield from _rows(file, path, shown(path))
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({why(error)}): check its permissions.") from None


def rows_of(manifest: ManifestFile, where: str) -> Iterator[Row]:
    """Yield the rows of a manifest that was in an archive. Raises UserError."""
    return _rows(io.BytesIO(manifest.data), manifest.name, where)


def _rows(file: BinaryIO, name: str, where: str) -> Iterator[Row]:
    kind = name.lower()
    if kind.endswith(_PARQUET):
        found = _parquet_rows(file, where)
    elif kind.endswith(_JSON_LINES):
        found = _json_rows(file, where)
    else:
        found = _csv_rows(file, where)
    classes: set[str] = set()
    labels: dict[tuple[Any, Any], Label] = {}
    for number, row in found:
        place = f"{where}, {number}"
        path, url = (_text(row.get(column), column, place) for column in ("path", "url"))
        if (path is None) == (url is None):
            raise _wrong(
                place, "it needs a path or a url" if path is None else "it has a path and a url: keep one"
            )
        key = row.get("label"), row.get("split")
        label = labels.get(key) if isinstance(key[0], str) and isinstance(key[1], str | None) else None
        if label is None:
            label = labels[key] = _label(row, place)
            classes.add(label.name)
            check_class_count(classes, where)
        yield Row(place, path, url, label)


def _label(row: dict[str, Any], place: str) -> Label:
    name, split = _text(row.get("label"), "label", place), _text(row.get("split"), "split", place)
    if name is None:
        raise _wrong(place, "it has no label")
    if split is not None and split.lower() not in SPLITS:
        raise _wrong(place, f"its split is {split!r}, not train, validation or test")
    try:
        return to_label(name, None if split is None else SPLITS[split.lower()])
    except UserError as error:
        raise _wrong(place, str(error).rstrip(".")) from None


def _text(value: Any, column: str, place: str) -> str | None:
    """Return a cell's text, or None if it is empty. Raises UserError if it is not text."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(
            place,
            f"its {column} is {json.dumps(value, default=str)[:50]}, which is not text: write it in quotes",
        )
    return storable(value)


def _check_columns(names: Iterable[str], where: str) -> None:
    """Raise UserError unless there are columns for an image and its label."""
    found = set(names)
    missing = [] if found & {"path", "url"} else ["path or url"]
    missing += [] if "label" in found else ["label"]
    if missing:
        raise UserError(
            f"{where} has no column {' and no column '.join(missing)}: a manifest names each image in the "
            "column path or url, and its class in the column label."
        )


def _csv_rows(file: BinaryIO, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_lines(file, where), strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        _check_columns(reader.fieldnames, where)
        for row in reader:
            if row.pop(None, None):
                raise _wrong(
                    f"{where}, line {reader.line_num}", "it has more cells than the first line has columns"
                )
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise _wrong(f"{where}, line {reader.reader.line_num}", f"it is not CSV ({error})") from None


def _json_rows(file: BinaryIO, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    known: set[str] = set()
    for number, line in enumerate(_lines(file, where), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise _wrong(f"{where}, line {number}", "it is not a JSON object")
        if not known:
            known.update(row)
            _check_columns(known, where)
        yield f"line {number}", row


def _parquet_rows(file: BinaryIO, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    check_parquet()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        columns = [name for name in table.schema_arrow.names if name in _COLUMNS]
        _check_columns(columns, where)
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pa.ArrowException as error:
        raise UserError(f"{where} cannot be read ({error}): write it again.") from None


def _lines(file: BinaryIO, where: str) -> Iterator[str]:
    """Yield the lines of a text in UTF-8, with at most _MAX_LINE_BYTES in memory. Raises UserError."""
    number = 0
    while line := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise _wrong(f"{where}, line {number}", f"it has more than {_MAX_LINE_BYTES:,} bytes")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise _wrong(f"{where}, line {number}", "it is not UTF-8") from None


def _wrong(place: str, what: str) -> UserError:
    return UserError(f"{place}: {what}.")
