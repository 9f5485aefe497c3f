"""Limits of an input: an image, an archive, a job. Each is a setting with the default given here.

A limit bounds the memory, time and disk that one submission can take from others.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Final

from jobs.errors import UserError

#: The formats that are decoded, by Pillow's names. A setting can remove some, but not add others: Pillow has
#: decoders that corrupt memory, call Ghostscript, follow references, or allocate more than a file declares.
IMAGE_FORMATS: Final = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")

#: The maximum width or height, in pixels; JPEG allows no more. Resizing needs up to 24 bytes per pixel of a
#: side: a row of 64 million pixels took up to 2.5 GB.
MAX_SIDE: Final = 65_535

#: A century, in days. Both databases can represent a time this long ago, or this far ahead.
MAX_DAYS: Final = 36_500

#: Maximum number of most probable classes that a job can ask for per image.
MAX_TOP_K: Final = 10

#: Maximum characters of a submission key. PostgreSQL's index would allow 2,700 bytes.
MAX_KEY_LENGTH: Final = 256

#: Maximum characters of a glob for names. The time to match a name grows with them: up to 2 ms for the
#: longest name.
MAX_GLOB_LENGTH: Final = 256

#: A priority given by the user is at most this, and at least its negative.
MAX_PRIORITY: Final = 100


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The limits of one image. Beyond them it gets `too_large`, or `format_not_allowed`."""

    #: Of the file. Far above any photograph, far below what would exhaust a process.
    max_bytes: int = 32 * 1024 * 1024
    #: Width times height. A pixel takes up to 20 bytes for a moment: 4 decoded, 4 in the rotated copy without
    #: transparency, and 12 in the three images of WebP's decoder. So the largest image needs up to 1.3 GB.
    max_pixels: int = 64 * 1024 * 1024
    #: Frames of an animation; only the first is classified.
    max_frames: int = 1_000
    formats: tuple[str, ...] = IMAGE_FORMATS


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """The limits of one ZIP or TAR archive. Beyond them it is refused."""

    #: Folders and files that are not images count too. A member of a ZIP takes about 0.7 KB of memory.
    max_members: int = 250_000
    #: The total size of its members, as a multiple of its own size. Images hardly compress. 64 KB are always
    #: allowed.
    max_expansion: int = 200


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The limits of one job. Beyond them the submission is refused and nothing is stored."""

    max_images: int = 100_000_000
    #: Of all its images together.
    max_bytes: int = 1024**4


@dataclass(frozen=True, slots=True)
class ErrorLimits:
    """When to stop a job early, because continuing would only produce more of the same errors.

    Numbers may be NumPy's. Raises UserError if a limit is out of range.
    """

    #: The job stops if more images than this got an error. None: no limit.
    count: int | None = None
    #: The job stops if more than this share of the images with an outcome got an error, 0 to 1. None: no
    #: limit.
    rate: float | None = None
    #: The share is only checked once this many images have an outcome.
    sample: int = 1_000

    def __post_init__(self) -> None:
        # Converted because Python's SQLite driver would store NumPy's numbers as their bytes.
        for name, number in (("count", index), ("rate", float), ("sample", index)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, number(value))
        if self.count is not None and self.count < 0:
            raise UserError(f"max errors must be 0 or more, got {self.count}.")
        # Written so that NaN is refused too.
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise UserError(f"max error rate must be between 0 and 1 (0.05 is 5 %), got {self.rate:g}.")
        if self.sample < 1:
            raise UserError(f"min sample must be 1 or more, got {self.sample}.")
