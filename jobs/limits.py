"""How large an input may be: an image, an archive, a job. Each is a setting; these are what it is left alone.

A limit on what comes in bounds the memory, the time and the disk that one submission can take from others.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Final

from jobs.errors import UserError

#: The formats that are decoded, by Pillow's names. Pillow knows forty more, and those are the decoders that
#: corrupt memory, call Ghostscript or follow references: a setting may shorten this list, not lengthen it.
IMAGE_FORMATS: Final = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")

#: Pixels, of an image's width or height; JPEG knows no longer ones. To shorten a side takes a table of up to
#: 24 bytes for each of its pixels: one row of 64 million took up to 2.5 GB.
MAX_SIDE: Final = 65_535


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may be; beyond it is `too_large`, or `format_not_allowed`."""

    #: Of the file: far above any photograph, far below what would crowd a process.
    max_bytes: int = 32 * 1024 * 1024
    #: Width times height. One pixel takes up to 20 bytes for a moment: 4 decoded, as many again turned and
    #: without its transparency, and WebP's decoder has three pictures beside. So the largest picture needs
    #: up to 1.3 GB.
    max_pixels: int = 64 * 1024 * 1024
    #: Of an animation, of which the first is classified.
    max_frames: int = 1_000
    formats: tuple[str, ...] = IMAGE_FORMATS


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What one ZIP or TAR archive may be; beyond it the archive is refused."""

    #: Folders and files that are not images are members, too. A ZIP's take about 0.7 KB of memory each.
    max_members: int = 250_000
    #: All that comes out of it, as a multiple of its own size. Images hardly compress. 64 KB may always come.
    max_expansion: int = 200


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What one job may be; beyond it the submission is refused and nothing is stored."""

    max_images: int = 100_000_000
    #: Of all its images together.
    max_bytes: int = 1024**4


@dataclass(frozen=True, slots=True)
class ErrorLimits:
    """When a job is stopped early, because going on would only make more of the same errors.

    Numbers may be NumPy's. Raises UserError if a limit is out of range.
    """

    #: More images than this got an error. None: any number.
    count: int | None = None
    #: More than this share of the images that have an outcome got an error, 0 to 1. None: any share.
    rate: float | None = None
    #: The share means nothing before so many images have an outcome.
    sample: int = 1_000

    def __post_init__(self) -> None:
        # Python's SQLite driver would store NumPy's numbers as their bytes.
        for name, number in (("count", index), ("rate", float), ("sample", index)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, number(value))
        if self.count is not None and self.count < 0:
            raise UserError(f"max errors must be 0 or more, got {self.count}.")
        # Written so that NaN is refused as well.
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise UserError(f"max error rate must be between 0 and 1 (0.05 is 5 %), got {self.rate:g}.")
        if self.sample < 1:
            raise UserError(f"min sample must be 1 or more, got {self.sample}.")
