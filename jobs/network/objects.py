"""Remote files, through fsspec: how they are read and written, and what the packages' exceptions mean.

Each protocol has its own package, and each package its own exceptions. An exception that says that an object
does not exist or is forbidden becomes the OSError for that, and one that says that the request is wrong
becomes Refused; all others become Unavailable, because a retry may succeed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EEXIST, EINVAL, EISDIR
from typing import IO, Any, Final
from urllib.parse import unquote_to_bytes

import fsspec
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.errors import ErrorCode, ImageError, LabelmillError, Unavailable
from jobs.extras import install_hint
from jobs.reading import read_up_to, too_large

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Scheme, user and host of a URL whose host is an IPv6 address.
_IPV6_HOST: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/@]*@)?\[[0-9A-Fa-f:.]+\]")

#: The extras that read URLs of these schemes.
EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}

#: Connections of a process to S3: botocore's 10 are fewer than the threads that read.
_S3_CONNECTIONS: Final = 64

#: HTTP status codes that mean the same as an OSError.
_MISSING: Final = (404, 410)
_FORBIDDEN: Final = (401, 403)

#: Other codes from 400 to 499 mean that the same request will fail again, except these.
_TRANSIENT: Final = (408, 409, 425, 429)

#: S3's codes for credentials that have expired, and for a clock that is wrong: all objects get them, with the
#: status 400 or 403.
_EXPIRED: Final = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed")


class Refused(OSError):
    """The server says that the request for this object is wrong, such as an invalid version."""


def is_url(source: str) -> bool:
    """Return whether a source is a URL, not a path."""
    return _URL.match(source) is not None


def local_path(source: str) -> str:
    """Return the path that a `file://` URL means, or any other source unchanged.

    Raises ValueError if the URL names another machine.
    """
    scheme, separator, rest = source.partition("://")
    if not separator or scheme.lower() not in ("file", "local"):
        return source
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise ValueError(f"it names the host {host!r}; a local file is file:///path")
    return os.fsdecode(unquote_to_bytes(os.fsencode(f"/{path}")))


def shown_url(url: str) -> str:
    """Return a URL that may be printed and stored: without a password, and for the web without the query.

    The query of a web address may grant access, like a password.
    """
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    if is_web(scheme):
        host, path = (re.split(r"[?#]", part, maxsplit=1)[0] for part in (host, path))
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}{slash}{path}"


def is_web(scheme: str) -> bool:
    """Return whether URLs with this scheme have queries."""
    return scheme.lower() in ("http", "https")


def is_chained(url: str) -> bool:
    """Return whether a URL contains others, as in `zip://a.png::s3://bucket/photos.zip`.

    The colons of an IPv6 address do not count.
    """
    return "::" in _IPV6_HOST.sub("", url, count=1)


def open_remote(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it.

    Raises ValueError or ImportError if no installed package reads such URLs, Unavailable if it cannot be
    reached.
    """
    with reaching(url, ValueError, ImportError):
        if "::" not in url or is_chained(url):
            filesystem, path = url_to_fs(url)
        else:  # fsspec would split the IPv6 address
            scheme = url.partition("://")[0]
            kind = fsspec.get_filesystem_class(scheme)
            filesystem = fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(url))
            path = kind._strip_protocol(url)
    return filesystem, path


