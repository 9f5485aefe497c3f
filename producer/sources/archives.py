"""Images in a ZIP archive: read one after the other, nothing is ever extracted.

An archive says what it likes about its members' names and sizes. Names are used as names only; sizes are
those of the bytes that really come out, and reading stops one byte past the limit.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from jobs.errors import ErrorCode, SourceError
from jobs.text import storable
from producer.sources.files import shown
from producer.sources.image import Reading, SourceImage, failed, is_hidden, is_image_name

MAGIC = b"PK\x03\x04"

#: Bits of a member's flags: encrypted, strongly encrypted, with an encrypted directory.
_ENCRYPTED = 0x1 | 0x40 | 0x2000

#: What zipfile raises on damaged or malicious bytes.
_DAMAGE = (
    BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    ValueError,
    OverflowError,
)

_DRIVE = re.compile(r"[A-Za-z]:")


def check_zip(path: str) -> None:
    """Raise SourceError where a file is no ZIP archive that can be read."""
    _open(path).close()


def read_zip(path: str, reading: Reading) -> Iterator[SourceImage]:
    """Every image of an archive, in its order; the names rule as in a folder.

    The archive's directory is held in memory (some 500 bytes a member), and of its members one at a time.
    """
    prefix = shown(path)
    with _open(path) as archive:
        for member in archive.infolist():
            name = storable(f"{prefix}/{_member_name(member)}")
            if member.filename.endswith("/"):  # not is_dir(): it stumbles over an empty name
                continue
            if _is_unsafe(member.orig_filename) or _is_unsafe(member.filename):
                yield failed(name, ErrorCode.SOURCE_FORBIDDEN, "a member's name that leaves the archive")
                continue
            *folders, base = member.filename.split("/")
            if is_hidden(base) or any(folder != "." and is_hidden(folder) for folder in folders):
                continue
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                yield failed(name, ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
            elif is_image_name(base):
                yield _load(archive, member, name, reading.max_bytes)
            else:
                reading.skipped += 1


def _open(path: str) -> ZipFile:
    """Open an archive, or raise SourceError."""
    try:
        archive = ZipFile(path)
    except _DAMAGE as error:
        raise SourceError(
            f"{shown(path)} is not a ZIP archive that can be read ({error}): "
            "pack it anew, or unpack it and name the folder"
        ) from error
    if any(member.flag_bits & _ENCRYPTED for member in archive.infolist()):
        archive.close()
        raise SourceError(f"{shown(path)} is encrypted: unpack it with its password and name the folder")
    return archive


def _member_name(member: ZipInfo) -> str:
    """A member's whole name: zipfile cuts it at a NUL, its owner should see it all."""
    return member.orig_filename if "\0" in member.orig_filename else member.filename


def _is_unsafe(name: str) -> bool:
    """Whether a name could mean a place outside of the archive, to anybody who extracts it."""
    return (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or _DRIVE.match(name) is not None
        or ".." in name.split("/")
    )


def _load(archive: ZipFile, member: ZipInfo, name: str, max_bytes: int) -> SourceImage:
    """Read one member, or say why not."""
    # zipfile bounds what deflate gives back by the size asked for, but not what bzip2 and LZMA do.
    if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return failed(name, ErrorCode.FORMAT_NOT_ALLOWED, "a member neither stored nor deflated")
    try:
        with archive.open(member) as stream:
            data = stream.read(max_bytes + 1)
    except _DAMAGE as error:
        return failed(name, ErrorCode.CORRUPT, str(error))
    if len(data) > max_bytes:
        return failed(name, ErrorCode.TOO_LARGE, f"more than {max_bytes} bytes")
    if len(data) != member.file_size:
        return failed(name, ErrorCode.CORRUPT, "not of the size that the archive declares")
    return SourceImage(name, data, None)
