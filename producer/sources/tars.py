"""Read the images of a TAR archive, plain or gzipped, in one pass. Nothing is ever extracted.

Python's tarfile reads the headers. It trusts the size that a header declares and keeps whatever headers
contain, so it gets a stream that only moves forwards and limits the bytes of one member's headers.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, BinaryIO, Final, cast

from jobs.errors import ErrorCode, SourceError
from jobs.limits import ArchiveLimits
from jobs.reading import OPEN, too_large
from jobs.text import storable
from producer.sources.files import access_error, head, shown
from producer.sources.idx import GZIP_MAGIC
from producer.sources.image import Reading, SourceImage, check_name_length, failed
from producer.sources.members import OutputLimit, select_member, too_many_members

#: Number of a file's first bytes that show whether it is an archive: one header.
HEAD_BYTES: Final = tarfile.BLOCKSIZE

#: The name of the first member of an archive that `producer.packing` made, and the attributes of a member
#: that stands for an image that could not be read.
MARK: Final = ".labelmill-images"
ERROR: Final = "LABELMILL.error"
DETAIL: Final = "LABELMILL.detail"
LABEL: Final = "LABELMILL.label"

#: Names of TAR archives with any compression.
_NAME: Final = re.compile(r"\.(tar(\.\w+)?|tgz|taz|tbz2?|tb2|txz|tlz|tzst)$", re.IGNORECASE)

_MAGIC: Final = b"ustar"
_MAGIC_PLACE: Final = 257

#: Compression that is not supported, because it can demand any amount of memory, or Python cannot read it.
_NOT_READ: Final = (
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"]\0\0", "lzma"),
    (b"LZIP", "lzip"),
    (b"\x1f\x9d", "compress"),
)

#: Maximum bytes of one member's headers: far more than real ones, which have a name and a few attributes.
_HEADER_BYTES: Final = 256 * 1024

#: tarfile's search for numbers in a header takes time that grows with the square of their length.
_LONG_NUMBER: Final = re.compile(rb"\d{300}")

_END: Final = bytes(tarfile.BLOCKSIZE)

#: Bytes read at a time from content that is skipped.
_PIECE_BYTES: Final = 64 * 1024

#: Errors that tarfile and gzip raise on damaged or malicious bytes, according to their source.
_DAMAGE: Final = (
    tarfile.TarError,
    zlib.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,
    ValueError,
)


def is_tar(path: str, name: str, first: bytes) -> bool:
    """Return whether a file that begins with these HEAD_BYTES is a TAR archive, by its name or content."""
    if _NAME.search(name) is not None:
        return True
    if first.startswith(GZIP_MAGIC):
        try:
            with gzip.open(path) as stream:
                first = stream.read(HEAD_BYTES)
        except _DAMAGE:
            return False
    return first.startswith(_MAGIC, _MAGIC_PLACE)


def check_tar(path: str, limits: ArchiveLimits) -> None:
    """Raise SourceError if a file is not a TAR archive that can be read."""
    with _opened(path, limits) as stream:
        next(_members(path, stream, limits), None)


def read_tar(path: str, reading: Reading) -> Iterator[SourceImage]:
    """Yield every image of an archive, in its order. Names are treated as in a folder.

    One image is in memory at a time. Raises SourceError if the archive is damaged or cut short, has too many
    members, or unpacks to too many bytes.
    """
    prefix = shown(path)
    with _opened(path, reading.archives) as stream:
        for member in _members(path, stream, reading.archives):
            if member.isdir():
                continue
            name = storable(f"{prefix}/{member.name}")
            regular = member.isreg() and not member.issparse()
            chosen = select_member(member.name, name, reading, regular=regular)
            if isinstance(chosen, SourceImage):
                yield chosen
            elif chosen and member.size > reading.max_bytes:
                yield SourceImage(name, None, too_large(reading.max_bytes))
            elif chosen:
                yield SourceImage(name, stream.take(member.size), None)
        stream.finish()


def is_packed(path: str) -> bool:
    """Return whether `producer.packing` made this file."""
    first = head(path, HEAD_BYTES)
    return first.startswith(f"{MARK}\0".encode()) and first.startswith(_MAGIC, _MAGIC_PLACE)


def read_packed(path: str, *, max_bytes: int, limits: ArchiveLimits) -> Iterator[SourceImage]:
    """Yield the images that `producer.packing` packed, under their own names, and the errors it found.

    Raises SourceError if the archive is damaged.
    """
    with _opened(path, limits) as stream:
        for member in islice(_members(path, stream, limits), 1, None):
            name = storable(member.name)
            code = member.pax_headers.get(ERROR)
            if code is not None:
                image = failed(name, ErrorCode(code), storable(member.pax_headers.get(DETAIL, "")))
            elif not member.isreg() or member.issparse():
                image = failed(name, ErrorCode.SOURCE_FORBIDDEN, "not a regular file")
            elif member.size > max_bytes:
                image = SourceImage(name, None, too_large(max_bytes))
            else:
                image = SourceImage(name, stream.take(member.size), None)
            yield check_name_length(image)._replace(label=member.pax_headers.get(LABEL))


def scan_tar(
    path: str, limits: ArchiveLimits, wanted: Callable[[str], bool], max_bytes: int
) -> Iterator[tuple[str, bytes | None]]:
    """Yield the names of an archive's files, and the content of those that are wanted.

    Raises SourceError; ImageError for a wanted file that has more than `max_bytes`.
    """
    with _opened(path, limits) as stream:
        for member in _members(path, stream, limits):
            if member.isdir():
                continue
            name = storable(member.name)
            if not member.isreg() or member.issparse() or not wanted(name):
                yield name, None
            elif member.size > max_bytes:
                raise too_large(max_bytes)
            else:
                yield name, stream.take(member.size)


class _Stream:
    """The file that tarfile reads: an archive's unpacked bytes, forwards only, and counted."""

    def __init__(self, source: BinaryIO, output_limit: OutputLimit) -> None:
        self._source = source
        self._output_limit = output_limit
        self._at = 0
        #: Bytes that the current member's headers may still have.
        self.header_bytes = _HEADER_BYTES
        #: Whether the last block read is an archive's end marker.
        self.ended = False

    def read(self, size: int) -> bytes:
        """Return `size` bytes of headers to tarfile, or fewer at the end."""
        self.header_bytes -= size
        if self.header_bytes < 0:
            raise tarfile.ReadError("a header without end")
        data = self._read_bytes(size)
        if len(data) > tarfile.BLOCKSIZE and _LONG_NUMBER.search(data):
            raise tarfile.ReadError("a number without end")
        self.ended = data == _END
        return data

    def tell(self) -> int:
        """Return the number of bytes read."""
        return self._at

    def seek(self, place: int) -> None:
        """Skip to a later position, for tarfile."""
        if place < self._at:
            raise tarfile.ReadError("a member before the one before it")
        while self._at < place:
            if not self._read_bytes(min(place - self._at, _PIECE_BYTES)):
                raise EOFError("the end is missing")

    def finish(self) -> None:
        """Read to the end, because gzip checks its checksum only there."""
        while self._read_bytes(_PIECE_BYTES):
            pass

    def take(self, size: int) -> bytes:
        """Return a member's content."""
        data = self._read_bytes(size)
        if len(data) < size:
            raise EOFError("the end is missing")
        return data

    def _read_bytes(self, size: int) -> bytes:
        if size < 0:  # would make a file read everything
            raise tarfile.ReadError("a negative size")
        data = self._source.read(size)
        self._at += len(data)
        self._output_limit.add(len(data))
        return data


