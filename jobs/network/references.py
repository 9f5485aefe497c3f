"""References: images that stay where they are, and are read there by the worker that has their chunk.

They must be below a root that LABELMILL_REFERENCE_ROOTS allows. Otherwise anyone who can submit could make a
worker open any file and any address that it can reach.
"""
# Paths are strings here, because pathlib costs more than the reading itself.
# ruff: noqa: PTH112, PTH118

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection, Iterable
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

from jobs.errors import AddressForbidden, ErrorCode, ImageError, SettingsError, Unavailable
from jobs.network.objects import is_chained, is_url, is_web, local_path, open_remote, read_object, shown_url
from jobs.reading import read_regular, too_large, why

#: Errors of a network file system that cannot be reached, and of a process that lacks memory or descriptors.
#: The file is not to blame, and the next attempt may succeed.
_TRANSIENT_ERRNOS: Final = frozenset(
    {
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)

#: How long the server of one image may take, in seconds. A chunk of images has its own limit.
_WEB_SECONDS: Final = 300.0

_REDIRECTS: Final = 5

_OUTSIDE: Final = (
    "it is not below a root in LABELMILL_REFERENCE_ROOTS: add its folder there, for producers and workers"
)

#: Statuses that mean that the image does not exist or is forbidden. After others, a retry may succeed.
_NOT_THERE: Final = frozenset(
    (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
)


class Reference(NamedTuple):
    """An image that a payload refers to instead of holding its bytes."""

    url: str  # an absolute path, or an fsspec URL
    sha256: str  # of its bytes, in hex
    size: int  # in bytes


class _LocalFile(NamedTuple):
    """A local file below a root."""

    resolved: str  # its path, absolute and without symlinks
    root: str  # as configured
    below_root: str  # its path, beginning with the root as configured


class Roots:
    """The folders and URLs below which images may be read by reference."""

    def __init__(self, roots: Iterable[str], private_hosts: Collection[str] = ()) -> None:
        """Take the roots, without any access yet. Raises SettingsError if a root is invalid.

        Web servers may redirect to the public internet, to their own host and port, and to `private_hosts`.
        """
        self._roots = tuple(roots)
        self._private_hosts = private_hosts
        self._folders: list[str] = []
        self._prefixes: list[str] = []
        for root in self._roots:
            try:
                path = local_path(root)
                if is_url(path):
                    self._prefixes.append(_normal(path).rstrip("/") + "/")
                else:
                    self._folders.append(path)
            except ValueError as error:
                raise SettingsError(f"LABELMILL_REFERENCE_ROOTS: {shown_url(root)}: {error}") from None

    def __bool__(self) -> bool:
        """Return whether any root is allowed."""
        return bool(self._roots)

    def __str__(self) -> str:
        return ", ".join(self._roots) or "nowhere"

    def locate(self, source: str) -> str:
        """Return the path or URL to store in a reference.

        A path is made absolute, without symlinks, and begins with its root as configured, because another
        machine may have the root mounted elsewhere. Raises ImageError (`source_forbidden`) if the source is
        below no root.
        """
        path = _local(source)
        return self._normal_below(source) if path is None else self._resolve(path).below_root

    def check_folder(self, source: str) -> None:
        """Raise ImageError (`source_forbidden`) unless everything below this path or URL is below a root.

        Web servers are refused: they have no folders, and asking them would follow redirects to any address.
        """
        if is_web(source.partition("://")[0]):
            raise _forbidden("a web server cannot be listed: name its images in `urls` or in a manifest")
        self.locate(f"{source.rstrip('/')}/any")

    def read(self, reference: Reference, *, max_bytes: int) -> bytes:
        """Return the referenced image's bytes, checked to be the ones that were submitted.

        Raises ImageError: `source_forbidden` if it is not below a root, is not a regular file, or redirects
        to an address that is not allowed, `source_missing` if it does not exist or cannot be read,
        `source_changed` if it is not what was submitted, `too_large` if it has more than `max_bytes`. Raises
        Unavailable if the root itself or the network cannot be reached.
        """
        path = _local(reference.url)
        if path is not None:
            read = partial(_read_file, self._resolve(path))
        elif is_web((url := self._normal_below(reference.url)).partition("://")[0]):
            read = partial(_read_web, url, self._private_hosts)
        else:
            read = partial(_read_object, url)
        if reference.size > max_bytes:
            raise too_large(max_bytes)
        try:
            data = read(reference.size)
        except ImageError as error:
            if error.code != ErrorCode.TOO_LARGE:
                raise
            raise ImageError(ErrorCode.SOURCE_CHANGED, f"more than its {reference.size} bytes") from None
        if len(data) != reference.size:
            raise ImageError(ErrorCode.SOURCE_CHANGED, f"{len(data)} of its {reference.size} bytes")
        if hashlib.sha256(data).hexdigest() != reference.sha256:
            raise ImageError(ErrorCode.SOURCE_CHANGED, "the bytes are not those that were submitted")
        return data

    def _resolve(self, path: str) -> _LocalFile:
        try:
            resolved = os.path.realpath(path)
        except ValueError:  # a name that no file can have
            raise _forbidden("no file can have this path") from None
        for root in self._folders:
            prefix = os.path.join(os.path.realpath(root), "")
            if resolved.startswith(prefix):
                return _LocalFile(resolved, root, os.path.join(root, resolved[len(prefix) :]))
        raise _forbidden(_OUTSIDE)

    def _normal_below(self, url: str) -> str:
        try:
            normal = _normal(url)
        except ValueError as error:
            raise _forbidden(str(error)) from None
        if not any(normal.startswith(prefix) and normal != prefix for prefix in self._prefixes):
            raise _forbidden(_OUTSIDE)
        return normal


def _local(source: str) -> str | None:
    """Return the path that a source names, or None if it is a URL."""
    try:
        path = local_path(source)
    except ValueError as error:
        raise _forbidden(str(error)) from None
    return None if is_url(path) else path


def _normal(url: str) -> str:
    """Return a URL with its scheme, and for the web its host, in lower case.

    Raises ValueError if a server, or fsspec, could take the URL for another place than it says.
    """
    if is_chained(url):
        raise ValueError("it chains file systems")
    if any(character < " " or character in "\\\x7f" for character in url):
        raise ValueError("it contains a character that is not allowed in a URL")
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    host, _, path = rest.partition("/")
    if ":" in host.rpartition("@")[0]:
        raise ValueError("it contains a password, which belongs in the workers' environment")
    if is_web(scheme):
        if "?" in rest or "#" in rest:
            raise ValueError("it has a query")
        if "@" in host:
            raise ValueError("it contains a user name")
        host = host.lower()
    decoded = rest
    while "%" in decoded and (again := unquote(decoded)) != decoded:  # some servers decode more than once
        decoded = again
    if not {".", ".."}.isdisjoint(decoded.replace("\\", "/").split("/")):
        raise ValueError("it contains . or .. as a folder")
    if not rest.strip("/"):
        raise ValueError("it has no path")
    return f"{scheme}://{host}/{path}"


def _read_file(file: _LocalFile, size: int) -> bytes:
    """Read a file that was found to be below a root. Raises ImageError, Unavailable.

    If a folder on the path has been replaced by a symlink since, the SHA-256 must still match.
    """
    try:
        return read_regular(file.resolved, max_bytes=size, follow=False)
    except OSError as error:
        if error.errno in _TRANSIENT_ERRNOS or not os.path.isdir(file.root):
            raise Unavailable(f"{file.root} cannot be read here ({why(error)}): is it mounted?") from error
        raise ImageError(ErrorCode.SOURCE_MISSING, why(error)) from None


def _read_object(url: str, size: int) -> bytes:
    """Read the object at a URL. Raises ImageError, Unavailable."""
    try:
        filesystem, path = open_remote(url)
    except (ValueError, ImportError) as error:
        raise Unavailable(f"{url} cannot be read here: {error}") from error
    return read_object(filesystem, path, url=url, max_bytes=size, size=size)


def _read_web(url: str, private_hosts: Collection[str], size: int) -> bytes:
    """Read the image at a web address. Raises ImageError, Unavailable."""
    from jobs.network.outbound import request

    try:
        answer = request(
            "GET",
            url,
            timeout=_WEB_SECONDS,
            max_bytes=size,
            redirects=_REDIRECTS,
            private=private_hosts,
            trusted=True,  # it is below a root
        )
    except AddressForbidden as error:
        raise _forbidden(str(error)) from None
    if answer.status in _NOT_THERE:
        raise ImageError(ErrorCode.SOURCE_MISSING, f"the server answered {answer.status}")
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        raise Unavailable(f"{url} cannot be read: its server answered {answer.status}")
    if len(answer.body) > size:
        raise too_large(size)
    return answer.body


def _forbidden(detail: str) -> ImageError:
    return ImageError(ErrorCode.SOURCE_FORBIDDEN, detail)
