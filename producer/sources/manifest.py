"""Read the images that a manifest names, under its owner's own ids.

A row names an image by `path`, or by `url`: a link or a `data:` image. Its `custom_id`, if it has one, is the
image's name, and its `label` the true one. The request lines of OpenAI's Batch API are rows, too. A row
without a readable image is that image's error; a file that is no manifest, or that repeats a `custom_id`, is
a SourceError before any image is read.
"""
# Paths are strings, as in `files`.
# ruff: noqa: PTH118

from __future__ import annotations

import os
import sys
import time
import unicodedata
from base64 import b64decode
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from jobs.errors import AddressForbidden, ErrorCode, ImageError, SourceError, Unavailable
from jobs.network.objects import is_chained, is_url, is_web, local_path, open_remote, read_object, shown_url
from jobs.network.references import Roots
from jobs.reading import read_regular, too_large, why
from jobs.text import storable
from producer.sources.ahead import Unread, read_ahead
from producer.sources.files import is_below, shown
from producer.sources.image import SourceImage, Turn, check_name_length
from producer.sources.repeats import Repeats
from producer.sources.rows import MAX_LINE_BYTES, read_rows, wrong

_COLUMNS: Final = ("custom_id", "path", "url", "body", "label")

#: How long the server of one image may take, in seconds, and the pauses before it is asked again.
_SECONDS: Final = 20.0
_PAUSES: Final = (0.0, 1.0)

_REDIRECTS: Final = 5

#: How large an image behind a link is expected to be: this limits how many are read at the same time.
_USUAL_BYTES: Final = 4 * 1024 * 1024

#: Statuses after which the server may answer differently the next time.
_TRANSIENT: Final = frozenset((408, 425, 429, 500, 502, 503, 504))

#: The keys in a request's body that have a link to an image.
_IMAGE_KEYS: Final = ("image_url", "image", "url", "input")


