"""Read manifests: CSV, JSON lines or Parquet with `path` or `url`, `label`, perhaps `split` and `group`."""

from __future__ import annotations

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
from producer.sources.files import shown
from producer.sources.rows import read_rows, wrong

_COLUMNS: Final = ("path", "url", "label", "split", "group")


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
        return UserError(f"{self.where}: {what}.")


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
    classes: set[str] = set()
    labels: dict[tuple[Any, Any], Label] = {}
    found = read_rows(file, name, where, columns=_COLUMNS, check=lambda names: _check_columns(names, where))
    for number, row in found:
        place = f"{where}, {number}"
        path, url = (_text(row.get(column), column, place) for column in ("path", "url"))
        if (path is None) == (url is None):
            raise wrong(
                place, "it needs a path or a url" if path is None else "it has a path and a url: keep one"
            )
        key = row.get("label"), row.get("split")
        label = labels.get(key) if isinstance(key[0], str) and isinstance(key[1], str | None) else None
        if label is None:
            label = labels[key] = _label(row, place)
            classes.add(label.name)
            check_class_count(classes, where)
        group = _text(row.get("group"), "group", place)
        yield Row(place, path, url, label if group is None else label._replace(group=group))


def _label(row: dict[str, Any], place: str) -> Label:
    name, split = _text(row.get("label"), "label", place), _text(row.get("split"), "split", place)
    if name is None:
        raise wrong(place, "it has no label: write its class in the column label")
    if split is not None and split.lower() not in SPLITS:
        raise wrong(place, f"its split is {split!r}, not train, validation or test")
    try:
        return to_label(name, None if split is None else SPLITS[split.lower()])
    except UserError as error:
        raise wrong(place, str(error).rstrip(".")) from None


def _text(value: Any, column: str, place: str) -> str | None:
    """Return a cell's text, or None if it is empty. Raises UserError if it is not text."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise wrong(
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
