"""Read the images of an IDX file, MNIST's format, gzipped or not, one after the other.

Each becomes a binary PGM file, so that it is an image like any other. The IDX format: 0, 0, the type, the
number of dimensions; each dimension as a big-endian 32-bit number; the pixels.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from jobs.errors import SourceError
from jobs.limits import ArchiveLimits
from producer.sources.files import access_error, head, shown
from producer.sources.image import Reading, SourceImage
from producer.sources.members import OutputLimit

IMAGES_MAGIC = b"\x00\x00\x08\x03"  # unsigned bytes in three dimensions
LABELS_MAGIC = b"\x00\x00\x08\x01"
GZIP_MAGIC = b"\x1f\x8b"

_NAME = re.compile(r"idx[13]-ubyte(\.gz)?$", re.IGNORECASE)

#: Labels that are read at a time.
_LABEL_PART_BYTES = 1024 * 1024

#: Errors from reading a damaged file, gzipped or not.
_DAMAGE = (OSError, EOFError, zlib.error)


def is_idx(path: str, name: str, first: bytes) -> bool:
    """Return whether a file with these first four bytes is an IDX file, by its name or its content."""
    if first.startswith(GZIP_MAGIC):
        try:
            with _open(path) as stream:
                first = stream.read(4)
        except _DAMAGE:
            first = b""
    return first in (IMAGES_MAGIC, LABELS_MAGIC) or _NAME.search(name) is not None


def check_idx(path: str, max_bytes: int) -> None:
    """Raise SourceError if a file does not hold images, or images that are too large."""
    try:
        with _open(path) as stream:
            _read_header(path, stream, max_bytes)
    except _DAMAGE as error:
        # gzip's own errors are OSErrors too, without a number: they mean damage.
        if isinstance(error, OSError) and error.errno is not None:
            raise access_error(path, error) from error
        raise SourceError(f"{shown(path)} cannot be read ({error}): fetch it again") from error


def read_idx(path: str, reading: Reading) -> Iterator[SourceImage]:
    """Yield every image of an IDX file.

    Raises SourceError after the last complete image if the file declares more, or if it unpacks to more bytes
    than an archive may.
    """
    name = shown(path)
    found = count = 0
    intact = False
    with suppress(*_DAMAGE), _open(path) as stream:
        count, rows, columns = _read_header(path, stream, reading.max_bytes)
        header = _pgm_header(rows, columns)
        size = rows * columns
        output_limit = OutputLimit(path, reading.archives)
        width = max(5, len(str(count - 1)))
        while found < count and len(pixels := stream.read(size)) == size:
            output_limit.add(size)
            yield SourceImage(f"{name}/{found:0{width}d}", header + pixels, None)
            found += 1
        stream.read(1)  # gzip checks its checksum only at the end
        intact = found == count
    if not intact:
        raise SourceError(
            f"{name} is damaged or cut short: it declares {count} images, {found} could be read. "
            "Fetch it again"
        )


def labels_beside(path: str) -> str | None:
    """Return the path of the labels of a file of images, named as in MNIST, or None if there is none."""
    folder, slash, name = path.rpartition("/")
    labels = name.replace("images", "labels").replace("idx3", "idx1")
    stem = labels.removesuffix(".gz")
    for each in (labels, stem, f"{stem}.gz"):
        # Not a Path, which would drop a leading `./`: callers compare this with the paths that people name.
        beside = f"{folder}{slash}{each}"
        if each != name and Path(beside).is_file():
            return beside
    return None


def read_labels(path: str, limits: ArchiveLimits) -> bytes:
    """Return the labels of an IDX file, one byte each.

    Raises SourceError if it does not hold labels, or unpacks to more bytes than an archive may.
    """
    labels = bytearray()
    try:
        with _open(path) as stream:
            header = stream.read(8)
            count = int.from_bytes(header[4:], "big")
            output_limit = OutputLimit(path, limits)
            if header.startswith(LABELS_MAGIC):
                while part := stream.read(_LABEL_PART_BYTES):  # in parts, because the number may be wrong
                    output_limit.add(len(part))
                    labels += part
                if len(labels) == count:
                    return bytes(labels)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise access_error(path, error) from error
    raise SourceError(f"{shown(path)} does not hold labels (idx1-ubyte), or is cut short: fetch it again")


def _open(path: str) -> BinaryIO:
    if head(path, 2) == GZIP_MAGIC:
        return cast(BinaryIO, gzip.open(path, "rb"))
    return Path(path).open("rb")


def _read_header(path: str, stream: BinaryIO, max_bytes: int) -> tuple[int, int, int]:
    """Return the number of images, rows and columns. Raises SourceError if they make no sense."""
    name = shown(path)
    header = stream.read(16)
    if header.startswith(LABELS_MAGIC):
        raise SourceError(f"{name} holds labels: name the file with the images (idx3-ubyte) instead")
    if len(header) < 16 or not header.startswith(IMAGES_MAGIC):
        raise SourceError(
            f"{name} is not an IDX file of images (idx3-ubyte): check what it is, or fetch it again"
        )
    count, rows, columns = cast(tuple[int, int, int], struct.unpack(">III", header[4:]))
    if rows * columns == 0:
        raise SourceError(f"{name} declares images of {columns} x {rows} pixels: fetch it again")
    if len(_pgm_header(rows, columns)) + rows * columns > max_bytes:
        raise SourceError(
            f"{name} declares images of {columns} x {rows} pixels, the limit is {max_bytes} bytes"
        )
    return count, rows, columns


def _pgm_header(rows: int, columns: int) -> bytes:
    return f"P5\n{columns} {rows}\n255\n".encode()
