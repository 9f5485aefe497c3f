"""Read images from URLs: single objects, and everything below a prefix.

All URLs that fsspec supports are read, except `file://`, which is a path for `files`. Names are treated as in
a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Final

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.network.objects import is_chained, kind_of, open_remote, reaching, read_object, shown_url
from jobs.reading import too_large
from jobs.text import storable
from producer.sources.ahead import Unread, read_ahead
from producer.sources.image import Reading, SourceImage, extension, failed, is_hidden, is_image_name
from producer.sources.listing import list_folder

#: Extensions of archives, which are read from a disk only.
_ARCHIVES: Final = ("zip", "tar", "tgz", "gz", "bz2", "xz")

#: Errors that concern this one object, not the network.
_NOT_THERE: Final = (FileNotFoundError, NotADirectoryError, PermissionError)


def check_remote(url: str) -> None:
    """Raise SourceError if this URL cannot be read, Unavailable if that cannot be determined now."""
    _resolve(url)


def read_remote(url: str, reading: Reading, *, skip: int = 0) -> Iterator[SourceImage]:
    """Yield the object with this URL, or every image below it, depth first, in the order of the names.

    The first `skip` images below it are left out, and not read. Objects of a store are read many at a time.
    Memory holds some of them, and the listings of one folder and of the folders above it: for S3, only one
    page of each. Raises the errors of `check_remote`, and Unavailable if the network fails later.
    """
    filesystem, path, is_folder = _resolve(url)
    name = storable(shown_url(url))
    if is_folder:
        found = islice(_walk(filesystem, path, url.rstrip("/"), name.rstrip("/"), reading), skip, None)
        if filesystem.async_impl:  # otherwise it has one connection
            yield from read_ahead(found, reading.turn)
        else:
            yield from (each if isinstance(each, SourceImage) else each.read() for each in found)
    else:
        yield _load(filesystem, path, url, name, None, reading.max_bytes)


def _resolve(url: str) -> tuple[Any, str, bool]:
    """Return the file system, the path there, and whether that is a folder."""
    shown = storable(shown_url(url))
    if is_chained(url):
        raise SourceError(f"{shown} chains file systems, which cannot be read: fetch it to a disk first")
    # `shown` excludes a signed URL's query, which is not a part of the name.
    if extension(shown) in _ARCHIVES:
        raise SourceError(f"{shown} is an archive, which is read from a disk only: fetch it first")
    try:
        filesystem, path = open_remote(url)
    except ImportError as error:
        raise SourceError(f"cannot read {shown}: {error}") from error
    except ValueError as error:
        raise SourceError(
            f"cannot read {shown} ({error}): check the spelling, or install the package for such URLs"
        ) from error
    try:
        is_folder = kind_of(filesystem, path, url=url) == "directory"
    except PermissionError:
        raise SourceError(f"access to {shown} is denied: check the credentials in the environment") from None
    except _NOT_THERE:
        raise SourceError(f"cannot find {shown}: check the spelling") from None
    if url.endswith("/") and not is_folder:
        raise SourceError(f"{shown} is not a folder that can be listed: name the files in it")
    return filesystem, path, is_folder


def _walk(
    filesystem: Any, path: str, url: str, name: str, reading: Reading
) -> Iterator[SourceImage | Unread]:
    # A stack instead of recursion, as for folders on a disk.
    levels = [(path, url, name, list_folder(filesystem, path))]
    while levels:
        folder, folder_url, folder_name, entries = levels[-1]
        try:
            with reaching(folder_url, *_NOT_THERE):
                entry = next(entries, None)
        except _NOT_THERE:
            levels.pop()
            yield failed(folder_name, ErrorCode.SOURCE_MISSING, "a folder that cannot be listed")
            continue
        if entry is None:
            levels.pop()
            filesystem.invalidate_cache(folder)  # fsspec may keep every listing
            continue
        url, name = f"{folder_url}/{entry.name}", f"{folder_name}/{storable(entry.name)}"
        if is_hidden(entry.name):
            pass
        elif entry.kind == "directory":
            levels.append((entry.path, url, name, list_folder(filesystem, entry.path)))
        elif entry.kind != "file":
            yield failed(name, ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
        elif not is_image_name(entry.name):
            reading.skipped += 1
        elif (entry.size or 0) > reading.max_bytes:
            yield SourceImage(name, None, too_large(reading.max_bytes))
        else:
            read = partial(_load, filesystem, entry.path, url, name, entry.size, reading.max_bytes)
            yield Unread(read, reading.max_bytes if entry.size is None else entry.size)


def _load(filesystem: Any, path: str, url: str, name: str, size: int | None, max_bytes: int) -> SourceImage:
    """Read one object. If that fails, return its error."""
    try:
        data = read_object(filesystem, path, url=url, size=size, max_bytes=max_bytes)
    except ImageError as error:
        return SourceImage(name, None, error, url)
    return SourceImage(name, data, None, url)
