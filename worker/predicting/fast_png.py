"""Plain PNGs, decoded without being opened: opening a small picture takes Pillow longer than its pixels do.

A PNG is plain if it is as the model wants it and has nothing but its pixels: three parts, 8 bits per channel,
not interlaced. `decode_one` calls Pillow's own decoder as Pillow calls it. `decode_together` takes many small
grey ones: each is unpacked by zlib, then PNG's filters are undone for many rows of all pictures at once. An
image gets the same pixels either way. What is not plain or not sound is left to `worker.predicting.decode`,
which also has the words for it.
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
from jobs.model import InputSpec

#: Pillow's C code. It is not documented: if it changes, a test fails, and pictures are opened as before.
_PILLOW: Final[Any] = Image.core  # type: ignore[attr-defined]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_FIRST: Final = struct.Struct(">8sI4sIIBBBBB")  # signature; length, kind and content of the first part
_FIRST_BYTES: Final = 13
_COLOUR_TYPES: Final = {"L": 0, "RGB": 2}
_IDAT_AT: Final = 33  # where the second part begins: behind the first one's checksum
_PART: Final = struct.Struct(">I4s")  # its content's length, its kind


#: Fewer are quicker one by one: undoing filters takes as many calls for a hundred pictures as for thousands.
_LEAST: Final = 1_000

#: Of a picture. Larger ones are quicker one by one, however many, unless they are nearly empty.
_MOST_PIXELS: Final = 1_024

_PIXELS_AT: Final = _IDAT_AT + 8
_END: Final = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

#: The numbers of filters. Up to the first, a row goes by no other.
_SUB: Final = 1
_LAST_FILTER: Final = 4

#: Deflate never makes more of what it cannot compress than this. What is longer holds something else, too,
#: and might unpack into gigabytes.
_OVERHEAD: Final = 64


def decode_one(data: bytes | memoryview, spec: InputSpec) -> bytes | None:
    """The pixels, row by row, if `data` is a plain PNG of the size and mode of `spec`, else None.

    Its checksums must have been checked, by `worker.predicting.validation`.
    """
    if data[: _FIRST.size] != _beginning(spec):
        return None
    try:
        length, kind = _PART.unpack_from(data, _IDAT_AT)
    except struct.error:
        return None
    begin = _IDAT_AT + _PART.size
    end = begin + length
    if kind != b"IDAT" or data[end + 4 : end + 12] != _END[:8]:
        return None
    try:
        return _decode_pixels(data[begin:end], spec)
    except (AttributeError, TypeError):  # another Pillow, whose inner parts are called otherwise
        return None


def _decode_pixels(compressed: bytes | memoryview, spec: InputSpec) -> bytes | None:
    """What `PIL.ImageFile` does with the pixels of a PNG, and `Image.tobytes` with what comes out."""
    size = (spec.width, spec.height)
    pixels = _PILLOW.new(spec.mode, size)
    decoder = _PILLOW.zip_decoder(spec.mode, spec.mode, 0)
    decoder.setimage(pixels, (0, 0, *size))
    consumed, error = decoder.decode(compressed)
    if consumed >= 0 or error < 0:  # it would go on, or something is wrong
        return None
    encoder = _PILLOW.raw_encoder(spec.mode, spec.mode, 0, 1)
    encoder.setimage(pixels, (0, 0, *size))
    _, _, raw = encoder.encode(spec.width * spec.height * len(spec.mode))
    return bytes(raw)


@lru_cache(maxsize=8)
def _beginning(spec: InputSpec) -> bytes:
    """How a plain PNG for this model begins."""
    header = (spec.width, spec.height, 8, _COLOUR_TYPES[spec.mode], 0, 0, 0)
    return _FIRST.pack(_SIGNATURE, _FIRST_BYTES, b"IHDR", *header)


def _takes(spec: InputSpec, limits: ImageLimits) -> bool:
    """Whether pictures for such a model may be plain ones for this module: grey, small, and not tiny."""
    # They are as large as the model wants them: where none may be, each is told so by itself.
    is_small = spec.width * spec.height <= min(_MOST_PIXELS, limits.max_pixels)
    return "PNG" in limits.formats and spec.mode == "L" and is_small and spec.width > 2 and spec.height > 2


def decode_together(
    contents: Sequence[object], spec: InputSpec, limits: ImageLimits
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Return the places of those that are plain PNGs as the model wants them, and their pixels, uint8
    (n, *spec.shape), as `worker.predicting.decode.decode` returns them.

    None of them, if there are few, or if the model's input is not small and grey.
    """
    if len(contents) < _LEAST or not _takes(spec, limits):
        return [], np.empty((0, *spec.shape), np.uint8)
    size = (spec.width + 1) * spec.height
    most = min(limits.max_bytes, _IDAT_AT + size + _OVERHEAD)
    first = _first_part(spec)
    places: list[int] = []
    unpacked: list[bytes] = []
    for place, content in enumerate(contents):
        if isinstance(content, bytes) and len(content) <= most:
            inside = _unpack(content, first)
            if inside is not None and len(inside) == size:
                places.append(place)
                unpacked.append(inside)
    rows = np.frombuffer(b"".join(unpacked), np.uint8).reshape(-1, spec.height, spec.width + 1)
    known: npt.NDArray[np.bool_] = np.max(rows[:, :, 0], axis=1) <= _LAST_FILTER
    if not known.all():
        rows = rows[known]
        places = [place for place, is_known in zip(places, known.tolist(), strict=True) if is_known]
    return places, _inverted(_unfiltered(rows), spec).reshape(-1, *spec.shape)


