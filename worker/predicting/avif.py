"""Open an AVIF, after a check of the AV1 data in it.

The container declares a size, but the decoder allocates what the AV1 data declares, and decodes all frames of
an item or sample, shown or not, in one call that nothing interrupts. So the AV1 headers are read here.
Everything that libavif might decode is checked; what it refuses anyway is not an error here.

The names are those of the AV1 specification, ISO/IEC 14496-12 (boxes) and 23008-12 (items).
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from typing import Final

from PIL import AvifImagePlugin, Image

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ImageLimits
from worker.predicting.validation import check_frames, check_parts, check_size

# More threads would take the cores of other processes, and an image's time limit counts only one.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Maximum pixels that are decoded, as a multiple of the limit: colours, transparency, layers, a grid's border.
# The same multiple of the file's bytes may be read, because libavif stores equal parts only once.
_MAX_WORK: Final = 16

_LARGEST_FRAME: Final = 2**28  # pixels; libavif refuses larger frames

# The last versions of these boxes with ids of 16 bits.
_LAST_SHORT_ILOC, _LAST_SHORT_INFE = 1, 2

_LAST_LEVEL_WITHOUT_TIER: Final = 7

# Types of OBUs, the parts of AV1 data.
_SEQUENCE_HEADER: Final = 1
_MAX_HEADER: Final = 512  # bytes, more than the longest header has before the size
_FRAMES: Final = frozenset((3, 6))  # a frame's header, a frame with its header


def open_avif(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Open the first frame, which is not decoded yet.

    Raises ImageError, TOO_LARGE or CORRUPT, and what Pillow raises.
    """
    view = memoryview(data)
    pixels = 0
    count = itertools.count(1)
    try:
        for part in itertools.chain(_items(view), _first_samples(view, limits)):
            pixels += _pixels(part, limits, count)
            if pixels > _MAX_WORK * limits.max_pixels:
                raise ImageError(ErrorCode.TOO_LARGE, "too many pixels in its layers or tiles")
    except (struct.error, IndexError):
        raise ImageError(ErrorCode.CORRUPT, "cut short") from None
    image = Image.open(io.BytesIO(data), formats=("AVIF",))
    check_frames(getattr(image, "n_frames", 1), limits)
    return image


def _boxes(view: memoryview, kind: bytes, *inner: bytes) -> Iterator[memoryview]:
    """Yield the content of each box of a kind; with `inner`, of the boxes along that path."""
    at = parts = 0
    while at + 8 <= len(view):
        parts += 1
        check_parts(parts)
        size, found = struct.unpack_from(">I4s", view, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", view, start)
            start += 8
        end = at + size if size else len(view)
        if not start <= end <= len(view):
            return
        if found == kind:
            content = view[start:end]
            if inner:
                yield from _boxes(content, *inner)
            else:
                yield content
        at = end


def _items(view: memoryview) -> Iterator[memoryview | bytes]:
    """Yield the AV1 data of each item."""
    for meta in _boxes(view, b"meta"):
        boxes = meta[4:]
        coded = set()
        for items in _boxes(boxes, b"iinf"):
            for item in _boxes(items[6 if items[0] == 0 else 8 :], b"infe"):
                id_bytes = 2 if item[0] <= _LAST_SHORT_INFE else 4
                if bytes(item[6 + id_bytes : 10 + id_bytes]) == b"av01":
                    coded.add(int.from_bytes(item[4 : 4 + id_bytes]))
        inside = next(_boxes(boxes, b"idat"), memoryview(b""))
        total = 0
        for locations in _boxes(boxes, b"iloc"):
            for item_id, method, extents in _locations(locations):
                source = inside if method else view
                parts = [source[start : start + length if length else None] for start, length in extents]
                total += sum(map(len, parts))
                if total > _MAX_WORK * len(view):
                    raise ImageError(ErrorCode.TOO_LARGE, "its items overlap")
                if item_id in coded:
                    yield parts[0] if len(parts) == 1 else b"".join(parts)


def _locations(box: memoryview) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Yield each item's id, construction method, and extents: position and length."""
    version, at, parts = box[0], 4, 0

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(box):
            raise IndexError
        return int.from_bytes(box[at - size : at])

    offset_size, length_size = divmod(number(1), 16)
    base_size, index_size = divmod(number(1), 16)
    id_size = 2 if version <= _LAST_SHORT_ILOC else 4
    for _ in range(number(id_size)):
        item_id = number(id_size)
        method = number(2) & 15 if version else 0
        number(2)  # the file that holds it
        base, extents = number(base_size), []
        for _ in range(number(2)):
            parts += 1
            check_parts(parts)
            number(index_size if version else 0)
            extents.append((base + number(offset_size), number(length_size)))
        yield item_id, method, extents


def _first_samples(view: memoryview, limits: ImageLimits) -> Iterator[memoryview]:
    """Yield the AV1 data of each track's first frame. Check the number of frames."""
    for table in _boxes(view, b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        size = 0
        for sizes in _boxes(table, b"stsz"):
            common, frames = struct.unpack_from(">II", sizes, 4)
            check_frames(frames, limits)
            if frames:
                size = max(size, common or struct.unpack_from(">I", sizes, 12)[0])
        for kind, form in ((b"stco", ">I"), (b"co64", ">Q")):
            for chunks in _boxes(table, kind):
                if struct.unpack_from(">I", chunks, 4)[0]:
                    (start,) = struct.unpack_from(form, chunks, 8)
                    yield view[start : start + size]


def _pixels(data: memoryview | bytes, limits: ImageLimits, count: Iterator[int]) -> int:
    """Return an upper bound of the pixels that an item or sample decodes to. Check the size of its frames.

    `count` counts the OBUs of all items and samples.
    """
    at = pixels = frame = 0
    while at < len(data):
        check_parts(next(count))
        head = data[at]
        at += 2 if head & 4 else 1  # with an extension
        length = len(data) - at
        if head & 2:  # with a length, in groups of seven bits
            length = shift = 0
            while True:
                byte = data[at]
                at += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128 or shift > 56:
                    break
        kind = head >> 3 & 15
        if kind == _SEQUENCE_HEADER:
            frame = _frame_pixels(data[at : at + min(length, _MAX_HEADER)], limits)
        elif kind in _FRAMES:
            if not frame:
                raise ImageError(ErrorCode.CORRUPT, "a frame without a header of its sequence")
            pixels += frame
        at += length
    return pixels


def _frame_pixels(header: memoryview | bytes, limits: ImageLimits) -> int:
    """Return the maximum pixels of a frame, and check the size that the sequence header declares."""
    bits = _Bits(header)
    bits.read(4)  # profile, still picture
    reduced = bits.read(1)
    if reduced:
        bits.read(5)  # level
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    check_size(width, height, limits)
    # The frames of a reduced header have this size; others may have any that fits in the same bits.
    return width * height if reduced else min(1 << width_bits + height_bits, _LARGEST_FRAME)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):  # equal intervals: a number after as many zeros as it has bits
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > _LAST_LEVEL_WITHOUT_TIER:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)


class _Bits:
    """Bits that are read one after the other."""

    def __init__(self, data: memoryview | bytes) -> None:
        self._number = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next bits as a number. Raises IndexError at the end."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._number >> self._left & (1 << count) - 1
