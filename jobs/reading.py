"""Reading files that others own: never more bytes than may be, and nothing is opened that could block."""
# Descriptors are bare here: a file object costs more than the reading itself.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from jobs.errors import ErrorCode, ImageError

#: O_NONBLOCK: should a FIFO have taken the file's place since it was listed, opening it must not hang.
OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

_OPEN_NO_LINK: Final = OPEN | os.O_NOFOLLOW

#: Of a file that is longer than it says, read at a time.
_PART_BYTES: Final = 1024 * 1024

#: A file of fewer bytes is read without a question. To ask for the size of one takes a fifteenth of what
#: reading it does.
_SMALL: Final = 4 * 1024


def read_regular(path: str, *, max_bytes: int, follow: bool = True) -> bytes:
    """All bytes of a regular file. Without `follow`, a symlink in its place is an error.

    Raises OSError where it cannot be read, ImageError where it is no regular file (`source_forbidden`) or has
    more than `max_bytes` (`too_large`).
    """
    try:
        descriptor = os.open(path, OPEN if follow else _OPEN_NO_LINK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular() from None
        raise
    try:
        # A small file is all there in one answer, and is not asked what it is: a pipe and a socket cannot be
        # read from a place, a folder not at all, and a device gives nothing or all that it is asked for.
        data = os.pread(descriptor, _SMALL, 0)
        if not 0 < len(data) < _SMALL:
            data = _read_larger(descriptor, max_bytes)
    except OSError as error:
        if error.errno in (errno.ESPIPE, errno.EISDIR):
            raise _not_regular() from None
        raise
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def _read_larger(descriptor: int, max_bytes: int) -> bytes:
    """The same of a file that is open, which may have more than one byte too many."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular()
    if found.st_size > max_bytes:
        raise too_large(max_bytes)
    # One byte more than it should have: a short answer is the end of the file, without a second read.
    data = os.pread(descriptor, found.st_size + 1, 0)
    if len(data) != found.st_size:  # it is growing or shrinking as it is read
        os.lseek(descriptor, len(data), os.SEEK_SET)
        data += read_up_to(
            max_bytes + 1 - len(data), lambda size: os.read(descriptor, min(size, _PART_BYTES))
        )
    return data


def read_up_to(size: int, read: Callable[[int], bytes]) -> bytes:
    """So many bytes, or fewer where there are no more: `read` gives some, up to a number, none at the end."""
    parts = []
    while size > 0 and (part := read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def too_large(max_bytes: int) -> ImageError:
    """Of an image with more bytes than may be."""
    return ImageError(ErrorCode.TOO_LARGE, f"more than {max_bytes} bytes")


def why(error: OSError | ValueError) -> str:
    """The system's own words, without the path; a ValueError's are about a name that no file can have."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _not_regular() -> ImageError:
    return ImageError(ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