def _unpack(data: bytes, first: bytes) -> bytes | None:
    """The filtered rows of a picture that begins with `first` and then has one part of pixels, and whose
    checksums are right.
    """
    if not data.startswith(first):
        return None
    end = _PIXELS_AT + int.from_bytes(data[_IDAT_AT : _IDAT_AT + 4], "big")
    if data[_IDAT_AT + 4 : _PIXELS_AT] != b"IDAT" or data[end + 4 : end + 16] != _END:
        return None
    if zlib.crc32(data[_IDAT_AT + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
        return None
    unpacking = zlib.decompressobj()
    try:
        rows = unpacking.decompress(data[_PIXELS_AT:end])
    except zlib.error:
        return None
    return rows if unpacking.eof and not unpacking.unused_data else None


def _first_part(spec: InputSpec) -> bytes:
    first = _beginning(spec)
    return first + zlib.crc32(first[12:]).to_bytes(4, "big")


def _unfiltered(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 (n, height, width), of rows that each begin with the number of their filter (0 to 4).
    W3C, Portable Network Graphics, chapter 9.

    Most filters go by the row above, and a row with one of them waits for that row to be done. The rows that
    wait for one other are done together, in all pictures, then those that wait for two, and so on: what a
    step costs is its calls, which are as many for ten rows as for thousands, and there are fewer steps than a
    picture has rows.
    """
    count, height, width = len(rows), rows.shape[1], rows.shape[2] - 1
    # Each picture under a black row, which is what the filters take for the row above the first.
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
    """Which of all rows, counted through all pictures, wait for one row to be done, for two, and so on. A row
    that does not go by the one above waits for none, and is in no step. `kinds`: the filters, (n, rows).
    """
    # Few bits, that they are sorted by counting. No picture has so many rows (`takes`).
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
    # A column at a time, as each needs the one before: columns lie together in memory, then.
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
        # The neighbour that is nearest to left + above - corner; of two that are as near, the first of these.
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
    """Inverted where `spec.invert` says so, by the mean of the outermost ring of pixels."""
    if spec.invert == "always":
        return ~pixels
    if spec.invert == "dark_on_light":
        sides = (pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1])
        ring = sum(side.sum(axis=1, dtype=np.int64) for side in sides)
        light = 2 * ring > 255 * 2 * (spec.width + spec.height - 2)
        if light.any():
            pixels[light] = ~pixels[light]
    return pixels
