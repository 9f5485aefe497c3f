"""What lies behind URLs, through fsspec: how it is read and written, and what the packages' exceptions mean.

Each protocol has a package of its own, and each package its own exceptions. What says that one object is not
there, or not for us, becomes that; all else is Unavailable, because the next try may go well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST, EISDIR
from typing import IO, Any, Final
from urllib.parse import unquote_to_bytes

import fsspec
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ErrorCode, ImageError, LabelmillError, Unavailable
from jobs.reading import read_up_to, too_large

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Scheme, user and address of a URL, where the address is one of IPv6.
_IPV6_HOST: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/@]*@)?\[[0-9A-Fa-f:.]+\]")

#: HTTP's answers that say the same as an OSError.
_MISSING: Final = (404, 410)
_REFUSED: Final = (401, 403)


def is_url(source: str) -> bool:
    """Whether a source is named by a URL, not by a path."""
    return _URL.match(source) is not None


def local_path(source: str) -> str:
    """The path that a `file://` URL means; every other source as it is. Raises ValueError where the URL means
    a file of another machine.
    """
    scheme, separator, rest = source.partition("://")
    if not separator or scheme.lower() not in ("file", "local"):
        return source
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise ValueError(f"it names the machine {host!r}; a file of this one is file:///path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(f"/{path}")))


def shown_url(url: str) -> str:
    """A URL as it may be printed and stored: without a password, and without the query of a web address,
    which may be as good as one.
    """
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    if is_web(scheme):
        host, path = (re.split(r"[?#]", part, maxsplit=1)[0] for part in (host, path))
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}{slash}{path}"


def is_web(scheme: str) -> bool:
    """Whether URLs with this scheme have queries."""
    return scheme.lower() in ("http", "https")


def is_chained(url: str) -> bool:
    """Whether a URL is several, one within the other: `zip://a.png::s3://bucket/photos.zip`. The colons of an
    IPv6 address are none of that.
    """
    return "::" in _IPV6_HOST.sub("", url, count=1)


def open_remote(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there. Raises ValueError or ImportError where nothing here reads
    such URLs, Unavailable.
    """
    with reaching(url, ValueError, ImportError):
        if "::" not in url or is_chained(url):
            filesystem, path = fsspec.core.url_to_fs(url)
        else:  # fsspec would take the address apart
            scheme = url.partition("://")[0]
            kind = fsspec.get_filesystem_class(scheme)
            filesystem = fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(url))
            path = kind._strip_protocol(url)
    return filesystem, path


def kind_of(filesystem: Any, path: str, *, url: str) -> str:
    """What is there now, a "file" or a "directory". Raises FileNotFoundError, NotADirectoryError or
    PermissionError, Unavailable.
    """
    # Not `exists`, to which one that may not be looked at is not there.
    with reaching(url, FileNotFoundError, NotADirectoryError, PermissionError):
        filesystem.invalidate_cache()  # others write there, too
        kind: str = filesystem.info(path)["type"]
    return kind


def read_object(filesystem: Any, path: str, *, url: str, max_bytes: int) -> bytes:
    """All bytes of one object. Raises ImageError (`source_missing`, `source_forbidden`, `too_large`), or
    Unavailable.
    """
    try:
        with (
            reaching(url, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError),
            # Without a cache: it would read ahead, megabytes past the end of what is wanted.
            filesystem.open(path, "rb", cache_type="none") as file,
        ):
            data = read_up_to(max_bytes + 1, file.read)
    except IsADirectoryError:
        raise ImageError(ErrorCode.SOURCE_FORBIDDEN, "not a regular file") from None
    except PermissionError:
        raise ImageError(ErrorCode.SOURCE_MISSING, "Permission denied") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(ErrorCode.SOURCE_MISSING, "No such file or directory") from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


@contextmanager
def writing_object(url: str, *, over: bool) -> Iterator[IO[bytes]]:
    """One object, for writing: there, whole, when the block is through; not at all where the block raises.

    Raises ValueError or ImportError where nothing here writes to such URLs, FileExistsError where it is there
    already, unless `over`; IsADirectoryError, Unavailable, and what `kind_of` raises.
    """
    if is_chained(url) or is_web(url.partition("://")[0]):
        raise ValueError("such URLs are only read")
    filesystem, path = open_remote(url)
    try:
        kind: str | None = kind_of(filesystem, path, url=url)
    except FileNotFoundError:
        kind = "directory" if url.endswith("/") else None
    if kind == "directory":
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
    if kind is not None and not over:
        raise FileExistsError(EEXIST, os.strerror(EEXIST))
    try:
        with (
            reaching(url, FileNotFoundError, PermissionError, NotImplementedError),
            # Outside of one, what is closed is there, be it half of what was to come.
            filesystem.transaction,
            filesystem.open(path, "wb") as file,
        ):
            yield file
    except NotImplementedError:
        raise ValueError("such URLs are only read") from None


@contextmanager
def reaching(url: str, *expected: type[Exception]) -> Iterator[None]:
    """Around what a package does over the network: lets the expected exceptions through, and makes every
    other Unavailable.
    """
    try:
        yield
    # Not of the package: an alarm that rang while it was at work.
    except (LabelmillError, SoftTimeLimitExceeded, MemoryError):
        raise
    except Exception as error:
        meant = _meaning(error)
        if isinstance(meant, expected):
            raise meant from None
        # Without the package's own words: they may quote the URL, and what else was sent.
        reason = getattr(meant, "strerror", None)
        raise Unavailable(
            f"{shown_url(url)} cannot be reached: {type(meant).__name__}{f', {reason}' if reason else ''}"
        ) from error


def _meaning(error: BaseException) -> BaseException:
    if isinstance(error, FileNotFoundError):
        # fsspec says so of every web address that it has no answer from; only the cause tells why.
        cause = error.__cause__
        if cause is not None and (isinstance(cause, OSError) or hasattr(cause, "status")):
            return _meaning(cause)
    status = getattr(error, "status", None)
    if status in _MISSING:
        return FileNotFoundError()
    if status in _REFUSED:
        return PermissionError()
    return error
