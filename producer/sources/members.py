"""Rules for ZIP and TAR archives: which members are read, and how many bytes may be unpacked.

A member's name is only a name: no file is opened or created with it.
"""

from __future__ import annotations

import os
import re
from typing import Final

from jobs.errors import ErrorCode, SourceError
from jobs.limits import ArchiveLimits
from producer.sources.files import shown
from producer.sources.image import Reading, SourceImage, failed, is_hidden, is_image_name

_DRIVE: Final = re.compile(r"[A-Za-z]:")

#: Bytes that even the smallest archive may unpack to: gzip packs an empty TAR of 10 KB into 45 bytes.
_MIN_OUTPUT_BYTES: Final = 64 * 1024


class OutputLimit:
    """Counts the bytes that one archive really unpacks to, whatever it declares."""

    def __init__(self, path: str, limits: ArchiveLimits) -> None:
        self._path = path
        self._times = limits.max_expansion
        size = os.stat(path).st_size  # noqa: PTH116 - paths are strings here
        self._left = max(_MIN_OUTPUT_BYTES, limits.max_expansion * size)

    def add(self, size: int) -> None:
        """Count `size` more bytes. Raises SourceError if the archive unpacks to too many."""
        self._left -= size
        if self._left < 0:
            raise SourceError(
                f"{shown(self._path)} unpacks to more than {self._times:,} times its own size, as a zip bomb "
                "does. If it is not one: unpack it and name the folder, or set "
                "LABELMILL_MAX_ARCHIVE_EXPANSION higher"
            )


def too_many_members(path: str, limits: ArchiveLimits) -> SourceError:
    """Return the error for an archive with too many members."""
    return SourceError(
        f"{shown(path)} has more than {limits.max_members:,} members: unpack it and name the folder, pack it "
        "as several archives, or set LABELMILL_MAX_ARCHIVE_MEMBERS higher"
    )


def select_member(member: str, name: str, reading: Reading, *, regular: bool) -> SourceImage | bool:
    """Return whether to read a member that is not a folder, or the error of one that must not be read.

    Names are treated as in a folder: hidden members are skipped silently, and members without an image's name
    are counted. `name` is the image's name in the results.
    """
    if _is_unsafe(member):
        return failed(name, ErrorCode.SOURCE_FORBIDDEN, "a member's name that leaves the archive")
    *folders, base = member.split("/")
    if is_hidden(base) or any(folder != "." and is_hidden(folder) for folder in folders):
        return False
    if not regular:
        return failed(name, ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
    if is_image_name(base):
        return True
    reading.skipped += 1
    return False


def _is_unsafe(name: str) -> bool:
    """Return whether a program that extracts a member of this name could write elsewhere."""
    return (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or _DRIVE.match(name) is not None
        or ".." in name.split("/")
    )
