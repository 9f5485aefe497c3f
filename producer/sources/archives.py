"""The formats of archives: how each is recognised, checked and read.

The rules that hold for the members of any archive are in `members`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from jobs.limits import ArchiveLimits
from producer.sources import tars, zips
from producer.sources.image import Reading, SourceImage


class ArchiveFormat(NamedTuple):
    """What reads one format. Each function raises SourceError for an archive that cannot be read."""

    #: Return whether the file at a path is such an archive, by its name and its first HEAD_BYTES.
    matches: Callable[[str, str, bytes], bool]
    #: Check a file before anything is read from it.
    check: Callable[[str, ArchiveLimits], None]
    #: Yield the images.
    read: Callable[[str, Reading], Iterator[SourceImage]]
    #: Yield the name of each file, and the content of those that a function wants, up to a number of bytes.
    scan: Callable[[str, ArchiveLimits, Callable[[str], bool], int], Iterator[tuple[str, bytes | None]]]


#: How many bytes of a file tell its format.
HEAD_BYTES: Final = tars.HEAD_BYTES

_FORMATS: Final = (
    ArchiveFormat(zips.is_zip, zips.check_zip, zips.read_zip, zips.scan_zip),
    ArchiveFormat(tars.is_tar, tars.check_tar, tars.read_tar, tars.scan_tar),
)


def archive_format(path: str, name: str, first: bytes) -> ArchiveFormat | None:
    """Return the format of an archive that begins with these HEAD_BYTES, or None if the file is none."""
    return next((each for each in _FORMATS if each.matches(path, name, first)), None)
