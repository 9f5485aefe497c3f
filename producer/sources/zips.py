"""Read the images of a ZIP archive one after the other. Nothing is ever extracted.

Python's zipfile reads the archive, and this module adds the limits: zipfile creates an object for each member
before they can be counted, accepts overlapping members (up to Python 3.11.7), and truncates a member at its
declared size.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Final

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.limits import ArchiveLimits
from jobs.reading import OPEN, too_large, why
from jobs.text import storable
from producer.sources.files import access_error, shown
from producer.sources.image import Reading, SourceImage
from producer.sources.members import OutputLimit, select_member, too_many_members

_MAGIC: Final = b"PK\x03\x04"

_ENTRY_MAGIC: Final = b"PK\x01\x02"

#: Maximum average size of an entry in the archive's directory: 46 bytes, the name and attributes. zipfile
#: holds the whole directory in memory.
_ENTRY_BYTES: Final = 256

#: A directory up to this size is read even if the limit of members is low.
_SMALL_DIRECTORY_BYTES: Final = 1024 * 1024

#: The fixed part of the header in front of each member's content. The name follows it.
_HEADER_BYTES: Final = 30

#: Bytes of a member that are unpacked at a time. The last piece of a damaged member is not counted.
_PIECE_BYTES: Final = 64 * 1024

#: Flags of an encrypted member: plain encryption, strong encryption, an encrypted directory.
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000

_SHOWN_NAME_LENGTH: Final = 200  # characters, in a message

#: Errors that zipfile raises on damaged or malicious bytes, according to its source.
_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    NotImplementedError,
    ValueError,
)


def is_zip(path: str, name: str, first: bytes) -> bool:  # noqa: ARG001 -- the signature of an ArchiveFormat
    """Return whether a file that begins with these bytes is a ZIP archive, by its name or content."""
    return name.lower().endswith(".zip") or first.startswith(_MAGIC)


def check_zip(path: str, limits: ArchiveLimits) -> None:
    """Raise SourceError if a file is not a ZIP archive that can be read, or one that must not be read."""
    with _opened(path, limits):
        pass


def read_zip(path: str, reading: Reading) -> Iterator[SourceImage]:
    """Yield every image of an archive, in its order. Names are treated as in a folder.

    Raises SourceError if it unpacks to too many bytes, or if a member does not have its declared size.
    """
    prefix = shown(path)
    with _opened(path, reading.archives) as archive:
        output_limit = OutputLimit(path, reading.archives)
        for member in archive.infolist():
            # Not `filename`, which zipfile truncates at a NUL.
            if member.orig_filename.endswith("/"):
                continue
            name = storable(f"{prefix}/{member.orig_filename}")
            regular = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
            chosen = select_member(member.orig_filename, name, reading, regular=regular)
            if isinstance(chosen, SourceImage):
                yield chosen
            elif chosen:
                try:
                    data = _content(path, archive, member, reading.max_bytes, output_limit)
                except ImageError as error:
                    yield SourceImage(name, None, error)
                else:
                    yield SourceImage(name, data, None)


def scan_zip(
    path: str, limits: ArchiveLimits, wanted: Callable[[str], bool], max_bytes: int
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the names of an archive's files, and the content of those that are wanted.

    Raises SourceError; ImageError for a wanted file that is damaged or has more than `max_bytes`.
    """
    with _opened(path, limits) as archive:
        output_limit = OutputLimit(path, limits)
        for member in archive.infolist():
            name = storable(member.orig_filename)
            if not name.endswith("/"):
                is_wanted = wanted(name)
                yield (
                    name,
                    _content(path, archive, member, max_bytes, output_limit) if is_wanted else None,
                )


class _File(io.BufferedReader):
    """An archive. Until it is `opened`, reading a directory that is too large raises SourceError."""

    def __init__(self, path: str, limits: ArchiveLimits) -> None:
        super().__init__(io.FileIO(os.open(path, OPEN)))
        self._path = path
        self._limits = limits
        self.opened = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like any file, but check a directory's size: zipfile reads it whole, in one call."""
        if self.opened or size is None:
            return super().read(size)
        most = self._limits.max_members
        if size > _SMALL_DIRECTORY_BYTES + most * _ENTRY_BYTES:
            raise SourceError(
                f"{shown(self._path)} has a directory of {size:,} bytes, too much for {most:,} members: "
                "unpack it and name the folder, or set LABELMILL_MAX_ARCHIVE_MEMBERS higher"
            )
        data = super().read(size)
        if data.count(_ENTRY_MAGIC) > most:
            raise too_many_members(self._path, self._limits)
        return data


@contextmanager
def _opened(path: str, limits: ArchiveLimits) -> Iterator[zipfile.ZipFile]:
    """Open an archive. Raises SourceError if it must not be read, or cannot be."""
    try:
        with _File(path, limits) as file, zipfile.ZipFile(file) as archive:
            file.opened = True
            _check_members(path, archive)
            yield archive
    except OSError as error:
        raise access_error(path, error) from error
    except _DAMAGE as error:
        raise SourceError(
            f"{shown(path)} is not a ZIP archive that can be read ({error}): "
            "pack it again, or unpack it and name the folder"
        ) from error


def _check_members(path: str, archive: zipfile.ZipFile) -> None:
    """Raise SourceError if members are encrypted, overlap or lie about their sizes."""
    end = 0
    for member in sorted(archive.infolist(), key=attrgetter("header_offset")):
        if member.flag_bits & _ENCRYPTED:
            raise SourceError(f"{shown(path)} is encrypted: unpack it with its password and name the folder")
        if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise _wrong_size(path, member, member.file_size)
        if member.header_offset < end:
            raise SourceError(
                f"{shown(path)} has members that overlap, as in a zip bomb: pack it again, or unpack it "
                "where you trust it and name the folder"
            )
        # A lower bound: a name may have more bytes than characters, and attributes may follow it.
        end = member.header_offset + _HEADER_BYTES + len(member.orig_filename) + member.compress_size
    if end > archive.start_dir:
        raise zipfile.BadZipFile("a member is not where it says")


def _content(
    path: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int, output_limit: OutputLimit
) -> bytes:
    """Return a member's bytes.

    Raises ImageError if only this member is bad, and SourceError if the archive declares a wrong size or
    unpacks to too many bytes.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Other methods can demand any amount of memory for a few bytes.
        raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, "a member neither stored nor deflated")
    declared = member.file_size
    # zipfile truncates the content at this size. Without that, the real size can be compared with it.
    member.file_size = sys.maxsize
    parts, found = [], 0
    try:
        with archive.open(member) as stream:
            while found <= max_bytes and (piece := stream.read(_PIECE_BYTES)):
                parts.append(piece)
                found += len(piece)
                output_limit.add(len(piece))
    except OSError as error:
        raise ImageError(ErrorCode.SOURCE_MISSING, why(error)) from error
    except _DAMAGE as error:
        raise ImageError(ErrorCode.CORRUPT, f"damaged in its archive: {error}") from error
    if found > max_bytes and declared > max_bytes:
        raise too_large(max_bytes)
    # The checksum was right, otherwise the member would count as damaged. So the declared size is wrong.
    if found != declared:
        raise _wrong_size(path, member, declared)
    return b"".join(parts)


def _wrong_size(path: str, member: zipfile.ZipInfo, declared: int) -> SourceError:
    name = storable(member.orig_filename)[:_SHOWN_NAME_LENGTH]
    return SourceError(
        f"{shown(path)} lies about sizes: {name} does not have the {declared:,} bytes that it declares. "
        "Pack it again, or unpack it where you trust it and name the folder"
    )