class _Row(NamedTuple):
    name: str
    path: str | None
    url: str | None
    error: str | None  # why it names no image
    label: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest, and the places that its rows may name."""

    file: str | bytes  # its path, or its content
    name: str  # its owner's name for it, which decides its format
    max_bytes: int  # of one image
    #: The folder that its paths are relative to and may not leave. Without one, paths and links to object
    #: stores must be below these roots.
    folder: str | None = None
    roots: Roots | None = None
    private_hosts: Collection[str] = ()
    max_rows: int = sys.maxsize
    turn: Turn = field(default_factory=Turn)  # of who reads it: its end raises TurnOver

    def check(self) -> None:
        """Raise SourceError if a part of it cannot be parsed, or a `custom_id` is repeated.

        It must have a row, and at most `max_rows`. Nothing that a row names is read.
        """
        repeats = Repeats()
        rows = 0
        for _, row in self._rows():
            rows += 1
            if rows > self.max_rows:
                raise SourceError(
                    f"{self.name} has more than {self.max_rows:,} rows, the limit for one job: submit it in "
                    "parts, or set LABELMILL_MAX_JOB_IMAGES higher."
                )
            if (custom_id := _custom_id(row)) is not None:
                repeats.add(custom_id)
        if not rows:
            raise SourceError(f"{self.name} has no rows: name an image in each.")
        repeated = repeats.hashes()
        if not repeated:
            return
        first: dict[str, str] = {}
        for place, row in self._rows():
            custom_id = _custom_id(row)
            if custom_id is None or hash(custom_id) not in repeated:
                continue
            if custom_id in first:
                raise wrong(
                    f"{self.name}, {place}",
                    f"its custom_id {custom_id[:100]!r} is that of {first[custom_id]}, too",
                )
            first[custom_id] = place

    def images(self, skip: int = 0) -> Iterator[SourceImage]:
        """Yield the image of each row, in order, except the first `skip` rows.

        Links are read many at a time. Raises SourceError, Unavailable, TurnOver.
        """
        rows = islice(enumerate(self._rows()), skip, None)
        return read_ahead((self._found(self._row(number, row)) for number, (_, row) in rows), self.turn)

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            with BytesIO(self.file) if isinstance(self.file, bytes) else Path(self.file).open("rb") as file:
                for found in read_rows(
                    file,
                    self.name,
                    self.name,
                    columns=_COLUMNS,
                    check=self._check_columns,
                    max_line_bytes=MAX_LINE_BYTES + self.max_bytes * 4 // 3,  # an image in base64
                ):
                    self.turn.check()
                    yield found
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read ({why(error)}): check its permissions.") from None

    def _check_columns(self, names: Iterable[str]) -> None:
        if set(names).isdisjoint(("path", "url", "body")):
            raise SourceError(
                f"{self.name} has no column path or url: a manifest names each image in one of them. It may "
                "have a column custom_id, too."
            )

    def _row(self, number: int, row: dict[str, Any]) -> _Row:
        error = None
        path, url = row.get("path"), row.get("url")
        if isinstance(row.get("body"), dict):
            path, links = None, _links_in(row["body"])
            url = links[0] if len(links) == 1 else None
            error = None if url else f"its body has {len(links)} images: it needs one"
        elif bool(path) == bool(url):
            error = "it has a path and a url: keep one" if path else "it needs a path or a url"
        elif not isinstance(path or url, str):
            error = f"its {'path' if path else 'url'} is not text"
        name = _custom_id(row)
        if name is None:
            name = f"image-{number}" if error or _is_data(url) else self._usual_name(path, url)
        return _Row(name, path or None, url or None, error, _label(row))

    def _usual_name(self, path: str | None, url: str | None) -> str:
        if path:
            return storable(path) if self.folder is None else shown(os.path.join(self.folder, path))
        return storable(shown_url(url or ""))

    def _found(self, row: _Row) -> SourceImage | Unread:
        """Return the image, or, if it is behind a link, what reads it."""
        read = partial(self._read, row)
        is_far = row.error is None and row.path is None and not _is_data(row.url)
        return Unread(read, min(self.max_bytes, _USUAL_BYTES)) if is_far else read()

    def _read(self, row: _Row) -> SourceImage:
        """Read the row's image. If that fails, return its error. Raises Unavailable."""
        try:
            if row.error is not None:
                raise ImageError(ErrorCode.SOURCE_MISSING, row.error)
            link, path = row.url or "", row.path
            data, url = self._read_link(link) if path is None else self._read_file(path)
        except ImageError as error:
            return check_name_length(SourceImage(row.name, None, error, label=row.label))
        return check_name_length(SourceImage(row.name, data, None, url, row.label))

    def _read_file(self, path: str) -> tuple[bytes, str]:
        """Return the bytes of a local file, and its path. Raises ImageError."""
        try:
            if self.folder is not None:
                located = os.path.join(self.folder, path)
                resolved = os.path.realpath(located)
                if not is_below(resolved, os.path.realpath(self.folder)):
                    raise ImageError(ErrorCode.SOURCE_FORBIDDEN, "it leads out of the manifest's folder")
            elif self.roots is None or not os.path.isabs(path):  # noqa: PTH117
                raise ImageError(
                    ErrorCode.SOURCE_FORBIDDEN,
                    "it is not an absolute path below a root in LABELMILL_REFERENCE_ROOTS: add its folder "
                    "there",
                )
            else:
                located = self.roots.locate(path)  # the worker's path, by reference
                resolved = os.path.realpath(located)
            # No further symlink is followed, because the file may have been replaced by one.
            return read_regular(resolved, max_bytes=self.max_bytes, follow=False), located
        except (OSError, ValueError) as error:
            raise ImageError(ErrorCode.SOURCE_MISSING, why(error)) from None

    def _read_link(self, url: str) -> tuple[bytes, str | None]:
        """Return the bytes behind a link, and its address if it has one. Raises ImageError, Unavailable."""
        if _is_data(url):
            return _decode(url, self.max_bytes), None
        if storable(url) != url:
            raise ImageError(
                ErrorCode.SOURCE_FORBIDDEN,
                "it has a character that is not allowed in a URL: write it percent-encoded",
            )
        try:
            path = local_path(url)
        except ValueError as error:
            raise ImageError(ErrorCode.SOURCE_FORBIDDEN, str(error)) from None
        if not is_url(url):
            raise ImageError(ErrorCode.SOURCE_FORBIDDEN, "not a URL: name files in the column path")
        if not is_url(path):
            return self._read_file(path)
        if is_web(url.partition("://")[0]):
            return _download(url, self.max_bytes, self.private_hosts), url
        if is_chained(url):
            raise ImageError(ErrorCode.SOURCE_FORBIDDEN, "it chains file systems")
        if self.roots is not None:
            url = self.roots.locate(url)
        try:
            filesystem, path = open_remote(url)
        except (ValueError, ImportError) as error:
            raise ImageError(ErrorCode.SOURCE_MISSING, str(error)) from None
        return read_object(filesystem, path, url=url, max_bytes=self.max_bytes), url


