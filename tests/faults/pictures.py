"""Small PNG files that say in their pixels which label they must get, made without a library."""

from __future__ import annotations

import struct
from typing import NamedTuple

from producer.sources import SourceImage
from tests.faults.checker import Expected
from tests.png import chunk, png

#: A 28 x 28 picture is black but for this pixel, whose grey is the label times `GREY_STEP`.
LABEL_PIXEL = (14, 14)
GREY_STEP = 20

_SIDE = 28


class Picture(NamedTuple):
    """An image to submit, and what must become of it."""

    name: str
    data: bytes
    answer: str

    @property
    def source(self) -> SourceImage:
        """As a source would yield it."""
        return SourceImage(self.name, self.data, None)

    @property
    def expected(self) -> Expected:
        """For the checker."""
        return Expected(self.name, self.answer)


def pictures(count: int, *, first: int = 0) -> list[Picture]:
    """So many pictures with all labels in turn, and names that tell number and label."""
    return [_picture(number) for number in range(first, first + count)]


def poisoned(picture: Picture, poison: str, *, answer: str) -> Picture:
    """The picture with a text chunk in it that `tests.faults.failpoints` takes for an order."""
    signature_and_header = 8 + 25
    order = chunk(b"tEXt", b"fault\0" + poison.encode())
    data = picture.data[:signature_and_header] + order + picture.data[signature_and_header:]
    return Picture(f"{poison}-{picture.name}", data, answer)


def poison_of(data: bytes) -> str | None:
    """The order in a picture's text chunk, if there is one."""
    marker = b"tEXtfault\0"
    at = data.find(marker, 0, 200)
    if at < 0:
        return None
    (length,) = struct.unpack_from(">I", data, at - 4)
    return data[at + len(marker) : at + 4 + length].decode()


def _picture(number: int) -> Picture:
    label = number % 10
    row, column = LABEL_PIXEL
    pixels = bytearray((1 + _SIDE) * _SIDE)  # a filter byte before each row
    pixels[(1 + _SIDE) * row + 1 + column] = label * GREY_STEP
    # The number goes into a corner that nobody looks at: no two pictures have the same bytes.
    struct.pack_into(">I", pixels, (1 + _SIDE) * (_SIDE - 2) + 10, number)
    return Picture(f"{number:06}-{label}.png", png(_SIDE, _SIDE, bytes(pixels)), str(label))
