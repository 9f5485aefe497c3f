"""The images that every source yields, and the rules about names that folders and archives share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ArchiveLimits

#: Extensions of images that are read.
_READ = "png jpg jpeg jpe jfif gif bmp dib webp pgm ppm pnm pbm"
#: Extensions of images that the worker will refuse: their owner should learn that, so they are taken too.
#: SVG is not among them: no setting makes a worker decode it, and folders of web pages hold many.
_REFUSED = "tif tiff psd eps ps fits fit jp2 j2k wmf emf pdf ico heic heif avif tga"
IMAGE_EXTENSIONS = frozenset((_READ + " " + _REFUSED).split())


#: How most images' names end: comparing with these is cheap.
USUAL_ENDINGS = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS if len(extension) == 3)

#: The longest name of an image, in bytes of UTF-8: Linux's PATH_MAX, longer paths cannot be opened. In a
#: compressed archive, a name of hundreds of kilobytes takes a few hundred bytes.
MAX_NAME_BYTES: Final = 4096

#: How many characters of a longer name are kept.
_KEPT_NAME: Final = 200


class SourceImage(NamedTuple):
    """One image of a source: its bytes, or the error that it got instead."""

    name: str  # as its owner named it
    data: bytes | None  # the file's bytes; None if there is an error
    error: ImageError | None
    url: str | None = None  # the path or URL that it was read from; None if it is a part of a file


class SourceImages(NamedTuple):
    """Many images that follow one another, handed on in one step. Each has its bytes and a short name."""

    names: list[str]
    data: list[bytes]
    paths: list[str]  # of the files that they were read from

    def halves(self) -> tuple[SourceImages, SourceImages]:
        """Split two or more images in two parts."""
        names, data, paths = self
        middle = len(names) // 2
        return (
            SourceImages(names[:middle], data[:middle], paths[:middle]),
            SourceImages(names[middle:], data[middle:], paths[middle:]),
        )

    def one_by_one(self) -> Iterator[SourceImage]:
        """Yield each image by itself."""
        return (SourceImage(name, data, None, path) for name, data, path in zip(*self, strict=True))


@dataclass(slots=True)
class Reading:
    """One pass over the sources: its limits, and counts of what was passed over or could not be read."""

    max_bytes: int  # of one image
    archives: ArchiveLimits
    skipped: int = 0  # files that were passed over because of their names
    unreadable: int = 0  # images without bytes
    first_unreadable: SourceImage | None = None

    def taken(self, image: SourceImage) -> SourceImage:
        """Return the image, well named, and count it if it has no bytes."""
        image = well_named(image)
        if image.data is None:
            self.unreadable += 1
            self.first_unreadable = self.first_unreadable or image
        return image


def failed(name: str, code: ErrorCode, detail: str = "") -> SourceImage:
    """Return an image that could not be read."""
    return SourceImage(name, None, ImageError(code, detail))


def well_named(image: SourceImage) -> SourceImage:
    """Return the image, or, if its name is too long, an error with the beginning of the name."""
    if is_short(image.name) or name_bytes(image.name) <= MAX_NAME_BYTES:
        return image
    name = f"{image.name[:_KEPT_NAME]}..."
    return failed(name, ErrorCode.SOURCE_FORBIDDEN, f"a name of more than {MAX_NAME_BYTES:,} bytes")


def is_short(name: str) -> bool:
    """Return whether a name is certainly short enough, cheaply: no character takes more than 4 bytes."""
    return len(name) * 4 <= MAX_NAME_BYTES


def name_bytes(name: str) -> int:
    """Return how many bytes of UTF-8 a name has."""
    return len(name) if name.isascii() else len(name.encode("utf-8", "surrogateescape"))


def extension(name: str) -> str:
    """Return what follows the last dot of a file's own name, in lower case; "" if there is no dot."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image_name(name: str) -> bool:
    """Return whether a file of a folder or archive is taken: it has an image's extension, or none."""
    return "." not in name or extension(name) in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is passed over silently: a leading dot, or what macOS adds to a ZIP."""
    return name.startswith(".") or name == "__MACOSX"