def url_to_fs(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it. Raises what the package raises.

    An ImportError says which extra reads such URLs, if there is one.
    """
    extra = EXTRAS.get(url.partition("://")[0].lower())
    options = {}
    if extra == "s3":
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"max_pool_connections": _S3_CONNECTIONS, **configured}
    try:
        return fsspec.core.url_to_fs(url, **options)  # type: ignore[no-any-return]
    except ImportError:
        if extra is None:
            raise
        raise ImportError(install_hint(extra)) from None


def kind_of(filesystem: Any, path: str, *, url: str) -> str:
    """Return what is there now: "file" or "directory".

    Raises FileNotFoundError, NotADirectoryError or PermissionError, or Unavailable.
    """
    # Not `exists`, which returns False for what is forbidden.
    with reaching(url, FileNotFoundError, NotADirectoryError, PermissionError):
        filesystem.invalidate_cache()  # others write there too
        kind: str = filesystem.info(path)["type"]
    return kind


def read_object(filesystem: Any, path: str, *, url: str, max_bytes: int, size: int | None = None) -> bytes:
    """Return all bytes of one object. If its `size` is known, an object store needs one request, not two.

    Raises ImageError (`source_missing`, `source_forbidden`, `too_large`), or Unavailable.
    """
    expected = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, Refused)
    try:
        with reaching(url, *expected):
            # Web servers may ignore a range.
            if size != 0 and filesystem.async_impl and not is_web(url.partition("://")[0]):
                data = read_range(filesystem, path, max_bytes + 1)
            else:
                # No cache: it would read megabytes past the end.
                with filesystem.open(path, "rb", cache_type="none") as file:
                    data = read_up_to(max_bytes + 1, file.read)
    except IsADirectoryError:
        raise ImageError(ErrorCode.SOURCE_FORBIDDEN, "not a regular file") from None
    except PermissionError:
        raise ImageError(ErrorCode.SOURCE_MISSING, "Permission denied") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(ErrorCode.SOURCE_MISSING, "No such file or directory") from None
    except Refused as error:
        raise ImageError(ErrorCode.SOURCE_MISSING, str(error.strerror)) from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def read_range(filesystem: Any, path: str, end: int | None) -> bytes:
    """Return an object's bytes up to `end` with one request. Raises what the package raises."""
    try:
        data: bytes = filesystem.cat_file(path, start=0, end=end)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        data = filesystem.cat_file(path)  # an empty object has no range
    return data


@contextmanager
def writing_object(url: str, *, over: bool) -> Iterator[IO[bytes]]:
    """Open an object for writing. It appears when the block ends, and not at all if the block raises.

    Raises ValueError or ImportError if such URLs cannot be written here, FileExistsError if the object exists
    and `over` is false, IsADirectoryError, Unavailable, and what `kind_of` raises.
    """
    if is_chained(url) or is_web(url.partition("://")[0]):
        raise ValueError("URLs of this kind can only be read")
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
            # Without a transaction, closing would publish the object even if only half was written.
            filesystem.transaction,
            filesystem.open(path, "wb") as file,
        ):
            yield file
    except NotImplementedError:
        raise ValueError("URLs of this kind can only be read") from None


@contextmanager
def reaching(url: str, *expected: type[Exception]) -> Iterator[None]:
    """Let the expected exceptions of a package pass, and turn all others into Unavailable.

    Wrap it around what a package does over the network.
    """
    try:
        yield
    # Not the package's errors: the time limit or the memory ran out while it worked.
    except (LabelmillError, SoftTimeLimitExceeded, MemoryError):
        raise
    except Exception as error:
        meant = _meaning(error)
        if isinstance(meant, expected):
            raise meant from None
        # Without the package's message, which may quote the URL and other secrets.
        reason = getattr(meant, "strerror", None)
        raise Unavailable(
            f"{shown_url(url)} cannot be reached: {type(meant).__name__}{f', {reason}' if reason else ''}",
            note="Check the URL, the network, and the credentials in the environment.",
        ) from error


def _meaning(error: BaseException) -> BaseException:
    if isinstance(error, FileNotFoundError):
        # fsspec raises it whenever a web server does not answer; only the cause tells why.
        cause = error.__cause__
        if cause is not None and (isinstance(cause, OSError) or hasattr(cause, "status")):
            return _meaning(cause)
    status, code = _answer_behind(error)
    if code in _EXPIRED:
        return ConnectionError(None, f"the server answered {code}")
    if status in _MISSING:
        return FileNotFoundError()
    if status in _FORBIDDEN:
        return PermissionError()
    if status is None or status in _TRANSIENT or not 400 <= status < 500:
        return error
    return Refused(None, f"the server answered {status}")


def _answer_behind(error: BaseException) -> tuple[int | None, str]:
    """Return the HTTP status behind a package's exception, and the server's own code for the error."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)  # of botocore
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        status = getattr(each, "status", None) or getattr(each, "status_code", None)  # of aiohttp, of Azure
        if isinstance(status, int):
            return status, ""
    return None, ""
