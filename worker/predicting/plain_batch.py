"""Many plain PNGs, decoded together: for small grey pictures the calls take longer than the work.

Each picture is unpacked by zlib; then the filters of PNG are undone for many rows of all pictures at once.
What is taken is a part of what `worker.predicting.plain` takes, and has the same pixels; the rest is left to
it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from jobs.limits import ImageLimits
from jobs.model import InputSpec
from worker.predicting.plain import beginning

#: Fewer are quicker one by one: undoing filters takes as many calls for a hundred pictures as for thousands.
LEAST: Final = 1_000

#: Of a picture. Larger ones are quicker one by one, however many, unless they are nearly empty.
_MOST_PIXELS: Final = 1_024

_IDAT_AT: Final = 33  # behind the first part and its checksum
_PIXELS_AT: Final = _IDAT_AT + 8
_END: Final = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

#: The numbers of filters. Up to the first, a row goes by no other.
_SUB: Final = 1
_LAST_FILTER: Final = 4

#: Deflate never makes more of what it cannot compress than this. What is longer holds something else, too,
#: and might unpack into gigabytes.
_OVERHEAD: Final = 64


def takes(spec: InputSpec, limits: ImageLimits) -> bool:
    """Whether pictures for such a model may be plain ones for this module: grey, small, and not tiny."""
    # They are as large as the model wants them: where none may be, each is told so by itself.
    is_small = spec.width * spec.height <= min(_MOST_PIXELS, limits.max_pixels)
    return "PNG" in limits.formats and spec.mode == "L" and is_small and spec.width > 2 and spec.height > 2


def decode_together(
    contents: Sequence[object], spec: InputSpec, limits: ImageLimits
) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """The places of those that are plain PNGs as the model wants them, and their pixels, uint8
    (n, *spec.shape), as `worker.predicting.decode.decode` gives them. Only where `takes` says so.
    """
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
    first = beginning(spec)
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
