"""Many plain PNGs, decoded together: for small grey pictures the calls take longer than the work.

Each picture is unpacked by zlib; then the filters of PNG are undone for a row of all pictures at once. What
is taken is a part of what `worker.predicting.plain` takes, and has the same pixels; the rest is left to it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from jobs.limits import ImageLimits
from jobs.model import InputSpec
from worker.predicting.plain import beginning

#: Fewer are quicker one by one: undoing filters takes as many calls for a hundred pictures as for thousands.
LEAST: Final = 1_000

_IDAT_AT: Final = 33  # behind the first part and its checksum
_PIXELS_AT: Final = _IDAT_AT + 8
_END: Final = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

#: Deflate never makes more of what it cannot compress than this. What is longer holds something else, too,
#: and might unpack into gigabytes.
_OVERHEAD: Final = 64


def takes(spec: InputSpec, limits: ImageLimits) -> bool:
    """Whether pictures for such a model may be plain ones for this module: grey, and not tiny."""
    return "PNG" in limits.formats and spec.mode == "L" and spec.width > 2 and spec.height > 2


def decode_together(
    contents: Sequence[object], spec: InputSpec, limits: ImageLimits
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """The places of those that are plain PNGs as the model wants them, and their pixels, uint8
    (n, *spec.shape), as `worker.predicting.decode.decode` gives them. Only where `takes` says so.
    """
    size = (spec.width + 1) * spec.height
    most = min(limits.max_bytes, _IDAT_AT + size + _OVERHEAD)
    places: list[int] = []
    unpacked: list[bytes] = []
    for place, content in enumerate(contents):
        if isinstance(content, bytes) and len(content) <= most:
            inside = _unpack(content, spec)
            if inside is not None and len(inside) == size:
                places.append(place)
                unpacked.append(inside)
    rows = np.frombuffer(b"".join(unpacked), np.uint8).reshape(-1, spec.height, spec.width + 1)
    known: npt.NDArray[np.bool_] = np.max(rows[:, :, 0], axis=1) <= max(_UNDO)
    if not known.all():
        rows = rows[known]
        places = [place for place, is_known in zip(places, known.tolist(), strict=True) if is_known]
    return places, _inverted(_unfiltered(rows), spec).reshape(-1, *spec.shape)


def _unpack(data: bytes, spec: InputSpec) -> bytes | None:
    """The filtered rows of a picture that has one part of pixels, and whose checksums are right."""
    if data[:_IDAT_AT] != _first_part(spec):
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


@lru_cache(maxsize=8)
def _first_part(spec: InputSpec) -> bytes:
    first = beginning(spec)
    return first + zlib.crc32(first[12:]).to_bytes(4, "big")


def _unfiltered(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The pixels, uint8 (n, height, width), of rows that each begin with the number of their filter (0 to 4).
    W3C, Portable Network Graphics, chapter 9.
    """
    pixels = np.empty((len(rows), rows.shape[1], rows.shape[2] - 1), np.uint8)
    above = np.zeros((len(rows), rows.shape[2] - 1), np.uint8)
    for number in range(rows.shape[1]):
        kinds, line = rows[:, number, 0], rows[:, number, 1:]
        row = pixels[:, number]
        row[:] = line
        for kind, undo in _UNDO.items():
            those = np.flatnonzero(kinds == kind)
            if len(those):
                row[those] = undo(line[those], above[those])
        above = row
    return pixels


def _undo_sub(line: npt.NDArray[np.uint8], _above: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.cumsum(line, axis=1, dtype=np.uint8)


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


_UNDO: Final = {1: _undo_sub, 2: _undo_up, 3: _undo_average, 4: _undo_paeth}


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
