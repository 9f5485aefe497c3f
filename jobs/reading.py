"""Read files that others own: never more bytes than allowed, and nothing is opened that could block."""
# Plain descriptors, because a file object costs more than the reading itself.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import Final

from jobs.errors import ErrorCode, ImageError

#: O_NONBLOCK: if a FIFO has replaced the file since it was listed, opening it must not block.
OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

_OPEN_NO_LINK: Final = OPEN | os.O_NOFOLLOW

#: How many bytes one call reads from a file that is longer than its size says.
_PART_BYTES: Final = 1024 * 1024

#: A smaller file is read without asking for its size, which would cost a fifteenth of reading it.
_SMALL: Final = 4 * 1024

#: The errors of opening a socket, and of reading a pipe at an offset, or a folder.
_NOT_REGULAR: Final = frozenset((errno.ENXIO, errno.ESPIPE, errno.EISDIR))


def read_regular(path: str, *, max_bytes: int, follow: bool = True) -> bytes:
    """Return all bytes of a regular file. Without `follow`, a symlink in its place is an error.

    Raises OSError if it cannot be read, ImageError if it is not a regular file (`source_forbidden`) or has
    more than `max_bytes` (`too_large`).
    """
    contents, error = read_files((path,), max_bytes=max_bytes, follow=follow, enough=1)
    if error is not None:
        raise error
    return contents[0]


def read_files(
    paths: Iterable[str], *, max_bytes: int, follow: bool, enough: int
) -> tuple[list[bytes], ImageError | OSError | None]:
    """Return the contents of the files, in order, and the error of the first that cannot be read, or None.

    Each file is read as by `read_regular`. Reading stops at the first error, and once the larger files have
    `enough` bytes together.
    """
    contents: list[bytes] = []
    flags, size = OPEN if follow else _OPEN_NO_LINK, 0
    first = min(_SMALL, max_bytes + 1)
    try:
        for path in paths:
            descriptor = os.open(path, flags)
            try:
                # One call reads a small file completely, and its type need not be checked: a pipe or a socket
                # cannot be read at an offset, a folder cannot be read at all, and a device returns nothing or
                # all that was asked for.
                data = os.pread(descriptor, first, 0)
                if not 0 < len(data) < first:
                    data = _read_larger(descriptor, max_bytes)
                    size += len(data)
            finally:
                os.close(descriptor)
            contents.append(data)
            if size >= enough:
                break
    except (ImageError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _NOT_REGULAR:
            return contents, _not_regular()
        return contents, error.with_traceback(None)  # its frames hold all that was read before it
    return contents, None


def _read_larger(descriptor: int, max_bytes: int) -> bytes:
    """Return all bytes of an open file that may not be a regular one. Raises ImageError, OSError."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular()
    if found.st_size > max_bytes:
        raise too_large(max_bytes)
    # Ask for one byte more than its size: if exactly the size comes, that is the end, without a second call.
    data = os.pread(descriptor, found.st_size + 1, 0)
    if len(data) != found.st_size:  # it grows or shrinks while it is read
        os.lseek(descriptor, len(data), os.SEEK_SET)
        data += read_up_to(
            max_bytes + 1 - len(data), lambda size: os.read(descriptor, min(size, _PART_BYTES))
        )
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def read_up_to(size: int, read: Callable[[int], bytes]) -> bytes:
    """Return `size` bytes, or fewer if the source ends first.

    `read` takes a maximum and returns some bytes, none at the end.
    """
    parts = []
    while size > 0 and (part := read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def too_large(max_bytes: int) -> ImageError:
    """Return the error for an image with more than `max_bytes`."""
    return ImageError(ErrorCode.TOO_LARGE, f"more than {max_bytes} bytes")


def why(error: OSError | ValueError) -> str:
    """Return the system's reason without the path, or the text of a ValueError (an impossible file name)."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _not_regular() -> ImageError:
    return ImageError(ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
