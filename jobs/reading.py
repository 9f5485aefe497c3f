"""Reading files that others own: never more bytes than may be, and nothing is opened that could block."""
# Descriptors are bare here: a file object costs more than the reading itself.

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from jobs.errors import ErrorCode, ImageError

#: O_NONBLOCK: should a FIFO have taken the file's place since it was listed, opening it must not hang.
OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

_OPEN_NO_LINK: Final = OPEN | os.O_NOFOLLOW

#: Of a file that is longer than it says, read at a time.
_PART_BYTES: Final = 1024 * 1024

#: A file of fewer bytes is read without a question. To ask for the size of one takes a fifteenth of what
#: reading it does.
_SMALL: Final = 4 * 1024

#: What the system says where a socket is opened, a pipe is read from a place, or a folder is read.
_NOT_REGULAR: Final = frozenset((errno.ENXIO, errno.ESPIPE, errno.EISDIR))

_Error = TypeVar("_Error", bound=Exception)


def read_regular(path: str, *, max_bytes: int, follow: bool = True) -> bytes:
    """All bytes of a regular file. Without `follow`, a symlink in its place is an error.

    Raises OSError where it cannot be read, ImageError where it is no regular file (`source_forbidden`) or has
    more than `max_bytes` (`too_large`).
    """
    contents, error = read_files((path,), max_bytes=max_bytes, follow=follow, enough=1)
    if error is not None:
        raise error
    return contents[0]


def read_files(
    paths: Iterable[str], *, max_bytes: int, follow: bool, enough: int
) -> tuple[list[bytes], ImageError | OSError | None]:
    """What `read_regular` gives of each file, and what it raises of the next one, where that cannot be read:
    then nothing of those after it. Nor, where they are not all small, of what comes after `enough` bytes.
    """
    contents: list[bytes] = []
    flags, size = OPEN if follow else _OPEN_NO_LINK, 0
    first = min(_SMALL, max_bytes + 1)
    try:
        for path in paths:
            descriptor = os.open(path, flags)
            try:
                # A small file is all there in one answer, and is not asked what it is: a pipe and a socket
                # cannot be read from a place, a folder not at all, and a device gives nothing or all that it
                # is asked for.
                data = os.pread(descriptor, first, 0)
                if not 0 < len(data) < first:
                    data = _read_larger(descriptor, max_bytes)
                    size += len(data)
            finally:
                os.close(descriptor)
            contents.append(data)
            if size >= enough:
                break
    except ImageError as error:
        return contents, _alone(error)
    except OSError as error:
        return contents, _alone(_not_regular() if error.errno in _NOT_REGULAR else error)
    return contents, None


def _alone(error: _Error) -> _Error:
    """Without its frames, which hold on to all that was read before it."""
    return error.with_traceback(None)


def _read_larger(descriptor: int, max_bytes: int) -> bytes:
    """All bytes of a file that is open, and of which it is not known what it is."""
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
    if len(data) > max_bytes:
        raise too_large(max_bytes)
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
