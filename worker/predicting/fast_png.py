"""Decode plain PNGs without `Image.open`, which takes longer than decoding the pixels of a small picture.

A PNG is plain if it has the model's size and mode and nothing but pixels: three parts (IHDR, IDAT, IEND), 8
bits per channel, not interlaced. `decode_one` calls Pillow's decoder as Pillow does. `decode_together` takes
many small grey pictures: zlib unpacks each, then PNG's filters are undone for many rows of all pictures at
once. Both give the same pixels. Pictures that are not plain or not intact are left to
`worker.predicting.decode`, which also reports their errors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.limits import ImageLimits
from jobs.models.model import InputSpec

#: Pillow's C code. It is not documented: if it changes, a test fails, and `Image.open` is used instead.
_PILLOW: Final[Any] = Image.core  # type: ignore[attr-defined]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_HEADER: Final = struct.Struct(">I4sIIBBBBB")  # of the first part: its length, kind and content
_COLOUR_TYPES: Final = {"L": 0, "RGB": 2}
#: The bytes that say whether a picture may be plain: the signature and the first part.
BEGINNING_BYTES: Final = len(_SIGNATURE) + _HEADER.size + 4
_PIXELS_AT: Final = len(_SIGNATURE) + _HEADER.size + 12  # after a checksum, and IDAT's length and kind
_END: Final = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

#: Minimum number of pictures: undoing filters takes as many calls for a hundred pictures as for thousands.
_MIN_PICTURES: Final = 1_000

#: Maximum pixels per picture: larger ones are faster one by one, unless they are nearly empty.
_MAX_PIXELS: Final = 1_024

#: Filter numbers. Rows with a filter up to _SUB do not depend on the row above.
_SUB: Final = 1
_LAST_FILTER: Final = 4

#: Maximum bytes that deflate and the PNG format add to incompressible pixels. A longer file contains other
#: data too, and might unpack to gigabytes.
_OVERHEAD: Final = 64


@lru_cache(maxsize=8)
def _beginning(spec: InputSpec) -> bytes:
    """Return the first part of a plain PNG for this model, with the signature before it."""
    part = _HEADER.pack(13, b"IHDR", spec.width, spec.height, 8, _COLOUR_TYPES[spec.mode], 0, 0, 0)
    return _SIGNATURE + part + zlib.crc32(part[4:]).to_bytes(4, "big")


@lru_cache(maxsize=8)
def _spec_with(beginning: bytes) -> InputSpec | None:
    """Return the size and mode that a plain PNG with this first part has, or None if it is not plain."""
    _, _, width, height, _, colour_type, *_ = _HEADER.unpack_from(beginning, len(_SIGNATURE))
    spec = InputSpec(width, height, "L" if colour_type == _COLOUR_TYPES["L"] else "RGB")
    return spec if width and height and _beginning(spec) == beginning else None


def spec_of(data: bytes | memoryview) -> InputSpec | None:
    """Return the size and mode of a picture that may be a plain PNG, or None if it is certainly not."""
    beginning = bytes(data[:BEGINNING_BYTES])
    if len(beginning) < BEGINNING_BYTES or not beginning.startswith(_SIGNATURE):
        return None
    return _spec_with(beginning)


def _end_of_pixels(data: bytes | memoryview, beginning: bytes) -> int:
    """Return where the compressed pixels of a plain picture end; 0 if it is not plain.

    It is plain if it has `beginning`, then one part of pixels, which begins at _PIXELS_AT, and nothing else.
    """
    end = _PIXELS_AT + int.from_bytes(data[_PIXELS_AT - 8 : _PIXELS_AT - 4], "big")
    is_plain = (
        data[:BEGINNING_BYTES] == beginning
        and data[_PIXELS_AT - 4 : _PIXELS_AT] == b"IDAT"
        and data[end + 4 : end + 4 + len(_END)] == _END
    )
    return end if is_plain else 0


def decode_one(data: bytes | memoryview, spec: InputSpec) -> bytes | None:
    """Return the pixels, row by row, if `data` is a plain PNG of the size and mode of `spec`, else None.

    `worker.predicting.validation` must have checked its checksums before.
    """
    end = _end_of_pixels(data, _beginning(spec))
    if not end:
        return None
    try:
        return _decode_pixels(data[_PIXELS_AT:end], spec)
    except (AttributeError, TypeError):  # another version of Pillow, with other internals
        return None


def _decode_pixels(compressed: bytes | memoryview, spec: InputSpec) -> bytes | None:
    """Decode a PNG's pixels as `PIL.ImageFile` and then `Image.tobytes` do. Return None if that fails."""
    size = (spec.width, spec.height)
    pixels = _PILLOW.new(spec.mode, size)
    decoder = _PILLOW.zip_decoder(spec.mode, spec.mode, 0)
    decoder.setimage(pixels, (0, 0, *size))
    consumed, error = decoder.decode(compressed)
    if consumed >= 0 or error < 0:  # the decoder needs more data, or has failed
        return None
    encoder = _PILLOW.raw_encoder(spec.mode, spec.mode, 0, 1)
    encoder.setimage(pixels, (0, 0, *size))
    _, _, raw = encoder.encode(spec.width * spec.height * len(spec.mode))
    return bytes(raw)


