"""What every source yields, and the rules about names that folders and archives share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ArchiveLimits

#: Extensions of images that are read.
_READ = "png jpg jpeg jpe jfif gif bmp dib webp pgm ppm pnm pbm"
#: Extensions of images that the worker will refuse: their owner should learn that, so they are taken too. SVG is
#: not among them: no setting makes a worker decode it, and folders of web pages hold many.
_REFUSED = "tif tiff psd eps ps fits fit jp2 j2k wmf emf pdf ico heic heif avif tga"
IMAGE_EXTENSIONS = frozenset((_READ + " " + _REFUSED).split())


#: How most images' names end, and nearly all of three letters: the cheap question.
USUAL_ENDINGS = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS if len(extension) == 3)

#: The most bytes of UTF-8 that an image may be called by: Linux's PATH_MAX, longer paths lead nowhere. A
#: compressed archive may give each of its members a name of hundreds of kilobytes, in a few hundred bytes.
MAX_NAME_BYTES: Final = 4096

#: How many characters are kept of a longer one.
_KEPT_NAME: Final = 200


class SourceImage(NamedTuple):
    """One image of a source: its bytes, or why there are none."""

    name: str  # what its owner calls it
    data: bytes | None  # the file's bytes; None where there is an error
    error: ImageError | None
    url: str | None = None  # the path or URL it was read from; None where it is a part of a file


class SourceImages(NamedTuple):
    """Images that follow one another, each with its bytes and a name that is short enough: what most are, and
    one step for many of them.
    """

    names: list[str]
    data: list[bytes]
    paths: list[str]  # that they were read from

    def halves(self) -> tuple[SourceImages, SourceImages]:
        """Of two or more."""
        names, data, paths = self
        middle = len(names) // 2
        return (
            SourceImages(names[:middle], data[:middle], paths[:middle]),
            SourceImages(names[middle:], data[middle:], paths[middle:]),
        )

    def one_by_one(self) -> Iterator[SourceImage]:
        """Each by itself."""
        return (SourceImage(name, data, None, path) for name, data, path in zip(*self, strict=True))


@dataclass(slots=True)
class Reading:
    """One pass over the sources: the limits it keeps, and what was not as it should be."""

    max_bytes: int  # of an image
    archives: ArchiveLimits
    skipped: int = 0  # files passed over for their names
    unreadable: int = 0  # images without bytes
    first_unreadable: SourceImage | None = None

    def taken(self, image: SourceImage) -> SourceImage:
        """The image, well named, and counted where it has no bytes."""
        image = well_named(image)
        if image.data is None:
            self.unreadable += 1
            self.first_unreadable = self.first_unreadable or image
        return image


def failed(name: str, code: ErrorCode, detail: str = "") -> SourceImage:
    """An image without bytes."""
    return SourceImage(name, None, ImageError(code, detail))


def well_named(image: SourceImage) -> SourceImage:
    """The image; or, where its name is too long, an error that has the beginning of it."""
    if is_short(image.name) or name_bytes(image.name) <= MAX_NAME_BYTES:
        return image
    name = f"{image.name[:_KEPT_NAME]}..."
    return failed(name, ErrorCode.SOURCE_FORBIDDEN, f"a name of more than {MAX_NAME_BYTES:,} bytes")


def is_short(name: str) -> bool:
    """Whether a name is far from too long: the cheap question. No character takes more than 4 bytes."""
    return len(name) * 4 <= MAX_NAME_BYTES


def name_bytes(name: str) -> int:
    """How many bytes of UTF-8 a name has."""
    return len(name) if name.isascii() else len(name.encode("utf-8", "surrogateescape"))


def extension(name: str) -> str:
    """What follows the last dot of a file's own name, in lower case; empty where there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image_name(name: str) -> bool:
    """Whether a file of a folder or archive is taken: an image's extension, or none at all."""
    return "." not in name or extension(name) in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over in silence: a leading dot, or what macOS adds to a ZIP."""
    return name.startswith(".") or name == "__MACOSX"