def _custom_id(row: dict[str, Any]) -> str | None:
    """Return the owner's id of a row, or None."""
    custom_id = row.get("custom_id")
    return None if custom_id is None or custom_id == "" else storable(str(custom_id))


def _label(row: dict[str, Any]) -> str | None:
    """Return the true label in a row, or None. Classes are named in this form, too."""
    label = row.get("label")
    return None if label is None or label == "" else unicodedata.normalize("NFC", storable(str(label)))


def _is_data(url: str | None) -> bool:
    return url is not None and url[:5].lower() == "data:"


def _decode(url: str, max_bytes: int) -> bytes:
    """Return the bytes of a `data:` URL. Raises ImageError."""
    head, comma, data = url.partition(",")
    if not comma:
        raise ImageError(ErrorCode.CORRUPT, "a data: URL without a comma")
    try:
        if head.lower().endswith(";base64"):
            if len(data) * 3 // 4 > max_bytes + 2:  # two bytes of padding
                raise too_large(max_bytes)
            found = b64decode("".join(data.split()), validate=True)
        else:
            found = unquote_to_bytes(data)
    except ValueError:
        raise ImageError(ErrorCode.CORRUPT, "a data: URL that is not base64") from None
    if len(found) > max_bytes:
        raise too_large(max_bytes)
    return found


def _links_in(body: dict[str, Any]) -> list[str]:
    """Return the links and `data:` images in the body of a request, in order."""
    links = []
    waiting: list[tuple[str, Any]] = [("", body)]  # a stack: JSON may be nested deeply
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += reversed(value.items())
        elif isinstance(value, list):
            waiting += [(key, each) for each in reversed(value)]
        elif key in _IMAGE_KEYS and isinstance(value, str) and (is_url(value) or _is_data(value)):
            links.append(value)
    return links


def _download(url: str, max_bytes: int, private_hosts: Collection[str]) -> bytes:
    """Return the bytes at a web address. Raises ImageError."""
    from jobs.network.outbound import request

    reason = ""
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            answer = request(
                "GET",
                url,
                timeout=_SECONDS,
                max_bytes=max_bytes,
                redirects=_REDIRECTS,
                private=private_hosts,
            )
        except AddressForbidden as error:
            raise ImageError(ErrorCode.SOURCE_FORBIDDEN, str(error)) from None
        except Unavailable as error:
            reason = str(error)
            continue
        if answer.status == HTTPStatus.OK:
            if len(answer.body) > max_bytes:
                raise too_large(max_bytes)
            return answer.body
        reason = f"the server answered {answer.status}"
        if answer.status not in _TRANSIENT:
            break
    raise ImageError(ErrorCode.SOURCE_MISSING, reason)