def _members(path: str, stream: _Stream, limits: ArchiveLimits) -> Iterator[tarfile.TarInfo]:
    archive = tarfile.TarFile(fileobj=cast(IO[bytes], stream), encoding="utf-8", errors="surrogateescape")
    count = 0
    while (member := archive.next()) is not None:
        count += 1
        if count > limits.max_members:
            raise too_many_members(path, limits)
        yield member
        # tarfile would keep every member, and every attribute that is declared for all following members.
        archive.members.clear()  # type: ignore[attr-defined]  # not documented
        archive.pax_headers = {}
        stream.header_bytes = _HEADER_BYTES
    if not stream.ended:  # tarfile ends silently at an unreadable header
        raise tarfile.ReadError("a broken header, or the end is missing")


@contextmanager
def _opened(path: str, limits: ArchiveLimits) -> Iterator[_Stream]:
    """Open an archive to read its unpacked bytes. Raises SourceError for any damage."""
    first = head(path, HEAD_BYTES)
    for magic, name in _NOT_READ:
        # A plain archive begins with its first member's name, which may look like anything.
        if first.startswith(magic) and not first.startswith(_MAGIC, _MAGIC_PLACE):
            raise SourceError(
                f"{shown(path)} is compressed with {name}, which is not read: "
                "pack it again with gzip, or unpack it and name the folder"
            )
    try:
        with open(os.open(path, OPEN), "rb") as file:  # noqa: PTH123 - a descriptor
            if first.startswith(GZIP_MAGIC):
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield _Stream(cast(BinaryIO, unpacked), OutputLimit(path, limits))
            else:
                yield _Stream(file, OutputLimit(path, limits))
    except _DAMAGE as error:
        # gzip's own errors are OSErrors too, without a number: they mean damage.
        if isinstance(error, OSError) and error.errno is not None:
            raise access_error(path, error) from error
        raise SourceError(
            f"{shown(path)} is not a TAR archive that can be read to its end ({error}): "
            "pack it again, or unpack it and name the folder"
        ) from error
