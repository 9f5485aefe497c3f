"""What ZIP and TAR archives share: which members are taken, and how much may come out.

A member's name is only ever a name: no file is opened or made by it.
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

#: What may come out of any archive, however small: a TAR is padded to 10 KB, which gzip makes into 45 bytes.
_ALWAYS_BYTES: Final = 64 * 1024


class Output:
    """What has come out of one archive so far: its real bytes, whatever the archive says of them."""

    def __init__(self, path: str, limits: ArchiveLimits) -> None:
        self._path = path
        self._times = limits.max_expansion
        size = os.stat(path).st_size  # noqa: PTH116 - paths are strings here
        self._left = max(_ALWAYS_BYTES, limits.max_expansion * size)

    def add(self, size: int) -> None:
        """Count so many bytes more. Raise SourceError where that is more than may come out."""
        self._left -= size
        if self._left < 0:
            raise SourceError(
                f"{shown(self._path)} unpacks to more than {self._times:,} times its own size: that is how a "
                "bomb is made. Where it is none, unpack it and name the folder, or set "
                "LABELMILL_MAX_ARCHIVE_EXPANSION higher"
            )


def too_many_members(path: str, limits: ArchiveLimits) -> SourceError:
    """What is said of an archive that has more members than it may have."""
    return SourceError(
        f"{shown(path)} has more than {limits.max_members:,} members: unpack it and name the folder, pack it "
        "as several archives, or set LABELMILL_MAX_ARCHIVE_MEMBERS higher"
    )


def choose(member: str, name: str, reading: Reading, *, regular: bool) -> SourceImage | bool:
    """Whether a member that is no folder is to be read, or why it must not be.

    The names rule as in a folder: what is hidden is passed over in silence, what is no image by its name is
    counted. `name` is what the image is called in the results.
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
    """Whether a name could mean a place outside of the archive, to anybody who extracts it."""
    return (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or _DRIVE.match(name) is not None
        or ".." in name.split("/")
    )
