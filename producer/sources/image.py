"""The images that every source yields, and the rules for names in folders and archives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jobs.errors import ErrorCode, ImageError, SelfExplanatory
from jobs.limits import ArchiveLimits

#: Extensions of images that are read.
_SUPPORTED = "png jpg jpeg jpe jfif gif bmp dib webp pgm ppm pnm pbm"
#: Extensions of images that the worker refuses. They are submitted too, so that their owner sees the error.
#: Not SVG: folders of web pages contain many.
_UNSUPPORTED = "tif tiff psd eps ps fits fit jp2 j2k wmf emf pdf ico heic heif avif tga"
IMAGE_EXTENSIONS = frozenset((_SUPPORTED + " " + _UNSUPPORTED).split())


#: The usual endings of images' names: comparing with these is cheap.
USUAL_ENDINGS = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS if len(extension) == 3)

#: Maximum length of an image's name, in bytes of UTF-8: Linux's PATH_MAX, the longest path that can be
#: opened. Archives need the limit: compressed, a name of hundreds of kilobytes has a few hundred bytes.
MAX_NAME_BYTES: Final = 4096

#: Characters of a longer name that are kept.
_SHORTENED_NAME_LENGTH: Final = 200


class SourceImage(NamedTuple):
    """One image of a source: its bytes, or an error."""

    name: str  # as its owner named it
    data: bytes | None  # the file's bytes; None if there is an error
    error: ImageError | None
    url: str | None = None  # the path or URL that it was read from; None if it is part of a file
    label: str | None = None  # its true label, if its manifest names one


class SourceImages(NamedTuple):
    """Consecutive images that are processed in one step. Each has its bytes and a short name."""

    names: list[str]
    data: list[bytes]
    paths: list[str]  # of the files that they were read from

    def halves(self) -> tuple[SourceImages, SourceImages]:
        """Return two or more images in two parts."""
        names, data, paths = self
        middle = len(names) // 2
        return (
            SourceImages(names[:middle], data[:middle], paths[:middle]),
            SourceImages(names[middle:], data[middle:], paths[middle:]),
        )

    def one_by_one(self) -> Iterator[SourceImage]:
        """Yield each image by itself."""
        return (SourceImage(name, data, None, path) for name, data, path in zip(*self, strict=True))


class TurnOver(SelfExplanatory):
    """The reader must stop before the end of its source; another one continues."""


@dataclass(slots=True)
class Turn:
    """How long a reader may go on. Others end its turn; servers that never answer end it, too."""

    over: threading.Event = field(default_factory=threading.Event)
    #: Seconds that it has waited for objects since the latest one that could be read, and how many it may.
    unanswered: float = 0.0
    max_unanswered: float = float("inf")

    def check(self) -> None:
        """Raise TurnOver if the turn is over."""
        if self.over.is_set() or self.is_in_vain:
            raise TurnOver

    @property
    def is_in_vain(self) -> bool:
        """Return whether no object could be read for too long."""
        return self.unanswered > self.max_unanswered


@dataclass(slots=True)
class Reading:
    """One pass over the sources: its limits, and counts of skipped and unreadable files."""

    max_bytes: int  # of one image
    archives: ArchiveLimits
    turn: Turn = field(default_factory=Turn)
    skipped: int = 0  # files that were skipped because of their names
    unreadable: int = 0  # images without bytes
    first_unreadable: SourceImage | None = None

    def count(self, image: SourceImage) -> SourceImage:
        """Count the image if it has no bytes. Return it, or an error if its name is too long."""
        image = check_name_length(image)
        if image.data is None:
            self.unreadable += 1
            self.first_unreadable = self.first_unreadable or image
        return image


def failed(name: str, code: ErrorCode, detail: str = "") -> SourceImage:
    """Return an image with an error instead of its bytes."""
    return SourceImage(name, None, ImageError(code, detail))


def check_name_length(image: SourceImage) -> SourceImage:
    """Return the image, or an error under a shortened name if its name is too long."""
    if is_short(image.name) or name_bytes(image.name) <= MAX_NAME_BYTES:
        return image
    name = f"{image.name[:_SHORTENED_NAME_LENGTH]}..."
    return failed(name, ErrorCode.SOURCE_FORBIDDEN, f"a name of more than {MAX_NAME_BYTES:,} bytes")


def is_short(name: str) -> bool:
    """Return whether a name is certainly short enough: a cheap test, with 4 bytes per character."""
    return len(name) * 4 <= MAX_NAME_BYTES


def name_bytes(name: str) -> int:
    """Return the length of a name in bytes of UTF-8."""
    return len(name) if name.isascii() else len(name.encode("utf-8", "surrogateescape"))


def extension(name: str) -> str:
    """Return a file name's extension without the dot, in lower case, or "" if there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image_name(name: str) -> bool:
    """Return whether a file in a folder or archive is read: it has an image's extension, or none."""
    return "." not in name or extension(name) in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is skipped silently: a dotfile, or what macOS adds to a ZIP."""
    return name.startswith(".") or name == "__MACOSX"