def _can_batch(spec: InputSpec, limits: ImageLimits) -> bool:
    """Return whether `decode_together` can handle this model's pictures: grey, small, and not tiny."""
    # If the model's size exceeds the limits, each picture gets its own error elsewhere.
    is_small = spec.width * spec.height <= min(_MAX_PIXELS, limits.max_pixels)
    return "PNG" in limits.formats and spec.mode == "L" and is_small and spec.width > 2 and spec.height > 2


def decode_together(
    contents: Sequence[object], spec: InputSpec, limits: ImageLimits
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Decode the plain PNGs among `contents`. Return their positions and pixels, uint8 (n, *spec.shape).

    The pixels are those of `worker.predicting.decode.decode`. No picture is decoded if there are few, or if
    the model's input is not small and grey.
    """
    if len(contents) < _MIN_PICTURES or not _can_batch(spec, limits):
        return [], np.empty((0, *spec.shape), np.uint8)
    size = (spec.width + 1) * spec.height
    max_bytes = min(limits.max_bytes, _PIXELS_AT + size + _OVERHEAD)
    beginning = _beginning(spec)
    places: list[int] = []
    unpacked: list[bytes] = []
    for place, content in enumerate(contents):
        if isinstance(content, bytes) and len(content) <= max_bytes:
            filtered = _unpack(content, beginning)
            if filtered is not None and len(filtered) == size:
                places.append(place)
                unpacked.append(filtered)
    rows = np.frombuffer(b"".join(unpacked), np.uint8).reshape(-1, spec.height, spec.width + 1)
    known: npt.NDArray[np.bool_] = np.max(rows[:, :, 0], axis=1) <= _LAST_FILTER
    if not known.all():
        rows = rows[known]
        places = [place for place, is_known in zip(places, known.tolist(), strict=True) if is_known]
    return places, _inverted(_unfiltered(rows), spec).reshape(-1, *spec.shape)


def _unpack(data: bytes, beginning: bytes) -> bytes | None:
    """Return a plain picture's filtered rows, or None if it is not plain or its checksum is wrong."""
    end = _end_of_pixels(data, beginning)
    if not end or zlib.crc32(data[_PIXELS_AT - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
        return None
    unpacking = zlib.decompressobj()
    try:
        rows = unpacking.decompress(data[_PIXELS_AT:end])
    except zlib.error:
        return None
    return rows if unpacking.eof and not unpacking.unused_data else None


def _unfiltered(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Undo PNG's filters (W3C, Portable Network Graphics, chapter 9). Return uint8 (n, height, width).

    Each of `rows` begins with the number of its filter, 0 to 4. Most filters depend on the row above. So the
    first step handles, in all pictures, the rows that depend on one other row, the next step those that
    depend on two, and so on. A step's cost is its number of calls, which does not grow with the number of
    rows, and there are fewer steps than rows in a picture.
    """
    count, height, width = len(rows), rows.shape[1], rows.shape[2] - 1
    # Put a black row above each picture, because the filters treat the row above the first as black.
    pixels = np.zeros((count, height + 1, width), np.uint8)
    pixels[:, 1:] = rows[:, :, 1:]
    kinds = np.zeros((count, height + 1), np.uint8)
    kinds[:, 1:] = rows[:, :, 0]
    steps, kinds, lines = _steps(kinds), kinds.reshape(-1), pixels.reshape(-1, width)
    sub = np.flatnonzero(kinds == _SUB)
    lines[sub] = np.cumsum(lines[sub], axis=1, dtype=np.uint8)
    for ready in steps:
        kinds_ready = kinds[ready]
        for kind, undo in _UNDO_BY_ABOVE.items():
            those = ready[kinds_ready == kind]
            if len(those):
                lines[those] = undo(lines[those], lines[those - 1])
    return pixels[:, 1:]


def _steps(kinds: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    """Return, for each step, the rows that depend on as many rows above them as the step's number.

    Rows are numbered through all pictures. A row that does not depend on the row above is in no step. `kinds`
    are the filters, uint8 (n, rows).
    """
    # uint16, so that NumPy's stable sort is a radix sort. No picture has that many rows (`_can_batch`).
    numbers = np.arange(kinds.shape[1], dtype=np.uint16)
    latest = np.maximum.accumulate(np.where(kinds <= _SUB, numbers, 0), axis=1)
    waits = (numbers - latest).reshape(-1)
    waiting = np.flatnonzero(waits)
    waits = waits[waiting]
    in_order = waiting[np.argsort(waits, kind="stable")]
    return np.split(in_order, np.cumsum(np.bincount(waits))[1:-1])


def _undo_up(line: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return line + above


def _undo_average(line: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    # Column by column, because each depends on the one before. Transposed, so that columns are contiguous.
    columns, up = np.ascontiguousarray(line.T), above.T.astype(np.uint16)
    left = np.zeros(len(line), np.uint8)
    for number, column in enumerate(columns):
        column += ((up[number] + left) >> 1).astype(np.uint8)
        left = column
    return columns.T


def _undo_paeth(line: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    columns, up = np.ascontiguousarray(line.T), above.T.astype(np.int16)
    left = corner = np.zeros(len(line), np.int16)
    for number, column in enumerate(columns):
        # Choose the neighbour nearest to left + above - corner; ties go to left, then above.
        to_left, to_above = up[number] - corner, left - corner
        to_corner = np.abs(to_left + to_above)
        np.abs(to_left, out=to_left)
        np.abs(to_above, out=to_above)
        nearest = np.where(to_above <= to_corner, up[number], corner)
        np.copyto(nearest, left, where=(to_left <= to_above) & (to_left <= to_corner))
        column += nearest.astype(np.uint8)
        left, corner = column.astype(np.int16), up[number]
    return columns.T


_UNDO_BY_ABOVE: Final = {2: _undo_up, 3: _undo_average, 4: _undo_paeth}


def _inverted(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Invert pictures as `spec.invert` says; "dark_on_light" looks at the mean of the border pixels."""
    if spec.invert == "always":
        return ~pixels
    if spec.invert == "dark_on_light":
        sides = (pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1])
        ring = sum(side.sum(axis=1, dtype=np.int64) for side in sides)
        light = 2 * ring > 255 * 2 * (spec.width + spec.height - 2)
        if light.any():
            pixels[light] = ~pixels[light]
    return pixels
